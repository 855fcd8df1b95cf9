//! The session's loop at the source: it feeds core's [`SourceSession`] and does what that wants.
//!
//! Nothing here waits for QMP: what a monitor is asked runs in a task of its own, since a monitor may hang while
//! its guest is stopped. Deadlines act by closing sockets.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use vmscatter_core::journal::{SourceStep, Step, VmKey};
use vmscatter_core::session::convergence::{Convergence, ConvergencePolicy};
use vmscatter_core::session::deadlines::Patience;
use vmscatter_core::session::pace::Pace;
use vmscatter_core::session::{SourceAction, SourceSession, VmStage};
use vmscatter_core::wire::control::{Message, Uuid};

use super::guest::SourceGuest;
use super::link::TargetLink;
use super::milestones::Milestones;
use super::scatter::ScatterThread;
use super::stream::{Stream, StreamEvent};
use crate::agent::cancel::CancelToken;
use crate::agent::holds::{Holds, Moment};
use crate::agent::input::one_line;
use crate::agent::jobs::EventSink;
use crate::agent::journal::Journal;
use crate::qemu::qmp::QmpEvent;
use crate::recovery::Live;
use crate::report::event::{JobEvent, Phase};

/// How often progress is told, and deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);

/// What happens to a session.
#[derive(Debug)]
pub(super) enum Event {
    /// With its place in the target's queue, which is bounded.
    Target(u16, Message, OwnedSemaphorePermit),
    TargetLost(u16, String),
    Qmp(u16, QmpEvent),
    Scattered,
    Settled(u16),
    /// Multicast does not reach this target, for the reason that it has given.
    Unreached(u16, Option<String>),
    Task(u16, TaskEnd),
}

/// How a task about a guest's monitor ended.
#[derive(Debug)]
pub(super) enum TaskEnd {
    Failed(String),
    /// A step at which the guest was held may go on.
    Released(Moment, SourceStep),
    /// The guest stays, and all is put back.
    Stayed,
    /// It was to be let run again, and was not.
    NotResumed(String),
    /// QEMU was told to quit; whether it is gone.
    Quitted(bool),
    /// The QEMU has ended by itself.
    Gone,
}

/// A VM as the loop sees it.
pub(super) struct Vm {
    pub(super) guest: SourceGuest,
    pub(super) stream: Arc<Stream>,
    pub(super) target: u16,
    pub(super) times: Times,
    /// Whether its rounds get anywhere, once its stream flows.
    pub(super) convergence: Option<Arc<Mutex<Convergence>>>,
    /// Whether its target takes what it has; from then on, too.
    pub(super) pace: Option<Pace>,
    /// The scatter has settled what it holds.
    settled: bool,
    /// Its turn came before that.
    pub(super) stream_due: bool,
    socket_open: bool,
    /// The end that has been told of it.
    told: Option<VmStage>,
    /// While the session lives, recovery leaves the guest alone.
    live: Option<Live>,
    /// The end that the session has found for it is not quite carried out.
    unsettled: bool,
    /// Time that the journal took of the blackout.
    pub(super) journal: Duration,
}

/// When what happened to a VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// STOP, in microseconds since the Unix epoch.
    pub(super) stopped_unix_us: u64,
    /// QEMU has stopped the guest for its last pages.
    pub(super) stopped: Option<Instant>,
    /// QEMU was told to migrate: from then on it logs what the guest writes.
    pub(super) opened: Option<Instant>,
    pub(super) streaming: Option<Instant>,
    /// The stage that it is in, and since when.
    pub(super) stage: (VmStage, Instant),
}

impl Times {
    fn new() -> Times {
        Times {
            stopped_unix_us: 0,
            stopped: None,
            opened: None,
            streaming: None,
            stage: (VmStage::Waiting, Instant::now()),
        }
    }
}

impl Vm {
    pub(super) fn new(guest: SourceGuest, stream: Arc<Stream>, target: u16, live: Live) -> Vm {
        Vm {
            guest,
            stream,
            target,
            times: Times::new(),
            convergence: None,
            pace: None,
            settled: false,
            stream_due: false,
            socket_open: false,
            told: None,
            live: Some(live),
            unsettled: false,
            journal: Duration::ZERO,
        }
    }
}

/// A session under way.
pub(super) struct Actor {
    pub(super) session: SourceSession,
    pub(super) session_id: Uuid,
    pub(super) vms: Vec<Vm>,
    pub(super) links: Vec<Arc<TargetLink>>,
    pub(super) scatter: ScatterThread,
    pub(super) journal: Journal,
    pub(super) events: UnboundedReceiver<Event>,
    pub(super) to_events: UnboundedSender<Event>,
    pub(super) stream_events: UnboundedReceiver<(u16, StreamEvent)>,
    pub(super) sink: EventSink,
    pub(super) holds: Holds,
    pub(super) streams_max: usize,
    /// What is allowed to guests that dirty faster than their streams carry.
    pub(super) policy: ConvergencePolicy,
    /// They are throttled.
    pub(super) auto_converge: bool,
    /// Since when incoming QEMUs are waited for, and since when streams to begin.
    pub(super) twins_since: (Instant, Option<Instant>),
    /// How long they are.
    pub(super) patience: [Patience; 2],
    /// From which times are counted.
    pub(super) start: Instant,
    pub(super) milestones: Milestones,
    pub(super) tasks: JoinSet<()>,
    pub(super) finished: bool,
    pub(super) cancelled: bool,
}

impl Actor {
    /// Runs until every VM has found its end.
    pub(super) async fn run(&mut self, cancel: &CancelToken) {
        let mut tick = tokio::time::interval(TICK);
        self.perform_all();
        while !self.finished {
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                Some((vm, event)) = self.stream_events.recv() => self.stream_event(vm, event),
                () = cancel.cancelled(), if !self.cancelled => {
                    self.cancelled = true;
                    self.session.cancel();
                }
                _ = tick.tick() => self.tick(),
            }
            self.perform_all();
        }
        self.scatter.stop();
        // Monitors are put back: a few seconds at most, since each task has a deadline.
        while self.tasks.join_next().await.is_some() {}
        while let Ok(event) = self.events.try_recv() {
            if let Event::Task(vm, end) = event {
                self.task_ended(vm, end);
            }
        }
        self.part();
    }

    /// Closes what has found its end, and then takes leave of the targets: from then on they need not remember. The rest
    /// is recovery's.
    fn part(&mut self) {
        let mut unsettled = HashSet::new();
        for vm in 0..self.vms.len() as u16 {
            let stage = self.session.stage(vm);
            let over = match stage {
                Some(VmStage::Done) => !self.vms[usize::from(vm)].unsettled,
                Some(VmStage::Failed) => self.has_stayed(vm) && !self.session.may_be_voted(vm),
                _ => false,
            };
            let closed = over && self.journal.close(self.key(vm)).is_ok();
            if !closed {
                unsettled.insert(self.vms[usize::from(vm)].target);
            }
        }
        for (number, link) in (0..).zip(&self.links) {
            match unsettled.contains(&number) {
                false => link.send(Message::Close),
                true => link.hang_up(),
            }
        }
        self.vms.iter_mut().for_each(|state| state.live = None);
    }

    /// Of a guest that was to stay: whether it does, and the journal says so. One whose QEMU is gone has not: recovery
    /// finds out whether the target has it.
    fn has_stayed(&mut self, vm: u16) -> bool {
        let state = &self.vms[usize::from(vm)];
        if state.unsettled || (state.guest.monitor.is_closed() && self.session.may_be_voted(vm)) {
            return false;
        }
        let (key, step) = (self.key(vm), Step::Source(SourceStep::Aborted));
        let written = self.journal.get(&key).is_none_or(|record| record.step == step);
        written || self.journal.step(key, step).is_ok()
    }

    fn key(&self, vm: u16) -> VmKey {
        VmKey { session: self.session_id, vm: self.vms[usize::from(vm)].guest.uuid }
    }

    fn perform_all(&mut self) {
        while let Some(action) = self.session.poll_action() {
            self.perform(action);
        }
        for vm in 0..self.vms.len() as u16 {
            use VmStage::{Done, Failed, InDoubt, Leaving};
            let Some(stage) = self.session.stage(vm) else { continue };
            let times = &mut self.vms[usize::from(vm)].times;
            if times.stage.0 != stage {
                times.stage = (stage, Instant::now());
            }
            let end = match stage {
                Leaving | Done => Done,
                Failed | InDoubt => stage,
                _ => continue,
            };
            // One that was in doubt may find its end after all.
            if self.vms[usize::from(vm)].told.replace(end) != Some(end) {
                self.milestones.running();
                self.sink.emit(JobEvent::Guest(self.guest_outcome(vm)));
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Target(target, Message::Report(report), room) => self.scatter.report(target, report, room),
            Event::Target(target, Message::LinkCounters(counters), room) => {
                self.scatter.link_counters(target, counters, room);
            }
            Event::Target(target, message, _room) => self.target_message(target, message),
            Event::TargetLost(target, reason) => self.target_lost(target, &reason),
            Event::Qmp(vm, event) => self.qmp_event(vm, &event),
            Event::Scattered => self.session.scattered(),
            Event::Settled(vm) => {
                let state = &mut self.vms[usize::from(vm)];
                state.settled = true;
                if state.stream_due {
                    self.start_stream(vm);
                }
            }
            Event::Unreached(target, reason) => {
                let name = self.links[usize::from(target)].name();
                let reason = reason.map_or_else(String::new, |reason| format!(" ({})", one_line(&reason)));
                let text = format!(
                    "multicast does not reach {name}{reason}: it is sent what others get by multicast over TCP"
                );
                self.sink.emit(JobEvent::Warning { guest: None, text });
            }
            Event::Task(vm, end) => self.task_ended(vm, end),
        }
    }

    fn task_ended(&mut self, vm: u16, end: TaskEnd) {
        match end {
            TaskEnd::Failed(reason) => self.session.failed(vm, reason),
            // What had led to the step may not hold any more.
            TaskEnd::Released(Moment::Before, step) if self.session.awaits(vm, step) => {
                self.write_journal(vm, step);
            }
            TaskEnd::Released(Moment::Before, _) => {}
            TaskEnd::Released(Moment::After, step) => self.session.journaled(vm, step),
            TaskEnd::Stayed => drop(self.has_stayed(vm)),
            TaskEnd::NotResumed(reason) => {
                let state = &mut self.vms[usize::from(vm)];
                tracing::error!(vm = state.guest.name, "can't be resumed at the source: {reason}");
                state.unsettled = true;
            }
            TaskEnd::Quitted(gone) => {
                if !gone {
                    let state = &mut self.vms[usize::from(vm)];
                    tracing::error!(
                        vm = state.guest.name,
                        "runs at its target, but its QEMU here does not end"
                    );
                    state.unsettled = true;
                }
                self.session.quitted(vm, gone);
            }
            TaskEnd::Gone => self.session.source_gone(vm),
        }
    }

    fn target_lost(&mut self, target: u16, reason: &str) {
        let link = &self.links[usize::from(target)];
        let reason = link.fault().unwrap_or_else(|| reason.to_owned());
        link.close();
        self.scatter.remove_target(target);
        // The control connection's own words begin with the peer.
        let reason = match reason.starts_with(link.name()) {
            true => reason,
            false => format!("{}: {reason}", link.name()),
        };
        self.session.target_lost(target, &reason);
    }

    fn target_message(&mut self, target: u16, message: Message) {
        let known = |vm: u16| self.vms.get(usize::from(vm)).filter(|state| state.target == target);
        match message {
            Message::Written { vm, next } => {
                let result = known(vm).map(|state| state.stream.with(|stream| stream.written(next)));
                match result {
                    Some(Ok(())) => self.head_written(vm),
                    Some(Err(error)) => self.end_target(target, &error.to_string()),
                    None => self.end_target(target, "it speaks of a VM that is not its own"),
                }
            }
            Message::ReturnPath { vm, bytes } => {
                let told = known(vm).map_or(Ok(()), |state| state.stream.answered(&bytes));
                if let Err(error) = told {
                    self.end_target(target, &error.to_string());
                }
            }
            Message::Joined { set, error } => self.scatter.joined(target, set, error),
            Message::Heard { set } => self.scatter.heard(target, set),
            Message::TrainCounted { set, datagrams } => self.scatter.counted(target, set, datagrams),
            Message::Hopped { target: to, error } => self.scatter.hopped(target, to, error),
            Message::Ping(number) => self.links[usize::from(target)].send(Message::Pong(number)),
            Message::Granted => self.links[usize::from(target)].granted(),
            Message::Pong(_) => {}
            message => {
                if let Err(what) = self.session.message(target, message) {
                    self.end_target(target, what);
                }
            }
        }
    }

    /// A target that says what no honest one says leaves the session.
    fn end_target(&mut self, target: u16, what: &str) {
        tracing::warn!(target = self.links[usize::from(target)].name(), "its session ends: {what}");
        self.target_lost(target, what);
    }

    fn head_written(&mut self, vm: u16) {
        let state = &self.vms[usize::from(vm)];
        if state.stream.with(|stream| stream.is_held() && stream.head_written()) {
            self.session.held(vm);
        }
    }

    fn stream_event(&mut self, vm: u16, event: StreamEvent) {
        match event {
            StreamEvent::Held => self.head_written(vm),
            StreamEvent::RamEnded(digest) => {
                self.milestones.ram_ended();
                // Of a guest that was paused before, QEMU says no STOP.
                self.vms[usize::from(vm)].times.stopped.get_or_insert_with(Instant::now);
                self.session.ram_ended(vm, digest);
            }
            StreamEvent::Failed(reason) => {
                self.session.failed(vm, reason);
            }
        }
    }

    fn tick(&mut self) {
        self.check_twins();
        self.check_paces();
        self.check_deadlines();
        self.tell_progress();
    }

    fn perform(&mut self, action: SourceAction) {
        match action {
            SourceAction::Send { target, message } => self.links[usize::from(target)].send(message),
            SourceAction::Migrate { vm } => self.migrate(vm),
            SourceAction::LeaveScatter { vm } => self.scatter.remove_vm(vm),
            SourceAction::Scatter => {
                self.milestones.scattering();
                self.sink.emit(JobEvent::Phase { guest: None, phase: Phase::Scatter });
                self.scatter.start();
            }
            SourceAction::Settle { vm } => {
                let state = &self.vms[usize::from(vm)];
                self.scatter.settle(vm, state.target, state.stream.clone());
            }
            SourceAction::Stream { vm } => {
                let state = &mut self.vms[usize::from(vm)];
                state.stream_due = true;
                if state.settled {
                    self.start_stream(vm);
                }
            }
            SourceAction::Journal { vm, step } => {
                if !self.is_held(vm, Moment::Before, step) {
                    self.write_journal(vm, step);
                }
            }
            SourceAction::ReleaseShut { vm } => {
                self.vms[usize::from(vm)].stream.return_path(&vmscatter_core::qemu_stream::SHUT_OK);
            }
            SourceAction::CloseSocket { vm } => self.close_socket(vm),
            SourceAction::ResumeSource { vm } => {
                let monitor = self.vms[usize::from(vm)].guest.monitor.clone();
                if !self.vms[usize::from(vm)].guest.paused {
                    self.task(vm, async move {
                        let end = monitor.cont().await.err();
                        Some(end.map_or(TaskEnd::Stayed, |error| TaskEnd::NotResumed(error.to_string())))
                    });
                }
            }
            SourceAction::Quit { vm } => {
                let guest = &self.vms[usize::from(vm)].guest;
                let (monitor, process) = (guest.monitor.clone(), guest.process);
                self.task(vm, async move { Some(TaskEnd::Quitted(monitor.quit(process).await)) });
            }
            SourceAction::Finished => self.finished = true,
        }
    }

    /// Runs something about a guest's monitor beside the loop.
    pub(super) fn task(&mut self, vm: u16, work: impl Future<Output = Option<TaskEnd>> + Send + 'static) {
        let events = self.to_events.clone();
        self.tasks.spawn(async move {
            if let Some(end) = work.await {
                let _ = events.send(Event::Task(vm, end));
            }
        });
    }

    fn migrate(&mut self, vm: u16) {
        self.milestones.opening();
        self.twins_since.1.get_or_insert_with(Instant::now);
        self.tell_phase(vm, Phase::Open);
        let state = &mut self.vms[usize::from(vm)];
        let started = state.guest.listen().and_then(|listener| state.stream.start(listener));
        if let Err(error) = started {
            return self.session.failed(vm, format!("{}: {error}", state.guest.socket.display()));
        }
        state.socket_open = true;
        state.times.opened = Some(Instant::now());
        let (monitor, socket) = (state.guest.monitor.clone(), state.guest.socket.clone());
        let auto_converge = self.auto_converge;
        self.task(vm, async move {
            let told = monitor.migrate(&socket, auto_converge).await;
            told.err().map(|error| TaskEnd::Failed(error.to_string()))
        });
    }

    fn close_socket(&mut self, vm: u16) {
        let state = &mut self.vms[usize::from(vm)];
        state.stream.close();
        self.scatter.remove_vm(vm);
        let _ = std::fs::remove_file(&state.guest.socket);
        if std::mem::take(&mut state.socket_open) {
            let monitor = state.guest.monitor.clone();
            // After the release it is `cont` that ends it.
            let step = self.journal.get(&self.key(vm)).map(|record| record.step);
            let stays = matches!(step, Some(Step::Source(step)) if step < SourceStep::Released);
            self.task(vm, async move {
                monitor.restore().await;
                stays.then_some(TaskEnd::Stayed)
            });
        }
    }

    /// Whether a test holds the guest at this step; it goes on with [`TaskEnd::Released`].
    fn is_held(&mut self, vm: u16, moment: Moment, step: SourceStep) -> bool {
        let name = &self.vms[usize::from(vm)].guest.name;
        let Some(hold) = self.holds.find(name, moment, Step::Source(step)) else { return false };
        self.task(vm, async move {
            hold.wait().await;
            Some(TaskEnd::Released(moment, step))
        });
        true
    }

    fn write_journal(&mut self, vm: u16, step: SourceStep) {
        match self.journal.step(self.key(vm), Step::Source(step)) {
            Ok(time) => {
                if matches!(step, SourceStep::Released | SourceStep::Committed) {
                    self.vms[usize::from(vm)].journal += time;
                }
                if !self.is_held(vm, Moment::After, step) {
                    self.session.journaled(vm, step);
                }
            }
            Err(error) => {
                let state = &mut self.vms[usize::from(vm)];
                tracing::error!(vm = state.guest.name, "journal: {error}");
                state.unsettled |= step == SourceStep::Done;
                self.session.not_journaled(vm, step, &error.to_string());
            }
        }
    }
}
