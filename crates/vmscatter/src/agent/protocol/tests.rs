use super::*;

fn guest(name: &str, origin: &str) -> GuestText {
    GuestText {
        origin: origin.into(),
        text: format!("name = '{name}'\nqmp = '/run/{name}'\ncommand = ['/bin/q']\n"),
    }
}

fn request() -> MigrateRequest {
    MigrateRequest {
        guests: vec![guest("vm1", "a.toml"), guest("vm2", "b.toml")],
        targets: vec![
            TargetSpec { name: "t1".into(), addr: "10.0.0.1:7940".parse().unwrap() },
            TargetSpec { name: "t2".into(), addr: "10.0.0.2:7940".parse().unwrap() },
        ],
        rules: PlacementRules {
            pins: vec![Pin { guest: "vm1".into(), target: "t2".into() }],
            apart: vec![vec!["vm1".into(), "vm2".into()]],
            ..PlacementRules::default()
        },
        topology: None,
        compress: Compression::Zstd { level: 1 },
        bandwidth_bits: Some(BANDWIDTH_BITS_MIN),
        parallel: Some(1),
        retries: 2,
        convergence: ConvergenceRequest {
            auto_converge: true,
            max_downtime_ms: Some(500),
            deadline_ms: Some(60_000),
        },
        groups: Some(1),
        transport: Transport::Relay,
        interface: Some("eth1".into()),
        unsorted_groups: false,
        collect_cpu_percent: 100,
    }
}

#[test]
fn a_good_request_passes_and_survives_json() {
    assert_eq!(request().check().unwrap().len(), 2);
    let line = serde_json::to_string(&LocalRequest::Migrate(request())).unwrap();
    assert!(!line.contains('\n'));
    assert_eq!(serde_json::from_str::<LocalRequest>(&line).unwrap(), LocalRequest::Migrate(request()));
}

#[test]
fn each_fault_has_its_line() {
    type Break = fn(&mut MigrateRequest);
    let cases: &[(Break, &str)] = &[
        (|r| r.guests.clear(), "--guest: "),
        (|r| r.guests[1] = guest("vm1", "b.toml"), "b.toml: name: guest 'vm1' is in a.toml already"),
        (|r| r.guests[1].text.clear(), "b.toml"),
        (
            |r| {
                for g in &mut r.guests {
                    g.text.push_str("uuid = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'\n");
                }
            },
            "b.toml: uuid: ",
        ),
        (|r| r.convergence.max_downtime_ms = Some(0), "--max-downtime: must be 1ms to 60s"),
        (|r| r.convergence.max_downtime_ms = Some(60_001), "--max-downtime: "),
        (|r| r.convergence.deadline_ms = Some(999), "--deadline: must be 1s to 168h"),
        (|r| r.retries = RETRIES_MAX + 1, "--retry: must be 0 to 100"),
        (|r| r.targets.clear(), "--to: "),
        (|r| r.targets[1].name = "t1".into(), "--to t1=10.0.0.2:7940: the target is given twice"),
        (|r| r.targets[1].addr = r.targets[0].addr, "is that of 't1' already"),
        (|r| r.targets[1].name = "T 2".into(), "is no host name"),
        (|r| r.rules.pins[0].guest = "vm9".into(), "--vm vm9=t2: no guest file has the name 'vm9'"),
        (|r| r.rules.pins[0].target = "t9".into(), "--vm vm1=t9: no --to has the name 't9'"),
        (|r| r.rules.pins.push(Pin { guest: "vm1".into(), target: "t1".into() }), "pinned to 't2' already"),
        (|r| r.rules.apart[0].push("vm9".into()), "--apart vm1,vm2,vm9: no guest file has the name 'vm9'"),
        (|r| r.rules.apart[0].push("vm1".into()), "--apart vm1,vm2,vm1: 'vm1' is named twice"),
        (|r| drop(r.rules.apart[0].pop()), "--apart vm1: names fewer than two guests"),
        (|r| r.rules.vms_max = Some(0), "--vms-max: "),
        (
            |r| {
                r.rules.pins.push(Pin { guest: "vm2".into(), target: "t2".into() });
                r.rules.apart.clear();
                r.rules.vms_max = Some(1);
            },
            "--vms-max: is 1, but 2 guests are pinned to 't2'",
        ),
        (
            |r| r.rules.pins.push(Pin { guest: "vm2".into(), target: "t2".into() }),
            "--apart vm1,vm2: 'vm1' and 'vm2' are both pinned to 't2'",
        ),
        (|r| r.compress = Compression::Zstd { level: 20 }, "--compress: "),
        (|r| r.parallel = Some(0), "--parallel: "),
        (|r| r.groups = Some(0), "--groups: "),
        (|r| r.bandwidth_bits = Some(BANDWIDTH_BITS_MIN - 1), "--bandwidth: "),
        (|r| r.collect_cpu_percent = 0, "--collect-cpu: "),
    ];
    for (break_it, expected) in cases {
        let mut broken = request();
        break_it(&mut broken);
        let line = broken.check().unwrap_err().to_string();
        assert!(line.contains(expected) && !line.contains('\n'), "{line}");
    }
}
