use super::worst_member::RATE_MIN;
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
    drive(&mut control, &mut now, 500, &[(fast, 0.0)]);
    let (rate, _) = drive(&mut control, &mut now, 1000, &[(fast, 0.0)]);
    assert!(rate > fast * 90 / 100, "as soon as the slowest has left: {rate}");
    drive(&mut control, &mut now, 3500, &[(fast, 0.0)]);
    let (rate, _) = drive(&mut control, &mut now, 2000, &[(fast, 0.0)]);
    assert!(rate > fast * 95 / 100, "{rate}");
}

/// When the start ends with one far slower than the others, or one becomes so, it is named; one half as fast is not.
#[test]
fn laggard_is_named_soon() {
    let due =
        |control: &WorstMember, now| control.laggard().filter(|(_, at)| now >= *at).map(|(target, _)| target);
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

/// What else comes by the first member's link.
#[derive(Clone, Copy)]
enum Other {
    /// So many bytes a second, whatever happens.
    Fixed(f64),
    /// Like TCP: it grows until a packet of it is lost, and takes less then.
    Yielding,
}

/// What we and the other get of a link, over the latter half of 20 s.
fn share_link(capacity: f64, other: Other, is_told: bool) -> (f64, f64) {
    let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
    let (step, rounds) = (Duration::from_millis(25), 800);
    let mut flow = match other {
        Other::Fixed(rate) => rate,
        Other::Yielding => capacity,
    };
    let (mut queue, mut lost, mut got, mut counted) = (0.0f64, 0.0, (0.0, 0.0), (0.0, 0.0));
    for round in 0..rounds {
        now = now + step;
        let ours = control.rate(now) as f64;
        // Bytes of this step; 8 ms may wait.
        let offered = (ours + flow) * 0.025;
        let over = (queue + offered - capacity * 0.025 - capacity * 0.008).max(0.0);
        queue = (queue + offered - over - capacity * 0.025).max(0.0);
        let passed = 1.0 - over / offered;
        let sample = Sample {
            rate: (ours * passed) as u64,
            loss: (1.0 - passed) as f32,
            queue_delay: Duration::ZERO,
            span: step,
            starved: false,
            late: false,
        };
        control.on_sample(now, 0, &sample);
        let alone = ours.min(capacity);
        control.on_sample(
            now,
            1,
            &Sample { rate: alone as u64, loss: (1.0 - alone / ours) as f32, ..sample },
        );
        counted = (counted.0 + ours * passed * 0.025, counted.1 + flow * passed * 0.025);
        if is_told && round % 4 == 3 {
            let traffic = Traffic { session: counted.0 / 0.1, others: counted.1 / 0.1 };
            control.on_traffic(now, 0, traffic);
            control.on_traffic(now, 1, Traffic { others: 0.0, ..traffic });
            counted = (0.0, 0.0);
        }
        if matches!(other, Other::Yielding) {
            lost += over * flow / (ours + flow);
            flow = (flow + 0.01 * capacity).min(capacity);
            if lost > 1500.0 {
                (flow, lost) = (flow * 0.7, 0.0);
            }
        }
        if round >= rounds / 2 {
            got = (got.0 + ours * passed, got.1 + flow * passed);
        }
    }
    let whole = capacity * f64::from(rounds / 2);
    (got.0 / whole, got.1 / whole)
}

#[test]
fn a_flow_that_yields_keeps_its_part() {
    for capacity in [1.25e7, 1.25e8, 1.25e9] {
        let (ours, flow) = share_link(capacity, Other::Yielding, true);
        assert!(flow >= 0.4 && ours >= 0.4, "{ours} and {flow} of {capacity}");
        let (_, flow) = share_link(capacity, Other::Yielding, false);
        assert!(flow < 0.3, "{flow} of {capacity}: the model yields to nobody");
    }
}

#[test]
fn beside_a_flow_of_a_fixed_rate_little_is_left_over() {
    for share in [0.005, 0.1, 0.3] {
        let (ours, flow) = share_link(1.25e8, Other::Fixed(share * 1.25e8), true);
        assert!(ours > 0.8 * (1.0 - share) && flow > 0.95 * share, "{ours} and {flow} beside {share}");
    }
}

/// Absurd counters of one member slow the others by no more than what it can say of itself anyway.
#[test]
fn nonsense_of_the_link_is_survived() {
    let (mut control, mut now) = (WorstMember::new(), Time::ZERO);
    for (session, others) in [(0.0, 1e300), (1e300, 1e300), (1.0, 0.0), (1e-300, 1e300), (1e18, 1e19)] {
        drive(&mut control, &mut now, 500, &[(125_000_000, 0.0); 2]);
        control.on_traffic(now, 0, Traffic { session, others });
        let rate = control.rate(now);
        assert!((RATE_MIN..500_000_000).contains(&rate), "{rate} after {session} and {others}");
    }
    control.on_traffic(now, 7, Traffic { session: 1.0, others: 1.0 });
    control.remove(7);
}
