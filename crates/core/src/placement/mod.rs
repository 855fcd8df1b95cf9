//! Which VM goes to which target.

mod bound;
mod cost;
mod delivery;
mod exact;
mod feasible;
mod greedy;
mod model;
mod pack;
mod problem;
mod sample;
mod saved;
mod search;
mod sharing;
mod solve;
mod target;
#[cfg(test)]
mod tests;

pub use cost::{cost, egress_contents};
pub use delivery::{DeliveryLink, DeliveryTree};
pub use feasible::even_vms_max;
pub use problem::{Constraint, PlacementError, Problem, TargetCapacity, VmDemand};
pub use saved::{SavedSharing, SavedSharingError};
pub use sharing::{HolderGroup, HolderGroups};
pub use solve::{Effort, Method, Solution, greedy, lower_bound, solve};
pub use target::{Placement, TargetId, TargetSet};
