//! Which guest goes to which target, and the traffic of it, counted from the guests' contents.

use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::placement::HolderGroups;

/// Each guest's target, from 0.
pub type Grouping = Vec<usize>;

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1; that 2^64 is no multiple of so small an `n` makes no difference here.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// `count` random groupings whose targets have equally many guests, or one more or less where that can't be. The same
/// arguments give the same groupings.
pub fn random_even(guests: usize, targets: usize, count: usize, seed: u64) -> Vec<Grouping> {
    let mut random = Random(seed);
    let mut grouping = || {
        let mut order: Vec<usize> = (0..guests).collect();
        // Fisher-Yates.
        for last in (1..guests).rev() {
            order.swap(last, random.below(last + 1));
        }
        let mut grouping = vec![0; guests];
        for (place, guest) in order.into_iter().enumerate() {
            grouping[guest] = place % targets;
        }
        grouping
    };
    (0..count).map(|_| grouping()).collect()
}

/// Bytes that the targets receive together if each distinct content of a target's guests is sent to it once: the paper's
/// network traffic, without headers and without what guests change meanwhile. Counted here anew and not with the optimiser's
/// own sum, which it is to check.
///
/// # Panics
/// If there are more than 64 targets, or a group names a guest that the grouping does not have.
pub fn traffic_bytes(groups: &HolderGroups, grouping: &[usize]) -> u64 {
    let shared = groups.shared.iter().map(|group| {
        let targets = group.vms.iter().fold(0u64, |set, vm| set | 1 << grouping[usize::from(*vm)]);
        group.contents * u64::from(targets.count_ones())
    });
    (groups.alone.iter().sum::<u64>() + shared.sum::<u64>()) * PAGE_SIZE as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vmscatter_core::placement::HolderGroup;

    use super::*;

    #[test]
    fn random_groupings_are_even_differ_and_can_be_had_again() {
        for (guests, targets) in [(12, 2), (12, 3), (12, 4), (12, 6), (7, 3)] {
            let groupings = random_even(guests, targets, 60, 7);
            for grouping in &groupings {
                let at = |target| grouping.iter().filter(|place| **place == target).count();
                let counts: BTreeSet<usize> = (0..targets).map(at).collect();
                let few = guests / targets;
                assert!(counts.iter().all(|count| (few..=guests.div_ceil(targets)).contains(count)));
            }
            assert!(groupings.iter().collect::<BTreeSet<_>>().len() > 50);
            assert_eq!(groupings, random_even(guests, targets, 60, 7));
            assert_ne!(groupings, random_even(guests, targets, 60, 8));
        }
    }

    #[test]
    fn a_content_counts_once_for_each_target() {
        let group = |vms: &[u16], contents| HolderGroup { vms: vms.to_vec(), contents };
        let groups = HolderGroups {
            alone: vec![1, 2, 3, 4],
            shared: vec![group(&[0, 1, 2, 3], 100), group(&[0, 2], 1000)],
        };
        let page = PAGE_SIZE as u64;
        assert_eq!(traffic_bytes(&groups, &[0, 1, 0, 1]), (10 + 200 + 1000) * page);
        assert_eq!(traffic_bytes(&groups, &[0, 0, 1, 1]), (10 + 200 + 2000) * page);
        assert_eq!(traffic_bytes(&groups, &[0, 1, 2, 3]), (10 + 400 + 2000) * page);
    }
}
