//! Twelve VMs that share in ways as fleets do.

use std::collections::HashMap;

use vmscatter_core::placement::{
    DeliveryTree, Effort, HolderGroup, HolderGroups, Method, Problem, Solution, TargetCapacity, TargetId,
    VmDemand, cost, greedy, lower_bound, solve,
};

use crate::Checks;
use crate::random::Random;

const VMS: usize = 12;
const SEEDS: u64 = 20;
/// As in VMScatter's Table 2.
const TARGETS: [usize; 4] = [2, 3, 4, 6];
const GROUPINGS: usize = 60;

type Family = (&'static str, fn(&mut Random) -> HolderGroups);

const FAMILIES: [Family; 6] = [
    ("four kinds of three VMs", kinds),
    ("images crossed with applications", crossed),
    ("image, version, application, tenant", tree),
    ("pools, each held in part", pools),
    ("neighbours on a ring", ring),
    ("any sets", any),
];

pub(crate) fn run(checks: &mut Checks) {
    println!(
        "\n12 VMs, evenly over the targets; means over {SEEDS} cases, multiples of the exact optimum (worst in brackets)"
    );
    println!(
        "{:38} {:>7} {:>15} {:>15} {:>15} {:>14} {:>13} {:>10}",
        "", "targets", "greedy", "local search", "bound (lowest)", "60 random mean", "best", "exact ms"
    );
    let (mut worst_local, mut possible, mut gained) = (1.0f64, 0, 0);
    for (name, family) in FAMILIES {
        for targets in TARGETS {
            let rows: Vec<Row> =
                (0..SEEDS).map(|seed| row(&family(&mut Random::new(seed)), targets, seed)).collect();
            let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
            let most = |of: fn(&Row) -> f64| rows.iter().map(of).fold(0.0, f64::max);
            let least = |of: fn(&Row) -> f64| rows.iter().map(of).fold(f64::MAX, f64::min);
            println!(
                "{name:38} {targets:7} {:6.3} ({:6.3}) {:6.3} ({:6.3}) {:6.3} ({:6.3}) {:14.3} {:13.3} {:10.1}",
                mean(|row| row.greedy),
                most(|row| row.greedy),
                mean(|row| row.local),
                most(|row| row.local),
                mean(|row| row.bound),
                least(|row| row.bound),
                mean(|row| row.random_mean),
                mean(|row| row.random_best),
                mean(|row| row.exact_ms),
            );
            worst_local = worst_local.max(most(|row| row.local));
            let allows = |row: &&Row| 1.0 <= 0.95 * row.greedy;
            possible += rows.iter().filter(allows).count();
            gained += rows.iter().filter(allows).filter(|row| row.local <= 0.95 * row.greedy).count();
        }
    }
    checks.add(
        worst_local <= 1.02,
        format!("local search within 2 % of the exact optimum: worst {:.2} %", (worst_local - 1.0) * 100.0),
    );
    checks.add(
        gained == possible,
        format!("5 % or more below the greedy placement where the optimum is: {gained} of {possible} cases"),
    );
}

/// One case, as multiples of the exact optimum.
struct Row {
    greedy: f64,
    local: f64,
    bound: f64,
    random_mean: f64,
    random_best: f64,
    exact_ms: f64,
}

fn row(groups: &HolderGroups, targets: usize, seed: u64) -> Row {
    let vms = [VmDemand { name: "vm", memory_bytes: 1, pinned: None }; VMS];
    let even = TargetCapacity { name: "host", free_bytes: VMS as u64, vms_max: Some((VMS / targets) as u32) };
    let capacities = vec![even; targets];
    let tree = DeliveryTree::flat(targets);
    let problem = Problem {
        vms: &vms,
        targets: &capacities,
        apart: &[],
        groups,
        tree: &tree,
        few_targets: false,
        group_addresses: usize::MAX,
    };
    let solve = |effort| -> Solution { solve(&problem, effort, &mut || false).expect("there is room") };
    let start = std::time::Instant::now();
    let exact = solve(Effort::default());
    let exact_ms = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(exact.method, Method::Exact);
    let ratio = |cost: u64| cost as f64 / exact.cost as f64;
    let greedy = greedy(&problem).expect("there is room");
    let mut random = Random::new(seed);
    let groupings: Vec<u64> =
        (0..GROUPINGS).map(|_| cost(groups, &tree, &even_random(targets, &mut random))).collect();
    Row {
        greedy: ratio(cost(groups, &tree, &greedy)),
        local: ratio(solve(Effort { exact_steps_max: 0, ..Effort::default() }).cost),
        bound: ratio(lower_bound(&problem).expect("there is room")),
        random_mean: groupings.iter().map(|cost| ratio(*cost)).sum::<f64>() / GROUPINGS as f64,
        random_best: ratio(groupings.into_iter().min().expect("some groupings")),
        exact_ms,
    }
}

fn even_random(targets: usize, random: &mut Random) -> Vec<TargetId> {
    let mut placement: Vec<TargetId> = (0..VMS).map(|vm| TargetId((vm % targets) as u8)).collect();
    random.shuffle(&mut placement);
    placement
}

/// Gathers contents by their holders.
#[derive(Default)]
struct Gathered(HashMap<Vec<u16>, u64>);

impl Gathered {
    fn add(&mut self, vms: impl IntoIterator<Item = usize>, contents: u64) {
        let mut vms: Vec<u16> = vms.into_iter().map(|vm| vm as u16).collect();
        vms.sort_unstable();
        vms.dedup();
        if !vms.is_empty() {
            *self.0.entry(vms).or_default() += contents;
        }
    }

    /// With VMs numbered at random, so that none is told by its number.
    fn groups(self, random: &mut Random) -> HolderGroups {
        let mut numbers: Vec<u16> = (0..VMS as u16).collect();
        random.shuffle(&mut numbers);
        let mut groups = HolderGroups { alone: vec![0; VMS], shared: Vec::new() };
        for (vms, contents) in self.0 {
            let mut vms: Vec<u16> = vms.into_iter().map(|vm| numbers[usize::from(vm)]).collect();
            vms.sort_unstable();
            match vms[..] {
                [vm] => groups.alone[usize::from(vm)] += contents,
                _ => groups.shared.push(HolderGroup { vms, contents }),
            }
        }
        groups.shared.sort_by(|a, b| a.vms.cmp(&b.vms));
        groups
    }
}

/// The laboratory's guests, about: one image, four workloads, some contents by chance.
fn kinds(random: &mut Random) -> HolderGroups {
    let mut gathered = Gathered::default();
    gathered.add(0..VMS, 48_000);
    for kind in 0..4 {
        gathered.add((0..VMS).filter(|vm| vm % 4 == kind), 2_000 + random.below(30_000));
    }
    for _ in 0..20 {
        let vms: Vec<usize> = (0..VMS).filter(|_| random.chance(25)).collect();
        gathered.add(vms, random.below(1_500));
    }
    (0..VMS).for_each(|vm| gathered.add([vm], 3_000 + random.below(10_000)));
    gathered.groups(random)
}

fn crossed(random: &mut Random) -> HolderGroups {
    let mut gathered = Gathered::default();
    let (images, applications) = (2 + random.below(3), 2 + random.below(4));
    let of: Vec<(u64, u64)> = (0..VMS).map(|_| (random.below(images), random.below(applications))).collect();
    for image in 0..images {
        gathered.add((0..VMS).filter(|vm| of[*vm].0 == image), 10_000 + random.below(30_000));
    }
    for application in 0..applications {
        gathered.add((0..VMS).filter(|vm| of[*vm].1 == application), 5_000 + random.below(30_000));
    }
    (0..VMS).for_each(|vm| gathered.add([vm], 2_000 + random.below(10_000)));
    gathered.groups(random)
}

fn tree(random: &mut Random) -> HolderGroups {
    let mut gathered = Gathered::default();
    split(&mut gathered, (0..VMS).collect(), 0, random);
    gathered.groups(random)
}

/// These VMs share something, and fall apart into two or three parts, of which each shares more.
fn split(gathered: &mut Gathered, vms: Vec<usize>, depth: u32, random: &mut Random) {
    if vms.is_empty() {
        return;
    }
    gathered.add(vms.clone(), 5_000 + random.below(25_000));
    if vms.len() > 1 && depth < 4 {
        let parts = 2 + random.below(2);
        let of: Vec<u64> = vms.iter().map(|_| random.below(parts)).collect();
        for part in 0..parts {
            let chosen = vms.iter().zip(&of).filter(|(_, of)| **of == part).map(|(vm, _)| *vm);
            split(gathered, chosen.collect(), depth + 1, random);
        }
    }
}

/// Each VM has read some part of some pools of contents.
fn pools(random: &mut Random) -> HolderGroups {
    let mut gathered = Gathered::default();
    for _ in 0..5 {
        let users: Vec<u64> =
            (0..VMS).map(|_| if random.chance(45) { 20 + random.below(75) } else { 0 }).collect();
        for _ in 0..200 {
            let holders: Vec<usize> = (0..VMS).filter(|vm| random.chance(users[*vm])).collect();
            gathered.add(holders, 100);
        }
    }
    (0..VMS).for_each(|vm| gathered.add([vm], 2_000 + random.below(8_000)));
    gathered.groups(random)
}

fn ring(random: &mut Random) -> HolderGroups {
    let mut gathered = Gathered::default();
    for vm in 0..VMS {
        gathered.add([vm, (vm + 1) % VMS], 5_000 + random.below(10_000));
        gathered.add([vm, (vm + 2) % VMS], random.below(10_000));
        gathered.add([vm], 2_000 + random.below(5_000));
    }
    gathered.groups(random)
}

fn any(random: &mut Random) -> HolderGroups {
    let mut gathered = Gathered::default();
    for _ in 0..40 {
        let size = 2 + random.below(5);
        let vms: Vec<usize> = (0..size).map(|_| random.below(VMS as u64) as usize).collect();
        gathered.add(vms, 500 + random.below(8_000));
    }
    (0..VMS).for_each(|vm| gathered.add([vm], 1_000 + random.below(5_000)));
    gathered.groups(random)
}
