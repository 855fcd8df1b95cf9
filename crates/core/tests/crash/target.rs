//! A target's agent while its session lives.

use std::collections::HashSet;

use vmscatter_core::journal::{Entry, ProcessId, Step, TargetStep};
use vmscatter_core::page::{DigestKey, MacKey};
use vmscatter_core::qemu_stream::SHUT_OK;
use vmscatter_core::session::{SessionKeys, TargetAction, TargetSession};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Receiver, ReceiverConfig};
use vmscatter_core::wire::control::Message;

use super::disk::Journal;
use super::qemu::Target;
use super::world::{Event, Wire, World, key};

/// What happens at a target; none of it reaches an agent that has been started since.
pub enum TargetEvent {
    Started(usize),
    Cont(usize, bool),
    GoneSeen(usize),
}

pub struct TargetAgent {
    pub up: bool,
    pub epoch: u64,
    pub journal: Journal,
    pub session: Option<TargetSession>,
    /// VMs that the session still owns.
    pub live: HashSet<usize>,
    /// VMs that were voted for, ever.
    voted: HashSet<usize>,
    finished: bool,
}

impl TargetAgent {
    pub fn new(journal: Journal) -> Self {
        let (live, voted) = (HashSet::new(), HashSet::new());
        TargetAgent { up: true, epoch: 0, journal, session: None, live, voted, finished: false }
    }

    pub fn crash(&mut self) {
        (self.up, self.session, self.finished) = (false, None, false);
        self.live.clear();
        self.epoch += 1;
    }
}

impl World {
    pub fn open_target(&mut self, target: usize) {
        let keys = SessionKeys { mac: MacKey::new(&[1; 16]), digest: DigestKey::new(&[2; 16]) };
        let config = ReceiverConfig { target: target as u16, ..ReceiverConfig::default() };
        self.targets[target].session =
            Some(TargetSession::new(keys, u64::MAX, Receiver::new(config, Time::ZERO)));
    }

    pub fn message_to_target(&mut self, target: usize, message: Message) {
        if let Some(session) = &mut self.targets[target].session {
            session.message(self.now, message).expect("an honest source");
            self.target_acts(target);
        }
    }

    pub fn tail_arrives(&mut self, target: usize, vm: usize) {
        let Some(twin) = self.guests[vm].target.as_mut().filter(|twin| twin.alive) else { return };
        let agent = &mut self.targets[target];
        if let Some(session) = agent.session.as_mut().filter(|_| agent.live.contains(&vm)) {
            twin.loaded = true;
            session.return_path(self.now, vm as u16, &SHUT_OK);
            self.target_acts(target);
        }
    }

    pub fn lost_at_target(&mut self, target: usize) {
        if !std::mem::replace(&mut self.links[target].target_open, false) {
            return;
        }
        self.send(target, false, Wire::End);
        if let Some(session) = &mut self.targets[target].session {
            session.source_lost();
            self.target_acts(target);
        }
    }

    pub fn target_event(&mut self, target: usize, event: TargetEvent) {
        let refuses = self.rng.one_in(20);
        let now = self.now.0;
        let Some(session) = &mut self.targets[target].session else { return };
        match event {
            TargetEvent::Started(vm) => session.prepared(vm as u16),
            TargetEvent::GoneSeen(vm) => {
                let ran = self.guests[vm].ran_at_target;
                if !ran {
                    session.failed(vm as u16, "the incoming QEMU has ended".into());
                }
            }
            TargetEvent::Cont(vm, cont) => {
                let guest = &mut self.guests[vm];
                let alive = guest.target.as_ref().is_some_and(|twin| twin.alive);
                if !alive || (refuses && cont && guest.source.alive) {
                    guest.asked_back = true;
                    session.failed(vm as u16, "cont was refused".into());
                } else {
                    guest.runs_at_target(vm);
                    session.running(vm as u16, now);
                }
            }
        }
        self.target_acts(target);
    }

    pub fn target_acts(&mut self, target: usize) {
        loop {
            let Some(session) = &mut self.targets[target].session else { return };
            let Some(action) = session.poll_action() else { break };
            if self.act(target + 1) {
                return;
            }
            self.target_act(target, action);
        }
        let agent = &mut self.targets[target];
        let settled = agent.session.as_ref().is_some_and(TargetSession::is_settled);
        if agent.finished && settled {
            (agent.session, agent.finished) = (None, false);
            agent.live.clear();
            self.recover_all(target + 1);
        }
    }

    fn target_act(&mut self, target: usize, action: TargetAction) {
        let (host, epoch) = (target + 1, self.targets[target].epoch);
        match action {
            TargetAction::Send(message) => self.send(target, false, Wire::Message(message)),
            TargetAction::Join { .. }
            | TargetAction::Leave { .. }
            | TargetAction::Connect { .. }
            | TargetAction::PassOn { .. }
            | TargetAction::Write { .. } => {}
            TargetAction::Start(spec) => {
                let vm = usize::from(spec.vm);
                let facts = self.facts(vm, false);
                self.targets[target].journal.append(key(vm), Entry::Begun(Box::new(facts)));
                self.targets[target].live.insert(vm);
                if self.act(host) {
                    return;
                }
                self.guests[vm].target = Some(Target { alive: true, loaded: false, running: false });
                let process = ProcessId { pid: vm as i32, start_ticks: 1, boot: [1; 16] };
                self.targets[target].journal.append(key(vm), Entry::Spawned(process));
                let span = self.delay();
                self.after(span, Event::Target(target, epoch, TargetEvent::Started(vm)));
            }
            TargetAction::Journal { vm, step } => {
                let at = key(usize::from(vm));
                if step == TargetStep::Voted {
                    self.targets[target].voted.insert(usize::from(vm));
                }
                self.targets[target].journal.append(at, Entry::Step(Step::Target(step)));
                if !self.act(host)
                    && let Some(session) = &mut self.targets[target].session
                {
                    session.journaled(self.now, vm, step);
                }
            }
            TargetAction::Forget { vm } => {
                let vm = usize::from(vm);
                self.targets[target].journal.append(key(vm), Entry::Closed);
                self.targets[target].live.remove(&vm);
            }
            TargetAction::Resume { vm, cont } => {
                let span = self.delay();
                self.after(span, Event::Target(target, epoch, TargetEvent::Cont(usize::from(vm), cont)));
            }
            TargetAction::Kill { vm } => {
                let vm = usize::from(vm);
                let voted = self.targets[target].voted.contains(&vm);
                self.guests[vm].end_target(vm, voted, false);
            }
            TargetAction::Finished => self.targets[target].finished = true,
        }
    }
}
