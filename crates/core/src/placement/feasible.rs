//! Whether there is any placement, and if not, why.

use super::exact;
use super::model::{Load, Rules};
use super::pack::pack;
use super::problem::{Constraint, PlacementError, Problem, TargetCapacity, VmDemand};
use super::solve::Effort;

/// The least limit of VMs a target, beside the targets' own, under which there is a placement: VMs by targets, rounded
/// up, unless memory, pins or anti-affinity demand more. What an operator expects who names several targets and says no more.
///
/// # Errors
/// As [`solve`](super::solve).
///
/// # Panics
/// As [`solve`](super::solve).
pub fn even_vms_max(problem: &Problem) -> Result<u32, PlacementError> {
    let rules = Rules::new(problem)?;
    check(problem, &rules)?;
    let effort = Effort::default();
    let with = |limit: u32| Rules {
        vms_max: rules.vms_max.iter().map(|max| limit.min(*max)).collect(),
        ..rules.clone()
    };
    let pinned = |target: usize| rules.pinned.iter().filter(|pin| **pin == Some(target as u8)).count();
    let pinned = (0..rules.targets()).map(pinned).max().unwrap_or(0);
    let (mut low, mut high) = (rules.vms().div_ceil(rules.targets()).max(pinned) as u32, rules.vms() as u32);
    if low == high || is_feasible(&with(low), effort) {
        return Ok(low);
    }
    if !is_feasible(&rules, effort) {
        return Err(why_not(problem, &rules, effort));
    }
    while low + 1 < high {
        let middle = low.midpoint(high);
        if is_feasible(&with(middle), effort) { high = middle } else { low = middle }
    }
    Ok(high)
}

/// What can be told at a glance.
pub(super) fn check(problem: &Problem, rules: &Rules) -> Result<(), PlacementError> {
    let (vms, targets) = (problem.vms, problem.targets);
    let pins = check_pins(problem, rules)?;
    for (number, group) in problem.apart.iter().enumerate() {
        let named = |vm: &usize| rules.apart_of[*vm].contains(&(number as u32));
        let members: Vec<usize> = (0..vms.len()).filter(named).collect();
        if members.len() > targets.len() {
            let vm = vms[usize::from(group[0])].name.into();
            return Err(PlacementError::TooManyApart { vm, vms: members.len(), targets: targets.len() });
        }
    }
    let vms_max = rules.vms_max.iter().map(|max| u64::from(*max)).sum();
    if vms.len() as u64 > vms_max {
        return Err(PlacementError::VmsMaxTooSmall { vms: vms.len(), vms_max });
    }
    for vm in (0..vms.len()).filter(|vm| rules.pinned[*vm].is_none()) {
        if pins.free.iter().all(|free| *free < rules.memory[vm]) {
            return Err(does_not_fit(problem, vm, &pins.free));
        }
    }
    let sum = |bytes: &[u64]| bytes.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    let (needed, free) = (sum(&rules.memory), sum(&rules.free));
    if needed > free {
        return Err(PlacementError::MemoryTooSmall { needed, free });
    }
    Ok(())
}

fn check_pins<'a>(problem: &Problem, rules: &'a Rules) -> Result<Load<'a>, PlacementError> {
    let mut load = Load::new(rules);
    let mut pinned: Vec<(usize, usize)> = Vec::new();
    for (vm, demand) in problem.vms.iter().enumerate() {
        let Some(target) = demand.pinned.map(|pin| usize::from(pin.0)) else { continue };
        let TargetCapacity { name, .. } = problem.targets[target];
        let VmDemand { name: vm_name, memory_bytes: needed, .. } = *demand;
        let (vm_name, target_name) = (vm_name.to_owned(), name.to_owned());
        if load.free[target] < needed {
            let free = load.free[target];
            return Err(PlacementError::PinDoesNotFit { vm: vm_name, target: target_name, needed, free });
        }
        if load.counts[target] == rules.vms_max[target] {
            let vms_max = rules.vms_max[target];
            return Err(PlacementError::PinExceedsVmsMax { vm: vm_name, target: target_name, vms_max });
        }
        let clash = |(other, at): &&(usize, usize)| {
            *at == target && rules.apart_of[vm].iter().any(|group| rules.apart_of[*other].contains(group))
        };
        if let Some((other, _)) = pinned.iter().find(clash) {
            let other = problem.vms[*other].name.into();
            return Err(PlacementError::PinsNotApart { vm: vm_name, other, target: target_name });
        }
        load.put(vm, target);
        pinned.push((vm, target));
    }
    Ok(load)
}

fn does_not_fit(problem: &Problem, vm: usize, free: &[u64]) -> PlacementError {
    // Of equals the first.
    let most = (0..free.len()).rev().max_by_key(|target| free[*target]).expect("there is a target");
    PlacementError::DoesNotFit {
        vm: problem.vms[vm].name.into(),
        needed: problem.vms[vm].memory_bytes,
        target: problem.targets[most].name.into(),
        free: free[most],
    }
}

/// Names the constraint without which there would be a placement, and memory if there is none to blame.
pub(super) fn why_not(problem: &Problem, rules: &Rules, effort: Effort) -> PlacementError {
    // Where packing succeeds a caller has asked for nothing; any VM will do.
    let (left, free) = match pack(rules, effort.seed) {
        Err(left) => (left.vm, left.free),
        Ok(_) => (0, rules.free.clone()),
    };
    let no_apart = || Rules { apart: 0, apart_of: vec![Vec::new(); rules.vms()], ..rules.clone() };
    let no_vms_max = || Rules { vms_max: vec![u32::MAX; rules.targets()], ..rules.clone() };
    let no_pins = || Rules { pinned: vec![None; rules.vms()], ..rules.clone() };
    let none = || Rules { free: rules.free.clone(), memory: rules.memory.clone(), ..no_apart() };
    let none = || Rules { vms_max: no_vms_max().vms_max, pinned: no_pins().pinned, ..none() };
    let relaxed: [(Constraint, &dyn Fn() -> Rules); 4] = [
        (Constraint::Apart, &no_apart),
        (Constraint::VmsMax, &no_vms_max),
        (Constraint::Pins, &no_pins),
        (Constraint::Several, &none),
    ];
    for (without, rules) in relaxed {
        if is_feasible(&rules(), effort) {
            return PlacementError::Conflict { vm: problem.vms[left].name.into(), without };
        }
    }
    does_not_fit(problem, left, &free)
}

fn is_feasible(rules: &Rules, effort: Effort) -> bool {
    pack(rules, effort.seed).is_ok() || exact::is_feasible(rules, effort.exact_steps_max) == Ok(true)
}
