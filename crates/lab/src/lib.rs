//! The lab: hosts in network namespaces, real QEMU guests with a known load, and migration measured from outside.
//!
//! A [`Lab`] is one source host, target hosts, and shaped links between them. A [`Guest`] is a Linux under QEMU that
//! reads the files all guests share, holds random data of its own, keeps rewriting memory, and ticks on its serial
//! line. [`session`] boots guests, moves them in a [`Mode`] and measures: bytes by the shaping qdiscs, downtime by the
//! QEMUs' own events, and the ticks. `lab demo` does that for several modes and prints the table.

pub mod assets;
pub mod baseline;
pub mod collect;
mod cpio;
pub mod demo;
pub mod faults;
pub mod groups;
pub mod guest;
pub mod host;
pub mod igmp;
pub mod memory_limit;
mod names;
pub mod net;
pub mod peers;
pub mod placement;
pub mod predict;
pub mod progress;
pub mod qmp;
pub mod ram;
pub mod report;
pub mod scatter;
pub mod serial;
pub mod session;
pub mod state;
pub mod transport;
pub mod versions;
pub mod weight;

pub use guest::{Accel, Guest, GuestFile, GuestOptions};
pub use host::{Host, Lab};
pub use session::{Mode, Session};
