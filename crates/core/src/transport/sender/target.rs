//! What the sender knows of one target.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::feedback::PathState;
use super::laggard::Pace;
use super::relay::{Delivery, Silence};
use crate::limits::{SCATTER_FRAME_MAX, SCATTER_SILENCE_MAX};
use crate::time::Time;
use crate::transport::{ANNOUNCE_INTERVAL, UNICAST_RETRY};
use crate::wire::control::FrameSpan;

/// What has gone of a frame over TCP to one target.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InFlight {
    pub(super) bytes: usize,
    /// The last transmission of it to this target itself, counted from one; none if it comes by way of others.
    pub(super) last: Option<u64>,
}

/// A target.
#[derive(Debug)]
pub(super) struct Target {
    /// Frames that go to it over TCP from the start, and on from there; of the first, pieces below `first_next` have gone.
    pub(super) unicast: VecDeque<Delivery>,
    pub(super) first_next: u16,
    /// Sets whose datagrams it does not see, though it misses frames of them.
    pub(super) silences: BTreeMap<u16, Silence>,
    pub(super) is_unheard: bool,
    /// Pieces to be repaired over TCP, the oldest frame's first.
    pub(super) unicast_repairs: BTreeSet<(u64, u16)>,
    /// Unacknowledged frames of which something has gone over TCP.
    pub(super) in_flight: BTreeMap<u64, InFlight>,
    pub(super) in_flight_bytes: usize,
    /// Transmissions over TCP, and how many of them have come to their end: TCP keeps their order.
    pub(super) given: u64,
    pub(super) arrived: u64,
    /// Frames sent to it entirely and not acknowledged, and since when.
    pub(super) open: BTreeMap<u64, Time>,
    /// The later of its last acknowledgement and the moment when a frame became open with no other so.
    pub(super) heard: Time,
    pub(super) announce: Vec<FrameSpan>,
    pub(super) announce_at: Option<Time>,
    pub(super) path: PathState,
    pub(super) pace: Pace,
    pub(super) takes_parity: bool,
}

impl Target {
    pub(super) fn new(now: Time) -> Self {
        Target {
            unicast: VecDeque::new(),
            first_next: 0,
            silences: BTreeMap::new(),
            is_unheard: false,
            unicast_repairs: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            given: 0,
            arrived: 0,
            open: BTreeMap::new(),
            heard: now,
            announce: Vec::new(),
            announce_at: None,
            path: PathState::default(),
            pace: Pace::default(),
            takes_parity: false,
        }
    }

    /// A frame has been sent to it entirely.
    pub(super) fn opened(&mut self, now: Time, frame: u64, set: u16) {
        if self.open.is_empty() {
            self.heard = now;
        }
        self.open.insert(frame, now);
        match self.announce.last_mut() {
            Some(span) if span.set == set && span.last + 1 == frame => span.last = frame,
            _ => self.announce.push(FrameSpan { set, first: frame, last: frame }),
        }
        self.announce_at.get_or_insert(now + ANNOUNCE_INTERVAL);
    }

    /// When it is waited for no longer, unless it acknowledges something, and the frame that has waited longest, before that.
    pub(super) fn given_up_at(&self) -> Option<Time> {
        // Frames leave in the order of their numbers, or nearly so.
        let (_, oldest) = self.open.first_key_value()?;
        Some((self.heard + SCATTER_SILENCE_MAX).min(*oldest + SCATTER_FRAME_MAX))
    }

    /// Whether a repair waits and may go: with the window full too if its frame is not above all that are in flight, or these might
    /// wait for each other's ends.
    pub(super) fn may_repair(&self, window: usize) -> bool {
        let last = self.in_flight.last_key_value().map(|(frame, _)| frame);
        let first = self.unicast_repairs.first();
        first
            .is_some_and(|(first, _)| self.in_flight_bytes < window || last.is_some_and(|last| first <= last))
    }

    pub(super) fn settle(&mut self, frame: u64) {
        self.open.remove(&frame);
        self.arrived = self.arrived.max(self.take_in_flight(frame).last.unwrap_or(0));
    }

    pub(super) fn take_in_flight(&mut self, frame: u64) -> InFlight {
        let in_flight = self.in_flight.remove(&frame).unwrap_or_default();
        self.in_flight_bytes -= in_flight.bytes;
        in_flight
    }

    /// The first frame in the queue is done with.
    pub(super) fn end_delivery(&mut self) {
        self.unicast.pop_front();
        self.first_next = 0;
    }

    /// So much of a frame goes over TCP, to this target itself or by way of others.
    pub(super) fn give(&mut self, frame: u64, bytes: usize, is_direct: bool) {
        let in_flight = self.in_flight.entry(frame).or_default();
        if is_direct {
            self.given += 1;
            in_flight.last = Some(self.given);
        }
        in_flight.bytes += bytes;
        self.in_flight_bytes += bytes;
    }

    /// Whether what has gone of a frame over TCP, last at `at`, and is missed, was dropped by a receiver without room: something later
    /// has arrived, or nothing at all for [`UNICAST_RETRY`]. Of what comes by way of others only the latter can be said.
    pub(super) fn is_dropped(&self, now: Time, frame: u64, at: Time) -> bool {
        let last = self.in_flight.get(&frame).map_or(Some(0), |in_flight| in_flight.last);
        last.is_some_and(|last| last < self.arrived) || now.since(at.max(self.heard)) >= UNICAST_RETRY
    }
}
