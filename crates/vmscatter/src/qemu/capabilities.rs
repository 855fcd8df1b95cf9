//! The migration capabilities under which a stream can be carried, at either end.

use super::monitor::Features;
use super::qmp::{Qmp, QmpError};

/// Capabilities that change the stream's form or who may stop the guest: they must be off.
const MUST_BE_OFF: [&str; 12] = [
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
];

/// Why a QEMU can't be migrated by vmscatter.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// The monitor failed.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// It lacks what every migration needs.
    #[error("this QEMU has no migration capability '{0}' (7.2 or newer is needed)")]
    Missing(&'static str),
    /// Somebody switched on what can't be carried.
    #[error("migration capability '{0}' is on; switch it off first (migrate-set-capabilities)")]
    On(String),
}

/// Checks a source QEMU; nothing is changed.
///
/// # Errors
/// Names the capability that is missing, or on.
pub async fn check(qmp: &Qmp, features: &Features) -> Result<(), CapabilityError> {
    if !features.return_path {
        return Err(CapabilityError::Missing("return-path"));
    }
    if !features.events {
        return Err(CapabilityError::Missing("events"));
    }
    let on = |(name, state): &(String, bool)| *state && MUST_BE_OFF.contains(&name.as_str());
    match qmp.capabilities().await?.into_iter().find(on) {
        Some((name, _)) => Err(CapabilityError::On(name)),
        None => Ok(()),
    }
}

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
