//! From the identities of all guests' pages to the contents that stand more than once.
//!
//! A [`PageSpace`] numbers all pages of a session's guests. [`RunBuilder`] takes (MAC, number) of each
//! non-zero page, in 20 bytes, one builder to a thread. Full builders become [`Run`]s, dealt by the MAC's
//! first byte; [`Records`] gathers the runs of all threads and hands out one [`Shard`] after another: all
//! records whose MACs begin with one byte. [`Shard::group`] sorts a shard and keeps what stands more than
//! once; the [`Group`]s together are the [`Contents`]. Shards are independent of each other, so a caller with
//! threads groups them in parallel; [`Contents::from_records`] does it on one.
//!
//! Memory: what a shard takes is given back by the runs, and a page of a shared content takes at most 14
//! bytes in a group, so that the whole stays near 20 bytes a non-zero page. (Where a single content fills
//! most of the memory, its shard is most of the records, and 4 bytes a page come on top while it is grouped.)
//!
//! [`Shard::group_sampled`] also notes all contents, those that stand once included, in a [`Sampler`]: what is saved of a
//! host for placement is [`Fingerprints`].
//!
//! MACs are keyed and the key is secret, so no guest can aim at a shard, nor make contents collide.

mod contents;
pub mod fingerprint;
mod records;
mod sharing;
mod space;
#[cfg(test)]
mod tests;

pub use contents::{Content, Contents};
pub use fingerprint::{Fingerprints, FleetKey, Sampler};
pub use records::{Group, RUN_RECORDS, Records, Run, RunBuilder, SHARDS, Shard};
pub use sharing::{Sharing, VmPages, VmSharing};
pub use space::{PageSpace, PageSpaceError, Window};
