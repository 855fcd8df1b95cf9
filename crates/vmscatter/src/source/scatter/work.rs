//! The scatter's thread: it waits, feeds core's state machines, and does what they say.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender as Queue};
use vmscatter_core::limits::FRAME_BODY_BYTES_MAX;
use vmscatter_core::page::PageAddr;
use vmscatter_core::placement::TargetId;
use vmscatter_core::session::{AddressAction, Addresses, FrameQueues, Hops, ScatterFrame, Scatterer};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{
    Expulsion, Path, Sender, SenderConfig, SenderEvent, TRANSMITS_MAX, Transmit,
};
use vmscatter_core::wire::control::Message;
use vmscatter_core::wire::piece::{PieceHeader, session_tag};

use super::{Order, Setup, Shared};
use crate::agent::protocol::Transport;
use crate::net::outlet::Outlet;
use crate::net::udp::{self, MulticastSender};
use crate::source::actor::Event;
use crate::source::link::{datagram_bytes, local_addr};

/// The thread looks up at least this often while there is something to send.
const LOOK_UP: Duration = Duration::from_millis(5);
/// Frames that are being encoded at once.
const ENCODING_MAX: usize = 16;

pub(super) struct Work {
    setup: Setup,
    queue: Receiver<Order>,
    orders: Queue<Order>,
    shared: Arc<Shared>,
    start: Instant,
    sender: Sender,
    scatterer: Scatterer,
    addresses: Addresses,
    hops: Hops,
    frames: FrameQueues,
    outlet: Outlet,
    datagram_bytes: usize,
    live: Vec<bool>,
    /// Frames whose encoding is under way or that wait for an earlier one, by number.
    encoded: BTreeMap<u64, Option<(u16, Vec<u8>)>>,
    /// Targets that acknowledged each frame, as bits.
    acked: HashMap<u64, u128>,
    /// Targets that have left the scatter, as bits.
    left: u128,
    running: bool,
    /// The last look at what could leave ended with as much as is sent in a row: there may be more.
    has_more: bool,
    began: Option<Instant>,
    stopped: bool,
    told: Instant,
}

/// Hops among those that can pass frames on, of which nothing is asked yet.
fn hops(setup: &Setup) -> Hops {
    let able = (0..).zip(&setup.links).filter(|(_, link)| link.can_relay());
    Hops::new(
        able.map(|(target, _)| TargetId(target)).collect(),
        setup.groups.sets.iter().map(|link| link.set),
    )
}

impl Work {
    pub(super) fn new(
        setup: Setup,
        orders: Queue<Order>,
        queue: Receiver<Order>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Work> {
        let local = local_addr(&setup.links);
        let socket = match setup.groups.lists.is_empty() {
            false => Some(MulticastSender::bind(local, setup.out.clone())?),
            true => None,
        };
        let datagram_bytes = datagram_bytes(&setup.links);
        let config = SenderConfig {
            bandwidth: setup.bandwidth,
            datagram_bytes,
            datagram_overhead_bytes: udp::datagram_overhead_bytes(local),
            ..SenderConfig::default()
        };
        let mut work = Work {
            sender: Sender::new(config, Time::ZERO),
            scatterer: Scatterer::new(setup.keys.mac.clone()),
            addresses: Addresses::new(
                setup.groups.lists.iter().cloned(),
                udp::shorter_datagrams(datagram_bytes, local),
            ),
            hops: hops(&setup),
            frames: FrameQueues::default(),
            outlet: Outlet::new(session_tag(&setup.session), socket),
            datagram_bytes,
            live: vec![true; setup.streams.len()],
            encoded: BTreeMap::new(),
            acked: HashMap::new(),
            left: 0,
            running: false,
            has_more: false,
            began: None,
            stopped: false,
            told: Instant::now(),
            start: Instant::now(),
            setup,
            queue,
            orders,
            shared,
        };
        work.add_sets();
        Ok(work)
    }

    /// The granted sets, and for contents of one target that target's own.
    fn add_sets(&mut self) {
        let Setup { groups, schedule, contents, .. } = &self.setup;
        for (link, plan) in groups.sets.iter().zip(schedule.multicast()) {
            let members: Vec<u16> = link.set.members().map(|target| u16::from(target.0)).collect();
            self.outlet.add_set(link.number, &link.key, &members, link.group);
            self.sender.add_set(link.number, &members, link.group.is_some());
            self.frames.add(link.number, plan.frames(contents), link.group.is_some());
        }
        for (target, link) in (0..).zip(&self.setup.links) {
            self.sender.add_set(target, &[target], false);
            if self.setup.parity && link.takes_parity() {
                self.sender.takes_parity(target);
            }
        }
        for plan in schedule.singles() {
            let Some(target) = plan.set.members().next() else { continue };
            self.frames.add(target.0.into(), plan.frames(contents), false);
        }
        match self.setup.transport {
            Transport::Relay => self.hops.without_multicast(self.now()),
            Transport::Auto => {
                let able = (0..).zip(&self.setup.links).filter(|(_, link)| link.counts_trains());
                let able = able.map(|(target, _)| TargetId(target)).collect();
                self.addresses.try_at(self.sender.rate(), able);
            }
            Transport::Multicast => {}
        }
        let mut outcome = self.shared.outcome();
        outcome.sets = self.setup.groups.sets.len() as u32;
        outcome.groups = self.setup.groups.lists.len() as u32;
        outcome.group_changes_planned = self.setup.groups.planned_changes;
    }

    fn now(&self) -> Time {
        Time(self.start.elapsed().as_micros() as u64)
    }

    pub(super) fn run(&mut self) {
        while !self.stopped {
            self.wait();
            self.change_members();
            self.connect();
            if self.running && !self.hops.is_awaited(self.now()) {
                self.fill();
            }
            self.transmit();
            self.sender_events();
            // What has left just now may let new members come.
            self.change_members();
            self.tell();
            if self.running && self.is_over() {
                self.running = false;
                let time = self.began.map_or(Duration::ZERO, |began| began.elapsed());
                self.shared.outcome().time_s = time.as_secs_f64();
                let _ = self.setup.events.send(Event::Scattered);
            }
        }
    }

    fn is_over(&self) -> bool {
        let all_pushed = self.frames.is_empty() && self.encoded.is_empty();
        all_pushed && self.sender.is_idle() && self.addresses.is_over()
    }

    /// Orders, for as long as there is nothing to send.
    fn wait(&mut self) {
        let now = self.now();
        let others = self.addresses.poll_timeout().into_iter().chain(self.hops.poll_timeout(now));
        let at = self.sender.poll_timeout().into_iter().chain(others).min();
        let span = match at {
            _ if self.has_more => Duration::ZERO,
            Some(at) => at.since(now).min(LOOK_UP),
            None if self.running => LOOK_UP,
            None => Duration::from_millis(100),
        };
        let first = if span.is_zero() { self.queue.try_recv().ok() } else { self.wait_for(span) };
        let Some(first) = first else { return };
        self.obey(first);
        while let Ok(order) = self.queue.try_recv() {
            self.obey(order);
        }
    }

    fn wait_for(&mut self, span: Duration) -> Option<Order> {
        match self.queue.recv_timeout(span) {
            Ok(order) => Some(order),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Order::Stop),
        }
    }

    fn obey(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::Start => {
                self.running = true;
                self.began = Some(Instant::now());
            }
            // One that has left the scatter goes on acknowledging what was under way; that no longer counts.
            Order::Report(target, ..) if self.left & (1 << target) != 0 => {}
            Order::Report(target, report, _room) => {
                if let Err(error) = self.sender.on_report(target, &report, now) {
                    let _ = self.setup.events.send(Event::TargetLost(target, error.to_string()));
                    self.remove_target(target);
                }
                self.sender_events();
            }
            Order::LinkCounters(target, counters, _room) => {
                self.sender.on_link_counters(target, &counters, now);
            }
            Order::Joined(target, set, error) => self.addresses.joined(now, target, set, error),
            Order::Heard(target, set) => self.addresses.heard(target, set),
            Order::Counted(target, set, datagrams) => {
                let name = self.setup.links[usize::from(target)].name();
                tracing::debug!(target = name, set, datagrams, "a train of probes was counted");
                self.addresses.counted(target, set, datagrams);
            }
            Order::Hopped(from, to, error) => self.hopped(from, to, error),
            Order::RemoveTarget(target) => self.remove_target(target),
            Order::RemoveVm(vm) => self.live[usize::from(vm)] = false,
            Order::Settle(vm, target, stream) => {
                let acked =
                    |frame| self.acked.get(&frame).is_some_and(|targets| targets & (1 << target) != 0);
                stream.with(|stream| stream.scatter_closed(acked));
                let _ = self.setup.events.send(Event::Settled(vm));
            }
            Order::Encoded(frame, set, body) => {
                self.encoded.insert(frame, Some((set, body)));
                self.push_encoded();
            }
            Order::Stop => self.stopped = true,
        }
    }

    fn remove_target(&mut self, target: u16) {
        self.left |= 1 << target;
        self.sender.remove_target(target, self.now());
        self.addresses.remove_target(target);
        self.hops.remove_target(target);
    }

    /// Has targets connect to each other where multicast does not reach them.
    fn connect(&mut self) {
        while let Some((from, to)) = self.hops.poll_ask() {
            let link = &self.setup.links[usize::from(to)];
            match link.hello() {
                Ok(hello) => {
                    let message = Message::Hop { target: to, addr: link.data_addr(), hello };
                    self.setup.links[usize::from(from)].send(message);
                }
                Err(error) => self.hopped(from, to, Some(error.to_string())),
            }
        }
        self.hops.advance(self.now(), &mut self.sender);
    }

    fn hopped(&mut self, from: u16, to: u16, error: Option<String>) {
        self.hops.answered(from, to, error.is_none(), &mut self.sender);
        if let Some(error) = error {
            let name = |target: u16| self.setup.links.get(usize::from(target)).map(|link| link.name());
            tracing::warn!(from = name(from), to = name(to), "can't pass frames on: {error}");
        }
    }

    /// Who joins and leaves the groups, and who hears what is sent there.
    fn change_members(&mut self) {
        let now = self.now();
        if self.running {
            self.frames.mark_exhausted(&mut self.addresses);
        }
        self.addresses.advance(now, &mut self.sender);
        while let Some(action) = self.addresses.poll_action() {
            match action {
                AddressAction::Send { target, message } => {
                    self.setup.links[usize::from(target)].send(message);
                }
                AddressAction::Unreached { target, error } => {
                    match self.setup.transport {
                        Transport::Multicast => self.sender.give_up_multicast([target]),
                        Transport::Auto | Transport::Relay => self.hops.unreached(now, target),
                    }
                    let _ = self.setup.events.send(Event::Unreached(target, error));
                }
            }
        }
        for (set, bytes) in self.addresses.probes(now) {
            self.outlet.probe(set, bytes);
        }
        while let Some(burst) = self.addresses.train(now) {
            self.outlet.train(&burst);
        }
    }

    /// Reads and encodes frames while the repair window has room.
    fn fill(&mut self) {
        while self.encoded.len() < ENCODING_MAX
            && self.sender.window_free() > (self.encoded.len() + 1) * FRAME_BODY_BYTES_MAX
        {
            let Some((set, plan)) = self.frames.take(&self.addresses) else { return };
            let (live, memories) = (&self.live, &self.setup.memories);
            let read = |addr: PageAddr, out: &mut [u8]| {
                let memory = &memories[usize::from(addr.vm)];
                memory.read(usize::from(addr.block), addr.page, out).is_ok()
            };
            let is_live = |vm: u16| live[usize::from(vm)];
            let (contents, placement) = (&self.setup.contents, &self.setup.placement);
            match self.scatterer.read_frame(&plan, contents, placement, is_live, read) {
                Some(frame) => self.encode(set, frame),
                None => self.frames.given(set),
            }
        }
    }

    fn encode(&mut self, set: u16, frame: ScatterFrame) {
        let mut addresses = 0;
        for (mac, addrs, _) in frame.contents() {
            addresses += addrs.len() as u64;
            for addr in addrs {
                let stream = &self.setup.streams[usize::from(addr.vm)];
                stream.with(|stream| stream.scattered(addr.block, addr.page, mac, frame.number));
            }
        }
        {
            let mut outcome = self.shared.outcome();
            outcome.frames += 1;
            outcome.contents += frame.len() as u64;
            outcome.addresses += addresses;
        }
        self.encoded.insert(frame.number, None);
        let orders = self.orders.clone();
        self.setup.encoders.submit(Box::new(move |encoder, compression| {
            let contents = frame.contents().map(|(_, addrs, page)| (addrs, page));
            // What the schedule cuts keeps every limit that a decoder has.
            let body = encoder.scatter(contents, compression).unwrap_or_default();
            let _ = orders.send(Order::Encoded(frame.number, set, body));
        }));
    }

    /// Frames are pushed in the order of their numbers, whichever thread was done first.
    fn push_encoded(&mut self) {
        while let Some(entry) = self.encoded.first_entry() {
            if entry.get().is_none() {
                return;
            }
            let number = *entry.key();
            let Some((set, body)) = entry.remove() else { continue };
            if !body.is_empty() {
                self.sender.push(number, set, body.into());
            }
            self.frames.given(set);
        }
    }

    fn transmit(&mut self) {
        self.has_more = false;
        for _ in 0..TRANSMITS_MAX {
            let Some(transmit) = self.sender.poll_transmit(self.now()) else { return };
            match &transmit.path {
                Path::Multicast { .. } => {
                    let sent = self.outlet.multicast(&transmit);
                    self.shared.outcome().multicast_bytes += sent.bytes as u64;
                    if sent.waited {
                        self.sender.waited();
                    }
                }
                Path::Unicast { target } => self.unicast(&transmit, *target),
                Path::Relay { chain } => self.relay(&transmit, chain),
            }
        }
        self.has_more = true;
    }

    fn unicast(&mut self, transmit: &Transmit, target: u16) {
        let link = &self.setup.links[usize::from(target)];
        // A target's own set is sealed by its link, which does so for streams too.
        let own = |header: &PieceHeader, payload: &[u8], out: &mut Vec<u8>| link.seal(header, payload, out);
        let Ok(pieces) = self.outlet.seal_unicast(transmit, target, own) else {
            return tracing::error!("a set's key is used up");
        };
        let bytes: usize = pieces.iter().map(Vec::len).sum();
        self.shared.outcome().unicast_bytes += bytes as u64;
        pieces.into_iter().for_each(|piece| link.send_scatter(piece));
    }

    /// To the first of a chain, which passes it on.
    fn relay(&mut self, transmit: &Transmit, chain: &[u16]) {
        let Some((first, hops)) = chain.split_first() else { return };
        let Ok(pieces) = self.outlet.seal_relay(transmit, hops) else {
            return tracing::error!("a set's key is used up");
        };
        let bytes: usize = pieces.iter().map(Vec::len).sum();
        self.shared.outcome().relay_bytes += bytes as u64;
        pieces.into_iter().for_each(|piece| self.setup.links[usize::from(*first)].send_scatter(piece));
    }

    fn sender_events(&mut self) {
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Acked { frame, target } => *self.acked.entry(frame).or_default() |= 1 << target,
                SenderEvent::Announce { target, spans } => {
                    self.setup.links[usize::from(target)].send(Message::Sent(spans));
                }
                SenderEvent::Unheard { target } => {
                    let name = self.setup.links[usize::from(target)].name();
                    tracing::warn!(target = name, "hears nothing of its multicast group any more");
                    self.addresses.unheard(target);
                }
                SenderEvent::Throttled { bytes_per_s } => {
                    tracing::warn!(bytes_per_s, "something on the way holds multicast back");
                    if self.setup.transport == Transport::Auto {
                        self.addresses.throttled(bytes_per_s);
                    }
                }
                SenderEvent::Expelled { target, why } => {
                    self.left |= 1 << target;
                    self.addresses.remove_target(target);
                    self.hops.remove_target(target);
                    let reason = match why {
                        Expulsion::Silent => "acknowledges nothing, or next to nothing",
                        Expulsion::Laggard => "receives a quarter or less of what the others do",
                    };
                    let target = self.setup.links[usize::from(target)].name();
                    tracing::warn!(
                        target,
                        "{reason}: it leaves the scatter, and gets its pages by the streams"
                    );
                }
                SenderEvent::Settled { .. } => {}
            }
        }
    }

    fn tell(&mut self) {
        let rate = self.sender.rate();
        if self.running && rate > 0 {
            self.shared.link_bytes_per_s.store(rate, Relaxed);
        }
        if self.running && self.told.elapsed() > Duration::from_secs(1) {
            self.told = Instant::now();
            tracing::debug!(
                ready = ?self.addresses.ready().collect::<Vec<_>>(),
                encoding = self.encoded.len(),
                window_free = self.sender.window_free(),
                rate,
                counters = ?self.sender.counters(),
                "scatter"
            );
        }
        let mut outcome = self.shared.outcome();
        // A frame's last piece is shorter; no account is kept of which pieces were repaired.
        let counters = self.sender.counters();
        let repairs = counters.multicast_repairs + counters.parity_pieces;
        outcome.repair_bytes = repairs * self.datagram_bytes as u64;
        (outcome.joins, outcome.leaves) = self.addresses.changes();
    }
}
