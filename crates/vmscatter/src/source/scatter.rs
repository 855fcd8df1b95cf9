//! The scatter: one thread that reads shared contents again, sends them at the pace that core's sender finds, and
//! settles what each VM's target holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender as Queue, unbounded};
use tokio::sync::mpsc::UnboundedSender;
use vmscatter_core::index::Contents;
use vmscatter_core::limits::FRAME_BODY_BYTES_MAX;
use vmscatter_core::page::PageAddr;
use vmscatter_core::placement::{TargetId, TargetSet};
use vmscatter_core::schedule::{FramePlan, Schedule};
use vmscatter_core::session::{ScatterFrame, Scatterer, SessionKeys};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Path, Sender, SenderConfig, SenderEvent, Transmit};
use vmscatter_core::wire::control::{Message, Report, Uuid};
use vmscatter_core::wire::piece::{PieceHeader, session_tag};

use super::actor::Event;
use super::encode::EncodePool;
use super::link::TargetLink;
use super::probe::Probing;
use super::stream::Stream;
use crate::net::outlet::Outlet;
use crate::net::udp::MulticastSender;
use crate::qemu::memory::GuestMemory;
use crate::report::outcome::ScatterOutcome;

/// The thread looks up at least this often while there is something to send.
const LOOK_UP: Duration = Duration::from_millis(5);
/// Frames that are being encoded at once.
const ENCODING_MAX: usize = 16;

/// A target set of several members, as it is granted.
#[derive(Clone, Debug)]
pub(super) struct SetLink {
    /// Its number on the wire.
    pub(super) number: u16,
    pub(super) set: TargetSet,
    pub(super) key: [u8; 32],
    /// Its group; `None` beyond the limit of groups: its frames go by TCP.
    pub(super) group: Option<SocketAddr>,
}

/// What the thread works with.
pub(super) struct Setup {
    pub(super) keys: SessionKeys,
    pub(super) session: Uuid,
    pub(super) contents: Arc<Contents>,
    pub(super) schedule: Schedule,
    pub(super) placement: Vec<Option<TargetId>>,
    pub(super) sets: Vec<SetLink>,
    pub(super) links: Vec<Arc<TargetLink>>,
    pub(super) streams: Vec<Arc<Stream>>,
    pub(super) memories: Vec<Arc<GuestMemory>>,
    pub(super) encoders: Arc<EncodePool>,
    pub(super) bandwidth: Option<u64>,
    /// What the link is taken to carry until it has been measured.
    pub(super) assumed_bytes_per_s: f64,
    pub(super) events: UnboundedSender<Event>,
}

enum Order {
    Start,
    Report(u16, Report),
    /// A probe on this set's group has reached this target.
    Heard(u16, u16),
    RemoveTarget(u16),
    RemoveVm(u16),
    Settle(u16, u16, Arc<Stream>),
    Encoded(u64, u16, Vec<u8>),
    Stop,
}

#[derive(Debug, Default)]
struct Shared {
    outcome: Mutex<ScatterOutcome>,
    /// Bytes a second that the link was last seen to carry; zero before it was measured.
    link_bytes_per_s: AtomicU64,
}

/// The thread, as the session sees it.
#[derive(Debug)]
pub(super) struct ScatterThread {
    orders: Queue<Order>,
    shared: Arc<Shared>,
    /// What the link is taken to carry until it has been measured.
    assumed_bytes_per_s: f64,
}

impl ScatterThread {
    /// Starts the thread; it waits for [`ScatterThread::start`].
    ///
    /// # Errors
    /// There is no socket or thread to be had.
    pub(super) fn new(setup: Setup) -> std::io::Result<ScatterThread> {
        let (orders, queue) = unbounded();
        let shared = Arc::new(Shared::default());
        let assumed_bytes_per_s = setup.assumed_bytes_per_s;
        let mut work = Work::new(setup, orders.clone(), queue, shared.clone())?;
        std::thread::Builder::new().name("scatter".into()).spawn(move || work.run())?;
        Ok(ScatterThread { orders, shared, assumed_bytes_per_s })
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    pub(super) fn start(&self) {
        self.order(Order::Start);
    }

    pub(super) fn report(&self, target: u16, report: Report) {
        self.order(Order::Report(target, report));
    }

    /// A probe on this set's group has reached this target.
    pub(super) fn heard(&self, set: u16, target: u16) {
        self.order(Order::Heard(set, target));
    }

    pub(super) fn remove_target(&self, target: u16) {
        self.order(Order::RemoveTarget(target));
    }

    pub(super) fn remove_vm(&self, vm: u16) {
        self.order(Order::RemoveVm(vm));
    }

    /// Settles what `vm` holds at `target`, after every report that came before; then [`Event::Settled`].
    pub(super) fn settle(&self, vm: u16, target: u16, stream: Arc<Stream>) {
        self.order(Order::Settle(vm, target, stream));
    }

    pub(super) fn stop(&self) {
        self.order(Order::Stop);
    }

    pub(super) fn counters(&self) -> ScatterOutcome {
        self.shared.outcome.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// What the source's link carries, in bytes a second.
    pub(super) fn link_bytes_per_s(&self) -> f64 {
        match self.shared.link_bytes_per_s.load(Relaxed) {
            0 => self.assumed_bytes_per_s,
            measured => measured as f64,
        }
    }
}

struct Work {
    setup: Setup,
    queue: Receiver<Order>,
    orders: Queue<Order>,
    shared: Arc<Shared>,
    start: Instant,
    sender: Sender,
    datagram_bytes: u64,
    scatterer: Scatterer,
    outlet: Outlet,
    numbers: HashMap<TargetSet, u16>,
    plans: std::vec::IntoIter<FramePlan>,
    plans_over: bool,
    live: Vec<bool>,
    /// Frames whose encoding is under way or that wait for an earlier one, by number.
    encoded: BTreeMap<u64, Option<(u16, Vec<u8>)>>,
    /// Targets that acknowledged each frame, as bits.
    acked: HashMap<u64, u128>,
    /// Targets that have left the scatter, as bits.
    left: u128,
    running: bool,
    stopped: bool,
    told: Instant,
    probing: Option<Probing>,
}

impl Work {
    fn new(
        setup: Setup,
        orders: Queue<Order>,
        queue: Receiver<Order>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Work> {
        let mtu = setup.links.iter().map(|link| link.mtu()).min().unwrap_or(1500).max(1280);
        let grouped = setup.sets.iter().any(|set| set.group.is_some());
        let local = setup.links.first().map(|link| link.local_addr().ip());
        let socket = match local.filter(|_| grouped) {
            Some(local) => Some(MulticastSender::bind(local)?),
            None => None,
        };
        let ip_udp_bytes = if local.is_some_and(|ip| ip.is_ipv6()) { 48 } else { 28 };
        let datagram_bytes = mtu as usize - ip_udp_bytes;
        let config = SenderConfig { bandwidth: setup.bandwidth, datagram_bytes, ..SenderConfig::default() };
        let mut work = Work {
            sender: Sender::new(config, Time::ZERO),
            datagram_bytes: datagram_bytes as u64,
            scatterer: Scatterer::new(setup.keys.mac.clone()),
            outlet: Outlet::new(session_tag(&setup.session), socket),
            numbers: HashMap::new(),
            plans: Vec::new().into_iter(),
            plans_over: false,
            live: vec![true; setup.streams.len()],
            encoded: BTreeMap::new(),
            acked: HashMap::new(),
            left: 0,
            running: false,
            stopped: false,
            told: Instant::now(),
            probing: None,
            start: Instant::now(),
            setup,
            queue,
            orders,
            shared,
        };
        work.add_sets();
        let grouped = |link: &&SetLink| work.outlet.group(link.number).is_some();
        work.probing = Some(Probing::new(work.setup.sets.iter().filter(grouped), Instant::now()));
        Ok(work)
    }

    /// Sends probes until every member has heard one; those that have not by the deadline are served over TCP.
    fn probe(&mut self) {
        let Some(mut probing) = self.probing.take().filter(|probing| !probing.is_over()) else { return };
        let now = Instant::now();
        if let Some(unreached) = probing.unreached(now) {
            let targets: HashSet<u16> = unreached.iter().map(|(_, target)| *target).collect();
            for (set, target) in unreached {
                self.sender.serve_by_unicast(set, target);
            }
            for target in targets {
                let _ = self.setup.events.send(Event::Unreached(target));
            }
            return;
        }
        for (set, piece) in probing.due(now, session_tag(&self.setup.session)) {
            self.outlet.send_datagram(set, &piece);
        }
        self.probing = Some(probing);
    }

    /// The granted sets, and for contents of one target that target's own.
    fn add_sets(&mut self) {
        for link in &self.setup.sets {
            let members: Vec<u16> = link.set.members().map(|target| u16::from(target.0)).collect();
            let grouped = self.outlet.add_set(link.number, &link.key, &members, link.group);
            self.sender.add_set(link.number, &members, grouped);
            self.numbers.insert(link.set, link.number);
        }
        for target in 0..self.setup.links.len() as u16 {
            self.sender.add_set(target, &[target], false);
            self.numbers.insert(TargetSet::single(TargetId(target as u8)), target);
        }
    }

    fn now(&self) -> Time {
        Time(self.start.elapsed().as_micros() as u64)
    }

    fn run(&mut self) {
        while !self.stopped {
            self.wait();
            self.probe();
            if self.running && self.probing.is_none() {
                self.fill();
            }
            self.transmit();
            self.sender_events();
            self.tell();
            if self.running && self.plans_over && self.encoded.is_empty() && self.sender.is_idle() {
                self.running = false;
                let _ = self.setup.events.send(Event::Scattered);
            }
        }
    }

    /// Orders, for as long as there is nothing to send.
    fn wait(&mut self) {
        let now = self.now();
        let at = self.sender.poll_timeout();
        let span = match at {
            Some(at) => at.since(now).min(LOOK_UP),
            None if self.running || self.probing.is_some() => LOOK_UP,
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
                let plans: Vec<FramePlan> = self
                    .setup
                    .schedule
                    .sets
                    .iter()
                    .flat_map(|set| set.frames(&self.setup.contents))
                    .collect();
                self.plans = plans.into_iter();
                self.running = true;
            }
            // One that has left the scatter goes on acknowledging what was under way; that no longer counts.
            Order::Report(target, _) if self.left & (1 << target) != 0 => {}
            Order::Report(target, report) => {
                if let Err(error) = self.sender.on_report(target, &report, now) {
                    let _ = self.setup.events.send(Event::TargetLost(target, error.to_string()));
                    self.remove_target(target);
                }
                self.sender_events();
            }
            Order::Heard(set, target) => {
                if let Some(probing) = &mut self.probing {
                    probing.heard(set, target);
                }
            }
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
    }

    /// Reads and encodes frames while the repair window has room.
    fn fill(&mut self) {
        while self.encoded.len() < ENCODING_MAX
            && self.sender.window_free() > (self.encoded.len() + 1) * FRAME_BODY_BYTES_MAX
        {
            let Some(plan) = self.plans.next() else {
                self.plans_over = true;
                return;
            };
            let (live, memories) = (&self.live, &self.setup.memories);
            let read = |addr: PageAddr, out: &mut [u8]| {
                let memory = &memories[usize::from(addr.vm)];
                memory.read(usize::from(addr.block), addr.page, out).is_ok()
            };
            let is_live = |vm: u16| live[usize::from(vm)];
            let (contents, placement) = (&self.setup.contents, &self.setup.placement);
            if let Some(frame) = self.scatterer.read_frame(&plan, contents, placement, is_live, read) {
                self.encode(frame);
            }
        }
    }

    fn encode(&mut self, frame: ScatterFrame) {
        let Some(set) = self.numbers.get(&frame.set).copied() else { return };
        let mut addresses = 0;
        for (mac, addrs, _) in frame.contents() {
            addresses += addrs.len() as u64;
            for addr in addrs {
                let stream = &self.setup.streams[usize::from(addr.vm)];
                stream.with(|stream| stream.scattered(addr.block, addr.page, mac, frame.number));
            }
        }
        {
            let mut outcome = self.shared.outcome.lock().unwrap_or_else(|e| e.into_inner());
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
            if let Some((set, body)) = entry.remove().filter(|(_, body)| !body.is_empty()) {
                self.sender.push(number, set, body.into());
            }
        }
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.sender.poll_transmit(self.now()) {
            match transmit.path {
                Path::Multicast { .. } => self.multicast(&transmit),
                Path::Unicast { target } => self.unicast(&transmit, target),
            }
        }
    }

    fn multicast(&mut self, transmit: &Transmit) {
        let bytes = self.outlet.multicast(transmit);
        self.shared.outcome.lock().unwrap_or_else(|e| e.into_inner()).multicast_bytes += bytes as u64;
    }

    fn unicast(&mut self, transmit: &Transmit, target: u16) {
        let link = &self.setup.links[usize::from(target)];
        // A target's own set is sealed by its link, which does so for streams too.
        let own = |header: &PieceHeader, payload: &[u8], out: &mut Vec<u8>| link.seal(header, payload, out);
        let Ok(pieces) = self.outlet.seal_unicast(transmit, target, own) else {
            return tracing::error!("a set's key is used up");
        };
        let bytes: usize = pieces.iter().map(Vec::len).sum();
        self.shared.outcome.lock().unwrap_or_else(|e| e.into_inner()).unicast_bytes += bytes as u64;
        pieces.into_iter().for_each(|piece| link.send_scatter(piece));
    }

    fn sender_events(&mut self) {
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Acked { frame, target } => *self.acked.entry(frame).or_default() |= 1 << target,
                SenderEvent::Announce { target, spans } => {
                    self.setup.links[usize::from(target)].send(Message::Sent(spans));
                }
                SenderEvent::Expelled { target } => {
                    self.left |= 1 << target;
                    tracing::warn!(
                        target = self.setup.links[usize::from(target)].name(),
                        "acknowledges nothing: it leaves the scatter, and gets its pages by the streams"
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
                plans_over = self.plans_over,
                encoding = self.encoded.len(),
                window_free = self.sender.window_free(),
                rate,
                counters = ?self.sender.counters(),
                "scatter"
            );
        }
        let mut outcome = self.shared.outcome.lock().unwrap_or_else(|e| e.into_inner());
        // A frame's last piece is shorter; no account is kept of which pieces were repaired.
        outcome.repair_bytes = self.sender.counters().multicast_repairs * self.datagram_bytes;
        outcome.sets = self.setup.sets.len() as u32;
    }
}
