//! A stream under way: QEMU's view of it is followed, its guest is stopped when that is short enough, and it is given up when
//! its time is over.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::session::VmStage;
use vmscatter_core::session::convergence::Convergence;
use vmscatter_core::session::deadlines::{stage_limit, stopped_limit};
use vmscatter_core::session::pace::Pace;
use vmscatter_core::time::Time;

use super::actor::{Actor, TaskEnd};
use super::guest::Monitor;
use super::stream::Stream;
use crate::report::event::{JobEvent, Phase};

/// How often a streaming guest's switchover limits follow what QEMU says.
const TUNE: Duration = Duration::from_millis(50);
/// A monitor that does not answer within this time has a guest that is being stopped, most of all.
const MUTE: Duration = Duration::from_secs(1);

fn lock(convergence: &Mutex<Convergence>) -> MutexGuard<'_, Convergence> {
    convergence.lock().unwrap_or_else(|e| e.into_inner())
}

impl Actor {
    fn time(&self, at: Instant) -> Time {
        Time(at.saturating_duration_since(self.start).as_micros() as u64)
    }

    /// The stream is released, and a task follows QEMU's view of it until the guest stops.
    pub(super) fn start_stream(&mut self, vm: u16) {
        self.milestones.streaming(self.links.iter().map(|link| link.sent_bytes()).sum());
        self.tell_phase(vm, Phase::Stream);
        let share = self.scatter.link_bytes_per_s() / self.streams_max as f64;
        let now = Instant::now();
        let state = &self.vms[usize::from(vm)];
        let (monitor, stream) = (state.guest.monitor.clone(), state.stream.clone());
        let direct = monitor.takes_switchover_bandwidth();
        let logged = self.time(state.times.opened.unwrap_or(now));
        let pages = state.guest.bytes() / PAGE_SIZE as u64;
        let convergence = Convergence::new(self.policy, pages, share, direct, logged, self.time(now));
        let convergence = Arc::new(Mutex::new(convergence));
        let pace = Pace::new(share, self.time(now));
        let state = &mut self.vms[usize::from(vm)];
        state.stream_due = false;
        state.times.streaming = Some(now);
        state.convergence = Some(convergence.clone());
        state.pace = Some(pace);
        let start = self.start;
        self.task(vm, async move {
            let released = stream.clone();
            let _ = tokio::task::spawn_blocking(move || released.release()).await;
            follow(&monitor, &stream, &convergence, start).await.err().map(TaskEnd::Failed)
        });
    }

    /// The scatter does not wait for a few that are much slower than the others.
    pub(super) fn check_twins(&mut self) {
        let (asked, opened) = self.twins_since;
        let (waiting, missing) = self.session.twins();
        let (at, since) = opened.map_or((0, asked), |opened| (1, opened));
        if !self.patience[at].is_over(since.elapsed(), waiting, missing) {
            return;
        }
        for vm in self.session.wait_no_longer() {
            let guest = Some(self.vms[usize::from(vm)].guest.name.clone());
            let text = format!(
                "not ready {} s after it was asked for, when others have long been: it comes after them, and all of its memory by its \
                 own stream",
                since.elapsed().as_secs()
            );
            self.sink.emit(JobEvent::Warning { guest, text });
        }
    }

    /// Streams whose targets take too little make room for others.
    pub(super) fn check_paces(&mut self) {
        let now = self.time(Instant::now());
        for vm in 0..self.vms.len() as u16 {
            if self.session.stage(vm) != Some(VmStage::Streaming) {
                continue;
            }
            let state = &mut self.vms[usize::from(vm)];
            let Some(pace) = &mut state.pace else { continue };
            let (carried, waits) = state.stream.pace();
            self.session.slow(vm, pace.observe(now, carried, waits));
        }
    }

    /// Gives up what has outstayed its time. None of it waits for a monitor: sockets are closed.
    pub(super) fn check_deadlines(&mut self) {
        let now = Instant::now();
        for vm in 0..self.vms.len() as u16 {
            if let Some(reason) = self.outstayed(vm, now) {
                // Where a target is asked for its abort, it has as long to answer.
                self.vms[usize::from(vm)].times.stage.1 = now;
                self.session.outstayed(vm, reason);
            }
        }
    }

    /// Why a VM is to be given up by now, if it is.
    fn outstayed(&self, vm: u16, now: Instant) -> Option<String> {
        let state = &self.vms[usize::from(vm)];
        let stage = self.session.stage(vm)?;
        if let Some((limit, what)) = stage_limit(stage)
            && now.saturating_duration_since(state.times.stage.1) > limit
        {
            return Some(format!("{what} within {} s", limit.as_secs()));
        }
        if stage >= VmStage::Releasing {
            return None;
        }
        if let Some(stopped) = state.times.stopped {
            let limit = stopped_limit(self.policy.max_downtime);
            let over = now.saturating_duration_since(stopped) > limit;
            return over.then(|| format!("the target did not load within {} s of STOP", limit.as_secs()));
        }
        if stage != VmStage::Streaming {
            return None;
        }
        if self.policy.deadline.is_none()
            && let Some(crawls) = state.pace.as_ref().and_then(Pace::crawls)
        {
            return Some(crawls.to_string());
        }
        let records = records(&state.stream);
        let mut convergence = lock(state.convergence.as_ref()?);
        convergence.progress(self.time(now), records);
        convergence.given_up(self.time(now)).map(|why| why.to_string())
    }

    /// Bytes a second that the guest has dirtied while it streamed, and by how many percent it was throttled at most.
    pub(super) fn dirtied(&self, vm: u16) -> (Option<f64>, Option<u8>) {
        let Some(convergence) = &self.vms[usize::from(vm)].convergence else { return (None, None) };
        let convergence = lock(convergence);
        let rate = convergence.rate(self.time(Instant::now())).bytes_per_s();
        let throttled = convergence.throttled_percent();
        ((rate > 0.0).then_some(rate), (throttled > 0).then_some(throttled))
    }
}

/// Records that QEMU's stream has had so far.
fn records(stream: &Stream) -> u64 {
    let counts = stream.with(|stream| stream.counts());
    counts.withheld + counts.sent + counts.zero
}

/// Sets QEMU's switchover limits as its rounds go on, until RAM has ended or the stream is closed.
async fn follow(
    monitor: &Monitor,
    stream: &Stream,
    convergence: &Mutex<Convergence>,
    start: Instant,
) -> Result<(), String> {
    monitor.full_speed().await.map_err(|e| e.to_string())?;
    let mut last = None;
    loop {
        tokio::time::sleep(TUNE).await;
        if stream.is_closed() || stream.with(|stream| stream.final_digest().is_some()) {
            return Ok(());
        }
        let Ok(Ok(Some(view))) = tokio::time::timeout(MUTE, monitor.view()).await else { continue };
        let now = Time(start.elapsed().as_micros() as u64);
        let limits = lock(convergence).observe(now, view, records(stream));
        if last != Some(limits) {
            last = Some(limits);
            let _ = tokio::time::timeout(MUTE, monitor.limit_switchover(limits)).await;
        }
    }
}
