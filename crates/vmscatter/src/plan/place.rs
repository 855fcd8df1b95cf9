//! Which guest goes to which target, by name: core's placement under what an operator has said.

use std::time::{Duration, Instant};

use vmscatter_core::limits::SCHEDULE_SETS_MAX;
use vmscatter_core::placement::{
    DeliveryTree, Effort, HolderGroups, PlacementError, Problem, Solution, TargetCapacity, TargetId,
    VmDemand, even_vms_max, solve,
};

use crate::agent::protocol::{Pin, PlacementRules};

/// The search for a placement may take this long; guests wait meanwhile, and go on dirtying what was collected.
pub const SEARCH_MAX: Duration = Duration::from_millis(400);
/// Steps of the exact search, a few nanoseconds each, so that most of the time is left to the local search where the case is
/// too large for it.
const EXACT_STEPS_MAX: u64 = 20_000_000;

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

impl Candidates {
    /// Adds guests that are at their targets already, as far as these are candidates: they take no more memory there, but
    /// count where rules count guests, and keep away who is to be apart from them.
    pub fn settle(&mut self, settled: &[Pin]) {
        for pin in settled.iter().filter(|pin| self.targets.iter().any(|target| target.name == pin.target)) {
            self.guests.push(Guest { name: pin.guest.clone(), memory_bytes: 0 });
            self.rules.pins.retain(|other| other.guest != pin.guest);
            self.rules.pins.push(pin.clone());
        }
    }
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
        // Sets share addresses, so that all of them go by multicast.
        group_addresses: SCHEDULE_SETS_MAX,
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

#[cfg(test)]
mod tests {
    use vmscatter_core::placement::HolderGroup;

    use super::*;
    use crate::agent::protocol::Pin;

    const GIB: u64 = 1 << 30;

    fn candidates(guests: usize, free: &[u64], rules: PlacementRules) -> Candidates {
        let guest = |at| Guest { name: format!("vm{}", at + 1), memory_bytes: GIB };
        let target = |(at, free): (usize, &u64)| Target { name: format!("t{}", at + 1), free_bytes: *free };
        let targets = free.iter().enumerate().map(target).collect();
        Candidates { guests: (0..guests).map(guest).collect(), targets, rules }
    }

    /// The first and the third share much, and so do the second and the fourth.
    fn groups() -> HolderGroups {
        let shared = |vms: [u16; 2]| HolderGroup { vms: vms.to_vec(), contents: 1000 };
        HolderGroups { alone: vec![10; 4], shared: vec![shared([0, 2]), shared([1, 3])] }
    }

    fn chosen(candidates: &Candidates) -> Result<Vec<u8>, String> {
        let tree = DeliveryTree::flat(candidates.targets.len());
        let solution = choose(candidates, &groups(), &tree).map_err(|error| error.to_string())?;
        Ok(solution.placement.into_iter().map(|target| target.0).collect())
    }

    #[test]
    fn guests_that_share_go_together_and_evenly() {
        let placed = chosen(&candidates(4, &[9 * GIB; 2], PlacementRules::default())).unwrap();
        assert_eq!((placed[0], placed[1]), (placed[2], placed[3]));
        assert_ne!(placed[0], placed[1]);
    }

    #[test]
    fn guests_that_have_moved_keep_their_places() {
        let apart = vec![vec!["vm1".into(), "gone1".into()]];
        let rules = PlacementRules { apart, vms_max: Some(3), ..PlacementRules::default() };
        let mut candidates = candidates(4, &[9 * GIB; 2], rules);
        let at = |guest: &str, target: &str| Pin { guest: guest.into(), target: target.into() };
        candidates.settle(&[at("gone1", "t1"), at("gone2", "t2"), at("gone3", "t9")]);
        let mut groups = groups();
        groups.alone.resize(candidates.guests.len(), 0);
        let solution = choose(&candidates, &groups, &DeliveryTree::flat(2)).unwrap();
        let placed: Vec<u8> = solution.placement.iter().map(|target| target.0).collect();
        assert_eq!(placed.len(), 6, "of the third no target takes part");
        assert_eq!((placed[0], placed[4], placed[5]), (1, 0, 1), "vm1 is apart from the one that has moved");
        assert_eq!(placed.iter().filter(|&&target| target == 0).count(), 3, "{placed:?}");
    }

    #[test]
    fn what_the_operator_says_holds() {
        let pin = |guest: &str, target: &str| Pin { guest: guest.into(), target: target.into() };
        // A pin may be for a guest of another wave.
        let rules =
            PlacementRules { pins: vec![pin("vm1", "t2"), pin("vm9", "t1")], ..PlacementRules::default() };
        assert_eq!(chosen(&candidates(4, &[9 * GIB; 2], rules)).unwrap(), [1, 0, 1, 0]);
        let apart = vec![vec!["vm1".into(), "vm3".into()]];
        let placed =
            chosen(&candidates(4, &[9 * GIB; 2], PlacementRules { apart, ..PlacementRules::default() }));
        let placed = placed.unwrap();
        assert_ne!(placed[0], placed[2]);
        let few = PlacementRules { few_targets: true, ..PlacementRules::default() };
        assert_eq!(chosen(&candidates(4, &[3 * GIB, 9 * GIB], few.clone())).unwrap(), [1; 4]);
        let both = PlacementRules { vms_max: Some(2), ..few };
        let placed = chosen(&candidates(4, &[9 * GIB; 3], both)).unwrap();
        assert_eq!(placed.iter().collect::<std::collections::BTreeSet<_>>().len(), 2, "{placed:?}");
    }

    #[test]
    fn memory_raises_the_even_limit_and_refusals_name_guest_and_target() {
        assert_eq!(chosen(&candidates(4, &[GIB, 9 * GIB], PlacementRules::default())).unwrap().len(), 4);
        let pins = vec![Pin { guest: "vm1".into(), target: "t1".into() }];
        let rules = PlacementRules { pins, ..PlacementRules::default() };
        let refused = chosen(&candidates(4, &[GIB / 2, 9 * GIB], rules)).unwrap_err();
        assert!(refused.contains("vm1") && refused.contains("t1"), "{refused}");
        let refused = chosen(&candidates(4, &[GIB / 2; 2], PlacementRules::default())).unwrap_err();
        assert!(refused.contains("vm1") && refused.contains("t1"), "{refused}");
    }
}
