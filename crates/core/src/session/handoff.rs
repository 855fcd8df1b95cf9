//! When QEMU may stop a guest.
//!
//! QEMU stops the guest once `pending < bandwidth x downtime-limit` (`migration_iteration_run`), and takes for
//! bandwidth what its socket swallowed in the last 100 ms. Withholding makes that far more than the link carries, so
//! the limit is set such that the product is what the link really carries in the time that the guest may stand.

use std::time::Duration;

/// The blackout that is aimed at in the first rounds; it is relaxed when the guest dirties faster than that.
pub const DOWNTIME_AIM: Duration = Duration::from_millis(20);
/// Longest blackout aimed at unless the operator says otherwise: QEMU's own default.
pub const DOWNTIME_MAX: Duration = Duration::from_millis(300);
/// Rounds after which the aim begins to double.
const PATIENT_ROUNDS: u64 = 4;

/// What `query-migrate` says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QemuView {
    /// `ram.dirty-sync-count`: 1 while every page goes for the first time.
    pub round: u64,
    /// `ram.mbps` in bytes a second: what the socket swallowed.
    pub apparent_bytes_per_s: f64,
    /// `cpu-throttle-percentage`: by how much auto-converge slows the guest down.
    pub throttle_percent: u8,
}

/// What to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchoverLimits {
    /// `downtime-limit`, in milliseconds.
    pub downtime_limit_ms: u64,
    /// `avail-switchover-bandwidth` in bytes a second, where QEMU has it.
    pub avail_switchover_bandwidth: Option<u64>,
}

/// The limits for a VM that streams. `share` is what the link carries for it, in bytes a second; `aim` the
/// blackout that is allowed now; `direct` says that QEMU has `avail-switchover-bandwidth` (8.2 on).
pub fn switchover_limits(view: QemuView, share: f64, aim: Duration, direct: bool) -> SwitchoverLimits {
    if direct {
        let share = (share as u64).max(1);
        return SwitchoverLimits { downtime_limit_ms: millis(aim), avail_switchover_bandwidth: Some(share) };
    }
    // In the first round nearly all of memory is pending, and most of it will be withheld: no stop before it is over.
    let scale = if view.round <= 1 { 0.0 } else { (share / view.apparent_bytes_per_s.max(1.0)).min(1.0) };
    SwitchoverLimits { downtime_limit_ms: millis(aim.mul_f64(scale)), avail_switchover_bandwidth: None }
}

/// What is aimed at in a round of QEMU's, of `max` at most: little at first, more when it goes on.
pub fn patient_aim(round: u64, max: Duration) -> Duration {
    let doublings = round.saturating_sub(PATIENT_ROUNDS).min(16) as u32;
    DOWNTIME_AIM.saturating_mul(1 << doublings).min(max)
}

/// At least one: with zero QEMU would never stop a guest that dirties at all.
fn millis(span: Duration) -> u64 {
    (span.as_millis() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: f64 = 125e6;

    #[test]
    fn withholding_does_not_widen_the_stop() {
        // 1 GB/s swallowed, 125 MB/s carried: the bytes let through are what the link carries in the aim.
        let view = QemuView { round: 2, apparent_bytes_per_s: 1e9, throttle_percent: 0 };
        let limits = switchover_limits(view, LINK, DOWNTIME_AIM, false);
        let pending = view.apparent_bytes_per_s * limits.downtime_limit_ms as f64 / 1e3;
        assert!(pending <= LINK * DOWNTIME_AIM.as_secs_f64() + 1e6, "{limits:?}");
    }

    #[test]
    fn no_stop_in_the_first_round() {
        let view = QemuView { round: 1, apparent_bytes_per_s: 2e9, throttle_percent: 0 };
        assert_eq!(switchover_limits(view, LINK, DOWNTIME_MAX, false).downtime_limit_ms, 1);
    }

    #[test]
    fn a_guest_that_keeps_dirtying_gets_more_and_never_more_than_allowed() {
        let at = |round| patient_aim(round, DOWNTIME_MAX);
        assert_eq!(at(2), Duration::from_millis(20));
        assert_eq!(at(5), Duration::from_millis(40));
        assert_eq!(at(200), DOWNTIME_MAX);
        assert!((2..200).all(|round| at(round) <= at(round + 1)));
    }

    #[test]
    fn newer_qemu_is_told_the_share() {
        let view = QemuView { round: 2, apparent_bytes_per_s: 9e9, throttle_percent: 0 };
        let limits = switchover_limits(view, LINK, DOWNTIME_AIM, true);
        assert_eq!(limits.avail_switchover_bandwidth, Some(125_000_000));
        assert_eq!(limits.downtime_limit_ms, 20);
    }
}
