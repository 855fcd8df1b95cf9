//! One source, several targets, their QEMUs, and a network that loses, delays, duplicates, reorders and kills.
//!
//! The state machines are the real ones; only clocks, disks, sockets and QEMU are models. Everything follows from
//! the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use vmscatter_core::journal::{SourceStep, TargetStep};
use vmscatter_core::page::{DigestKey, MacKey};
use vmscatter_core::session::{Output, SessionKeys, SourceSession, TargetAction, TargetSession, VmStage};
use vmscatter_core::time::Time;
use vmscatter_core::wire::control::Message;
use vmscatter_core::wire::piece::PieceHeader;
use vmscatter_core::wire::seal::Channel;

use super::plan::Plan;
use super::qemu::{Migration, TargetQemu};
use super::rng::Rng;
use super::source::Source;

/// Longest that a session may take, in the world's time.
const END_MAX: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(1);
/// What a target's link brings in a microsecond, of this session and others.
const LINK_BYTES: u64 = 250;

/// What happens at a moment.
pub enum Event {
    Tick,
    ControlToTarget(u16, Message),
    ControlToSource(u16, Message),
    Piece(u16, Vec<u8>),
    QemuWrites(u16, u16, Output),
    TargetJournal(u16, u16, TargetStep),
    SourceJournal(u16, SourceStep),
    Started(u16, u16),
    Joined(u16, u16, SocketAddr),
    Resumed(u16, u16, u64),
    ShutArrives(u16),
    CompletedSeen(u16),
    Kill(u16),
    LossNoticed(u16),
    Cancel,
    IncomingDies(u16, u16),
    FallsBehind(u16),
    FallsSilent(u16),
    HopBreaks((u16, u16), bool),
    HopOpened(u16, u16, Vec<u8>),
    HopLost(u16, u16),
    WaitNoLonger,
}

struct Scheduled {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (Reverse(self.at), Reverse(self.order)).cmp(&(Reverse(other.at), Reverse(other.order)))
    }
}

/// The network and the clock.
pub struct Net {
    pub now: Time,
    pub rng: Rng,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    /// Per ordered connection, the latest arrival: TCP does not reorder.
    latest: HashMap<(u8, u16, u16), Time>,
    loss_per_mille: u64,
    delay_us_max: u64,
    dead: Vec<bool>,
    /// Who has joined each multicast group; a deaf target gets nothing all the same, and a refusing one can't.
    joined: HashMap<SocketAddr, HashSet<u16>>,
    deaf: HashSet<u16>,
    /// One in ten datagrams gets to this one.
    policed: Option<u16>,
    hopless: Option<u16>,
    /// Hops that swallow what they get, and whether the target before them notices.
    broken: HashMap<(u16, u16), bool>,
    refusing: Option<u16>,
    /// What is multicast to this target, which is going to fall behind, waits so much longer on its way.
    queued: Option<(u16, Duration)>,
    /// An incoming QEMU that takes so much longer to start.
    pub slow_twin: Option<(u16, Duration)>,
    /// Joins and leaves, of all targets.
    pub changes: u64,
    /// Datagrams that left the source, by set.
    /// Bytes that targets have passed on to each other, that the source has given to TCP, and that it has multicast.
    passed_on: u64,
    source_tcp: u64,
    multicast_bytes: u64,
    pub datagrams_sent: u64,
    pub datagrams_lost: u64,
}

impl Net {
    pub fn after(&mut self, span: Duration, event: Event) {
        self.order += 1;
        self.queue.push(Scheduled { at: self.now + span, order: self.order, event });
    }

    pub fn delay(&mut self) -> Duration {
        Duration::from_micros(50 + self.rng.below(self.delay_us_max))
    }

    /// Over a connection that keeps order: `kind` and the two ends name it.
    fn ordered(&mut self, connection: (u8, u16, u16), event: Event) {
        let arrival = self.now + self.delay();
        let latest = self.latest.entry(connection).or_default();
        *latest = arrival.max(*latest);
        let span = latest.since(self.now);
        self.after(span, event);
    }

    pub fn control_to_target(&mut self, target: u16, message: Message) {
        self.ordered((0, target, 0), Event::ControlToTarget(target, message));
    }

    pub fn control_to_source(&mut self, target: u16, message: Message) {
        self.ordered((1, target, 0), Event::ControlToSource(target, message));
    }

    pub fn tcp(&mut self, target: u16, piece: Vec<u8>) {
        self.source_tcp += piece.len() as u64;
        self.ordered((2, target, 0), Event::Piece(target, piece));
    }

    /// What one target passes on to another.
    pub fn pass_on(&mut self, from: u16, to: u16, bytes: Vec<u8>) {
        self.passed_on += bytes.len() as u64;
        match self.broken.get(&(from, to)) {
            None => self.ordered((3, from, to), Event::Piece(to, bytes)),
            Some(true) => self.after(Duration::ZERO, Event::HopLost(from, to)),
            Some(false) => {}
        }
    }

    fn join(&mut self, target: u16, group: SocketAddr) -> Result<(), String> {
        if self.refusing == Some(target) {
            return Err("no such device".to_owned());
        }
        self.changes += 1;
        assert!(self.joined.entry(group).or_default().insert(target), "{target} joins {group} twice");
        Ok(())
    }

    pub fn leave(&mut self, target: u16, group: SocketAddr) {
        self.changes += 1;
        let was = self.joined.get_mut(&group).is_some_and(|group| group.remove(&target));
        // One that leaves as soon as it was told to join may not have joined yet.
        self.changes -= u64::from(!was);
    }

    /// Nothing is multicast to a group before those for whom it is have joined, or after one of them has left: `waiting`
    /// are the targets that have not acknowledged a set that the group serves.
    pub fn assert_joined(&self, group: SocketAddr, waiting: u128) {
        for target in (0..self.dead.len() as u16).filter(|target| waiting & (1 << target) != 0) {
            let dead = self.dead[usize::from(target)];
            assert!(dead || self.joined[&group].contains(&target), "{target} is not in {group}");
        }
    }

    /// A datagram to each host in a group; each loses it, gets it twice or late on its own.
    pub fn multicast(&mut self, group: SocketAddr, piece: &[u8]) {
        let is_data = PieceHeader::decode(piece).is_ok_and(|header| header.channel == Channel::MULTICAST);
        self.datagrams_sent += u64::from(is_data);
        self.multicast_bytes += piece.len() as u64;
        let mut members: Vec<u16> = self.joined.get(&group).into_iter().flatten().copied().collect();
        members.sort_unstable();
        for member in &members {
            if self.deaf.contains(member) || (self.policed == Some(*member) && !self.rng.one_in(10)) {
                continue;
            }
            if self.rng.below(1000) < self.loss_per_mille {
                self.datagrams_lost += 1;
                continue;
            }
            let queued = self.queued.filter(|(target, _)| is_data && target == member);
            let queued = queued.map_or(Duration::ZERO, |(_, span)| span);
            let copies = if self.rng.one_in(50) { 2 } else { 1 };
            for _ in 0..copies {
                let late = if self.rng.one_in(60) { 1 + self.rng.below(80) as u32 } else { 1 };
                let span = self.delay() * late + queued;
                let mut piece = piece.to_vec();
                if self.rng.one_in(500) {
                    let at = self.rng.below(piece.len() as u64) as usize;
                    piece[at] ^= 1 << self.rng.below(8);
                }
                self.after(span, Event::Piece(*member, piece));
            }
        }
    }
}

/// A target host: its session, its QEMUs, and what is on its disk.
struct Target {
    session: TargetSession,
    qemus: BTreeMap<u16, TargetQemu>,
    /// The incoming QEMU's writer is busy until then.
    busy: HashMap<u16, Time>,
    votes: Vec<u16>,
}

/// What came of a run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub moved: u32,
    pub stayed: u32,
    pub in_doubt: u32,
    /// VMs that were late for the scatter.
    pub late: u32,
    /// When the first VM and when the last VM ran at its target.
    pub first_us: u64,
    pub last_us: u64,
    /// Records of the VMs whose targets do not fall behind.
    pub withheld: u64,
    pub sent: u64,
    /// Bytes that targets have passed on to each other, that the source has given to TCP, and that it has multicast.
    pub passed_on: u64,
    pub source_tcp: u64,
    pub multicast_bytes: u64,
    /// Multicast datagrams that left the source.
    pub datagrams: u64,
    /// Joins and leaves of targets, and how many were planned.
    pub changes: u64,
    pub planned_changes: u64,
}

pub struct World {
    net: Net,
    plan: Plan,
    source: Source,
    targets: Vec<Target>,
    finished: bool,
    /// Multicast datagrams that arrived at each target.
    pieces_at: Vec<u64>,
    /// VMs whose targets know what QEMU said at the source.
    digests: HashSet<u16>,
    /// VMs that were late for the scatter.
    tally_late: u32,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        Self::with_plan(plan, rng)
    }

    pub fn with_plan(plan: Plan, mut rng: Rng) -> Self {
        let keys =
            SessionKeys { mac: MacKey::new(&[rng.below(256) as u8; 16]), digest: DigestKey::new(&[7; 16]) };
        let source = Source::new(&plan, &keys, &mut rng);
        let target = |number: u16| Target {
            session: TargetSession::new(keys.clone(), u64::MAX, source.receiver_for(number)),
            qemus: BTreeMap::new(),
            busy: HashMap::new(),
            votes: Vec::new(),
        };
        let targets = (0..plan.targets).map(target).collect();
        let net = Net {
            now: Time::ZERO,
            rng,
            queue: BinaryHeap::new(),
            order: 0,
            latest: HashMap::new(),
            loss_per_mille: plan.loss_per_mille,
            delay_us_max: plan.delay_us_max,
            dead: vec![false; usize::from(plan.targets)],
            joined: HashMap::new(),
            deaf: plan.deaf.into_iter().collect(),
            policed: plan.policed,
            hopless: plan.hopless,
            broken: HashMap::new(),
            refusing: plan.refusing,
            queued: plan.falls_behind.map(|(_, target)| (target, plan.queue)),
            slow_twin: plan.slow_twin,
            changes: 0,
            passed_on: 0,
            source_tcp: 0,
            multicast_bytes: 0,
            datagrams_sent: 0,
            datagrams_lost: 0,
        };
        let pieces_at = vec![0; usize::from(plan.targets)];
        World {
            net,
            plan,
            source,
            targets,
            finished: false,
            pieces_at,
            digests: HashSet::new(),
            tally_late: 0,
        }
    }

    /// Runs until the session ends, and checks what must hold; panics with what does not.
    pub fn run(self) -> Tally {
        self.run_to_end().0
    }

    /// The same, and the network's counts besides.
    pub fn run_to_end(mut self) -> (Tally, Vec<u64>) {
        self.net.after(TICK, Event::Tick);
        for (at, event) in self.plan.faults() {
            self.net.after(at, event);
        }
        self.source.prepare(&mut self.net);
        while let Some(Scheduled { at, event, .. }) = self.net.queue.pop() {
            self.net.now = at;
            assert!(at.since(Time::ZERO) < END_MAX, "the session does not end: {}", self.source.describe());
            self.handle(event);
            self.finished |= self.source.step(&mut self.net);
            self.check_nobody_runs_twice();
            if self.finished && self.settled() {
                break;
            }
        }
        assert!(
            self.finished,
            "nothing is left to happen, but the session has not ended: {}",
            self.source.describe()
        );
        let pieces_at = std::mem::take(&mut self.pieces_at);
        (self.check_end(), pieces_at)
    }

    /// What the targets still have to do after the source's session has ended: nothing that concerns a guest.
    fn settled(&self) -> bool {
        !self.net.queue.iter().any(|scheduled| !matches!(scheduled.event, Event::Tick))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick => {
                let (net, source) = (&mut self.net, &mut self.source);
                source.tick(net);
                for target in 0..self.plan.targets {
                    self.target_event(target, |session, now| {
                        session.timeout(now);
                        if session.is_link_due(now) {
                            session.link_bytes(now, now.0 * LINK_BYTES);
                        }
                    });
                }
                if !self.finished {
                    self.net.after(TICK, Event::Tick);
                }
            }
            Event::ControlToSource(target, message) => {
                if !self.net.dead[usize::from(target)] {
                    self.source.control(&mut self.net, target, message);
                }
            }
            Event::ControlToTarget(target, message) => {
                if let Message::Digest { vm, .. } = &message {
                    self.digests.insert(*vm);
                }
                self.target_event(target, |session, now| {
                    session.message(now, message).expect("an honest source")
                });
            }
            Event::Piece(target, mut piece) => {
                let piece_kind = PieceHeader::decode(&piece).map(|header| header.channel);
                self.pieces_at[usize::from(target)] += u64::from(piece_kind == Ok(Channel::MULTICAST));
                self.target_event(target, |session, now| session.piece(now, &mut piece));
            }
            Event::Resumed(target, vm, at) => self.target_event(target, |session, _| session.running(vm, at)),
            Event::Started(target, vm) => self.target_event(target, |session, _| session.prepared(vm)),
            Event::Joined(target, set, group) => {
                if !self.net.dead[usize::from(target)] {
                    let error = self.net.join(target, group).err();
                    self.target_event(target, |session, _| session.joined(set, error));
                }
            }
            Event::QemuWrites(target, vm, output) => self.qemu_writes(target, vm, output),
            Event::TargetJournal(target, vm, entry) => {
                if !self.net.dead[usize::from(target)] && entry == TargetStep::Voted {
                    self.targets[usize::from(target)].votes.push(vm);
                }
                self.target_event(target, |session, now| session.journaled(now, vm, entry));
            }
            Event::SourceJournal(vm, entry) => self.source.journaled(vm, entry),
            Event::ShutArrives(vm) => self.source.shut_arrives(&mut self.net, vm),
            Event::CompletedSeen(vm) => self.source.session.completed(vm),
            Event::Kill(target) => self.kill(target),
            Event::LossNoticed(target) => self.source.target_lost(&self.net, target),
            Event::FallsBehind(target) => self.source.falls_behind(&self.net, target),
            Event::FallsSilent(target) => drop(self.net.deaf.insert(target)),
            Event::HopBreaks(hop, is_said) => drop(self.net.broken.insert(hop, is_said)),
            Event::HopOpened(from, to, mut hello) => {
                // A target that has not been granted its own set yet takes it for a stranger's.
                let mut is_taken = !self.net.dead[usize::from(to)] && self.net.hopless != Some(from);
                if is_taken {
                    let own = self.source.own_set(to);
                    self.target_event(to, |session, _| {
                        is_taken = session.receiver().is_hello(&mut hello, own);
                    });
                }
                let error = (!is_taken).then(|| "connection refused".to_owned());
                self.target_event(from, |session, _| session.hop_opened(to, error));
            }
            Event::HopLost(from, to) => {
                self.target_event(from, |session, _| session.hop_lost(to, "reset".to_owned()));
            }
            Event::WaitNoLonger => self.tally_late += self.source.session.wait_no_longer().len() as u32,
            Event::Cancel => self.source.session.cancel(),
            Event::IncomingDies(target, vm) => {
                let state = &mut self.targets[usize::from(target)];
                if let Some(qemu) = state.qemus.get_mut(&vm).filter(|qemu| !qemu.running && !qemu.gone) {
                    qemu.kill();
                    self.target_event(target, |session, _| session.failed(vm, "incoming QEMU died".into()));
                }
            }
        }
    }

    fn qemu_writes(&mut self, target: u16, vm: u16, output: Output) {
        if self.net.dead[usize::from(target)] {
            return;
        }
        let Some(qemu) = self.targets[usize::from(target)].qemus.get_mut(&vm).filter(|qemu| !qemu.gone)
        else {
            return;
        };
        let said = qemu.write(&output.bytes);
        self.target_event(target, |session, now| {
            session.written(now, vm, output.bytes.len(), &output.frames, output.stream_next);
            if !said.is_empty() {
                session.return_path(now, vm, &said);
            }
        });
    }

    fn target_event(&mut self, target: u16, event: impl FnOnce(&mut TargetSession, Time)) {
        let state = &mut self.targets[usize::from(target)];
        if self.net.dead[usize::from(target)] {
            return;
        }
        event(&mut state.session, self.net.now);
        while let Some(action) = state.session.poll_action() {
            if let TargetAction::Journal { vm, step: TargetStep::Voted } = &action {
                assert!(self.digests.contains(vm), "VM {vm} was voted for before the digests were compared");
            }
            self.source.perform_at_target(&mut self.net, target, action, &mut state.qemus, &mut state.busy);
        }
    }

    /// The host dies: its QEMUs with it.
    fn kill(&mut self, target: u16) {
        self.net.dead[usize::from(target)] = true;
        self.targets[usize::from(target)].qemus.values_mut().for_each(TargetQemu::kill);
        let notice = Duration::from_millis(5 + self.net.rng.below(200));
        self.net.after(notice, Event::LossNoticed(target));
    }

    fn check_nobody_runs_twice(&self) {
        for (vm, qemu) in self.source.qemus.iter().enumerate() {
            let at = usize::from(self.plan.target_of(vm as u16));
            let Some(twin) = self.targets[at].qemus.get(&(vm as u16)) else { continue };
            assert!(!(qemu.running && twin.running), "VM {vm} runs on two hosts");
            if twin.running {
                let stopped = qemu.stopped_memory.as_ref().expect("it runs at the target, but never stopped");
                assert!(qemu.migration == Migration::Completed, "VM {vm} runs before the source completed");
                for (block, (source, target)) in stopped.iter().zip(&twin.memory).enumerate() {
                    assert!(source == target, "VM {vm}: block {block} differs at the target");
                }
            }
        }
    }

    fn check_end(self) -> Tally {
        let mut tally = Tally {
            passed_on: self.net.passed_on,
            source_tcp: self.net.source_tcp,
            multicast_bytes: self.net.multicast_bytes,
            datagrams: self.net.datagrams_sent,
            changes: self.net.changes,
            planned_changes: self.source.planned_changes,
            late: self.tally_late,
            ..Tally::default()
        };
        for (vm, qemu) in self.source.qemus.iter().enumerate() {
            let vm = vm as u16;
            let target = self.plan.target_of(vm);
            let twin = self.targets[usize::from(target)].qemus.get(&vm);
            let (here, there) = (qemu.running, twin.is_some_and(|twin| twin.running));
            let paused = self.plan.paused(vm);
            match self.source.session.stage(vm) {
                Some(VmStage::Done) => {
                    tally.moved += 1;
                    let resumed = self.source.session.resumed(vm).0;
                    tally.first_us = if tally.first_us == 0 { resumed } else { tally.first_us.min(resumed) };
                    tally.last_us = tally.last_us.max(resumed);
                    assert!(qemu.gone && !here, "VM {vm} is done but still at the source");
                    let dead = self.net.dead[usize::from(target)];
                    assert!(there || paused || dead, "VM {vm} is done but runs nowhere");
                }
                Some(VmStage::Failed) => {
                    tally.stayed += 1;
                    let reason = self.source.session.failure(vm).unwrap_or("");
                    assert!(!reason.contains("digests differ"), "VM {vm} fails to verify: {reason}");
                    assert!(here || paused, "VM {vm} failed and does not run at the source");
                    assert!(!there, "VM {vm} failed and runs at the target");
                }
                Some(VmStage::InDoubt) => {
                    tally.in_doubt += 1;
                    let voted = self.targets[usize::from(target)].votes.contains(&vm);
                    let dead = self.net.dead[usize::from(target)];
                    assert!(voted && dead, "VM {vm} is in doubt without a vote, or beside a living target");
                }
                stage => panic!("VM {vm} ended as {stage:?}"),
            }
            if self.plan.falls_behind.is_none_or(|(_, behind)| behind != target) {
                let counts = self.source.counts(vm);
                tally.withheld += counts.withheld;
                tally.sent += counts.sent;
            }
        }
        tally
    }
}

/// For source.rs: names what the session waits for.
pub fn describe(session: &SourceSession, vms: u16) -> String {
    (0..vms).map(|vm| format!("VM {vm}: {:?}; ", session.stage(vm))).collect()
}
