//! A scatter without guests: whether a group reaches each target, how fast, and what is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::OwnedSemaphorePermit;
use vmscatter_core::limits::FRAME_PAGES_MAX;
use vmscatter_core::page::{PAGE_SIZE, PageAddr};
use vmscatter_core::session::{AddressAction, AddressSet, Addresses};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Path, Sender, SenderConfig, SenderEvent};
use vmscatter_core::wire::control::{Message, Report};
use vmscatter_core::wire::frame::{Compression, Encoder};
use vmscatter_core::wire::piece::PieceHeader;

use super::super::groups::SetLink;
use super::super::link::{TargetLink, datagram_bytes, local_addr};
use crate::net::outlet::{Outlet, PROBE_BYTES_MIN};
use crate::net::udp::{MulticastSender, WayOut, datagram_overhead_bytes};
use crate::random::random;

/// For so long frames are sent.
const SPAN: Duration = Duration::from_secs(2);
/// The whole ends by then, whatever is missing.
const SPAN_MAX: Duration = Duration::from_secs(15);
const LOOK_UP: Duration = Duration::from_millis(2);
/// Pages of a frame: as many as one can have.
const FRAME_PAGES: u32 = FRAME_PAGES_MAX as u32;

/// What a target says meanwhile; `None`: its connection has ended.
pub(super) type Said = (u16, Option<(Message, OwnedSemaphorePermit)>);

/// What is tried with.
pub(super) struct Setup {
    pub(super) session_tag: u64,
    pub(super) links: Vec<Arc<TargetLink>>,
    pub(super) set: SetLink,
    pub(super) out: WayOut,
    pub(super) bandwidth: Option<u64>,
    pub(super) said: Receiver<Said>,
}

/// What came of it at one target.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reached {
    /// It has heard a probe of the group.
    pub(super) heard: bool,
    /// Why it could not join.
    pub(super) error: Option<String>,
    /// Datagrams of frames that have arrived.
    pub(super) datagrams: u64,
    /// It takes much less than the others, or acknowledges nothing.
    pub(super) fell_behind: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trial {
    pub(super) targets: Vec<Reached>,
    /// Datagrams that were multicast.
    pub(super) datagrams: u64,
    /// Bytes of frames that all have acknowledged, and how long that took.
    pub(super) bytes: u64,
    pub(super) time: Duration,
    pub(super) datagram_bytes: usize,
}

struct Work {
    setup: Setup,
    sender: Sender,
    addresses: Addresses,
    outlet: Outlet,
    start: Instant,
    body: Arc<[u8]>,
    next_frame: u64,
    /// When the first frame was pushed, and the last was settled.
    first: Option<Instant>,
    last: Option<Instant>,
    found: Trial,
}

/// Tries it, on the calling thread.
///
/// # Errors
/// There is no socket to send from.
pub(super) fn run(setup: Setup) -> std::io::Result<Trial> {
    let local = local_addr(&setup.links);
    let datagram_bytes = datagram_bytes(&setup.links);
    let socket = Some(MulticastSender::bind(local, setup.out.clone())?);
    let config = SenderConfig {
        bandwidth: setup.bandwidth,
        datagram_bytes,
        datagram_overhead_bytes: datagram_overhead_bytes(local),
        ..SenderConfig::default()
    };
    let members: Vec<u16> = (0..setup.links.len() as u16).collect();
    let mut sender = Sender::new(config, Time::ZERO);
    sender.add_set(setup.set.number, &members, true);
    let mut outlet = Outlet::new(setup.session_tag, socket);
    outlet.add_set(setup.set.number, &setup.set.key, &members, setup.set.group);
    let list = vec![AddressSet { number: setup.set.number, members: setup.set.set }];
    let found =
        Trial { targets: vec![Reached::default(); members.len()], datagram_bytes, ..Trial::default() };
    let mut work = Work {
        sender,
        addresses: Addresses::new([list], vec![PROBE_BYTES_MIN]),
        outlet,
        start: Instant::now(),
        body: body().into(),
        next_frame: 0,
        first: None,
        last: None,
        found,
        setup,
    };
    work.run();
    Ok(work.end())
}

/// A frame for a guest that no target has: it is acknowledged as it arrives.
fn body() -> Vec<u8> {
    let pages: Vec<[u8; PAGE_SIZE]> = (0..FRAME_PAGES).map(|_| noise()).collect();
    let addrs: Vec<[PageAddr; 1]> =
        (0..FRAME_PAGES).map(|page| [PageAddr { vm: 0, block: 0, page }]).collect();
    let contents = addrs.iter().zip(&pages).map(|(addrs, page)| (&addrs[..], &page[..]));
    Encoder::new().scatter(contents, Compression::None).expect("a frame within every limit")
}

fn noise() -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    page.chunks_exact_mut(16).for_each(|chunk| chunk.copy_from_slice(&random::<16>()));
    page
}

impl Work {
    fn now(&self) -> Time {
        Time(self.start.elapsed().as_micros() as u64)
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() > SPAN_MAX || (self.addresses.is_over() && self.sender.is_idle())
    }

    fn run(&mut self) {
        while !self.is_over() {
            match self.setup.said.recv_timeout(LOOK_UP) {
                Ok(said) => self.take(said),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.addresses.advance(self.now(), &mut self.sender);
            while let Some(action) = self.addresses.poll_action() {
                match action {
                    AddressAction::Send { target, message } => {
                        self.setup.links[usize::from(target)].send(message);
                    }
                    AddressAction::Unreached { target, error } => {
                        self.found.targets[usize::from(target)].error = error;
                    }
                }
            }
            for (set, bytes) in self.addresses.probes(self.now()) {
                self.outlet.probe(set, bytes);
            }
            self.push();
            self.transmit();
            self.events();
        }
    }

    fn take(&mut self, (target, said): Said) {
        let now = self.now();
        match said {
            Some((Message::Report(report), _)) => self.report(target, &report),
            Some((Message::Joined { set, error }, _)) => self.addresses.joined(now, target, set, error),
            Some((Message::Heard { set }, _)) => {
                self.found.targets[usize::from(target)].heard = true;
                self.addresses.heard(target, set);
            }
            Some(_) => {}
            None => self.leave(target),
        }
    }

    fn report(&mut self, target: u16, report: &Report) {
        let reached = &mut self.found.targets[usize::from(target)];
        reached.datagrams = report.received_datagrams;
        if !reached.fell_behind && self.sender.on_report(target, report, self.now()).is_err() {
            self.leave(target);
        }
    }

    fn leave(&mut self, target: u16) {
        self.found.targets[usize::from(target)].fell_behind = true;
        self.sender.remove_target(target, self.now());
        self.addresses.remove_target(target);
    }

    fn push(&mut self) {
        let set = self.setup.set.number;
        if !self.addresses.ready().any(|ready| ready == set) {
            return;
        }
        let first = *self.first.get_or_insert_with(Instant::now);
        // Nothing is learnt of a group that nobody hears.
        if first.elapsed() > SPAN || !self.found.targets.iter().any(|target| target.heard) {
            return self.addresses.exhausted(set);
        }
        while self.sender.window_free() > self.body.len() {
            self.sender.push(self.next_frame, set, self.body.clone());
            self.next_frame += 1;
        }
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.sender.poll_transmit(self.now()) {
            if let Path::Unicast { target } = transmit.path {
                let link = &self.setup.links[usize::from(target)];
                let own =
                    |header: &PieceHeader, payload: &[u8], out: &mut Vec<u8>| link.seal(header, payload, out);
                let pieces = self.outlet.seal_unicast(&transmit, target, own).unwrap_or_default();
                pieces.into_iter().for_each(|piece| link.send_scatter(piece));
            } else if self.outlet.multicast(&transmit).waited {
                self.sender.waited();
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Announce { target, spans } => {
                    self.setup.links[usize::from(target)].send(Message::Sent(spans));
                }
                SenderEvent::Settled { .. } => {
                    self.found.bytes += self.body.len() as u64;
                    self.last = Some(Instant::now());
                }
                SenderEvent::Unheard { target } | SenderEvent::Expelled { target, .. } => self.leave(target),
                SenderEvent::Acked { .. } | SenderEvent::Throttled { .. } => {}
            }
        }
    }

    fn end(mut self) -> Trial {
        let counters = self.sender.counters();
        self.found.datagrams = counters.multicast_pieces + counters.multicast_repairs;
        self.found.time = self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first);
        self.found
    }
}
