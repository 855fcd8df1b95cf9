//! Whether a VM's stream uses its share of the link, or waits for a target that takes too little.
//!
//! Few streams flow at once, so that each is short. One whose target stalls must not keep a place among them: it goes on as
//! it can, beside the others (rule 7). It leaves the session when its target takes next to nothing for [`SLOW_MAX`].

use std::time::Duration;

use crate::limits::YIELDING_STREAMS_MAX;
use crate::time::Time;

/// How long a stream is looked at before it is called slow.
pub const SLOW_WINDOW: Duration = Duration::from_secs(2);
/// A stream that waits for its target and carries less than this part of its share is slow.
pub const SLOW_PART: f64 = 0.25;
/// With less than this part of its share, for [`SLOW_MAX`], it is given up.
pub const CRAWL_PART: f64 = 1.0 / 32.0;
/// See [`CRAWL_PART`].
pub const SLOW_MAX: Duration = Duration::from_secs(120);

/// A stream's pace, looked at now and then.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second that the link carries for it.
    share: f64,
    since: Time,
    carried: u64,
    /// It has waited for its target whenever it was looked at.
    waited: bool,
    slow: bool,
    /// Since when it crawls, and what it had carried then.
    crawling: Option<(Time, u64)>,
}

/// A target that takes next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "the target takes {bytes_per_s:.0} bytes/s of its stream, for {} s now, and the link carries {share:.0} for it \
     (--deadline sets another limit)", .span.as_secs()
)]
pub struct Crawls {
    bytes_per_s: f64,
    share: f64,
    span: Duration,
}

impl Pace {
    /// Of a stream that is released at `now`, and for which the link carries `share` bytes a second.
    pub fn new(share: f64, now: Time) -> Self {
        Pace { share, since: now, carried: 0, waited: true, slow: false, crawling: None }
    }

    /// `carried` are the plain bytes of the stream that its target has written so far; `waits`: it has as much in flight as
    /// it may. Gives back whether it is slow.
    pub fn observe(&mut self, now: Time, carried: u64, waits: bool) -> bool {
        self.waited &= waits;
        let span = now.since(self.since);
        if span < SLOW_WINDOW {
            return self.slow;
        }
        let part = (carried - self.carried) as f64 / (self.share.max(1.0) * span.as_secs_f64());
        self.slow = self.waited && part < SLOW_PART;
        self.crawling = match self.crawling {
            _ if !self.waited || part >= CRAWL_PART => None,
            crawling => crawling.or(Some((self.since, self.carried))),
        };
        (self.since, self.carried, self.waited) = (now, carried, waits);
        self.slow
    }

    /// Whether the target has taken next to nothing for too long.
    pub fn crawls(&self) -> Option<Crawls> {
        let (since, before) = self.crawling?;
        let span = self.since.since(since);
        let bytes_per_s = (self.carried - before) as f64 / span.as_secs_f64();
        (span > SLOW_MAX).then_some(Crawls { bytes_per_s, share: self.share, span })
    }
}

/// Streams that may be started beside `flowing` ones, `yielding` of which are slow, where `streams_max` are to flow.
pub(super) fn streams_free(streams_max: usize, flowing: usize, yielding: usize) -> usize {
    let counted = flowing - yielding.min(flowing).min(YIELDING_STREAMS_MAX);
    streams_max.saturating_sub(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: f64 = 1e6;

    fn at(ms: u64) -> Time {
        Time(ms * 1000)
    }

    /// Looks every quarter of a second at a stream that carries so much a second.
    fn play(
        pace: &mut Pace,
        from_ms: u64,
        to_ms: u64,
        carried: &mut u64,
        bytes_per_s: u64,
        waits: bool,
    ) -> bool {
        let mut slow = false;
        for ms in (from_ms..to_ms).step_by(250) {
            *carried += bytes_per_s / 4;
            slow = pace.observe(at(ms + 250), *carried, waits);
        }
        slow
    }

    #[test]
    fn one_that_waits_and_carries_little_is_slow_within_the_window() {
        let (mut pace, mut carried) = (Pace::new(SHARE, at(0)), 0);
        assert!(!play(&mut pace, 0, 1_750, &mut carried, 0, true));
        assert!(play(&mut pace, 1_750, 2_000, &mut carried, 0, true));
        // It recovers as fast.
        assert!(!play(&mut pace, 2_000, 4_000, &mut carried, 900_000, true));
    }

    #[test]
    fn one_that_is_quiet_by_itself_is_not_slow() {
        let (mut pace, mut carried) = (Pace::new(SHARE, at(0)), 0);
        assert!(!play(&mut pace, 0, 20_000, &mut carried, 0, false), "its guest or QEMU has nothing to say");
        assert!(
            !play(&mut pace, 20_000, 40_000, &mut carried, 300_000, true),
            "it has its share of a busy link"
        );
    }

    #[test]
    fn a_crawl_is_given_up_and_a_slow_walk_is_not() {
        let (mut pace, mut carried) = (Pace::new(SHARE, at(0)), 0);
        assert!(play(&mut pace, 0, 300_000, &mut carried, 200_000, true));
        assert_eq!(pace.crawls(), None);
        play(&mut pace, 300_000, 418_000, &mut carried, 10_000, true);
        assert_eq!(pace.crawls(), None);
        play(&mut pace, 418_000, 424_000, &mut carried, 10_000, true);
        let text = pace.crawls().expect("it crawls").to_string();
        assert!(text.starts_with("the target takes 10000 bytes/s of its stream, for 12"), "{text}");
        play(&mut pace, 424_000, 426_000, &mut carried, 500_000, true);
        assert_eq!(pace.crawls(), None);
    }

    #[test]
    fn slow_streams_make_room_for_others_up_to_a_limit() {
        assert_eq!(streams_free(2, 0, 0), 2);
        assert_eq!(streams_free(2, 2, 0), 0);
        assert_eq!(streams_free(2, 2, 1), 1);
        assert_eq!(streams_free(2, 3, 3), 2);
        let most = YIELDING_STREAMS_MAX + 2;
        assert_eq!(streams_free(2, most, most), 0);
    }
}
