//! What a session says of its guests: phases, counters, and what has become of each.

use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::session::VmStage;

use super::actor::Actor;
use crate::agent::guest_file::format_uuid;
use crate::report::event::{JobEvent, Phase, Progress};
use crate::report::outcome::{GuestOutcome, GuestStatus, PageCounts};

impl Actor {
    /// Says where all counters stand.
    pub(super) fn tell_progress(&self) {
        let guests = (0..self.vms.len() as u16).filter_map(|vm| self.progress(vm));
        guests.for_each(|progress| self.sink.emit(JobEvent::Progress(progress)));
        self.sink.emit(JobEvent::Progress(self.total()));
    }

    /// What has become of a VM by now.
    pub(super) fn guest_outcome(&self, vm: u16) -> GuestOutcome {
        let state = &self.vms[usize::from(vm)];
        let link = &self.links[usize::from(state.target)];
        let stage = self.session.stage(vm);
        let moved = matches!(stage, Some(VmStage::Leaving | VmStage::Done));
        let (resumed_us, target_journal_us) = self.session.resumed(vm);
        let journal_ms = state.journal.as_secs_f64() * 1e3 + target_journal_us as f64 / 1e3;
        let status = match (moved, state.guest.paused) {
            (true, false) => GuestStatus::Running,
            (true, true) => GuestStatus::Paused,
            (false, _) if stage == Some(VmStage::InDoubt) => GuestStatus::InDoubt,
            (false, _) if self.cancelled => GuestStatus::Cancelled,
            (false, _) => GuestStatus::Failed,
        };
        let stopped_us = state.times.stopped_unix_us;
        let downtime = (moved && !state.guest.paused && stopped_us > 0 && resumed_us >= stopped_us)
            .then(|| (resumed_us - stopped_us) as f64 / 1e3);
        let counts = state.stream.with(|stream| stream.counts());
        let (dirty_bytes_per_s, throttled_percent) = self.dirtied(vm);
        GuestOutcome {
            name: state.guest.name.clone(),
            uuid: format_uuid(&state.guest.uuid),
            target: Some(link.name().to_owned()),
            status,
            verified: moved,
            downtime_ms: downtime,
            journal_ms: moved.then_some(journal_ms),
            reason: self.session.failure(vm).map(str::to_owned),
            pages: PageCounts {
                total: state.guest.bytes() / PAGE_SIZE as u64,
                withheld: counts.withheld,
                sent: counts.sent,
                zero: counts.zero,
            },
            unicast_bytes: link.vm_bytes(vm),
            dirty_bytes_per_s,
            throttled_percent,
            attempts: 1,
        }
    }

    fn progress(&self, vm: u16) -> Option<Progress> {
        let state = &self.vms[usize::from(vm)];
        state.times.streaming?;
        let counts = state.stream.with(|stream| stream.counts());
        let bytes = |pages: u64| pages * PAGE_SIZE as u64;
        Some(Progress {
            guest: Some(state.guest.name.clone()),
            total_bytes: state.guest.bytes(),
            done_bytes: bytes(counts.withheld + counts.sent + counts.zero).min(state.guest.bytes()),
            withheld_bytes: bytes(counts.withheld),
            unicast_bytes: self.links[usize::from(state.target)].vm_bytes(vm),
            multicast_bytes: 0,
        })
    }

    /// Counters of the whole job.
    fn total(&self) -> Progress {
        let scatter = self.scatter.counters();
        let mut total = Progress { multicast_bytes: scatter.multicast_bytes, ..Progress::default() };
        for vm in 0..self.vms.len() as u16 {
            total.total_bytes += self.vms[usize::from(vm)].guest.bytes();
            if let Some(progress) = self.progress(vm) {
                total.done_bytes += progress.done_bytes;
                total.withheld_bytes += progress.withheld_bytes;
            }
        }
        total.unicast_bytes = self.links.iter().map(|link| link.sent_bytes()).sum();
        total
    }

    pub(super) fn tell_phase(&self, vm: u16, phase: Phase) {
        self.sink.emit(JobEvent::Phase { guest: Some(self.vms[usize::from(vm)].guest.name.clone()), phase });
    }
}
