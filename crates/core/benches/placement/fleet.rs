//! 1,000 VMs on 100 hosts.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vmscatter_core::placement::{
    DeliveryTree, Effort, HolderGroup, HolderGroups, Problem, TargetCapacity, TargetId, VmDemand, cost,
    greedy, solve,
};

use crate::Checks;
use crate::random::Random;

const VMS: usize = 1_000;
const HOSTS: usize = 100;
const GIB: u64 = 1 << 30;
/// One content of so many is in a sketch.
const SKETCH: u64 = 256;
const TIME_MAX: Duration = Duration::from_secs(10);
/// What the search may take, so that all of it stays within the time.
const SEARCH_TIME: Duration = Duration::from_secs(8);
const MEMORY_MAX: u64 = GIB;

pub(crate) fn run(checks: &mut Checks) {
    let fleet = Fleet::new(&mut Random::new(7));
    let (sketch, unseen) = (fleet.sketch(&mut Random::new(1)), fleet.sketch(&mut Random::new(2)));
    println!(
        "\n{VMS} VMs on {HOSTS} hosts, one content of {SKETCH}: {} contents of several VMs, {} sets of holders, {:.0} contents a VM in the sketch",
        sketch.shared.iter().map(|group| group.contents).sum::<u64>() / SKETCH,
        sketch.shared.len(),
        held(&sketch) / VMS as f64 / SKETCH as f64,
    );
    println!(
        "{:22} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12} {:>8} {:>8} {:>9}",
        "contents in millions",
        "no sharing",
        "even",
        "greedy",
        "search",
        "bound",
        "search/bound",
        "greedy/bound",
        "s",
        "CPU s",
        "peak MiB"
    );
    let even = vec![TargetCapacity { name: "host", free_bytes: 256 * GIB, vms_max: Some(10) }; HOSTS];
    let by_memory: Vec<_> = (0..HOSTS)
        .map(|at| TargetCapacity { name: "host", free_bytes: [96, 128, 192][at % 3] * GIB, vms_max: None })
        .collect();
    for (name, targets) in [("10 VMs a host", even), ("by memory, 2/3 full", by_memory)] {
        place(name, &fleet, &targets, &sketch, &unseen, checks);
    }
}

fn place(
    name: &str,
    fleet: &Fleet,
    targets: &[TargetCapacity],
    sketch: &HolderGroups,
    unseen: &HolderGroups,
    checks: &mut Checks,
) {
    let vms: Vec<VmDemand> = fleet
        .memory
        .iter()
        .map(|bytes| VmDemand { name: "vm", memory_bytes: *bytes, pinned: None })
        .collect();
    let tree = DeliveryTree::flat(targets.len());
    let problem = Problem {
        vms: &vms,
        targets,
        apart: &[],
        groups: sketch,
        tree: &tree,
        few_targets: false,
        group_addresses: 16,
    };
    fs::write("/proc/self/clear_refs", "5").expect("Linux with /proc");
    let (start, cpu_start) = (Instant::now(), cpu_time());
    let solution = solve(&problem, Effort::default(), &mut || cpu_time() - cpu_start > SEARCH_TIME)
        .expect("there is room");
    let (time, cpu) = (start.elapsed(), cpu_time() - cpu_start);
    let peak = status_bytes("VmHWM:");
    let greedy = greedy(&problem).expect("there is room");
    let even: Vec<TargetId> = (0..VMS).map(|vm| TargetId((vm % HOSTS) as u8)).collect();
    let costs = |groups: &HolderGroups| {
        [&even, &greedy, &solution.placement].map(|placement| cost(groups, &tree, placement))
    };
    let [spread, filled, found] = costs(sketch);
    let (bound, millions) = (solution.bound as f64, |contents: f64| contents / 1e6);
    println!(
        "{name:22} {:10.1} {:10.1} {:10.1} {:10.1} {:10.1} {:12.3} {:12.3} {:8.2} {:8.2} {:9.0}",
        millions(held(sketch)),
        millions(spread as f64),
        millions(filled as f64),
        millions(found as f64),
        millions(bound),
        found as f64 / bound,
        filled as f64 / bound,
        time.as_secs_f64(),
        cpu.as_secs_f64(),
        peak as f64 / (1 << 20) as f64,
    );
    let [spread, filled, found] = costs(unseen);
    println!(
        "{:22} {:10.1} {:10.1} {:10.1} {:10.1}",
        "  of unseen contents",
        millions(held(unseen)),
        millions(spread as f64),
        millions(filled as f64),
        millions(found as f64)
    );
    checks.add(time <= TIME_MAX, format!("{VMS} VMs on {HOSTS} hosts, {name}: {:.1} s", time.as_secs_f64()));
    let mib = peak >> 20;
    checks.add(
        peak <= MEMORY_MAX,
        format!("{VMS} VMs on {HOSTS} hosts, {name}: {mib} MiB at its peak, input included"),
    );
}

/// Contents that VMs hold, each VM's counted by itself.
fn held(groups: &HolderGroups) -> f64 {
    let shared = groups.shared.iter().map(|group| group.contents * group.vms.len() as u64);
    (groups.alone.iter().sum::<u64>() + shared.sum::<u64>()) as f64
}

/// Pools of contents, each held in part by the VMs below one point of the tree: image, version, application, tenant.
struct Fleet {
    memory: Vec<u64>,
    pools: Vec<Pool>,
}

struct Pool {
    vms: Vec<u16>,
    contents: u64,
    /// The chance that a VM holds one of them.
    percent: u64,
}

impl Fleet {
    fn new(random: &mut Random) -> Self {
        let mut by_point: HashMap<Vec<u64>, Vec<u16>> = HashMap::new();
        for vm in 0..VMS as u16 {
            // Some are far more common than others.
            let mut skewed = |count: u64| random.below(count).min(random.below(count));
            let point = [skewed(6), skewed(4), skewed(12), skewed(8)];
            (1..=point.len()).for_each(|depth| by_point.entry(point[..depth].to_vec()).or_default().push(vm));
        }
        let mut points: Vec<_> = by_point.into_iter().collect();
        points.sort();
        let pool = |(point, vms): (Vec<u64>, Vec<u16>)| {
            let (most, percent) = [(120_000, 70), (60_000, 80), (80_000, 85), (50_000, 90)][point.len() - 1];
            Pool { vms, contents: most / 4 + random.below(most), percent }
        };
        let pools = points.into_iter().map(pool).collect();
        let memory = (0..VMS).map(|_| [2, 4, 8, 16, 32][random.below(5) as usize] * GIB).collect();
        Fleet { memory, pools }
    }

    fn sketch(&self, random: &mut Random) -> HolderGroups {
        let mut sets: HashMap<Vec<u16>, u64> = HashMap::new();
        for pool in &self.pools {
            for _ in 0..pool.contents / SKETCH {
                let holders: Vec<u16> =
                    pool.vms.iter().copied().filter(|_| random.chance(pool.percent)).collect();
                *sets.entry(holders).or_default() += SKETCH;
            }
        }
        let mut groups = HolderGroups { alone: vec![60_000; VMS], shared: Vec::new() };
        for (vms, contents) in sets {
            match vms[..] {
                [] => {}
                [vm] => groups.alone[usize::from(vm)] += contents,
                _ => groups.shared.push(HolderGroup { vms, contents }),
            }
        }
        groups.shared.sort_unstable_by(|a, b| a.vms.cmp(&b.vms));
        groups
    }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock").into()
}

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux with /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of proc(5)");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}
