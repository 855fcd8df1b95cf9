//! Which VM goes to which target.

mod delivery;
mod place;
mod saved;
mod sharing;
mod target;

pub use delivery::{DeliveryLink, DeliveryTree};
pub use place::{PlacementError, TargetCapacity, VmDemand, place};
pub use saved::{SavedSharing, SavedSharingError};
pub use sharing::{HolderGroup, HolderGroups};
pub use target::{Placement, TargetId, TargetSet};
