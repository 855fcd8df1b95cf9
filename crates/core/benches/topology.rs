//! What draining a host costs a fabric, link by link: `cargo bench -p vmscatter-core --bench topology`.
//!
//! A made fleet of 48 VMs leaves one host for 8, 12 or 15 others. VMs of one operating system share contents, those of
//! one application more; each holds most of what it could share. All is worked out from a fixed seed, so that the
//! same program prints the same figures.

use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::placement::{
    DeliveryTree, Effort, HolderGroup, HolderGroups, Problem, TargetCapacity, TargetId, VmDemand, solve,
};
use vmscatter_core::topology::{
    BCube, FatTree, LeafSpine, LinkSpec, Loads, Routes, Topology, bcube, fat_tree, leaf_spine,
};

const SYSTEMS: u64 = 3;
const APPLICATIONS: u64 = 4;
const VMS_PER_APPLICATION: u64 = 4;
const VMS: u64 = SYSTEMS * APPLICATIONS * VMS_PER_APPLICATION;
/// Contents that all VMs, those of one system, and those of one application may share, and what each holds alone.
const COMMON: u64 = 4_000;
const SYSTEM: u64 = 24_000;
const APPLICATION: u64 = 16_000;
const ALONE: u64 = 19_000;
/// Pages of each VM that repeat one of its own.
const REPEATS: u64 = 10_000;
/// A VM holds this much of what it may share.
const HELD_PERCENT: u64 = 85;
/// Contents that have the same holders.
const BATCH: u64 = 250;
const TARGETS: [usize; 3] = [8, 12, 15];
/// Placements over which the mean is taken where placement does not know the fabric.
const DRAWS: usize = 24;
const LINK: LinkSpec = LinkSpec { bits_per_s: 10_000_000_000, cost: 1 };

fn main() {
    let (groups, pages) = fleet(&mut Dice(1));
    let gb = |pages: u64| (pages * PAGE_SIZE as u64) as f64 / 1e9;
    println!(
        "{VMS} VMs, {:.2} GB that is not zero, {:.2} GB of distinct contents; links of 10 Gbit/s; GB by tier, both directions;",
        gb(pages.iter().sum()),
        gb(groups.contents()),
    );
    println!("cost: GB times the costs of the links crossed; even counts; random and flat: means of {DRAWS}");
    let mut savings = Vec::new();
    for targets in TARGETS {
        let flat = placed(&groups, &DeliveryTree::flat(targets));
        for (name, topology) in fabrics(targets + 1) {
            let host = |at: usize| topology.host(&format!("h{at}")).expect("it was named");
            let to: Vec<_> = (1..=targets).map(host).collect();
            let routes = topology.routes(host(0), &to).expect("fabrics are connected");
            savings.push(compare(&format!("{name}, {targets} targets"), &routes, &groups, &pages, &flat));
        }
    }
    println!("\nmulticast, placement that knows the fabric against");
    println!("{:46}{:>20}{:>20}", "", "random", "flat");
    println!("{:46}{:>10}{:>10}{:>10}{:>10}", "", "cost", "top tier", "cost", "top tier");
    for line in savings {
        println!("{line}");
    }
}

/// Prints one fabric's table; gives a line of the summary.
fn compare(name: &str, routes: &Routes, groups: &HolderGroups, pages: &[u64], flat: &[TargetId]) -> String {
    let topology = routes.topology();
    println!("\n{name}");
    print!("{:34}", "");
    topology.tiers().iter().for_each(|tier| print!("{:>9}", tier.name));
    println!("{:>9}{:>9}{:>9}{:>9}", "hops", "cost", "busiest", "s");
    let mean = |placements: &[Vec<TargetId>]| -> [Row; 3] {
        let mut rows = [const { Row::none() }; 3];
        for placement in placements {
            let loads = routes.evaluate(groups, pages, placement);
            for (row, loads) in rows.iter_mut().zip([loads.off_the_shelf, loads.unicast, loads.multicast]) {
                row.add(&loads, topology, placements.len() as f64);
            }
        }
        rows
    };
    let mut dice = Dice(2);
    let targets = routes.targets().len();
    let even: Vec<TargetId> = (0..VMS as usize).map(|vm| TargetId((vm % targets) as u8)).collect();
    let random: Vec<_> = (0..DRAWS).map(|_| dice.shuffled(even.clone())).collect();
    // To a flat tree targets are alike, so which of them gets which VMs is left to chance.
    let renamed = |dice: &mut Dice| {
        let names = dice.shuffled((0..targets as u8).map(TargetId).collect());
        flat.iter().map(|target| names[usize::from(target.0)]).collect()
    };
    let flat: Vec<Vec<TargetId>> = (0..DRAWS).map(|_| renamed(&mut dice)).collect();
    let aware = [placed(groups, &routes.delivery_tree())];
    let [[shelf, unicast, random], [_, _, flat], [_, _, aware]] = [mean(&random), mean(&flat), mean(&aware)];
    shelf.print("off-the-shelf, random placement");
    unicast.print("unicast, random placement");
    random.print("multicast, random placement");
    flat.print("multicast, flat placement");
    aware.print("multicast, placement for fabric");
    let saved = |before: &Row| {
        let top = |row: &Row| *row.tiers.last().expect("a tier");
        let percent = |now: f64, before: f64| format!("{:+9.1}%", 100.0 * (now / before - 1.0));
        percent(aware.cost, before.cost) + &percent(top(&aware), top(before))
    };
    format!("{name:46}{}{}", saved(&random), saved(&flat))
}

/// Means over several placements, in GB.
struct Row {
    tiers: Vec<f64>,
    hops: f64,
    cost: f64,
    busiest: f64,
    seconds: f64,
}

impl Row {
    const fn none() -> Self {
        Row { tiers: Vec::new(), hops: 0.0, cost: 0.0, busiest: 0.0, seconds: 0.0 }
    }

    /// Adds one of `count`.
    fn add(&mut self, loads: &Loads, topology: &Topology, count: f64) {
        let share = |bytes: u64| bytes as f64 / 1e9 / count;
        let tiers = loads.by_tier(topology);
        self.tiers.resize(tiers.len(), 0.0);
        self.tiers.iter_mut().zip(tiers).for_each(|(sum, tier)| *sum += share(tier.bytes));
        self.hops += share(loads.byte_hops());
        self.cost += share(loads.cost_bytes(topology));
        let busiest = loads.busiest(topology).expect("something is carried");
        self.busiest += share(busiest.bytes);
        self.seconds += busiest.time.as_secs_f64() / count;
    }

    fn print(&self, name: &str) {
        print!("{name:34}");
        for value in self.tiers.iter().chain([&self.hops, &self.cost, &self.busiest]) {
            print!("{value:9.2}");
        }
        println!("{:9.1}", self.seconds);
    }
}

/// Each with `hosts` hosts, `h0` the source; racks are filled one after the other.
fn fabrics(hosts: usize) -> [(&'static str, Topology); 4] {
    let names: Vec<String> = (0..hosts).map(|host| format!("h{host}")).collect();
    let racks = |size: usize| names.chunks(size).map(<[String]>::to_vec).collect::<Vec<_>>();
    let [uplink, core] = [2, 4].map(|cost| LinkSpec { cost, ..LINK });
    let tree = |k: usize| fat_tree(&FatTree { k, hosts: racks(2), link: LINK, uplink, core });
    let leaves = leaf_spine(&LeafSpine { leaves: 4, spines: 2, hosts: racks(4), link: LINK, uplink });
    let cube = bcube(&BCube { n: 4, k: 1, hosts: names.clone(), links: vec![LINK] });
    [
        ("leaf-spine, 4 hosts a leaf", leaves),
        ("fat tree, k = 4, 2 hosts an edge", tree(4)),
        ("fat tree, k = 6, 2 hosts an edge", tree(6)),
        ("BCube(4, 1)", cube),
    ]
    .map(|(name, topology)| (name, topology.expect("the fabric is well formed")))
}

/// An even placement of least cost over `tree`.
fn placed(groups: &HolderGroups, tree: &DeliveryTree) -> Vec<TargetId> {
    let vms = vec![VmDemand { name: "vm", memory_bytes: 1, pinned: None }; VMS as usize];
    let vms_max = Some(VMS.div_ceil(tree.targets() as u64) as u32);
    let targets = vec![TargetCapacity { name: "target", free_bytes: VMS, vms_max }; tree.targets()];
    let problem = Problem {
        vms: &vms,
        targets: &targets,
        apart: &[],
        groups,
        tree,
        few_targets: false,
        group_addresses: usize::MAX,
    };
    // No clock: its effort alone bounds the search, so that the figures do not depend on the machine.
    solve(&problem, Effort::default(), &mut || false).expect("there is room").placement
}

/// What the VMs share, and their pages that are not zero.
fn fleet(dice: &mut Dice) -> (HolderGroups, Vec<u64>) {
    let mut groups = HolderGroups { alone: vec![ALONE; VMS as usize], shared: Vec::new() };
    let mut share = |vms: std::ops::Range<u64>, contents: u64| {
        for _ in 0..contents / BATCH {
            let holders: Vec<u16> =
                vms.clone().filter(|_| dice.below(100) < HELD_PERCENT).map(|vm| vm as u16).collect();
            match holders[..] {
                [] => {}
                [vm] => groups.alone[usize::from(vm)] += BATCH,
                _ => groups.shared.push(HolderGroup { vms: holders, contents: BATCH }),
            }
        }
    };
    let subtree = |at: u64, size: u64| at * size..(at + 1) * size;
    share(0..VMS, COMMON);
    (0..SYSTEMS).for_each(|at| share(subtree(at, APPLICATIONS * VMS_PER_APPLICATION), SYSTEM));
    (0..SYSTEMS * APPLICATIONS).for_each(|at| share(subtree(at, VMS_PER_APPLICATION), APPLICATION));
    // No two groups have the same VMs.
    groups.shared.sort_by(|a, b| a.vms.cmp(&b.vms));
    groups.shared.dedup_by(|next, kept| {
        let same = next.vms == kept.vms;
        kept.contents += if same { next.contents } else { 0 };
        same
    });
    let mut pages: Vec<u64> = groups.alone.iter().map(|alone| alone + REPEATS).collect();
    for group in &groups.shared {
        group.vms.iter().for_each(|vm| pages[usize::from(*vm)] += group.contents);
    }
    (groups, pages)
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    fn shuffled<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
        items
    }
}
