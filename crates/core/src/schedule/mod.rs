//! What is sent to whom, in which order: contents by class and by target set, cut into frames.

mod classes;
mod frames;
mod order;
mod plan;
#[cfg(test)]
mod tests;

pub use classes::{ClassCount, Classes};
pub use frames::{FramePart, FramePlan, Frames};
pub use order::{
    AddressLists, EXACT_SETS_MAX, SetLoad, order_by_search, order_exactly, order_sets, unsorted,
};
pub use plan::{Schedule, SetPlan};

use crate::page::PageAddr;
use crate::placement::{Placement, TargetId};

/// The target of the VM in which a page stands, if it has one.
fn target_of(addr: PageAddr, placement: &Placement) -> Option<TargetId> {
    placement.get(usize::from(addr.vm)).copied().flatten()
}
