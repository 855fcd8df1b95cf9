//! Which guest goes to which target, by name: core's placement under what an operator has said.

use std::time::{Duration, Instant};

use vmscatter_core::placement::{
    DeliveryTree, Effort, HolderGroups, PlacementError, Problem, Solution, TargetCapacity, TargetId,
    VmDemand, even_vms_max, solve,
};

use crate::agent::protocol::PlacementRules;

/// The search for a placement may take this long; guests wait meanwhile, and go on dirtying what was collected.
pub const SEARCH_MAX: Duration = Duration::from_millis(400);
/// Steps of the exact search, a few nanoseconds each, so that most of the time is left to the local search where the case is
/// too large for it.
const EXACT_STEPS_MAX: u64 = 20_000_000;
/// Target sets with a group of their own (Linux lets a socket join 20); those beyond get their frames by TCP.
pub const GROUPS_MAX: usize = 16;

/// A guest that is to be placed.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Memory that it takes at its target.
    pub memory_bytes: u64,
}

/// A host that could take guests.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Memory for guests there.
    pub free_bytes: u64,
}

/// Who is to be placed where, under which rules.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The guests, in the order in which contents number them.
    pub guests: Vec<Guest>,
    /// The targets.
    pub targets: Vec<Target>,
    /// What the operator has said. Names that are not among guests and targets are passed over: they may be of another wave.
    pub rules: PlacementRules,
}

/// Chooses targets so that least has to be sent. `groups` says what the guests hold in common, `tree` what it costs to
/// bring a content to a set of targets. An even spread unless the rules say otherwise.
///
/// # Errors
/// The constraint that can't be met, with guest and target.
pub fn choose(
    candidates: &Candidates,
    groups: &HolderGroups,
    tree: &DeliveryTree,
) -> Result<Solution, PlacementError> {
    let rules = &candidates.rules;
    let guest_at = |name: &str| candidates.guests.iter().position(|guest| guest.name == name);
    let target_at = |name: &str| candidates.targets.iter().position(|target| target.name == name);
    let pinned = |guest: &Guest| {
        let pin = rules.pins.iter().find(|pin| pin.guest == guest.name)?;
        target_at(&pin.target).map(|at| TargetId(at as u8))
    };
    let guests = candidates.guests.iter();
    let vms: Vec<VmDemand<'_>> =
        guests.map(|g| VmDemand { name: &g.name, memory_bytes: g.memory_bytes, pinned: pinned(g) }).collect();
    let apart: Vec<Vec<u16>> = rules
        .apart
        .iter()
        .map(|group| group.iter().filter_map(|name| guest_at(name)).map(|at| at as u16).collect())
        .collect();
    let capacity = |vms_max| -> Vec<TargetCapacity<'_>> {
        let targets = candidates.targets.iter();
        targets.map(|t| TargetCapacity { name: &t.name, free_bytes: t.free_bytes, vms_max }).collect()
    };
    let targets = capacity(rules.vms_max);
    let problem = Problem {
        vms: &vms,
        targets: &targets,
        apart: &apart,
        groups,
        tree,
        few_targets: rules.few_targets,
        group_addresses: GROUPS_MAX,
    };
    let end = Instant::now() + SEARCH_MAX;
    let mut stop = || Instant::now() >= end;
    let effort = Effort { exact_steps_max: EXACT_STEPS_MAX, ..Effort::default() };
    if rules.vms_max.is_some() || rules.few_targets {
        return solve(&problem, effort, &mut stop);
    }
    let even = capacity(Some(even_vms_max(&problem)?));
    solve(&Problem { targets: &even, ..problem }, effort, &mut stop)
}
