//! Who holds all others up over TCP. (Of multicast, [congestion control](crate::transport::CongestionControl::laggard) says that.)
//!
//! A set's members get the same, so all of them come to go at the pace of the slowest, and what they acknowledge says no more of what they
//! could take: nor does a full window, which one of a few equal hosts has too. What tells is that frames wait for one target alone, a second
//! long, that takes a quarter or less of what each other one has taken in the last seconds. Where frames pass it on their way
//! to others, these have had no occasion to show it: they get one. Some frames that are to come go past it, and to it alone
//! besides.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Sender;
use super::relay::{Chain, Delivery};
use crate::time::Time;
use crate::transport::{LAGGARD_RATIO, TargetMask, mask_of, targets_of};

/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// So much of what is waited for waits for one target, in percent, which has half of its window in flight.
const ALONE_PERCENT: usize = 80;
/// For so long: a host that had no time for a moment is no laggard.
const ALONE_MIN: Duration = Duration::from_secs(1);
/// And acknowledges something all the while, at intervals no longer than this: else a hop before it has broken, or it stands still, which are
/// found in their own time.
const HEARD_MAX: Duration = Duration::from_millis(500);
/// After so long the others get their occasion, of so many bytes, and the time for it; and not again for some time.
const OCCASION_AFTER: Duration = Duration::from_millis(500);
const OCCASION_BYTES: usize = 8 << 20;
const OCCASION_SPAN: Duration = Duration::from_millis(300);
/// What a target has been seen to take counts for so long.
const MEMORY: Duration = Duration::from_secs(10);
/// It is measured over frames acknowledged in so short a time, of so many bytes at least, and no shorter than that.
const PACE_SPAN: Duration = Duration::from_millis(50);
const PACE_BYTES: usize = 1 << 20;
const PACE_SPAN_MIN: Duration = Duration::from_millis(20);

/// What a target has acknowledged.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes of bodies, all in all.
    taken: u64,
    /// Frames of late: when acknowledged, when the first of it left, bytes.
    recent: VecDeque<(Time, Time, usize)>,
    /// Bytes a second that it has taken at best, and when.
    best: Option<(u64, Time)>,
}

impl Pace {
    pub(super) fn took(&mut self, now: Time, begun: Time, bytes: usize) {
        self.taken += bytes as u64;
        self.recent.push_back((now, begun, bytes));
    }

    /// Looks at what the acknowledgements of a report say. Whichever frames are looked at, all of them have come since the first of them
    /// left: so it takes that much at least.
    pub(super) fn measure(&mut self, now: Time) {
        self.recent.retain(|(acked, ..)| now.since(*acked) <= PACE_SPAN);
        let mut latest: Vec<(Time, usize)> =
            self.recent.iter().map(|(_, begun, bytes)| (*begun, *bytes)).collect();
        latest.sort_unstable_by_key(|(begun, _)| Reverse(*begun));
        let mut sum = 0;
        for (begun, bytes) in latest {
            sum += bytes;
            let span = now.since(begun).max(PACE_SPAN_MIN);
            let rate = (sum as f64 / span.as_secs_f64()) as u64;
            if sum >= PACE_BYTES && self.best(now).is_none_or(|best| rate >= best) {
                self.best = Some((rate, now));
            }
        }
    }

    fn best(&self, now: Time) -> Option<u64> {
        self.best.filter(|(_, at)| now.since(*at) <= MEMORY).map(|(rate, _)| rate)
    }
}

/// The one target that is waited for.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    target: u16,
    since: Time,
    /// What it had taken by then.
    taken: u64,
}

/// The look-out for one.
#[derive(Debug, Default)]
pub(super) struct LookOut {
    awaited: Option<Awaited>,
    /// When to look next.
    at: Time,
    /// When the others had their last occasion to go ahead.
    occasion: Option<Time>,
}

impl LookOut {
    /// When to look, if there is somebody to look at.
    pub(super) fn timeout(&self) -> Option<Time> {
        self.awaited.map(|_| self.at)
    }
}

impl Sender {
    /// The target that takes so little over TCP that the others are better off without it.
    pub(super) fn tcp_laggard(&mut self, now: Time) -> Option<u16> {
        if now < self.look_out.at {
            return None;
        }
        self.look_out.at = now + LOOK_INTERVAL;
        let target = self.awaited_alone().filter(|target| now.since(self.targets[target].heard) <= HEARD_MAX);
        let awaited = self.look_out.awaited.filter(|before| Some(before.target) == target);
        self.look_out.awaited = awaited.or(target.map(|target| Awaited {
            target,
            since: now,
            taken: self.targets[&target].pace.taken,
        }));
        let Awaited { target, since, taken } = awaited?;
        let waited = now.since(since);
        let had_occasion = self.look_out.occasion.is_some_and(|at| now.since(at) <= MEMORY);
        if waited >= OCCASION_AFTER && !had_occasion {
            self.look_out.occasion = Some(now);
            if self.send_past(target) {
                // While others go ahead, frames wait for them too.
                self.look_out.at = now + OCCASION_SPAN;
            }
            return None;
        }
        let takes = (self.targets[&target].pace.taken - taken) as f64 / waited.as_secs_f64();
        let others = self.targets.iter().filter(|(other, _)| **other != target);
        let others = others.filter_map(|(_, state)| state.pace.best(now)).min()?;
        let lags = takes * LAGGARD_RATIO as f64 <= others as f64;
        (waited >= ALONE_MIN && lags).then_some(target)
    }

    /// The target for which nearly all frames wait that have been sent, if it is one, and it has TCP's window in use.
    fn awaited_alone(&self) -> Option<u16> {
        let half = self.config.unicast_window_bytes / 2;
        if self.targets.values().all(|target| target.in_flight_bytes < half) {
            return None;
        }
        let mut waits: BTreeMap<u16, usize> = BTreeMap::new();
        for open in self.frames.values() {
            let waiting = open.waiting & open.told;
            // Of a chain, the first that has not acknowledged it is waited for.
            let first = |chain: &Chain| chain.iter().copied().find(|target| waiting & mask_of(*target) != 0);
            let over_tcp = open.chains.iter().filter_map(first);
            let by_multicast = targets_of(waiting & !open.by_unicast);
            over_tcp
                .chain(by_multicast)
                .for_each(|target| *waits.entry(target).or_default() += open.body.len());
        }
        let all: usize = waits.values().sum();
        let (target, bytes) = waits.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        let is_alone = bytes * 100 >= all * ALONE_PERCENT;
        (is_alone && self.targets.get(&target)?.in_flight_bytes >= half).then_some(target)
    }

    /// Sends the others of its chains the next frames that wait to be sent along them without waiting for this target, which
    /// gets them by itself; whether there were any.
    fn send_past(&mut self, target: u16) -> bool {
        let mut queued: BTreeMap<u64, Chain> = BTreeMap::new();
        for state in self.targets.values() {
            let begun = usize::from(state.first_next > 0);
            let waiting = state.unicast.iter().skip(begun);
            let of_both =
                waiting.filter(|delivery| delivery.chain.len() > 1 && delivery.chain.contains(&target));
            queued.extend(of_both.map(|delivery| (delivery.frame, delivery.chain.clone())));
        }
        let mut bytes = 0;
        let next = queued.into_iter().take_while(|(frame, _)| {
            bytes += self.frames.get(frame).map_or(0, |open| open.body.len());
            bytes <= OCCASION_BYTES
        });
        let next: Vec<(u64, Chain)> = next.collect();
        for (frame, chain) in next.iter().rev() {
            let head = self.target(chain[0]);
            head.unicast.retain(|delivery| delivery.frame != *frame || delivery.chain != *chain);
            let members: TargetMask = chain.iter().fold(0, |mask, member| mask | mask_of(*member));
            let mut chains = self.hops.chains(members & !mask_of(target), *frame);
            chains.push([target].into());
            let Some(open) = self.frames.get_mut(frame) else { continue };
            open.chains.retain(|other| other != chain);
            open.chains.extend(chains.iter().cloned());
            for chain in chains {
                let first = self.target(chain[0]);
                // The oldest frame's comes to stand first, behind what is leaving.
                let at = usize::from(first.first_next > 0);
                first.unicast.insert(at, Delivery { frame: *frame, chain });
            }
        }
        !next.is_empty()
    }
}
