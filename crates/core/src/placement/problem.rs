//! What placement is asked, and why there may be no answer.

use thiserror::Error;

use super::{DeliveryTree, HolderGroups, TargetId};
use crate::limits::{SESSION_TARGETS_MAX, SESSION_VMS_MAX};

/// Which VM goes to which target, under which constraints, at what cost.
///
/// The cost of a placement is the sum over the tree's links of the link's cost times the distinct contents that are
/// carried over it: those that a VM behind it holds.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The VMs, in the order in which `groups` and `apart` number them.
    pub vms: &'a [VmDemand<'a>],
    /// The targets, in the order in which `tree` numbers them.
    pub targets: &'a [TargetCapacity<'a>],
    /// Anti-affinity groups: no two VMs of one of them share a target.
    pub apart: &'a [Vec<u16>],
    /// What the VMs hold in common.
    pub groups: &'a HolderGroups,
    /// What it costs to bring a content to a set of targets.
    pub tree: &'a DeliveryTree,
    /// As few targets as possible, before the cost.
    pub few_targets: bool,
    /// Multicast group addresses that the source can use at once: among placements of equal cost the one whose
    /// source sends least is taken, see [`egress_contents`](super::egress_contents).
    pub group_addresses: usize,
}

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
    /// VMs that it takes at most.
    pub vms_max: Option<u32>,
}

/// Why there is no placement. Each names the constraint that can't be met.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlacementError {
    /// No target was named.
    #[error("there is no target")]
    NoTarget,
    /// The limit of a session is exceeded.
    #[error("{0} targets; a session has at most {SESSION_TARGETS_MAX}")]
    TooManyTargets(usize),
    /// The limit of a session is exceeded.
    #[error("{0} VMs; a session has at most {SESSION_VMS_MAX}")]
    TooManyVms(usize),
    /// The costs of the topology's links times the contents exceed what can be added up.
    #[error("the costs of the topology's links are too large")]
    CostsTooLarge,
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
    /// An anti-affinity group names a VM that the session does not have.
    #[error("VM number {vm} is to be kept apart, but there are {vms}")]
    UnknownVm {
        /// The number.
        vm: u16,
        /// VMs in the session.
        vms: usize,
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
    /// More VMs are pinned to a target than it takes; `vm` is the first beyond.
    #[error("VM {vm} is pinned to {target}, which takes at most {vms_max} VMs and has as many pinned to it")]
    PinExceedsVmsMax {
        /// The VM's name.
        vm: String,
        /// The target's name.
        target: String,
        /// The limit.
        vms_max: u32,
    },
    /// Two VMs are to be kept apart and pinned to one target.
    #[error("VM {vm} and VM {other} are to be kept apart, but both are pinned to {target}")]
    PinsNotApart {
        /// One VM's name.
        vm: String,
        /// The other's.
        other: String,
        /// The target's name.
        target: String,
    },
    /// An anti-affinity group has more VMs than there are targets.
    #[error("{vms} VMs, among them VM {vm}, are to be kept apart, but there are {targets} targets")]
    TooManyApart {
        /// The first VM of the group.
        vm: String,
        /// VMs in the group.
        vms: usize,
        /// Targets in the session.
        targets: usize,
    },
    /// The limits of VMs a target add up to less than there are.
    #[error("{vms} VMs, but the targets take at most {vms_max} together")]
    VmsMaxTooSmall {
        /// VMs in the session.
        vms: usize,
        /// Sum of the targets' limits.
        vms_max: u64,
    },
    /// All VMs together need more memory than all targets have.
    #[error("the VMs need {needed} bytes together, but the targets have {free}")]
    MemoryTooSmall {
        /// Memory of all VMs.
        needed: u64,
        /// Memory of all targets.
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
    /// The constraints can each be met, but not together.
    #[error("no target is left for VM {vm}; there would be one without {without}")]
    Conflict {
        /// A VM that was left over.
        vm: String,
        /// The constraint that stands in the way.
        without: Constraint,
    },
}

/// A constraint that an operator can lift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Anti-affinity groups.
    Apart,
    /// Limits of VMs a target.
    VmsMax,
    /// Pins.
    Pins,
    /// More than one of them.
    Several,
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Constraint::Apart => "the VMs to be kept apart",
            Constraint::VmsMax => "the limit of VMs a target",
            Constraint::Pins => "the pins",
            Constraint::Several => "pins, limits and VMs to be kept apart",
        })
    }
}
