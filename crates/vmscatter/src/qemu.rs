//! One running QEMU: its monitor and its guest's memory.
//!
//! - [`qmp`]: the connection; commands, answers and events
//! - [`monitor`]: the commands that a migration needs, typed, and what this QEMU can do ([`monitor::Features`])
//! - [`ramblock`]: which RAM blocks the guest has and where QEMU mapped them
//! - [`process`]: which process that QEMU is, and its mappings
//! - [`hardware`]: its processors and devices
//! - [`refusal`]: what keeps a guest from being moved
//! - [`memory`]: reading the guest's memory from outside; `view`: looking at it in place

pub mod capabilities;
pub mod hardware;
pub mod memory;
pub mod monitor;
pub mod process;
pub mod qmp;
pub mod ramblock;
pub mod refusal;
#[cfg(test)]
mod tests;
mod view;

pub use memory::{GuestMemory, MemoryError};
pub use monitor::Features;
pub use qmp::{Qmp, QmpError, QmpEvent};
