//! Which targets pass shared frames on to which, as the source has them connected.
//!
//! ```text
//! multicast does not reach a target, or is not used ─► Hop to each that shares a set with it, and back ─► Hopped
//!                                                                                      │ all answered, or late
//!                      what the target waits for goes along chains, or straight to it ◄┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::placement::{TargetId, TargetSet};
use crate::time::Time;
use crate::transport::Sender;

/// A hop that has not been answered for by then is not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The same in mid-session: frames wait for it.
const ANSWER_SOON: Duration = Duration::from_millis(500);

/// One target that multicast does not reach any more is seldom alone: so long others are waited for, which then get what waits
/// by one chain.
const COLLECT: Duration = Duration::from_millis(100);

/// The hops of a session at its source.
#[derive(Debug)]
pub struct Hops {
    /// Targets that can pass frames on.
    able: TargetSet,
    /// The sets of several targets.
    sets: Vec<TargetSet>,
    /// Targets that multicast does not reach.
    unreached: TargetSet,
    /// Those of them whose frames wait for their hops.
    waiting: TargetSet,
    /// Until when others are waited for.
    collect: Time,
    /// Hops that have been asked for.
    asked: BTreeSet<(u16, u16)>,
    /// Those of them that have not been answered, and until when that is waited for.
    awaited: BTreeMap<(u16, u16), Time>,
    to_ask: VecDeque<(u16, u16)>,
}

impl Hops {
    /// `able` are the targets that can pass frames on, `sets` those of several targets.
    pub fn new(able: TargetSet, sets: impl IntoIterator<Item = TargetSet>) -> Self {
        Hops {
            able,
            sets: sets.into_iter().collect(),
            unreached: TargetSet::EMPTY,
            waiting: TargetSet::EMPTY,
            collect: Time::ZERO,
            asked: BTreeSet::new(),
            awaited: BTreeMap::new(),
            to_ask: VecDeque::new(),
        }
    }

    /// Multicast is not used: every target is served by the others.
    pub fn without_multicast(&mut self, now: Time) {
        self.unreached = self.sets.iter().flat_map(|set| set.members()).collect();
        self.ask(now + ANSWER_MAX);
    }

    /// Multicast does not reach the target, or not any more.
    pub fn unreached(&mut self, now: Time, target: u16) {
        if self.waiting.is_empty() {
            self.collect = now + COLLECT;
        }
        self.unreached.insert(TargetId(target as u8));
        self.waiting.insert(TargetId(target as u8));
        self.ask(now + ANSWER_SOON);
    }

    /// Asks for the hops among the unreached that share a set.
    fn ask(&mut self, until: Time) {
        let members = |set: &TargetSet| TargetSet(set.0 & self.unreached.0 & self.able.0).members();
        for set in &self.sets {
            for (from, to) in members(set).flat_map(|from| members(set).map(move |to| (from, to))) {
                let hop = (u16::from(from.0), u16::from(to.0));
                if from != to && self.asked.insert(hop) {
                    self.awaited.insert(hop, until);
                    self.to_ask.push_back(hop);
                }
            }
        }
    }

    /// The next hop to ask for: from which target to which.
    pub fn poll_ask(&mut self) -> Option<(u16, u16)> {
        self.to_ask.pop_front()
    }

    /// `from` can pass frames on to `to`, or says why it can't, or not any more. What was never asked for is ignored.
    pub fn answered(&mut self, from: u16, to: u16, is_open: bool, sender: &mut Sender) {
        if !self.asked.contains(&(from, to)) {
            return;
        }
        let is_first = self.awaited.remove(&(from, to)).is_some();
        if !is_open {
            sender.remove_hop(from, to);
        } else if is_first {
            sender.add_hop(from, to);
        }
    }

    /// The target has left the scatter: nobody waits for its answers.
    pub fn remove_target(&mut self, target: u16) {
        self.able.0 &= !(1 << target);
        self.waiting.0 &= !(1 << target);
        self.to_ask.retain(|(from, to)| *from != target && *to != target);
        self.awaited.retain(|(from, to), _| *from != target && *to != target);
    }

    /// Whether an answer is still waited for.
    pub fn is_awaited(&self, now: Time) -> bool {
        self.awaited.values().any(|until| now < *until)
    }

    /// When [`Hops::advance`] wants to be called if nothing else happens.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        if self.waiting.is_empty() {
            return None;
        }
        let awaited = self.awaited.values().copied().filter(|until| now < *until).max();
        Some(awaited.map_or(self.collect, |until| until.max(self.collect)))
    }

    /// Once every answer is there, or late, what the unreached wait for goes to them in the ways that there are.
    pub fn advance(&mut self, now: Time, sender: &mut Sender) {
        if !self.waiting.is_empty() && now >= self.collect && !self.is_awaited(now) {
            let waiting = std::mem::replace(&mut self.waiting, TargetSet::EMPTY);
            sender.give_up_multicast(waiting.members().map(|target| u16::from(target.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Path, SenderConfig, Transmit};

    fn asked(hops: &mut Hops) -> Vec<(u16, u16)> {
        std::iter::from_fn(|| hops.poll_ask()).collect()
    }

    fn sender() -> Sender {
        let mut sender = Sender::new(SenderConfig::default(), Time::ZERO);
        sender.add_set(9, &[0, 1, 2], true);
        sender
    }

    fn paths(sender: &mut Sender, now: Time) -> Vec<Path> {
        std::iter::from_fn(|| sender.poll_transmit(now)).map(|transmit: Transmit| transmit.path).collect()
    }

    #[test]
    fn those_that_share_a_set_are_connected_both_ways() {
        let mut hops = Hops::new(TargetSet(0b0111), [TargetSet(0b0011), TargetSet(0b1100)]);
        hops.without_multicast(Time::ZERO);
        assert_eq!(asked(&mut hops), [(0, 1), (1, 0)], "target 3 can't, and 2 shares no other set");
        assert!(hops.is_awaited(Time::ZERO));
        hops.unreached(Time::ZERO, 1);
        assert_eq!(asked(&mut hops), [], "each is asked for once");
        hops.remove_target(0);
        assert!(!hops.is_awaited(Time::ZERO));
    }

    #[test]
    fn frames_wait_for_the_hops_and_go_along_them() {
        let (mut sender, mut now) = (sender(), Time::ZERO);
        let mut hops = Hops::new(TargetSet(0b111), [TargetSet(0b111)]);
        hops.unreached(now, 0);
        hops.unreached(now, 1);
        assert_eq!(asked(&mut hops), [(0, 1), (1, 0)]);
        sender.push(0, 9, vec![1; 100].into());
        hops.answered(1, 0, false, &mut sender);
        hops.answered(1, 2, true, &mut sender);
        now = now + COLLECT;
        hops.advance(now, &mut sender);
        assert_eq!(paths(&mut sender, now), [Path::Multicast { set: 9 }]);
        hops.answered(0, 1, true, &mut sender);
        hops.advance(now, &mut sender);
        assert_eq!(paths(&mut sender, now), [Path::Relay { chain: vec![0, 1].into() }]);
        // A hop that is lost, and a third target that answers nothing for too long.
        hops.answered(0, 1, false, &mut sender);
        assert_eq!(paths(&mut sender, now), [Path::Unicast { target: 1 }]);
        hops.unreached(now, 2);
        assert_eq!(asked(&mut hops).len(), 4);
        sender.push(1, 9, vec![1; 100].into());
        now = hops.poll_timeout(now).unwrap();
        assert!(now >= Time::ZERO + ANSWER_SOON);
        hops.advance(now, &mut sender);
        let straight = paths(&mut sender, now);
        assert!(straight.iter().all(|path| matches!(path, Path::Unicast { .. })), "{straight:?}");
        assert_eq!(straight.len(), 4, "the second to all three, the first to the last once more");
        assert_eq!(hops.poll_timeout(now), None);
    }
}
