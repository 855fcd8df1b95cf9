//! The source's driver in the simulation: what the binary does with threads and sockets, done in one loop.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use vmscatter_core::index::{Contents, PageSpace, Records, RunBuilder};
use vmscatter_core::journal::SourceStep;
use vmscatter_core::limits::SET_CONTENTS_MAX;
use vmscatter_core::page::{PAGE_SIZE, PageAddr, is_zero};
use vmscatter_core::placement::{TargetId, TargetSet};
use vmscatter_core::schedule::{Schedule, SetLoad, SetPlan, order_sets};
use vmscatter_core::session::{
    AddressAction, AddressSet, Addresses, FrameQueues, Hops, OwnKeys, RecordCounts, Scatterer, SessionKeys,
    SourceAction, SourceSession, SourceVm, TargetAction, VmStage,
};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Path, Receiver, ReceiverConfig, Sender, SenderConfig, SenderEvent};
use vmscatter_core::wire::control::{Message, SetGrant, VmSpec};
use vmscatter_core::wire::frame::{Compression, Encoder};
use vmscatter_core::wire::piece::{PROBE_OF_TRAIN, PieceHeader, PieceKind, seal_piece};
use vmscatter_core::wire::relay;
use vmscatter_core::wire::seal::{Channel, SealKey};

use super::plan::Plan;
use super::qemu::{SourceQemu, TargetQemu};
use super::rng::Rng;
use super::world::{Event, Net, describe};

const SESSION_TAG: u64 = 0x5e55;
/// Plain bytes of one VM between the two QEMUs.
const IN_FLIGHT: usize = 64 * 1024;

pub struct Source {
    pub session: SourceSession,
    pub qemus: Vec<SourceQemu>,
    vms: Vec<SourceVm>,
    sender: Sender,
    scatterer: Scatterer,
    contents: Contents,
    queues: FrameQueues,
    pub addresses: Addresses,
    hops: Hops,
    /// Joins and leaves that the order of sets takes if nothing goes wrong.
    pub planned_changes: u64,
    scattering: bool,
    placement: Vec<Option<TargetId>>,
    encoder: Encoder,
    compression: Compression,
    /// Key, members, and seal states of each set, by wire number; a target's own set is `0x1000 + target`.
    sets: HashMap<u16, Set>,
    /// Keys of each target's own set, and of those that follow it.
    own_keys: Vec<OwnKeys>,
    rekeys: u64,
    acked: HashSet<(u64, u16)>,
    bodies: HashMap<u64, Arc<[u8]>>,
    /// VMs that the scatter is not for, as they were late.
    late: HashSet<u16>,
    /// Targets whose reports no longer count.
    out_of_scatter: HashSet<u16>,
    sockets: Vec<bool>,
    reported_end: Vec<bool>,
    finished: bool,
    load_us_max: u64,
    targets: u16,
}

struct Set {
    key: [u8; 32],
    group: Option<SocketAddr>,
    members: Vec<u16>,
    multicast: SealKey,
    probe: SealKey,
    relay: SealKey,
    unicast: HashMap<u16, SealKey>,
}

impl Set {
    fn new(number: u16, members: Vec<u16>, group: Option<SocketAddr>) -> Self {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        // What is for one target alone is sealed with its own keys.
        let shared = members.len() > 1;
        let unicast = members.iter().filter(|_| shared);
        let unicast = unicast.map(|to| (*to, SealKey::new(&key, Channel::unicast(*to)))).collect();
        let (multicast, probe) = (Channel::MULTICAST, Channel::PROBE);
        let (multicast, probe) = (SealKey::new(&key, multicast), SealKey::new(&key, probe));
        let relay = SealKey::new(&key, Channel::RELAY);
        Set { key, group, multicast, probe, relay, unicast, members }
    }
}

/// Streams get new keys often.
const REKEY_BYTES: u64 = 20_000;

fn own_set(target: u16) -> u16 {
    0x1000 + target
}

impl Source {
    pub fn new(plan: &Plan, keys: &SessionKeys, rng: &mut Rng) -> Self {
        let memory = |vm: u16| plan.memory(vm, rng);
        let memories: Vec<_> = (0..plan.vms).map(memory).collect();
        let qemu = |(vm, memory): (usize, _)| SourceQemu::new(memory, plan.dirty_rates[vm], !plan.paused[vm]);
        let qemus: Vec<SourceQemu> = memories.into_iter().enumerate().map(qemu).collect();
        let contents = collect(&qemus, keys);
        let placement: Vec<_> = (0..plan.vms).map(|vm| Some(TargetId(plan.target_of(vm) as u8))).collect();
        // As where a set has more contents than its keys last for.
        let contents_max = if plan.splits { 12 } else { SET_CONTENTS_MAX };
        let schedule = Schedule::split(&contents, &placement, contents_max);
        let multicast = schedule.multicast();
        let load =
            |set: &SetPlan| SetLoad { set: set.set, bytes: set.contents.len() as u64 * PAGE_SIZE as u64 };
        let loads: Vec<SetLoad> = multicast.iter().map(load).collect();
        let order = order_sets(&loads, plan.addresses);
        let config = SenderConfig { repair_window_bytes: plan.window_bytes, ..SenderConfig::default() };
        let mut sender = Sender::new(config, Time::ZERO);
        let mut sets = HashMap::new();
        let mut queues = FrameQueues::default();
        let mut own_keys = Vec::new();
        for target in 0..plan.targets {
            let set = Set::new(own_set(target), vec![target], None);
            let grant = SetGrant { set: own_set(target), key: set.key, group: None };
            let mut keys = OwnKeys::new(target, &grant).rekey_after(REKEY_BYTES);
            // What all its sets are granted with.
            keys.others_granted();
            own_keys.push(keys);
            sets.insert(own_set(target), set);
            sender.add_set(own_set(target), &[target], false);
            if plan.parity {
                sender.takes_parity(target);
            }
        }
        for (number, set) in schedule.sets.iter().enumerate() {
            let members: Vec<u16> = set.set.members().map(|target| u16::from(target.0)).collect();
            let own = if let [only] = members[..] { Some(own_set(only)) } else { None };
            let number = own.unwrap_or(number as u16);
            queues.add(number, set.frames(&contents), own.is_none() && !plan.relay);
            if own.is_none() {
                sender.add_set(number, &members, !plan.relay);
                let address = order.lists.iter().position(|list| list.contains(&usize::from(number)));
                let address = address.expect("every set has an address");
                let group = SocketAddr::from(([239, 0, 0, address as u8], 4000));
                sets.insert(number, Set::new(number, members, (!plan.relay).then_some(group)));
            }
        }
        let served = |at: &usize| AddressSet { number: *at as u16, members: multicast[*at].set };
        let lists = if plan.relay { &[][..] } else { &order.lists[..] };
        let lists_of_sets = lists.iter().map(|list| list.iter().map(served).collect());
        let mut addresses = Addresses::new(lists_of_sets, vec![SenderConfig::default().datagram_bytes]);
        let able = TargetSet((1 << plan.targets) - 1);
        if plan.trains {
            addresses.try_at(sender.rate(), able);
        }
        let mut hops = Hops::new(able, multicast.iter().map(|set| set.set));
        if plan.relay {
            hops.without_multicast(Time::ZERO);
        }
        let vms = qemus
            .iter()
            .enumerate()
            .map(|(vm, qemu)| SourceVm::new(vm as u16, &qemu.blocks, &keys.mac, &keys.digest));
        let specs = qemus
            .iter()
            .enumerate()
            .map(|(vm, qemu)| (vm as u16, plan.target_of(vm as u16), qemu.blocks.clone()));
        Source {
            session: SourceSession::new(specs, plan.streams_max),
            vms: vms.collect(),
            sender,
            scatterer: Scatterer::new(keys.mac.clone()),
            contents,
            queues,
            addresses,
            hops,
            planned_changes: order.joins_and_leaves(&loads),
            scattering: false,
            placement,
            encoder: Encoder::new(),
            compression: if plan.compress { Compression::Zstd(1) } else { Compression::None },
            sets,
            own_keys,
            rekeys: 0,
            acked: HashSet::new(),
            bodies: HashMap::new(),
            late: HashSet::new(),
            out_of_scatter: HashSet::new(),
            sockets: vec![false; qemus.len()],
            reported_end: vec![false; qemus.len()],
            qemus,
            finished: false,
            load_us_max: plan.load_us_max,
            targets: plan.targets,
        }
    }

    /// A target's receiver; it is granted sets by [`Source::prepare`].
    pub fn receiver_for(&self, target: u16) -> Receiver {
        let config = ReceiverConfig { session: SESSION_TAG, target, ..ReceiverConfig::default() };
        Receiver::new(config, Time::ZERO)
    }

    /// What the target is a member of, and nothing else.
    fn grants(&self, target: u16) -> Vec<SetGrant> {
        let member = |(_, set): &(&u16, &Set)| set.members.contains(&target);
        let grant = |(number, set): (&u16, &Set)| SetGrant { set: *number, key: set.key, group: set.group };
        self.sets.iter().filter(member).map(grant).collect()
    }

    pub fn prepare(&mut self, net: &mut Net) {
        for target in 0..self.targets {
            net.control_to_target(target, Message::Grant(self.grants(target)));
        }
        for (vm, qemu) in self.qemus.iter().enumerate() {
            let vm = vm as u16;
            let spec = VmSpec {
                hardware: Default::default(),
                vm,
                uuid: [vm as u8; 16],
                name: format!("vm{vm}"),
                guest_file: String::new(),
                machine: "pc".into(),
                blocks: qemu.blocks.clone(),
                paused: !qemu.running,
            };
            let target = self.session.target(vm).expect("every VM has one");
            net.control_to_target(target, Message::Prepare(spec));
        }
    }

    pub fn counts(&self, vm: u16) -> RecordCounts {
        self.vms[usize::from(vm)].counts()
    }

    pub fn describe(&self) -> String {
        let state = |(vm, qemu): (usize, &SourceQemu)| {
            let bytes = self.vms[vm].in_flight_bytes();
            format!(
                "VM {vm}: {} pages dirty, {:?}, {bytes} bytes in flight; ",
                qemu.dirty_pages(),
                qemu.migration
            )
        };
        let states: String = self.qemus.iter().enumerate().map(state).collect();
        describe(&self.session, self.qemus.len() as u16) + &states
    }

    pub fn control(&mut self, net: &mut Net, target: u16, message: Message) {
        match message {
            Message::Report(_) if self.out_of_scatter.contains(&target) => {}
            Message::Report(report) => {
                self.sender.on_report(target, &report, net.now).expect("an honest target")
            }
            Message::LinkCounters(counters) => self.sender.on_link_counters(target, &counters, net.now),
            Message::Written { vm, next } => {
                self.vms[usize::from(vm)].written(next).expect("an honest target");
            }
            Message::Joined { set, error } => self.addresses.joined(net.now, target, set, error),
            Message::Heard { set } => self.addresses.heard(target, set),
            Message::TrainCounted { set, datagrams } => self.addresses.counted(target, set, datagrams),
            Message::Hopped { target: to, error } => {
                self.hops.answered(target, to, error.is_none(), &mut self.sender);
            }
            Message::Granted => self.own_keys[usize::from(target)].confirmed(),
            Message::ReturnPath { .. } | Message::Pong(_) => {}
            message => self.session.message(target, message).expect("an honest target"),
        }
    }

    pub fn target_lost(&mut self, net: &Net, target: u16) {
        self.falls_behind(net, target);
        self.session.target_lost(target, "the host died");
    }

    pub fn falls_behind(&mut self, net: &Net, target: u16) {
        self.out_of_scatter.insert(target);
        self.sender.remove_target(target, net.now);
        self.addresses.remove_target(target);
        self.hops.remove_target(target);
    }

    pub fn own_set(&self, target: u16) -> u16 {
        own_set(target)
    }

    pub fn journaled(&mut self, vm: u16, step: SourceStep) {
        self.session.journaled(vm, step);
    }

    pub fn shut_arrives(&mut self, net: &mut Net, vm: u16) {
        if self.qemus[usize::from(vm)].shut() {
            let span = net.delay();
            net.after(span, Event::CompletedSeen(vm));
        }
    }

    /// A millisecond of every QEMU and of the scatter.
    pub fn tick(&mut self, net: &mut Net) {
        for vm in 0..self.qemus.len() {
            self.qemus[vm].tick(&mut net.rng, 128 * 1024);
            self.send_stream(net, vm);
            let state = &mut self.vms[vm];
            let room = IN_FLIGHT.saturating_sub(state.in_flight_bytes());
            if !self.sockets[vm] || room == 0 {
                continue;
            }
            let bytes = self.qemus[vm].read(room.min(state.trickle_room()));
            if let Err(error) = state.input(&bytes) {
                self.session.failed(vm as u16, error.to_string());
                continue;
            }
            state.flush();
            if state.is_held() && state.head_written() {
                self.session.held(vm as u16);
            }
            if let Some(digest) =
                state.final_digest().filter(|_| !std::mem::replace(&mut self.reported_end[vm], true))
            {
                self.session.ram_ended(vm as u16, digest.clone());
            }
            self.send_stream(net, vm);
        }
        self.scatter(net);
    }

    fn send_stream(&mut self, net: &mut Net, vm: usize) {
        let Some(target) = self.session.target(vm as u16) else { return };
        while let Some(mut frame) = self.vms[vm].poll_frame() {
            let body = frame.body.finish(self.compression, &mut self.encoder);
            let mut header = PieceHeader::whole(PieceKind::Stream, 0, SESSION_TAG, frame.seq, body.len());
            header.vm = frame.vm;
            let mut piece = Vec::new();
            let keys = &mut self.own_keys[usize::from(target)];
            keys.seal_stream(&header, &body, &mut piece).unwrap();
            if keys.is_rekey_due() {
                self.rekeys += 1;
                let mut key = [1; 32];
                key[..8].copy_from_slice(&self.rekeys.to_be_bytes());
                net.control_to_target(target, Message::Grant(vec![keys.rekey(key)]));
            }
            net.tcp(target, piece);
        }
    }

    fn scatter(&mut self, net: &mut Net) {
        self.change_members(net);
        self.connect(net);
        if self.scattering && !self.hops.is_awaited(net.now) {
            self.fill_window();
        }
        while let Some(transmit) = self.sender.poll_transmit(net.now) {
            let set = self.sets.get_mut(&transmit.set).unwrap();
            for (header, payload) in transmit.pieces(SESSION_TAG) {
                let mut piece = Vec::new();
                match &transmit.path {
                    Path::Multicast { set: number } => {
                        seal_piece(&mut set.multicast, &header, payload, &mut piece).unwrap();
                        let group = set.group.expect("it is served by an address");
                        let progress = self.sender.multicast_progress(*number);
                        net.assert_joined(group, progress.waiting);
                        net.multicast(group, &piece);
                    }
                    Path::Unicast { target } => {
                        match set.unicast.get_mut(target) {
                            Some(key) => drop(seal_piece(key, &header, payload, &mut piece).unwrap()),
                            None => {
                                self.own_keys[usize::from(*target)]
                                    .seal(&header, payload, &mut piece)
                                    .unwrap();
                            }
                        }
                        net.tcp(*target, piece);
                    }
                    Path::Relay { chain } => {
                        seal_piece(&mut set.relay, &header, payload, &mut piece).unwrap();
                        net.tcp(chain[0], relay::wrap(&chain[1..], &piece));
                    }
                }
            }
        }
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Acked { frame, target } => drop(self.acked.insert((frame, target))),
                SenderEvent::Announce { target, spans } => {
                    net.control_to_target(target, Message::Sent(spans))
                }
                SenderEvent::Settled { frame } => drop(self.bodies.remove(&frame)),
                SenderEvent::Unheard { target } => self.addresses.unheard(target),
                SenderEvent::Throttled { bytes_per_s } => self.addresses.throttled(bytes_per_s),
                SenderEvent::Expelled { target, .. } => {
                    self.out_of_scatter.insert(target);
                    self.addresses.remove_target(target);
                    self.hops.remove_target(target);
                }
            }
        }
        if self.scattering && self.addresses.is_over() && self.queues.is_empty() && self.sender.is_idle() {
            self.scattering = false;
            self.session.scattered();
        }
    }

    fn change_members(&mut self, net: &mut Net) {
        if self.scattering {
            self.queues.mark_exhausted(&mut self.addresses);
        }
        self.addresses.advance(net.now, &mut self.sender);
        while let Some(action) = self.addresses.poll_action() {
            match action {
                AddressAction::Send { target, message } => net.control_to_target(target, message),
                AddressAction::Unreached { target, .. } => self.hops.unreached(net.now, target),
            }
        }
        for (number, _) in self.addresses.probes(net.now) {
            self.probe(net, number, 0);
        }
        while let Some(burst) = self.addresses.train(net.now) {
            (0..burst.datagrams).for_each(|_| self.probe(net, burst.set, PROBE_OF_TRAIN));
        }
    }

    fn probe(&mut self, net: &mut Net, number: u16, frame: u64) {
        let set = self.sets.get_mut(&number).expect("it is a set");
        let header = PieceHeader::whole(PieceKind::Probe, number, SESSION_TAG, frame, 16);
        let mut piece = Vec::new();
        seal_piece(&mut set.probe, &header, &[0; 16], &mut piece).unwrap();
        net.multicast(set.group.expect("it is served by an address"), &piece);
    }

    /// Has targets connect to each other, and what waits for that go.
    fn connect(&mut self, net: &mut Net) {
        while let Some((from, to)) = self.hops.poll_ask() {
            let header = PieceHeader::whole(PieceKind::DataHello, own_set(to), SESSION_TAG, 0, 1);
            let mut hello = Vec::new();
            self.own_keys[usize::from(to)].seal(&header, &[0], &mut hello).unwrap();
            let addr = SocketAddr::from(([10, 0, 0, to as u8], 7941));
            net.control_to_target(from, Message::Hop { target: to, addr, hello });
        }
        self.hops.advance(net.now, &mut self.sender);
    }

    fn fill_window(&mut self) {
        while self.sender.window_free() > 300 * 1024 || self.sender.is_idle() {
            let Some((set, plan)) = self.queues.take(&self.addresses) else { break };
            let (session, qemus, late) = (&self.session, &self.qemus, &self.late);
            let live = |vm| session.stage(vm) == Some(VmStage::Held) && !late.contains(&vm);
            let read = |addr: PageAddr, out: &mut [u8]| {
                let block = &qemus[usize::from(addr.vm)].memory[usize::from(addr.block)];
                let start = addr.page as usize * PAGE_SIZE;
                out.copy_from_slice(&block[start..start + PAGE_SIZE]);
                true
            };
            let frame = self.scatterer.read_frame(&plan, &self.contents, &self.placement, live, read);
            self.queues.given(set);
            let Some(frame) = frame else { continue };
            for (mac, addrs, _) in frame.contents() {
                for addr in addrs {
                    self.vms[usize::from(addr.vm)].scattered(addr.block, addr.page, mac, frame.number);
                }
            }
            let contents = frame.contents().map(|(_, addrs, page)| (addrs, page));
            let body = self.encoder.scatter(contents, self.compression).unwrap();
            self.sender.push(frame.number, set, body.into());
        }
    }

    /// Does what the session wants; `true` once it has finished.
    pub fn step(&mut self, net: &mut Net) -> bool {
        while let Some(action) = self.session.poll_action() {
            self.perform(net, action);
        }
        self.finished
    }

    fn perform(&mut self, net: &mut Net, action: SourceAction) {
        match action {
            SourceAction::Send { target, message } => net.control_to_target(target, message),
            SourceAction::Migrate { vm } => {
                self.sockets[usize::from(vm)] = true;
                self.qemus[usize::from(vm)].migrate();
            }
            SourceAction::LeaveScatter { vm } => {
                assert!(!self.scattering, "VM {vm} leaves a scatter that has begun");
                self.late.insert(vm);
            }
            SourceAction::Scatter => self.scattering = true,
            SourceAction::Settle { vm } => {
                let target = self.session.target(vm).expect("every VM has one");
                let acked = &self.acked;
                self.vms[usize::from(vm)].scatter_closed(|frame| acked.contains(&(frame, target)));
            }
            SourceAction::Stream { vm } => {
                self.qemus[usize::from(vm)].held = false;
                if let Err(error) = self.vms[usize::from(vm)].release() {
                    self.session.failed(vm, error.to_string());
                }
            }
            SourceAction::Journal { vm, step } => {
                let span = net.delay();
                net.after(span, Event::SourceJournal(vm, step));
            }
            SourceAction::ReleaseShut { vm } => {
                let span = net.delay();
                net.after(span, Event::ShutArrives(vm));
            }
            SourceAction::CloseSocket { vm } => {
                self.sockets[usize::from(vm)] = false;
                self.qemus[usize::from(vm)].close_socket();
            }
            SourceAction::ResumeSource { vm } => self.qemus[usize::from(vm)].cont(),
            SourceAction::Quit { vm } => {
                self.qemus[usize::from(vm)].quit();
                self.session.quitted(vm, true);
            }
            SourceAction::Finished => self.finished = true,
        }
    }

    /// A target's driver: here because it needs the source's list of blocks for a new QEMU.
    pub fn perform_at_target(
        &mut self,
        net: &mut Net,
        target: u16,
        action: TargetAction,
        qemus: &mut BTreeMap<u16, TargetQemu>,
        busy: &mut HashMap<u16, Time>,
    ) {
        match action {
            TargetAction::Send(message) => net.control_to_source(target, message),
            TargetAction::Join { set, group } => {
                let span = net.delay();
                net.after(span, Event::Joined(target, set, group));
            }
            TargetAction::Leave { group } => net.leave(target, group),
            TargetAction::Connect { target: to, hello, .. } => {
                let span = net.delay();
                net.after(span, Event::HopOpened(target, to, hello));
            }
            TargetAction::PassOn { target: to, bytes } => net.pass_on(target, to, bytes),
            TargetAction::Start(spec) => {
                qemus.insert(spec.vm, TargetQemu::new(&spec.blocks, &mut net.rng));
                let slow =
                    net.slow_twin.filter(|(vm, _)| *vm == spec.vm).map_or(Duration::ZERO, |(_, span)| span);
                let span = net.delay() + slow;
                net.after(span, Event::Started(target, spec.vm));
            }
            TargetAction::Write { vm, output } => {
                let until = busy.entry(vm).or_default();
                *until = (*until).max(net.now) + Duration::from_micros(1 + net.rng.below(self.load_us_max));
                let span = until.since(net.now);
                net.after(span, Event::QemuWrites(target, vm, output));
            }
            TargetAction::Journal { vm, step } => {
                let span = net.delay();
                net.after(span, Event::TargetJournal(target, vm, step));
            }
            TargetAction::Resume { vm, cont } => {
                let qemu = qemus.get_mut(&vm).expect("it was started");
                qemu.running = cont && !qemu.gone;
                let resumed = net.now.0;
                net.after(Duration::ZERO, Event::Resumed(target, vm, resumed));
            }
            TargetAction::Kill { vm } => {
                if let Some(qemu) = qemus.get_mut(&vm) {
                    qemu.kill();
                }
            }
            TargetAction::Forget { .. } | TargetAction::Finished => {}
        }
    }
}

fn collect(qemus: &[SourceQemu], keys: &SessionKeys) -> Contents {
    let pages = |bytes: &Vec<u8>| (bytes.len() / PAGE_SIZE) as u32;
    let blocks = |qemu: &SourceQemu| (0..).zip(qemu.memory.iter().map(pages)).collect();
    let space = PageSpace::new(&qemus.iter().map(blocks).collect::<Vec<_>>()).expect("a small session");
    let mut runs = Vec::new();
    let mut builder = RunBuilder::new();
    for (vm, qemu) in (0..).zip(qemus) {
        for (block, bytes) in (0..).zip(&qemu.memory) {
            let contents = (0..).zip(bytes.chunks_exact(PAGE_SIZE));
            for (page, content) in contents.filter(|(_, content)| !is_zero(content)) {
                let number = space.number(PageAddr { vm, block, page }).expect("a page of the session");
                runs.extend(builder.push(keys.mac.mac(content), number));
            }
        }
    }
    runs.extend(builder.finish());
    Contents::from_records(space, Records::new(runs))
}
