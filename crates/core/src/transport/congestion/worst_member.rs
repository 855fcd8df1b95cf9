//! Follows the member that receives least.
//!
//! [`WorstMember`] is built like BBR (Cardwell et al., ACM Queue 14(5), 2016): it looks at what arrives, not at the
//! mere fact of loss. Per member it keeps the highest rate that has arrived of late; the lowest of these is the
//! base. It doubles until the base stops growing, lets the queue drain, and then stays just below the base with a
//! short probe above it now and then; it doubles again when the slowest member leaves. A member that loses much more than usual counts only what arrived just now; one
//! whose reports come late is not probed hard, and no more, since a busy host reports late however slowly it is sent
//! to. Loss that is always there (a bad link) is not taken for congestion, and neither is its unevenness: one lost
//! super-packet is forty datagrams.
//!
//! A member that takes a quarter or less of what all others take, and goes on so, is the [laggard]: the others would
//! crawl with it, and gain more from its leaving than it loses by being served alone. So the rate does not follow it at
//! once, or nobody could tell whether it takes more by now; and the start does not end with the first member that has
//! reached its limit: that one is set apart until a second has.
//!
//! Where others send to a member too, what that leaves is not exceeded: see [`neighbours`](super::neighbours).
//!
//! [laggard]: CongestionControl::laggard

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::neighbours::Neighbours;
use super::{CongestionControl, RATE_START, Sample, Traffic};
use crate::time::Time;
use crate::transport::LAGGARD_RATIO;

/// Floor: 1 Mbit/s.
pub(super) const RATE_MIN: u64 = 125_000;
const STARTUP_GAIN: f64 = 2.0;
const DRAIN_GAIN: f64 = 0.75;
const PROBE_GAIN: f64 = 1.05;
/// For the probe after one that found more; each further one in a row goes twice as far above the base, up to the second.
const PROBE_GAIN_FAST: f64 = 1.15;
const PROBE_GAIN_MAX: f64 = 1.5;
/// Growth of the base over a cycle that says that the last probe found more.
const PROBE_FOUND: f64 = 1.03;
const AFTER_PROBE_GAIN: f64 = 0.95;
const CRUISE_GAIN: f64 = 0.99;
/// A probe, a pause, and cruising for the rest.
const ROUNDS: u32 = 8;
const ROUND: Duration = Duration::from_millis(100);
/// After the start, loss and delay are looked at over this much.
const SPAN: Duration = Duration::from_millis(60);
/// How long an arrived rate counts: two cycles.
const MEMORY: Duration = Duration::from_millis(1600);
/// The same at a sign of congestion: what arrived while the queue was full is what the path takes.
const CONGESTED_MEMORY: Duration = Duration::from_millis(200);
/// Growth of the base that keeps the start going.
const GROWTH: f64 = 1.25;
/// Samples of a member without growth that say that it has reached its limit.
const STARTUP_STALLS: u32 = 3;
/// Loss that says so: twice what a path takes loses half.
const STARTUP_LOSS: f32 = 0.20;
/// Loss above a member's usual loss that means congestion.
const LOSS_EXCESS: f32 = 0.10;
/// Usual loss beyond this is not made up for.
const LOSS_USUAL_MAX: f32 = 0.10;
/// Delay beyond which a member is not probed hard.
const QUEUE_DELAY_MAX: Duration = Duration::from_millis(30);
/// Samples over which the lowest loss is the usual one: those of two cycles.
const LOSS_SAMPLES: usize = 50;
/// The base falls to no less than this share of itself by one sample that was short of things to send.
const LIMITED_FALL: f64 = 0.8;

/// For at least this long, and as many samples with losses: a host that had no time for a moment is none. No longer than
/// that, since what it has not taken fills the window meanwhile.
const LAGGARD_SPAN: Duration = Duration::from_millis(300);
const LAGGARD_SAMPLES: u32 = 3;

/// Follows the member that receives least.
#[derive(Debug)]
pub struct WorstMember {
    members: BTreeMap<u16, Member>,
    phase: Phase,
    gain: f64,
    /// How far above the base the current cycle probes.
    probe: f64,
    /// The base when the current cycle of probing began.
    cycle_base: u64,
    /// There was a sign of congestion since.
    cycle_congested: bool,
    behind: Option<Behind>,
}

/// A member that takes far less than all others; until it is known whether it goes on so, the rate does not follow it.
#[derive(Clone, Copy, Debug)]
struct Behind {
    target: u16,
    since: Time,
    /// Samples with losses since.
    samples: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Doubling; one member may have reached its limit.
    Startup { apart: Option<u16> },
    /// In this round of a cycle, until then.
    Cycle { round: u32, until: Time },
}

/// What a sample tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Congestion {
    None,
    Delay,
    Loss,
}

/// What is known of one member.
#[derive(Debug, Default)]
struct Member {
    /// Samples that do not cover enough yet to tell of congestion.
    partial: Option<Sample>,
    /// Arrived rates and losses in them, of as long as they count.
    samples: VecDeque<(Time, u64)>,
    losses: VecDeque<f32>,
    /// The base when it last grew during the start, and samples since.
    grown: u64,
    stalls: u32,
    neighbours: Neighbours,
}

impl Member {
    fn usual_loss(&self) -> f32 {
        self.losses.iter().copied().fold(LOSS_USUAL_MAX, f32::min)
    }

    /// What arrived at best, and what would have arrived without the usual loss.
    fn base(&self) -> Option<u64> {
        let best = self.samples.iter().map(|(_, rate)| *rate).max()?;
        Some((best as f64 / f64::from(1.0 - self.usual_loss())) as u64)
    }

    fn learn(&mut self, now: Time, sample: &Sample, is_startup: bool) -> Congestion {
        let usual = self.usual_loss();
        self.neighbours.on_sample(now, sample, usual);
        self.losses.push_back(sample.loss);
        if self.losses.len() > LOSS_SAMPLES {
            self.losses.pop_front();
        }
        let base = self.base();
        if !sample.is_limited() || base.is_none_or(|base| sample.rate > base) {
            self.remember(now, sample.rate, MEMORY);
        }
        let joined = self.partial.take().map_or(*sample, |partial| partial.joined(sample));
        if !is_startup && joined.span < SPAN {
            self.partial = Some(joined);
            return Congestion::None;
        }
        if joined.loss - usual > if is_startup { STARTUP_LOSS } else { LOSS_EXCESS } {
            let floor = if joined.is_limited() { LIMITED_FALL * base.unwrap_or(0) as f64 } else { 0.0 };
            self.remember(now, joined.rate.max(floor as u64), CONGESTED_MEMORY);
            Congestion::Loss
        } else if joined.queue_delay > QUEUE_DELAY_MAX {
            Congestion::Delay
        } else {
            Congestion::None
        }
    }

    fn remember(&mut self, now: Time, rate: u64, memory: Duration) {
        self.samples.push_back((now, rate));
        while now.since(self.samples[0].0) > memory {
            self.samples.pop_front();
        }
    }
}

impl WorstMember {
    /// Starts at 200 Mbit/s.
    pub fn new() -> Self {
        let phase = Phase::Startup { apart: None };
        WorstMember {
            members: BTreeMap::new(),
            phase,
            gain: STARTUP_GAIN,
            probe: PROBE_GAIN,
            cycle_base: 0,
            cycle_congested: false,
            behind: None,
        }
    }

    /// What the worst member takes, of all that the rate follows.
    fn base(&self) -> Option<u64> {
        self.least_base(|target| self.is_followed(target))
    }

    fn is_followed(&self, target: u16) -> bool {
        ![self.apart(), self.behind.map(|behind| behind.target)].contains(&Some(target))
    }

    /// What is left beside others on the members' links.
    fn limit(&self, now: Time) -> Option<u64> {
        let members = self.members.iter().filter(|(target, _)| self.is_followed(**target));
        members.filter_map(|(_, member)| member.neighbours.limit(now)).min()
    }

    /// The least base of those that count.
    fn least_base(&self, counts: impl Fn(u16) -> bool) -> Option<u64> {
        let members = self.members.iter().filter(|(target, _)| counts(**target));
        members.filter_map(|(_, member)| member.base()).min()
    }

    /// The one member that has reached its limit before the start is over.
    fn apart(&self) -> Option<u16> {
        match self.phase {
            Phase::Startup { apart } => apart,
            Phase::Cycle { .. } => None,
        }
    }

    /// If it was this one, none is.
    fn end_apart(&mut self, target: u16) {
        if self.apart() == Some(target) {
            self.phase = Phase::Startup { apart: None };
        }
    }

    /// Looks whether a sample shows its member far behind all others. Its base will not tell for some time.
    fn look_behind(&mut self, now: Time, target: u16, sample: &Sample) {
        let others = self.least_base(|other| other != target);
        let before = self.behind.filter(|behind| behind.target == target);
        if others.is_none_or(|others| sample.rate > others / LAGGARD_RATIO) {
            if before.is_some() {
                self.behind = None;
            }
            return;
        }
        let shows = !sample.starved && sample.loss > STARTUP_LOSS;
        let mut behind = match before {
            Some(behind) => behind,
            None if shows || self.apart() == Some(target) => Behind { target, since: now, samples: 0 },
            None => return,
        };
        behind.samples += u32::from(shows);
        self.behind = Some(behind);
    }

    fn enter_round(&mut self, now: Time, round: u32) {
        let base = self.base().unwrap_or(RATE_START);
        self.gain = match round {
            0 => {
                let grew = base as f64 > self.cycle_base as f64 * PROBE_FOUND;
                let grew = self.cycle_base == 0 || (grew && !self.cycle_congested);
                (self.cycle_base, self.cycle_congested) = (base, false);
                // After hosts that had no time, or a flow that has ended, there may be much more: a thousandfold in 14 s.
                self.probe = match grew {
                    true => (1.0 + 2.0 * (self.probe - 1.0)).clamp(PROBE_GAIN_FAST, PROBE_GAIN_MAX),
                    false => PROBE_GAIN,
                };
                self.probe
            }
            1 => AFTER_PROBE_GAIN,
            _ => CRUISE_GAIN,
        };
        self.phase = Phase::Cycle { round, until: now + ROUND };
    }

    /// Whether the member takes no more than it did, though more was sent; one that takes more again is apart no longer.
    fn is_at_limit(&mut self, target: u16, sample: &Sample, is_lost: bool) -> bool {
        let followed = self.base().unwrap_or(0);
        let member = self.members.get_mut(&target).expect("it has just learnt something");
        let base = member.base().unwrap_or(0);
        if base as f64 > member.grown as f64 * GROWTH {
            (member.grown, member.stalls) = (base, 0);
            self.end_apart(target);
            return is_lost;
        }
        if !sample.starved && followed as f64 * STARTUP_GAIN > base as f64 * GROWTH {
            // Also where the host is what limits the rate.
            member.stalls += 1;
        }
        is_lost || member.stalls >= STARTUP_STALLS
    }

    /// The member whose pace the others were kept at has left: they may take far more.
    fn start_over(&mut self) {
        (self.phase, self.gain) = (Phase::Startup { apart: None }, STARTUP_GAIN);
        self.members.values_mut().for_each(|member| (member.grown, member.stalls) = (0, 0));
    }

    /// The start is over: what has queued up drains before the first probe.
    fn end_startup(&mut self, now: Time) {
        self.enter_round(now, ROUNDS - 1);
        self.gain = DRAIN_GAIN;
        // What arrived while the queue overflowed may be less than the link takes: the first probe is a fast one.
        self.cycle_base = 0;
    }
}

impl Default for WorstMember {
    fn default() -> Self {
        Self::new()
    }
}

impl CongestionControl for WorstMember {
    fn on_sample(&mut self, now: Time, target: u16, sample: &Sample) {
        let is_startup = matches!(self.phase, Phase::Startup { .. });
        let congested = self.members.entry(target).or_default().learn(now, sample, is_startup);
        self.cycle_congested |= congested != Congestion::None;
        let is_lost = congested == Congestion::Loss;
        self.look_behind(now, target, sample);
        if is_startup && self.is_at_limit(target, sample, is_lost) {
            match self.apart() {
                None if self.members.len() > 1 => self.phase = Phase::Startup { apart: Some(target) },
                Some(apart) if apart == target => {}
                _ => self.end_startup(now),
            }
        }
    }

    fn on_traffic(&mut self, now: Time, target: u16, traffic: Traffic) {
        if let Some(member) = self.members.get_mut(&target) {
            member.neighbours.on_traffic(now, traffic);
        }
    }

    fn remove(&mut self, target: u16) {
        let slowest = self.members.remove(&target).and_then(|member| member.base());
        let was_behind = self.behind.is_some_and(|behind| behind.target == target);
        self.behind = self.behind.filter(|_| !was_behind);
        self.end_apart(target);
        let others = self.base();
        if was_behind || slowest.zip(others).is_some_and(|(slowest, others)| slowest <= others) {
            self.start_over();
        }
    }

    fn carried(&self) -> Option<u64> {
        self.base()
    }

    fn laggard(&self) -> Option<(u16, Time)> {
        let behind = self.behind.filter(|behind| behind.samples >= LAGGARD_SAMPLES);
        behind.map(|behind| (behind.target, behind.since + LAGGARD_SPAN))
    }

    fn rate(&mut self, now: Time) -> u64 {
        if let Phase::Cycle { round, until } = self.phase
            && now >= until
        {
            self.enter_round(now, (round + 1) % ROUNDS);
        }
        let rate = match (self.base(), self.phase) {
            (Some(base), Phase::Startup { .. }) => (base as f64 * self.gain).max(RATE_START as f64),
            (Some(base), Phase::Cycle { .. }) => base as f64 * self.gain,
            (None, _) => RATE_START as f64,
        };
        let limit = self.limit(now).unwrap_or(u64::MAX);
        (rate as u64).min(limit).max(RATE_MIN)
    }
}
