//! Holder groups as the algorithms walk them: by group and by VM, and bounded.

use super::HolderGroups;

/// Counters of the local search, one of 2 bytes to each pair of group and link.
const SEARCH_CELLS_MAX: usize = 1 << 26;
/// Members of all groups together, 6 bytes each.
const SEARCH_MEMBERS_MAX: usize = 1 << 24;

/// The groups of several VMs, or an unbiased sample of them where they exceed the limits above: a group of fewer contents
/// than a threshold is kept with probability contents / threshold, and then counts as the threshold.
pub(super) struct Sample {
    /// What each VM holds alone.
    pub(super) alone: Vec<u64>,
    /// Contents of each group.
    pub(super) contents: Vec<u64>,
    /// Where each group's members begin, and one more.
    starts: Vec<u32>,
    members: Vec<u16>,
    /// For each VM, where its groups begin, and one more.
    vm_starts: Vec<u32>,
    vm_groups: Vec<u32>,
    is_whole: bool,
}

impl Sample {
    pub(super) fn of(groups: &HolderGroups, links: usize) -> Self {
        Sample::within(groups, SEARCH_CELLS_MAX / links.max(1), SEARCH_MEMBERS_MAX)
    }

    fn within(groups: &HolderGroups, groups_max: usize, members_max: usize) -> Self {
        let mut threshold = 1u64;
        let kept = |at: usize, contents: u64, threshold: u64| {
            threshold == 1 || contents >= threshold || splitmix(at as u64) % threshold < contents
        };
        loop {
            let (mut count, mut members) = (0, 0);
            for (at, group) in groups.shared.iter().enumerate() {
                if kept(at, group.contents, threshold) {
                    count += 1;
                    members += group.vms.len();
                }
            }
            if count <= groups_max && members <= members_max {
                break;
            }
            threshold *= 2;
        }
        let mut sample = Sample {
            alone: groups.alone.clone(),
            contents: Vec::new(),
            starts: vec![0],
            members: Vec::new(),
            vm_starts: vec![0; groups.vms() + 1],
            vm_groups: Vec::new(),
            is_whole: threshold == 1,
        };
        for (at, group) in groups.shared.iter().enumerate() {
            if kept(at, group.contents, threshold) {
                sample.contents.push(if threshold == 1 {
                    group.contents
                } else {
                    group.contents.max(threshold)
                });
                sample.members.extend(&group.vms);
                sample.starts.push(sample.members.len() as u32);
            }
        }
        sample.turn_round();
        sample
    }

    /// Lists the groups of each VM.
    fn turn_round(&mut self) {
        for vm in &self.members {
            self.vm_starts[usize::from(*vm) + 1] += 1;
        }
        for at in 1..self.vm_starts.len() {
            self.vm_starts[at] += self.vm_starts[at - 1];
        }
        self.vm_groups = vec![0; self.members.len()];
        let mut next = self.vm_starts.clone();
        for group in 0..self.contents.len() {
            for at in self.starts[group]..self.starts[group + 1] {
                let slot = &mut next[usize::from(self.members[at as usize])];
                self.vm_groups[*slot as usize] = group as u32;
                *slot += 1;
            }
        }
    }

    pub(super) fn groups(&self) -> usize {
        self.contents.len()
    }

    /// Whether nothing was left out.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// What a VM holds, alone or not.
    pub(super) fn contents_of(&self, vm: usize) -> u64 {
        let shared = self.groups_of(vm).iter().map(|group| self.contents[*group as usize]);
        self.alone[vm] + shared.sum::<u64>()
    }

    /// A group's VMs, ascending.
    pub(super) fn members(&self, group: usize) -> &[u16] {
        &self.members[self.starts[group] as usize..self.starts[group + 1] as usize]
    }

    /// A VM's groups, ascending.
    pub(super) fn groups_of(&self, vm: usize) -> &[u32] {
        &self.vm_groups[self.vm_starts[vm] as usize..self.vm_starts[vm + 1] as usize]
    }
}

/// splitmix64's output for one state.
pub(super) fn splitmix(state: u64) -> u64 {
    let word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Random numbers that are the same for the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(splitmix(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (2..=items.len()).rev() {
            items.swap(end - 1, self.below(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::HolderGroup;

    #[test]
    fn beyond_the_limit_a_sample_stands_for_the_whole() {
        let group =
            |at: u16| HolderGroup { vms: vec![at % 50, 50 + at / 50], contents: 1 + u64::from(at % 7) };
        let mut groups = HolderGroups { alone: vec![1; 150], shared: (0..5_000).map(group).collect() };
        groups.shared.push(HolderGroup { vms: vec![0, 1], contents: 100_000 });
        let whole = Sample::within(&groups, 5_001, 10_002);
        assert_eq!(whole.groups(), 5_001);
        let total = whole.contents.iter().sum::<u64>();
        for (groups_max, members_max) in [(1_000, 10_002), (5_001, 2_000)] {
            let part = Sample::within(&groups, groups_max, members_max);
            assert!(part.groups() <= 1_000 && part.groups() > 250, "{}", part.groups());
            let small = (part.contents.iter().sum::<u64>() - 100_000) as f64;
            let all_small = (total - 100_000) as f64;
            assert!((small / all_small - 1.0).abs() < 0.15, "{small} of {all_small}");
            assert!(part.contents.contains(&100_000));
        }
    }

    #[test]
    fn groups_are_listed_by_vm() {
        let shared = [vec![0, 1], vec![0, 2], vec![1, 2]].map(|vms| HolderGroup { vms, contents: 1 });
        let sample = Sample::of(&HolderGroups { alone: vec![0; 4], shared: shared.to_vec() }, 1);
        assert_eq!(
            [0, 1, 2, 3].map(|vm| sample.groups_of(vm).to_vec()),
            [vec![0, 1], vec![0, 2], vec![1, 2], vec![]]
        );
        assert_eq!(sample.members(1), [0, 2]);
    }
}
