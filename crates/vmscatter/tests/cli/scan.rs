//! `scan` of real QEMUs through an agent, and the file that it leaves.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vmscatter::report::event::{JobEvent, JobOutcome};
use vmscatter::report::outcome::{Exit, ScanOutcome};
use vmscatter_core::index::fingerprint::FILE_BYTES_MAX;
use vmscatter_core::index::{Fingerprints, FleetKey};

use crate::harness::{Agent, DEADLINE, Lab, failing, vmscatter, wait_until};

const MEMORY_BYTES: u64 = 16 << 20;

/// A guest whose firmware has run for a moment, stopped.
struct Guest {
    qemu: Child,
    file: String,
}

impl Guest {
    fn start(lab: &Lab, name: &str, options: &[&str]) -> Guest {
        let (qmp, run) = (lab.path(&format!("{name}.qmp")), lab.path(&format!("{name}.run.qmp")));
        let program = std::env::var("VMSCATTER_TEST_QEMU").unwrap_or("qemu-system-x86_64".into());
        let mut words = program.split_whitespace();
        let qemu = Command::new(words.next().unwrap())
            .args(words)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-name", name])
            .args(options)
            .args(["-qmp", &format!("unix:{qmp},server=on,wait=off")])
            .args(["-qmp", &format!("unix:{run},server=on,wait=off")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
        let text = format!("name = '{name}'\nqmp = '{qmp}'\ncommand = ['/usr/bin/qemu', '-m', '16']\n");
        let guest = Guest { qemu, file: lab.write(&format!("{name}.toml"), &text) };
        wait_until("QEMU has opened its monitor", || Path::new(&qmp).exists() && Path::new(&run).exists());
        // Its firmware writes to memory within this time; if not, the guests have their ROMs in common.
        std::thread::sleep(Duration::from_millis(300));
        let mut monitor = UnixStream::connect(&run).unwrap();
        monitor.set_read_timeout(Some(DEADLINE)).unwrap();
        monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"stop\"}").unwrap();
        let stopped = BufReader::new(monitor).lines().find(|line| line.as_ref().unwrap().contains("STOP"));
        assert!(stopped.is_some(), "the guest has stopped");
        guest
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn agent_with_key(lab: &Lab) -> Agent {
    let config = lab.config("node1").replace("[qemu]", "[fingerprints]\nkey = 'keys/fleet.key'\n[qemu]");
    let config = lab.write("node1.toml", &config);
    Agent::start(Path::new(&config), PathBuf::from(lab.path("node1.sock")))
}

fn fleet_key(lab: &Lab) -> FleetKey {
    let text = std::fs::read_to_string(lab.path("keys/fleet.key")).unwrap();
    let hex: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect();
    FleetKey::new(&hex.try_into().unwrap())
}

#[test]
fn what_is_saved_is_what_was_found() {
    let lab = Lab::new("node1");
    let agent = agent_with_key(&lab);
    let memfd = ["-M", "pc,memory-backend=m0", "-object", "memory-backend-memfd,id=m0,size=16M,share=on"];
    // Private and shared memory: what they hold in common is found all the same.
    let guests = [Guest::start(&lab, "vm1", &["-M", "pc"]), Guest::start(&lab, "vm2", &memfd)];
    let out = lab.path("node1.fp");
    let scan = |more: &[&str]| {
        let args =
            ["scan", "--agent", agent.socket(), "--guest", &guests[0].file, &guests[1].file, "--collect-cpu"];
        vmscatter(&[&args[..], more].concat())
    };
    let output = scan(&["50", "--json", "--out", &out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = std::fs::read(&out).unwrap();
    assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let saved = Fingerprints::decode(&file).unwrap();
    assert!(saved.has_key(&fleet_key(&lab)));
    assert_eq!((saved.host.as_str(), saved.rate_log2()), ("node1", 0));
    assert_eq!(outcome["fingerprints"], json!({ "contents": saved.len(), "one_in": 1, "bytes": file.len() }));
    for (vm, told) in saved.vms().iter().zip(outcome["guests"].as_array().unwrap()) {
        assert_eq!(vm.name, told["name"]);
        assert!(vm.readable && vm.memory_bytes >= MEMORY_BYTES);
        assert_eq!((&told["pages"], &told["zero_pages"]), (&json!(vm.pages.pages), &json!(vm.pages.zero)));
        assert_eq!(vm.sampled_pages(), vm.pages.pages - vm.pages.zero);
        assert!(told["across_pages"].as_u64().unwrap() > 0, "{told}");
    }
    // Once more: equal contents have equal fingerprints.
    let again = lab.path("again.fp");
    let output = scan(&["100", "--out", &again]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains(&format!("saved {} fingerprints, all, in ", saved.len())), "{table}");
    let again = Fingerprints::decode(&std::fs::read(&again).unwrap()).unwrap();
    assert!(again.vms() == saved.vms(), "the fingerprints of stopped guests have changed");
    agent.stop(Signal::SIGTERM);
}

#[test]
fn nothing_is_saved_without_the_fleets_key() {
    let lab = Lab::new("node1");
    let agent = lab.agent("node1");
    let (guest, _qmp) = lab.guest("vm1");
    let out = lab.path("out.fp");
    let line = failing(2, &["scan", "--agent", agent.socket(), "--guest", &guest, "--out", &out]);
    let config = lab.path("node1.toml");
    assert!(line.starts_with(&format!("{config}: [fingerprints] is missing")), "{line}");
    assert!(line.contains("fleet.key") && !Path::new(&out).exists(), "{line}");
    let line = failing(2, &["scan", "--agent", agent.socket(), "--guest", &guest, "--out", "/no/such/dir/x"]);
    assert_eq!(line, "/no/such/dir/x: no such file or directory");
    assert_eq!(agent.status()["jobs"], json!([]));
    agent.stop(Signal::SIGTERM);
}

#[test]
fn a_wrong_fleet_key_is_one_line() {
    let lab = Lab::new("node1");
    let key = lab.path("keys/fleet.key");
    let config = lab.config("node1").replace("[qemu]", "[fingerprints]\nkey = 'keys/fleet.key'\n[qemu]");
    let config = lab.write("node1.toml", &config);
    let line = || failing(2, &["agent", "--config", &config]);
    let good = std::fs::read_to_string(&key).unwrap();
    for bad in [&good[2..], "", &good.replace(&good[..1], "g"), &"0".repeat(300)] {
        std::fs::write(&key, bad).unwrap();
        let line = line();
        assert!(line.starts_with(&format!("{key}: ")), "{line}");
    }
    std::fs::write(&key, &good).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(line(), format!("{key}: mode 644 lets everybody at the fleet's key"));
    std::fs::remove_file(&key).unwrap();
    assert_eq!(line(), format!("{key}: no such file or directory"));
}

/// The command line with an agent that the test plays: what is left of the file.
fn scan_answered_with(file: &[u8]) -> (Option<i32>, Option<Vec<u8>>) {
    let lab = Lab { dir: tempfile::tempdir().unwrap() };
    let listener = UnixListener::bind(lab.path("agent.sock")).unwrap();
    let guest = lab.write("vm1.toml", "name = 'vm1'\nqmp = '/x'\ncommand = ['/bin/q']\n");
    let (out, socket) = (lab.path("out.fp"), lab.path("agent.sock"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmscatter"))
        .args(["scan", "--agent", &socket, "--guest", &guest, "--out", &out])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
    assert!(request.contains("\"fingerprints\":true"), "{request}");
    let mut outcome = ScanOutcome::failed("");
    (outcome.exit, outcome.error) = (Exit::Success, None);
    let done = JobEvent::Done { outcome: JobOutcome::Scan(outcome) };
    let done = json!({ "reply": "event", "event": done });
    stream.write_all(format!("{{\"reply\":\"job\",\"job\":1}}\n{done}\n").as_bytes()).unwrap();
    stream.write_all(file).unwrap();
    drop(stream);
    let code = child.wait().unwrap().code();
    let left: Vec<_> = std::fs::read_dir(lab.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), if Path::new(&out).exists() { 3 } else { 2 }, "{left:?}");
    (code, std::fs::read(&out).ok())
}

#[test]
fn a_file_is_taken_whole_or_not_at_all() {
    let reply = |bytes: usize, content: &str| {
        format!("{{\"reply\":\"file\",\"bytes\":{bytes}}}\n{content}").into_bytes()
    };
    let done = "{\"reply\":\"done\"}\n";
    let whole = scan_answered_with(&reply(5, &format!("a\nb\n\n{done}")));
    assert_eq!(whole, (Some(0), Some(b"a\nb\n\n".to_vec())));
    assert_eq!(scan_answered_with(&reply(6, "a")), (Some(4), None));
    assert_eq!(scan_answered_with(&reply(FILE_BYTES_MAX + 1, "a")), (Some(1), None));
    assert_eq!(scan_answered_with(done.as_bytes()), (Some(0), None));
}
