//! What others send to a receiver, and what is left for us beside them.
//!
//! [`WorstMember`](super::WorstMember) looks at what arrives. A flow that answers to loss (TCP) yields to one that does not, until next to
//! nothing of it is left; nobody could tell that from loss and delay alone, since a bad link loses too and a busy host
//! delays. So receivers say what their link brings that is not the session's. Where the link is full, we take no more than leaves
//! the others half as much again as they take now, for them to grow into, and no less than half of what the link
//! takes. Beside one that grows into all it can get, this ends at half for each; beside one that keeps its rate, at what it leaves, less half
//! of its rate for as long as losses go on.

use std::collections::VecDeque;
use std::time::Duration;

use super::Sample;
use crate::time::Time;

/// How long a link that has lost something counts as full.
const FULL_SPAN: Duration = Duration::from_secs(1);
/// Loss beyond the usual that says so.
const LOSS_FULL: f32 = 0.001;
/// How long what a link has brought says what it takes.
const MEMORY: Duration = Duration::from_secs(10);
/// Others that take one part in so many, or less, are none: a link is never quite silent.
const OTHERS_RATIO: f64 = 100.0;
/// What is left to others, measured by what they take.
const ROOM: f64 = 1.5;
/// We take no less than this share of the link.
const SHARE_MIN: f64 = 0.5;
/// How much the latest stretch counts.
const SMOOTHING: f64 = 0.3;

/// What the link of a receiver has brought over a stretch of time, in bytes a second with headers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Of this session, over all paths.
    pub session: f64,
    /// Of others.
    pub others: f64,
}

/// One receiver's link.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    traffic: Option<Traffic>,
    /// Bytes of multicast that have arrived since the last word of the link, as in [`Sample::rate`], and in what time.
    arrived: (f64, Duration),
    /// Bytes of multicast a second.
    rate: f64,
    /// What it has brought in all.
    totals: VecDeque<(Time, f64)>,
    full_until: Option<Time>,
    limit: Option<u64>,
}

impl Neighbours {
    /// What has arrived; `usual` is what is always lost on the way.
    pub(super) fn on_sample(&mut self, now: Time, sample: &Sample, usual: f32) {
        self.arrived.0 += sample.rate as f64 * sample.span.as_secs_f64();
        self.arrived.1 += sample.span;
        if sample.loss - usual > LOSS_FULL {
            self.full_until = Some(now + FULL_SPAN);
        }
    }

    /// The receiver has told what its link has brought.
    pub(super) fn on_traffic(&mut self, now: Time, latest: Traffic) {
        let (bytes, span) = std::mem::take(&mut self.arrived);
        let rate = if span.is_zero() { self.rate } else { bytes / span.as_secs_f64() };
        let smooth = |old: f64, new: f64| old + (new - old) * SMOOTHING;
        let old = self.traffic.unwrap_or(latest);
        let traffic = Traffic {
            session: smooth(old.session, latest.session),
            others: smooth(old.others, latest.others),
        };
        self.rate = if self.traffic.is_some() { smooth(self.rate, rate) } else { rate };
        self.traffic = Some(traffic);
        let total = latest.session + latest.others;
        self.totals.push_back((now, total));
        while now.since(self.totals[0].0) > MEMORY {
            self.totals.pop_front();
        }
        let link = self.totals.iter().map(|(_, total)| *total).fold(total, f64::max);
        let is_alone = traffic.others * OTHERS_RATIO <= link || traffic.session <= 0.0;
        self.limit = (!is_alone).then(|| {
            let share = (link - ROOM * traffic.others).max(SHARE_MIN * link);
            (self.rate * share / traffic.session) as u64
        });
    }

    /// Bytes a second of multicast that leave the others their part, where that is a question.
    pub(super) fn limit(&self, now: Time) -> Option<u64> {
        self.limit.filter(|_| self.full_until.is_some_and(|until| now < until))
    }
}
