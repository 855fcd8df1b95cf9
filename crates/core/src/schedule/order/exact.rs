//! The exact order: Held-Karp over all subsets for one address, and over all divisions of the sets for several.

use super::{AddressLists, SetLoad, distance, unevenness};
use crate::placement::TargetSet;

/// Sets that are ordered exactly: some 600,000 steps, and for several addresses up to as many times 3 million.
pub const EXACT_SETS_MAX: usize = 12;

/// What a division costs: joins and leaves, and then how uneven the bytes lie.
type Cost = (u32, u128);

pub(super) fn order(sets: &[SetLoad], addresses: usize) -> AddressLists {
    assert!(addresses > 0, "an address for the sets");
    assert!(sets.len() <= EXACT_SETS_MAX, "few enough sets to be ordered exactly");
    let paths = Paths::new(sets);
    let lists = divide(&paths, sets, addresses).into_iter().map(|part| paths.list(part)).collect();
    AddressLists { lists }
}

/// For every subset of the sets and each of its members the cheapest way from the empty set through all of them that
/// ends there (Held and Karp 1962).
struct Paths {
    sizes: Vec<u32>,
    between: Vec<Vec<u32>>,
    /// Cost by subset and last member.
    cost: Vec<[u32; EXACT_SETS_MAX]>,
}

impl Paths {
    fn new(sets: &[SetLoad]) -> Self {
        let sizes: Vec<u32> = sets.iter().map(|load| distance(load.set, TargetSet::EMPTY)).collect();
        let row = |a: &SetLoad| sets.iter().map(|b| distance(a.set, b.set)).collect();
        let between: Vec<Vec<u32>> = sets.iter().map(row).collect();
        let mut cost = vec![[u32::MAX; EXACT_SETS_MAX]; 1 << sets.len()];
        for subset in 1usize..1 << sets.len() {
            for last in members(subset) {
                let before = subset & !(1 << last);
                let ways = members(before).map(|from| cost[before][from] + between[from][last]);
                cost[subset][last] = ways.min().unwrap_or(sizes[last]);
            }
        }
        Paths { sizes, between, cost }
    }

    /// The last member of the cheapest round trip, and its cost; `after` what comes then, the empty set if none.
    fn last(&self, subset: usize, after: Option<usize>) -> Option<(u32, usize)> {
        let to = |last: usize| after.map_or(self.sizes[last], |after| self.between[last][after]);
        members(subset).map(|last| (self.cost[subset][last] + to(last), last)).min()
    }

    fn round_trip(&self, subset: usize) -> u32 {
        self.last(subset, None).map_or(0, |(cost, _)| cost)
    }

    fn list(&self, mut subset: usize) -> Vec<usize> {
        let mut list = Vec::new();
        while let Some((_, last)) = self.last(subset, list.last().copied()) {
            list.push(last);
            subset &= !(1 << last);
        }
        list.reverse();
        list
    }
}

/// The cheapest division of all sets into `parts` subsets, none of them empty.
fn divide(paths: &Paths, sets: &[SetLoad], parts: usize) -> Vec<usize> {
    let all = (1usize << sets.len()) - 1;
    let bytes = |subset| members(subset).map(|set| sets[set].bytes).sum();
    let alone: Vec<Cost> =
        (0..=all).map(|subset| (paths.round_trip(subset), unevenness(bytes(subset)))).collect();
    // By the number of parts, less one, and what they cover: the cost, and one of the parts.
    let mut best: Vec<Vec<Option<(Cost, usize)>>> = vec![];
    best.push(
        alone.iter().enumerate().map(|(subset, cost)| (subset != 0).then_some((*cost, subset))).collect(),
    );
    for fewer in 1..parts {
        let smaller = &best[fewer - 1];
        let with = |covered: usize| {
            let ways = parts_with_lowest(covered).filter_map(|part| {
                let ((cost, uneven), _) = smaller[covered & !part]?;
                Some(((cost + alone[part].0, uneven + alone[part].1), part))
            });
            ways.min()
        };
        let next = (0..=all).map(with).collect();
        best.push(next);
    }
    let mut covered = all;
    let part = |layer: &Vec<Option<(Cost, usize)>>| {
        let (_, part) = layer[covered].expect("there are no fewer sets than parts");
        covered &= !part;
        part
    };
    best.iter().rev().map(part).collect()
}

/// The subsets of `covered` that have its lowest member, so that each division is looked at once.
fn parts_with_lowest(covered: usize) -> impl Iterator<Item = usize> {
    let lowest = covered & covered.wrapping_neg();
    let rest = covered & !lowest;
    let mut next = (covered != 0).then_some(rest);
    std::iter::from_fn(move || {
        let others = next?;
        next = (others != 0).then(|| (others - 1) & rest);
        Some(others | lowest)
    })
}

fn members(mut subset: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (subset != 0).then(|| subset.trailing_zeros() as usize)?;
        subset &= subset - 1;
        Some(lowest)
    })
}
