//! The multicast group addresses at the source: each serves its target sets one after the other, and its members change
//! from set to set.
//!
//! ```text
//! an address:    Preparing(first) ──► Sending(first) ──► Draining(first), Preparing(second) ──► Sending(second) … ─► over
//! its members:   join, hear a probe                      new ones join, hear a probe      the others leave
//! ```
//!
//! - A set's frames go to its address only when each of its members has confirmed that it has joined, and has heard a
//!   probe there. One that does not in time is sent them over TCP, and is not waited for again at any address.
//! - Probes are as long as the datagrams that follow. In the latter half of the time that is given to hear one they are shorter, for who is
//!   still to hear one: a path may carry less than the interfaces at its ends. Frames of a set are cut for the member whose path
//!   carries least.
//! - With [`Addresses::try_at`], each target is sent a train of probes at the session's rate before the first set that reaches it. Where too little of it
//!   gets there, frames go over TCP too.
//! - New members are told to join when the last frame of the set before has left, and the others to leave when that set
//!   is settled: nobody gets by multicast what is not for it, but for what switches are slow to stop. What a slow member
//!   has not acknowledged by then, and misses, comes over TCP.
//! - While one address changes, the others go on. That with the most sets still to come goes first, so that others are
//!   left to be sent while it changes.
//!
//! Keys are those of the sets, not of the addresses: a host that still listens can't open what is not for it.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::trains::{Burst, Trains};
use crate::placement::{TargetId, TargetSet};
use crate::time::Time;
use crate::transport::Sender;
use crate::wire::control::Message;

/// A member that has not confirmed by then that it has joined is sent the set over TCP.
const CONFIRM_MAX: Duration = Duration::from_secs(3);
/// The same for one that has joined, and has heard no probe: joins take switches a moment, and no more.
const HEAR_MAX: Duration = Duration::from_millis(1500);
/// How long a set that has been sent is waited for to be acknowledged before its address goes on to the next.
const SETTLE_MAX: Duration = Duration::from_millis(300);
/// How often a set is probed that has somebody waiting.
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// A target set that an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSet {
    /// Its number on the wire.
    pub number: u16,
    /// Its members.
    pub members: TargetSet,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum AddressAction {
    /// Say this to a target: to join or to leave a set's group.
    Send {
        /// The target.
        target: u16,
        /// What.
        message: Message,
    },
    /// The target is sent over TCP what others get by multicast: said once of each.
    Unreached {
        /// The target.
        target: u16,
        /// What it said, if it could not join.
        error: Option<String>,
    },
}

/// All addresses of a session.
#[derive(Debug)]
pub struct Addresses {
    addresses: Vec<Address>,
    /// Bytes of datagrams to be tried, the longest first; at least one.
    lengths: Vec<usize>,
    /// What the paths of targets carry that have not heard the longest.
    carried: BTreeMap<u16, usize>,
    /// Targets that could not join an address in time, or could not hear: they are not asked again.
    unreached: TargetSet,
    /// Targets that could not acknowledge a set in time.
    slow: TargetSet,
    /// Targets that have left the scatter.
    gone: TargetSet,
    trains: Trains,
    actions: VecDeque<AddressAction>,
    joins: u64,
    leaves: u64,
}

/// One address.
#[derive(Debug)]
struct Address {
    /// The sets that it serves, in this order.
    sets: Vec<AddressSet>,
    /// The first of them that is neither being prepared nor sent, nor was.
    next: usize,
    preparing: Option<Preparing>,
    sending: Option<Sending>,
    /// Targets that have been told to join it and not to leave it.
    members: TargetSet,
    /// Those of them that have heard a probe here.
    reached: TargetSet,
}

/// The set that comes next.
#[derive(Debug)]
struct Preparing {
    set: AddressSet,
    /// Who has not said that it has joined.
    unconfirmed: TargetSet,
    /// Who has not heard a probe.
    unheard: TargetSet,
    /// How long they are waited for.
    until: Time,
    /// Which of the lengths is tried.
    length: usize,
    probe_at: Time,
}

/// The set whose frames are sent.
#[derive(Debug)]
struct Sending {
    set: AddressSet,
    /// No more frames come.
    is_exhausted: bool,
    /// When the last of them had left.
    sent: Option<Time>,
}

impl Addresses {
    /// One address for each list; a list is served from its first set to its last. Datagrams are to have the first of `lengths`, in bytes
    /// behind the UDP header, or another where members don't hear probes of that.
    ///
    /// # Panics
    /// If there is no length.
    pub fn new(lists: impl IntoIterator<Item = Vec<AddressSet>>, lengths: Vec<usize>) -> Self {
        assert!(!lengths.is_empty(), "a datagram has a length");
        let address = |sets| Address {
            sets,
            next: 0,
            preparing: None,
            sending: None,
            members: TargetSet::EMPTY,
            reached: TargetSet::EMPTY,
        };
        Addresses {
            addresses: lists.into_iter().map(address).collect(),
            lengths,
            carried: BTreeMap::new(),
            unreached: TargetSet::EMPTY,
            slow: TargetSet::EMPTY,
            gone: TargetSet::EMPTY,
            trains: Trains::default(),
            actions: VecDeque::new(),
            joins: 0,
            leaves: 0,
        }
    }

    /// Tries the targets in `able`, which can count, with trains of so many bytes a second.
    pub fn try_at(&mut self, bytes_per_s: u64, able: TargetSet) {
        self.trains = Trains::new(bytes_per_s, able);
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<AddressAction> {
        self.actions.pop_front()
    }

    /// When [`Addresses::advance`] wants to be called if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        let addresses = self.addresses.iter().filter(|address| !self.is_tried(address));
        addresses.filter_map(Address::timeout).chain(self.trains.timeout()).min()
    }

    /// Sets whose frames may be sent, the most urgent first.
    pub fn ready(&self) -> impl Iterator<Item = u16> {
        let sending = |address: &Address| {
            let sending = address.sending.as_ref().filter(|sending| !sending.is_exhausted)?;
            Some((address.sets.len() - address.next, sending.set.number))
        };
        let mut ready: Vec<(usize, u16)> = self.addresses.iter().filter_map(sending).collect();
        // Stable: of addresses with as many sets to come, the first.
        ready.sort_by_key(|(left, _)| Reverse(*left));
        ready.into_iter().map(|(_, set)| set)
    }

    /// Sets to whose groups a probe is due, and how many bytes it is to have.
    pub fn probes(&mut self, now: Time) -> Vec<(u16, usize)> {
        let preparing = self.addresses.iter_mut().filter_map(|address| address.preparing.as_mut());
        let due = preparing.filter(|preparing| !preparing.unheard.is_empty() && now >= preparing.probe_at);
        let probe = |preparing: &mut Preparing| {
            preparing.probe_at = now + PROBE_INTERVAL;
            preparing.length = preparing.length_at(now, self.lengths.len());
            (preparing.set.number, self.lengths[preparing.length])
        };
        due.map(probe).collect()
    }

    /// What is to leave now of a train, to be told apart from other probes.
    pub fn train(&mut self, now: Time) -> Option<Burst> {
        self.trains.due(now)
    }

    /// So many datagrams of a train have come to a target.
    pub fn counted(&mut self, target: u16, set: u16, datagrams: u64) {
        if let Some(poor) = self.trains.counted(target, set, datagrams) {
            let (sent, rate) = (poor.sent, poor.bytes_per_s * 8 / 1_000_000);
            self.leave_for_good(
                target,
                Some(format!("{datagrams} of {sent} datagrams arrive at {rate} Mbit/s")),
            );
        }
    }

    /// Of what is multicast so little gets to anybody, in bytes a second, that all leave their groups, as [`Addresses::unheard`] has it.
    pub fn throttled(&mut self, bytes_per_s: u64) {
        let members = self.addresses.iter().flat_map(|address| &address.sets[..]).map(|set| set.members);
        for target in members.fold(TargetSet::EMPTY, union).members() {
            let error = format!("{} Mbit/s get there", bytes_per_s * 8 / 1_000_000);
            self.leave_for_good(target.0.into(), Some(error));
        }
    }

    /// Whether members of the set that comes next are being tried.
    fn is_tried(&self, address: &Address) -> bool {
        let next = address.preparing.as_ref().filter(|preparing| preparing.is_ready());
        next.is_some_and(|preparing| self.trains.is_trying(preparing.set.members))
    }

    /// Whether every set has been sent and every address left.
    pub fn is_over(&self) -> bool {
        self.addresses.iter().all(Address::is_over)
    }

    /// Joins and leaves that targets have been told so far.
    pub fn changes(&self) -> (u64, u64) {
        (self.joins, self.leaves)
    }

    /// A target has joined the group of a set, or says why it can't.
    pub fn joined(&mut self, now: Time, target: u16, set: u16, error: Option<String>) {
        if let Some(error) = error {
            for address in self.addresses.iter_mut().filter(|address| address.prepares(set)) {
                address.forget(target);
            }
            return self.give_up(target, Some(error));
        }
        let preparing = self.addresses.iter_mut().filter_map(|address| address.preparing.as_mut());
        for preparing in preparing.filter(|preparing| preparing.set.number == set) {
            let was_waiting = !preparing.unconfirmed.is_empty();
            remove(&mut preparing.unconfirmed, target);
            if was_waiting && preparing.unconfirmed.is_empty() {
                (preparing.until, preparing.probe_at) = (now + HEAR_MAX, now);
            }
        }
    }

    /// A probe on the group of a set has reached a target. One that has not said that it has joined may have heard it as a
    /// member of before, which it has been told to leave: that does not count, and it says it again once it has joined.
    pub fn heard(&mut self, target: u16, set: u16) {
        for address in self.addresses.iter_mut().filter(|address| address.prepares(set)) {
            let Some(preparing) = &mut address.preparing else { continue };
            if contains(without(preparing.unheard, preparing.unconfirmed), target) {
                remove(&mut preparing.unheard, target);
                if preparing.length > 0 {
                    self.carried.insert(target, self.lengths[preparing.length]);
                }
                address.reached = union(address.reached, single(target));
            }
        }
    }

    /// Nothing that is multicast reaches the target any more: it leaves its groups, and is not asked to join again.
    pub fn unheard(&mut self, target: u16) {
        self.leave_for_good(target, None);
    }

    fn leave_for_good(&mut self, target: u16, error: Option<String>) {
        self.leave_where(target, |address| address.set_of(target));
        self.give_up(target, error);
    }

    /// No more frames of the set come: all of them have been given to the sender.
    pub fn exhausted(&mut self, set: u16) {
        let sending = self.addresses.iter_mut().filter_map(|address| address.sending.as_mut());
        sending.filter(|sending| sending.set.number == set).for_each(|sending| sending.is_exhausted = true);
    }

    /// The target has died, or leaves the scatter: it is not waited for. If it lives, it leaves its groups, so that what is
    /// for others does not fill its link.
    pub fn remove_target(&mut self, target: u16) {
        self.gone = union(self.gone, single(target));
        self.trains.forget(target);
        self.leave_where(target, |address| address.set_of(target));
    }

    /// Starts what has become possible. Each set must have been added to `sender`, which learns who is to be served
    /// over TCP.
    pub fn advance(&mut self, now: Time, sender: &mut Sender) {
        self.expire(now);
        if let Some((set, targets)) = self.trains.asks(now) {
            let ask = |target: TargetId| AddressAction::Send {
                target: target.0.into(),
                message: Message::CountTrain { set },
            };
            self.actions.extend(targets.members().map(ask));
        }
        for at in 0..self.addresses.len() {
            self.advance_address(at, now, sender);
        }
    }

    fn expire(&mut self, now: Time) {
        let preparing = self.addresses.iter().filter_map(|address| address.preparing.as_ref());
        let late = preparing.filter(|preparing| now >= preparing.until).map(Preparing::waiting);
        let late = late.fold(TargetSet::EMPTY, union);
        for target in late.members() {
            self.give_up(u16::from(target.0), None);
        }
    }

    /// The target is waited for nowhere any more, and is not asked to join again.
    fn give_up(&mut self, target: u16, error: Option<String>) {
        self.trains.forget(target);
        self.leave_where(target, |address| {
            let preparing = address.preparing.as_ref().filter(|set| contains(set.waiting(), target));
            preparing.map(|preparing| preparing.set.number)
        });
        if !contains(self.unreached, target) && !contains(self.gone, target) {
            self.unreached = union(self.unreached, single(target));
            self.actions.push_back(AddressAction::Unreached { target, error });
        }
    }

    /// The target leaves each address for which `set_of` names a set that it has joined there.
    fn leave_where(&mut self, target: u16, set_of: impl Fn(&Address) -> Option<u16>) {
        for address in &mut self.addresses {
            let Some(set) = set_of(address) else { continue };
            address.forget(target);
            self.leaves += 1;
            self.actions.push_back(AddressAction::Send { target, message: Message::Leave { set } });
        }
    }

    fn advance_address(&mut self, at: usize, now: Time, sender: &mut Sender) {
        let address = &mut self.addresses[at];
        let mut unsettled = TargetSet::EMPTY;
        if let Some(sending) = &mut address.sending {
            if !sending.is_exhausted {
                return;
            }
            let progress = sender.multicast_progress(sending.set.number);
            if progress.is_leaving {
                return;
            }
            let sent = *sending.sent.get_or_insert(now);
            unsettled = TargetSet(progress.waiting);
            let is_waited_for = !without(unsettled, self.slow).is_empty() && now < sent + SETTLE_MAX;
            self.prepare(at, now);
            if is_waited_for {
                return;
            }
        } else {
            self.prepare(at, now);
        }
        self.line_up(at);
        let address = &self.addresses[at];
        if address.preparing.as_ref().is_some_and(|preparing| !preparing.is_ready()) || self.is_tried(address)
        {
            return;
        }
        let address = &mut self.addresses[at];
        let before = address.sending.take();
        if let Some(before) = &before
            && !unsettled.is_empty()
        {
            self.slow = union(self.slow, unsettled);
            sender.repair_by_unicast(before.set.number);
        }
        self.go_on(at, before, sender);
    }

    /// Has the members of the next set tried that hear it by now and have not been.
    fn line_up(&mut self, at: usize) {
        let address = &self.addresses[at];
        let Some(preparing) = address.preparing.as_ref().filter(|preparing| preparing.is_ready()) else {
            return;
        };
        let (set, reached) = (preparing.set, intersection(preparing.set.members, address.reached));
        let bytes = self.carried_by(reached).unwrap_or(self.lengths[0]);
        self.trains.line_up(set.number, reached, bytes);
    }

    /// Bytes of the longest datagrams that get to all of these, if that is less than others carry.
    fn carried_by(&self, targets: TargetSet) -> Option<usize> {
        targets.members().filter_map(|target| self.carried.get(&u16::from(target.0))).min().copied()
    }

    /// Tells the new members of the next set to join, if there is one that is not being prepared yet.
    fn prepare(&mut self, at: usize, now: Time) {
        let address = &mut self.addresses[at];
        let Some(set) = address.sets.get(address.next).filter(|_| address.preparing.is_none()) else {
            return;
        };
        let excused = union(union(self.unreached, self.gone), address.members);
        let new = without(set.members, excused);
        address.members = union(address.members, new);
        address.preparing = Some(Preparing {
            set: *set,
            unconfirmed: new,
            unheard: new,
            until: now + CONFIRM_MAX,
            length: 0,
            probe_at: now,
        });
        address.next += 1;
        for target in new.members() {
            self.joins += 1;
            let message = Message::Join { set: set.number };
            self.actions.push_back(AddressAction::Send { target: target.0.into(), message });
        }
    }

    /// The set before is over, and the next is prepared, if there is one: who is not needed any more leaves.
    fn go_on(&mut self, at: usize, before: Option<Sending>, sender: &mut Sender) {
        let address = &mut self.addresses[at];
        let next = address.preparing.take().map(|preparing| preparing.set);
        let needed = next.map_or(TargetSet::EMPTY, |set| set.members);
        for target in without(address.members, needed).members() {
            // A member that is not needed for the next set was one of the set before.
            let Some(before) = &before else { continue };
            self.leaves += 1;
            let message = Message::Leave { set: before.set.number };
            self.actions.push_back(AddressAction::Send { target: target.0.into(), message });
        }
        address.members = intersection(address.members, needed);
        address.reached = intersection(address.reached, needed);
        if let Some(set) = next {
            for target in without(set.members, address.reached).members() {
                sender.serve_by_unicast(set.number, target.0.into());
            }
            let reached = intersection(set.members, address.reached);
            if let Some(bytes) = self.carried_by(reached) {
                sender.limit_datagrams(set.number, bytes);
            }
            let address = &mut self.addresses[at];
            address.sending = Some(Sending { set, is_exhausted: false, sent: None });
        }
    }
}

impl Address {
    fn prepares(&self, set: u16) -> bool {
        self.preparing.as_ref().is_some_and(|preparing| preparing.set.number == set)
    }

    /// A set for which the target is a member of this address's group.
    fn set_of(&self, target: u16) -> Option<u16> {
        let preparing = self.preparing.as_ref().map(|preparing| preparing.set);
        let mut sets = preparing.into_iter().chain(self.sending.as_ref().map(|sending| sending.set));
        let set = sets.find(|set| contains(set.members, target));
        set.filter(|_| contains(self.members, target)).map(|set| set.number)
    }

    fn is_over(&self) -> bool {
        self.next == self.sets.len() && self.preparing.is_none() && self.sending.is_none()
    }

    fn timeout(&self) -> Option<Time> {
        match self.preparing.as_ref().filter(|preparing| !preparing.is_ready()) {
            Some(preparing) => Some(preparing.until.min(preparing.probe_at)),
            None => Some(self.sending.as_ref()?.sent? + SETTLE_MAX),
        }
    }

    fn forget(&mut self, target: u16) {
        remove(&mut self.members, target);
        remove(&mut self.reached, target);
        if let Some(preparing) = &mut self.preparing {
            remove(&mut preparing.unconfirmed, target);
            remove(&mut preparing.unheard, target);
        }
    }
}

impl Preparing {
    fn waiting(&self) -> TargetSet {
        union(self.unconfirmed, self.unheard)
    }

    fn is_ready(&self) -> bool {
        self.waiting().is_empty()
    }

    /// Which of so many lengths to try: the first until half of the time to hear one is over, then the others in turn.
    fn length_at(&self, now: Time, lengths: usize) -> usize {
        let left = self.until.since(now);
        if !self.unconfirmed.is_empty() || left > HEAR_MAX / 2 || lengths == 1 {
            return 0;
        }
        let share = 1.0 - left.as_secs_f64() / (HEAR_MAX / 2).as_secs_f64();
        1 + ((share * (lengths - 1) as f64) as usize).min(lengths - 2)
    }
}

fn single(target: u16) -> TargetSet {
    TargetSet::single(TargetId(target as u8))
}

fn contains(set: TargetSet, target: u16) -> bool {
    set.contains(TargetId(target as u8))
}

fn union(a: TargetSet, b: TargetSet) -> TargetSet {
    TargetSet(a.0 | b.0)
}

fn intersection(a: TargetSet, b: TargetSet) -> TargetSet {
    TargetSet(a.0 & b.0)
}

fn without(a: TargetSet, b: TargetSet) -> TargetSet {
    TargetSet(a.0 & !b.0)
}

fn remove(set: &mut TargetSet, target: u16) {
    *set = without(*set, single(target));
}
