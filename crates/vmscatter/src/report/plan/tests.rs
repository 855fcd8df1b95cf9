use super::*;

fn prediction(transferred_bytes: u64, traffic_bytes: u64, time_s: f64) -> Prediction {
    let times = PhaseTimes { streams_s: time_s, ..PhaseTimes::default() };
    Prediction { transferred_bytes, traffic_bytes, time_s, times }
}

fn plan() -> Plan {
    let guest = |name: &str, target: &str| PlanGuest {
        name: name.into(),
        source: "h1".into(),
        target: target.into(),
        memory_bytes: 1 << 30,
        zero_pages: 1,
        unique_pages: 2,
        shared_pages: 3,
    };
    let class = |contents, pages| PlanClass { contents, pages };
    Plan {
        sources: vec![PlanSource {
            name: "h1".into(),
            guests: 2,
            predicted: prediction(400_000_000, 500_000_000, 4.0),
            off_the_shelf: prediction(1_000_000_000, 1_000_000_000, 8.0),
        }],
        guests: vec![guest("vm1", "t1"), guest("vm2", "t2")],
        targets: vec![PlanTarget {
            name: "t1".into(),
            guests: vec!["vm1".into()],
            memory_bytes: 1 << 30,
            free_bytes: Some(3 << 30),
            received_bytes: 250_000_000,
        }],
        classes: PlanClasses { imvmt: class(1024, 4096), ..PlanClasses::default() },
        distinct_nonzero_bytes: 300 << 20,
        between_hosts: None,
        placement: PlacementOutcome { method: "local search".into(), cost: 1050, bound: 1000, time_ms: 3 },
        rate: PlanRate { bits_per_s: 1e9, origin: RateOrigin::Assumed, hosts_measured_unix_s: None },
        compressed: [1.0, 1.0],
        predicted: prediction(400_000_000, 500_000_000, 4.0),
        off_the_shelf: prediction(1_000_000_000, 1_000_000_000, 8.0),
        one_less: Some(Alternative {
            without: Some("t2".into()),
            targets_used: 1,
            predicted: prediction(390_000_000, 390_000_000, 3.5),
        }),
        one_more: Some(Alternative { without: None, targets_used: 1, predicted: prediction(1, 1, 1.0) }),
        topology: None,
        target_sets: 1,
        joins_and_leaves: 4,
        sampled: false,
    }
}

#[test]
fn a_plan_says_what_it_would_cost_and_how_good_it_is() {
    let text = text(&PlanOutcome::of(plan()));
    for expected in [
        "2 guests, 2.00 GiB, from h1 to 1 targets; nothing was moved\n",
        "16.00 MiB",
        "distinct contents: 300.00 MiB\n",
        "none is below 1000, so this is at most 5.0 % above the best",
        "-60.0 %",
        "-50.0 %",
        "8.0 s",
        "link: 1000 Mbit/s, assumed",
        "multicast to 1 target sets, 4 joins and leaves\n",
        "one target less (without t2): transferred -10.00 MB, network traffic -110.00 MB, time -0.5 s\n",
        "one target more: changes nothing, as one would stay empty\n",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for unexpected in ["several hosts", "compressed to", "estimates", "busiest"] {
        assert!(!text.contains(unexpected), "{unexpected}: {text}");
    }
}

#[test]
fn several_hosts_a_sample_compression_and_a_topology_are_told() {
    let mut plan = plan();
    plan.sources.push(PlanSource { name: "h2".into(), ..plan.sources[0].clone() });
    plan.between_hosts = Some(BetweenHosts { contents: 7, repeated_bytes: 28 << 10 });
    plan.sampled = true;
    plan.compressed = [0.4, 0.5];
    plan.rate.origin = RateOrigin::Measured;
    plan.rate.hosts_measured_unix_s = Some(1);
    plan.placement.bound = plan.placement.cost;
    plan.one_more.as_mut().unwrap().targets_used = 2;
    plan.topology = Some(TopologyReport {
        tiers: vec![TierBytes {
            tier: "core".into(),
            off_the_shelf: 3_000_000,
            unicast: 2_000_000,
            multicast: 1_000_000,
        }],
        busiest_off_the_shelf: None,
        busiest_unicast: None,
        busiest_multicast: Some(("leaf1 to spine1".into(), 1.5)),
    });
    let text = text(&PlanOutcome::of(plan));
    for expected in [
        "from h1, h2 to",
        "estimates from a sample of the contents; distinct contents",
        "7 contents stand on several hosts",
        "28.00 KiB more than if one sent for all",
        "transferred of h2",
        "one after the other",
        "none is better",
        "over all links, times what a link costs",
        "measured by the last migrations from here; set-up and the hosts' own speed as in",
        "compressed to 40.0 % (shared contents) and 50.0 % (unique pages)",
        "one target more: transferred -",
        "busiest link, multicast: leaf1 to spine1, 1.5 s",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn a_plan_that_failed_prints_nothing_and_comes_back_from_json() {
    for outcome in [PlanOutcome::bad_input("x"), PlanOutcome::cancelled(), PlanOutcome::of(plan())] {
        assert_eq!(text(&outcome).is_empty(), outcome.plan.is_none());
        let json = serde_json::to_string(&outcome).unwrap();
        assert_eq!(serde_json::from_str::<PlanOutcome>(&json).unwrap(), outcome);
    }
}
