//! A session: the state machines of the source and of each target, which hold the seven rules.
//!
//! - [`SourceSession`]: who may do what next, at the source; [`SourceVm`]: one VM's stream there
//! - [`Scatterer`]: reads shared contents again and makes frames of them
//! - [`TargetSession`]: the same at a target; [`TargetVm`]: one VM's stream there
//! - [`Addresses`]: which target sets the multicast groups serve, at the source, and who joins and leaves them when
//! - [`FrameQueues`]: whose frames come next; [`OwnKeys`]: under which keys goes what is for one target alone
//! - [`handoff`]: when QEMU may stop a guest; [`convergence`]: whether its rounds get there, and when it is given up;
//!   [`pace`]: whether its target takes what it has; [`deadlines`]: how long it may stay in the stages besides
//! - [`recovery`]: one end for every guest whose session did not bring it to one

mod addresses;
pub mod convergence;
pub mod deadlines;
mod frame_queues;
pub mod handoff;
mod hops;
mod memberships;
mod own_keys;
pub mod pace;
mod pages;
pub mod recovery;
mod relaying;
pub mod sabotage;
mod scatter;
mod source;
mod source_vm;
mod target;
mod target_vm;
mod trains;

pub use addresses::{AddressAction, AddressSet, Addresses};
pub use frame_queues::FrameQueues;
pub use hops::Hops;
pub use own_keys::OwnKeys;
pub use scatter::{ScatterFrame, Scatterer};
pub use source::{SourceAction, SourceSession, VmStage};
pub use source_vm::{RecordCounts, SourceVm, SourceVmError, StreamFrame};
pub use target::{TargetAction, TargetSession};
pub use target_vm::{Output, TargetVm, TargetVmError};
pub use trains::Burst;

use crate::limits::{BLOCK_PAGES_MAX, NAME_BYTES_MAX, VM_BLOCKS_MAX};
use crate::page::{DigestKey, MacKey, PAGE_SIZE};
use crate::wire::control::BlockSpec;

/// The keys of a session that both sides have.
#[derive(Clone, Debug)]
pub struct SessionKeys {
    /// Of page identities.
    pub mac: MacKey,
    /// Of digest terms.
    pub digest: DigestKey,
}

/// Why a VM's RAM blocks can't be handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// None at all, or more than the limit.
    #[error("{0} RAM blocks (1 to {VM_BLOCKS_MAX} can be handled)")]
    Count(usize),
    /// The stream could not name it.
    #[error("RAM block name of {0} bytes")]
    Name(usize),
    /// Not a whole number of pages, or too many.
    #[error("RAM block {0}: {1} bytes can't be handled")]
    Length(String, u64),
}

/// Checks a VM's block list before any table is made of it.
///
/// # Errors
/// Names the first block that can't be handled.
pub fn check_blocks(blocks: &[BlockSpec]) -> Result<(), BlockError> {
    if blocks.is_empty() || blocks.len() > VM_BLOCKS_MAX {
        return Err(BlockError::Count(blocks.len()));
    }
    for block in blocks {
        if block.name.is_empty() || block.name.len() > NAME_BYTES_MAX {
            return Err(BlockError::Name(block.name.len()));
        }
        let page = PAGE_SIZE as u64;
        if block.bytes == 0 || !block.bytes.is_multiple_of(page) || block.bytes / page >= BLOCK_PAGES_MAX {
            return Err(BlockError::Length(block.name.clone(), block.bytes));
        }
    }
    Ok(())
}
