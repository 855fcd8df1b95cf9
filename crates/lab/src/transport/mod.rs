//! The wire alone: one source, several receivers, no guests. What the scatter's transport does under loss, beside TCP
//! and with a slow member, and what `udpcast` and `uftp` do with the same bytes on the same links.
//!
//! The source and each receiver are processes of their own ([`peer`]), since their CPU time is part of the result. They
//! run core's `Sender` and `Receiver` over the product's own sockets; bodies are made in memory instead of read from
//! guests, and compared at their receivers instead of loaded.

pub mod batching;
pub mod peer;
mod process;
mod rivals;
mod scenario;
mod table;

pub use rivals::Rival;
pub use scenario::{Options, Scenario, run};
