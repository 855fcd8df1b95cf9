//! A token bucket that may go into debt by one transmission: exact on average, and nothing waits for a full bucket.

use std::time::Duration;

use crate::time::Time;

/// What may leave in one burst after a pause: this span's worth.
const BURST: Duration = Duration::from_millis(2);
const MICROS: i64 = 1_000_000;

#[derive(Debug)]
pub(super) struct TokenBucket {
    /// In bytes times 10^6, so that refilling every microsecond loses nothing.
    tokens: i64,
    filled: Time,
}

impl TokenBucket {
    pub(super) fn new(now: Time) -> Self {
        TokenBucket { tokens: 0, filled: now }
    }

    /// Refills at `rate` bytes a second; `true` if something may be sent.
    pub(super) fn ready(&mut self, now: Time, rate: u64) -> bool {
        let rate = i64::try_from(rate).unwrap_or(i64::MAX);
        let span = i64::try_from(now.since(self.filled).as_micros()).unwrap_or(i64::MAX);
        let full = rate.saturating_mul(BURST.as_micros() as i64);
        self.tokens = self.tokens.saturating_add(rate.saturating_mul(span)).min(full);
        self.filled = self.filled.max(now);
        self.tokens >= 0
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub((bytes as i64).saturating_mul(MICROS));
    }

    /// When something may be sent if the rate stays.
    pub(super) fn ready_at(&self, rate: u64) -> Time {
        let micros = self.tokens.min(0).unsigned_abs().div_ceil(rate.max(1));
        self.filled + Duration::from_micros(micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the step between polls, what leaves in ten seconds is the rate, and a pause earns no more than a burst.
    #[test]
    fn average_is_the_rate() {
        for (rate, step, unit) in [(125_000_000, 1, 1500), (12_345_678, 7, 64_000), (1_000_000, 1000, 1500)] {
            let (mut bucket, mut sent, mut now) = (TokenBucket::new(Time::ZERO), 0, Time::ZERO);
            while now < Time(10_000_000) {
                while bucket.ready(now, rate) {
                    bucket.take(unit);
                    sent += unit as u64;
                }
                assert!(bucket.ready_at(rate) > now);
                now = now + Duration::from_micros(step);
            }
            let expected = rate * 10;
            assert!(sent.abs_diff(expected) <= 2 * unit as u64 + rate / 100, "{sent} for {expected}");
            now = now + Duration::from_secs(60);
            let mut burst = 0;
            while bucket.ready(now, rate) {
                bucket.take(unit);
                burst += unit as u64;
            }
            assert!(burst <= rate * 2 / 1000 + 2 * unit as u64);
        }
    }

    #[test]
    fn says_when() {
        let mut bucket = TokenBucket::new(Time(5));
        assert!(bucket.ready(Time(5), 1_000_000));
        bucket.take(1000);
        assert!(!bucket.ready(Time(1004), 1_000_000));
        assert_eq!(bucket.ready_at(1_000_000), Time(1005));
        assert!(bucket.ready(Time(1005), 1_000_000));
    }
}
