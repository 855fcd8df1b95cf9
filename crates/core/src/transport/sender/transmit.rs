//! What leaves next.

use std::ops::Range;
use std::sync::Arc;

use super::Sender;
use super::frames::{OpenFrame, PieceSent};
use super::relay::Delivery;
use super::repair::MulticastRepair;
use super::target::Target;
use crate::time::Time;
use crate::transport::{TRANSMIT_BYTES_MAX, TRANSMIT_PIECES_MAX, mask_of, parity, targets_of};
use crate::wire::piece::{PIECE_OVERHEAD_BYTES, PieceHeader, PieceKind};
use crate::wire::seal::Channel;

/// Where a transmission goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// To the set's multicast group, a datagram per piece.
    Multicast {
        /// The set.
        set: u16,
    },
    /// To one target's data connection.
    Unicast {
        /// The target.
        target: u16,
    },
    /// To the first target's data connection, in an envelope ([`crate::wire::relay`]) that names the others.
    Relay {
        /// The targets in the order in which they get it; at least two.
        chain: Arc<[u16]>,
    },
}

/// Consecutive pieces of one frame that leave by one path, sealed one by one.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Where to.
    pub path: Path,
    /// The set under whose key they are sealed.
    pub set: u16,
    /// The frame.
    pub frame: u64,
    /// By multicast: the packet number that the first of them must get; the others follow. Each multicast transmission
    /// must be sealed, in order, even if it can't be sent.
    pub number: Option<u64>,
    content: Content,
    first: u16,
    pieces: u16,
    count: u16,
    piece_bytes: usize,
}

/// Where payloads come from.
#[derive(Clone, Debug)]
enum Content {
    /// The frame's body.
    Body(Arc<[u8]>),
    /// Parity pieces, one after the other, of a frame whose last piece has so many bytes.
    Parity(Vec<u8>, u16),
}

impl Transmit {
    pub(super) fn new(
        path: Path,
        frame: u64,
        number: Option<u64>,
        open: &OpenFrame,
        first: u16,
        pieces: u16,
    ) -> Self {
        Transmit {
            path,
            set: open.set,
            frame,
            number,
            content: Content::Body(open.body.clone()),
            first,
            pieces,
            count: open.count,
            piece_bytes: open.piece_bytes,
        }
    }

    /// Each piece's header, but for what sealing fills in, and its payload. All but the last payload of a frame have
    /// the same length.
    pub fn pieces(&self, session: u64) -> impl Iterator<Item = (PieceHeader, &[u8])> {
        let (kind, vm) = match &self.content {
            Content::Body(_) => (PieceKind::Scatter, 0),
            Content::Parity(_, last_bytes) => (PieceKind::Parity, *last_bytes),
        };
        (self.first..self.first + self.pieces).map(move |index| {
            let header = PieceHeader {
                kind,
                set: self.set,
                channel: Channel::MULTICAST,
                vm,
                session,
                number: 0,
                frame: self.frame,
                index,
                count: self.count,
                piece_bytes: self.piece_bytes as u32,
            };
            (header, self.payload(index))
        })
    }

    fn payload(&self, index: u16) -> &[u8] {
        let (bytes, place) = match &self.content {
            Content::Body(body) => (&body[..], index),
            Content::Parity(rows, _) => (&rows[..], index - self.first),
        };
        let start = usize::from(place) * self.piece_bytes;
        &bytes[start..bytes.len().min(start + self.piece_bytes)]
    }

    /// Which pieces of the frame they are, or which of its parity pieces.
    pub fn indices(&self) -> Range<u16> {
        self.first..self.first + self.pieces
    }

    /// Whether they are parity pieces.
    pub fn is_parity(&self) -> bool {
        matches!(self.content, Content::Parity(..))
    }

    /// Bytes of all of them, sealed.
    pub fn sealed_bytes(&self) -> usize {
        self.payload_bytes() + usize::from(self.pieces) * PIECE_OVERHEAD_BYTES
    }

    fn payload_bytes(&self) -> usize {
        match &self.content {
            Content::Body(body) => {
                let end = (usize::from(self.first) + usize::from(self.pieces)) * self.piece_bytes;
                end.min(body.len()) - usize::from(self.first) * self.piece_bytes
            }
            Content::Parity(rows, _) => rows.len(),
        }
    }
}

impl Sender {
    /// What leaves next; `None` if there is nothing, or its pace or window does not allow it now.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Transmit> {
        self.tick(now);
        if self.bucket.refill(now, self.rate) && !self.history.is_excused() {
            // What arrives tells of this host's load, not of the path.
            self.history.was_late();
        }
        let ready = self.bucket.ready(now, self.rate);
        if !ready && self.config.bandwidth.is_some() {
            return None;
        }
        if self.unicast_turn > 0
            && let Some(transmit) = self.next_unicast(now)
        {
            self.unicast_turn = self.unicast_turn.saturating_sub(transmit.sealed_bytes());
            return Some(transmit);
        }
        if ready {
            if let Some(transmit) = self.next_multicast_repair(now).or_else(|| self.next_multicast(now)) {
                self.unicast_turn = transmit.sealed_bytes();
                return Some(transmit);
            }
            self.history.paused();
        }
        if self.unicast_turn > 0 { None } else { self.next_unicast(now) }
    }

    /// The last multicast transmission had to wait for room in the socket: this host has no lack of time, but its own link is full.
    pub fn waited(&mut self) {
        self.history.waited();
    }

    /// A millisecond's worth of pieces, within what is sent at once.
    fn run_pieces_max(&self, piece_bytes: usize) -> u16 {
        let bytes = (self.rate / 1000).min(TRANSMIT_BYTES_MAX as u64) as usize;
        (bytes / (piece_bytes + PIECE_OVERHEAD_BYTES)).clamp(1, TRANSMIT_PIECES_MAX) as u16
    }

    fn next_multicast(&mut self, now: Time) -> Option<Transmit> {
        while let Some(&number) = self.multicast.front() {
            let Some(open) = self.frames.get(&number).filter(|open| open.multicast_waiting() != 0) else {
                if let Some(open) = self.frames.get_mut(&number) {
                    open.multicast_next = open.count;
                }
                self.multicast.pop_front();
                continue;
            };
            let first = open.multicast_next;
            let pieces = self.run_pieces_max(open.piece_bytes).min(open.count - first);
            self.counters.multicast_pieces += u64::from(pieces);
            let transmit = self.multicast_run(now, number, first, pieces);
            let open = self.frames.get_mut(&number).expect("found above");
            open.multicast_next += pieces;
            if open.multicast_next == open.count {
                let (set, waiting) = (open.set, open.multicast_waiting());
                // Those served by TCP since it began to leave may have got all of it.
                open.told |= open.waiting;
                self.multicast.pop_front();
                targets_of(waiting).for_each(|target| self.target(target).opened(now, number, set));
            }
            return Some(transmit);
        }
        None
    }

    fn next_multicast_repair(&mut self, now: Time) -> Option<Transmit> {
        while let Some(repair) = self.multicast_repairs.pop_front() {
            let (MulticastRepair::Piece(number, _) | MulticastRepair::Parity { frame: number, .. }) = repair;
            let Some(open) = self.frames.get(&number).filter(|open| open.multicast_waiting() != 0) else {
                continue;
            };
            let max = self.run_pieces_max(open.piece_bytes);
            let is_over = self.sets[&open.set].repairs_by_unicast;
            match repair {
                MulticastRepair::Piece(_, index) if is_over => self.repair_at_all(number, index, now),
                MulticastRepair::Parity { replaces, .. } if is_over => {
                    replaces.into_iter().for_each(|index| self.repair_at_all(number, index, now));
                }
                MulticastRepair::Piece(_, first) => {
                    let mut pieces = 1;
                    while pieces < max
                        && self.multicast_repairs.front()
                            == Some(&MulticastRepair::Piece(number, first + pieces))
                    {
                        self.multicast_repairs.pop_front();
                        pieces += 1;
                    }
                    self.counters.multicast_repairs += u64::from(pieces);
                    return Some(self.multicast_run(now, number, first, pieces));
                }
                MulticastRepair::Parity { first, pieces, replaces, .. } => {
                    return Some(self.parity_run(now, number, first, pieces, max, replaces));
                }
            }
        }
        None
    }

    /// A repair that was to go by multicast goes over TCP: nothing is known any more of who has missed it.
    fn repair_at_all(&mut self, number: u64, index: u16, now: Time) {
        let Some(open) = self.frames.get_mut(&number) else { return };
        open.repair.entry(index).or_default().queued = false;
        let waiting = open.multicast_waiting();
        self.repair_over_tcp(number, index, waiting, now);
    }

    fn multicast_run(&mut self, now: Time, number: u64, first: u16, pieces: u16) -> Transmit {
        let (packet, transmit) = self.numbered(now, number, |path, packet, open| {
            Transmit::new(path, number, Some(packet), open, first, pieces)
        });
        let open = self.frames.get_mut(&number).expect("the frame is open");
        open.begun.get_or_insert(now);
        for (index, number) in (first..first + pieces).zip(packet..) {
            open.has_left(index, PieceSent { number, at: now });
        }
        transmit
    }

    /// At most `max` of the parity pieces; the others are next.
    fn parity_run(
        &mut self,
        now: Time,
        number: u64,
        first: u16,
        pieces: u16,
        max: u16,
        replaces: Vec<u16>,
    ) -> Transmit {
        let now_pieces = pieces.min(max);
        let (packet, transmit) = self.numbered(now, number, |path, packet, open| {
            let mut rows = Vec::with_capacity(usize::from(now_pieces) * open.piece_bytes);
            for index in first..first + now_pieces {
                parity::encode(&open.body, open.piece_bytes, index, &mut rows);
            }
            let last_bytes = (open.body.len() - usize::from(open.count - 1) * open.piece_bytes) as u16;
            let content = Content::Parity(rows, last_bytes);
            Transmit { content, ..Transmit::new(path, number, Some(packet), open, first, now_pieces) }
        });
        self.counters.parity_pieces += u64::from(now_pieces);
        if now_pieces < pieces {
            self.multicast_repairs.push_front(MulticastRepair::Parity {
                frame: number,
                first: first + now_pieces,
                pieces: pieces - now_pieces,
                replaces,
            });
            return transmit;
        }
        // What they replace is lost again only where the last of them has been seen, or should have been.
        let last = PieceSent { number: packet + u64::from(now_pieces) - 1, at: now };
        let open = self.frames.get_mut(&number).expect("the frame is open");
        replaces.into_iter().for_each(|index| open.has_left(index, last));
        transmit
    }

    /// Numbers the datagrams of a multicast transmission and pays for them; the first number.
    fn numbered(
        &mut self,
        now: Time,
        number: u64,
        make: impl FnOnce(Path, u64, &OpenFrame) -> Transmit,
    ) -> (u64, Transmit) {
        let open = self.frames.get_mut(&number).expect("the frame is open");
        let set = self.sets.get_mut(&open.set).expect("sets are never removed");
        let packet = set.next_number;
        let transmit = make(Path::Multicast { set: open.set }, packet, open);
        let pieces = usize::from(transmit.pieces);
        set.next_number += pieces as u64;
        let bytes = transmit.sealed_bytes() + pieces * self.config.datagram_overhead_bytes;
        self.bucket.take(bytes);
        self.history.sent(now, open.set, set.next_number, bytes);
        (packet, transmit)
    }

    /// Asks the targets in turn.
    fn next_unicast(&mut self, now: Time) -> Option<Transmit> {
        let later = self.targets.range(self.last_target + 1..).map(|(number, _)| *number);
        let earlier = self.targets.range(..=self.last_target).map(|(number, _)| *number);
        let window = self.config.unicast_window_bytes;
        let waits = |target: &Target| !target.unicast.is_empty() || target.may_repair(window);
        let waiting = later.chain(earlier).filter(|number| waits(&self.targets[number]));
        let waiting: Vec<u16> = waiting.collect();
        for number in waiting {
            let transmit = self.next_unicast_repair(now, number).or_else(|| self.next_delivery(now, number));
            let Some(transmit) = transmit else { continue };
            self.last_target = number;
            if self.config.bandwidth.is_some() {
                self.bucket.take(transmit.sealed_bytes());
            }
            return Some(transmit);
        }
        None
    }

    /// Whether a frame or a repair waits for TCP and the windows have room.
    pub(super) fn may_go_on(&self, target: &Target) -> bool {
        let window = self.config.unicast_window_bytes;
        let has_room = |first: &Delivery| {
            target.in_flight_bytes < window && (target.first_next > 0 || !self.is_blocked(&first.chain))
        };
        target.may_repair(window) || target.unicast.front().is_some_and(has_room)
    }

    fn next_unicast_repair(&mut self, now: Time, number: u16) -> Option<Transmit> {
        let window = self.config.unicast_window_bytes;
        let target = self.targets.get_mut(&number)?;
        while target.may_repair(window) {
            let (frame, first) = target.unicast_repairs.pop_first()?;
            let open = self.frames.get_mut(&frame).filter(|open| open.waiting & mask_of(number) != 0);
            let Some(open) = open else { continue };
            let max = TRANSMIT_BYTES_MAX / (open.piece_bytes + PIECE_OVERHEAD_BYTES);
            let max = max.clamp(1, TRANSMIT_PIECES_MAX) as u16;
            let mut pieces = 1;
            while pieces < max && target.unicast_repairs.remove(&(frame, first + pieces)) {
                pieces += 1;
            }
            for index in first..first + pieces {
                let repair = open.repair.entry(index).or_default();
                repair.unicast_at = now;
                repair.unicast_queued &= !mask_of(number);
            }
            self.counters.unicast_repairs += u64::from(pieces);
            let transmit = Transmit::new(Path::Unicast { target: number }, frame, None, open, first, pieces);
            target.give(frame, transmit.sealed_bytes(), true);
            return Some(transmit);
        }
        None
    }
}
