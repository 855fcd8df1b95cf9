//! How fast to send: a fixed rate under `--bandwidth`, else what the worst member receives.
//!
//! [`WorstMember`] is built like BBR (Cardwell et al., ACM Queue 14(5), 2016): it looks at what arrives, not at the
//! mere fact of loss. Per member it keeps the highest rate that has arrived of late; the lowest of these is the
//! base. It doubles until the base stops growing, lets the queue drain, and then stays just below the base with a
//! short probe above it now and then. A member that loses much more than usual counts only what arrived just now; one
//! whose reports come late is not probed hard, and no more, since a busy host reports late however slowly it is sent
//! to. Loss that is always there (a bad link) is not taken for congestion, and neither is its unevenness: one lost
//! super-packet is forty datagrams.
//!
//! A member that takes a quarter or less of what all others take, and goes on so, is the [laggard]: the others would
//! crawl with it, and gain more from its leaving than it loses by being served alone. So the rate does not follow it at
//! once, or nobody could tell whether it takes more by now; and the start does not end with the first member that has
//! reached its limit: that one is set apart until a second has.
//!
//! [laggard]: CongestionControl::laggard

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

    fn remove(&mut self, target: u16) {
        self.members.remove(target);
    }

    fn rate(&mut self, now: Time) -> u64 {
        // It goes through its phases, which nobody follows.
        self.members.rate(now);
        self.rate
    }

    fn laggard(&self) -> Option<(u16, Time)> {
        self.members.laggard()
    }
}

/// Start: 200 Mbit/s.
const RATE_START: u64 = 25_000_000;
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

/// A laggard takes no more than one in so many of the bytes that the next slowest member takes.
const LAGGARD_RATIO: u64 = 4;
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
        let not_followed = [self.apart(), self.behind.map(|behind| behind.target)];
        self.least_base(|target| !not_followed.contains(&Some(target)))
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

    fn remove(&mut self, target: u16) {
        self.members.remove(&target);
        self.behind = self.behind.filter(|behind| behind.target != target);
        self.end_apart(target);
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

    /// When the start ends with one far slower than the others, or one becomes so, it is named; one half as fast is not.
    #[test]
    fn laggard_is_named_soon() {
        let due = |control: &WorstMember, now| {
            control.laggard().filter(|(_, at)| now >= *at).map(|(target, _)| target)
        };
        let (fast, slow) = (125_000_000, 12_500_000);
        let links = [(fast, 0.0), (fast, 0.0), (slow, 0.01)];
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        drive(&mut control, &mut now, 800, &links);
        assert_eq!(due(&control, now), Some(2));
        control.remove(2);
        assert_eq!(control.laggard(), None);
        let (rate, _) = drive(&mut control, &mut now, 1000, &links[..2]);
        assert!(rate > fast * 90 / 100, "{rate}");
        drive(&mut control, &mut now, 1500, &[(slow, 0.0), (fast, 0.0)]);
        assert_eq!(due(&control, now), Some(0));

        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        for _ in 0..100 {
            drive(&mut control, &mut now, 100, &[(fast, 0.0), (fast / 2, 0.0), (fast, 0.01)]);
            assert_eq!(control.laggard(), None);
        }
        assert!(control.rate(now) < fast * 6 / 10);
    }

    /// What all have in common is nobody's fault; nor is a moment in which a host had no time.
    #[test]
    fn slow_together_or_for_a_moment_is_no_laggard() {
        let (fast, slow) = (125_000_000, 12_500_000);
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        let mut check = |millis, links: &[(u64, f64)]| {
            drive(&mut control, &mut now, millis, links);
            let is_due = control.laggard().is_some_and(|(_, at)| now >= at);
            assert!(!is_due, "{links:?} for {millis} ms");
        };
        check(1000, &[(fast, 0.0); 3]);
        check(200, &[(fast, 0.0), (slow, 0.0), (fast, 0.0)]);
        check(1000, &[(fast, 0.0); 3]);
        check(2000, &[(slow, 0.0); 3]);
        check(3000, &[(fast, 0.0); 3]);
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        drive(&mut control, &mut now, 3000, &[(slow, 0.0)]);
        assert_eq!(control.laggard(), None, "alone");
    }

    /// What was left of the rate when hosts had no time at all must not be what they get from then on.
    #[test]
    fn comes_back_from_the_floor_within_seconds() {
        let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
        let (link, floor) = (125_000_000, 2 * RATE_MIN);
        drive(&mut control, &mut now, 1000, &[(link, 0.0), (link, 0.0)]);
        drive(&mut control, &mut now, 3000, &[(floor, 0.0), (floor, 0.0)]);
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
