//! Joins and leaves of members at group addresses, and the time to find an order in which they are few: `cargo bench -p
//! vmscatter-core --bench schedule [-- INSTANCES]`.
//!
//! First local search against the exact order, on random instances of up to 12 sets (the ratio is 1 where it finds the
//! best); then thousands of sets, against the order in which the sets come. Sets are drawn in two ways: *even*, each
//! target of the session a member or not, and *guests*, the targets of a random group of guests, of which families
//! share contents: sets then resemble each other, as they do in a session.

use std::hint::black_box;
use std::time::Instant;

use vmscatter_core::placement::TargetSet;
use vmscatter_core::schedule::{
    AddressLists, EXACT_SETS_MAX, SetLoad, order_by_search, order_exactly, order_sets, unsorted,
};

const INSTANCES: usize = 1_000;
const ROUNDS: usize = 5;
/// Guests of a session in which sets are drawn by guests.
const GUESTS: u64 = 200;

fn main() {
    let instances = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(INSTANCES);
    let mut random = Random(1);
    println!("local search / exact, {instances} instances of 2 to {EXACT_SETS_MAX} sets for each line");
    println!("{:32} {:>9} {:>9} {:>10}", "", "mean", "worst", "best found");
    for (draw, targets) in [(Draw::Even, 6), (Draw::Even, 16), (Draw::Even, 100), (Draw::Guests, 16)] {
        for addresses in [1, 2, 4] {
            compare_with_exact(&mut random, draw, targets, addresses, instances);
        }
    }
    println!("\nmany sets, medians of {ROUNDS} rounds");
    println!("{:44} {:>9} {:>10} {:>10} {:>7}", "", "ms", "unsorted", "ordered", "ratio");
    for (draw, targets) in [(Draw::Even, 16), (Draw::Even, 100), (Draw::Guests, 16), (Draw::Guests, 100)] {
        for (sets, addresses) in [(100, 1), (4_000, 1), (4_000, 16)] {
            compare_with_unsorted(&mut random, draw, targets, sets, addresses);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Draw {
    Even,
    Guests,
}

fn compare_with_exact(random: &mut Random, draw: Draw, targets: u64, addresses: usize, instances: usize) {
    let (mut sum, mut worst, mut best, mut counted) = (0.0, 1.0f64, 0, 0);
    while counted < instances {
        let count = 2 + random.below(EXACT_SETS_MAX as u64 - 1) as usize;
        let sets = draw_sets(random, draw, targets, count);
        if sets.len() <= addresses {
            continue;
        }
        let cost = |lists: AddressLists| lists.joins_and_leaves(&sets) as f64;
        let ratio = cost(order_by_search(&sets, addresses)) / cost(order_exactly(&sets, addresses));
        (sum, worst, counted) = (sum + ratio, worst.max(ratio), counted + 1);
        best += usize::from(ratio == 1.0);
    }
    let name = format!("{draw:?}, {targets} targets, K = {addresses}");
    let (mean, best) = (sum / counted as f64, 100.0 * best as f64 / counted as f64);
    println!("{name:32} {mean:9.5} {worst:9.5} {best:8.1} %");
}

fn compare_with_unsorted(random: &mut Random, draw: Draw, targets: u64, count: usize, addresses: usize) {
    let sets = draw_sets(random, draw, targets, count);
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(order_sets(&sets, addresses));
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let before = unsorted(sets.len(), addresses).joins_and_leaves(&sets);
    let after = order_sets(&sets, addresses).joins_and_leaves(&sets);
    let name = format!("{draw:?}, {} sets of {targets} targets, K = {addresses}", sets.len());
    println!(
        "{name:44} {:9.1} {before:10} {after:10} {:7.3}",
        times[ROUNDS / 2],
        after as f64 / before as f64
    );
}

/// Up to `count` different sets of several targets.
fn draw_sets(random: &mut Random, draw: Draw, targets: u64, count: usize) -> Vec<SetLoad> {
    let places: Vec<u64> = (0..GUESTS).map(|_| random.below(targets)).collect();
    let mut sets: Vec<SetLoad> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 * count {
        let set = match draw {
            Draw::Even => even(random, targets),
            Draw::Guests => of_guests(random, &places),
        };
        if set.len() > 1 && sets.len() < count && seen.insert(set) {
            sets.push(SetLoad { set, bytes: 4096 << random.below(12) });
        }
    }
    sets
}

fn even(random: &mut Random, targets: u64) -> TargetSet {
    let bits = u128::from(random.next()) << 64 | u128::from(random.next());
    TargetSet(bits & (u128::MAX >> (128 - targets)))
}

/// Part of one family: guests whose numbers follow each other.
fn of_guests(random: &mut Random, places: &[u64]) -> TargetSet {
    let family = 1 + random.below(30) as usize;
    let first = random.below(GUESTS) as usize;
    let dropped = random.below(8);
    let members = (first..first + family).filter(|_| random.below(16) >= dropped);
    TargetSet(
        members.map(|guest| 1 << places[guest % GUESTS as usize]).fold(0, |set: u128, bit: u128| set | bit),
    )
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
