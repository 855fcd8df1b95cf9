//! Which VM goes to which target.
//!
//! A [`Problem`] has VMs, targets, constraints, what the VMs hold in common ([`HolderGroups`]) and what it costs to bring a
//! content to a set of targets ([`DeliveryTree`]). [`solve()`] takes the exact search where that is feasible, else a local search
//! that starts from VMScatter's [`greedy()`] placement, and says how far from the optimum the result is at most
//! ([`lower_bound`]). How and how well: `docs/placement.md`.

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
