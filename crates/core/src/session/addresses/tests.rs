use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::schedule::{SetLoad, order_sets};
use crate::transport::{Path, SenderConfig};
use crate::wire::control::Report;
use crate::wire::piece::PIECE_OVERHEAD_BYTES;

/// Addresses, the sender, and targets that do what they are told.
struct World {
    now: Time,
    addresses: Addresses,
    sender: Sender,
    members: BTreeMap<u16, TargetSet>,
    /// The address of each set.
    at: BTreeMap<u16, usize>,
    /// Who has joined each address.
    joined: Vec<BTreeSet<u16>>,
    /// Targets that answer nothing, that hear nothing, that can't join, and that acknowledge nothing.
    dead: TargetSet,
    deaf: TargetSet,
    refusing: TargetSet,
    slow: TargetSet,
    /// Bytes that get to a target at most, and the longest datagrams of each set.
    narrow: BTreeMap<u16, usize>,
    longest: BTreeMap<u16, usize>,
    /// To this one only one in ten datagrams gets; and those of trains that have come, by target and set.
    policed: Option<u16>,
    trains: BTreeMap<(u16, u16), u64>,
    frames: u64,
    /// Frames that have left by multicast and that a target has not acknowledged.
    open: BTreeSet<(u64, u16)>,
    unreached: Vec<u16>,
    /// Frames that each target was sent over TCP.
    by_unicast: BTreeSet<(u64, u16)>,
    seen: BTreeMap<(u16, u16), u64>,
}

/// Set numbers are 0 and up; `lists` names them by address.
fn world(sets: &[u128], lists: &[&[u16]]) -> World {
    let mut sender = Sender::new(SenderConfig::default(), Time::ZERO);
    let members: BTreeMap<u16, TargetSet> = (0..).zip(sets.iter().map(|set| TargetSet(*set))).collect();
    for (number, members) in &members {
        let members: Vec<u16> = members.members().map(|target| target.0.into()).collect();
        sender.add_set(*number, &members, true);
    }
    let set = |number: &u16| AddressSet { number: *number, members: members[number] };
    let lists_of_sets = lists.iter().map(|list| list.iter().map(set).collect());
    let addresses = Addresses::new(lists_of_sets, vec![1472, 1000, 500]);
    let at = lists.iter().enumerate().flat_map(|(at, list)| list.iter().map(move |set| (*set, at))).collect();
    World {
        now: Time::ZERO,
        addresses,
        sender,
        members,
        at,
        joined: vec![BTreeSet::new(); lists.len()],
        dead: TargetSet::EMPTY,
        deaf: TargetSet::EMPTY,
        refusing: TargetSet::EMPTY,
        slow: TargetSet::EMPTY,
        narrow: BTreeMap::new(),
        longest: BTreeMap::new(),
        policed: None,
        trains: BTreeMap::new(),
        frames: 0,
        open: BTreeSet::new(),
        unreached: Vec::new(),
        by_unicast: BTreeSet::new(),
        seen: BTreeMap::new(),
    }
}

impl World {
    fn step(&mut self) {
        self.addresses.advance(self.now, &mut self.sender);
        while let Some(action) = self.addresses.poll_action() {
            match action {
                AddressAction::Send { target, message: Message::Join { set } } => self.join(target, set),
                AddressAction::Send { target, message: Message::Leave { set } } => {
                    self.joined[self.at[&set]].remove(&target);
                }
                AddressAction::Send { target, message: Message::CountTrain { set } } => {
                    if !contains(self.dead, target) {
                        self.addresses.counted(target, set, self.trains[&(target, set)]);
                    }
                }
                AddressAction::Send { message, .. } => panic!("{message:?} is not about groups"),
                AddressAction::Unreached { target, .. } => self.unreached.push(target),
            }
        }
        for (set, bytes) in self.addresses.probes(self.now) {
            let group = self.joined[self.at[&set]].clone();
            for target in group.into_iter().filter(|target| !contains(union(self.deaf, self.dead), *target)) {
                let gets_there = self.narrow.get(&target).is_none_or(|most| bytes <= *most);
                if contains(self.members[&set], target) && gets_there {
                    self.addresses.heard(target, set);
                }
            }
        }
        while let Some(burst) = self.addresses.train(self.now) {
            for target in &self.joined[self.at[&burst.set]] {
                let share = if self.policed == Some(*target) { 10 } else { 1 };
                *self.trains.entry((*target, burst.set)).or_default() += u64::from(burst.datagrams / share);
            }
        }
        self.addresses.advance(self.now, &mut self.sender);
        self.now = self.now + Duration::from_millis(1);
    }

    fn join(&mut self, target: u16, set: u16) {
        if contains(self.dead, target) {
            return;
        }
        let error = contains(self.refusing, target).then(|| "no".to_owned());
        if error.is_none() {
            assert!(self.joined[self.at[&set]].insert(target), "{target} is told to join where it is");
        }
        self.addresses.joined(self.now, target, set, error);
    }

    fn steps(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
    }

    fn ready(&self) -> Vec<u16> {
        self.addresses.ready().collect()
    }

    /// A frame for a set that is ready.
    fn push(&mut self, set: u16) {
        assert!(self.ready().contains(&set), "frames of {set} may not be sent");
        self.sender.push(self.frames, set, vec![1; 3_000].into());
        self.frames += 1;
    }

    /// Lets everything leave, and checks that those for whom it is are there.
    fn transmit(&mut self) {
        while let Some(transmit) = self.sender.poll_transmit(self.now) {
            match transmit.path {
                Path::Multicast { set } => {
                    let bytes =
                        transmit.pieces(0).map(|(_, payload)| payload.len() + PIECE_OVERHEAD_BYTES).max();
                    let longest = self.longest.entry(set).or_default();
                    *longest = (*longest).max(bytes.unwrap_or(0));
                    self.seen.extend(self.members[&set].members().map(|target| {
                        let below = transmit.number.unwrap() + transmit.indices().len() as u64;
                        ((target.0.into(), set), below)
                    }));
                    let group = &self.joined[self.at[&set]];
                    let waiting = TargetSet(self.sender.multicast_progress(set).waiting);
                    let waiting = without(waiting, self.dead).members().map(|target| u16::from(target.0));
                    let waiting: Vec<u16> = waiting.collect();
                    assert!(waiting.iter().all(|target| group.contains(target)), "{waiting:?} of {group:?}");
                    let frames = waiting.into_iter().map(|target| (transmit.frame, target));
                    self.open.extend(frames);
                }
                Path::Relay { chain } => panic!("no hop is open: {chain:?}"),
                Path::Unicast { target } => {
                    self.by_unicast.insert((transmit.frame, target));
                    self.open.insert((transmit.frame, target));
                }
            }
        }
    }

    /// All but the slow and the dead acknowledge what has left.
    fn acknowledge(&mut self) {
        let silent = union(self.slow, self.dead);
        let (kept, acked): (BTreeSet<_>, BTreeSet<_>) =
            self.open.iter().copied().partition(|(_, target)| contains(silent, *target));
        self.open = kept;
        for (frame, target) in acked {
            let report = Report { written: vec![(frame, frame)], ..Report::default() };
            self.sender.on_report(target, &report, self.now).expect("it has been sent");
        }
    }

    /// A set's only frame, from its turn to its end.
    fn serve(&mut self, set: u16) {
        self.push(set);
        self.addresses.exhausted(set);
        for _ in 0..20 {
            self.transmit();
            self.step();
        }
        self.acknowledge();
        self.step();
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        self.joined.iter().map(|group| group.iter().copied().collect()).collect()
    }
}

#[test]
fn each_set_at_its_own_address_is_ready_at_once() {
    let mut world = world(&[0b11, 0b110, 0b101], &[&[0], &[1], &[2]]);
    world.step();
    assert_eq!(world.ready(), [0, 1, 2]);
    assert_eq!(world.groups(), [[0, 1], [1, 2], [0, 2]]);
    for set in [0, 1, 2] {
        world.serve(set);
    }
    assert!(world.addresses.is_over());
    assert_eq!(world.groups(), [[0u16; 0]; 3], "all have left");
    assert_eq!(world.addresses.changes(), (6, 6));
    assert!(world.unreached.is_empty());
    assert_eq!(world.addresses.poll_timeout(), None);
}

#[test]
fn members_change_while_others_go_on() {
    let mut world = world(&[0b011, 0b110, 0b101], &[&[0, 1], &[2]]);
    world.step();
    assert_eq!(world.ready(), [0, 2], "first the address with more to come");
    world.push(0);
    world.addresses.exhausted(0);
    world.step();
    assert_eq!(world.groups()[0], [0, 1], "nobody new comes before the frame has left");
    world.transmit();
    world.step();
    assert_eq!(world.groups()[0], [0, 1, 2], "who is new has joined, who has not acknowledged has not left");
    assert_eq!(world.ready(), [2]);
    world.acknowledge();
    world.step();
    assert_eq!(world.groups()[0], [1, 2]);
    assert_eq!(world.ready(), [1, 2]);
    world.serve(1);
    world.serve(2);
    assert!(world.addresses.is_over());
    assert_eq!(world.addresses.changes(), (5, 5));
}

#[test]
fn a_set_without_frames_is_passed() {
    let mut world = world(&[0b011, 0b110], &[&[0, 1]]);
    world.step();
    world.addresses.exhausted(0);
    world.step();
    assert_eq!(world.ready(), [1]);
}

/// Datagrams of a set are as long as the paths of all its members carry; who hears none of any length is served over TCP.
#[test]
fn shorter_datagrams_are_tried() {
    for (most, expected, unreached) in [(1100, 1000, false), (600, 500, false), (400, 1472, true)] {
        let mut world = world(&[0b111, 0b11], &[&[0], &[1]]);
        world.narrow.insert(2, most);
        world.steps(HEAR_MAX + Duration::from_millis(50));
        assert_eq!(world.ready(), [0, 1]);
        [0, 1].into_iter().for_each(|set| world.push(set));
        world.transmit();
        assert_eq!(world.unreached.contains(&2), unreached, "{most}");
        let longest = world.longest[&0];
        assert!(longest <= expected && longest + 8 > expected, "{longest} where {most} get there");
        assert!(world.longest[&1] > 1472 - 8, "the others' own set is cut as long as ever");
    }
}

/// Who gets little of a train is served over TCP from the start; each is tried once, and nobody is waited for who does not answer.
#[test]
fn targets_are_tried_with_trains() {
    for dead in [0, 0b0010] {
        let mut world = world(&[0b0111, 0b1101, 0b1010], &[&[0, 2], &[1]]);
        world.addresses.try_at(25_000_000, TargetSet(0b1111));
        world.policed = Some(2);
        world.step();
        assert_eq!(world.ready(), [0u16; 0], "they have heard a probe");
        world.dead = TargetSet(dead);
        world.steps(Duration::from_millis(if dead == 0 { 160 } else { 460 }));
        assert_eq!(world.ready(), [0, 1]);
        assert_eq!(world.unreached, [2]);
        assert_eq!(world.groups(), [vec![0, 1], vec![0, 3]], "it has been told to leave");
        world.dead = TargetSet::EMPTY;
        world.serve(0);
        assert_eq!(world.ready(), [2, 1], "nobody is tried again");
        world.serve(1);
        world.serve(2);
        assert_eq!(world.by_unicast.iter().copied().collect::<Vec<_>>(), [(0, 2), (1, 2)]);
        assert!(world.addresses.is_over() && world.addresses.poll_timeout().is_none());
    }
}

#[test]
fn who_does_not_answer_or_hear_holds_nobody_for_long_and_only_once() {
    for (dead, deaf, wait) in [(0b100, 0, CONFIRM_MAX), (0, 0b100, HEAR_MAX)] {
        let mut world = world(&[0b101, 0b110, 0b111], &[&[0], &[1, 2]]);
        (world.dead, world.deaf) = (TargetSet(dead), TargetSet(deaf));
        world.steps(wait - Duration::from_millis(2));
        assert_eq!(world.ready(), [0u16; 0]);
        world.steps(Duration::from_millis(5));
        assert_eq!(world.ready(), [1, 0]);
        assert_eq!(world.unreached, [2]);
        assert_eq!(world.groups(), [[0], [1]], "it has been told to leave");
        world.serve(1);
        assert_eq!(world.ready(), [0, 2], "it is not asked again");
        world.serve(2);
        world.serve(0);
        let by_unicast: Vec<(u64, u16)> = world.by_unicast.iter().copied().collect();
        assert_eq!(by_unicast, [(0, 2), (1, 2), (2, 2)]);
        assert!(world.addresses.is_over());
    }
}

#[test]
fn who_can_not_join_is_served_over_tcp_at_once() {
    let mut world = world(&[0b101, 0b110], &[&[0, 1]]);
    world.refusing = TargetSet(0b100);
    world.step();
    assert_eq!(world.ready(), [0]);
    assert_eq!(world.unreached, [2]);
    world.serve(0);
    assert_eq!(world.by_unicast.iter().copied().collect::<Vec<_>>(), [(0, 2)]);
    // The one that could not has nothing to leave.
    assert_eq!(world.groups(), [[1]]);
}

#[test]
fn a_slow_member_is_waited_for_once_and_then_repaired_over_tcp() {
    let mut world = world(&[0b011, 0b110, 0b101], &[&[0, 1, 2]]);
    world.slow = TargetSet(0b010);
    world.step();
    world.push(0);
    world.addresses.exhausted(0);
    world.step();
    world.transmit();
    world.acknowledge();
    world.steps(SETTLE_MAX - Duration::from_millis(10));
    assert_eq!(world.ready(), [0u16; 0]);
    world.steps(Duration::from_millis(20));
    assert_eq!((world.ready(), &world.groups()[0][..]), (vec![1], &[1, 2][..]));
    // The other member reports that it has missed a piece, and gets it over TCP.
    assert!(world.by_unicast.is_empty());
    let gap = crate::wire::control::FrameGap { frame: 0, pieces: vec![(0, 0)] };
    let report = Report { gaps: vec![gap], ..Report::default() };
    world.now = world.now + Duration::from_secs(1);
    world.sender.on_report(1, &report, world.now).unwrap();
    world.transmit();
    assert_eq!(world.by_unicast.iter().copied().collect::<Vec<_>>(), [(0, 1)]);
    // The next time it is not waited for.
    world.push(1);
    world.addresses.exhausted(1);
    for _ in 0..20 {
        world.transmit();
        world.step();
    }
    assert_eq!(world.ready(), [0u16; 0], "the others are");
    world.acknowledge();
    world.step();
    assert_eq!(world.ready(), [2]);
}

#[test]
fn who_leaves_the_scatter_is_not_waited_for() {
    let mut world = world(&[0b011, 0b110], &[&[0, 1]]);
    world.dead = TargetSet(0b001);
    world.step();
    assert_eq!(world.ready(), [0u16; 0]);
    world.addresses.remove_target(0);
    world.sender.remove_target(0, world.now);
    world.step();
    assert_eq!(world.ready(), [0]);
    world.serve(0);
    assert_eq!(world.ready(), [1]);
    assert!(world.unreached.is_empty(), "it was not that it could not be reached");
}

#[test]
fn who_leaves_the_scatter_leaves_its_groups() {
    let mut world = world(&[0b011, 0b110, 0b101], &[&[0, 2], &[1]]);
    world.step();
    assert_eq!(world.ready(), [0, 1]);
    let told = |world: &mut World| {
        world.addresses.remove_target(0);
        let actions = std::iter::from_fn(|| world.addresses.poll_action());
        actions.map(|action| format!("{action:?}")).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut world), ["Send { target: 0, message: Leave { set: 0 } }"]);
    assert!(told(&mut world).is_empty(), "once");
}

/// Some of four targets.
fn some() -> impl Strategy<Value = TargetSet> {
    prop_oneof![2 => Just(0u128), 1 => 0u128..16].prop_map(TargetSet)
}

proptest! {
    /// Whatever is wrong with targets, every set has its turn, and nothing is multicast to a group that one of those for
    /// whom it is has not joined (checked as it is sent). If nothing is wrong, joins and leaves are as planned.
    #[test]
    fn every_set_is_served(
        sets in proptest::collection::btree_set((1u128..16).prop_filter("several", |set| set.count_ones() > 1), 1..9),
        addresses in 1usize..5,
        (dead, deaf, refusing, slow) in (some(), some(), some(), some()),
    ) {
        let sets: Vec<u128> = sets.into_iter().collect();
        let loads: Vec<SetLoad> = sets.iter().map(|set| SetLoad { set: TargetSet(*set), bytes: 1 }).collect();
        let order = order_sets(&loads, addresses);
        let lists: Vec<Vec<u16>> =
            order.lists.iter().map(|list| list.iter().map(|set| *set as u16).collect()).collect();
        let mut world = world(&sets, &lists.iter().map(Vec::as_slice).collect::<Vec<_>>());
        (world.dead, world.deaf, world.refusing, world.slow) = (dead, deaf, refusing, slow);
        let mut served = 0;
        while !world.addresses.is_over() {
            world.step();
            if let Some(set) = world.ready().first() {
                let set = *set;
                world.push(set);
                world.addresses.exhausted(set);
                served += 1;
            }
            world.transmit();
            world.acknowledge();
            prop_assert!(world.now < Time(20_000_000), "it ends");
        }
        // What the last step has asked for is done.
        world.step();
        prop_assert_eq!(served, sets.len());
        prop_assert!(world.joined.iter().all(|group| group.is_empty()));
        let (joins, leaves) = world.addresses.changes();
        if union(union(dead, deaf), union(refusing, slow)).is_empty() {
            prop_assert_eq!(joins + leaves, order.joins_and_leaves(&loads));
        }
    }
}
