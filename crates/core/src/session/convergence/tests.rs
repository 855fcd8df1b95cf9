//! A model of QEMU's rounds: a guest of some pages that dirties so many a second, over a stream that carries so many.

use super::*;

const SHARE: f64 = 4_096_000.0;
/// Pages a second that the share carries.
const CARRIES: u64 = 1_000;
const PAGES: u64 = 5_000;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

fn policy(max_downtime: Duration, deadline: Option<Duration>) -> ConvergencePolicy {
    ConvergencePolicy { max_downtime, deadline }
}

/// How a stream ended, and when.
#[derive(Debug)]
enum End {
    /// With so many pages left to send.
    Stopped {
        left: u64,
    },
    GivenUp(GivenUp),
}

/// Plays rounds in which `dirties(second)` pages a second are dirtied, of a working set of `set` pages.
fn play(policy: ConvergencePolicy, set: u64, dirties: impl Fn(f64) -> u64) -> (End, Duration) {
    let mut machine = Convergence::new(policy, PAGES, SHARE, true, Time::ZERO, Time::ZERO);
    let (mut now, mut round, mut records) = (Time::ZERO, 1, 0.0);
    let (mut pending, mut dirty) = (PAGES as f64, 0.0);
    loop {
        now = now + LOOK;
        let seconds = now.since(Time::ZERO).as_secs_f64();
        let step = (CARRIES as f64 * LOOK.as_secs_f64()).min(pending);
        (pending, records) = (pending - step, records + step);
        dirty = (dirty + dirties(seconds) as f64 * LOOK.as_secs_f64()).min(set as f64);
        let view = QemuView { round, apparent_bytes_per_s: SHARE, throttle_percent: 0 };
        let limits = machine.observe(now, view, records as u64);
        let threshold =
            limits.avail_switchover_bandwidth.unwrap_or(0) as f64 * limits.downtime_limit_ms as f64 / 1e3;
        if pending * PAGE_SIZE as f64 <= threshold {
            // QEMU looks again before it stops the guest.
            (pending, dirty, round) = (pending + dirty, 0.0, round + 1);
            if pending * PAGE_SIZE as f64 <= threshold {
                return (End::Stopped { left: pending as u64 }, now.since(Time::ZERO));
            }
        }
        if let Some(why) = machine.given_up(now) {
            return (End::GivenUp(why), now.since(Time::ZERO));
        }
        assert!(seconds < 3600.0, "it never ends");
    }
}

fn seconds(span: u64) -> Duration {
    Duration::from_secs(span)
}

#[test]
fn a_quiet_guest_stops_soon_and_briefly() {
    let (end, took) = play(ConvergencePolicy::default(), PAGES, |_| 20);
    assert!(matches!(end, End::Stopped { left } if left <= 25), "{end:?}");
    assert!(took < seconds(7), "{took:?}");
}

#[test]
fn one_that_dirties_faster_than_its_stream_is_given_up_with_its_rate() {
    // The first round takes 5 s, so the patience is the least.
    let (end, took) = play(ConvergencePolicy::default(), 3_000, |_| 2_000);
    let End::GivenUp(GivenUp::NotConverging { after, rate }) = &end else { panic!("{end:?}") };
    assert!(*after > PATIENCE_MIN && *after < PATIENCE_MIN + seconds(1));
    assert!(took < seconds(67));
    // 3,000 pages are dirtied within a round of 3 s, each counted once.
    assert!((900.0..1_100.0).contains(&rate.pages_per_s), "{rate:?}");
    assert!((900.0..1_100.0).contains(&rate.carried_pages_per_s), "{rate:?}");
    let text = match end {
        End::GivenUp(why) => why.to_string(),
        End::Stopped { .. } => unreachable!(),
    };
    assert!(text.contains("MB/s") && text.contains("pages/s") && text.contains("--auto-converge"), "{text}");
}

#[test]
fn patience_grows_with_the_first_round() {
    let mut machine =
        Convergence::new(ConvergencePolicy::default(), PAGES, SHARE, true, Time::ZERO, Time::ZERO);
    let at = |span| Time::ZERO + seconds(span);
    let view = |round| QemuView { round, apparent_bytes_per_s: SHARE, throttle_percent: 0 };
    for second in 1..=600 {
        machine.observe(at(second), view(1), second);
        assert_eq!(machine.given_up(at(second)), None, "a first round may take its time");
    }
    for second in 601..=1_801 {
        machine.observe(at(second), view(2), second);
        assert_eq!(machine.given_up(at(second)), None, "{second}");
    }
    machine.observe(at(1_804), view(2), 1_804);
    assert!(matches!(machine.given_up(at(1_804)), Some(GivenUp::NotConverging { .. })));
}

/// The same guest as above: what its rounds need is allowed as soon as it is known that they do not shrink.
#[test]
fn a_longer_stop_lets_it_through_and_no_longer_than_needed() {
    let (end, took) = play(policy(seconds(10), None), 3_000, |_| 2_000);
    let End::Stopped { left } = end else { panic!("{end:?}") };
    assert!((2_000..=3_800).contains(&left), "{left} pages left: not much more than a round has");
    assert!(took < seconds(25), "{took:?}");
    // One that needs more than is allowed does not stop.
    let (end, _) = play(policy(seconds(2), None), 3_000, |_| 2_000);
    assert!(matches!(end, End::GivenUp(GivenUp::NotConverging { .. })), "{end:?}");
}

#[test]
fn a_guest_that_calms_down_is_waited_for() {
    let calms = |second| if second < 30.0 { 2_000 } else { 10 };
    let (end, took) = play(ConvergencePolicy::default(), 3_000, calms);
    assert!(matches!(end, End::Stopped { .. }) && took > seconds(30), "{end:?} after {took:?}");
}

#[test]
fn a_deadline_holds_in_the_first_round_and_later() {
    let (end, took) = play(policy(DOWNTIME_MAX, Some(seconds(3))), 3_000, |_| 2_000);
    let End::GivenUp(why) = end else { panic!("{end:?}") };
    assert!(matches!(why, GivenUp::DeadlineInFirstRound { pages: PAGES, records: 1..PAGES, .. }), "{why:?}");
    assert!(took < Duration::from_millis(3_100));
    let (end, took) = play(policy(DOWNTIME_MAX, Some(seconds(20))), 3_000, |_| 2_000);
    let End::GivenUp(why) = end else { panic!("{end:?}") };
    assert!(matches!(why, GivenUp::Deadline { .. }), "{why:?}");
    assert!(why.to_string().contains("pages/s") && took < Duration::from_millis(20_100), "{why} {took:?}");
    // It stands in place of the default patience, also where it is longer.
    let (_, took) = play(policy(DOWNTIME_MAX, Some(seconds(200))), 3_000, |_| 2_000);
    assert!(took > seconds(199));
}

#[test]
fn a_stream_that_stands_still_is_given_up_whatever_the_deadline() {
    let mut machine = Convergence::new(
        policy(DOWNTIME_MAX, Some(seconds(3600))),
        PAGES,
        SHARE,
        true,
        Time::ZERO,
        Time::ZERO,
    );
    let at = |span| Time::ZERO + seconds(span);
    machine.progress(at(5), 17);
    machine.progress(at(30), 17);
    assert_eq!(machine.given_up(at(35)), None);
    assert_eq!(machine.given_up(at(36)), Some(GivenUp::Stalled));
}

#[test]
fn the_throttle_is_remembered() {
    let mut machine =
        Convergence::new(ConvergencePolicy::default(), PAGES, SHARE, false, Time::ZERO, Time::ZERO);
    for throttle_percent in [0, 20, 60, 0] {
        machine.observe(Time::ZERO, QemuView { round: 3, apparent_bytes_per_s: 1.0, throttle_percent }, 1);
    }
    assert_eq!(machine.throttled_percent(), 60);
}
