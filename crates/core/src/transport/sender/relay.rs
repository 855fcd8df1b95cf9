//! Frames that do not go by multicast: along chains of targets that pass them on, and from chain to chain if one breaks.
//!
//! ```text
//! push ─► chains over the hops that are open ─► the first target's queue ─► TCP ─► 1st ─► 2nd ─► 3rd
//!              ▲                                                                      ╳ a hop breaks, or blocks
//!              └───────────────────── those behind it that still wait ────────────────┘
//! ```
//!
//! A chain of one is what unicast is. Which target is first goes round with the frame's number, so that each passes on
//! the same share. What is in flight is bounded at each target of a chain as if it had been sent to it directly, and so
//! is what waits at the one before it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::transmit::{Path, Transmit};
use super::{Sender, SenderEvent};
use crate::time::Time;
use crate::transport::{TRANSMIT_BYTES_MAX, TRANSMIT_PIECES_MAX, TargetMask, mask_of, targets_of};
use crate::wire::control::Report;
use crate::wire::piece::PIECE_OVERHEAD_BYTES;

/// Steps in the search for one chain over all targets before several are taken.
const TRIES_MAX: u32 = 1_000;
/// A target that sees none of so many datagrams of a set, in so many reports and so long a time, is out of its group; if it still
/// sees none of as many again for a while, that is.
const UNHEARD_DATAGRAMS: u64 = 32;
const UNHEARD_REPORTS: u32 = 10;
const UNHEARD_MAX: Duration = Duration::from_millis(800);
const UNHEARD_AGAIN: Duration = Duration::from_millis(300);

/// Targets in the order in which a frame passes them; at least one.
pub(super) type Chain = Arc<[u16]>;

/// A frame on its way to the first target of a chain.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) frame: u64,
    pub(super) chain: Chain,
}

/// Since when a target has seen nothing of a set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    seen_below: u64,
    since: Time,
    reports: u32,
    /// What had been sent by then, and since when as many datagrams again as make it silent have been.
    sent_below: u64,
    again: Option<Time>,
}

/// From which target to which other pieces can be passed on.
#[derive(Debug, Default)]
pub(super) struct Hops(HashSet<(u16, u16)>);

impl Hops {
    /// Divides `members` into chains: one if that is found, and it begins with another target for each `turn`.
    pub(super) fn chains(&self, members: TargetMask, turn: u64) -> Vec<Chain> {
        let mut left: Vec<u16> = targets_of(members).collect();
        if left.is_empty() {
            return Vec::new();
        }
        let first = turn % left.len() as u64;
        left.rotate_left(first as usize);
        let mut tries = TRIES_MAX;
        for _ in 0..left.len() {
            let mut chain = vec![left.remove(0)];
            if self.extend(&mut chain, &mut left, &mut tries) {
                return vec![chain.into()];
            }
            left.push(chain[0]);
        }
        let mut chains = Vec::new();
        while !left.is_empty() {
            let mut chain = vec![left.remove(0)];
            while let Some(last) = chain.last()
                && let Some(at) = left.iter().position(|next| self.0.contains(&(*last, *next)))
            {
                chain.push(left.remove(at));
            }
            chains.push(chain.into());
        }
        chains
    }

    /// Whether the chain can go on over all that are `left`, the first of them first; if not, both are as they were.
    fn extend(&self, chain: &mut Vec<u16>, left: &mut Vec<u16>, tries: &mut u32) -> bool {
        let Some(last) = chain.last().copied().filter(|_| !left.is_empty()) else { return true };
        for at in 0..left.len() {
            if !self.0.contains(&(last, left[at])) {
                continue;
            }
            *tries = match tries.checked_sub(1) {
                Some(tries) => tries,
                None => return false,
            };
            chain.push(left.remove(at));
            if self.extend(chain, left, tries) {
                return true;
            }
            left.insert(at, chain.pop().expect("it was put there"));
        }
        false
    }
}

impl Sender {
    /// `from` can pass pieces on to `to` from now on.
    pub fn add_hop(&mut self, from: u16, to: u16) {
        if self.targets.contains_key(&from) && self.targets.contains_key(&to) {
            self.hops.0.insert((from, to));
        }
    }

    /// `from` can't, or not any more: what was to come that way is sent another.
    pub fn remove_hop(&mut self, from: u16, to: u16) {
        if self.hops.0.remove(&(from, to)) {
            self.cut_chains(|one, other| (one, other) == (from, to));
        }
    }

    /// Multicast does not reach these targets any more: all that they wait for goes to them over TCP.
    pub fn give_up_multicast(&mut self, targets: impl IntoIterator<Item = u16>) {
        let targets = targets.into_iter().fold(0, |mask, target| mask | mask_of(target));
        self.sets.values_mut().for_each(|set| set.by_unicast |= targets & set.members);
        let waiting = self.frames.iter().map(|(number, open)| (*number, open.multicast_waiting() & targets));
        let waiting: Vec<(u64, TargetMask)> = waiting.filter(|(_, members)| *members != 0).collect();
        waiting.into_iter().for_each(|(number, members)| self.deliver_anew(number, members));
    }

    /// The target takes part in no chain any more.
    pub(super) fn remove_from_chains(&mut self, target: u16) {
        self.hops.0.retain(|(from, to)| *from != target && *to != target);
        self.cut_chains(|one, other| one == target || other == target);
    }

    /// Queues a frame for members that get it over TCP.
    pub(super) fn deliver(&mut self, number: u64, members: TargetMask) {
        for chain in self.hops.chains(members, number) {
            let Some(open) = self.frames.get_mut(&number) else { return };
            open.chains.push(chain.clone());
            self.target(chain[0]).unicast.push_back(Delivery { frame: number, chain });
        }
    }

    /// The same for members that have been sent some of it, or all, in another way; nothing is known of what has come there.
    fn deliver_anew(&mut self, number: u64, members: TargetMask) {
        let Some(open) = self.frames.get_mut(&number) else { return };
        open.begin_anew(members);
        for target in targets_of(members) {
            let target = self.target(target);
            target.take_in_flight(number);
            target.unicast_repairs.retain(|(frame, _)| *frame != number);
        }
        self.deliver(number, members);
    }

    /// Cuts every chain where `is_broken` says so. Who waits behind the cut is sent the frame anew; where nothing has left yet,
    /// all of the chain are.
    fn cut_chains(&mut self, is_broken: impl Fn(u16, u16) -> bool) {
        let cut_at = |chain: &Chain| Some(1 + chain.windows(2).position(|hop| is_broken(hop[0], hop[1]))?);
        let mut unbegun = HashSet::new();
        for target in self.targets.values_mut() {
            let mut begun = target.first_next > 0;
            target.unicast.retain_mut(|delivery| {
                let is_begun = std::mem::take(&mut begun);
                let Some(at) = cut_at(&delivery.chain) else { return true };
                if is_begun {
                    delivery.chain = delivery.chain[..at].into();
                } else {
                    unbegun.insert((delivery.frame, delivery.chain.clone()));
                }
                is_begun
            });
        }
        let mut anew = Vec::new();
        for (number, open) in &mut self.frames {
            let mut behind = 0;
            open.chains.retain_mut(|chain| {
                let Some(at) = cut_at(chain) else { return true };
                let kept = if unbegun.contains(&(*number, chain.clone())) { 0 } else { at };
                behind |= chain[kept..].iter().fold(0, |mask, target| mask | mask_of(*target));
                *chain = chain[..kept].into();
                kept > 0
            });
            if behind & open.waiting != 0 {
                anew.push((*number, behind & open.waiting));
            }
        }
        anew.into_iter().for_each(|(number, members)| self.deliver_anew(number, members));
    }

    /// A target has missed a frame for so long that it will not come: if the one before it in the chain has the frame, the
    /// hop between them is to blame, and is used no more.
    pub(super) fn blame_hop(&mut self, target: u16, frame: u64) {
        let Some(open) = self.frames.get(&frame) else { return };
        let before = open.chains.iter().rev().find_map(|chain| {
            let at = chain.iter().position(|member| *member == target)?;
            Some(chain[at.checked_sub(1)?])
        });
        if let Some(before) = before.filter(|before| open.waiting & mask_of(*before) == 0) {
            self.remove_hop(before, target);
        }
    }

    /// Whether the report shows that nothing reaches the target any more of what is multicast to a set whose frames it misses.
    pub(super) fn look_for_silence(&mut self, number: u16, report: &Report, now: Time) {
        let mask = mask_of(number);
        let mut missed: Vec<u16> = Vec::new();
        for open in report.gaps.iter().filter_map(|gap| self.frames.get(&gap.frame)) {
            if open.multicast_waiting() & mask != 0 && !missed.contains(&open.set) {
                missed.push(open.set);
            }
        }
        let Some(target) = self.targets.get_mut(&number) else { return };
        for set in missed {
            let seen_below = target.path.seen_below(set);
            let state = &self.sets[&set];
            let is_over = state.repairs_by_unicast || state.by_unicast & mask != 0;
            if is_over || state.next_number - seen_below < UNHEARD_DATAGRAMS {
                target.silences.remove(&set);
                continue;
            }
            let sent_below = state.next_number;
            let new = Silence { seen_below, since: now, reports: 0, sent_below, again: None };
            let silence = target.silences.entry(set).or_insert(new);
            if silence.seen_below != seen_below {
                *silence = new;
            }
            silence.reports += 1;
            if sent_below - silence.sent_below >= UNHEARD_DATAGRAMS {
                silence.again.get_or_insert(now);
            }
            let is_long = now.since(silence.since) >= UNHEARD_MAX
                && silence.again.is_some_and(|at| now.since(at) >= UNHEARD_AGAIN)
                && silence.reports >= UNHEARD_REPORTS;
            if is_long && !std::mem::replace(&mut target.is_unheard, true) {
                self.events.push_back(SenderEvent::Unheard { target: number });
            }
        }
    }

    /// The next pieces of the frame that is first in the target's queue.
    pub(super) fn next_delivery(&mut self, now: Time, head: u16) -> Option<Transmit> {
        let window = self.config.unicast_window_bytes;
        loop {
            let Delivery { frame, chain } = self.targets.get(&head)?.unicast.front()?.clone();
            let is_blocked = self.is_blocked(&chain);
            let members = chain.iter().fold(0, |mask, target| mask | mask_of(*target));
            let Some(open) = self.frames.get_mut(&frame).filter(|open| open.waiting & members != 0) else {
                self.target(head).end_delivery();
                continue;
            };
            let target = self.targets.get(&head)?;
            let first = target.first_next;
            if target.in_flight_bytes >= window || (first == 0 && is_blocked) {
                return None;
            }
            let max = TRANSMIT_BYTES_MAX / (open.piece_bytes + PIECE_OVERHEAD_BYTES);
            let pieces = (max.clamp(1, TRANSMIT_PIECES_MAX) as u16).min(open.count - first);
            let (path, counter) = match *chain {
                [target] => (Path::Unicast { target }, &mut self.counters.unicast_pieces),
                _ => (Path::Relay { chain: chain.clone() }, &mut self.counters.relay_pieces),
            };
            *counter += u64::from(pieces);
            let transmit = Transmit::new(path, frame, None, open, first, pieces);
            open.begun.get_or_insert(now);
            let is_last = first + pieces == open.count;
            let (waiting, set) = (open.waiting & members, open.set);
            if is_last {
                open.unicast_left &= !members;
                open.told |= members;
                open.unicast_at = now;
            }
            let target = self.target(head);
            target.first_next += pieces;
            if is_last {
                target.end_delivery();
            }
            for number in targets_of(waiting) {
                let target = self.target(number);
                target.give(frame, transmit.sealed_bytes(), number == head);
                if is_last {
                    target.opened(now, frame, set);
                }
            }
            return Some(transmit);
        }
    }

    /// Whether a target behind the first has no room for a frame more.
    pub(super) fn is_blocked(&self, chain: &Chain) -> bool {
        chain[1..].iter().any(|target| self.is_full(*target))
    }

    fn is_full(&self, target: u16) -> bool {
        let window = self.config.unicast_window_bytes;
        self.targets.get(&target).is_some_and(|target| target.in_flight_bytes >= window)
    }
}
