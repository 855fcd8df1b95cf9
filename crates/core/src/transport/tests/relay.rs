//! Frames that targets pass on to each other, and groups that fall silent.

use std::time::Duration;

use super::world::{Net, World};
use super::{SECOND, megabytes};
use crate::limits::SCATTER_SILENCE_MAX;
use crate::time::Time;
use crate::transport::{Expulsion, SenderConfig};

/// A network on which TCP gets what there is.
fn swift() -> Net {
    Net { tcp_share: 1, ..Net::default() }
}

fn add_all_hops(world: &mut World) {
    let hosts = world.hosts.len() as u16;
    for from in 0..hosts {
        (0..hosts).filter(|to| *to != from).for_each(|to| world.sender.add_hop(from, to));
    }
}

/// Three targets that multicast does not reach.
fn relayed(seed: u64) -> World {
    let mut world = World::new(seed, 3, swift(), SenderConfig::default());
    world.add_set(1, &[0, 1, 2], false);
    add_all_hops(&mut world);
    world
}

/// Egress within 3 % of multicast's, and each target passes on about as much as the others.
#[test]
fn relayed_frames_leave_the_source_once() {
    let mut multicast = World::new(40, 3, swift(), SenderConfig::default());
    multicast.add_set(1, &[0, 1, 2], true);
    multicast.scatter(&[1], 600, 100_000, 10 * SECOND);
    let mut world = relayed(40);
    world.scatter(&[1], 600, 100_000, 10 * SECOND);
    world.check_arrival();
    let counters = world.sender.counters();
    assert_eq!((counters.unicast_pieces, world.repairs(), world.multicast_bytes), (0, 0, 0), "{counters:?}");
    let share = world.tcp_bytes as f64 / multicast.multicast_bytes as f64;
    println!("{share:.3} of multicast's bytes in {} against {}", world.now.0, multicast.now.0);
    assert!(share < 1.03, "{share}");
    let expected: u64 = world.bodies.values().map(|(_, body)| body.len() as u64).sum();
    for host in &world.hosts {
        let share = host.passed_on as f64 / (expected as f64 * 2.0 / 3.0);
        assert!((0.9..1.1).contains(&share), "passes on {share} of its share");
    }
}

/// A hop that breaks and is said to, one that swallows everything, and a target that dies: the others get it all, each from another.
#[test]
fn broken_hops_are_routed_around() {
    for is_said in [true, false] {
        let mut world = relayed(41);
        world.scatter(&[1], 200, 100_000, 10 * SECOND);
        world.cut.insert((0, 1), is_said);
        let begun = world.now;
        world.scatter(&[1], 400, 100_000, 10 * SECOND);
        world.check_arrival();
        let took = world.now.since(begun);
        println!("said {is_said}: {took:?}, {:?}", world.sender.counters());
        assert!(world.expelled.is_empty());
        assert!(took < if is_said { SECOND } else { 4 * SECOND }, "{took:?}");
        // What was under way is sent once more, and chains go the other way round from then on.
        let counters = world.sender.counters();
        assert!(counters.unicast_pieces + world.repairs() < counters.relay_pieces / 4, "{counters:?}");
    }
    let mut world = relayed(42);
    world.scatter(&[1], 200, 100_000, 10 * SECOND);
    world.hosts[1].dead = true;
    world.scatter(&[1], 400, 100_000, SCATTER_SILENCE_MAX + 5 * SECOND);
    assert_eq!(world.expelled, [(1, Expulsion::Silent)]);
    world.check_arrival();
}

/// Who gets nothing any more since the hop before it has broken is not taken for a slow target, on slow links neither.
#[test]
fn cut_hop_is_not_taken_for_a_slow_target() {
    for share in [1, 4, 10, 20] {
        let mut world = relayed(50);
        world.hosts.iter_mut().for_each(|host| host.rate /= share);
        world.scatter(&[1], 1000 / share, 100_000, 10 * SECOND);
        world.cut.insert((0, 1), false);
        world.scatter(&[1], 1000 / share, 100_000, 30 * SECOND);
        world.check_arrival();
        println!("{share}: {:?}, {:?}", world.now, world.sender.counters());
        assert_eq!(world.expelled, [], "{share}");
    }
}

/// A chain goes at the pace of its slowest target, down to a third of what the others could take, and next to nothing is sent twice for it.
#[test]
fn chains_go_at_the_pace_of_the_slowest() {
    for (share, seconds_max) in [(1, 1.1), (2, 2.2), (3, 3.3)] {
        let mut world = relayed(43);
        world.hosts[2].rate /= share;
        world.scatter(&[1], 1250, 100_000, 20 * SECOND);
        world.check_arrival();
        let seconds = world.now.since(Time::ZERO).as_secs_f64();
        println!("{share}: {seconds} s, {:?}", world.sender.counters());
        assert!(world.expelled.is_empty() && seconds < seconds_max, "{:?}, {seconds} s", world.expelled);
        assert!(world.tcp_bytes < 125_000_000 * 110 / 100, "{}", world.tcp_bytes);
    }
}

/// One that takes a fifth or less leaves, whichever way the others get theirs, and they go on as if it had never been there.
#[test]
fn slow_target_leaves_chains() {
    for (ways, share) in [("chains", 5), ("chains", 30), ("multicast", 6), ("TCP", 6)] {
        let mut world = World::new(47, 3, swift(), SenderConfig::default());
        world.add_set(1, &[0, 1, 2], ways == "multicast");
        match ways {
            "chains" => add_all_hops(&mut world),
            "multicast" => world.sender.serve_by_unicast(1, 2),
            _ => {}
        }
        world.hosts[2].rate /= share;
        world.scatter(&[1], 5000, 100_000, 40 * SECOND);
        world.check_arrival();
        let seconds = world.now.since(Time::ZERO).as_secs_f64();
        println!("{ways}, {share}: {seconds} s, {:?}", world.sender.counters());
        assert_eq!(world.expelled, [(2, Expulsion::Laggard)], "{ways}");
        assert!(seconds < 6.0, "450 MB take 3.6 s, and a second and a half to find out: {seconds} s");
    }
}

/// Nobody leaves for want of a processor now and then, or because two are slow.
#[test]
fn chains_keep_who_is_slow_for_a_moment_or_not_alone() {
    let mut world = relayed(48);
    world.hosts[1].write = Duration::from_millis(2);
    world.scatter(&[1], 1000, 100_000, 20 * SECOND);
    world.hosts[1].write = Duration::from_millis(40);
    world.scatter(&[1], 15, 100_000, 20 * SECOND);
    world.hosts[1].write = Duration::from_millis(2);
    // It stands still for most of a second, again and again.
    world.hosts[1].runs = Some((Duration::from_millis(200), Duration::from_millis(1100)));
    world.scatter(&[1], 1000, 100_000, 40 * SECOND);
    world.check_arrival();
    assert_eq!(world.expelled, []);
    let mut world = relayed(49);
    world.hosts[1..].iter_mut().for_each(|host| host.rate /= 8);
    world.scatter(&[1], 800, 100_000, 20 * SECOND);
    world.check_arrival();
    assert_eq!(world.expelled, []);
}

/// A switch that forgets who wants a group: what was under way, and what follows, comes over TCP within two seconds.
#[test]
fn group_that_falls_silent_is_left_within_two_seconds() {
    for silent in [vec![1], vec![0, 1, 2]] {
        let mut world = World::new(44, 3, swift(), megabytes(50));
        world.add_set(1, &[0, 1, 2], true);
        add_all_hops(&mut world);
        world.hosts.iter_mut().for_each(|host| host.loss = 0.01);
        world.scatter(&[1], 300, 100_000, 10 * SECOND);
        assert!(world.unheard.is_empty());
        silent.iter().for_each(|target| world.hosts[usize::from(*target)].deaf = true);
        let begun = world.now;
        world.scatter(&[1], 600, 100_000, 10 * SECOND);
        world.check_arrival();
        let took = world.now.since(begun);
        println!("{silent:?}: {took:?}, {:?}", world.sender.counters());
        let mut unheard: Vec<u16> = world.unheard.iter().map(|(target, _)| *target).collect();
        unheard.sort();
        assert_eq!(unheard, silent);
        let latest = world.unheard.iter().map(|(_, at)| at.since(begun)).max().unwrap();
        assert!(latest < Duration::from_millis(1500), "{latest:?}");
        // 60 MB at 50 MB/s, a second to find out, and what was under way once more.
        assert!(took < 5 * SECOND, "{took:?}");
        assert!(world.expelled.is_empty());
    }
}

/// At a low rate a frame takes a tenth of a second, and there are times when nobody misses anything.
#[test]
fn silence_is_found_at_a_low_rate() {
    let mut world = World::new(46, 2, swift(), megabytes(6));
    world.add_set(1, &[0, 1], true);
    add_all_hops(&mut world);
    world.scatter(&[1], 5, 600_000, 10 * SECOND);
    world.hosts.iter_mut().for_each(|host| host.deaf = true);
    let begun = world.now;
    world.scatter(&[1], 40, 600_000, 20 * SECOND);
    world.check_arrival();
    println!("{:?} after {begun:?}, {:?}", world.unheard, world.sender.counters());
    let latest = world.unheard.iter().map(|(_, at)| at.since(begun)).max();
    assert!(world.unheard.len() == 2 && latest < Some(Duration::from_millis(1500)), "{:?}", world.unheard);
}

/// Where multicast gets to nobody but for a small part, that is said within two seconds; not where it is slow, or loses as a bad link does.
#[test]
fn throttled_multicast_is_found() {
    let cases = [
        (SenderConfig::default(), 1, 0.9, true),
        (megabytes(20), 1, 0.9, true),
        (SenderConfig::default(), 40, 0.0, true),
        (SenderConfig::default(), 10, 0.1, false),
        (megabytes(3), 20, 0.3, false),
    ];
    for (config, slow, loss, expected) in cases {
        let mut world = World::new(51, 3, swift(), config);
        world.add_set(1, &[0, 1, 2], true);
        world.hosts.iter_mut().for_each(|host| (host.rate, host.loss) = (host.rate / slow, loss));
        world.scatter(&[1], if slow > 1 { 600 } else { 150 }, 100_000, 120 * SECOND);
        world.check_arrival();
        println!("{slow}, {loss}: {:?}, all after {:?}", world.throttled, world.now);
        assert_eq!(world.throttled.is_some(), expected, "{slow}, {loss}");
        assert!(world.throttled.is_none_or(|at| at < Time::ZERO + 2 * SECOND), "{:?}", world.throttled);
    }
}

/// Loss is no silence, and neither is a host without a processor.
#[test]
fn what_is_lost_or_late_is_not_taken_for_silence() {
    let mut world = World::new(45, 3, Net::default(), SenderConfig::default());
    world.add_set(1, &[0, 1, 2], true);
    add_all_hops(&mut world);
    world.hosts[0].loss = 0.3;
    world.hosts[1].runs = Some((Duration::from_millis(40), Duration::from_millis(1000)));
    world.hosts[2].write = Duration::from_millis(30);
    world.scatter(&[1], 300, 60_000, 60 * SECOND);
    world.check_arrival();
    assert!(world.unheard.is_empty(), "{:?}", world.unheard);
}

/// All at once, from seeds: some hops, some sets by multicast, loss, silence, cuts with and without notice, a target that dies, one
/// that is slow. `TRANSPORT_SEEDS=N` runs more of them.
#[test]
fn seeded_faults_lose_nothing() {
    let seeds = std::env::var("TRANSPORT_SEEDS").map_or(60, |text| text.parse().expect("a number"));
    for seed in 0..seeds {
        println!("seed {seed}");
        let config = SenderConfig {
            unicast_window_bytes: 256 * 1024,
            repair_window_bytes: 2 << 20,
            ..if seed % 3 == 0 { megabytes(30) } else { SenderConfig::default() }
        };
        let mut world = World::new(seed, 4, swift(), config);
        world.add_set(1, &[0, 1, 2, 3], false);
        world.add_set(2, &[0, 2, 3], true);
        world.add_set(3, &[1, 2], seed % 2 == 0);
        for from in 0..4 {
            for to in 0..4 {
                if from != to && world.rng.chance(0.8) {
                    world.sender.add_hop(from, to);
                }
            }
        }
        world.hosts[0].loss = world.rng.below(20) as f64 / 100.0;
        if seed % 4 < 2 {
            world.with_parity();
            world.hosts[2].loss = world.hosts[0].loss;
        }
        if world.rng.chance(0.3) {
            world.sender.serve_by_unicast(2, 3);
        }
        for _ in 0..4 {
            world.scatter(&[1, 2, 3, 1], 60, 40_000, 120 * SECOND);
            let target = world.rng.below(4) as u16;
            let other = (target + 1 + world.rng.below(3) as u16) % 4;
            match world.rng.below(6) {
                0 => world.hosts[usize::from(target)].deaf = true,
                1 => drop(world.cut.insert((target, other), true)),
                2 => drop(world.cut.insert((target, other), false)),
                3 if world.hosts.iter().all(|host| !host.dead) => {
                    world.hosts[usize::from(target)].dead = true;
                }
                4 => world.hosts[usize::from(target)].rate /= 3,
                _ => world.sender.give_up_multicast([target]),
            }
        }
        world.check_arrival();
        let silent = world.expelled.iter().filter(|(_, why)| *why == Expulsion::Silent);
        assert!(silent.count() <= world.hosts.iter().filter(|host| host.dead).count());
    }
}
