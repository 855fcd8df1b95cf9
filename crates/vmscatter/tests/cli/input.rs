//! Bad input is one line with exit code 2, and starts nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Lab, failing, vmscatter};

#[test]
fn wrong_options_are_one_line_that_names_the_option() {
    let lab = Lab::new("t1");
    let guest = &lab.guest("vm1").0;
    let cases: &[(&[&str], &str)] = &[
        (&["migrate"], "--to <NAME=ADDR[:PORT]>"),
        (&["migrate", "--to", "t1=10.0.0.1"], "--guest <FILE>"),
        (&["migrate", "--to", "t1", "--guest", guest], "'--to <NAME=ADDR[:PORT]>...'"),
        (&["migrate", "--to", "t1=10.0.0.999", "--guest", guest], "neither an address nor a host name"),
        (&["migrate", "--to", "t1=10.0.0.1:http", "--guest", guest], "'http' is no port"),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--compress", "lzma"], "'--compress <HOW>'"),
        (
            &["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--bandwidth", "1000"],
            "'--bandwidth <RATE>'",
        ),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--bandwidth", "10kbit"], "--bandwidth: "),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--parallel", "0"], "--parallel: "),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--vm", "vm1"], "'--vm <NAME=HOST>...'"),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--retry", "101"], "--retry: "),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--deadline", "1"], "'--deadline <DURATION>'"),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--colour"], "'--colour'"),
        (
            &["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--collect-cpu", "101"],
            "'--collect-cpu <PERCENT>'",
        ),
        (&["scan", "--guest", guest, "--collect-cpu", "0"], "'--collect-cpu <PERCENT>'"),
        (&["attach", "x"], "'<JOB>'"),
        (&["fly"], "'fly'"),
    ];
    for (args, expected) in cases {
        let line = failing(2, args);
        assert!(line.contains(expected), "{args:?}: {line}");
    }
}

#[test]
fn wrong_guests_pins_and_targets_are_found_before_the_agent_is_asked() {
    let lab = Lab::new("t1");
    let (guest, _qmp) = lab.guest("vm1");
    let bad = lab.write("bad.toml", "name = 'vm2'\nqmp = '/x'\ncommand = ['/bin/q', '-incoming', 'defer']\n");
    let same = lab.write("same.toml", "name = 'vm1'\nqmp = '/x'\ncommand = ['/bin/q']\n");
    let missing = lab.path("missing.toml");
    let cases: &[(&[&str], String)] = &[
        (&["--guest", &missing], format!("{missing}: no such file or directory")),
        (&["--guest", &guest, &same], format!("{same}: name: guest 'vm1' is in {guest} already")),
        (&["--guest", &bad], format!("{bad}: command[1]: -incoming must not be given")),
        (&["--guest", &guest, "--vm", "vm9=t1"], "--vm vm9=t1: no guest file has the name 'vm9'".into()),
        (&["--guest", &guest, "--vm", "vm1=t9"], "--vm vm1=t9: no --to has the name 't9'".into()),
        (
            &["--guest", &guest, "--to", "t1=10.0.0.2"],
            "--to t1=10.0.0.2:7940: the target is given twice".into(),
        ),
    ];
    for (args, expected) in cases {
        let agent = lab.path("no.sock");
        let line = failing(2, &[&["migrate", "--agent", &agent, "--to", "t1=10.0.0.1"], *args].concat());
        assert!(line.contains(expected), "{args:?}: {line}");
    }
}

#[test]
fn help_names_the_exit_codes_and_no_agent_is_code_4() {
    let output = vmscatter(&["migrate", "--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && help.contains("Exit codes:") && help.contains("130"), "{help}");
    assert_eq!(vmscatter(&["--version"]).status.code(), Some(0));
    assert_eq!(vmscatter(&[]).status.code(), Some(2));
    let line = failing(4, &["status", "--agent", "/nonexistent/agent.sock"]);
    assert_eq!(line, "agent at /nonexistent/agent.sock: no such file or directory");
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let lab = Lab::new("node1,node2");
    let mode = |name: &str| std::fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o777;
    for name in ["keys/ca.key", "keys/node1.key", "keys/node2.key", "keys/fleet.key"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let read = |name: &str| std::fs::read(lab.path(name)).unwrap();
    let kept = || [read("keys/ca.pem"), read("keys/node1.key"), read("keys/fleet.key")];
    let before = kept();
    let keys = lab.path("keys");
    let init = |hosts: &[&str]| failing(2, &[&["keys", "init", "--dir", &keys, "--host"], hosts].concat());

    let line = init(&["node3", "node1"]);
    assert!(line.contains("node1.pem: is there already"), "{line}");
    assert!(!Path::new(&lab.path("keys/node3.pem")).exists());
    let more = vmscatter(&["keys", "init", "--dir", &keys, "--host", "node3", "--host", "node4"]);
    assert!(more.status.success(), "{}", String::from_utf8_lossy(&more.stderr));
    assert_eq!(kept(), before);
    lab.tls("node1");
    lab.tls("node4");
    for bad in ["Node", "10.0.0.1", "a b", "ca", "fleet", "x,x", "../x"] {
        let line = init(&[bad]);
        assert!(line.starts_with("--host "), "{line}");
    }

    // A CA whose halves do not belong together, or that lacks one, signs nothing.
    let other = Lab::new("x");
    std::fs::copy(other.path("keys/ca.key"), lab.path("keys/ca.key")).unwrap();
    let line = init(&["node5"]);
    assert!(line.contains("ca.pem: "), "{line}");
    std::fs::remove_file(lab.path("keys/ca.key")).unwrap();
    let line = init(&["node5"]);
    assert!(line.contains("ca.key: is missing"), "{line}");
    assert!(!Path::new(&lab.path("keys/node5.key")).exists());
}

#[test]
fn a_wrong_configuration_is_one_line_and_leaves_no_socket() {
    let lab = Lab::new("node1,node2");
    let foreign = Lab::new("node1");
    std::fs::copy(foreign.path("keys/ca.pem"), lab.path("keys/foreign.pem")).unwrap();
    std::fs::write(lab.path("keys/open.key"), std::fs::read(lab.path("keys/node1.key")).unwrap()).unwrap();
    std::fs::set_permissions(lab.path("keys/open.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let good = lab.config("node1");
    let cases = [
        ("name = 'node1'", "name = 'node2'", "keys/node1.pem: is not for host 'node2'"),
        ("name = 'node1'", "nam = 'node1'", "nam: unknown field `nam`"),
        ("ca = 'keys/ca.pem'", "ca = 'keys/none.pem'", "keys/none.pem: no such file"),
        ("ca = 'keys/ca.pem'", "ca = 'keys/node1.key'", "keys/node1.key: has no certificate in PEM"),
        ("ca = 'keys/ca.pem'", "ca = 'keys/foreign.pem'", "keys/node1.pem: does not hold under"),
        ("key = 'keys/node1.key'", "key = 'keys/node2.key'", "keys/node2.key: does not go with"),
        ("key = 'keys/node1.key'", "key = 'keys/node1.pem'", "keys/node1.pem: "),
        ("key = 'keys/node1.key'", "key = 'keys/open.key'", "keys/open.key: mode 644"),
        (
            "listen = '127.0.0.1:0'",
            "listen = '192.0.2.1:7940'",
            "broken.toml: listen: cannot listen on 192.0.2.1:7940",
        ),
        (
            "[qemu]",
            "[multicast]\ninterface = 'nosuch0'\n[qemu]",
            "broken.toml: multicast.interface: there is no interface 'nosuch0'",
        ),
    ];
    for (from, to, expected) in cases {
        let config = lab.write("broken.toml", &good.replacen(from, to, 1));
        let line = failing(2, &["agent", "--config", &config]);
        assert!(line.contains(expected), "{to}: {line}");
        assert!(!Path::new(&lab.path("node1.sock")).exists());
    }
    let line = failing(2, &["agent", "--config", "/nonexistent.toml"]);
    assert_eq!(line, "/nonexistent.toml: no such file or directory");
}
