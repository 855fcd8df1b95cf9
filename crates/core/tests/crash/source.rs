//! The source's agent while its session lives.

use std::time::Duration;

use vmscatter_core::journal::{Entry, Facts, Peer, Side, SourceStep, Step};
use vmscatter_core::page::VmDigest;
use vmscatter_core::session::deadlines::{COMMITTED_MAX, STOPPED_MAX};
use vmscatter_core::session::{SourceAction, SourceSession, VmStage};
use vmscatter_core::wire::control::{BlockSpec, Message, VmSpec};

use super::disk::Journal;
use super::qemu::Migration;
use super::world::{Event, Wire, World, key};

/// What happens at the source; none of it reaches an agent that has been started since.
pub enum SourceEvent {
    Held(usize),
    Scattered,
    /// The guest stops for its last pages.
    Stops(usize),
    /// The rest of the stream has left QEMU.
    Tail(usize),
    /// From its stop until the target votes.
    Deadline(usize),
    Outstayed(usize),
    CompletedSeen(usize),
    ResumedSeen(usize),
    GoneSeen(usize),
    /// Parameters are put back, and `cont` is given where asked.
    PutBack(usize, bool),
    Quitted(usize),
}

pub struct SourceAgent {
    pub up: bool,
    pub epoch: u64,
    pub journal: Journal,
    pub session: Option<SourceSession>,
    tasks: usize,
    finishing: bool,
    /// What QEMUs say arrives in its order.
    latest: vmscatter_core::time::Time,
}

impl SourceAgent {
    pub fn new(journal: Journal) -> Self {
        let latest = vmscatter_core::time::Time::ZERO;
        SourceAgent { up: true, epoch: 0, journal, session: None, tasks: 0, finishing: false, latest }
    }

    pub fn crash(&mut self) {
        (self.up, self.session, self.tasks, self.finishing) = (false, None, 0, false);
        self.epoch += 1;
    }
}

fn blocks() -> Vec<BlockSpec> {
    vec![BlockSpec { name: "ram".into(), bytes: 4096 }]
}

impl World {
    pub fn start_session(&mut self) {
        for vm in 0..self.plan.vms {
            let facts = self.facts(vm, true);
            self.source.journal.append(key(vm), Entry::Begun(Box::new(facts)));
        }
        let vms = (0..self.plan.vms).map(|vm| (vm as u16, self.plan.placement[vm] as u16, blocks()));
        self.source.session = Some(SourceSession::new(vms.collect::<Vec<_>>(), self.plan.streams_max));
        for target in 0..self.plan.targets {
            self.open_target(target);
        }
        for vm in 0..self.plan.vms {
            let spec = VmSpec {
                vm: vm as u16,
                uuid: key(vm).vm,
                name: format!("vm{vm}"),
                guest_file: String::new(),
                machine: "pc".into(),
                blocks: blocks(),
                paused: self.plan.paused[vm],
                hardware: Default::default(),
            };
            self.send(self.plan.placement[vm], true, Wire::Message(Message::Prepare(spec)));
        }
    }

    pub fn facts(&self, vm: usize, source: bool) -> Facts {
        let side = match source {
            true => Side::Source { process: None, parameters: Vec::new(), capabilities: Vec::new() },
            false => Side::Target {
                program: "qemu".into(),
                memory_bytes: 4096,
                source_journal: super::world::journal_id(0),
            },
        };
        Facts {
            name: format!("vm{vm}"),
            peer: Peer { name: "peer".into(), addr: ([10, 0, 0, 1], 7940).into() },
            monitor: "qmp".into(),
            paused: self.plan.paused[vm],
            side,
        }
    }

    /// In the order in which it was caused.
    pub fn source_later(&mut self, event: SourceEvent) {
        let span = self.delay();
        let at = self.source.latest.max(self.now + span);
        self.source.latest = at;
        self.after(at.since(self.now), Event::Source(self.source.epoch, event));
    }

    pub fn message_to_source(&mut self, target: usize, message: Message) {
        if let (Some(session), false) = (&mut self.source.session, matches!(message, Message::Report(_))) {
            session.message(target as u16, message).expect("an honest target");
            self.source_acts();
        }
    }

    pub fn lost_at_source(&mut self, target: usize) {
        if !std::mem::replace(&mut self.links[target].source_open, false) {
            return;
        }
        self.send(target, true, Wire::End);
        if let Some(session) = &mut self.source.session {
            session.target_lost(target as u16, "lost");
            self.source_acts();
        }
    }

    pub fn source_event(&mut self, event: SourceEvent) {
        let Some(session) = &mut self.source.session else { return };
        match event {
            SourceEvent::Held(vm) => session.held(vm as u16),
            SourceEvent::Scattered => session.scattered(),
            SourceEvent::Stops(vm) => self.stops(vm),
            SourceEvent::Tail(vm) => {
                let source = &self.guests[vm].source;
                if source.alive && source.socket_open && source.migration == Migration::Device {
                    self.send(self.plan.placement[vm], true, Wire::Tail(vm));
                }
            }
            SourceEvent::Deadline(vm) => {
                if session.stage(vm as u16).is_some_and(|stage| stage < VmStage::Releasing) {
                    session.failed(vm as u16, "the target did not load in time".into());
                }
            }
            SourceEvent::Outstayed(vm) => {
                if matches!(session.stage(vm as u16), Some(VmStage::Released | VmStage::Committed)) {
                    session.outstayed(vm as u16, "the target does not say what became of it".into());
                    self.waits(vm);
                }
            }
            SourceEvent::CompletedSeen(vm) => session.completed(vm as u16),
            SourceEvent::ResumedSeen(vm) => {
                session.source_resumed(vm as u16);
                session.failed(vm as u16, "QEMU's migration failed".into());
            }
            SourceEvent::GoneSeen(vm) => {
                self.guests[vm].gone_seen = true;
                session.source_gone(vm as u16);
            }
            SourceEvent::PutBack(vm, cont) => self.put_back(vm, cont),
            SourceEvent::Quitted(vm) => {
                self.guests[vm].end_source(vm, false);
                session.quitted(vm as u16, true);
            }
        }
        self.source_acts();
    }

    fn stops(&mut self, vm: usize) {
        let source = &self.guests[vm].source;
        if !source.alive || !source.socket_open || source.migration != Migration::Active {
            return;
        }
        self.guests[vm].stops_at_source();
        self.source_later(SourceEvent::Tail(vm));
        self.after(STOPPED_MAX, Event::Source(self.source.epoch, SourceEvent::Deadline(vm)));
        if let Some(session) = &mut self.source.session {
            session.source_stopped(vm as u16);
            session.ram_ended(vm as u16, VmDigest::new(&[1]));
        }
    }

    /// The source waits for what becomes of a guest that it has released.
    fn waits(&mut self, vm: usize) {
        let span = if self.plan.impatient[vm] { 2 * self.delay() } else { COMMITTED_MAX };
        self.after(span, Event::Source(self.source.epoch, SourceEvent::Outstayed(vm)));
    }

    /// The task of a guest that stays.
    fn put_back(&mut self, vm: usize, cont: bool) {
        let guest = &mut self.guests[vm];
        if guest.source.alive && matches!(guest.source.migration, Migration::Active | Migration::Device) {
            return self.source_later(SourceEvent::PutBack(vm, cont));
        }
        guest.source.changed = false;
        if cont && !guest.paused && guest.source.alive {
            guest.runs_at_source(vm);
        }
        if self.act(0) {
            return;
        }
        self.stayed(vm);
        self.source.tasks -= 1;
    }

    /// Of a guest that did stay. One whose QEMU is gone has not: recovery finds out whether the target has it.
    fn stayed(&mut self, vm: usize) {
        let aborted = Step::Source(SourceStep::Aborted);
        if self.guests[vm].source.alive && self.source.journal.step(&key(vm)) != Some(aborted) {
            self.source.journal.append(key(vm), Entry::Step(aborted));
        }
    }

    /// Does what the session wants, as far as the agent lives.
    pub fn source_acts(&mut self) {
        loop {
            let Some(session) = &mut self.source.session else { return };
            let Some(action) = session.poll_action() else { break };
            if self.act(0) {
                return;
            }
            self.source_act(action);
        }
        if self.source.finishing && self.source.tasks == 0 {
            self.end_session();
        }
    }

    fn source_act(&mut self, action: SourceAction) {
        let Some(session) = &mut self.source.session else { return };
        match action {
            SourceAction::Send { target, message } => {
                if let Message::Abort { vm, .. } = &message {
                    let guest = &mut self.guests[usize::from(*vm)];
                    guest.asked_back |= !guest.gone_seen;
                }
                if let Message::Commit { vm } = message {
                    self.waits(usize::from(vm));
                }
                self.send(usize::from(target), true, Wire::Message(message));
            }
            SourceAction::Migrate { vm } => {
                let source = &mut self.guests[usize::from(vm)].source;
                if !source.alive {
                    return session.failed(vm, "the source QEMU has ended".into());
                }
                (source.migration, source.socket_open, source.changed) = (Migration::Active, true, true);
                self.source_later(SourceEvent::Held(usize::from(vm)));
            }
            SourceAction::LeaveScatter { .. } => {}
            SourceAction::Scatter => self.source_later(SourceEvent::Scattered),
            SourceAction::Settle { .. } => {}
            SourceAction::Stream { vm } => {
                let span = Duration::from_micros(self.rng.below(100_000));
                self.after(span, Event::Source(self.source.epoch, SourceEvent::Stops(usize::from(vm))));
            }
            SourceAction::Journal { vm, step } => {
                self.source.journal.append(key(usize::from(vm)), Entry::Step(Step::Source(step)));
                if !self.act(0)
                    && let Some(session) = &mut self.source.session
                {
                    session.journaled(vm, step);
                }
            }
            SourceAction::ReleaseShut { vm } => {
                let source = &mut self.guests[usize::from(vm)].source;
                source.shut_written = source.socket_open;
                let (span, vm) = (self.delay(), usize::from(vm));
                let event = if self.plan.fails[vm] { Event::MigrationFails(vm) } else { Event::ShutRead(vm) };
                self.after(span, event);
                self.waits(vm);
            }
            SourceAction::CloseSocket { vm } => {
                let guest = &mut self.guests[usize::from(vm)];
                guest.asked_back |= !guest.gone_seen;
                self.close_socket(usize::from(vm));
                self.source.tasks += 1;
                self.source_later(SourceEvent::PutBack(usize::from(vm), false));
            }
            SourceAction::ResumeSource { vm } => {
                self.source.tasks += 1;
                self.source_later(SourceEvent::PutBack(usize::from(vm), true));
            }
            SourceAction::Quit { vm } => self.source_later(SourceEvent::Quitted(usize::from(vm))),
            SourceAction::Finished => self.source.finishing = true,
        }
    }

    /// What has found its end is closed, and then the targets are told; the rest is recovery's, and whose target it is must not forget.
    fn end_session(&mut self) {
        let Some(session) = self.source.session.take() else { return };
        let mut unsettled = vec![false; self.plan.targets];
        for vm in 0..self.plan.vms {
            let stage = session.stage(vm as u16);
            if self.act(0) {
                return;
            }
            let over = match stage {
                Some(VmStage::Failed) => {
                    self.stayed(vm);
                    !session.may_be_voted(vm as u16)
                }
                stage => stage == Some(VmStage::Done),
            };
            match over {
                true => self.source.journal.append(key(vm), Entry::Closed),
                false => unsettled[self.plan.placement[vm]] = true,
            }
            self.close_socket(vm);
        }
        for (target, unsettled) in unsettled.into_iter().enumerate() {
            if self.links[target].source_open {
                if !unsettled {
                    self.send(target, true, Wire::Message(Message::Close));
                }
                self.send(target, true, Wire::End);
                self.links[target].source_open = false;
            }
        }
        self.recover_all(0);
    }
}
