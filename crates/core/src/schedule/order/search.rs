//! Many sets: nearest neighbour, then 2-opt and Or-opt among near neighbours, again and again after small random kicks.
//!
//! Several addresses are one round trip that passes through the empty set once for each: nodes from the number of sets
//! on are such *stops*. Two stops in a row would be an address without sets, so that way costs more than any.

use std::cmp::Reverse;

use super::tour::Tour;
use super::{AddressLists, SetLoad, distance, unevenness};
use crate::placement::TargetSet;

/// The neighbours that a move is looked for among.
const NEAR: usize = 8;
/// The longest way that Or-opt moves.
const SEGMENT_MAX: usize = 3;
/// The longest of the two ways that a kick exchanges.
const KICK_MAX: u64 = 30;
/// Kicks for each node, and distances computed in all: what bounds the time (some tens of milliseconds for a hundred
/// sets, half a second for thousands).
const KICKS_PER_NODE: usize = 100;
const DISTANCES_MAX: u64 = 30_000_000;
/// Times that all sets are looked at to lay bytes more evenly.
const EVEN_ROUNDS_MAX: usize = 8;
/// More than any way that there is.
const NEVER: i64 = 1 << 32;

pub(super) fn order(sets: &[SetLoad], addresses: usize) -> AddressLists {
    assert!(addresses > 0 && sets.len() > addresses, "sets that have to share an address");
    let mut search = Search::new(sets, addresses);
    search.improve_all();
    let kicks = search.tour.len() * KICKS_PER_NODE;
    for _ in 0..kicks {
        if search.distances > DISTANCES_MAX {
            break;
        }
        search.kick();
    }
    let mut lists = search.lists();
    lay_evenly(&mut lists, sets, &search.near);
    AddressLists { lists }
}

struct Search<'a> {
    sets: &'a [SetLoad],
    tour: Tour,
    /// For each node the nearest others, nearest first.
    near: Vec<Vec<u32>>,
    /// Nodes from which a better way may start.
    waiting: Vec<u32>,
    is_waiting: Vec<bool>,
    random: u64,
    /// Distances computed so far.
    distances: u64,
}

impl<'a> Search<'a> {
    fn new(sets: &'a [SetLoad], addresses: usize) -> Self {
        let nodes = sets.len() + addresses;
        let mut search = Search {
            sets,
            tour: Tour::new(Vec::new()),
            near: Vec::new(),
            waiting: Vec::new(),
            is_waiting: vec![false; nodes],
            random: 0,
            distances: 0,
        };
        search.near = (0..nodes as u32).map(|node| search.nearest(node, nodes as u32)).collect();
        search.tour = Tour::new(search.first_tour(addresses));
        search
    }

    fn set(&self, node: u32) -> TargetSet {
        self.sets.get(node as usize).map_or(TargetSet::EMPTY, |load| load.set)
    }

    fn is_stop(&self, node: u32) -> bool {
        node as usize >= self.sets.len()
    }

    fn way(&mut self, a: u32, b: u32) -> i64 {
        self.distances += 1;
        if self.is_stop(a) && self.is_stop(b) { NEVER } else { distance(self.set(a), self.set(b)).into() }
    }

    fn nearest(&mut self, node: u32, nodes: u32) -> Vec<u32> {
        let mut others: Vec<(u8, u32)> = (0..nodes)
            .filter(|other| *other != node && !(self.is_stop(node) && self.is_stop(*other)))
            .map(|other| (distance(self.set(node), self.set(other)) as u8, other))
            .collect();
        self.distances += others.len() as u64;
        if others.len() > NEAR {
            others.select_nth_unstable(NEAR);
            others.truncate(NEAR);
        }
        others.sort_unstable();
        others.into_iter().map(|(_, other)| other).collect()
    }

    /// From set to nearest set, with the stops where they cost least.
    fn first_tour(&mut self, addresses: usize) -> Vec<u32> {
        let mut left: Vec<u32> = (0..self.sets.len() as u32).collect();
        let mut path = Vec::with_capacity(left.len());
        let mut here = TargetSet::EMPTY;
        while !left.is_empty() {
            self.distances += left.len() as u64;
            let nearest = (0..left.len()).min_by_key(|at| distance(here, self.set(left[*at])));
            let node = left.swap_remove(nearest.expect("some are left"));
            here = self.set(node);
            path.push(node);
        }
        let stop = self.sets.len() as u32;
        let detour = |search: &mut Self, at: usize| {
            let (a, b) = (path[at], path[at + 1]);
            search.way(a, stop) + search.way(stop, b) - search.way(a, b)
        };
        let mut gaps: Vec<(i64, usize)> = (0..path.len() - 1).map(|at| (detour(self, at), at)).collect();
        gaps.sort_unstable();
        let mut gaps: Vec<usize> = gaps.into_iter().map(|(_, at)| at).take(addresses - 1).collect();
        gaps.sort_unstable_by_key(|at| Reverse(*at));
        for (number, at) in (1..).zip(gaps) {
            path.insert(at + 1, stop + number);
        }
        path.insert(0, stop);
        path
    }

    fn wait(&mut self, node: u32) {
        if !std::mem::replace(&mut self.is_waiting[node as usize], true) {
            self.waiting.push(node);
        }
    }

    fn improve_all(&mut self) {
        (0..self.tour.len()).rev().for_each(|place| self.wait(self.tour.at(place)));
        self.improve();
        self.tour.keep();
    }

    /// Makes moves until none of those looked for is left; what that saves.
    fn improve(&mut self) -> i64 {
        let mut saved = 0;
        while let Some(node) = self.waiting.pop() {
            self.is_waiting[node as usize] = false;
            while self.distances <= 2 * DISTANCES_MAX {
                match self.exchange_at(node).or_else(|| self.move_at(node)) {
                    Some(saving) => saved += saving,
                    None => break,
                }
            }
        }
        saved
    }

    /// 2-opt: `node` gets a nearer neighbour, and their old neighbours become neighbours.
    fn exchange_at(&mut self, node: u32) -> Option<i64> {
        for forward in [true, false] {
            let side = |tour: &Tour, node| if forward { tour.next(node) } else { tour.previous(node) };
            let beside = side(&self.tour, node);
            let old = self.way(node, beside);
            for at in 0..self.near[node as usize].len() {
                let other = self.near[node as usize][at];
                let gain = old - self.way(node, other);
                if gain <= 0 {
                    break;
                }
                let other_beside = side(&self.tour, other);
                let saving = gain + self.way(other, other_beside) - self.way(beside, other_beside);
                if saving > 0 {
                    self.tour.exchange(node, beside, other, other_beside);
                    [node, beside, other, other_beside].into_iter().for_each(|node| self.wait(node));
                    return Some(saving);
                }
            }
        }
        None
    }

    /// Or-opt: `node`, with one or two that follow it on either side, goes next to a nearer neighbour.
    fn move_at(&mut self, node: u32) -> Option<i64> {
        for forward in [true, false] {
            let mut end = node;
            for length in 1..=SEGMENT_MAX.min(self.tour.len().saturating_sub(3)) {
                if length > 1 {
                    end = if forward { self.tour.next(end) } else { self.tour.previous(end) };
                }
                if let Some(saving) = self.move_segment_at(node, end, length, forward) {
                    return Some(saving);
                }
            }
        }
        None
    }

    fn move_segment_at(&mut self, node: u32, end: u32, length: usize, forward: bool) -> Option<i64> {
        let (first, last) = if forward { (node, end) } else { (end, node) };
        let (before, after) = (self.tour.previous(first), self.tour.next(last));
        let out = self.way(before, first) + self.way(last, after) - self.way(before, after);
        for at in 0..self.near[node as usize].len() {
            let other = self.near[node as usize][at];
            let gain = out - self.way(node, other);
            if gain <= 0 {
                return None;
            }
            if self.is_within(other, first, length) {
                continue;
            }
            for other_beside in [self.tour.next(other), self.tour.previous(other)] {
                if self.is_within(other_beside, first, length) {
                    continue;
                }
                let saving = gain - self.way(end, other_beside) + self.way(other, other_beside);
                if saving > 0 {
                    self.put(node, first, last, other, other_beside);
                    [before, after, first, last, other, other_beside]
                        .into_iter()
                        .for_each(|node| self.wait(node));
                    return Some(saving);
                }
            }
        }
        None
    }

    /// Moves the way from `first` to `last` between the two others, `node` (one of its ends) next to `other`.
    fn put(&mut self, node: u32, first: u32, last: u32, other: u32, other_beside: u32) {
        let other_is_first = self.tour.next(other) == other_beside;
        let (c, d) = if other_is_first { (other, other_beside) } else { (other_beside, other) };
        let flipped = (node == first) != other_is_first;
        // A segment of one has no direction.
        self.tour.move_segment(first, last, c, d, flipped && first != last);
    }

    fn is_within(&self, node: u32, first: u32, length: usize) -> bool {
        std::iter::successors(Some(first), |at| Some(self.tour.next(*at))).take(length).any(|at| at == node)
    }

    /// Exchanges two ways that follow each other, improves, and goes back if that has become longer.
    fn kick(&mut self) {
        let count = self.tour.len();
        if count < 5 {
            return;
        }
        let longest = KICK_MAX.min((count as u64 - 2) / 2);
        let (one, two) = (1 + self.below(longest) as usize, 1 + self.below(longest) as usize);
        let start = self.below(count as u64) as usize;
        let node = |along: usize| self.tour.at((start + along) % count);
        let (before, first, last) = (node(0), node(1), node(one));
        let (next, c, d) = (node(one + 1), node(one + two), node((one + two + 1) % count));
        let cost = self.way(before, next) + self.way(c, first) + self.way(last, d)
            - self.way(before, first)
            - self.way(last, next)
            - self.way(c, d);
        self.tour.move_segment(first, last, c, d, false);
        [before, first, last, next, c, d].into_iter().for_each(|node| self.wait(node));
        if self.improve() < cost { self.tour.undo() } else { self.tour.keep() }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): always the same row.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// The tour, cut at the stops.
    fn lists(&self) -> Vec<Vec<usize>> {
        let mut nodes = self.tour.nodes().to_vec();
        let first = nodes.iter().position(|node| self.is_stop(*node)).expect("there is a stop");
        nodes.rotate_left(first);
        let list = |part: &[u32]| part.iter().map(|node| *node as usize).collect();
        nodes.split(|node| self.is_stop(*node)).filter(|part| !part.is_empty()).map(list).collect()
    }
}

/// Moves sets to addresses with fewer bytes where that costs nothing.
fn lay_evenly(lists: &mut [Vec<usize>], sets: &[SetLoad], near: &[Vec<u32>]) {
    let mut bytes: Vec<u64> =
        lists.iter().map(|list| list.iter().map(|set| sets[*set].bytes).sum()).collect();
    let mut home = vec![0; sets.len()];
    for (address, list) in lists.iter().enumerate() {
        list.iter().for_each(|set| home[*set] = address);
    }
    for _ in 0..EVEN_ROUNDS_MAX {
        let mut moved = false;
        for set in 0..sets.len() {
            let Some((to, at)) = better_home(set, lists, sets, near, &home, &bytes) else { continue };
            let from = std::mem::replace(&mut home[set], to);
            lists[from].retain(|other| *other != set);
            lists[to].insert(at, set);
            bytes[from] -= sets[set].bytes;
            bytes[to] += sets[set].bytes;
            moved = true;
        }
        if !moved {
            return;
        }
    }
}

/// An address, and a place in its list, at which the set costs as little as where it is, and the bytes lie more evenly.
fn better_home(
    set: usize,
    lists: &[Vec<usize>],
    sets: &[SetLoad],
    near: &[Vec<u32>],
    home: &[usize],
    bytes: &[u64],
) -> Option<(usize, usize)> {
    let from = home[set];
    let own = sets[set].bytes;
    let detour = |list: &[usize], at: usize, skip: usize| {
        let before = at.checked_sub(1).map_or(TargetSet::EMPTY, |at| sets[list[at]].set);
        let after = list.get(at + skip).map_or(TargetSet::EMPTY, |set| sets[*set].set);
        distance(before, sets[set].set) + distance(sets[set].set, after) - distance(before, after)
    };
    if lists[from].len() == 1 {
        return None;
    }
    let place = lists[from].iter().position(|other| *other == set)?;
    let now = detour(&lists[from], place, 1);
    let uneven_now = |to: usize| unevenness(bytes[from]) + unevenness(bytes[to]);
    let uneven_then = |to: usize| unevenness(bytes[from] - own) + unevenness(bytes[to] + own);
    for other in near[set].iter().map(|node| *node as usize).filter(|node| *node < sets.len()) {
        let to = home[other];
        if to == from || uneven_then(to) >= uneven_now(to) {
            continue;
        }
        let at = lists[to].iter().position(|set| *set == other)?;
        if let Some(at) = [at, at + 1].into_iter().find(|at| detour(&lists[to], *at, 0) <= now) {
            return Some((to, at));
        }
    }
    None
}
