//! Frames that are open: sent or being sent, and not yet acknowledged by all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::relay::Chain;
use crate::time::Time;
use crate::transport::TargetMask;

/// The last time that a piece left by multicast.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceSent {
    /// Its packet number in the set.
    pub(super) number: u64,
    pub(super) at: Time,
}

/// A piece that somebody has missed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PieceRepair {
    /// Who misses it, as far as reported since the last repair.
    pub(super) missing: TargetMask,
    /// It waits to be multicast again.
    pub(super) queued: bool,
    /// How often it was multicast again.
    pub(super) rounds: u32,
    /// To whom it has gone, or is queued to go, over TCP.
    pub(super) unicast: TargetMask,
    /// For whom it waits to be given to TCP.
    pub(super) unicast_queued: TargetMask,
    /// When it was last given to TCP.
    pub(super) unicast_at: Time,
}

/// A frame of the repair window.
#[derive(Debug)]
pub(super) struct OpenFrame {
    pub(super) set: u16,
    pub(super) body: Arc<[u8]>,
    pub(super) piece_bytes: usize,
    pub(super) count: u16,
    /// Members that have not acknowledged it.
    pub(super) waiting: TargetMask,
    /// Members that get it over TCP from the start.
    pub(super) by_unicast: TargetMask,
    /// Those of them that have not been given all of it, or not since it was sent to them anew.
    pub(super) unicast_left: TargetMask,
    /// The ways by which they get it.
    pub(super) chains: Vec<Chain>,
    /// When the first of it left, in whatever way.
    pub(super) begun: Option<Time>,
    /// Members that all of it has been sent to, in whatever way: they may speak of it.
    pub(super) told: TargetMask,
    /// When the last of it was given to TCP.
    pub(super) unicast_at: Time,
    /// Pieces that have left by multicast, the first time; all of them if nobody gets it that way.
    pub(super) multicast_next: u16,
    /// Per piece that has left by multicast.
    pub(super) sent: Vec<PieceSent>,
    pub(super) repair: BTreeMap<u16, PieceRepair>,
    /// All members can use parity, and the pieces have a length for it.
    pub(super) takes_parity: bool,
    /// Parity pieces of each block that have left or are to leave; blocks without are not there.
    pub(super) parity: BTreeMap<u16, u16>,
}

impl OpenFrame {
    pub(super) fn new(
        set: u16,
        body: Arc<[u8]>,
        piece_bytes: usize,
        waiting: TargetMask,
        by_unicast: TargetMask,
    ) -> Self {
        let count = u16::try_from(body.len().div_ceil(piece_bytes))
            .expect("a body's pieces can be counted in 16 bits");
        let by_unicast = by_unicast & waiting;
        let multicast_next = if waiting == by_unicast { count } else { 0 };
        let sent = Vec::with_capacity(usize::from(count - multicast_next));
        OpenFrame {
            set,
            body,
            piece_bytes,
            count,
            waiting,
            by_unicast,
            unicast_left: by_unicast,
            chains: Vec::new(),
            begun: None,
            told: 0,
            unicast_at: Time::ZERO,
            multicast_next,
            sent,
            repair: BTreeMap::new(),
            takes_parity: false,
            parity: BTreeMap::new(),
        }
    }

    /// Members that get it by multicast and have not acknowledged it.
    pub(super) fn multicast_waiting(&self) -> TargetMask {
        self.waiting & !self.by_unicast
    }

    /// These members are to get all of it over TCP, whatever has come to them before.
    pub(super) fn begin_anew(&mut self, members: TargetMask) {
        self.by_unicast |= members;
        self.unicast_left |= members;
        for repair in self.repair.values_mut() {
            repair.missing &= !members;
            repair.unicast &= !members;
            repair.unicast_queued &= !members;
        }
    }

    /// The piece has left by multicast, or the last of the parity that replaces it.
    pub(super) fn has_left(&mut self, index: u16, sent: PieceSent) {
        match self.sent.get_mut(usize::from(index)) {
            Some(piece) => *piece = sent,
            None => self.sent.push(sent),
        }
        if let Some(repair) = self.repair.get_mut(&index) {
            repair.queued = false;
        }
    }
}
