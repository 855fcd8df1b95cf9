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
/// From SHUT(0)'s release until the source QEMU says `completed`; then the target is asked for its abort, and after as long
/// again the session waits no longer.
pub const COMPLETE_MAX: Duration = Duration::from_secs(10);
/// From the decision until the target says that the guest runs; then the session waits no longer, and recovery asks.
pub const COMMITTED_MAX: Duration = Duration::from_secs(60);

/// Guests that have come as far wait for others: as long again as half of them took, twice, and this.
pub const LATE_MIN: Duration = Duration::from_secs(5);

/// How long those that are ready wait for those that are not, before the scatter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// When half were ready.
    half: Option<Duration>,
}

impl Patience {
    /// `elapsed` since all were asked, `ready` have come, `missing` have not. Whether they have been waited for long enough.
    pub fn is_over(&mut self, elapsed: Duration, ready: usize, missing: usize) -> bool {
        if missing == 0 || ready < missing {
            return false;
        }
        let half = *self.half.get_or_insert(elapsed);
        elapsed > half.saturating_mul(2).saturating_add(LATE_MIN)
    }
}

/// The limit of a stage, and what is said of a VM that has outstayed it.
pub fn stage_limit(stage: VmStage) -> Option<(Duration, &'static str)> {
    match stage {
        VmStage::Waiting => Some((PREPARE_MAX, "its incoming QEMU was not ready")),
        VmStage::Opening => Some((OPEN_MAX, "its stream had not begun at the target")),
        VmStage::Closing => Some((CLOSE_MAX, "the target did not confirm the end of the scatter")),
        VmStage::Released => Some((COMPLETE_MAX, "the source QEMU did not complete")),
        VmStage::Committed => Some((COMMITTED_MAX, "the target did not say that it runs")),
        _ => None,
    }
}

/// From STOP until the target votes, where a blackout of `max_downtime` is allowed.
pub fn stopped_limit(max_downtime: Duration) -> Duration {
    STOPPED_MAX.saturating_add(max_downtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_half_that_is_ready_sets_how_long_the_others_have() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::default();
        assert!(!patience.is_over(seconds(100), 1, 3), "most are still missing: it takes its time");
        assert!(!patience.is_over(seconds(101), 2, 2));
        assert!(!patience.is_over(seconds(207), 3, 1));
        assert!(!patience.is_over(seconds(208), 4, 0), "all are there");
        assert!(patience.is_over(seconds(208), 3, 1));
        assert!(!Patience::default().is_over(seconds(1), 1, 1));
    }
}
