//! The thread that feeds and drains core's [`TargetSession`]: it waits, feeds, drains, and decides nothing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use vmscatter_core::journal::{Facts, Peer, Side, Step, TargetStep, VmKey};
use vmscatter_core::session::{SessionKeys, TargetAction, TargetSession};
use vmscatter_core::time::Time;
use vmscatter_core::transport;
use vmscatter_core::wire::control::{Contact, FEATURE_LINK_COUNTERS, Message, VmSpec};
use vmscatter_core::wire::piece::session_tag;

use super::data::{DataConnection, Registration};
use super::hops::Hops;
use super::incoming::{self, Incoming, Resumed};
use super::pipe::Pipe;
use crate::agent::AgentContext;
use crate::agent::control::{ControlSender, PeerInfo};
use crate::agent::holds::Moment;
use crate::agent::host::Interface;
use crate::agent::journal::Journal;
use crate::net::data::{DataSender, read_pieces};
use crate::net::udp::{GroupReceivers, PieceBatch};
use crate::recovery::Live;

/// Batches of pieces that wait for the session thread; beyond that sockets wait, and UDP loses.
const BATCHES_MAX: usize = 32;
/// The thread looks up at least this often.
const IDLE: Duration = Duration::from_millis(50);

/// What a session is about, as its source opened it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) keys: SessionKeys,
    /// Our number in the session.
    pub(super) target: u16,
    /// The set that is us alone.
    pub(super) own_set: u16,
    /// Where the source is found once the session is over.
    pub(super) contact: Contact,
    pub(super) peer: PeerInfo,
    pub(super) control: ControlSender,
}

/// What happens to a session.
#[derive(Debug)]
pub(super) enum Event {
    /// With its place in the queue, which is bounded.
    Control(Message, OwnedSemaphorePermit),
    ControlLost(String),
    Started {
        vm: u16,
        result: Result<(Incoming, UnixStream), String>,
    },
    Written {
        vm: u16,
        bytes: usize,
        frames: Vec<u64>,
        stream_next: u64,
    },
    ReturnPath {
        vm: u16,
        bytes: Vec<u8>,
    },
    ReturnPathEnded {
        vm: u16,
    },
    Broken {
        vm: u16,
        reason: String,
    },
    Resumed {
        vm: u16,
        incoming: Incoming,
        resumed: Resumed,
    },
    /// The connection to another target.
    Connected {
        target: u16,
        result: Result<DataSender, String>,
    },
    /// A VM that a test has held may go on.
    Held {
        vm: u16,
        then: Then,
    },
}

/// What follows where a test has held a VM.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// The step is put into the journal.
    Write(TargetStep),
    /// The session hears that it is there.
    Written(TargetStep),
    /// The session hears that the guest runs, since this many microseconds after the Unix epoch.
    Running(u64),
}

#[derive(Debug)]
struct Vm {
    spec: VmSpec,
    incoming: Option<Incoming>,
    pipe: Option<Pipe>,
    /// While it is in the journal, recovery leaves it alone.
    live: Option<Live>,
    /// Its QEMU is being started.
    starting: bool,
    /// To be closed in the journal once that is over.
    forget: bool,
}

/// A session's thread.
pub(super) struct Actor {
    ctx: Arc<AgentContext>,
    about: Session,
    runtime: Handle,
    start: Instant,
    session: TargetSession,
    vms: HashMap<u16, Vm>,
    events: Receiver<Event>,
    to_events: Sender<Event>,
    batches: Receiver<PieceBatch>,
    to_batches: Sender<PieceBatch>,
    data: Registration,
    groups: GroupReceivers,
    /// Where multicast arrives, if that can be told.
    link: Option<Interface>,
    hops: Hops,
    journal: Journal,
    finished: bool,
}

impl Actor {
    /// The thread's body, and where to tell it what happens.
    pub(super) fn new(ctx: Arc<AgentContext>, about: Session, runtime: Handle) -> (Actor, Sender<Event>) {
        let (to_events, events) = unbounded();
        let (to_batches, batches) = bounded(BATCHES_MAX);
        let tag = session_tag(&about.peer.session);
        let counts_link = about.peer.features & FEATURE_LINK_COUNTERS != 0;
        let config = transport::ReceiverConfig {
            session: tag,
            target: about.target,
            counts_link,
            ..Default::default()
        };
        let receiver = transport::Receiver::new(config, Time::ZERO);
        let actor = Actor {
            session: TargetSession::new(about.keys.clone(), ctx.memory.free_bytes(), receiver),
            start: Instant::now(),
            vms: HashMap::new(),
            events,
            to_events: to_events.clone(),
            batches,
            to_batches,
            data: ctx.data_router.register(tag),
            groups: GroupReceivers::new(),
            link: ctx.interface(about.peer.local_addr).ok(),
            hops: Hops::default(),
            journal: ctx.journal.clone(),
            finished: false,
            ctx,
            about,
            runtime,
        };
        (actor, to_events)
    }

    /// Runs until the session is over and nothing is left under way.
    pub(super) fn run(mut self) {
        while !(self.finished && self.session.is_settled()) {
            self.wait();
            let now = self.now();
            self.session.timeout(now);
            self.count_link(now);
            while let Some(action) = self.session.poll_action() {
                self.perform(action);
            }
            if self.ctx.shutdown.is_cancelled() && !self.finished {
                self.session.source_lost();
            }
        }
        self.leave();
    }

    /// Tells how much the link brings, from time to time.
    fn count_link(&mut self, now: Time) {
        let Some(link) = self.link.as_ref().filter(|_| self.session.is_link_due(now)) else { return };
        match link.received_bytes() {
            Some(bytes) => self.session.link_bytes(now, bytes),
            // It is not asked again in each turn.
            None => self.link = None,
        }
    }

    fn now(&self) -> Time {
        Time(self.start.elapsed().as_micros() as u64)
    }

    /// One event or batch, what is urgent first.
    fn wait(&mut self) {
        let idle = self.session.poll_timeout().map_or(IDLE, |at| at.since(self.now()).min(IDLE));
        if let Ok(event) = self.events.try_recv() {
            return self.handle(event);
        }
        crossbeam_channel::select! {
            recv(self.events) -> event => if let Ok(event) = event { self.handle(event) },
            recv(self.batches) -> batch => if let Ok(batch) = batch { self.pieces(batch) },
            recv(self.data.connections) -> connection => if let Ok(connection) = connection { self.connected(connection) },
            default(idle) => {}
        }
    }

    fn pieces(&mut self, mut batch: PieceBatch) {
        let now = self.now();
        for piece in batch.pieces_mut() {
            self.session.piece(now, piece);
        }
    }

    fn connected(&mut self, connection: DataConnection) {
        let DataConnection { socket, mut hello } = connection;
        if !self.session.receiver().is_hello(&mut hello, self.about.own_set) {
            tracing::warn!(source = self.about.peer.name, "a data connection with a false hello");
            return;
        }
        let (batches, source) = (self.to_batches.clone(), self.about.peer.name.clone());
        let read = move || {
            if let Err(error) = read_pieces(socket, &batches) {
                tracing::debug!(source, "data connection: {error}");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("data".into()).spawn(read) {
            tracing::error!("no thread for a data connection: {error}");
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Control(message, _room) => {
                if let Err(what) = self.session.message(now, message) {
                    tracing::warn!(source = self.about.peer.name, "the session ends: {what}");
                    self.about.control.abort();
                    self.session.source_lost();
                }
            }
            Event::ControlLost(reason) => {
                tracing::debug!(source = self.about.peer.name, "control connection: {reason}");
                self.session.source_lost();
            }
            Event::Started { vm, result } => self.started(vm, result),
            Event::Written { vm, bytes, frames, stream_next } => {
                self.session.written(now, vm, bytes, &frames, stream_next);
            }
            Event::ReturnPath { vm, bytes } => self.session.return_path(now, vm, &bytes),
            Event::ReturnPathEnded { vm } => self.return_path_ended(vm),
            Event::Connected { target, result } => {
                let error = self.hops.opened(target, result);
                self.session.hop_opened(target, error);
            }
            Event::Broken { vm, reason } => self.fail(vm, reason),
            Event::Held { vm, then: Then::Write(step) } => {
                // What had led to the step may not hold any more.
                if self.session.awaits(vm, step) {
                    self.write_journal(vm, step);
                }
            }
            Event::Held { vm, then: Then::Written(step) } => self.session.journaled(now, vm, step),
            Event::Held { vm, then: Then::Running(unix_us) } => self.session.running(vm, unix_us),
            Event::Resumed { vm, incoming, resumed } => {
                if let Some(state) = self.vms.get_mut(&vm) {
                    state.incoming = Some(incoming);
                }
                match resumed {
                    Resumed::At(unix_us) => {
                        if !self.is_held(vm, Moment::Before, Then::Running(unix_us)) {
                            self.session.running(vm, unix_us);
                        }
                    }
                    Resumed::Never(reason) | Resumed::Unknown(reason) => self.fail(vm, reason),
                }
            }
        }
    }

    /// QEMU closes its end when it has loaded everything, or when it dies.
    fn return_path_ended(&mut self, vm: u16) {
        if !self.session.is_loaded(vm) {
            self.fail(vm, "incoming QEMU closed its migration socket before it had loaded".to_owned());
        }
    }

    fn fail(&mut self, vm: u16, reason: String) {
        let said = self.vms.get(&vm).and_then(|state| state.incoming.as_ref()).map(Incoming::last_words);
        let reason = match said {
            Some(said) if !said.is_empty() => format!("{reason}: {said}"),
            _ => reason,
        };
        self.session.failed(vm, reason);
    }

    fn started(&mut self, vm: u16, result: Result<(Incoming, UnixStream), String>) {
        if let Some(state) = self.vms.get_mut(&vm) {
            state.starting = false;
        }
        match result {
            // It may have been given up while its QEMU started.
            Ok((incoming, _)) if !self.session.wants(vm) => self.runtime.block_on(incoming.kill()),
            Ok((incoming, socket)) => return self.open(vm, incoming, socket),
            Err(reason) => self.session.failed(vm, reason),
        }
        if self.vms.get(&vm).is_some_and(|state| state.forget) {
            self.forget(vm);
        }
    }

    fn open(&mut self, vm: u16, incoming: Incoming, socket: UnixStream) {
        let pipe = Pipe::start(vm, socket, &self.to_events);
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.incoming = Some(incoming);
        match pipe {
            Ok(pipe) => {
                state.pipe = Some(pipe);
                self.session.prepared(vm);
            }
            Err(error) => self.session.failed(vm, format!("no thread for the migration socket: {error}")),
        }
    }

    fn perform(&mut self, action: TargetAction) {
        match action {
            TargetAction::Send(message) => {
                // A connection that is lost is told of by its reader.
                let _ = self.about.control.blocking_send(message);
            }
            TargetAction::Join { set, group } => {
                let error = self.join(group).err();
                self.session.joined(set, error);
            }
            TargetAction::Leave { group } => self.leave_group(group),
            TargetAction::Connect { target, addr, hello } => {
                if let Err(error) = Hops::connect(target, addr, hello, self.to_events.clone()) {
                    self.session.hop_opened(target, Some(format!("no thread: {error}")));
                }
            }
            TargetAction::PassOn { target, bytes } => {
                if let Err(error) = self.hops.pass_on(target, bytes) {
                    self.session.hop_lost(target, error);
                }
            }
            TargetAction::Start(spec) => self.start(spec),
            TargetAction::Write { vm, output } => {
                if let Some(pipe) = self.vms.get(&vm).and_then(|state| state.pipe.as_ref()) {
                    pipe.write(output);
                }
            }
            TargetAction::Journal { vm, step } => {
                if !self.is_held(vm, Moment::Before, Then::Write(step)) {
                    self.write_journal(vm, step);
                }
            }
            TargetAction::Forget { vm } => self.forget(vm),
            TargetAction::Resume { vm, cont } => self.resume(vm, cont),
            TargetAction::Kill { vm } => self.kill(vm),
            TargetAction::Finished => self.finished = true,
        }
    }

    /// The one source whose datagrams are wanted, where groups are joined for one.
    fn group_source(&self) -> Option<IpAddr> {
        self.ctx.config.multicast.source_specific.then_some(self.about.peer.addr.ip())
    }

    fn join(&mut self, group: SocketAddr) -> Result<(), String> {
        let interface = self.ctx.interface(self.about.peer.local_addr).map_err(|e| e.to_string())?;
        let joined = self.groups.join(group, self.group_source(), &interface, &self.to_batches);
        joined.map_err(|e| e.to_string())
    }

    /// A group that can't be left brings what nobody here can open, until the session ends.
    fn leave_group(&mut self, group: SocketAddr) {
        let Ok(interface) = self.ctx.interface(self.about.peer.local_addr) else { return };
        if let Err(error) = self.groups.leave(group, self.group_source(), &interface) {
            tracing::debug!(%group, "can't be left: {error}");
        }
    }

    fn key(&self, spec: &VmSpec) -> VmKey {
        VmKey { session: self.about.peer.session, vm: spec.uuid }
    }

    fn start(&mut self, spec: VmSpec) {
        let (ctx, events) = (self.ctx.clone(), self.to_events.clone());
        let (vm, key) = (spec.vm, self.key(&spec));
        self.vms.insert(
            vm,
            Vm { spec: spec.clone(), incoming: None, pipe: None, live: None, starting: false, forget: false },
        );
        match self.begin(&spec) {
            Ok(live) => {
                if let Some(state) = self.vms.get_mut(&vm) {
                    (state.live, state.starting) = (Some(live), true);
                }
            }
            Err(reason) => return self.session.failed(vm, reason),
        }
        self.runtime.spawn(async move {
            let result = incoming::start(&ctx, key, &spec).await;
            if let Err(crossbeam_channel::SendError(Event::Started { result: Ok((incoming, _)), .. })) =
                events.send(Event::Started { vm, result })
            {
                incoming.kill().await;
            }
        });
    }

    /// Puts the VM into the journal before anything of it is here.
    fn begin(&self, spec: &VmSpec) -> Result<Live, String> {
        let unfinished = |step| matches!(step, Step::Target(step) if step <= TargetStep::Committed || step == TargetStep::Forced);
        let before = self.journal.vms().into_iter().find(|vm| vm.key.vm == spec.uuid && unfinished(vm.step));
        if let Some(before) = before {
            let name = before.facts.name;
            return Err(format!(
                "an earlier migration of '{name}' to this host is unfinished ('vmscatter recover' there)"
            ));
        }
        let mut addr = self.about.contact.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(self.about.peer.addr.ip());
        }
        let facts = Facts {
            name: spec.name.clone(),
            peer: Peer { name: self.about.peer.name.clone(), addr },
            monitor: incoming::monitor_path(&self.ctx, self.key(spec)),
            paused: spec.paused,
            side: Side::Target {
                program: incoming::program(&self.ctx, spec)?,
                memory_bytes: spec.memory_bytes(),
                source_journal: self.about.contact.journal,
            },
        };
        let live = self.ctx.recovery.hold(self.key(spec));
        let begun = self.journal.begin([(self.key(spec), facts)]);
        begun.map(|()| live).map_err(|e| format!("the target's journal can't be written: {e}"))
    }

    /// A vote or a commit that is not on disk must not be acted upon: the VM fails instead. An abort is true all the
    /// same once the QEMU has ended.
    fn write_journal(&mut self, vm: u16, step: TargetStep) {
        let Some(state) = self.vms.get(&vm).filter(|state| state.live.is_some()) else { return };
        match self.journal.step(self.key(&state.spec), Step::Target(step)) {
            Ok(_) => {
                if !self.is_held(vm, Moment::After, Then::Written(step)) {
                    self.session.journaled(self.now(), vm, step);
                }
            }
            Err(error) => {
                tracing::error!(vm = state.spec.name, "journal: {error}");
                if matches!(step, TargetStep::Voted | TargetStep::Committed) {
                    self.session.failed(vm, format!("the target's journal can't be written: {error}"));
                }
            }
        }
    }

    /// Whether a test holds the VM here; it goes on with [`Event::Held`].
    fn is_held(&self, vm: u16, moment: Moment, then: Then) -> bool {
        let step = match then {
            Then::Write(TargetStep::Running) => return false, // It is told of in the same breath: held before that.
            Then::Write(step) | Then::Written(step) => step,
            Then::Running(_) => TargetStep::Running,
        };
        let hold = self
            .vms
            .get(&vm)
            .and_then(|state| self.ctx.holds.find(&state.spec.name, moment, Step::Target(step)));
        let Some(hold) = hold else { return false };
        let events = self.to_events.clone();
        self.runtime.spawn(async move {
            hold.wait().await;
            let _ = events.send(Event::Held { vm, then });
        });
        true
    }

    fn forget(&mut self, vm: u16) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.forget = true;
        if state.live.is_some()
            && !state.starting
            && let Err(error) =
                self.journal.close(VmKey { session: self.about.peer.session, vm: state.spec.uuid })
        {
            tracing::error!(vm = state.spec.name, "journal: {error}");
        }
    }

    fn resume(&mut self, vm: u16, cont: bool) {
        let Some(mut incoming) = self.vms.get_mut(&vm).and_then(|state| state.incoming.take()) else {
            return self.session.failed(vm, "the incoming QEMU is gone".to_owned());
        };
        if !cont {
            if let Some(state) = self.vms.get_mut(&vm) {
                state.incoming = Some(incoming);
            }
            return self.session.running(vm, 0);
        }
        let events = self.to_events.clone();
        self.runtime.spawn(async move {
            let resumed = incoming.resume().await;
            let _ = events.send(Event::Resumed { vm, incoming, resumed });
        });
    }

    /// Returns when the QEMU is gone, so that an abort in the journal is true.
    fn kill(&mut self, vm: u16) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.pipe = None;
        if let Some(incoming) = state.incoming.take() {
            self.runtime.block_on(incoming.kill());
        }
    }

    /// Of what came that nobody but an intruder, or a broken network, sends.
    fn tell_of_strangers(&mut self) {
        let counters = self.session.receiver().counters();
        if counters.forged > 0 {
            tracing::warn!(
                source = self.about.peer.name,
                forged = counters.forged,
                replayed = counters.replayed,
                "pieces that were not the source's, or came again, were dropped"
            );
        }
    }

    /// What runs here is left to run. What was voted for and not decided stays paused, and is recovery's.
    fn leave(mut self) {
        self.tell_of_strangers();
        let in_doubt: Vec<u16> = self.session.in_doubt().map(|spec| spec.vm).collect();
        let counted = self.ctx.config.memory.capacity_bytes.is_some();
        let _runtime = self.runtime.enter();
        for (vm, state) in self.vms.drain() {
            let in_doubt = in_doubt.contains(&vm);
            if in_doubt {
                tracing::warn!(
                    vm = state.spec.name,
                    source = self.about.peer.name,
                    "in doubt: paused here until its source decides"
                );
            }
            if let Some(incoming) = state.incoming {
                incoming.release(counted, !state.forget);
            }
            drop(state.live);
        }
    }
}
