//! One sender, several receivers, and a network between them that loses, delays, doubles and reorders, all from one
//! seed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::time::Time;
use crate::transport::{
    Expulsion, Path, Receiver, ReceiverConfig, Sender, SenderConfig, SenderEvent, Transmit,
};
use crate::wire::control::{FrameSpan, LinkCounters, Report};
use crate::wire::piece::seal_piece;
use crate::wire::relay;
use crate::wire::seal::{Channel, OpenKey, SealKey};

pub(super) const SESSION: u64 = 0x5e55_1011;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn chance(&mut self, share: f64) -> bool {
        (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < share
    }
}

/// UDP's, IP's and Ethernet's.
const HEADER_BYTES: u64 = 42;
/// What a host's socket holds while nobody reads it.
const SOCKET_BYTES: usize = 4 << 20;

/// What the network does.
#[derive(Clone)]
pub(super) struct Net {
    /// Bytes a second of the source's link, and what queues in front of it before more is dropped.
    pub(super) rate: u64,
    pub(super) queue_bytes: u64,
    pub(super) delay: Duration,
    /// Added to each datagram's delay, drawn evenly.
    pub(super) jitter: Duration,
    pub(super) twice: f64,
    /// What is lost is lost with its whole transmission, as super-packets are.
    pub(super) lose_whole: bool,
    /// TCP gets one part in so many of a link's rate.
    pub(super) tcp_share: u64,
}

impl Default for Net {
    fn default() -> Self {
        let (delay, jitter) = (Duration::from_micros(150), Duration::ZERO);
        Net {
            rate: 125_000_000,
            queue_bytes: 4 << 20,
            delay,
            jitter,
            twice: 0.0,
            lose_whole: false,
            tcp_share: 10,
        }
    }
}

/// What keeps the source from sending as soon as the sender lets it.
#[derive(Clone, Copy)]
pub(super) enum Hold {
    Nothing,
    /// Its processor does no more than so many bytes a second.
    Processor(u64),
    /// Its socket has room for so many bytes that wait for the link; it waits for room.
    Socket(u64),
}

pub(super) struct Host {
    pub(super) receiver: Receiver,
    pub(super) loss: f64,
    /// Bytes a second of its own link, which it shares among multicast and TCP, with the queue before it as at the source.
    pub(super) rate: u64,
    link_until: Time,
    pub(super) dead: bool,
    /// No datagram reaches it.
    pub(super) deaf: bool,
    /// It has a processor for only so long of each so long: else datagrams wait in its socket, as far as there is room.
    pub(super) runs: Option<(Duration, Duration)>,
    socket_bytes: usize,
    /// How long its user takes to write a frame.
    pub(super) write: Duration,
    writing_until: Time,
    pub(super) frames: HashMap<u64, (u16, Vec<u8>)>,
    /// Scatter datagrams that were lost on the way to it.
    pub(super) lost: u64,
    /// Bytes that have come by its link, with headers.
    link_bytes: u64,
    /// Bytes that it has passed on to others.
    pub(super) passed_on: u64,
    tcp_until: Time,
}

enum Event {
    Datagram(u16, Vec<u8>),
    /// It has waited in the socket.
    Read(u16, Vec<u8>),
    Tcp(u16, Vec<u8>),
    Announce(u16, Vec<FrameSpan>),
    Report(u16, Report),
    LinkCounters(u16, LinkCounters),
    /// The first can't pass on to the second any more.
    HopLost(u16, u16),
    Written(u16, u64),
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) rng: Rng,
    pub(super) net: Net,
    pub(super) sender: Sender,
    pub(super) hosts: Vec<Host>,
    members: HashMap<u16, Vec<u16>>,
    keys: HashMap<(u16, Channel), SealKey>,
    events: BTreeMap<(Time, u64), Event>,
    serial: u64,
    pub(super) hold: Hold,
    /// Nothing leaves before.
    held_until: Time,
    link_until: Time,
    /// What was pushed.
    pub(super) bodies: HashMap<u64, (u16, Vec<u8>)>,
    /// How often each piece left by multicast.
    pub(super) multicast: HashMap<(u64, u16), u32>,
    pub(super) multicast_bytes: u64,
    /// Bytes that the source has given to TCP.
    pub(super) tcp_bytes: u64,
    /// Hops that swallow what they get, and whether the target before them says so.
    pub(super) cut: HashMap<(u16, u16), bool>,
    /// When the sender has said that multicast is throttled.
    pub(super) throttled: Option<Time>,
    /// Targets for which the sender has said that nothing reaches them, and when.
    pub(super) unheard: Vec<(u16, Time)>,
    /// Datagrams dropped before the source's link.
    pub(super) dropped: u64,
    pub(super) acked: HashSet<(u64, u16)>,
    pub(super) settled: HashSet<u64>,
    /// When the last piece of each open frame left by multicast for the first time, and how long after that the others settled.
    left: HashMap<u64, Time>,
    pub(super) settled_after: Vec<Duration>,
    /// Those no longer waited for: they leave their groups.
    pub(super) expelled: Vec<(u16, Expulsion)>,
}

pub(super) fn set_key(set: u16) -> [u8; 32] {
    let mut key = [3; 32];
    key[..2].copy_from_slice(&set.to_be_bytes());
    key
}

impl Host {
    /// Bytes that wait before its link.
    fn queued(&self, now: Time) -> u64 {
        (self.link_until.since(now).as_secs_f64() * self.rate as f64) as u64
    }

    /// Until so many more have passed its link.
    fn queue(&mut self, now: Time, bytes: u64) -> Duration {
        let span = Duration::from_nanos(bytes * 1_000_000_000 / self.rate);
        self.link_until = self.link_until.max(now) + span;
        self.link_until.since(now)
    }

    /// When the host has a processor next: now, if it has one.
    fn runs_at(&self, now: Time) -> Time {
        let Some((running, period)) = self.runs else { return now };
        let period = period.as_micros() as u64;
        let at = now.0 % period;
        if at < running.as_micros() as u64 { now } else { Time(now.0 - at + period) }
    }
}

impl World {
    pub(super) fn new(seed: u64, hosts: u16, net: Net, config: SenderConfig) -> Self {
        let rate = net.rate;
        let host = |target| Host {
            receiver: Receiver::new(
                ReceiverConfig { session: SESSION, target, ..Default::default() },
                Time::ZERO,
            ),
            loss: 0.0,
            rate,
            link_until: Time::ZERO,
            dead: false,
            deaf: false,
            runs: None,
            socket_bytes: 0,
            write: Duration::from_micros(50),
            writing_until: Time::ZERO,
            frames: HashMap::new(),
            lost: 0,
            link_bytes: 0,
            passed_on: 0,
            tcp_until: Time::ZERO,
        };
        World {
            now: Time::ZERO,
            rng: Rng::new(seed),
            net,
            sender: Sender::new(config, Time::ZERO),
            hosts: (0..hosts).map(host).collect(),
            members: HashMap::new(),
            keys: HashMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            hold: Hold::Nothing,
            held_until: Time::ZERO,
            link_until: Time::ZERO,
            bodies: HashMap::new(),
            multicast: HashMap::new(),
            multicast_bytes: 0,
            tcp_bytes: 0,
            cut: HashMap::new(),
            throttled: None,
            unheard: Vec::new(),
            dropped: 0,
            acked: HashSet::new(),
            settled: HashSet::new(),
            left: HashMap::new(),
            settled_after: Vec::new(),
            expelled: Vec::new(),
        }
    }

    /// All hosts can use parity.
    pub(super) fn with_parity(&mut self) {
        (0..self.hosts.len() as u16).for_each(|target| self.sender.takes_parity(target));
    }

    pub(super) fn add_set(&mut self, set: u16, members: &[u16], multicast: bool) {
        self.sender.add_set(set, members, multicast);
        self.members.insert(set, members.to_vec());
        for target in members {
            let key =
                OpenKey::new(&set_key(set), &[Channel::MULTICAST, Channel::RELAY, Channel::unicast(*target)]);
            self.hosts[usize::from(*target)].receiver.add_set(set, key);
        }
    }

    /// Pushes bodies of `bytes` bytes until `frames` are sent, as the window allows, and runs until nothing is open.
    pub(super) fn scatter(&mut self, sets: &[u16], frames: u64, bytes: usize, limit: Duration) {
        let end = self.now + limit;
        let mut number = self.bodies.keys().max().map_or(0, |last| last + 1);
        let last = number + frames;
        loop {
            while number < last && self.sender.window_free() >= bytes {
                let set = sets[(number % sets.len() as u64) as usize];
                let len = 1 + bytes - bytes / 4 + self.rng.below(bytes as u64 / 4) as usize;
                let seed = self.rng.next();
                let body: Vec<u8> =
                    (0..len).map(|at| (seed >> (at % 8 * 8)) as u8 ^ (at >> 3) as u8).collect();
                self.sender.push(number, set, body.clone().into());
                self.bodies.insert(number, (set, body));
                number += 1;
            }
            self.drive();
            if number == last && self.sender.is_idle() {
                return;
            }
            assert!(self.now < end, "still open after {limit:?}: {:?}", self.sender.counters());
            self.advance();
        }
    }

    fn drive(&mut self) {
        while self.held_until <= self.now
            && let Some(transmit) = self.sender.poll_transmit(self.now)
        {
            self.transmit(&transmit);
            self.hold(transmit.sealed_bytes());
        }
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Acked { frame, target } => assert!(self.acked.insert((frame, target))),
                SenderEvent::Settled { frame } => {
                    assert!(self.settled.insert(frame));
                    let left = self.left.remove(&frame);
                    self.settled_after.extend(left.map(|left| self.now.since(left)));
                }
                SenderEvent::Announce { target, spans } => {
                    self.after(self.net.delay, Event::Announce(target, spans));
                }
                SenderEvent::Unheard { target } => {
                    self.unheard.push((target, self.now));
                    self.sender.give_up_multicast([target]);
                }
                SenderEvent::Throttled { .. } => {
                    self.throttled = Some(self.now);
                    self.sender.give_up_multicast(0..self.hosts.len() as u16);
                }
                SenderEvent::Expelled { target, why } => self.expelled.push((target, why)),
            }
        }
        for target in 0..self.hosts.len() as u16 {
            let host = &mut self.hosts[usize::from(target)];
            if host.runs_at(self.now) > self.now {
                continue;
            }
            if host.receiver.is_link_due(self.now) && !host.dead {
                let counters = host.receiver.count_link(self.now, host.link_bytes);
                self.after(self.net.delay, Event::LinkCounters(target, counters));
            }
            let host = &mut self.hosts[usize::from(target)];
            if let Some(report) = host.receiver.poll_report(self.now).filter(|_| !host.dead) {
                self.after(self.net.delay, Event::Report(target, report));
            }
        }
    }

    fn advance(&mut self) {
        let hosts = self.hosts.iter().filter(|host| !host.dead);
        let timeouts =
            hosts.filter_map(|host| Some(host.receiver.poll_timeout()?.max(host.runs_at(self.now))));
        let event = self.events.keys().next().map(|(at, _)| *at);
        let held = Some(self.held_until).filter(|at| *at > self.now);
        let source = self.sender.poll_timeout().map(|at| at.max(self.held_until));
        let next = timeouts.chain(source).chain(held).chain(event).min().expect("something is to come");
        self.now = next.max(self.now + Duration::from_micros(1));
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let event = entry.remove();
            self.happen(event);
        }
    }

    fn after(&mut self, span: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + span, self.serial), event);
    }

    /// The source has sent so many bytes.
    fn hold(&mut self, bytes: usize) {
        match self.hold {
            Hold::Nothing => {}
            Hold::Processor(rate) => {
                self.held_until = self.now + Duration::from_micros(bytes as u64 * 1_000_000 / rate);
            }
            Hold::Socket(room) => {
                let drained = Duration::from_micros(room * 1_000_000 / self.net.rate);
                if self.link_until.since(self.now) > drained {
                    self.held_until = self.now + (self.link_until.since(self.now) - drained);
                    self.sender.waited();
                }
            }
        }
    }

    fn transmit(&mut self, transmit: &Transmit) {
        let channel = match &transmit.path {
            Path::Multicast { .. } => Channel::MULTICAST,
            Path::Unicast { target } => Channel::unicast(*target),
            Path::Relay { .. } => Channel::RELAY,
        };
        let key = (transmit.set, channel);
        let mut expected = transmit.number;
        let mut pieces = Vec::new();
        for (header, payload) in transmit.pieces(SESSION) {
            let seal = self.keys.entry(key).or_insert_with(|| SealKey::new(&set_key(transmit.set), channel));
            let mut piece = Vec::new();
            let number = seal_piece(seal, &header, payload, &mut piece).unwrap();
            if let Some(expected) = &mut expected {
                assert_eq!(number, *expected);
                *expected += 1;
            }
            pieces.push(piece);
        }
        assert_eq!(pieces.iter().map(Vec::len).sum::<usize>(), transmit.sealed_bytes());
        match &transmit.path {
            Path::Multicast { set } => {
                let whole = self.net.lose_whole.then(|| self.who_loses());
                for (piece, index) in pieces.into_iter().zip(transmit.indices()) {
                    let losers = whole.clone().unwrap_or_else(|| self.who_loses());
                    if !transmit.is_parity() {
                        let times = self.multicast.entry((transmit.frame, index)).or_default();
                        *times += 1;
                        if *times == 1 {
                            self.left.insert(transmit.frame, self.now);
                        }
                    }
                    self.multicast_datagram(*set, &piece, &losers);
                }
            }
            Path::Unicast { target } => {
                pieces.into_iter().for_each(|piece| self.source_tcp(*target, piece));
            }
            Path::Relay { chain } => {
                let [first, hops @ ..] = &**chain else { panic!("a chain without targets") };
                pieces.into_iter().for_each(|piece| self.source_tcp(*first, relay::wrap(hops, &piece)));
            }
        }
    }

    /// Per host, whether it loses the next packet.
    fn who_loses(&mut self) -> Vec<bool> {
        let losses: Vec<f64> = self.hosts.iter().map(|host| host.loss).collect();
        losses.into_iter().map(|loss| self.rng.chance(loss)).collect()
    }

    fn multicast_datagram(&mut self, set: u16, piece: &[u8], losers: &[bool]) {
        let bytes = piece.len() as u64 + 42;
        self.multicast_bytes += bytes;
        let queued = self.link_until.since(self.now).as_micros() as u64 * self.net.rate / 1_000_000;
        if queued > self.net.queue_bytes {
            self.dropped += 1;
            return;
        }
        // In microseconds, with the remainder left to chance so that no bandwidth is lost or won.
        let micros = bytes * 1_000_000 / self.net.rate;
        let rest = (bytes * 1_000_000 % self.net.rate) as f64 / self.net.rate as f64;
        let micros = micros + u64::from(self.rng.chance(rest));
        self.link_until = self.link_until.max(self.now) + Duration::from_micros(micros);
        let queue = self.link_until.since(self.now);
        for target in self.members[&set].clone() {
            if self.is_expelled(target) {
                continue;
            }
            let host = &mut self.hosts[usize::from(target)];
            let is_full = host.queued(self.now) > self.net.queue_bytes;
            if host.dead || host.deaf || is_full || losers[usize::from(target)] {
                host.lost += u64::from(!host.dead);
                continue;
            }
            let queue = queue.max(host.queue(self.now, bytes));
            for _ in 0..1 + u32::from(self.rng.chance(self.net.twice)) {
                let jitter = Duration::from_micros(self.rng.below(self.net.jitter.as_micros() as u64));
                self.after(queue + self.net.delay + jitter, Event::Datagram(target, piece.to_vec()));
            }
        }
    }

    fn source_tcp(&mut self, target: u16, piece: Vec<u8>) {
        self.tcp_bytes += piece.len() as u64;
        self.tcp(target, piece);
    }

    /// What a target passes on of what it has received.
    fn pass_on(&mut self, from: u16, hops: &[u16], piece: &[u8]) {
        let [to, hops @ ..] = hops else { panic!("an envelope that names nobody") };
        self.hosts[usize::from(from)].passed_on += piece.len() as u64;
        match self.cut.get(&(from, *to)) {
            None => self.tcp(*to, relay::wrap(hops, piece)),
            Some(true) => self.after(self.net.delay, Event::HopLost(from, *to)),
            Some(false) => {}
        }
    }

    /// Reliable and in order, at its share of the link's rate.
    fn tcp(&mut self, target: u16, piece: Vec<u8>) {
        let host = &mut self.hosts[usize::from(target)];
        host.queue(self.now, piece.len() as u64);
        let micros = self.net.tcp_share * 1_000_000;
        let span = Duration::from_micros(piece.len() as u64 * micros / host.rate);
        host.tcp_until = host.tcp_until.max(self.now) + span;
        let span = host.tcp_until.since(self.now) + self.net.delay;
        self.after(span, Event::Tcp(target, piece));
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Datagram(target, piece) if self.hosts[usize::from(target)].runs_at(now) > now => {
                let host = &mut self.hosts[usize::from(target)];
                if host.socket_bytes + piece.len() > SOCKET_BYTES {
                    host.lost += 1;
                    return;
                }
                host.socket_bytes += piece.len();
                let span = host.runs_at(now).since(now);
                self.after(span, Event::Read(target, piece));
            }
            Event::Read(target, piece) => {
                self.hosts[usize::from(target)].socket_bytes -= piece.len();
                self.happen(Event::Datagram(target, piece));
            }
            Event::HopLost(from, to) => self.sender.remove_hop(from, to),
            Event::Datagram(target, mut piece) | Event::Tcp(target, mut piece) => {
                if self.hosts[usize::from(target)].dead {
                    return;
                }
                if let Some(envelope) = relay::unwrap(&mut piece) {
                    self.pass_on(target, &envelope.hops, envelope.piece);
                    let piece = envelope.piece.to_vec();
                    return self.happen(Event::Tcp(target, piece));
                }
                let host = &mut self.hosts[usize::from(target)];
                host.link_bytes += piece.len() as u64 + HEADER_BYTES;
                host.receiver.on_piece(now, &mut piece);
                while let Some((frame, set, body)) = self.hosts[usize::from(target)].receiver.poll_frame() {
                    let host = &mut self.hosts[usize::from(target)];
                    assert!(host.frames.insert(frame, (set, body)).is_none(), "frame {frame} came twice");
                    host.writing_until = host.writing_until.max(now) + host.write;
                    let span = host.writing_until.since(now);
                    self.after(span, Event::Written(target, frame));
                }
            }
            Event::Announce(target, spans) => self.hosts[usize::from(target)].receiver.on_sent(now, &spans),
            Event::Report(target, report) => {
                if !self.is_expelled(target) {
                    self.sender.on_report(target, &report, now).expect("an honest receiver");
                }
            }
            Event::LinkCounters(target, counters) => {
                self.sender.on_link_counters(target, &counters, now);
            }
            Event::Written(target, frame) => self.hosts[usize::from(target)].receiver.written(frame),
        }
    }

    fn is_expelled(&self, target: u16) -> bool {
        self.expelled.iter().any(|(expelled, _)| *expelled == target)
    }

    /// Every live member that was not expelled has every frame of its sets, byte by byte, and nothing else.
    pub(super) fn check_arrival(&self) {
        let live = (0..).zip(&self.hosts).filter(|(target, host)| !host.dead && !self.is_expelled(*target));
        for (target, host) in live {
            let mut expected = 0;
            for (number, (set, body)) in &self.bodies {
                if self.members[set].contains(&target) {
                    expected += 1;
                    let (from, arrived) = host.frames.get(number).expect("a member has every frame");
                    assert!(from == set && arrived == body, "frame {number} at {target}");
                    assert!(self.acked.contains(&(*number, target)));
                }
            }
            assert_eq!(host.frames.len(), expected, "host {target} has only what is meant for it");
            assert_eq!(host.receiver.held_bytes(), 0);
        }
        assert_eq!(self.settled.len(), self.bodies.len());
    }

    /// Pieces that left, first times and repairs alike, by either path.
    pub(super) fn repairs(&self) -> u64 {
        let counters = self.sender.counters();
        counters.multicast_repairs + counters.parity_pieces + counters.unicast_repairs
    }
}
