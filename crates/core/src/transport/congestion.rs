//! How fast to send: a fixed rate under `--bandwidth`, else what the worst member receives.
//!
//! [`WorstMember`] is built like BBR (Cardwell et al., ACM Queue 14(5), 2016): it looks at what arrives, not at the
//! mere fact of loss. Per member it keeps the highest rate that has arrived of late; the lowest of these is the
//! base. It doubles until the base stops growing, lets the queue drain, and then stays just below the base with a
//! short probe above it now and then. A member that loses much more than usual counts only what arrived just now; one
//! whose reports come late is not probed hard, and no more, since a busy host reports late however slowly it is sent
//! to. Loss that is always there (a bad link) is not taken for congestion, and neither is its unevenness: one lost
//! super-packet is forty datagrams.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use crate::time::Time;

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
    /// A target is gone and limits nobody any more.
    fn remove(&mut self, target: u16);
    /// Bytes a second on the link, headers of UDP, IP and Ethernet included; never zero.
    fn rate(&mut self, now: Time) -> u64;
}

/// The rate that `--bandwidth` names.
#[derive(Clone, Copy, Debug)]
pub struct FixedRate(pub u64);

impl CongestionControl for FixedRate {
    fn on_sample(&mut self, _now: Time, _target: u16, _sample: &Sample) {}

    fn remove(&mut self, _target: u16) {}

    fn rate(&mut self, _now: Time) -> u64 {
        self.0.max(1)
    }
}

/// Start: 100 Mbit/s.
const RATE_START: u64 = 12_500_000;
/// Floor: 1 Mbit/s.
const RATE_MIN: u64 = 125_000;
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
/// Samples of each member without growth that end it.
const STARTUP_STALLS: u32 = 3;
/// Loss that ends it: twice what a path takes loses half.
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
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Doubling; the highest base so far and samples since it grew.
    Startup { base: u64, stalls: u32 },
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
    /// Starts at 100 Mbit/s.
    pub fn new() -> Self {
        let phase = Phase::Startup { base: 0, stalls: 0 };
        WorstMember {
            members: BTreeMap::new(),
            phase,
            gain: STARTUP_GAIN,
            probe: PROBE_GAIN,
            cycle_base: 0,
            cycle_congested: false,
        }
    }

    fn base(&self) -> Option<u64> {
        self.members.values().filter_map(Member::base).min()
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
        let members = self.members.len() as u32;
        let base = self.base().unwrap_or(0);
        let Phase::Startup { base: before, stalls } = &mut self.phase else { return };
        if base as f64 > *before as f64 * GROWTH {
            (*before, *stalls) = (base, 0);
        } else if !sample.starved {
            // Also where the host is what limits the rate.
            *stalls += 1;
        }
        if congested == Congestion::Loss || *stalls >= STARTUP_STALLS * members {
            self.end_startup(now);
        }
    }

    fn remove(&mut self, target: u16) {
        self.members.remove(&target);
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
        (rate as u64).max(RATE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `capacity` that drops what exceeds it and `loss` of the rest, sampled every 30 ms.
    fn drive(control: &mut WorstMember, now: &mut Time, millis: u64, links: &[(u64, f64)]) -> (u64, f64) {
        let (end, mut sent, mut lost) = (*now + Duration::from_millis(millis), 0.0, 0.0);
        while *now < end {
            let rate = control.rate(*now) as f64;
            *now = *now + Duration::from_millis(30);
            for (target, (capacity, loss)) in links.iter().enumerate() {
                let arrived = rate.min(*capacity as f64) * (1.0 - loss);
                let sample = Sample {
                    rate: arrived as u64,
                    loss: (1.0 - arrived / rate) as f32,
                    queue_delay: Duration::ZERO,
                    span: Duration::from_millis(30),
                    starved: false,
                    late: false,
                };
                control.on_sample(*now, target as u16, &sample);
            }
            sent += rate * 0.03;
            lost += (rate - links[0].0 as f64).max(0.0) * 0.03;
        }
        ((sent * 1000.0 / millis as f64) as u64, lost / sent)
    }

    #[test]
    fn fills_an_idle_link_and_stays_there() {
        for capacity in [1_250_000, 12_500_000, 125_000_000, 1_250_000_000] {
            for loss in [0.0, 0.01, 0.05] {
                let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
                drive(&mut control, &mut now, 3000, &[(capacity, loss)]);
                let (rate, excess) = drive(&mut control, &mut now, 5000, &[(capacity, loss)]);
                let share = rate as f64 / capacity as f64;
                assert!((0.95..1.02).contains(&share), "{share} of {capacity} at {loss}");
                assert!(excess < 0.02, "{excess} lost of {capacity} at {loss}");
            }
        }
    }

    #[test]
    fn follows_the_worst_and_comes_back() {
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        let (fast, slow) = (125_000_000, 40_000_000);
        drive(&mut control, &mut now, 2000, &[(fast, 0.0), (fast, 0.0)]);
        drive(&mut control, &mut now, 500, &[(fast, 0.0), (slow, 0.01)]);
        let (rate, _) = drive(&mut control, &mut now, 2000, &[(fast, 0.0), (slow, 0.01)]);
        assert!(rate < slow * 11 / 10 && rate > slow * 9 / 10, "{rate}");
        control.remove(1);
        drive(&mut control, &mut now, 5000, &[(fast, 0.0)]);
        let (rate, _) = drive(&mut control, &mut now, 2000, &[(fast, 0.0)]);
        assert!(rate > fast * 95 / 100, "{rate}");
    }

    /// What was left of the rate when hosts had no time at all must not be what they get from then on.
    #[test]
    fn comes_back_from_the_floor_within_seconds() {
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        let (link, floor) = (125_000_000, 2 * RATE_MIN);
        drive(&mut control, &mut now, 1000, &[(link, 0.0), (link, 0.0)]);
        drive(&mut control, &mut now, 3000, &[(link, 0.0), (floor, 0.0)]);
        assert!(control.rate(now) < 2 * floor, "{}", control.rate(now));
        drive(&mut control, &mut now, 15_000, &[(link, 0.0), (link, 0.0)]);
        let (rate, _) = drive(&mut control, &mut now, 3000, &[(link, 0.0), (link, 0.0)]);
        assert!(rate > link * 95 / 100, "{rate}");
    }

    /// A host that has no time to send what it may sees less arrive; slowing down for that would go on for ever.
    #[test]
    fn late_host_is_not_taken_for_a_slow_path() {
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        let late = |rate: u64| Sample {
            rate: rate * 8 / 10,
            loss: 0.0,
            queue_delay: Duration::from_millis(50),
            span: Duration::from_millis(30),
            starved: false,
            late: true,
        };
        drive(&mut control, &mut now, 3000, &[(125_000_000, 0.0)]);
        for _ in 0..200 {
            now = now + Duration::from_millis(30);
            let sample = late(control.rate(now));
            control.on_sample(now, 0, &sample);
        }
        assert!(control.rate(now) > 110_000_000, "{}", control.rate(now));
    }

    /// One lost super-packet in some samples, none in others.
    #[test]
    fn uneven_loss_is_not_congestion() {
        let (mut control, mut now, mut turn) = (WorstMember::new(), Time::ZERO, 0u64);
        for _ in 0..600 {
            now = now + Duration::from_millis(30);
            for target in 0..3 {
                turn += 1;
                let loss = [0.0, 0.11, 0.0, 0.05, 0.09][(turn * 7 % 5) as usize];
                let sent = control.rate(now).min(125_000_000);
                let sample = Sample {
                    rate: (sent as f64 * (1.0 - loss)) as u64,
                    loss: loss as f32,
                    queue_delay: Duration::ZERO,
                    span: Duration::from_millis(30),
                    starved: false,
                    late: false,
                };
                control.on_sample(now, target, &sample);
            }
        }
        assert!(control.rate(now) > 115_000_000, "{}", control.rate(now));
    }

    /// A receiver short of CPU: everything arrives, every report is late.
    #[test]
    fn late_reporter_is_not_starved() {
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        for _ in 0..400 {
            let rate = control.rate(now).min(110_000_000);
            now = now + Duration::from_millis(30);
            let sample = Sample {
                rate,
                loss: 0.0,
                queue_delay: Duration::from_millis(80),
                span: Duration::from_millis(30),
                starved: false,
                late: false,
            };
            control.on_sample(now, 0, &sample);
        }
        assert!(control.rate(now) > 100_000_000, "{}", control.rate(now));
    }
}
