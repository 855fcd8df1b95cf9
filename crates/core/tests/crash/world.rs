//! The clock, the hosts, the connections between them, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use vmscatter_core::journal::VmKey;
use vmscatter_core::session::recovery::{Forced, Heard, Note, Word};
use vmscatter_core::time::Time;
use vmscatter_core::wire::control::Message;

use super::disk::Journal;
use super::plan::{Fault, Plan};
use super::qemu::{Guest, Migration, Target};
use super::source::{SourceAgent, SourceEvent};
use super::target::{TargetAgent, TargetEvent};
use crate::sim::Rng;

/// From here on nothing fails any more, and the operator answers questions.
const MENDED: Time = Time(120_000_000);
/// Every guest has found its end by then.
const END: Time = Time(600_000_000);
/// A peer that is not heard for this long is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// What happens at a moment.
pub enum Event {
    ToTarget(usize),
    ToSource(usize),
    Source(u64, SourceEvent),
    Target(usize, u64, TargetEvent),
    /// QEMU at the source reads SHUT(0).
    ShutRead(usize),
    /// QEMU at the source lets the guest go on, for reasons of its own.
    MigrationFails(usize),
    /// QEMU at the source sees that its socket is closed.
    SocketClosed(usize),
    /// A side of a session's connection has heard nothing for long.
    Silent {
        target: usize,
        at_source: bool,
        outage: u64,
    },
    Recover {
        host: usize,
        epoch: u64,
        vm: usize,
    },
    Inquiry {
        from: usize,
        epoch: u64,
        to: usize,
        vm: usize,
        word: Word,
    },
    Answer {
        to: usize,
        epoch: u64,
        vm: usize,
        heard: Heard<Word>,
    },
    Restart(usize),
    Fault(Fault),
    Heal(usize),
    Mend,
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

/// What travels on a session's connection.
pub enum Wire {
    Message(Message),
    /// The rest of a VM's stream.
    Tail(usize),
    /// The sender has closed.
    End,
}

/// A session's connection to a target.
pub struct Link {
    pub source_open: bool,
    pub target_open: bool,
    pub to_target: VecDeque<Wire>,
    pub to_source: VecDeque<Wire>,
    pub cut_to_target: bool,
    pub cut_to_source: bool,
    latest: [Time; 2],
    outage: u64,
}

/// What came of a run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub vms: u32,
    pub moved: u32,
    pub stayed: u32,
    /// Gone with a QEMU that was killed.
    pub lost: u32,
    pub crashes: u32,
    pub torn: u32,
    pub forced: u32,
    /// Guests that recovery had to bring to their ends.
    pub recovered: u32,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.vms += other.vms;
        self.moved += other.moved;
        self.stayed += other.stayed;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.torn += other.torn;
        self.forced += other.forced;
        self.recovered += other.recovered;
    }
}

pub struct World {
    pub now: Time,
    pub rng: Rng,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    pub plan: Plan,
    pub guests: Vec<Guest>,
    pub source: SourceAgent,
    pub targets: Vec<TargetAgent>,
    pub links: Vec<Link>,
    /// What recovery waits for, by host and VM.
    pub notes: BTreeMap<(usize, usize), Note>,
    /// The operator's word.
    pub forced: Vec<Option<Forced>>,
    /// Host, power, and the actions until then.
    crash_at: Vec<(usize, bool, u64)>,
    pub mended: bool,
    /// The network fails no more: an operator has seen to it.
    pub uncut: bool,
    /// Nor do hosts.
    pub calm: bool,
    pub tally: Tally,
    traced: String,
}

/// A guest's key in every journal.
pub fn key(vm: usize) -> VmKey {
    VmKey { session: [1; 16], vm: [vm as u8 + 1; 16] }
}

/// The journal's identity of a host.
pub fn journal_id(host: usize) -> [u8; 16] {
    [host as u8 + 100; 16]
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xdead);
        let plan = Plan::draw(&mut rng);
        let link = || Link {
            source_open: true,
            target_open: true,
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            cut_to_target: false,
            cut_to_source: false,
            latest: [Time::ZERO; 2],
            outage: 0,
        };
        World {
            now: Time::ZERO,
            queue: BinaryHeap::new(),
            order: 0,
            guests: plan.paused.iter().map(|paused| Guest::new(*paused)).collect(),
            source: SourceAgent::new(Journal::new(journal_id(0))),
            targets: (0..plan.targets).map(|t| TargetAgent::new(Journal::new(journal_id(t + 1)))).collect(),
            links: (0..plan.targets).map(|_| link()).collect(),
            notes: BTreeMap::new(),
            forced: vec![None; plan.vms],
            crash_at: Vec::new(),
            mended: false,
            uncut: false,
            calm: false,
            tally: Tally { vms: plan.vms as u32, ..Tally::default() },
            traced: String::new(),
            plan,
            rng,
        }
    }

    /// Runs until every guest has found its end; panics with what does not hold.
    pub fn run(mut self) -> Tally {
        for (at, fault) in self.plan.faults.clone() {
            match fault {
                Fault::CrashAt { host, power, actions } => self.crash_at.push((host, power, actions)),
                fault => self.after(at, Event::Fault(fault)),
            }
        }
        self.after(MENDED.since(Time::ZERO), Event::Mend);
        self.start_session();
        while let Some(Scheduled { at, event, .. }) = self.queue.pop() {
            self.now = at;
            assert!(at < END, "no end is found: {}", self.describe());
            self.handle(event);
            self.trace();
            for (vm, guest) in self.guests.iter().enumerate() {
                guest.check(vm);
            }
            if self.over() {
                break;
            }
        }
        assert!(self.over(), "nothing is left to happen: {}", self.describe());
        self.check_ends();
        self.tally
    }

    fn over(&self) -> bool {
        let idle =
            self.source.session.is_none() && self.targets.iter().all(|target| target.session.is_none());
        let closed = std::iter::once(&self.source.journal).chain(self.targets.iter().map(|t| &t.journal));
        let up = self.source.up && self.targets.iter().all(|target| target.up);
        idle && up && closed.into_iter().all(|journal| journal.book.vms().next().is_none())
    }

    pub fn describe(&self) -> String {
        let step = |host: usize, vm: usize| self.journal(host).step(&key(vm)).map(|step| step.name());
        let vm = |vm: usize| {
            let at = self.plan.placement[vm] + 1;
            let (notes, guest) = ([0, at].map(|host| self.notes.get(&(host, vm))), &self.guests[vm]);
            let live = (self.source.session.is_some(), self.targets[at - 1].live.contains(&vm));
            format!(
                "\nVM {vm}: {:?} and {:?}, live {live:?}, {guest:?}, {notes:?}",
                step(0, vm),
                step(at, vm)
            )
        };
        (0..self.plan.vms).map(vm).collect()
    }

    pub fn after(&mut self, span: Duration, event: Event) {
        self.order += 1;
        self.queue.push(Scheduled { at: self.now + span, order: self.order, event });
    }

    pub fn delay(&mut self) -> Duration {
        Duration::from_micros(50 + self.rng.below(self.plan.delay_us_max))
    }

    pub fn journal(&self, host: usize) -> &Journal {
        if host == 0 { &self.source.journal } else { &self.targets[host - 1].journal }
    }

    pub fn journal_mut(&mut self, host: usize) -> &mut Journal {
        if host == 0 { &mut self.source.journal } else { &mut self.targets[host - 1].journal }
    }

    pub fn is_up(&self, host: usize) -> bool {
        if host == 0 { self.source.up } else { self.targets[host - 1].up }
    }

    pub fn epoch(&self, host: usize) -> u64 {
        if host == 0 { self.source.epoch } else { self.targets[host - 1].epoch }
    }

    /// A host does something: before and behind it may be its last moment. `true` if it was.
    pub fn act(&mut self, host: usize) -> bool {
        if self.mended || self.calm {
            return false;
        }
        let due = self.crash_at.iter_mut().find(|(at, _, left)| *at == host && *left > 0);
        let Some((_, power, left)) = due else { return false };
        *left -= 1;
        let (power, now) = (*power, *left == 0);
        if now {
            self.crash(host, power);
        }
        now
    }

    /// `SIM_TRACE` shows what a guest's books say whenever they change.
    fn trace(&mut self) {
        if std::env::var_os("SIM_TRACE").is_some() {
            let text = self.describe();
            if text != self.traced {
                println!(
                    "{:?} up {} {}{text}",
                    self.now,
                    self.source.up,
                    self.targets.iter().map(|t| u8::from(t.up).to_string()).collect::<String>()
                );
                self.traced = text;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::ToTarget(target) => self.deliver_to_target(target),
            Event::ToSource(target) => self.deliver_to_source(target),
            Event::Source(epoch, event) if epoch == self.source.epoch => self.source_event(event),
            Event::Target(target, epoch, event) if epoch == self.targets[target].epoch => {
                self.target_event(target, event);
            }
            Event::Source(..) | Event::Target(..) => {}
            Event::ShutRead(vm) => self.shut_read(vm),
            Event::MigrationFails(vm) => self.migration_fails(vm),
            Event::SocketClosed(vm) => self.socket_closed(vm),
            Event::Silent { target, at_source, outage } => self.silent(target, at_source, outage),
            Event::Recover { host, epoch, vm } if epoch == self.epoch(host) => self.recover(host, vm),
            Event::Answer { to, epoch, vm, heard } if epoch == self.epoch(to) => self.answered(to, vm, heard),
            Event::Recover { .. } | Event::Answer { .. } => {}
            Event::Inquiry { from, epoch, to, vm, word } => self.inquired(from, epoch, to, vm, word),
            Event::Restart(host) => self.restart(host),
            Event::Fault(fault) if !self.mended => self.fault(fault),
            Event::Fault(_) => {}
            Event::Heal(target) => self.heal(target),
            Event::Mend => self.mend(),
        }
    }

    pub fn send(&mut self, target: usize, to_target: bool, wire: Wire) {
        let link = &mut self.links[target];
        let open = if to_target { link.source_open } else { link.target_open };
        if !open && !matches!(wire, Wire::End) {
            return;
        }
        if to_target {
            link.to_target.push_back(wire)
        } else {
            link.to_source.push_back(wire)
        }
        let span = self.delay();
        let latest = &mut self.links[target].latest[usize::from(to_target)];
        *latest = (*latest).max(self.now + span);
        let span = latest.since(self.now);
        self.after(span, if to_target { Event::ToTarget(target) } else { Event::ToSource(target) });
    }

    fn deliver_to_target(&mut self, target: usize) {
        let link = &mut self.links[target];
        if link.cut_to_target {
            return;
        }
        let Some(wire) = link.to_target.pop_front() else { return };
        if !link.target_open {
            // A host that knows nothing of the connection says so.
            if self.targets[target].up && self.links[target].source_open && !matches!(wire, Wire::End) {
                self.send(target, false, Wire::End);
            }
            return;
        }
        match wire {
            Wire::End => self.lost_at_target(target),
            Wire::Message(message) => self.message_to_target(target, message),
            Wire::Tail(vm) => self.tail_arrives(target, vm),
        }
    }

    fn deliver_to_source(&mut self, target: usize) {
        let link = &mut self.links[target];
        if link.cut_to_source {
            return;
        }
        let Some(wire) = link.to_source.pop_front() else { return };
        if !link.source_open {
            if self.source.up && self.links[target].target_open && !matches!(wire, Wire::End) {
                self.send(target, true, Wire::End);
            }
            return;
        }
        match wire {
            Wire::End => self.lost_at_source(target),
            Wire::Message(message) => self.message_to_source(target, message),
            Wire::Tail(_) => {}
        }
    }

    fn silent(&mut self, target: usize, at_source: bool, outage: u64) {
        let link = &self.links[target];
        let peer_open = if at_source { link.target_open } else { link.source_open };
        if peer_open && link.outage != outage {
            return;
        }
        if at_source { self.lost_at_source(target) } else { self.lost_at_target(target) }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { host, power } => self.crash(host, power),
            Fault::CrashAt { .. } => {}
            Fault::Cut { .. } if self.uncut => {}
            Fault::Kill { vm, at_source: true } => self.kill_source_qemu(vm),
            Fault::Kill { vm, at_source: false } => self.kill_target_qemu(vm),
            Fault::Cut { target, to_target, to_source, lasts } => {
                let link = &mut self.links[target];
                link.cut_to_target |= to_target;
                link.cut_to_source |= to_source;
                self.outage(target, to_source, to_target);
                self.after(lasts, Event::Heal(target));
            }
            Fault::Cancel => {
                if let Some(session) = &mut self.source.session {
                    session.cancel();
                }
                self.source_acts();
            }
            Fault::Force => self.operator_decides(),
        }
    }

    /// The sides that hear nothing will notice, unless it ends before.
    fn outage(&mut self, target: usize, at_source: bool, at_target: bool) {
        self.links[target].outage += 1;
        let outage = self.links[target].outage;
        for (hears_nothing, at_source) in [(at_source, true), (at_target, false)] {
            if hears_nothing {
                self.after(SILENCE, Event::Silent { target, at_source, outage });
            }
        }
    }

    pub fn heal(&mut self, target: usize) {
        let link = &mut self.links[target];
        (link.cut_to_target, link.cut_to_source) = (false, false);
        link.outage += 1;
        for _ in 0..self.links[target].to_target.len() {
            self.after(Duration::from_millis(1), Event::ToTarget(target));
        }
        for _ in 0..self.links[target].to_source.len() {
            self.after(Duration::from_millis(1), Event::ToSource(target));
        }
    }

    fn mend(&mut self) {
        self.mended = true;
        for target in 0..self.plan.targets {
            self.heal(target);
        }
    }

    pub fn crash(&mut self, host: usize, power: bool) {
        if !self.is_up(host) || self.calm {
            return;
        }
        self.tally.crashes += 1;
        let lossy = power || self.plan.harsh;
        if host == 0 {
            self.source.crash();
            for vm in 0..self.plan.vms {
                self.close_socket(vm);
                if power {
                    self.kill_source_qemu(vm);
                }
            }
        } else {
            self.targets[host - 1].crash();
            let here = |vm: &usize| power && self.plan.placement[*vm] == host - 1;
            let vms: Vec<usize> = (0..self.plan.vms).filter(here).collect();
            for vm in vms {
                self.kill_target_qemu(vm);
            }
            self.incoming_sockets_close(host - 1);
        }
        let mut rng = Rng::new(self.rng.next());
        self.journal_mut(host).crash(&mut rng, lossy);
        for target in (0..self.plan.targets).filter(|target| host == 0 || *target == host - 1) {
            let link = &mut self.links[target];
            if host == 0 {
                link.source_open = false
            } else {
                link.target_open = false
            }
            match power {
                false => self.send(target, host == 0, Wire::End),
                true => self.outage(target, host != 0, host == 0),
            }
        }
        let down = Duration::from_micros(self.rng.below(30_000_000));
        self.after(down, Event::Restart(host));
    }

    fn restart(&mut self, host: usize) {
        let torn = self.journal_mut(host).restart();
        self.tally.torn += u32::from(torn);
        if host == 0 {
            self.source.up = true
        } else {
            self.targets[host - 1].up = true
        }
        self.recover_all(host);
    }

    pub fn kill_source_qemu(&mut self, vm: usize) {
        let guest = &mut self.guests[vm];
        if std::mem::replace(&mut guest.source.alive, false) {
            guest.source.running = false;
            guest.hit = true;
            self.source_later(SourceEvent::GoneSeen(vm));
        }
    }

    pub fn kill_target_qemu(&mut self, vm: usize) {
        let Some(target) = self.guests[vm].target.as_mut().filter(|target| target.alive) else { return };
        (target.alive, target.running) = (false, false);
        self.guests[vm].hit = true;
        let (at, span) = (self.plan.placement[vm], self.delay());
        self.after(span, Event::Target(at, self.targets[at].epoch, TargetEvent::GoneSeen(vm)));
    }

    /// A QEMU that has not loaded everything ends when its agent does.
    fn incoming_sockets_close(&mut self, target: usize) {
        for vm in (0..self.plan.vms).filter(|vm| self.plan.placement[*vm] == target) {
            if let Some(Target { loaded: false, alive, .. }) = &mut self.guests[vm].target {
                *alive = false;
            }
        }
    }

    /// The agent's end of a source QEMU's migration socket is closed.
    pub fn close_socket(&mut self, vm: usize) {
        if std::mem::replace(&mut self.guests[vm].source.socket_open, false) {
            let span = self.delay();
            self.after(span, Event::SocketClosed(vm));
        }
    }

    fn shut_read(&mut self, vm: usize) {
        let source = &mut self.guests[vm].source;
        if source.alive && source.shut_written && source.migration == Migration::Device {
            source.migration = Migration::Completed;
            self.source_later(SourceEvent::CompletedSeen(vm));
        }
    }

    /// And perhaps it does not live long after that.
    fn migration_fails(&mut self, vm: usize) {
        let guest = &mut self.guests[vm];
        if guest.source.alive && guest.source.migration == Migration::Device {
            guest.source.socket_open = false;
            guest.runs_at_source(vm);
            self.source_later(SourceEvent::ResumedSeen(vm));
            if self.rng.one_in(2) {
                self.kill_source_qemu(vm);
            }
        }
    }

    /// What lies in the socket may be read before its end is seen, or not.
    fn socket_closed(&mut self, vm: usize) {
        let read_first = self.rng.one_in(2);
        let guest = &mut self.guests[vm];
        if !guest.source.alive || !matches!(guest.source.migration, Migration::Active | Migration::Device) {
            return;
        }
        if guest.source.shut_written && guest.source.migration == Migration::Device && read_first {
            return self.shut_read(vm);
        }
        guest.runs_at_source(vm);
        self.source_later(SourceEvent::ResumedSeen(vm));
    }
}
