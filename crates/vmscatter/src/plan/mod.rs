//! Which guest goes to which target, and what moving them will cost: the same for guests that run and for fingerprints that
//! were saved.
//!
//! - [`mod@place`]: the choice of targets, which `migrate` makes too; [`network`]: what it costs to reach them
//! - [`saved`]: plans from files

pub mod network;
pub mod place;
pub mod saved;

use std::time::{Duration, Instant};

use vmscatter_core::limits::SCHEDULE_SETS_MAX;
use vmscatter_core::placement::{PlacementError, Solution, TargetId};
use vmscatter_core::predict::{
    Bytes, Compressed, Inventory, Measured, Pace, PhaseTimes, SetVolume, Volume, Wire, off_the_shelf_bytes,
};
use vmscatter_core::schedule::{Classes, SetLoad, order_sets};

use crate::agent::speeds;
use crate::report::outcome::PlacementOutcome;
use crate::report::plan::{
    Alternative, BetweenHosts, Plan, PlanClass, PlanClasses, PlanGuest, PlanRate, PlanSource, PlanTarget,
    Prediction, RateOrigin, TopologyReport,
};
use network::Network;
use place::{Candidates, Target, choose};

/// What the link is taken to carry until it has been measured: 1 Gbit/s.
pub const LINK_BYTES_PER_S: f64 = 125e6;
/// What an MTU is taken to be that nobody tells.
pub const MTU_DEFAULT: u32 = 1500;
/// Targets that are tried to leave out; with more, those that receive least.
const LEFT_OUT_MAX: usize = 8;

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Input {
    /// The hosts that guests leave.
    pub sources: Vec<Source>,
    /// Guests, targets and rules.
    pub candidates: Candidates,
    /// For each guest the source where it runs.
    pub source_of: Vec<usize>,
    /// What the guests hold, in the same order.
    pub inventory: Inventory,
    /// What stands on several hosts.
    pub between_hosts: Option<BetweenHosts>,
    /// Counts are estimates.
    pub sampled: bool,
    /// Least MTU on the way.
    pub mtu: u32,
    /// What compression leaves.
    pub compressed: Compressed,
    /// Multicast groups that target sets share.
    pub groups: usize,
    /// How fast things go.
    pub speed: Speed,
    /// What it costs to bring contents to the targets.
    pub network: Network,
}

/// A host that guests leave.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Connecting and collecting, as measured or expected.
    pub times: PhaseTimes,
}

/// How fast things go, and who says so.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pace: Pace,
    rate: PlanRate,
}

impl Speed {
    /// From `--bandwidth`, else from what earlier migrations have measured, else assumed.
    pub fn of(bandwidth_bits: Option<u64>, known: Option<speeds::Known>) -> Speed {
        let (link_bytes_per_s, origin) = match (bandwidth_bits, known.and_then(|k| k.link_bytes_per_s)) {
            (Some(bits), _) => (bits as f64 / 8.0, RateOrigin::Given),
            (None, Some(rate)) => (rate, RateOrigin::Measured),
            (None, None) => (LINK_BYTES_PER_S, RateOrigin::Assumed),
        };
        let measured = known.map(|known| match known.link_bytes_per_s {
            Some(link_bytes_per_s) if !known.last.measured.link_was_given => {
                Measured { link_bytes_per_s, ..known.last.measured }
            }
            _ => known.last.measured,
        });
        Speed {
            pace: Pace { link_bytes_per_s, measured },
            rate: PlanRate {
                bits_per_s: link_bytes_per_s * 8.0,
                origin,
                hosts_measured_unix_s: known.map(|known| known.last.unix_s),
            },
        }
    }
}

/// Chooses targets and says what moving the guests there costs.
///
/// # Errors
/// The constraint that can't be met, with guest and target.
pub fn make(input: &Input) -> Result<Plan, PlacementError> {
    let start = Instant::now();
    let solution = place(input, &input.candidates, &input.network)?;
    let time = start.elapsed();
    let targets = &input.candidates.targets;
    let cost = Cost::of(input, &solution, targets.len(), time);
    Ok(Plan {
        guests: guests(input, &solution),
        targets: loads(input, &solution, &cost.received),
        classes: classes(&input.inventory.classes(&placement_of(&solution)), &input.inventory),
        distinct_nonzero_bytes: input.inventory.groups.contents() * vmscatter_core::page::PAGE_SIZE as u64,
        between_hosts: input.between_hosts,
        placement: PlacementOutcome::of(&solution, time),
        rate: input.speed.rate,
        compressed: [input.compressed.shared, input.compressed.unique],
        one_less: one_less(input, &cost, time),
        one_more: one_more(input, time),
        topology: topology(input, &solution),
        target_sets: cost.target_sets,
        joins_and_leaves: cost.joins_and_leaves,
        sampled: input.sampled,
        sources: cost.sources,
        predicted: cost.predicted,
        off_the_shelf: cost.off_the_shelf,
    })
}

fn place(input: &Input, candidates: &Candidates, network: &Network) -> Result<Solution, PlacementError> {
    choose(candidates, &input.inventory.groups, network.tree())
}

fn topology(input: &Input, solution: &Solution) -> Option<TopologyReport> {
    let nonzero: Vec<u64> = input.inventory.vms.iter().map(|vm| vm.total - vm.zero).collect();
    input.network.report(&input.inventory.groups, &nonzero, &solution.placement)
}

fn placement_of(solution: &Solution) -> Vec<Option<TargetId>> {
    solution.placement.iter().copied().map(Some).collect()
}

/// What a placement costs.
struct Cost {
    sources: Vec<PlanSource>,
    predicted: Prediction,
    off_the_shelf: Prediction,
    received: Vec<u64>,
    target_sets: u64,
    joins_and_leaves: u64,
}

impl Cost {
    /// Each source sends its own.
    fn of(input: &Input, solution: &Solution, targets: usize, place_time: Duration) -> Cost {
        let mut cost = Cost {
            sources: Vec::new(),
            predicted: Prediction::default(),
            off_the_shelf: Prediction::default(),
            received: vec![0; targets],
            target_sets: 0,
            joins_and_leaves: 0,
        };
        let wire =
            Wire { mtu: input.mtu, multicast_sets_max: SCHEDULE_SETS_MAX, compressed: input.compressed };
        for (number, source) in input.sources.iter().enumerate() {
            let own = solution.placement.iter().zip(&input.source_of);
            let own: Vec<_> = own.map(|(target, of)| (*of == number).then_some(*target)).collect();
            let volume = input.inventory.volume(&own);
            let bytes = wire.bytes(&volume, targets);
            for (all, own) in cost.received.iter_mut().zip(&bytes.received) {
                *all += own;
            }
            let load = |set: &SetVolume| SetLoad {
                set: set.targets,
                bytes: set.contents * vmscatter_core::page::PAGE_SIZE as u64,
            };
            let sets: Vec<SetLoad> = volume.multicast().map(load).collect();
            cost.target_sets += sets.len() as u64;
            cost.joins_and_leaves += order_sets(&sets, input.groups).joins_and_leaves(&sets);
            let times = PhaseTimes { place_s: place_time.as_secs_f64(), ..source.times };
            let predicted = prediction(&bytes, input.speed.pace.complete(times, &volume, &bytes));
            let off_the_shelf = off_the_shelf(input, times, &volume, targets);
            add(&mut cost.predicted, &predicted);
            add(&mut cost.off_the_shelf, &off_the_shelf);
            let guests = volume.vms.len() as u64;
            cost.sources.push(PlanSource { name: source.name.clone(), guests, predicted, off_the_shelf });
        }
        cost
    }
}

fn prediction(bytes: &Bytes, times: PhaseTimes) -> Prediction {
    Prediction {
        transferred_bytes: bytes.transferred(),
        traffic_bytes: bytes.traffic(),
        time_s: times.total_s(),
        times,
    }
}

fn off_the_shelf(input: &Input, times: PhaseTimes, volume: &Volume, targets: usize) -> Prediction {
    let bytes = off_the_shelf_bytes(volume, targets, input.mtu).iter().sum();
    let times = input.speed.pace.off_the_shelf(times, volume, bytes);
    Prediction { transferred_bytes: bytes, traffic_bytes: bytes, time_s: times.total_s(), times }
}

fn add(sum: &mut Prediction, other: &Prediction) {
    sum.transferred_bytes += other.transferred_bytes;
    sum.traffic_bytes += other.traffic_bytes;
    sum.time_s += other.time_s;
    sum.times = sum.times.plus(&other.times);
}

/// The best of those with one target less, if there is any.
fn one_less(input: &Input, cost: &Cost, place_time: Duration) -> Option<Alternative> {
    let targets = &input.candidates.targets;
    let is_pinned = |name: &str| input.candidates.rules.pins.iter().any(|pin| pin.target == name);
    let mut order: Vec<usize> = (0..targets.len()).filter(|at| !is_pinned(&targets[*at].name)).collect();
    order.sort_by_key(|at| cost.received[*at]);
    if targets.len() < 2 {
        return None;
    }
    let without = |left_out: usize| {
        let mut candidates = input.candidates.clone();
        let name = candidates.targets.remove(left_out).name;
        let solution = place(input, &candidates, &input.network.without(left_out)).ok()?;
        Some((name, solution))
    };
    let tried = order.into_iter().take(LEFT_OUT_MAX).filter_map(without);
    let (name, solution) = tried.min_by_key(|(_, solution)| solution.cost)?;
    let cost = Cost::of(input, &solution, targets.len() - 1, place_time);
    let targets_used = solution.targets_used as u64;
    Some(Alternative { without: Some(name), targets_used, predicted: cost.predicted })
}

/// With a target that has the mean of the others' memory.
fn one_more(input: &Input, place_time: Duration) -> Option<Alternative> {
    let network = input.network.with_one_more()?;
    let mut candidates = input.candidates.clone();
    let targets = &mut candidates.targets;
    let sum: u128 = targets.iter().map(|target| u128::from(target.free_bytes)).sum();
    let free_bytes = (sum / targets.len().max(1) as u128) as u64;
    // No host has such a name.
    targets.push(Target { name: "one more target".into(), free_bytes });
    let solution = place(input, &candidates, &network).ok()?;
    let cost = Cost::of(input, &solution, candidates.targets.len(), place_time);
    let targets_used = solution.targets_used as u64;
    Some(Alternative { without: None, targets_used, predicted: cost.predicted })
}

fn guests(input: &Input, solution: &Solution) -> Vec<PlanGuest> {
    let candidates = &input.candidates;
    let guest = |at: usize| {
        let (guest, vm) = (&candidates.guests[at], &input.inventory.vms[at]);
        PlanGuest {
            name: guest.name.clone(),
            source: input.sources[input.source_of[at]].name.clone(),
            target: candidates.targets[usize::from(solution.placement[at].0)].name.clone(),
            memory_bytes: guest.memory_bytes,
            zero_pages: vm.zero,
            unique_pages: vm.unique,
            shared_pages: vm.within + vm.across,
        }
    };
    (0..candidates.guests.len()).map(guest).collect()
}

fn loads(input: &Input, solution: &Solution, received: &[u64]) -> Vec<PlanTarget> {
    let candidates = &input.candidates;
    let load = |(at, target): (usize, &Target)| {
        let here =
            candidates.guests.iter().zip(&solution.placement).filter(|(_, to)| usize::from(to.0) == at);
        let here: Vec<_> = here.map(|(guest, _)| guest).collect();
        let memory_bytes = here.iter().map(|guest| guest.memory_bytes).sum();
        PlanTarget {
            name: target.name.clone(),
            guests: here.iter().map(|guest| guest.name.clone()).collect(),
            memory_bytes,
            free_bytes: (target.free_bytes < u64::MAX)
                .then(|| target.free_bytes.saturating_sub(memory_bytes)),
            received_bytes: received[at],
        }
    };
    candidates.targets.iter().enumerate().map(load).collect()
}

fn classes(classes: &Classes, inventory: &Inventory) -> PlanClasses {
    let class = |contents, pages| PlanClass { contents, pages };
    let shared = |count: vmscatter_core::schedule::ClassCount| class(count.contents, count.pages);
    PlanClasses {
        zero: class(u64::from(inventory.total().zero > 0), classes.zero_pages),
        unique: class(classes.unique_pages, classes.unique_pages),
        isvst: shared(classes.isvst),
        imvst: shared(classes.imvst),
        imvmt: shared(classes.imvmt),
    }
}
