//! Trains of probes: how much gets to a target of what is multicast at the session's rate, before anything else is sent there. A switch or
//! a network may let a few datagrams pass and hold back more.
//!
//! ```text
//! line_up ─► due: datagrams at the rate, one train at a time ─► asks: how many have come? ─► counted: reached, or not
//! ```
//!
//! Each target is tried once, with the first set that reaches it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::placement::{TargetId, TargetSet};
use crate::time::Time;

/// A train takes so long, but for those that come after many others: these take less.
const SPAN: Duration = Duration::from_millis(40);
const SPAN_SHORT: Duration = Duration::from_millis(5);
const LONG_MAX: usize = 5;
/// Of datagrams there are no fewer, and of bytes no more than this.
const DATAGRAMS_MIN: u32 = 16;
const BYTES_MAX: u64 = 4 << 20;
/// As many datagrams as the rate allows leave each so long.
const BURST: Duration = Duration::from_millis(1);
/// A host that comes too late sends as much at once, and leaves out what it has missed before.
const CATCH_UP: Duration = Duration::from_millis(2);
/// The question goes over TCP, and must not overtake what still queues on the way.
const ASK_AFTER: Duration = Duration::from_millis(30);
/// Who has not answered by then is not asked again, and counts as reached.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// A target that gets no more than one of so many is not reached.
const REACHED_RATIO: u32 = 4;

/// All trains of a session.
#[derive(Debug, Default)]
pub(super) struct Trains {
    /// The session's rate.
    bytes_per_s: u64,
    /// Targets that can count.
    able: TargetSet,
    /// Those of them that have been tried, or are to be.
    tried: TargetSet,
    /// The first is under way.
    queue: VecDeque<Train>,
    /// How many there were before those in the queue.
    ended: usize,
}

#[derive(Debug)]
struct Train {
    set: u16,
    /// Who is to count, and has not answered.
    members: TargetSet,
    /// Bytes of a datagram.
    bytes: usize,
    datagrams: u32,
    sent: u32,
    /// When the next of it leaves; none before it is first.
    due: Option<Time>,
    /// When the question was put.
    asked: Option<Time>,
}

/// Datagrams of a train that are to leave now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// The set to whose group they go.
    pub set: u16,
    /// Bytes of each, behind the UDP header.
    pub bytes: usize,
    /// How many.
    pub datagrams: u32,
}

/// Too little of a train has come to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Poor {
    /// How many datagrams there were.
    pub(super) sent: u32,
    /// Their rate.
    pub(super) bytes_per_s: u64,
}

impl Trains {
    /// At this rate, to targets that can count.
    pub(super) fn new(bytes_per_s: u64, able: TargetSet) -> Self {
        Trains { bytes_per_s, able, ..Trains::default() }
    }

    /// These targets hear what is multicast to the set: those that have not been tried are, with datagrams of so many bytes.
    pub(super) fn line_up(&mut self, set: u16, targets: TargetSet, bytes: usize) {
        let members = TargetSet(targets.0 & self.able.0 & !self.tried.0);
        if members.is_empty() || self.bytes_per_s == 0 {
            return;
        }
        self.tried = TargetSet(self.tried.0 | members.0);
        let span = if self.ended + self.queue.len() < LONG_MAX { SPAN } else { SPAN_SHORT };
        let all = (self.bytes_per_s as f64 * span.as_secs_f64()).min(BYTES_MAX as f64);
        let datagrams = ((all / bytes as f64) as u32).max(DATAGRAMS_MIN);
        self.queue.push_back(Train { set, members, bytes, datagrams, sent: 0, due: None, asked: None });
    }

    /// Whether any of these targets is still to be judged.
    pub(super) fn is_trying(&self, targets: TargetSet) -> bool {
        self.queue.iter().any(|train| train.members.0 & targets.0 != 0)
    }

    /// What leaves now.
    pub(super) fn due(&mut self, now: Time) -> Option<Burst> {
        let train = self.queue.front_mut().filter(|train| train.sent < train.datagrams)?;
        let due = *train.due.get_or_insert(now);
        if now < due {
            return None;
        }
        let one = Duration::from_secs_f64(train.bytes as f64 / self.bytes_per_s as f64);
        let each = ((BURST.as_secs_f64() / one.as_secs_f64()) as u32).max(1);
        let datagrams = each.min(train.datagrams - train.sent);
        train.sent += datagrams;
        train.due = Some(due.max(Time(now.0.saturating_sub(CATCH_UP.as_micros() as u64))) + one * each);
        if train.sent == train.datagrams {
            train.due = Some(now + ASK_AFTER);
        }
        Some(Burst { set: train.set, bytes: train.bytes, datagrams })
    }

    /// Who is to be asked now how much has come, and of which set.
    pub(super) fn asks(&mut self, now: Time) -> Option<(u16, TargetSet)> {
        self.expire(now);
        let train = self.queue.front_mut().filter(|train| train.sent == train.datagrams)?;
        if train.asked.is_some() || train.due.is_none_or(|due| now < due) {
            return None;
        }
        train.asked = Some(now);
        Some((train.set, train.members))
    }

    /// So much has come to a target; says if that is too little.
    pub(super) fn counted(&mut self, target: u16, set: u16, datagrams: u64) -> Option<Poor> {
        let train = self.queue.front_mut().filter(|train| train.set == set && train.asked.is_some())?;
        if !train.members.contains(TargetId(target as u8)) {
            return None;
        }
        let sent = train.datagrams;
        self.forget(target);
        let poor = Poor { sent, bytes_per_s: self.bytes_per_s };
        (datagrams.saturating_mul(REACHED_RATIO.into()) <= u64::from(sent)).then_some(poor)
    }

    /// The target is not waited for any more.
    pub(super) fn forget(&mut self, target: u16) {
        let mask = TargetSet::single(TargetId(target as u8)).0;
        self.queue.iter_mut().for_each(|train| train.members.0 &= !mask);
        self.drop_ended();
    }

    fn expire(&mut self, now: Time) {
        if let Some(train) = self.queue.front_mut()
            && train.asked.is_some_and(|asked| now >= asked + ANSWER_MAX)
        {
            train.members = TargetSet::EMPTY;
            self.drop_ended();
        }
    }

    fn drop_ended(&mut self) {
        let before = self.queue.len();
        self.queue.retain(|train| !train.members.is_empty());
        self.ended += before - self.queue.len();
    }

    /// When something is next to be done.
    pub(super) fn timeout(&self) -> Option<Time> {
        let train = self.queue.front()?;
        match train.asked {
            Some(asked) => Some(asked + ANSWER_MAX),
            None => Some(train.due.unwrap_or(Time::ZERO)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 25_000_000;

    fn set(mask: u128) -> TargetSet {
        TargetSet(mask)
    }

    /// Plays the train that is first until its question is due; how many datagrams there were, and when it was put.
    fn run(trains: &mut Trains, now: &mut Time) -> (u32, u16, TargetSet) {
        let mut datagrams = 0;
        loop {
            while let Some(burst) = trains.due(*now) {
                datagrams += burst.datagrams;
            }
            if let Some((set, members)) = trains.asks(*now) {
                return (datagrams, set, members);
            }
            *now = trains.timeout().unwrap().max(*now + Duration::from_micros(1));
        }
    }

    #[test]
    fn each_target_is_tried_once_at_the_rate() {
        let mut trains = Trains::new(RATE, set(0b0111));
        let mut now = Time(5_000_000);
        trains.line_up(3, set(0b1011), 1472);
        trains.line_up(4, set(0b0111), 1472);
        trains.line_up(5, set(0b1011), 1472);
        assert!(
            trains.is_trying(set(0b0001)) && trains.is_trying(set(0b0100)) && !trains.is_trying(set(0b1000))
        );
        let began = now;
        let (datagrams, number, members) = run(&mut trains, &mut now);
        assert_eq!((number, members), (3, set(0b0011)));
        let took = now.since(began).saturating_sub(ASK_AFTER).as_secs_f64();
        let rate = f64::from(datagrams) * 1472.0 / took;
        assert!((0.9..1.1).contains(&(rate / RATE as f64)), "{datagrams} in {took}");
        assert_eq!(trains.counted(0, 3, u64::from(datagrams / 4) + 1), None);
        assert_eq!(trains.counted(0, 3, 0), None, "it has answered");
        assert_eq!(trains.counted(1, 4, 0), None, "that has not been asked");
        let poor = Poor { sent: datagrams, bytes_per_s: RATE };
        assert_eq!(trains.counted(1, 3, u64::from(datagrams / 4)), Some(poor));
        assert!(!trains.is_trying(set(0b0011)) && trains.is_trying(set(0b0100)));
        assert_eq!(run(&mut trains, &mut now).1, 4);
        now = now + ANSWER_MAX;
        assert_eq!((trains.asks(now), trains.is_trying(set(!0)), trains.timeout()), (None, false, None));
    }

    #[test]
    fn a_late_host_does_not_send_all_at_once() {
        let mut trains = Trains::new(RATE, set(1));
        trains.line_up(0, set(1), 1472);
        let (mut now, mut most, mut all) = (Time::ZERO, 0, 0);
        while trains.asks(now).is_none() {
            let at_once: u32 = std::iter::from_fn(|| trains.due(now)).map(|burst| burst.datagrams).sum();
            (most, all) = (most.max(at_once), all + at_once);
            now = now + Duration::from_millis(13);
        }
        let allowed = (CATCH_UP + 2 * BURST).as_secs_f64() * RATE as f64 / 1472.0;
        assert!(f64::from(most) <= allowed && all > 600, "{most} at once of {all}");
    }

    #[test]
    fn many_trains_and_low_rates_take_no_longer_than_they_must() {
        let mut now = Time::ZERO;
        let mut trains = Trains::new(RATE, set(!0));
        (0..60).for_each(|number| trains.line_up(number, set(1 << number), 1472));
        for number in 0..60 {
            run(&mut trains, &mut now);
            trains.counted(number, number, 1000);
        }
        assert!(now.since(Time::ZERO) < Duration::from_millis(2500), "{now:?}");
        let mut now = Time::ZERO;
        let mut trains = Trains::new(125_000, set(!0));
        trains.line_up(0, set(3), 1472);
        assert_eq!(run(&mut trains, &mut now).0, DATAGRAMS_MIN);
        assert!(now.since(Time::ZERO) < Duration::from_millis(300), "{now:?}");
        trains.forget(0);
        assert!(trains.is_trying(set(3)) && !trains.is_trying(set(1)));
        trains.forget(1);
        assert_eq!(trains.timeout(), None);
        let mut none = Trains::default();
        none.line_up(0, set(3), 1472);
        assert!(!none.is_trying(set(3)) && none.due(now).is_none());
    }
}
