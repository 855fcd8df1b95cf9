//! Which VM goes to which target.

mod place;
mod target;

pub use place::{PlacementError, TargetCapacity, VmDemand, place};
pub use target::{Placement, TargetId, TargetSet};
