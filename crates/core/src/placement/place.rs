//! Pins are kept; all other VMs are spread evenly over the targets, as far as memory allows.

use thiserror::Error;

use super::TargetId;
use crate::limits::SESSION_TARGETS_MAX;

/// What a VM needs at its target.
#[derive(Clone, Copy, Debug)]
pub struct VmDemand<'a> {
    /// For errors.
    pub name: &'a str,
    /// Memory of the incoming QEMU, in bytes.
    pub memory_bytes: u64,
    /// The target that the operator has named.
    pub pinned: Option<TargetId>,
}

/// What a target can take.
#[derive(Clone, Copy, Debug)]
pub struct TargetCapacity<'a> {
    /// For errors.
    pub name: &'a str,
    /// Memory for incoming VMs, in bytes.
    pub free_bytes: u64,
}

/// Why there is no placement.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlacementError {
    /// No target was named.
    #[error("there is no target")]
    NoTarget,
    /// The limit of a session is exceeded.
    #[error("{0} targets; a session has at most {SESSION_TARGETS_MAX}")]
    TooManyTargets(usize),
    /// A pin names a target that the session does not have.
    #[error("VM {vm} is pinned to target number {target}, but there are {targets}")]
    UnknownTarget {
        /// The VM's name.
        vm: String,
        /// The pin.
        target: u8,
        /// Targets in the session.
        targets: usize,
    },
    /// The VMs pinned to a target need more memory than it has; `vm` is the first that doesn't fit.
    #[error("VM {vm} needs {needed} bytes, but {target}, to which it is pinned, has {free} left")]
    PinDoesNotFit {
        /// The VM's name.
        vm: String,
        /// The target's name.
        target: String,
        /// The VM's memory.
        needed: u64,
        /// The target's memory, less what is pinned to it already.
        free: u64,
    },
    /// No target has the memory left.
    #[error("VM {vm} needs {needed} bytes; {target} has the most left, {free}")]
    DoesNotFit {
        /// The VM's name.
        vm: String,
        /// The VM's memory.
        needed: u64,
        /// The target with the most memory left.
        target: String,
        /// What it has left.
        free: u64,
    },
}

/// Gives each VM a target: pins first, then the others, largest first, each to the target that has the fewest
/// VMs, and among those the most free memory. Where that leaves one without room, each goes to the tightest
/// target that it fits instead, which packs more. The same input gives the same placement.
///
/// # Errors
/// The first VM for which there is no room, or a pin that can't be kept. Packing is a heuristic: a VM may be
/// refused for which an exhaustive search would find room.
pub fn place(vms: &[VmDemand], targets: &[TargetCapacity]) -> Result<Vec<TargetId>, PlacementError> {
    match targets.len() {
        0 => return Err(PlacementError::NoTarget),
        count if count > SESSION_TARGETS_MAX => return Err(PlacementError::TooManyTargets(count)),
        _ => {}
    }
    let mut pinned = Filling::new(vms, targets);
    for (at, vm) in vms.iter().enumerate() {
        if let Some(target) = vm.pinned {
            pinned.pin(at, target)?;
        }
    }
    let mut order: Vec<usize> = (0..vms.len()).filter(|vm| vms[*vm].pinned.is_none()).collect();
    order.sort_by_key(|vm| std::cmp::Reverse(vms[*vm].memory_bytes));

    let mut even = pinned.clone();
    if order.iter().all(|vm| even.put_evenly(*vm)) {
        return Ok(even.placed);
    }
    let mut tight = pinned;
    for vm in order {
        tight.put_tightly(vm)?;
    }
    Ok(tight.placed)
}

/// A placement in the making.
#[derive(Clone)]
struct Filling<'a> {
    vms: &'a [VmDemand<'a>],
    targets: &'a [TargetCapacity<'a>],
    free: Vec<u64>,
    counts: Vec<u32>,
    placed: Vec<TargetId>,
}

impl<'a> Filling<'a> {
    fn new(vms: &'a [VmDemand<'a>], targets: &'a [TargetCapacity<'a>]) -> Self {
        Filling {
            vms,
            targets,
            free: targets.iter().map(|target| target.free_bytes).collect(),
            counts: vec![0; targets.len()],
            placed: vec![TargetId(0); vms.len()],
        }
    }

    fn pin(&mut self, vm: usize, target: TargetId) -> Result<(), PlacementError> {
        let (demand, at) = (self.vms[vm], usize::from(target.0));
        if at >= self.targets.len() {
            let targets = self.targets.len();
            return Err(PlacementError::UnknownTarget { vm: demand.name.into(), target: target.0, targets });
        }
        if self.free[at] < demand.memory_bytes {
            return Err(PlacementError::PinDoesNotFit {
                vm: demand.name.into(),
                target: self.targets[at].name.into(),
                needed: demand.memory_bytes,
                free: self.free[at],
            });
        }
        self.put(vm, at);
        Ok(())
    }

    fn put_evenly(&mut self, vm: usize) -> bool {
        let fewest = self.fitting(vm).min_by_key(|at| (self.counts[*at], std::cmp::Reverse(self.free[*at])));
        fewest.map(|at| self.put(vm, at)).is_some()
    }

    fn put_tightly(&mut self, vm: usize) -> Result<(), PlacementError> {
        let Some(at) = self.fitting(vm).min_by_key(|at| self.free[*at]) else {
            // Of equals the first, to name the same target as an even spread would have.
            let most =
                (0..self.free.len()).rev().max_by_key(|at| self.free[*at]).ok_or(PlacementError::NoTarget)?;
            return Err(PlacementError::DoesNotFit {
                vm: self.vms[vm].name.into(),
                needed: self.vms[vm].memory_bytes,
                target: self.targets[most].name.into(),
                free: self.free[most],
            });
        };
        self.put(vm, at);
        Ok(())
    }

    fn fitting(&self, vm: usize) -> impl Iterator<Item = usize> {
        let needed = self.vms[vm].memory_bytes;
        (0..self.free.len()).filter(move |at| self.free[*at] >= needed)
    }

    fn put(&mut self, vm: usize, at: usize) {
        self.free[at] -= self.vms[vm].memory_bytes;
        self.counts[at] += 1;
        self.placed[vm] = TargetId(at as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    fn vms(memory: &[u64], pins: &[(usize, u8)]) -> Vec<VmDemand<'static>> {
        let pinned = |at| pins.iter().find(|(vm, _)| *vm == at).map(|(_, target)| TargetId(*target));
        let vm = |(at, memory_bytes): (usize, &u64)| VmDemand {
            name: NAMES[at],
            memory_bytes: *memory_bytes,
            pinned: pinned(at),
        };
        memory.iter().enumerate().map(vm).collect()
    }

    fn targets(free: &[u64]) -> Vec<TargetCapacity<'static>> {
        let target = |(at, free_bytes): (usize, &u64)| TargetCapacity {
            name: ["one", "two", "three"][at],
            free_bytes: *free_bytes,
        };
        free.iter().enumerate().map(target).collect()
    }

    fn placed(vms: &[VmDemand], targets: &[TargetCapacity]) -> Result<Vec<u8>, PlacementError> {
        Ok(place(vms, targets)?.into_iter().map(|target| target.0).collect())
    }

    #[test]
    fn equal_vms_go_round() {
        let (vms, targets) = (vms(&[1; 6], &[]), targets(&[10; 3]));
        assert_eq!(placed(&vms, &targets).unwrap(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn counts_come_before_memory_and_pins_count() {
        let vms = vms(&[1, 1, 1, 1, 4], &[(0, 1), (1, 1)]);
        // The large one goes where most memory is among the targets without a VM, though target 1 has more.
        assert_eq!(placed(&vms, &targets(&[10, 100, 20])).unwrap(), [1, 1, 0, 2, 2]);
    }

    #[test]
    fn packs_where_an_even_spread_does_not_fit() {
        // Evenly, each target would get one of 3 and one of 2, and have 1 left for the last of 2.
        let vms = vms(&[3, 2, 3, 2, 2], &[]);
        assert_eq!(placed(&vms, &targets(&[6, 6])).unwrap(), [0, 1, 0, 1, 1]);
    }

    proptest! {
        #[test]
        fn pins_and_memory_are_kept_and_counts_even_where_there_is_room(
            memory in proptest::collection::vec(1u64..9, 0..8),
            pins in proptest::collection::vec((0usize..8, 0u8..3), 0..3),
            free in proptest::collection::vec(0u64..60, 3),
        ) {
            let (vms, targets) = (vms(&memory, &pins), targets(&free));
            let Ok(placed) = place(&vms, &targets) else {
                // With room for everything on each target there is no reason to refuse.
                prop_assert!(free.iter().any(|free| *free < memory.iter().sum()));
                return Ok(());
            };
            let mut counts = [0u32; 3];
            let mut left = free.clone();
            for (vm, target) in vms.iter().zip(&placed) {
                prop_assert!(vm.pinned.is_none_or(|pin| pin == *target));
                let at = usize::from(target.0);
                counts[at] += 1;
                prop_assert!(left[at] >= vm.memory_bytes);
                left[at] -= vm.memory_bytes;
            }
            let unpinned = vms.iter().all(|vm| vm.pinned.is_none());
            if unpinned && free.iter().all(|free| *free >= memory.iter().sum()) {
                prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn errors_name_the_vm() {
        let free = targets(&[4, 5]);
        let pinned = placed(&vms(&[3, 2], &[(0, 0), (1, 0)]), &free).unwrap_err();
        assert_eq!(pinned.to_string(), "VM b needs 2 bytes, but one, to which it is pinned, has 1 left");
        let large = placed(&vms(&[1, 6], &[]), &free).unwrap_err();
        assert_eq!(large.to_string(), "VM b needs 6 bytes; two has the most left, 5");
        let unknown = placed(&vms(&[1], &[(0, 2)]), &free).unwrap_err();
        assert_eq!(unknown.to_string(), "VM a is pinned to target number 2, but there are 2");
        assert_eq!(place(&vms(&[1], &[]), &[]), Err(PlacementError::NoTarget));
        let many = vec![free[0]; SESSION_TARGETS_MAX + 1];
        assert_eq!(place(&[], &many), Err(PlacementError::TooManyTargets(SESSION_TARGETS_MAX + 1)));
    }
}
