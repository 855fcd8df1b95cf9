//! The problem in the shape that the algorithms use.

use super::delivery::Links;
use super::problem::{PlacementError, Problem};
use super::sample::Sample;
use crate::limits::{SESSION_TARGETS_MAX, SESSION_VMS_MAX};

/// A problem whose numbers are all in range.
pub(super) struct Model<'a> {
    pub(super) problem: Problem<'a>,
    pub(super) links: Links,
    pub(super) sample: Sample,
    pub(super) rules: Rules,
}

impl<'a> Model<'a> {
    pub(super) fn new(problem: &Problem<'a>) -> Result<Self, PlacementError> {
        let rules = Rules::new(problem)?;
        let links = Links::of(problem.tree);
        let cost = links.cost.iter().fold(0u128, |sum, cost| sum + u128::from(*cost));
        if cost.saturating_mul(u128::from(problem.groups.contents())) >= COST_MAX {
            return Err(PlacementError::CostsTooLarge);
        }
        let sample = Sample::of(problem.groups, links.cost.len());
        Ok(Model { problem: *problem, links, sample, rules })
    }
}

/// Bound of all costs, with room for the error of a sample and for a number of targets above it.
pub(super) const COST_MAX: u128 = 1 << 58;

/// What keeps a VM from a target.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) memory: Vec<u64>,
    pub(super) free: Vec<u64>,
    pub(super) vms_max: Vec<u32>,
    pub(super) pinned: Vec<Option<u8>>,
    /// For each VM its anti-affinity groups.
    pub(super) apart_of: Vec<Vec<u32>>,
    pub(super) apart: usize,
}

impl Rules {
    pub(super) fn new(problem: &Problem) -> Result<Self, PlacementError> {
        let (vms, targets) = (problem.vms, problem.targets);
        match targets.len() {
            0 => return Err(PlacementError::NoTarget),
            count if count > SESSION_TARGETS_MAX => return Err(PlacementError::TooManyTargets(count)),
            _ => {}
        }
        if vms.len() > SESSION_VMS_MAX {
            return Err(PlacementError::TooManyVms(vms.len()));
        }
        assert_eq!(problem.groups.vms(), vms.len(), "the groups are those of the VMs");
        assert_eq!(problem.tree.targets(), targets.len(), "the tree leads to the targets");
        let mut apart_of = vec![Vec::new(); vms.len()];
        for (number, group) in problem.apart.iter().enumerate() {
            for vm in group {
                let groups: &mut Vec<u32> = apart_of
                    .get_mut(usize::from(*vm))
                    .ok_or(PlacementError::UnknownVm { vm: *vm, vms: vms.len() })?;
                // A VM that is named twice is not kept apart from itself.
                if groups.last() != Some(&(number as u32)) {
                    groups.push(number as u32);
                }
            }
        }
        let unknown =
            |vm: &&super::VmDemand| vm.pinned.is_some_and(|pin| usize::from(pin.0) >= targets.len());
        if let Some((vm, pin)) = vms.iter().find(unknown).and_then(|vm| Some((vm, vm.pinned?))) {
            let (vm, targets) = (vm.name.into(), targets.len());
            return Err(PlacementError::UnknownTarget { vm, target: pin.0, targets });
        }
        Ok(Rules {
            memory: vms.iter().map(|vm| vm.memory_bytes).collect(),
            free: targets.iter().map(|target| target.free_bytes).collect(),
            vms_max: targets.iter().map(|target| target.vms_max.unwrap_or(u32::MAX)).collect(),
            pinned: vms.iter().map(|vm| vm.pinned.map(|pin| pin.0)).collect(),
            apart_of,
            apart: problem.apart.len(),
        })
    }

    pub(super) fn vms(&self) -> usize {
        self.memory.len()
    }

    pub(super) fn targets(&self) -> usize {
        self.free.len()
    }
}

/// What each target has taken so far.
#[derive(Clone)]
pub(super) struct Load<'a> {
    pub(super) rules: &'a Rules,
    pub(super) free: Vec<u64>,
    pub(super) counts: Vec<u32>,
    /// VMs of each anti-affinity group (row) at each target.
    apart: Vec<u16>,
}

impl<'a> Load<'a> {
    pub(super) fn new(rules: &'a Rules) -> Self {
        let targets = rules.targets();
        Load {
            rules,
            free: rules.free.clone(),
            counts: vec![0; targets],
            apart: vec![0; rules.apart * targets],
        }
    }

    pub(super) fn put(&mut self, vm: usize, target: usize) {
        self.free[target] -= self.rules.memory[vm];
        self.counts[target] += 1;
        for group in &self.rules.apart_of[vm] {
            self.apart[*group as usize * self.free.len() + target] += 1;
        }
    }

    pub(super) fn take(&mut self, vm: usize, target: usize) {
        self.free[target] += self.rules.memory[vm];
        self.counts[target] -= 1;
        for group in &self.rules.apart_of[vm] {
            self.apart[*group as usize * self.free.len() + target] -= 1;
        }
    }

    /// Whether a VM that is not there yet may go to the target.
    pub(super) fn fits(&self, vm: usize, target: usize) -> bool {
        self.pin_allows(vm, target)
            && self.rules.memory[vm] <= self.free[target]
            && self.counts[target] < self.rules.vms_max[target]
            && self.apart_allows(vm, target, None)
    }

    /// Whether a VM that is not there yet may go to the target once `leaves` has left it.
    pub(super) fn fits_after(&self, vm: usize, target: usize, leaves: usize) -> bool {
        self.pin_allows(vm, target)
            && self.rules.memory[vm] <= self.free[target] + self.rules.memory[leaves]
            && self.counts[target] <= self.rules.vms_max[target]
            && self.apart_allows(vm, target, Some(leaves))
    }

    pub(super) fn pin_allows(&self, vm: usize, target: usize) -> bool {
        self.rules.pinned[vm].is_none_or(|pin| usize::from(pin) == target)
    }

    fn apart_allows(&self, vm: usize, target: usize, leaves: Option<usize>) -> bool {
        self.rules.apart_of[vm].iter().all(|group| {
            let leaving = leaves.is_some_and(|leaves| self.rules.apart_of[leaves].contains(group));
            self.apart[*group as usize * self.free.len() + target] == u16::from(leaving)
        })
    }
}
