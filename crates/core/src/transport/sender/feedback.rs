//! What reports say about the paths: which of what was sent has arrived, how fast, with what loss and delay.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::time::Time;
use crate::transport::{LINK_INTERVAL, LOSS_DELAY_DEFAULT, Sample, Traffic};
use crate::wire::control::{LinkCounters, Report};

/// Multicast transmissions that are remembered, and for how long.
const HISTORY_RUNS_MAX: usize = 65_536;
const HISTORY_SPAN: Duration = Duration::from_secs(4);
/// A host that comes too late before so many of its transmissions is busy; how much the latest one counts.
const LATE_SHARE_BUSY: f32 = 0.12;
const LATE_SMOOTHING: f32 = 0.005;
/// A sample covers at least this, and as many datagrams or the longer span.
const SAMPLE_SPAN_MIN: Duration = Duration::from_millis(25);
const SAMPLE_SPAN_LONG: Duration = Duration::from_millis(250);
const SAMPLE_DATAGRAMS: u64 = 200;
/// What headers add to a piece on the link, at most: those of TCP over IPv6 in full packets of 1514 bytes. Datagrams have less, and so has what the
/// kernel joins before it counts: others are taken for a little less than they are then, never for more.
const HEADERS: f64 = 1.06;
const LOSS_DELAY_MIN: Duration = Duration::from_millis(30);
const LOSS_DELAY_MAX: Duration = Duration::from_secs(1);

/// One multicast transmission.
#[derive(Clone, Copy, Debug)]
struct Run {
    set: u16,
    /// One more than its last packet number.
    below: u64,
    at: Time,
    /// Bytes sent by multicast until its end, over all sets.
    bytes: u64,
    /// Pauses until then for want of something to send, and of time to send it.
    pauses: u64,
    late: u64,
}

/// What has left by multicast lately.
#[derive(Debug, Default)]
pub(super) struct History {
    runs: VecDeque<Run>,
    /// How many runs have left the front.
    forgotten: u64,
    bytes: u64,
    pauses: u64,
    late: u64,
    /// What could have left since the last transmission was not there, or had no room in the socket: who did not send it was not late.
    is_excused: bool,
    /// Share of the latest transmissions before which this host came too late.
    late_share: f32,
}

impl History {
    pub(super) fn sent(&mut self, now: Time, set: u16, below: u64, bytes: usize) {
        self.bytes += bytes as u64;
        self.is_excused = false;
        let is_late = self.runs.back().is_some_and(|last| last.late != self.late);
        self.late_share += (f32::from(is_late as u8) - self.late_share) * LATE_SMOOTHING;
        self.runs.push_back(Run {
            set,
            below,
            at: now,
            bytes: self.bytes,
            pauses: self.pauses,
            late: self.late,
        });
        while self.runs.len() > HISTORY_RUNS_MAX || now.since(self.runs[0].at) > HISTORY_SPAN {
            self.runs.pop_front();
            self.forgotten += 1;
        }
    }

    /// Whether this host, and not the path, is what limits the rate.
    pub(super) fn is_busy(&self) -> bool {
        self.late_share > LATE_SHARE_BUSY
    }

    /// Something could have been sent, and there was nothing.
    pub(super) fn paused(&mut self) {
        self.pauses += 1;
        self.is_excused = true;
    }

    /// The last transmission had to wait until the socket had room.
    pub(super) fn waited(&mut self) {
        self.is_excused = true;
    }

    /// Whether there was nothing to send since the last transmission, or no room for it.
    pub(super) fn is_excused(&self) -> bool {
        self.is_excused
    }

    /// The sender was asked too late to keep its pace.
    pub(super) fn was_late(&mut self) {
        self.late += 1;
    }
}

/// What one target's reports have told.
#[derive(Debug, Default)]
pub(super) struct PathState {
    /// Per set, one more than the highest packet number seen there.
    seen: HashMap<u16, u64>,
    /// Sum of the same: datagrams that should have arrived.
    expected: u64,
    /// The first run, counted from the session's start, that is not known to have arrived.
    cursor: u64,
    mark: Option<Mark>,
    delay: Option<Delay>,
    /// The least delay of the current sample.
    least_delay: Option<Duration>,
    link: Option<LinkCounters>,
    /// Bytes of datagrams that should have arrived and have not, by now and at the last word of the link.
    lost_bytes: u64,
    lost_before: u64,
}

/// Where the current sample began.
#[derive(Clone, Copy, Debug)]
struct Mark {
    run: Run,
    clock_us: u64,
    received: u64,
    expected: u64,
}

/// Time from sending to the report, smoothed as in RFC 6298.
#[derive(Clone, Copy, Debug)]
struct Delay {
    smoothed: Duration,
    variation: Duration,
    lowest: Duration,
}

impl PathState {
    /// Packet numbers of the set below this have arrived, been lost or been overtaken.
    pub(super) fn seen_below(&self, set: u16) -> u64 {
        self.seen.get(&set).copied().unwrap_or(0)
    }

    /// A piece that nothing follows counts as lost after this.
    pub(super) fn loss_delay(&self) -> Duration {
        self.delay.map_or(LOSS_DELAY_DEFAULT, |delay| {
            (delay.smoothed + 4 * delay.variation).clamp(LOSS_DELAY_MIN, LOSS_DELAY_MAX)
        })
    }

    /// Takes in a report whose packet numbers have been checked.
    pub(super) fn on_report(&mut self, now: Time, report: &Report, history: &History) -> Option<Sample> {
        for (set, below) in &report.seen {
            let before = self.seen.entry(*set).or_default();
            self.expected += below.saturating_sub(*before);
            *before = (*before).max(*below);
        }
        let lost = self.expected.saturating_sub(report.received_datagrams);
        let mean = report.received_bytes / report.received_datagrams.max(1);
        self.lost_bytes = self.lost_bytes.max(lost.saturating_mul(mean));
        let run = self.latest_arrived(history)?;
        let delay = self.measure_delay(now.since(run.at));
        let here = Mark {
            run,
            clock_us: report.clock_us,
            received: report.received_datagrams,
            expected: self.expected,
        };
        let Some(mark) = self.mark else {
            self.mark = Some(here);
            return None;
        };
        let elapsed = Duration::from_micros(here.clock_us.saturating_sub(mark.clock_us));
        let expected = here.expected - mark.expected;
        if elapsed < SAMPLE_SPAN_MIN || (expected < SAMPLE_DATAGRAMS && elapsed < SAMPLE_SPAN_LONG) {
            return None;
        }
        self.mark = Some(here);
        let received = here.received.saturating_sub(mark.received);
        let arrived = (received as f64 / expected.max(1) as f64).min(1.0);
        let span = elapsed.max(run.at.since(mark.run.at)).as_secs_f64();
        Some(Sample {
            rate: ((run.bytes - mark.run.bytes) as f64 * arrived / span) as u64,
            loss: (1.0 - arrived) as f32,
            queue_delay: self.least_delay.take().unwrap_or(delay.lowest).saturating_sub(delay.lowest),
            span: elapsed,
            starved: run.pauses != mark.run.pauses,
            late: run.late != mark.run.late,
        })
    }

    /// Takes in what the link has brought: all of it since the last time. What was lost of the session's datagrams may have been lost
    /// behind the link, by a host without time: it is none of the others'.
    pub(super) fn on_link_counters(&mut self, now: &LinkCounters) -> Option<Traffic> {
        let lost = self.lost_bytes - std::mem::replace(&mut self.lost_before, self.lost_bytes);
        let before = self.link.replace(*now)?;
        let span = Duration::from_micros(now.clock_us.saturating_sub(before.clock_us));
        if span < LINK_INTERVAL / 2 {
            return None;
        }
        let rate = |bytes: u64| bytes as f64 / span.as_secs_f64();
        let session = rate(now.session_bytes.saturating_sub(before.session_bytes)) * HEADERS;
        let all = rate(now.link_bytes.saturating_sub(before.link_bytes));
        let others = (all - session - rate(lost) * HEADERS).max(0.0);
        Some(Traffic { session, others })
    }

    /// The latest run of which all is below what has been seen.
    fn latest_arrived(&mut self, history: &History) -> Option<Run> {
        let skip = self.cursor.saturating_sub(history.forgotten) as usize;
        let mut latest = None;
        for (at, run) in history.runs.iter().enumerate().skip(skip) {
            if self.seen_below(run.set) >= run.below {
                latest = Some((at, *run));
            }
        }
        let (at, run) = latest?;
        self.cursor = history.forgotten + at as u64 + 1;
        Some(run)
    }

    fn measure_delay(&mut self, sample: Duration) -> Delay {
        let delay = match self.delay {
            None => Delay { smoothed: sample, variation: sample / 2, lowest: sample },
            Some(old) => Delay {
                smoothed: (old.smoothed * 7 + sample) / 8,
                variation: (old.variation * 3 + old.smoothed.abs_diff(sample)) / 4,
                lowest: old.lowest.min(sample),
            },
        };
        self.delay = Some(delay);
        self.least_delay = Some(self.least_delay.map_or(sample, |least| least.min(sample)));
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(clock_ms: u64, link_bytes: u64, session_bytes: u64) -> LinkCounters {
        LinkCounters { clock_us: clock_ms * 1000, link_bytes, session_bytes }
    }

    #[test]
    fn others_are_what_is_neither_ours_nor_lost_of_ours() {
        let mut path = PathState::default();
        assert_eq!(path.on_link_counters(&counters(100, 7_000_000, 0)), None, "the first says nothing");
        let traffic = path.on_link_counters(&counters(200, 17_000_000, 1_000_000)).unwrap();
        assert!((traffic.session / 10_600_000.0 - 1.0).abs() < 0.001, "{traffic:?}");
        assert!((traffic.others / 89_400_000.0 - 1.0).abs() < 0.001, "{traffic:?}");
        // 2,000 of 3,000 datagrams were lost, perhaps behind the link.
        let report = Report {
            seen: vec![(1, 3_000)],
            received_datagrams: 1_000,
            received_bytes: 1_400_000,
            ..Report::default()
        };
        path.on_report(Time::ZERO, &report, &History::default());
        let traffic = path.on_link_counters(&counters(300, 27_000_000, 2_000_000)).unwrap();
        assert!(
            (traffic.others / (89_400_000.0 - 10.0 * 2_800_000.0 * 1.06) - 1.0).abs() < 0.001,
            "{traffic:?}"
        );
    }

    #[test]
    fn busy_host_is_one_that_is_often_late() {
        let mut history = History::default();
        let mut send = |late_every: u64| {
            for run in 0..1_000 {
                if run % late_every == 0 {
                    history.was_late();
                    history.was_late();
                }
                history.sent(Time(run), 0, run, 1_000);
            }
            history.is_busy()
        };
        assert_eq!([send(1_000), send(2), send(10), send(3)], [false, true, false, true]);
    }

    /// Who had nothing to send, or no room for it, was not late; from the next transmission on it may be again.
    #[test]
    fn excuse_holds_until_the_next_transmission() {
        let mut history = History::default();
        for excuse in [History::paused, History::waited] {
            excuse(&mut history);
            assert!(history.is_excused());
            history.sent(Time(1), 0, 1, 1_000);
            assert!(!history.is_excused());
        }
    }

    /// Counters of an interface that has gone and come again, and a clock that stands still.
    #[test]
    fn counters_that_fall_say_nothing() {
        let mut path = PathState::default();
        path.on_link_counters(&counters(100, u64::MAX, u64::MAX));
        let traffic = path.on_link_counters(&counters(200, 5, 5)).unwrap();
        assert_eq!(traffic, Traffic { session: 0.0, others: 0.0 });
        assert_eq!(path.on_link_counters(&counters(200, u64::MAX, 9)), None);
        assert_eq!(path.on_link_counters(&counters(10, u64::MAX, 9)), None);
    }
}
