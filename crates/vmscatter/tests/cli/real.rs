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
    pub(crate) fn connect(path: &Path) -> Monitor {
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

impl Options {
    /// The values of a host with these options, for guest files.
    fn values(self, lab: &Lab) -> [(&'static str, String); 5] {
        let Options { machine, cpu, smp, device } = self;
        [("qemu", &*program(lab)), ("machine", machine), ("cpu", cpu), ("smp", smp), ("device", device)]
            .map(|(key, value)| (key, value.to_owned()))
    }
}

/// One monitor for agents, one for the test. A twin gets `-S` from its agent, the guest gets it here.
const COMMAND: &str = "{qemu} -nodefaults -no-user-config -display none -m 16M -machine {machine} -cpu {cpu} -smp {smp} \
    -device {device} -qmp unix:{run_dir}/{name}.qmp,server=on,wait=off -qmp unix:{run_dir}/{name}.lab,server=on,wait=off";

/// The QEMU that agents may start.
fn program(lab: &Lab) -> String {
    let path = lab.path("qemu");
    if !Path::new(&path).exists() {
        lab.write("qemu", &format!("#!/bin/sh\nexec {} \"$@\"\n", test_qemu()));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    path
}

/// An agent on whose host guests have these options.
pub(crate) fn agent(lab: &Lab, name: &str, options: Options) -> Agent {
    let values = options.values(lab).map(|(key, value)| format!("{key} = '{value}'\n")).concat();
    let config = lab.config(name).replace("/usr/bin/qemu", &program(lab));
    let config = lab.write(&format!("{name}.conf"), &format!("{config}[values]\n{values}"));
    Agent::start(Path::new(&config), PathBuf::from(lab.path(&format!("{name}.sock"))))
}

/// The test's own monitor of a guest on a host.
pub(crate) fn monitor_path(lab: &Lab, host: &str, name: &str) -> PathBuf {
    PathBuf::from(lab.path(&format!("{host}.run/{name}.lab")))
}

/// A guest, not yet running.
pub(crate) struct Guest {
    pub(crate) qemu: Child,
    pub(crate) file: String,
    pub(crate) monitor: Monitor,
}

impl Guest {
    /// Starts it on a host whose agent runs.
    pub(crate) fn start(lab: &Lab, host: &str, name: &str, options: Options) -> Guest {
        let command: Vec<&str> = COMMAND.split_whitespace().collect();
        let text = json!({ "name": name, "qmp": "{run_dir}/{name}.qmp", "command": command });
        let file = lab.write(&format!("{name}.toml"), &toml_of(&text));
        let (values, run_dir) = (options.values(lab), lab.path(&format!("{host}.run")));
        let fill = |argument: &&str| {
            let text = argument.replace("{run_dir}", &run_dir).replace("{name}", name);
            values.iter().fold(text, |text, (key, value)| text.replace(&format!("{{{key}}}"), value))
        };
        let mut qemu = Command::new(program(lab));
        qemu.args(command[1..].iter().map(fill)).arg("-S").stdin(Stdio::null());
        let qemu = qemu.spawn().unwrap();
        Guest { qemu, file, monitor: Monitor::connect(&monitor_path(lab, host, name)) }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Two agents, and a guest at the first.
struct Pair {
    lab: Lab,
    source: Agent,
    target: Agent,
    guest: Guest,
    before: [Value; 2],
}

impl Pair {
    fn start(at_source: Options, at_target: Options) -> Pair {
        let lab = Lab::new("node1,t1");
        let (source, target) = (agent(&lab, "node1", at_source), agent(&lab, "t1", at_target));
        let mut guest = Guest::start(&lab, "node1", "vm1", at_source);
        let before = settings(&mut guest.monitor);
        Pair { lab, source, target, guest, before }
    }

    fn run(&self, command: &str, options: &[&str]) -> Output {
        let to = format!("t1={}", self.target.control);
        let args = [command, "--agent", self.source.socket(), "--guest", &self.guest.file, "--to", &to];
        vmscatter(&[&args[..], options].concat())
    }

    /// The guest stays, is as it was, and no twin of it is left.
    fn stays(&mut self) {
        let migration = self.guest.monitor.execute("query-migrate", json!({}));
        assert!(migration.get("status").is_none(), "it was told to migrate: {migration}");
        assert_eq!(settings(&mut self.guest.monitor), self.before);
        let twin = monitor_path(&self.lab, "t1", "vm1");
        assert!(!twin.exists() || UnixStream::connect(twin).is_err());
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
    pair.guest.monitor.execute("device_add", json!({ "driver": "virtio-balloon-pci", "id": "late" }));
    let told = stderr(&pair.run("migrate", &[]));
    assert!(told.contains("no device 'late' (virtio-balloon-pci) here, which the guest has"), "{told}");
    pair.stays();
}

#[test]
fn what_can_not_be_moved_is_refused_before_a_target_is_asked() {
    let mut pair = Pair::start(PLAIN, PLAIN);
    pair.guest.monitor.execute("object-add", json!({ "qom-type": "iothread", "id": "io" }));
    let balloon =
        json!({ "driver": "virtio-balloon-pci", "id": "balloon0", "free-page-hint": true, "iothread": "io" });
    pair.guest.monitor.execute("device_add", balloon);
    pair.guest.monitor.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": [{ "capability": "multifd", "state": true }] }),
    );
    pair.before = settings(&mut pair.guest.monitor);
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
    let scan = vmscatter(&["scan", "--agent", pair.source.socket(), "--guest", &pair.guest.file]);
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
    pair.guest.monitor.execute("cont", json!({}));
    let output = pair.run("migrate", &[]);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let mut twin = Monitor::connect(&monitor_path(&pair.lab, "t1", "vm1"));
    assert_eq!(twin.execute("query-status", json!({}))["status"], "running");
    twin.execute("quit", json!({}));
    wait_until("the source QEMU has ended", || matches!(pair.guest.qemu.try_wait(), Ok(Some(_))));
}
