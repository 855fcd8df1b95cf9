//! `plan`: of guests that run, through an agent, and from files without one.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmscatter_core::index::fingerprint::{Sampler, VmFingerprints};
use vmscatter_core::index::{FleetKey, VmPages};
use vmscatter_core::page::Mac;

use crate::harness::{Lab, failing, vmscatter};
use crate::scan::Guest;

const MIB: u64 = 1 << 20;
/// Contents of the saved guests: so many pages each.
const PAGES: u64 = 4096;

/// A file of a host whose guests hold these contents, each in one page; all other pages are zero.
fn save(lab: &Lab, host: &str, guests: &[(&str, std::ops::Range<u64>)], key: u8) -> String {
    let mut sampler = Sampler::new(FleetKey::new(&[key; 32]));
    for content in 0..10_000u64 {
        let holders: Vec<(u16, u32)> = (0..)
            .zip(guests)
            .filter(|(_, (_, held))| held.contains(&content))
            .map(|(vm, _)| (vm, 1))
            .collect();
        if !holders.is_empty() {
            let mut mac = [0; 16];
            mac[..8].copy_from_slice(&content.to_be_bytes());
            sampler.note(Mac(mac), holders.into_iter());
        }
    }
    let vm = |(name, held): &(&str, std::ops::Range<u64>)| {
        let pages = VmPages { pages: PAGES, zero: PAGES - (held.end - held.start) };
        VmFingerprints::new(name, PAGES * 4096, pages, true)
    };
    let saved = sampler.finish(host, 1, guests.iter().map(vm).collect());
    let path = lab.path(&format!("{host}.fp"));
    std::fs::write(&path, saved.encode().unwrap()).unwrap();
    path
}

fn plan(args: &[&str]) -> Value {
    let output = vmscatter(&[&["plan"], args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["exit"], &outcome["error"]), (&json!(0), &Value::Null));
    outcome["plan"].clone()
}

fn target_of<'a>(plan: &'a Value, guest: &str) -> &'a str {
    let guests = plan["guests"].as_array().unwrap();
    guests.iter().find(|told| told["name"] == guest).unwrap()["target"].as_str().unwrap()
}

#[test]
fn guests_that_run_are_planned_and_nothing_is_started() {
    let lab = Lab::new("node1,t1,t2");
    let (agent, targets) = (lab.agent("node1"), [lab.agent("t1"), lab.agent("t2")]);
    let guests = ["vm1", "vm2", "vm3"].map(|name| Guest::start(&lab, name, &["-M", "pc"]));
    let to = ["t1", "t2"].map(|name| name.to_owned());
    let to: Vec<String> =
        to.iter().zip(&targets).map(|(name, agent)| format!("{name}={}", agent.control)).collect();
    let base = ["--agent", agent.socket(), "--to", &to[0], &to[1], "--guest", &guests[0].file];
    let base = [&base[..], &[&guests[1].file, &guests[2].file]].concat();
    let chosen = plan(&[&base[..], &["--vm", "vm1=t2", "--apart", "vm1,vm2", "--compress", "zstd"]].concat());
    assert_eq!((target_of(&chosen, "vm1"), target_of(&chosen, "vm2")), ("t2", "t1"));
    assert_eq!(
        (&chosen["placement"]["method"], &chosen["rate"]["origin"]),
        (&json!("exact"), &json!("assumed"))
    );
    assert_eq!(chosen["placement"]["cost"], chosen["placement"]["bound"]);
    let figure = |of: &str, name: &str| chosen[of][name].as_f64().unwrap();
    for name in ["transferred_bytes", "traffic_bytes"] {
        let (ours, theirs) = (figure("predicted", name), figure("off_the_shelf", name));
        assert!(ours > 0.0 && ours < theirs, "{name}: {ours} {theirs}");
    }
    let received =
        chosen["targets"].as_array().unwrap().iter().map(|target| target["received_bytes"].as_u64().unwrap());
    assert_eq!(received.sum::<u64>() as f64, figure("predicted", "traffic_bytes"));
    let share = chosen["compressed"][0].as_f64().unwrap();
    assert!(share > 0.0 && share < 1.0, "firmware compresses: {share}");
    assert!(figure("predicted", "time_s") > chosen["predicted"]["times"]["collect_s"].as_f64().unwrap());

    let text = vmscatter(&[&["plan"], &base[..]].concat());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.starts_with("3 guests, ") && text.contains("from node1 to 2 targets; nothing was moved"),
        "{text}"
    );

    let refused = |more: &[&str]| {
        let output = vmscatter(&[&["plan"], &base[..], more].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{more:?}");
        String::from_utf8(output.stderr).unwrap().lines().last().unwrap().to_owned()
    };
    let line = refused(&["--vms-max", "1"]);
    assert!(line.contains("3 VMs, but the targets take at most 2"), "{line}");
    let line = refused(&["--topology", &lab.write("net.toml", NETWORK)]);
    assert!(line.starts_with("vmscatter: ") && line.contains("net.toml: ") && line.contains("t2"), "{line}");
    assert_eq!(agent.status()["jobs"][0]["kind"], "plan");
    for agent in targets {
        let log = agent.stop(Signal::SIGTERM);
        assert!(!log.contains("not opened") && !log.contains("panicked"), "{log}");
    }
}

/// Without t2.
const NETWORK: &str =
    "kind = 'links'\nhosts = ['node1', 't1']\nlinks = [{ ends = ['node1', 't1'], rate = '1gbit' }]\n";

#[test]
fn files_of_one_host_are_planned_by_what_guests_share() {
    let lab = Lab::new("x");
    // The first and the third hold the same, and so do the second and the fourth.
    let file = save(&lab, "h1", &[("a", 0..1000), ("b", 1000..3000), ("c", 0..1000), ("d", 1000..3000)], 1);
    let base = ["--from", &file, "--target", "t1", "t2=1GiB"];
    let chosen = plan(&base);
    assert_eq!(target_of(&chosen, "a"), target_of(&chosen, "c"));
    assert_eq!(target_of(&chosen, "b"), target_of(&chosen, "d"));
    assert_ne!(target_of(&chosen, "a"), target_of(&chosen, "b"));
    assert_eq!((&chosen["placement"]["cost"], &chosen["between_hosts"]), (&json!(3000), &Value::Null));
    assert_eq!(chosen["distinct_nonzero_bytes"], 3000 * 4096);
    assert_eq!(chosen["classes"]["imvst"], json!({ "contents": 3000, "pages": 6000 }));
    assert_eq!(chosen["classes"]["zero"]["pages"], 4 * PAGES - 6000);
    let free: Vec<&Value> =
        chosen["targets"].as_array().unwrap().iter().map(|target| &target["free_bytes"]).collect();
    assert_eq!(free, [&Value::Null, &json!(1024 * MIB - 2 * PAGES * 4096)]);
    // Each content once, and headers of some percent; off the shelf every page.
    let bytes = |of: &str| chosen[of]["transferred_bytes"].as_u64().unwrap() as f64 / 4096.0;
    assert!((1.03..1.2).contains(&(bytes("predicted") / 3000.0)), "{chosen}");
    assert!((1.03..1.2).contains(&(bytes("off_the_shelf") / 6000.0)), "{chosen}");
    // All on one target is what they share anyway.
    let less = chosen["one_less"]["predicted"]["traffic_bytes"].as_u64().unwrap() as f64 / 4096.0;
    assert!((less / bytes("predicted") - 1.0).abs() < 0.01, "{chosen}");

    let apart = plan(&[&base[..], &["--apart", "a,c", "--apart", "b,d", "--bandwidth", "100mbit"]].concat());
    assert_eq!(apart["placement"]["cost"], 6000);
    // One set of two targets: each joins and leaves its group.
    assert_eq!((&apart["target_sets"], &apart["joins_and_leaves"]), (&json!(1), &json!(4)));
    assert_eq!(apart["classes"]["imvmt"], json!({ "contents": 3000, "pages": 6000 }));
    assert_eq!((&apart["rate"]["origin"], &apart["one_less"]), (&json!("given"), &Value::Null));
    let few = plan(&[&base[..], &["--few-targets"]].concat());
    assert_eq!(target_of(&few, "a"), target_of(&few, "b"));

    let network = lab.write("net.toml", TWO_TIERS);
    let cost = plan(&[
        "--from",
        &file,
        "--target",
        "t1",
        "t2",
        "t3",
        "t4",
        "--vms-max",
        "1",
        "--topology",
        &network,
    ]);
    // Guests that share share a leaf, whose uplink is dear.
    let leaf = |guest| if target_of(&cost, guest) < "t3" { 1 } else { 2 };
    assert_eq!((leaf("a"), leaf("b")), (leaf("c"), leaf("d")));
    let tiers = cost["topology"]["tiers"].as_array().unwrap();
    assert!(tiers.iter().all(|tier| tier["multicast"].as_u64() <= tier["unicast"].as_u64()), "{tiers:?}");
}

const TWO_TIERS: &str = "kind = 'leaf-spine'\nleaves = 3\nspines = 1\nlink = '1gbit'\ncosts = [1, 5]\n\
     hosts = [['h1'], ['t1', 't2'], ['t3', 't4']]\n";

#[test]
fn files_of_several_hosts_each_send_their_own() {
    let lab = Lab::new("x");
    let files = [
        save(&lab, "h1", &[("a", 0..1000), ("b", 0..1500)], 1),
        save(&lab, "h2", &[("a", 0..1000), ("c", 500..1000)], 1),
    ];
    let base = ["--from", &files[0], &files[1], "--target", "t1", "t2"];
    let chosen = plan(&[&base[..], &["--vm", "h1/a=t1", "c=t2"]].concat());
    assert_eq!((target_of(&chosen, "h1/a"), target_of(&chosen, "c")), ("t1", "t2"));
    // 1500 of the first host, 1000 of the second, which the first holds too.
    assert_eq!(chosen["distinct_nonzero_bytes"], 2500 * 4096);
    assert_eq!(chosen["between_hosts"], json!({ "contents": 1000, "repeated_bytes": 1000 * 4096 }));
    let sources = chosen["sources"].as_array().unwrap();
    assert_eq!((&sources[0]["name"], &sources[1]["guests"]), (&json!("h1"), &json!(2)));
    let sum: u64 = sources.iter().map(|s| s["predicted"]["transferred_bytes"].as_u64().unwrap()).sum();
    assert_eq!(chosen["predicted"]["transferred_bytes"], sum);
    let text = vmscatter(&[&["plan"], &base[..]].concat());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("from h1, h2 to 2 targets") && text.contains("1000 contents stand on several hosts"),
        "{text}"
    );
}

#[test]
fn bad_input_is_one_line_and_needs_no_agent() {
    let lab = Lab::new("t1");
    let (guest, _qmp) = lab.guest("vm1");
    let file = &save(&lab, "h1", &[("a", 0..10), ("b", 0..10)], 1);
    let double = &save(&lab, "h2", &[("a", 0..10)], 1);
    let foreign = &save(&lab, "h3", &[("z", 0..10)], 2);
    let copy = &lab.path("copy.fp");
    std::fs::copy(file, copy).unwrap();
    let network = &lab.write("net.toml", "kind = 'ring'\n");
    let good_network = &lab.write("good.toml", NETWORK);
    let cases: &[(&[&str], &str)] = &[
        (&[], "<--guest <FILE>...|--from <FILE>...>"),
        (&["--guest", &guest], "--to <NAME=ADDR[:PORT]>"),
        (&["--to", "t1=10.0.0.1"], "--guest <FILE>"),
        (&["--from", file], "--target <NAME[=MEMORY]>"),
        (
            &["--from", file, "--guest", &guest, "--to", "t1=10.0.0.1", "--target", "t1"],
            "cannot be used with",
        ),
        (&["--from", file, "--to", "t1=10.0.0.1"], "--"),
        (&["--from", file, "--target", "t1=64"], "memory '64' has no unit: MiB, GiB or TiB"),
        (&["--from", file, "--target", "T1"], "'T1' is no host name"),
        (&["--from", file, "--target", "t1", "--compress", "zstd"], "cannot be used with"),
        (&["--from", file, "--target", "t1", "--apart", "a"], "is not NAME,NAME.."),
        (&["--from", file, "--target", "t1", "t1"], "--target t1: the target is given twice"),
        (&["--from", "/no/such.fp", "--target", "t1"], "/no/such.fp: no such file or directory"),
        (&["--from", &guest, "--target", "t1"], "vm1.toml: is no file of fingerprints"),
        (&["--from", file, foreign, "--target", "t1"], "h3.fp were made with different fleet keys"),
        (&["--from", file, copy, "--target", "t1"], "copy.fp are of the same host"),
        (&["--from", file, "--target", "t1", "--vm", "x=t1"], "--vm x=t1: no file has a guest 'x'"),
        (
            &["--from", file, double, "--target", "t1", "--vm", "a=t1"],
            "several hosts have a guest 'a': say HOST/NAME",
        ),
        (&["--from", file, "--target", "t1", "--vm", "a=t2"], "--vm a=t2: no --target has the name 't2'"),
        (
            &["--from", file, "--target", "t1", "t2", "--apart", "a,b", "--vm", "a=t1", "b=t1"],
            "both pinned to 't1'",
        ),
        (
            &["--from", file, "--target", "t1", "--apart", "a,b"],
            "are to be kept apart, but there are 1 targets",
        ),
        (&["--from", file, "--target", "t1", "--vms-max", "1"], "2 VMs, but the targets take at most 1"),
        (&["--from", file, "--target", "t1=1MiB"], "a needs 16777216 bytes; t1 has the most left, 1048576"),
        (&["--from", file, "--target", "t1", "--groups", "0"], "--groups: must be 1 to"),
        (&["--from", file, "--target", "t1", "--bandwidth", "1kbit"], "--bandwidth: must be 1mbit or more"),
        (&["--from", file, "--target", "t1", "--topology", network], "net.toml: kind: 'ring'"),
        (&["--from", file, "--target", "t1", "--topology", good_network], "good.toml: "),
        (&["--from", file, double, "--target", "t1", "--topology", good_network], "--topology: is for"),
        (&["--guest", &guest, "--to", "t1=10.0.0.1", "--vm", "x=t1"], "no guest file has the name 'x'"),
    ];
    for (args, expected) in cases {
        let line = failing(2, &[&["plan"], *args].concat());
        assert!(line.contains(expected), "{args:?}: {line}");
    }
    let line = failing(4, &["plan", "--agent", "/no/agent", "--guest", &guest, "--to", "t1=10.0.0.1"]);
    assert!(line.starts_with("agent at /no/agent"), "{line}");
}
