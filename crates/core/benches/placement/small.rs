//! The exact search against brute force.

use vmscatter_core::placement::{
    DeliveryLink, DeliveryTree, Effort, HolderGroup, HolderGroups, Problem, TargetCapacity, TargetId,
    TargetSet, VmDemand, cost, lower_bound, solve,
};

use crate::Checks;
use crate::random::Random;

const CASES: u64 = 3_000;
const VMS_MAX: u64 = 8;
const TARGETS_MAX: u64 = 3;

pub(crate) fn run(checks: &mut Checks) {
    let (mut agree, mut placed, mut sound, mut searched) = (0, 0, 0, 0);
    for seed in 0..CASES {
        let case = Case::new(&mut Random::new(seed));
        let best = case.brute_force();
        let found = case.with(|problem| solve(problem, Effort::default(), &mut || false));
        let effort = Effort { exact_steps_max: 0, rounds: 200, ..Effort::default() };
        let local = case.with(|problem| solve(problem, effort, &mut || false));
        let score = found.as_ref().ok().map(|solution| case.score(&solution.placement));
        agree += u64::from(score == best);
        let Some(best) = best else { continue };
        placed += 1;
        let bound = case.with(|problem| lower_bound(problem)).expect("there is a placement");
        sound += u64::from(bound <= best.1);
        searched += u64::from(local.is_ok_and(|solution| case.score(&solution.placement) == best));
    }
    println!(
        "Random problems of up to {VMS_MAX} VMs and {TARGETS_MAX} targets, with memory, limits, pins, VMs apart and topologies"
    );
    println!("  {CASES} problems, of which {placed} have a placement");
    println!("  exact search = brute force: {agree}");
    println!("  bound not above the optimum: {sound} of {placed}");
    println!("  local search finds the optimum too: {searched} of {placed}");
    checks.add(agree == CASES, format!("exact search agrees with brute force: {agree} of {CASES} cases"));
    checks.add(sound == placed, format!("bound not above the optimum: {sound} of {placed} cases"));
}

struct Case {
    vms: Vec<VmDemand<'static>>,
    targets: Vec<TargetCapacity<'static>>,
    apart: Vec<Vec<u16>>,
    groups: HolderGroups,
    tree: DeliveryTree,
    few_targets: bool,
}

impl Case {
    fn new(random: &mut Random) -> Self {
        let (vms, targets) = (1 + random.below(VMS_MAX), 1 + random.below(TARGETS_MAX));
        let vm = |random: &mut Random| VmDemand {
            name: "vm",
            memory_bytes: 1 + random.below(8),
            pinned: random.chance(12).then(|| TargetId(random.below(targets) as u8)),
        };
        let target = |random: &mut Random| TargetCapacity {
            name: "host",
            free_bytes: 8 + random.below(40),
            vms_max: random.chance(50).then(|| (vms.div_ceil(targets) + random.below(2)) as u32),
        };
        let set = |random: &mut Random| (0..vms as u16).filter(|_| random.chance(40)).collect::<Vec<_>>();
        let mut shared: Vec<HolderGroup> = (0..random.below(12))
            .map(|_| HolderGroup { vms: set(random), contents: random.below(100) })
            .filter(|group| group.vms.len() > 1)
            .collect();
        shared.sort_by(|a, b| a.vms.cmp(&b.vms));
        shared.dedup_by(|a, b| a.vms == b.vms);
        let apart =
            |random: &mut Random| (0..2 + random.below(2)).map(|_| random.below(vms) as u16).collect();
        Case {
            vms: (0..vms).map(|_| vm(random)).collect(),
            targets: (0..targets).map(|_| target(random)).collect(),
            apart: (0..random.below(3)).map(|_| apart(random)).collect(),
            groups: HolderGroups { alone: (0..vms).map(|_| random.below(50)).collect(), shared },
            tree: tree(targets as usize, random),
            few_targets: random.chance(33),
        }
    }

    fn with<T>(&self, run: impl FnOnce(&Problem) -> T) -> T {
        run(&Problem {
            vms: &self.vms,
            targets: &self.targets,
            apart: &self.apart,
            groups: &self.groups,
            tree: &self.tree,
            few_targets: self.few_targets,
            group_addresses: 4,
        })
    }

    fn score(&self, placement: &[TargetId]) -> (usize, u64) {
        let used = placement.iter().copied().collect::<TargetSet>().len();
        (if self.few_targets { used } else { 0 }, cost(&self.groups, &self.tree, placement))
    }

    fn is_allowed(&self, placement: &[TargetId]) -> bool {
        let pins =
            self.vms.iter().zip(placement).all(|(vm, target)| vm.pinned.is_none_or(|pin| pin == *target));
        let apart = self.apart.iter().all(|group| {
            let clash = |a: &u16, b: &u16| a != b && placement[usize::from(*a)] == placement[usize::from(*b)];
            !group.iter().any(|a| group.iter().any(|b| clash(a, b)))
        });
        pins && apart
            && self.targets.iter().enumerate().all(|(at, target)| {
                let there = || self.vms.iter().zip(placement).filter(|(_, on)| usize::from(on.0) == at);
                there().map(|(vm, _)| vm.memory_bytes).sum::<u64>() <= target.free_bytes
                    && target.vms_max.is_none_or(|max| there().count() <= max as usize)
            })
    }

    fn brute_force(&self) -> Option<(usize, u64)> {
        let (vms, targets) = (self.vms.len() as u32, self.targets.len());
        let nth = |number: usize| {
            (0..vms).map(|vm| TargetId((number / targets.pow(vm) % targets) as u8)).collect::<Vec<_>>()
        };
        (0..targets.pow(vms)).map(nth).filter(|all| self.is_allowed(all)).map(|all| self.score(&all)).min()
    }
}

fn tree(targets: usize, random: &mut Random) -> DeliveryTree {
    if random.chance(50) {
        return DeliveryTree::flat(targets);
    }
    let links = 1 + random.below(7);
    let link = |at: u64, random: &mut Random| DeliveryLink {
        parent: (random.below(at + 1) as usize).checked_sub(1),
        cost: random.below(4),
    };
    let all: Vec<DeliveryLink> = (0..links).map(|at| link(at, random)).collect();
    let ends = (0..targets).map(|_| random.below(links) as usize).collect();
    DeliveryTree::new(all, ends)
}
