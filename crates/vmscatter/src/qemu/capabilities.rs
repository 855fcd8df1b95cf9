//! The migration capabilities under which a stream can be carried, at either end.

use super::monitor::Features;
use super::qmp::{Qmp, QmpError};

/// Capabilities that change the stream's form, who may stop the guest, or what the source has left of it: they must be off.
pub(super) const MUST_BE_OFF: [&str; 15] = [
    "multifd",
    "xbzrle",
    "compress",
    "postcopy-ram",
    "postcopy-preempt",
    "mapped-ram",
    "x-ignore-shared",
    "x-colo",
    "dirty-bitmaps",
    "background-snapshot",
    "pause-before-switchover",
    "rdma-pin-all",
    // Copies disks, too.
    "block",
    // Frees pages that were sent.
    "release-ram",
    // Multifd alone has it.
    "zero-copy-send",
];

/// What is switched on at both ends: the gate (`return-path`), events, and, at the target, disks only once the guest runs.
///
/// # Errors
/// As [`Qmp::execute`].
pub async fn prepare(qmp: &Qmp, features: &Features) -> Result<(), QmpError> {
    let mut states = vec![("return-path", true), ("events", true)];
    if features.late_block_activate {
        states.push(("late-block-activate", true));
    }
    qmp.set_capabilities(&states).await
}
