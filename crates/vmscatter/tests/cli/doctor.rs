//! `doctor` on this host alone: agents on loopback, and hosts that are not what they should be.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Lab, failing, vmscatter};

#[test]
fn each_host_is_looked_at_and_faults_are_named() {
    let lab = Lab::new("node1,t1,t2");
    let (source, t1, t2) = (lab.agent("node1"), lab.agent("t1"), lab.agent("t2"));
    let to = [format!("t1={}", t1.control), format!("t9={}", t2.control), "t3=127.0.0.1:1".to_owned()];
    let doctor = |options: &[&str]| {
        let targets = to.iter().flat_map(|to| ["--to", to]);
        let args: Vec<&str> = ["doctor", "--agent", source.socket()].into_iter().chain(targets).collect();
        vmscatter(&[&args, options].concat())
    };
    let output = doctor(&["--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "two can't be reached as who they are to be: {stderr}");
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = |host: &str, what: &str| {
        let checks = outcome["checks"].as_array().unwrap();
        let mut found = checks.iter().filter(|check| check["host"] == host && check["what"] == what);
        let check = found.next().unwrap_or_else(|| panic!("{host}, {what}: not in {checks:#?}"));
        assert!(found.next().is_none());
        (check["verdict"].as_str().unwrap(), check["found"].as_str().unwrap(), check["advice"].as_str())
    };
    assert_eq!(check("t1", "connection").0, "good");
    assert_eq!(check("t1", "data port"), ("good", "takes sealed pieces", None));
    // How far off it looks depends on this host's load.
    assert!(check("t1", "clock").1.contains("this host's"), "{outcome:#}");
    let (verdict, found, advice) = check("t1", "QEMU");
    assert_eq!(verdict, "bad", "{found}");
    assert!(found.starts_with("/usr/bin/qemu: ") && advice.unwrap().contains("[qemu] programs"), "{found}");
    let (_, arrived, _) = check("t1", "multicast to it");
    assert!(arrived.contains("datagrams arrived"), "as loopback carries multicast: {arrived}");
    // t2 in place of t9: the certificate is another's.
    assert_eq!(check("t9", "connection").0, "bad");
    assert!(check("t9", "connection").2.unwrap().contains("certificate"));
    assert!(check("t3", "connection").1.contains("cannot connect"), "{outcome:#}");
    assert_eq!(t1.status()["incoming"], Value::Array(Vec::new()), "nothing is left of it");

    let shown = String::from_utf8(doctor(&[]).stdout).unwrap();
    let row = shown.lines().find(|line| line.contains("data port")).expect("a row for each check");
    assert!(row.contains("t1") && row.contains("ok"), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("t3, connection: see that the agent runs")), "{shown}");
    let line = failing(2, &["doctor", "--agent", source.socket(), "--to", "node1=127.0.0.1"]);
    assert!(line.contains("is the host that the guests leave"), "{line}");
    source.stop(Signal::SIGTERM);
    t1.stop(Signal::SIGTERM);
    t2.stop(Signal::SIGTERM);
}

/// Groups and ports are drawn for each session, and what is of another is dropped: two sources that scatter to one target at
/// once are both acknowledged whole, and the target takes nothing for forged.
#[test]
fn two_sources_do_not_meet_at_a_target() {
    let lab = Lab::new("node1,node2,t1");
    let (sources, target) = ([lab.agent("node1"), lab.agent("node2")], lab.agent("t1"));
    let to = format!("t1={}", target.control);
    let examine = |socket: &str| -> Value {
        let args = ["doctor", "--json", "--agent", socket, "--to", &to, "--bandwidth", "200mbit"];
        serde_json::from_slice(&vmscatter(&args).stdout).unwrap()
    };
    let outcomes: Vec<Value> = std::thread::scope(|scope| {
        let runs = sources.each_ref().map(|source| scope.spawn(|| examine(source.socket())));
        runs.map(|run| run.join().unwrap()).into()
    });
    for outcome in &outcomes {
        let checks = outcome["checks"].as_array().unwrap();
        let found =
            |what: &str| checks.iter().find(|check| check["what"] == what).map(|check| &check["found"]);
        let rate = found("rate").and_then(Value::as_str).expect("frames were acknowledged");
        assert!(!rate.starts_with("0 "), "{rate}");
        let arrived = found("multicast to it").and_then(Value::as_str).unwrap();
        assert!(arrived.contains("datagrams arrived"), "{arrived}");
    }
    let log = target.stop(Signal::SIGTERM);
    assert!(!log.contains("were not the source's"), "{log}");
    sources.into_iter().for_each(|source| drop(source.stop(Signal::SIGTERM)));
}
