//! From the identities of all guests' pages to the contents that stand more than once.
//!
//! [`RunBuilder`] takes (MAC, address) of each non-zero page, in 24 bytes, one builder to a thread. Full
//! builders become [`Run`]s, dealt by the MAC's first byte; [`Records`] gathers the runs of all threads and
//! hands out one [`Shard`] after another: all records whose MACs begin with one byte. [`Shard::group`] sorts
//! a shard and keeps what stands more than once; the [`Group`]s together are the [`Contents`]. Shards are
//! independent of each other, so a caller with threads groups them in parallel; [`Contents::from_records`]
//! does it on one.
//!
//! Memory: what a shard takes is given back by the runs, and a page of a shared content takes at most 18
//! bytes in a group, so that the whole stays within 24 bytes a non-zero page and one shard a thread. (Where a
//! single content fills most of the memory, its shard is most of the records, and 8 bytes a page come on top
//! while it is grouped.)
//!
//! MACs are keyed and the key is secret, so no guest can aim at a shard, nor make contents collide.

mod contents;
mod records;
mod sharing;
#[cfg(test)]
mod tests;

pub use contents::{Content, Contents};
pub use records::{Group, RUN_RECORDS, Records, Run, RunBuilder, SHARDS, Shard};
pub use sharing::{Sharing, VmPages, VmSharing};
