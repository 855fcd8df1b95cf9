//! Problems that own their parts, random ones, and what is true of their placements by definition.

use proptest::prelude::*;

use crate::placement::*;

const VM_NAMES: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
const TARGET_NAMES: [&str; 6] = ["one", "two", "three", "four", "five", "six"];

/// A problem that owns its parts.
#[derive(Clone, Debug)]
pub(in crate::placement) struct Case {
    pub(in crate::placement) memory: Vec<u64>,
    pub(in crate::placement) pins: Vec<Option<u8>>,
    pub(in crate::placement) free: Vec<u64>,
    pub(in crate::placement) vms_max: Vec<Option<u32>>,
    pub(in crate::placement) apart: Vec<Vec<u16>>,
    pub(in crate::placement) groups: HolderGroups,
    pub(in crate::placement) tree: DeliveryTree,
    pub(in crate::placement) few_targets: bool,
}

impl Case {
    /// Equal VMs of memory 1, targets of ample memory, nothing shared, one switch.
    pub(in crate::placement) fn plain(vms: usize, targets: usize) -> Self {
        Case {
            memory: vec![1; vms],
            pins: vec![None; vms],
            free: vec![1_000; targets],
            vms_max: vec![None; targets],
            apart: Vec::new(),
            groups: HolderGroups { alone: vec![10; vms], shared: Vec::new() },
            tree: DeliveryTree::flat(targets),
            few_targets: false,
        }
    }

    pub(in crate::placement) fn with<T>(&self, run: impl FnOnce(&Problem) -> T) -> T {
        let vm = |(at, memory): (usize, &u64)| VmDemand {
            name: VM_NAMES.get(at).unwrap_or(&"one of many"),
            memory_bytes: *memory,
            pinned: self.pins[at].map(TargetId),
        };
        let vms: Vec<VmDemand> = self.memory.iter().enumerate().map(vm).collect();
        let target = |(at, free): (usize, &u64)| TargetCapacity {
            name: TARGET_NAMES.get(at).unwrap_or(&"one of many"),
            free_bytes: *free,
            vms_max: self.vms_max[at],
        };
        let targets: Vec<TargetCapacity> = self.free.iter().enumerate().map(target).collect();
        run(&Problem {
            vms: &vms,
            targets: &targets,
            apart: &self.apart,
            groups: &self.groups,
            tree: &self.tree,
            few_targets: self.few_targets,
            group_addresses: 4,
        })
    }

    pub(in crate::placement) fn solve(&self) -> Result<Solution, PlacementError> {
        self.with(|problem| solve(problem, Effort::default(), &mut || false))
    }

    /// Without the exact search.
    pub(in crate::placement) fn search(&self) -> Result<Solution, PlacementError> {
        let effort = Effort { exact_steps_max: 0, rounds: 200, ..Effort::default() };
        self.with(|problem| solve(problem, effort, &mut || false))
    }

    pub(in crate::placement) fn is_allowed(&self, placement: &[TargetId]) -> bool {
        let at =
            |target: usize| (0..placement.len()).filter(move |vm| usize::from(placement[*vm].0) == target);
        let pins = self.pins.iter().zip(placement).all(|(pin, target)| pin.is_none_or(|pin| pin == target.0));
        let apart = self.apart.iter().all(|group| {
            let pair = |a: &u16, b: &u16| a != b && placement[usize::from(*a)] == placement[usize::from(*b)];
            !group.iter().any(|a| group.iter().any(|b| pair(a, b)))
        });
        let room = (0..self.free.len()).all(|target| {
            at(target).map(|vm| self.memory[vm]).sum::<u64>() <= self.free[target]
                && self.vms_max[target].is_none_or(|max| at(target).count() <= max as usize)
        });
        pins && apart && room
    }

    /// The sum over links of cost times distinct contents, as it is written.
    pub(in crate::placement) fn cost(&self, placement: &[TargetId]) -> u64 {
        let over = |link: usize| {
            let behind = |vm: usize| self.tree.path(usize::from(placement[vm].0)).any(|on| on == link);
            let alone = self.groups.alone.iter().enumerate().filter(|(vm, _)| behind(*vm)).map(|(_, n)| n);
            let shared =
                self.groups.shared.iter().filter(|group| group.vms.iter().any(|vm| behind(usize::from(*vm))));
            alone.sum::<u64>() + shared.map(|group| group.contents).sum::<u64>()
        };
        self.tree.links().iter().enumerate().map(|(link, properties)| properties.cost * over(link)).sum()
    }

    /// What is least first: targets, if few are wanted, then cost.
    pub(in crate::placement) fn score(&self, placement: &[TargetId]) -> (usize, u64) {
        let used = placement.iter().copied().collect::<TargetSet>().len();
        (if self.few_targets { used } else { 0 }, self.cost(placement))
    }

    /// The least score of all placements.
    pub(in crate::placement) fn brute_force(&self) -> Option<(usize, u64)> {
        let (vms, targets) = (self.memory.len(), self.free.len());
        let nth = |number: usize| {
            let digit = |vm: usize| TargetId((number / targets.pow(vm as u32) % targets) as u8);
            (0..vms).map(digit).collect::<Vec<_>>()
        };
        (0..targets.pow(vms as u32)).map(nth).filter(|p| self.is_allowed(p)).map(|p| self.score(&p)).min()
    }
}

/// Random holder groups.
pub(in crate::placement) fn groups(vms: usize) -> impl Strategy<Value = HolderGroups> {
    let set = proptest::collection::btree_set(0..vms as u16, 2..=vms.max(2));
    let group =
        (set, 0u64..100).prop_map(|(set, contents)| HolderGroup { vms: set.into_iter().collect(), contents });
    let shared = if vms < 2 {
        proptest::collection::vec(group, 0..1).boxed()
    } else {
        proptest::collection::vec(group, 0..12).boxed()
    };
    (proptest::collection::vec(0u64..50, vms), shared).prop_map(|(alone, mut shared)| {
        shared.sort_by(|a, b| a.vms.cmp(&b.vms));
        shared.dedup_by(|a, b| a.vms == b.vms);
        HolderGroups { alone, shared }
    })
}

/// Random trees, with links that lead nowhere, that cost nothing, and at which several targets end.
fn tree(targets: usize) -> impl Strategy<Value = DeliveryTree> {
    let links = proptest::collection::vec((any::<proptest::sample::Index>(), 0u64..4), 1..8);
    let ends = proptest::collection::vec(any::<proptest::sample::Index>(), targets);
    let grown = (links, ends).prop_map(|(links, ends)| {
        let link = |(at, (parent, cost)): (usize, &(proptest::sample::Index, u64))| {
            let parent = parent.index(at + 1).checked_sub(1);
            DeliveryLink { parent, cost: *cost }
        };
        let targets = ends.iter().map(|end| end.index(links.len())).collect();
        DeliveryTree::new(links.iter().enumerate().map(link).collect(), targets)
    });
    prop_oneof![Just(DeliveryTree::flat(targets)), grown]
}

/// Random problems of up to so many VMs and targets: many with room, many tight, some without a placement.
pub(in crate::placement) fn case(vms_max: usize, targets_max: usize) -> impl Strategy<Value = Case> {
    (0..=vms_max, 1..=targets_max).prop_flat_map(|(vms, targets)| {
        let memory = proptest::collection::vec(1u64..9, vms);
        let pin = prop_oneof![6 => Just(None), 1 => (0..targets as u8).prop_map(Some)];
        let pins = proptest::collection::vec(pin, vms);
        let free = proptest::collection::vec(prop_oneof![2 => 0u64..40, 1 => Just(20u64), 1 => Just(100u64)], targets);
        let limit = prop_oneof![2 => Just(None), 2 => Just(Some(vms.div_ceil(targets) as u32)), 1 => (0u32..6).prop_map(Some)];
        let vms_max = proptest::collection::vec(limit, targets);
        let apart = proptest::collection::vec(proptest::collection::vec(0..vms.max(1) as u16, 0..4.min(vms + 1)), 0..3);
        (memory, pins, free, vms_max, apart, groups(vms), tree(targets), any::<bool>()).prop_map(
            |(memory, pins, free, vms_max, apart, groups, tree, few_targets)| Case {
                memory,
                pins,
                free,
                vms_max,
                apart,
                groups,
                tree,
                few_targets,
            },
        )
    })
}
