//! Whole sessions in which the other side, with keys and a certificate, sends what it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use vmscatter_core::limits::RECEIVER_BYTES_MAX;
use vmscatter_core::page::{DigestKey, MacKey, PAGE_SIZE, VmDigest};
use vmscatter_core::placement::{TargetId, TargetSet};
use vmscatter_core::session::{
    AddressAction, AddressSet, Addresses, Hops, SessionKeys, SourceAction, SourceSession, SourceVm,
    TargetAction, TargetSession,
};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Sender, SenderConfig, SenderEvent};
use vmscatter_core::wire::control::{BlockSpec, Envelope, Message};

use crate::input::Input;
use crate::wire::{member, sealed};

/// What one message may bring about at once.
const ACTIONS_MAX: usize = 100_000;

fn keys() -> SessionKeys {
    SessionKeys { mac: MacKey::new(&[1; 16]), digest: DigestKey::new(&[2; 16]) }
}

/// The next message, if it is one.
fn message(input: &mut Input<'_>) -> Option<Message> {
    let len = usize::from(input.short());
    let body = [&[0; 16], input.take(len)].concat();
    Envelope::decode(&body).ok().map(|envelope| envelope.message)
}

/// A source that keeps to nothing: no guest runs here that it has not committed and that was not voted for, and nothing
/// grows beyond its limit.
pub fn target_session(data: &[u8]) {
    let (receiver, mut keys_of_paths) = member();
    let mut world = TargetWorld {
        session: TargetSession::new(keys(), 64 << 20, receiver),
        now: Time::ZERO,
        voted: BTreeSet::new(),
        committed: BTreeSet::new(),
    };
    let mut input = Input(data);
    while !input.is_empty() {
        match input.byte() % 5 {
            0 => {
                let Some(message) = message(&mut input) else { continue };
                if let Message::Commit { vm } = message {
                    world.committed.insert(vm);
                }
                if world.session.message(world.now, message).is_err() {
                    world.session.source_lost();
                    world.act();
                    return;
                }
            }
            1 => {
                let key = &mut keys_of_paths[usize::from(input.byte() % 3)];
                let mut piece = sealed(key, &mut input);
                world.session.piece(world.now, &mut piece);
            }
            2 => {
                world.now = world.now + Duration::from_micros(u64::from(input.short()));
                world.session.timeout(world.now);
            }
            3 => {
                let (vm, len) = (u16::from(input.byte() % 4), usize::from(input.byte()));
                world.session.return_path(world.now, vm, input.take(len));
            }
            _ => world.session.failed(u16::from(input.byte() % 4), "it is gone".to_owned()),
        }
        world.act();
        assert!(world.session.receiver().held_bytes() <= RECEIVER_BYTES_MAX);
    }
}

struct TargetWorld {
    session: TargetSession,
    now: Time,
    voted: BTreeSet<u16>,
    committed: BTreeSet<u16>,
}

impl TargetWorld {
    /// Does what the session wants, at once and with success.
    fn act(&mut self) {
        for _ in 0..ACTIONS_MAX {
            let Some(action) = self.session.poll_action() else { return };
            match action {
                TargetAction::Send(message) => {
                    if let Message::Loaded { vm, .. } = message {
                        self.voted.insert(vm);
                    }
                    assert!(Envelope { session: [0; 16], message }.encode().is_ok(), "it can't be said");
                }
                TargetAction::Join { set, .. } => self.session.joined(set, None),
                TargetAction::Connect { target, .. } => {
                    let error = (target % 2 == 1).then(|| "connection refused".to_owned());
                    self.session.hop_opened(target, error);
                }
                TargetAction::PassOn { target, .. } => {
                    assert!(target % 2 == 0, "over a hop that is not open");
                    self.session.hop_lost(target, "reset".to_owned());
                }
                TargetAction::Start(spec) => self.session.prepared(spec.vm),
                TargetAction::Write { vm, output } => {
                    let (bytes, next) = (output.bytes.len(), output.stream_next);
                    self.session.written(self.now, vm, bytes, &output.frames, next);
                }
                TargetAction::Journal { vm, step } => self.session.journaled(self.now, vm, step),
                TargetAction::Resume { vm, .. } => {
                    assert!(self.committed.contains(&vm) && self.voted.contains(&vm), "vm{vm} runs");
                    self.session.running(vm, 1);
                }
                TargetAction::Leave { .. }
                | TargetAction::Forget { .. }
                | TargetAction::Kill { .. }
                | TargetAction::Finished => {}
            }
        }
        panic!("it finds no end");
    }
}

const TARGETS: u16 = 3;
const FRAMES: u64 = 6;

/// Targets that keep to nothing: SHUT is given only to a guest whose digests agree, its QEMU is ended only when its own
/// target says that it runs there, and one target's words decide nothing about another's guest.
pub fn source_session(data: &[u8]) {
    let keys = keys();
    let blocks = vec![BlockSpec { name: "pc.ram".to_owned(), bytes: 4 * PAGE_SIZE as u64 }];
    let mut sender = Sender::new(SenderConfig::default(), Time::ZERO);
    (0..TARGETS).for_each(|target| sender.add_set(target, &[target], false));
    (0..TARGETS).for_each(|target| sender.takes_parity(target));
    let mut members = TargetSet::default();
    (0..TARGETS).for_each(|target| members.insert(TargetId(target as u8)));
    sender.add_set(TARGETS, &[0, 1, 2], true);
    let sets = vec![AddressSet { number: TARGETS, members }];
    let mut world = SourceWorld {
        session: SourceSession::new((0..TARGETS).map(|vm| (vm, vm, blocks.clone())), 2),
        vms: (0..TARGETS).map(|vm| SourceVm::new(vm, &blocks, &keys.mac, &keys.digest)).collect(),
        digest: VmDigest::new(&[4]),
        votes: BTreeMap::new(),
        runs: BTreeSet::new(),
    };
    let mut addresses = Addresses::new([sets], vec![1472, 1252]);
    let mut hops = Hops::new(members, [members]);
    let (mut now, mut left, mut pushed) = (Time::ZERO, BTreeSet::new(), 0);
    let mut input = Input(data);
    while !input.is_empty() {
        match input.byte() % 6 {
            0..=2 => {
                let target = u16::from(input.byte()) % TARGETS;
                let Some(message) = message(&mut input) else { continue };
                let taken = match message {
                    // Of one that has left, the driver drops them.
                    Message::Report(report) => {
                        left.contains(&target) || sender.on_report(target, &report, now).is_ok()
                    }
                    Message::LinkCounters(counters) => {
                        sender.on_link_counters(target, &counters, now);
                        true
                    }
                    Message::Joined { set, error } => {
                        addresses.joined(now, target, set, error);
                        true
                    }
                    Message::Heard { set } => {
                        addresses.heard(target, set);
                        true
                    }
                    Message::Hopped { target: to, error } => {
                        hops.answered(target, to, error.is_none(), &mut sender);
                        true
                    }
                    message => world.message(target, message),
                };
                if !taken && left.insert(target) {
                    sender.remove_target(target, now);
                    addresses.remove_target(target);
                    hops.remove_target(target);
                    world.session.target_lost(target, "what it says");
                }
            }
            3 => now = now + Duration::from_micros(u64::from(input.short()) * 16),
            4 if pushed < FRAMES => {
                let set = u16::from(input.byte()) % (TARGETS + 1);
                let body: Arc<[u8]> = vec![7; 1 + usize::from(input.short())].into();
                sender.push(pushed, set, body);
                pushed += 1;
            }
            _ => world.local(input.byte()),
        }
        addresses.advance(now, &mut sender);
        while let Some(action) = addresses.poll_action() {
            if let AddressAction::Unreached { target, .. } = action {
                hops.unreached(now, target);
            }
        }
        while hops.poll_ask().is_some() {}
        hops.advance(now, &mut sender);
        for step in 0.. {
            assert!(step < ACTIONS_MAX, "it sends without end");
            if sender.poll_transmit(now).is_none() {
                break;
            }
        }
        while let Some(event) = sender.poll_event() {
            if let SenderEvent::Unheard { target } = event {
                addresses.unheard(target);
            }
        }
        world.act();
    }
}

struct SourceWorld {
    session: SourceSession,
    vms: Vec<SourceVm>,
    digest: VmDigest,
    /// The last vote of each VM's own target.
    votes: BTreeMap<u16, VmDigest>,
    /// VMs whose own target has said that they run there.
    runs: BTreeSet<u16>,
}

impl SourceWorld {
    /// As the driver deals with it; whether an honest target could have said it.
    fn message(&mut self, target: u16, message: Message) -> bool {
        match &message {
            Message::Loaded { vm, digest } if *vm == target => {
                self.votes.insert(*vm, digest.clone());
            }
            Message::Running { vm, .. } if *vm == target => {
                self.runs.insert(*vm);
            }
            _ => {}
        }
        let own = |vm: u16| vm == target;
        match message {
            Message::Written { vm, next } => own(vm) && self.vms[usize::from(vm)].written(next).is_ok(),
            Message::ReturnPath { vm, bytes } => {
                !own(vm) || self.vms[usize::from(vm)].return_path(&bytes).is_ok()
            }
            message => self.session.message(target, message).is_ok(),
        }
    }

    /// Something happens here.
    fn local(&mut self, what: u8) {
        let vm = u16::from(what) % TARGETS;
        match what / 4 % 6 {
            0 => self.session.source_gone(vm),
            1 => self.session.source_resumed(vm),
            2 => self.session.failed(vm, "it is gone".to_owned()),
            3 => self.session.cancel(),
            4 => self.session.slow(vm, what & 0x80 != 0),
            _ => drop(self.session.wait_no_longer()),
        }
    }

    /// Does what the session wants, at once and with success.
    fn act(&mut self) {
        for _ in 0..ACTIONS_MAX {
            let Some(action) = self.session.poll_action() else { return };
            match action {
                SourceAction::Migrate { vm } => self.session.held(vm),
                SourceAction::Scatter => self.session.scattered(),
                SourceAction::Stream { vm } => self.session.ram_ended(vm, self.digest.clone()),
                SourceAction::Journal { vm, step } => self.session.journaled(vm, step),
                SourceAction::ReleaseShut { vm } => {
                    assert_eq!(self.votes.get(&vm), Some(&self.digest), "vm{vm} is given away");
                    self.session.completed(vm);
                }
                SourceAction::Quit { vm } => {
                    assert!(self.runs.contains(&vm), "vm{vm} is ended, and runs nowhere");
                    self.session.quitted(vm, true);
                }
                SourceAction::CloseSocket { vm } | SourceAction::ResumeSource { vm } => {
                    self.session.source_resumed(vm);
                }
                SourceAction::Send { .. }
                | SourceAction::LeaveScatter { .. }
                | SourceAction::Settle { .. }
                | SourceAction::Finished => {}
            }
        }
        panic!("it finds no end");
    }
}
