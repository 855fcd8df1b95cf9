//! How losses are answered: by the piece, multicast if two or more miss it and over TCP if one does, or by parity, which serves those
//! who miss different pieces of a frame at once.

use std::collections::{BTreeMap, BTreeSet};

use super::Sender;
use super::frames::OpenFrame;
use crate::limits::MULTICAST_REPAIR_ROUNDS_MAX;
use crate::time::Time;
use crate::transport::parity::block_of;
use crate::transport::{TargetMask, mask_of, targets_of};
use crate::wire::piece::BLOCK_PARITY;

/// What waits to be multicast in answer to losses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MulticastRepair {
    /// A piece of a frame.
    Piece(u64, u16),
    /// So many parity pieces of a frame from this index on, in place of these pieces.
    Parity { frame: u64, first: u16, pieces: u16, replaces: Vec<u16> },
}

impl Sender {
    /// Answers losses once every member has had its say, or has had the time for it.
    pub(super) fn decide_repairs(&mut self, now: Time) {
        if self.decide_at.is_none_or(|at| now < at) {
            return;
        }
        let mut pending = std::mem::take(&mut self.pending);
        let waited = pending.iter().filter(|(_, until)| now >= **until).map(|((number, _), _)| *number);
        let waited: BTreeSet<u64> = waited.collect();
        let mut due: BTreeMap<u64, Vec<u16>> = BTreeMap::new();
        pending.retain(|(number, index), until| {
            let Some(open) = self.frames.get(number) else { return false };
            let is_due = match open.takes_parity {
                true => waited.contains(number),
                false => now >= *until || self.have_all_spoken(open, *index),
            };
            if is_due {
                due.entry(*number).or_default().push(*index);
            }
            !is_due
        });
        self.decide_at = pending.values().copied().min();
        self.pending = pending;
        for (number, mut pieces) in due {
            self.answer_by_parity(number, &mut pieces);
            pieces.into_iter().for_each(|index| self.answer(number, index, now));
        }
    }

    /// Whether each member either misses the piece or has seen what left after it. (Where parity may serve who misses what, it is not
    /// enough to know that of one piece.)
    fn have_all_spoken(&self, open: &OpenFrame, index: u16) -> bool {
        let silent = open.multicast_waiting() & !open.repair[&index].missing;
        let sent = open.sent.get(usize::from(index));
        let heard =
            |target| sent.is_some_and(|sent| self.targets[&target].path.seen_below(open.set) > sent.number);
        targets_of(silent).all(heard)
    }

    /// Takes out of `pieces`, which are missed, those for which parity is sent: less of it than there are pieces. It saves what is sent
    /// and costs time, so a host that is short of that sends none.
    fn answer_by_parity(&mut self, number: u64, pieces: &mut Vec<u16>) {
        if self.history.is_busy() {
            return;
        }
        let open = self.frames.get_mut(&number).filter(|open| open.takes_parity);
        let Some(open) = open.filter(|open| !self.sets[&open.set].repairs_by_unicast) else { return };
        let multicast = open.multicast_waiting();
        let mut blocks: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        pieces.retain(|index| {
            let repair = &open.repair[index];
            // What comes over TCP is not lost for good.
            let is_served = repair.missing & open.waiting & (repair.unicast | !multicast) == 0;
            if is_served && repair.rounds < MULTICAST_REPAIR_ROUNDS_MAX {
                blocks.entry(block_of(*index, open.count)).or_default().push(*index);
            }
            !is_served || repair.rounds >= MULTICAST_REPAIR_ROUNDS_MAX
        });
        for (block, missed) in blocks {
            let needs = |target| {
                missed.iter().filter(|index| open.repair[*index].missing & mask_of(target) != 0).count()
            };
            let most = targets_of(multicast).map(needs).max().unwrap_or(0) as u16;
            let used = open.parity.get(&block).copied().unwrap_or(0);
            // None, where who missed them has them by now.
            if most == 0 || usize::from(most) >= missed.len() || used + most > BLOCK_PARITY {
                pieces.extend(missed);
                continue;
            }
            for index in &missed {
                let repair = open.repair.get_mut(index).expect("what is pending is missed");
                (repair.missing, repair.queued) = (0, true);
                repair.rounds += 1;
            }
            open.parity.insert(block, used + most);
            self.multicast_repairs.push_back(MulticastRepair::Parity {
                frame: number,
                first: block * BLOCK_PARITY + used,
                pieces: most,
                replaces: missed,
            });
        }
        pieces.sort_unstable();
    }

    /// Sends a piece again to all who miss it.
    fn answer(&mut self, number: u64, index: u16, now: Time) {
        let open = self.frames.get_mut(&number).expect("the caller has looked");
        let repair = open.repair.get_mut(&index).expect("what is pending is missed");
        let missing = std::mem::take(&mut repair.missing) & open.waiting;
        let by_multicast = match self.sets[&open.set].repairs_by_unicast {
            true => 0,
            false => missing & !open.by_unicast & !repair.unicast,
        };
        let by_unicast = if by_multicast.count_ones() >= 2 && repair.rounds < MULTICAST_REPAIR_ROUNDS_MAX {
            repair.rounds += 1;
            repair.queued = true;
            self.multicast_repairs.push_back(MulticastRepair::Piece(number, index));
            missing & !by_multicast
        } else {
            missing
        };
        self.repair_over_tcp(number, index, by_unicast, now);
    }

    /// Queues a piece for each of these targets, by TCP.
    pub(super) fn repair_over_tcp(&mut self, number: u64, index: u16, targets: TargetMask, now: Time) {
        let Some(open) = self.frames.get_mut(&number).filter(|_| targets != 0) else { return };
        let repair = open.repair.entry(index).or_default();
        repair.unicast |= targets;
        repair.unicast_queued |= targets;
        repair.unicast_at = now;
        for target in targets_of(targets) {
            self.target(target).unicast_repairs.insert((number, index));
        }
    }
}
