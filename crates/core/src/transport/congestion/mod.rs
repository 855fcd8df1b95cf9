//! How fast to send: a fixed rate under `--bandwidth`, else what the [worst member](WorstMember) receives, less what
//! [others](Traffic) on its link are to have.

mod neighbours;
#[cfg(test)]
mod tests;
mod worst_member;

use std::fmt;
use std::time::Duration;

pub use self::neighbours::Traffic;
pub use self::worst_member::WorstMember;
use crate::time::Time;

/// The rate to begin with, in bytes a second: 200 Mbit/s.
pub(super) const RATE_START: u64 = 25_000_000;

/// What one member's reports say of a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Bytes a second that arrived, of all that was sent by multicast: as if it were a member of every set.
    pub rate: u64,
    /// Share of the member's datagrams that did not arrive, 0 to 1.
    pub loss: f32,
    /// The least time that a datagram took to be reported, above the least ever seen.
    pub queue_delay: Duration,
    /// What this covers.
    pub span: Duration,
    /// There were moments with nothing to send, so the path may carry more.
    pub starved: bool,
    /// There were moments when this host came too late to keep the pace: the path, or its own link, may carry more.
    pub late: bool,
}

impl Sample {
    /// Both stretches as one.
    fn joined(&self, other: &Sample) -> Sample {
        let span = self.span + other.span;
        let share = self.span.as_secs_f64() / span.as_secs_f64().max(1e-9);
        let mean = |a: f64, b: f64| a * share + b * (1.0 - share);
        Sample {
            rate: mean(self.rate as f64, other.rate as f64) as u64,
            loss: mean(self.loss.into(), other.loss.into()) as f32,
            queue_delay: self.queue_delay.min(other.queue_delay),
            span,
            starved: self.starved || other.starved,
            late: self.late || other.late,
        }
    }

    /// What arrived was less than what could have been sent.
    fn is_limited(&self) -> bool {
        self.starved || self.late
    }
}

/// Decides how fast multicast leaves.
pub trait CongestionControl: fmt::Debug + Send {
    /// A target's reports have said something.
    fn on_sample(&mut self, now: Time, target: u16, sample: &Sample);
    /// A target has told what its link has brought of late.
    fn on_traffic(&mut self, now: Time, target: u16, traffic: Traffic);
    /// A target is gone and limits nobody any more.
    fn remove(&mut self, target: u16);
    /// Bytes a second on the link, headers of UDP, IP and Ethernet included; never zero.
    fn rate(&mut self, now: Time) -> u64;
    /// What gets to the worst of the members that the rate follows, in bytes a second; `None` before anything is known.
    fn carried(&self) -> Option<u64>;
    /// The member that takes far less than all others, and when it is to be removed if it has not caught up by then.
    fn laggard(&self) -> Option<(u16, Time)> {
        None
    }
}

/// The rate that `--bandwidth` names. Who lags behind at it is seen as without it.
#[derive(Debug)]
pub struct FixedRate {
    rate: u64,
    members: WorstMember,
}

impl FixedRate {
    /// Bytes a second.
    pub fn new(rate: u64) -> Self {
        FixedRate { rate: rate.max(1), members: WorstMember::new() }
    }
}

impl CongestionControl for FixedRate {
    fn on_sample(&mut self, now: Time, target: u16, sample: &Sample) {
        self.members.on_sample(now, target, sample);
    }

    /// Whoever names a rate has others in mind.
    fn on_traffic(&mut self, _now: Time, _target: u16, _traffic: Traffic) {}

    fn remove(&mut self, target: u16) {
        self.members.remove(target);
    }

    fn rate(&mut self, now: Time) -> u64 {
        // It goes through its phases, which nobody follows.
        self.members.rate(now);
        self.rate
    }

    fn carried(&self) -> Option<u64> {
        self.members.carried()
    }

    fn laggard(&self) -> Option<(u16, Time)> {
        self.members.laggard()
    }
}
