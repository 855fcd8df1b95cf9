//! What an operator says of guests that dirty their memory faster than it can be sent.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmscatter_core::session::convergence::ConvergencePolicy;

use crate::agent::input::BadInput;

/// Longest `--max-downtime`, in milliseconds.
const DOWNTIME_MS_MAX: u64 = 60_000;
/// Shortest and longest `--deadline`, in milliseconds: a second, a week.
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 1_000..=7 * 24 * 3_600_000;

/// What is done about a guest that does not converge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvergenceRequest {
    /// It is throttled until it does.
    pub auto_converge: bool,
    /// It may stand for so many milliseconds at the hand-over; `None`: 300.
    pub max_downtime_ms: Option<u64>,
    /// It stays at the source if its stream has not come to the hand-over after so many milliseconds; `None`: as long as its
    /// rounds give hope.
    pub deadline_ms: Option<u64>,
}

impl ConvergenceRequest {
    /// The same for core.
    pub fn policy(&self) -> ConvergencePolicy {
        let default = ConvergencePolicy::default();
        ConvergencePolicy {
            max_downtime: self.max_downtime_ms.map_or(default.max_downtime, Duration::from_millis),
            deadline: self.deadline_ms.map(Duration::from_millis),
        }
    }

    pub(super) fn check(&self) -> Result<(), BadInput> {
        if self.max_downtime_ms.is_some_and(|ms| !(1..=DOWNTIME_MS_MAX).contains(&ms)) {
            return Err(BadInput::new(
                "--max-downtime",
                format!("must be 1ms to {}s", DOWNTIME_MS_MAX / 1000),
            ));
        }
        if self.deadline_ms.is_some_and(|ms| !DEADLINE_MS.contains(&ms)) {
            return Err(BadInput::new("--deadline", "must be 1s to 168h"));
        }
        Ok(())
    }
}
