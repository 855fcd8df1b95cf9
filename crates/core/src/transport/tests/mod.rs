mod hostile;
mod relay;
mod world;

use std::time::Duration;

use self::world::{Hold, Net, World};
use super::{Expulsion, SenderConfig, SenderCounters};
use crate::limits::{SCATTER_FRAME_MAX, SCATTER_SILENCE_MAX};

const SECOND: Duration = Duration::from_secs(1);

fn megabytes(bandwidth: u64) -> SenderConfig {
    SenderConfig { bandwidth: Some(bandwidth * 1_000_000), ..Default::default() }
}

#[test]
fn shared_content_leaves_once_and_reaches_members_only() {
    let mut world = World::new(1, 4, Net::default(), megabytes(100));
    world.add_set(7, &[0, 1, 2], true);
    world.add_set(8, &[1, 2], true);
    world.scatter(&[7, 7, 8], 90, 60_000, 5 * SECOND);
    world.check_arrival();
    assert!(world.hosts[3].frames.is_empty());
    let expected: u64 = world.bodies.values().map(|(_, body)| body.len().div_ceil(1472 - 56) as u64).sum();
    assert_eq!(world.multicast.len() as u64, expected);
    assert!(world.multicast.values().all(|count| *count == 1));
    let counters = SenderCounters { multicast_pieces: expected, ..Default::default() };
    assert_eq!(world.sender.counters(), counters, "nothing but each piece once");
}

#[test]
fn everything_arrives_under_loss_reordering_and_duplication() {
    for seed in 0..12 {
        let net = Net { jitter: Duration::from_millis(seed % 4), twice: 0.05, ..Net::default() };
        let mut world = World::new(seed, 3, net, megabytes(20));
        let losses = [0.02, 0.10, 0.30];
        world.hosts.iter_mut().zip(losses).for_each(|(host, loss)| host.loss = loss);
        world.hosts[1].write = Duration::from_millis(5);
        world.add_set(1, &[0, 1, 2], true);
        world.add_set(2, &[0, 2], true);
        world.add_set(3, &[1], false);
        if seed % 2 == 1 {
            world.with_parity();
        }
        println!("seed {seed}");
        world.scatter(&[1, 2, 1, 3], 60, 70_000, 20 * SECOND);
        world.check_arrival();
    }
}

#[test]
fn frames_of_one_piece_and_frames_of_two_hundred() {
    for (frames, bytes, with_parity) in
        [(400, 900, false), (8, 300_000, false), (400, 900, true), (8, 300_000, true), (3, 600_000, true)]
    {
        let mut world = World::new(5, 3, Net::default(), megabytes(50));
        if with_parity {
            world.with_parity();
        }
        world.hosts.iter_mut().for_each(|host| host.loss = 0.05);
        world.add_set(1, &[0, 1, 2], true);
        world.scatter(&[1], frames, bytes, 10 * SECOND);
        world.check_arrival();
    }
}

/// What is sent again is at most 1.1 times what was lost.
#[test]
fn repair_costs_what_was_lost() {
    for (loss, delay) in [(0.01, 1), (0.05, 1), (0.05, 40)] {
        let net = Net { delay: Duration::from_millis(delay), ..Net::default() };
        let mut world = World::new(9, 3, net, megabytes(50));
        world.hosts.iter_mut().for_each(|host| host.loss = loss);
        world.add_set(1, &[0, 1, 2], true);
        world.scatter(&[1], 400, 60_000, 20 * SECOND);
        world.check_arrival();
        let lost: u64 = world.hosts.iter().map(|host| host.lost).sum();
        let (first, repairs) = (world.sender.counters().multicast_pieces, world.repairs());
        println!(
            "loss {loss}, {delay} ms: {first} pieces, {lost} lost, {repairs} sent again: {:?}",
            world.sender.counters()
        );
        assert!(lost as f64 > first as f64 * loss * 2.0, "the network loses what it should");
        assert!(repairs as f64 <= lost as f64 * 1.1);
        // A piece that two miss is sent once for both.
        assert!(repairs < lost || loss < 0.02);
    }
}

/// Those who miss different pieces are served at once: what is sent again comes near to what the one misses that misses most.
#[test]
fn parity_serves_different_losses_at_once() {
    for (loss, share) in [(0.01, 0.8), (0.05, 0.62), (0.15, 0.58)] {
        let repairs = [false, true].map(|with_parity| {
            let mut world = World::new(9, 3, Net::default(), megabytes(50));
            world.hosts.iter_mut().for_each(|host| host.loss = loss);
            world.add_set(1, &[0, 1, 2], true);
            if with_parity {
                world.with_parity();
            }
            world.scatter(&[1], 300, 120_000, 20 * SECOND);
            world.check_arrival();
            println!("loss {loss}: {} {:?}", world.now.0, world.sender.counters());
            world.repairs()
        });
        let [without, with] = repairs.map(|repairs| repairs as f64);
        println!("{}", with / without);
        assert!(with < share * without, "{with} instead of {without} at {loss}");
    }
}

#[test]
fn parity_is_sent_only_where_all_of_a_set_can_use_it() {
    let mut world = World::new(9, 3, Net::default(), megabytes(50));
    world.hosts.iter_mut().for_each(|host| host.loss = 0.05);
    world.add_set(1, &[0, 1, 2], true);
    world.sender.takes_parity(0);
    world.sender.takes_parity(1);
    world.scatter(&[1], 50, 60_000, 20 * SECOND);
    world.check_arrival();
    assert_eq!(world.sender.counters().parity_pieces, 0);
}

#[test]
fn dead_target_is_expelled_and_the_others_go_on() {
    let mut world = World::new(3, 3, Net::default(), megabytes(100));
    world.hosts[2].dead = true;
    world.add_set(1, &[0, 1, 2], true);
    world.scatter(&[1], 40, 60_000, SCATTER_SILENCE_MAX + SECOND);
    assert_eq!(world.expelled, [(2, Expulsion::Silent)]);
    world.check_arrival();
    assert!(world.now.since(crate::time::Time::ZERO) >= SCATTER_SILENCE_MAX);
    let before = world.now;
    world.scatter(&[1], 40, 60_000, SECOND);
    world.check_arrival();
    assert!(world.now.since(before) < SECOND / 4, "nobody waits for it any more");
}

#[test]
fn slow_writer_is_waited_for_and_not_expelled() {
    let config = SenderConfig { repair_window_bytes: 512 * 1024, ..megabytes(100) };
    let mut world = World::new(4, 3, Net::default(), config);
    world.hosts[1].write = Duration::from_millis(300);
    world.add_set(1, &[0, 1, 2], true);
    world.scatter(&[1], 60, 60_000, 30 * SECOND);
    world.check_arrival();
    assert!(world.expelled.is_empty());
    assert_eq!(world.repairs(), 0, "slow is not lost");
}

/// It acknowledges something all the time, and yet everybody would wait for it for hours.
#[test]
fn crawling_writer_leaves_the_scatter_and_the_others_go_on() {
    let mut world = World::new(5, 3, Net::default(), SenderConfig::default());
    world.hosts[1].write = 5 * SECOND;
    world.add_set(1, &[0, 1, 2], true);
    world.scatter(&[1], 1200, 60_000, 2 * SCATTER_FRAME_MAX);
    assert_eq!(world.expelled, [(1, Expulsion::Silent)]);
    assert_eq!(world.hosts[0].frames.len(), 1200);
    let took = world.now.since(crate::time::Time::ZERO);
    assert!(took > SCATTER_FRAME_MAX && took < SCATTER_FRAME_MAX + 10 * SECOND, "{took:?}");
}

#[test]
fn members_that_cannot_join_are_served_over_tcp() {
    let mut world = World::new(6, 3, Net::default(), megabytes(100));
    world.add_set(1, &[0, 1, 2], true);
    world.sender.serve_by_unicast(1, 2);
    world.scatter(&[1], 30, 60_000, 10 * SECOND);
    world.check_arrival();
    let counters = world.sender.counters();
    assert_eq!(counters.unicast_pieces, counters.multicast_pieces);
    assert_eq!(world.repairs(), 0);
}

#[test]
fn bandwidth_is_kept() {
    let mut world = World::new(7, 2, Net::default(), megabytes(10));
    world.add_set(1, &[0, 1], true);
    world.scatter(&[1], 300, 64_000, 10 * SECOND);
    let seconds = world.now.since(crate::time::Time::ZERO).as_secs_f64();
    let rate = world.multicast_bytes as f64 / seconds;
    assert!((9.5e6..10.1e6).contains(&rate), "{rate}");
}

/// Hosts that get a processor for 40 ms of every 400: their sockets hold what comes meanwhile, and lose the rest. The rate falls to
/// about what the sockets hold, no further, and comes back within seconds once the hosts have their processors.
#[test]
fn starved_hosts_slow_the_scatter_and_do_not_stop_it() {
    let mut world = World::new(21, 3, Net::default(), SenderConfig::default());
    world.add_set(1, &[0, 1, 2], true);
    for (at, host) in world.hosts.iter_mut().enumerate() {
        let period = 400 + 30 * at as u64;
        host.runs = Some((Duration::from_millis(40), Duration::from_millis(period)));
    }
    // Four megabytes in 0.4 s are 10 MB/s.
    world.scatter(&[1], 600, 100_000, 30 * SECOND);
    let starved = world.now.since(crate::time::Time::ZERO);
    world.hosts.iter_mut().for_each(|host| host.runs = None);
    let begun = world.now;
    world.scatter(&[1], 3000, 100_000, 30 * SECOND);
    let free = world.now.since(begun);
    eprintln!("60 MB in {starved:?} starved, 300 MB in {free:?} after that, {} B/s", world.sender.rate());
    assert!(starved < 20 * SECOND, "{starved:?}");
    assert!(free < 10 * SECOND, "{free:?}");
    assert!(world.sender.rate() > 90_000_000, "{}", world.sender.rate());
    world.check_arrival();
}

/// One target's link has a tenth of what the others' have, or falls to it on the way: it leaves, and the two others keep 90 %
/// of their time. At a third it stays, and all go at its pace; what it misses goes over TCP once, however long that takes.
#[test]
fn laggard_leaves_and_the_others_hardly_notice() {
    let net = Net { queue_bytes: 1 << 20, ..Net::default() };
    let run = |hosts: u16, slow: u64, from: u64| {
        let mut world = World::new(31, hosts, net.clone(), SenderConfig::default());
        world.add_set(1, &Vec::from_iter(0..hosts), true);
        world.scatter(&[1], from, 100_000, 30 * SECOND);
        world.hosts[usize::from(hosts) - 1].rate = slow;
        world.scatter(&[1], 4000 - from, 100_000, 60 * SECOND);
        world.check_arrival();
        let lost = world.hosts.iter().map(|host| host.lost).sum::<u64>() + world.dropped;
        println!("{} repairs of {lost} lost", world.repairs());
        assert!(
            world.repairs() as f64 <= 1.1 * lost as f64 + 100.0,
            "{} repairs of {lost} lost",
            world.repairs()
        );
        (world.now.since(crate::time::Time::ZERO).as_secs_f64(), world.expelled)
    };
    let (alone, _) = run(2, net.rate, 0);
    for from in [0, 1000] {
        let (beside, expelled) = run(3, net.rate / 10, from);
        println!("the others alone {alone:.2} s, with a laggard from frame {from} on {beside:.2} s");
        assert_eq!(expelled, [(2, Expulsion::Laggard)]);
        assert!(alone / beside > 0.9, "{alone} s alone, {beside} s beside a laggard");
    }
    let (together, expelled) = run(3, net.rate / 3, 0);
    assert!(expelled.is_empty() && together < 3.3 * alone, "{expelled:?} {together} s");
}

/// The same under `--bandwidth`, where nothing but the laggard's own losses tells of it.
#[test]
fn laggard_leaves_under_a_fixed_rate_too() {
    let net = Net { queue_bytes: 1 << 20, ..Net::default() };
    let run = |slow: u64| {
        let mut world = World::new(32, 3, net.clone(), megabytes(100));
        world.add_set(1, &[0, 1, 2], true);
        world.hosts[2].rate = slow;
        world.scatter(&[1], 3000, 100_000, 60 * SECOND);
        world.check_arrival();
        (world.now.since(crate::time::Time::ZERO).as_secs_f64(), world.expelled)
    };
    let (alone, expelled) = run(net.rate);
    assert!(expelled.is_empty(), "{expelled:?}");
    let (beside, expelled) = run(net.rate / 10);
    println!("{alone:.2} s, beside a laggard {beside:.2} s");
    assert_eq!(expelled, [(2, Expulsion::Laggard)]);
    assert!(alone / beside > 0.9, "{alone} s alone, {beside} s beside a laggard");
}

/// Without `--bandwidth` an idle link of 1 Gbit/s is filled, without dropping much of it.
#[test]
fn idle_link_is_filled() {
    let lossless = [(256 << 10, 0.0, false), (4 << 20, 0.0, false)];
    let lossy = [(1 << 20, 0.01, false), (1 << 20, 0.01, true), (1 << 20, 0.05, true)];
    for (queue_bytes, loss, lose_whole) in lossless.into_iter().chain(lossy) {
        let net = Net { queue_bytes, lose_whole, ..Net::default() };
        let mut world = World::new(8, 3, net, SenderConfig::default());
        world.hosts.iter_mut().for_each(|host| host.loss = loss);
        world.add_set(1, &[0, 1, 2], true);
        // The start, and then a second and a half of the link.
        world.scatter(&[1], 1000, 64_000, 10 * SECOND);
        let (start, before, dropped) = (world.now, world.multicast_bytes, world.dropped);
        let pieces = world.sender.counters().multicast_pieces;
        world.scatter(&[1], 3000, 64_000, 10 * SECOND);
        let share = (world.multicast_bytes - before) as f64
            / world.now.since(start).as_secs_f64()
            / world.net.rate as f64;
        let pieces = world.sender.counters().multicast_pieces - pieces;
        let dropped = (world.dropped - dropped) as f64 / pieces as f64;
        let case = format!("queue {queue_bytes}, loss {loss}, whole {lose_whole}");
        println!("{case}: {share:.3} of the link, {dropped:.4} dropped before it");
        assert!(share > 0.93, "{share} of the link, {case}");
        assert!(dropped < 0.02, "{dropped} dropped, {case}");
        world.check_arrival();
    }
}

/// A source that comes late all the time always has something to multicast. Repairs over TCP leave all the same, so that frames
/// settle soon and the window does not fill.
#[test]
fn repairs_over_tcp_leave_while_there_is_always_something_to_multicast() {
    let mut world = World::new(17, 3, Net { tcp_share: 4, ..Net::default() }, SenderConfig::default());
    world.hosts.iter_mut().for_each(|host| host.loss = 0.05);
    world.hold = Hold::Processor(70_000_000);
    world.add_set(1, &[0, 1, 2], true);
    world.scatter(&[1], 1200, 120_000, 30 * SECOND);
    world.check_arrival();
    world.settled_after.sort();
    let middle = world.settled_after[world.settled_after.len() / 2];
    println!("half of the frames settled within {middle:?}: {:?}", world.sender.counters());
    assert!(middle < SECOND / 10, "{middle:?}");
}

/// A source whose socket is full has time to spare: parity stays on.
#[test]
fn full_link_is_not_taken_for_a_busy_host() {
    let mut world = World::new(18, 3, Net::default(), SenderConfig::default());
    world.hosts.iter_mut().for_each(|host| host.loss = 0.05);
    world.hold = Hold::Socket(256 << 10);
    world.with_parity();
    world.add_set(1, &[0, 1, 2], true);
    world.scatter(&[1], 1200, 120_000, 30 * SECOND);
    world.check_arrival();
    let counters = world.sender.counters();
    println!("{counters:?}");
    assert!(counters.parity_pieces > 10 * counters.unicast_repairs, "{counters:?}");
}
