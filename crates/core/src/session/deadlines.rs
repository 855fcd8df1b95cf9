//! How long a VM may stay in a stage that somebody else has to end.
//!
//! A stage is left by closing sockets, whatever QEMU's monitor says or does not say; only from the release to the decision
//! is the target asked first, since the guest may be its own by then. Stages in which a VM waits for its turn have no limit: those
//! that it waits for have one. The stream itself is bounded by [`convergence`](super::convergence).

use std::time::Duration;

use super::VmStage;

/// From the target's being asked for an incoming QEMU until that waits for the stream.
pub const PREPARE_MAX: Duration = Duration::from_secs(60);
/// From `migrate` until the target's QEMU has the VM's block list.
pub const OPEN_MAX: Duration = Duration::from_secs(30);
/// Until the target has confirmed that the scatter is closed for the VM.
pub const CLOSE_MAX: Duration = Duration::from_secs(30);
/// From STOP until the target votes, besides the blackout that the operator allows.
pub const STOPPED_MAX: Duration = Duration::from_secs(30);
/// From SHUT(0)'s release until the source QEMU says `completed`; then the target is asked for its abort, again and again.
pub const COMPLETE_MAX: Duration = Duration::from_secs(10);

/// The limit of a stage, and what is said of a VM that has outstayed it.
pub fn stage_limit(stage: VmStage) -> Option<(Duration, &'static str)> {
    match stage {
        VmStage::Waiting => Some((PREPARE_MAX, "its incoming QEMU was not ready")),
        VmStage::Opening => Some((OPEN_MAX, "its stream had not begun at the target")),
        VmStage::Closing => Some((CLOSE_MAX, "the target did not confirm the end of the scatter")),
        VmStage::Released => Some((COMPLETE_MAX, "the source QEMU did not complete")),
        _ => None,
    }
}

/// From STOP until the target votes, where a blackout of `max_downtime` is allowed.
pub fn stopped_limit(max_downtime: Duration) -> Duration {
    STOPPED_MAX.saturating_add(max_downtime)
}
