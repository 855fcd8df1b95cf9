//! Whether a VM's rounds get anywhere: what its stream tells of the guest, when QEMU may stop it, and when it is given up.
//!
//! A guest that dirties memory faster than its stream carries it never comes to its last round. What helps is the operator's
//! to choose: throttle it (QEMU does that), let it stand for longer, or leave it where it is. Without a choice it
//! is given up when the rounds after the first have taken [`PATIENCE_FACTOR`] times as long as the first, and
//! [`PATIENCE_MIN`] at least.

use std::fmt;
use std::time::Duration;

use super::handoff::{
    DOWNTIME_AIM, DOWNTIME_MAX, QemuView, SwitchoverLimits, patient_aim, switchover_limits,
};
use crate::page::PAGE_SIZE;
use crate::time::Time;

/// Rounds after the first may take so many times as long as that one, unless the operator has set a deadline.
pub const PATIENCE_FACTOR: u32 = 2;
/// And this long in any case.
pub const PATIENCE_MIN: Duration = Duration::from_secs(60);
/// A stream in which QEMU has said nothing new for this long is given up.
pub const STALL_MAX: Duration = Duration::from_secs(30);
/// Rates are measured over whole rounds that last this long together.
const WINDOW_MIN: Duration = Duration::from_millis(500);
/// What a guest has dirtied in a round counts as less than before if it is below this share of it.
const SHRINKS_BELOW: f64 = 0.75;
/// A stop that would need this much more than was measured is allowed, as guests do not dirty evenly.
const NEED_SLACK: f64 = 1.25;

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvergencePolicy {
    /// Longest blackout that is aimed at.
    pub max_downtime: Duration,
    /// From the stream's release until QEMU has stopped the guest; in place of the default patience.
    pub deadline: Option<Duration>,
}

impl Default for ConvergencePolicy {
    fn default() -> Self {
        ConvergencePolicy { max_downtime: DOWNTIME_MAX, deadline: None }
    }
}

/// What a guest does to its memory, as its stream has shown it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DirtyRate {
    /// Pages a second that are dirtied, each counted once a round.
    pub pages_per_s: f64,
    /// Pages a second that the stream carried meanwhile, withheld ones included.
    pub carried_pages_per_s: f64,
}

impl DirtyRate {
    /// Bytes a second that are dirtied.
    pub fn bytes_per_s(&self) -> f64 {
        self.pages_per_s * PAGE_SIZE as f64
    }
}

impl fmt::Display for DirtyRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |pages: f64| pages * PAGE_SIZE as f64 / 1e6;
        let (dirtied, carried) = (mb(self.pages_per_s), mb(self.carried_pages_per_s));
        let pages = self.pages_per_s;
        write!(
            f,
            "it dirties {dirtied:.1} MB/s ({pages:.0} pages/s), and its stream carries {carried:.1} MB/s"
        )
    }
}

/// Why a VM's stream is given up before its guest was stopped.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GivenUp {
    /// The default patience is over.
    #[error(
        "does not converge: {} s after all of its memory had gone once it could still not be stopped; {rate} \
         (--auto-converge throttles it, --max-downtime lets it stand for longer)", .after.as_secs()
    )]
    NotConverging {
        /// Since the end of the first round.
        after: Duration,
        /// What was measured.
        rate: DirtyRate,
    },
    /// The operator's deadline is over, in a later round.
    #[error("not stopped within {} s (--deadline): {rate}", .limit.as_secs_f64())]
    Deadline {
        /// The deadline.
        limit: Duration,
        /// What was measured.
        rate: DirtyRate,
    },
    /// The operator's deadline is over, and not all memory has gone once.
    #[error("its memory had not gone once within {} s (--deadline): {records} of {pages} pages", .limit.as_secs_f64())]
    DeadlineInFirstRound {
        /// The deadline.
        limit: Duration,
        /// Records seen.
        records: u64,
        /// Pages of the VM.
        pages: u64,
    },
    /// Nothing has come for [`STALL_MAX`].
    #[error("the stream has stood still for {} s", STALL_MAX.as_secs())]
    Stalled,
}

/// Rounds seen as one, as each is short.
#[derive(Clone, Copy, Debug)]
struct Window {
    since: Time,
    records: u64,
}

/// One VM's stream from its release until the guest is stopped.
#[derive(Debug)]
pub struct Convergence {
    policy: ConvergencePolicy,
    pages: u64,
    /// What the link carries for this VM, in bytes a second.
    share: f64,
    /// QEMU has `avail-switchover-bandwidth`.
    direct: bool,
    released: Time,
    round: u64,
    records: u64,
    moved: Time,
    first_round_end: Option<Time>,
    window: Window,
    /// How long the window before this one lasted: what it dirtied goes in this one.
    before: Duration,
    /// Pages that went in the last whole window.
    last_pages: Option<u64>,
    rate: DirtyRate,
    /// What has turned out to be needed.
    needed: Duration,
    throttled_percent: u8,
}

impl Convergence {
    /// A VM of `pages` whose stream is released at `now`; its guest's writes have been logged since `logged`. `share` is what
    /// the link carries for it, in bytes a second; `direct` says that QEMU has `avail-switchover-bandwidth`.
    pub fn new(
        policy: ConvergencePolicy,
        pages: u64,
        share: f64,
        direct: bool,
        logged: Time,
        now: Time,
    ) -> Self {
        Convergence {
            policy,
            pages,
            share,
            direct,
            released: now,
            round: 1,
            records: 0,
            moved: now,
            first_round_end: None,
            window: Window { since: logged, records: 0 },
            before: Duration::ZERO,
            last_pages: None,
            rate: DirtyRate::default(),
            needed: DOWNTIME_AIM,
            throttled_percent: 0,
        }
    }

    /// What QEMU says of its rounds, and how many records its stream has had so far; gives back when it may stop the guest.
    pub fn observe(&mut self, now: Time, view: QemuView, records: u64) -> SwitchoverLimits {
        self.throttled_percent = self.throttled_percent.max(view.throttle_percent);
        let new_round = view.round > self.round;
        if new_round {
            self.round = view.round;
            self.first_round_end.get_or_insert(now);
        }
        if new_round && now.since(self.window.since) >= WINDOW_MIN {
            self.end_window(now, records);
        }
        self.progress(now, records);
        let aim =
            patient_aim(view.round, self.policy.max_downtime).max(self.needed.min(self.policy.max_downtime));
        switchover_limits(view, self.share, aim, self.direct)
    }

    /// Records that the stream has had so far; QEMU's monitor may be mute.
    pub fn progress(&mut self, now: Time, records: u64) {
        if records > self.records {
            (self.records, self.moved) = (records, now);
        }
    }

    fn end_window(&mut self, now: Time, records: u64) {
        let span = now.since(self.window.since);
        let pages = records.saturating_sub(self.window.records);
        // The first window has all memory, whether it was dirtied or not.
        if !self.before.is_zero() {
            self.rate = DirtyRate {
                pages_per_s: pages as f64 / self.before.as_secs_f64(),
                carried_pages_per_s: pages as f64 / span.as_secs_f64(),
            };
            if self.last_pages.is_some_and(|last| pages as f64 >= last as f64 * SHRINKS_BELOW) {
                let need = pages as f64 * PAGE_SIZE as f64 / self.share.max(1.0) * NEED_SLACK;
                self.needed = Duration::try_from_secs_f64(need).unwrap_or(Duration::MAX);
            }
            self.last_pages = Some(pages);
        }
        self.before = span;
        self.window = Window { since: now, records };
    }

    /// Whether the VM is to be given up by now, unless its guest has been stopped.
    pub fn given_up(&self, now: Time) -> Option<GivenUp> {
        if now.since(self.moved) > STALL_MAX {
            return Some(GivenUp::Stalled);
        }
        match (self.policy.deadline, self.first_round_end) {
            (Some(limit), _) if now.since(self.released) <= limit => None,
            (Some(limit), None) => {
                let (records, pages) = (self.records, self.pages);
                Some(GivenUp::DeadlineInFirstRound { limit, records, pages })
            }
            (Some(limit), Some(_)) => Some(GivenUp::Deadline { limit, rate: self.rate(now) }),
            (None, None) => None,
            (None, Some(end)) => {
                let first = end.since(self.released);
                let after = now.since(end);
                let patience = PATIENCE_MIN.max(first.saturating_mul(PATIENCE_FACTOR));
                (after > patience).then(|| GivenUp::NotConverging { after, rate: self.rate(now) })
            }
        }
    }

    /// What was measured last. Of a round that has not ended, as much as it has shown: it may be long.
    pub fn rate(&self, now: Time) -> DirtyRate {
        let (span, before) = (now.since(self.window.since), self.before);
        if before.is_zero() || span < WINDOW_MIN {
            return self.rate;
        }
        let pages = self.records.saturating_sub(self.window.records) as f64;
        let so_far = DirtyRate {
            pages_per_s: pages / before.as_secs_f64(),
            carried_pages_per_s: pages / span.as_secs_f64(),
        };
        if so_far.pages_per_s > self.rate.pages_per_s { so_far } else { self.rate }
    }

    /// By how many percent QEMU has throttled the guest at most.
    pub fn throttled_percent(&self) -> u8 {
        self.throttled_percent
    }
}

#[cfg(test)]
mod tests;
