//! Real QEMUs between two agents on the loopback: what is refused of them, by whom, and that nothing of it is changed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::harness::{Agent, DEADLINE, Lab, vmscatter, wait_until};

/// A test's own connection to a QEMU.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(path: &Path) -> Monitor {
        wait_until("QEMU has opened its monitor", || UnixStream::connect(path).is_ok());
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.line();
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let line = self.line();
            assert!(line.get("error").is_none(), "{command}: {line}");
            if let Some(answer) = line.get("return") {
                return answer.clone();
            }
        }
    }
}

/// Two agents, and a guest at the first. A host's values are `machine`, `cpu`, `smp` and `device`.
pub(crate) struct Pair {
    lab: Lab,
    source: Agent,
    target: Agent,
    qemu: Child,
    file: String,
    pub(crate) monitor: Monitor,
    before: [Value; 2],
}

/// What differs between the hosts.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    machine: &'static str,
    cpu: &'static str,
    smp: &'static str,
    device: &'static str,
}

pub(crate) const PLAIN: Options =
    Options { machine: "pc", cpu: "qemu64", smp: "1", device: "virtio-rng-pci" };

/// One monitor for agents, one for the test. A twin gets `-S` from its agent, the guest gets it here.
const COMMAND: &str = "{qemu} -nodefaults -no-user-config -display none -m 16M -machine {machine} -cpu {cpu} -smp {smp} \
    -device {device} -qmp unix:{run_dir}/{name}.qmp,server=on,wait=off -qmp unix:{run_dir}/{name}.lab,server=on,wait=off";

impl Pair {
    pub(crate) fn start(at_source: Options, at_target: Options) -> Pair {
        let lab = Lab::new("node1,t1");
        let program = lab.write("qemu", &format!("#!/bin/sh\nexec {} \"$@\"\n", test_qemu()));
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let values = |name: &str, options: Options| {
            let Options { machine, cpu, smp, device } = options;
            let run_dir = lab.path(&format!("{name}.run"));
            [("qemu", &*program), ("machine", machine), ("cpu", cpu), ("smp", smp), ("device", device)]
                .map(|(key, value)| (key, value.to_owned()))
                .into_iter()
                .chain([("run_dir", run_dir), ("name", "vm1".to_owned())])
                .collect::<Vec<_>>()
        };
        let agent = |name: &str, options: Options| {
            let values = values(name, options);
            let lines = values[..5].iter().map(|(key, value)| format!("{key} = '{value}'\n"));
            let config = lab.config(name).replace("/usr/bin/qemu", &program);
            let config = lab
                .write(&format!("{name}.conf"), &format!("{config}[values]\n{}", lines.collect::<String>()));
            Agent::start(Path::new(&config), PathBuf::from(lab.path(&format!("{name}.sock"))))
        };
        let (source, target) = (agent("node1", at_source), agent("t1", at_target));
        let command: Vec<&str> = COMMAND.split_whitespace().collect();
        let text = json!({ "name": "vm1", "qmp": "{run_dir}/{name}.qmp", "command": command });
        let file = lab.write("vm1.toml", &toml_of(&text));
        let fill = |argument: &&str| {
            values("node1", at_source)
                .iter()
                .fold(argument.to_string(), |text, (key, value)| text.replace(&format!("{{{key}}}"), value))
        };
        let mut qemu = Command::new(&program);
        qemu.args(command[1..].iter().map(fill)).arg("-S").stdin(Stdio::null());
        let qemu = qemu.spawn().unwrap();
        let mut monitor = Monitor::connect(Path::new(&lab.path("node1.run/vm1.lab")));
        let before = settings(&mut monitor);
        Pair { lab, source, target, qemu, file, monitor, before }
    }

    pub(crate) fn run(&self, command: &str, options: &[&str]) -> Output {
        let to = format!("t1={}", self.target.control);
        let args = [command, "--agent", self.source.socket(), "--guest", &self.file, "--to", &to];
        vmscatter(&[&args[..], options].concat())
    }

    /// The guest stays, is as it was, and no twin of it is left.
    pub(crate) fn stays(&mut self) {
        let migration = self.monitor.execute("query-migrate", json!({}));
        assert!(migration.get("status").is_none(), "it was told to migrate: {migration}");
        assert_eq!(settings(&mut self.monitor), self.before);
        assert!(!Path::new(&self.lab.path("t1.run/vm1.lab")).exists() || self.twin_is_gone());
    }

    fn twin_is_gone(&self) -> bool {
        UnixStream::connect(self.lab.path("t1.run/vm1.lab")).is_err()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn settings(monitor: &mut Monitor) -> [Value; 2] {
    ["query-migrate-parameters", "query-migrate-capabilities"].map(|query| monitor.execute(query, json!({})))
}

fn test_qemu() -> String {
    std::env::var("VMSCATTER_TEST_QEMU").unwrap_or("qemu-system-x86_64".into())
}

/// JSON's strings and lists of them are TOML's.
fn toml_of(table: &Value) -> String {
    let lines = table.as_object().unwrap().iter().map(|(key, value)| format!("{key} = {value}\n"));
    lines.collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_the_target_does_not_have_comes_back_as_one_line() {
    let cases = [
        (Options { cpu: "nosuch", ..PLAIN }, "unable to find CPU model 'nosuch'"),
        (Options { cpu: "qemu64,+nosuch", ..PLAIN }, "Property 'qemu64-x86_64-cpu.nosuch' not found"),
        (Options { machine: "pc-i440fx-99.0", ..PLAIN }, "unsupported machine type"),
        (Options { machine: "q35", ..PLAIN }, "machine type is pc-q35-"),
        (Options { device: "nosuch", ..PLAIN }, "'nosuch' is not a valid device model name"),
        (Options { device: "virtio-rng-pci,foo=1", ..PLAIN }, "Property 'virtio-rng-pci.foo' not found"),
        (
            Options { device: "virtio-balloon-pci", ..PLAIN },
            "no device virtio-rng-pci here, which the guest has",
        ),
        (Options { smp: "2", ..PLAIN }, "2 virtual CPUs here, and 1 at the source"),
        (
            Options { cpu: "Westmere", ..PLAIN },
            "CPU model is Westmere-x86_64-cpu here, and qemu64-x86_64-cpu at the source",
        ),
        (
            Options { cpu: "qemu64,-sse3", ..PLAIN },
            "features that it would not have here: CPUID 0x1 ECX bits 0 (",
        ),
    ];
    for (at_target, expected) in cases {
        let mut pair = Pair::start(PLAIN, at_target);
        let output = pair.run("migrate", &[]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let line = told.lines().find(|line| line.contains("vm1: failed, stays: "));
        assert!(line.is_some_and(|line| line.contains(expected)), "{expected}: {told}");
        pair.stays();
    }
}

#[test]
fn a_device_that_was_plugged_later_is_found_before_anything_is_changed() {
    let mut pair = Pair::start(PLAIN, PLAIN);
    pair.monitor.execute("device_add", json!({ "driver": "virtio-balloon-pci", "id": "late" }));
    let told = stderr(&pair.run("migrate", &[]));
    assert!(told.contains("no device 'late' (virtio-balloon-pci) here, which the guest has"), "{told}");
    pair.stays();
}

#[test]
fn what_can_not_be_moved_is_refused_before_a_target_is_asked() {
    let mut pair = Pair::start(PLAIN, PLAIN);
    pair.monitor.execute("object-add", json!({ "qom-type": "iothread", "id": "io" }));
    let balloon =
        json!({ "driver": "virtio-balloon-pci", "id": "balloon0", "free-page-hint": true, "iothread": "io" });
    pair.monitor.execute("device_add", balloon);
    pair.monitor.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": [{ "capability": "multifd", "state": true }] }),
    );
    pair.before = settings(&mut pair.monitor);
    for command in ["migrate", "plan"] {
        let output = pair.run(command, &[]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        let line = told.lines().last().unwrap_or_default();
        for expected in
            ["vm1 can't be moved: ", "capability 'multifd' is on: switch it off first", "balloon 'balloon0'"]
        {
            assert!(line.contains(expected), "{expected}: {told}");
        }
        pair.stays();
    }
    // What only reads says so, and reads.
    let scan = vmscatter(&["scan", "--agent", pair.source.socket(), "--guest", &pair.file]);
    assert!(
        scan.status.success() && stderr(&scan).contains("warning: vm1: can't be moved: "),
        "{}",
        stderr(&scan)
    );
    pair.stays();
}

#[test]
fn a_guest_that_is_as_it_should_be_moves() {
    let mut pair = Pair::start(PLAIN, PLAIN);
    pair.monitor.execute("cont", json!({}));
    let output = pair.run("migrate", &[]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let mut twin = Monitor::connect(Path::new(&pair.lab.path("t1.run/vm1.lab")));
    assert_eq!(twin.execute("query-status", json!({}))["status"], "running");
    twin.execute("quit", json!({}));
    wait_until("the source QEMU has ended", || matches!(pair.qemu.try_wait(), Ok(Some(_))));
}
