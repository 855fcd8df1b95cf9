//! The built binary from outside: bad input in one line with exit code 2, keys, agents that start, meet and stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use vmscatter::agent::config::TlsConfig;
use vmscatter::agent::control::{ControlConnection, hello};
use vmscatter::agent::tls::TlsContext;
use vmscatter_core::wire::control::Resources;

const DEADLINE: Duration = Duration::from_secs(20);

fn vmscatter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmscatter")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must fail with `code`, and gives back its one line.
fn failing(code: i32, args: &[&str]) -> String {
    let output = vmscatter(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    stderr.trim_end().strip_prefix("vmscatter: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

/// A directory with keys, configurations and guest files.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new(hosts: &str) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().unwrap() };
        let output = vmscatter(&["keys", "init", "--dir", &lab.path("keys"), "--host", hosts]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        lab
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self.path(name)
    }

    /// A guest file, and a socket where it says that QMP is.
    fn guest(&self, name: &str) -> (String, UnixListener) {
        let qmp = self.path(&format!("{name}.qmp"));
        let listener = UnixListener::bind(&qmp).unwrap();
        let text = format!("name = '{name}'\nqmp = '{qmp}'\ncommand = ['/usr/bin/qemu', '-m', '64']\n");
        (self.write(&format!("{name}.toml"), &text), listener)
    }

    fn config(&self, name: &str) -> String {
        format!(
            "name = '{name}'\nlisten = '127.0.0.1:0'\nsocket = '{name}.sock'\nstate_dir = '{name}.state'\n\
             run_dir = '{name}.run'\n[tls]\nca = 'keys/ca.pem'\ncert = 'keys/{name}.pem'\nkey = 'keys/{name}.key'\n\
             [qemu]\nprograms = ['/usr/bin/qemu']\n"
        )
    }

    fn agent(&self, name: &str) -> Agent {
        let config = self.write(&format!("{name}.toml"), &self.config(name));
        Agent::start(Path::new(&config), self.dir.path().join(format!("{name}.sock")))
    }

    fn tls(&self, name: &str) -> TlsContext {
        let path = |file: String| PathBuf::from(self.path(&file));
        let files = TlsConfig {
            ca: path("keys/ca.pem".into()),
            cert: path(format!("keys/{name}.pem")),
            key: path(format!("keys/{name}.key")),
            peers: None,
        };
        TlsContext::load(&files, name).unwrap()
    }
}

struct Agent {
    child: Child,
    control: SocketAddr,
    socket: PathBuf,
}

impl Agent {
    fn start(config: &Path, socket: PathBuf) -> Agent {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmscatter"))
            .arg("agent")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(rest) = line.strip_prefix("ready control=") else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{line}{stderr}");
        };
        assert!(rest.contains(" data=127.0.0.1:") && rest.contains(" socket="), "{line}");
        let control = rest.split(' ').next().unwrap().parse().unwrap();
        Agent { child, control, socket }
    }

    fn socket(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    fn status(&self) -> Value {
        let output = vmscatter(&["status", "--json", "--agent", self.socket()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Sends a request as it is, and gives back all lines of the reply.
    fn raw(&self, request: &[u8]) -> Vec<Value> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request).unwrap();
        BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }

    /// Tells the agent to stop, and gives back its log.
    fn stop(mut self, signal: Signal) -> String {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{stderr}");
        assert!(!self.socket.exists());
        stderr
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

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
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--hold-before-cont", "/no/dir"], "/no/dir: "),
        (&["migrate", "--to", "t1=10.0.0.1", "--guest", guest, "--colour"], "'--colour'"),
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
    for name in ["keys/ca.key", "keys/node1.key", "keys/node2.key"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let read = |name: &str| std::fs::read(lab.path(name)).unwrap();
    let (ca, first) = (read("keys/ca.pem"), read("keys/node1.key"));
    let keys = lab.path("keys");
    let init = |hosts: &[&str]| failing(2, &[&["keys", "init", "--dir", &keys, "--host"], hosts].concat());

    let line = init(&["node3", "node1"]);
    assert!(line.contains("node1.pem: is there already"), "{line}");
    assert!(!Path::new(&lab.path("keys/node3.pem")).exists());
    let more = vmscatter(&["keys", "init", "--dir", &keys, "--host", "node3", "--host", "node4"]);
    assert!(more.status.success(), "{}", String::from_utf8_lossy(&more.stderr));
    assert_eq!((read("keys/ca.pem"), read("keys/node1.key")), (ca, first));
    lab.tls("node1");
    lab.tls("node4");
    for bad in ["Node", "10.0.0.1", "a b", "ca", "x,x", "../x"] {
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
        ("listen = '127.0.0.1:0'", "listen = '192.0.2.1:7940'", "listen: cannot listen on 192.0.2.1:7940"),
        ("[qemu]", "[multicast]\ninterface = 'nosuch0'\n[qemu]", "there is no interface 'nosuch0'"),
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

#[test]
fn an_agent_starts_tells_its_status_and_stops() {
    let lab = Lab::new("node1");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let agent = lab.agent("node1");
        let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let status = agent.status();
        assert_eq!(status["name"], "node1");
        assert_eq!(status["listen"], agent.control.to_string());
        assert_eq!(status["jobs"], json!([]));
        let table = vmscatter(&["status", "--agent", agent.socket()]);
        assert!(String::from_utf8(table.stdout).unwrap().starts_with("node1 (vmscatter "));

        let line = failing(2, &["agent", "--config", &lab.path("node1.toml")]);
        assert!(line.contains("state_dir: another agent uses it"), "{line}");
        agent.stop(signal);
    }
}

#[test]
fn a_socket_that_a_dead_agent_left_is_replaced_and_a_file_is_not() {
    let lab = Lab::new("node1");
    let mut agent = lab.agent("node1");
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    assert!(agent.socket.exists());
    let again = lab.agent("node1");
    again.status();
    again.stop(Signal::SIGTERM);
    lab.write("node1.sock", "");
    let line = failing(2, &["agent", "--config", &lab.path("node1.toml")]);
    assert!(line.contains("there is a file that is no socket"), "{line}");
}

#[test]
fn what_only_the_agent_can_see_is_refused_by_it() {
    let lab = Lab::new("node1,t1");
    let agent = lab.agent("node1");
    let (guest, _qmp) = lab.guest("vm1");
    let ask = |guest: &str, to: &str| {
        failing(2, &["migrate", "--agent", agent.socket(), "--guest", guest, "--to", to])
    };
    let file = |name: &str, qmp: &str| {
        lab.write(name, &format!("name = 'vm2'\nqmp = '{qmp}'\ncommand = ['/bin/q']\n"))
    };
    let gone = file("gone.toml", "/nonexistent.qmp");
    let line = ask(&gone, "t1=127.0.0.1");
    assert_eq!(line, format!("{gone}: qmp: /nonexistent.qmp: no such file or directory"));
    let plain = file("plain.toml", &gone);
    assert_eq!(ask(&plain, "t1=127.0.0.1"), format!("{plain}: qmp: {gone}: is no socket"));
    let value = file("value.toml", "{nosuch}/x");
    let line = ask(&value, "t1=127.0.0.1");
    assert_eq!(line, format!("{value}: qmp: placeholder '{{nosuch}}' is not in this host's [values]"));
    assert!(ask(&guest, "node1=127.0.0.1").contains("is the host that the guests leave"));
    assert_eq!(agent.status()["jobs"], json!([]));
    for command in ["attach", "cancel"] {
        let line = failing(2, &[command, "7", "--agent", agent.socket()]);
        assert_eq!(line, "job 7: the agent knows no such job");
    }
}

#[test]
fn the_local_socket_answers_lines_and_refuses_noise() {
    let lab = Lab::new("node1");
    let agent = lab.agent("node1");
    let lines = agent.raw(b"{\"request\":\"status\"}\n");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((&lines[0]["reply"], &lines[1]["reply"]), (&json!("status"), &json!("done")));
    for noise in [&b"\xff\xfe\n"[..], b"{}\n", b"{\"request\":\"fly\"}\n", b"[[[[\n"] {
        let lines = agent.raw(noise);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!((&lines[0]["reply"], &lines[0]["exit"]), (&json!("refused"), &json!(2)));
    }
    // Clients that say nothing, or vanish, keep nobody else.
    let silent = UnixStream::connect(&agent.socket).unwrap();
    drop(UnixStream::connect(&agent.socket).unwrap());
    agent.status();
    drop(silent);
    let log = agent.stop(Signal::SIGTERM);
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn agents_know_each_other_by_their_certificates() {
    let lab = Lab::new("node1,node2");
    let agent = lab.agent("node2");
    let connect = |name: &'static str, tls: TlsContext| async move {
        let ours = hello("node1", Resources::default());
        ControlConnection::connect(agent.control, name, &tls, ours, [1; 16]).await
    };
    let foreign = Lab::new("node1,node2");
    let error = connect("node2", foreign.tls("node1")).await.unwrap_err().to_string();
    assert!(error.starts_with("node2 (127.0.0.1:"), "{error}");
    let error = connect("node3", lab.tls("node1")).await.unwrap_err().to_string();
    assert!(error.starts_with("node3 (127.0.0.1:") && error.contains("TLS"), "{error}");

    let connection = connect("node2", lab.tls("node1")).await.unwrap();
    assert_eq!(connection.peer.name, "node2");
    let resources = &connection.peer.resources;
    assert!(resources.free_memory_bytes > 0 && resources.mtu > 0 && resources.data_port > 0, "{resources:?}");
    wait_until("the session is in the status", || {
        let session = &agent.status()["incoming"][0];
        session["source"] == "node1" && session["session"] == "01010101-0101-0101-0101-010101010101"
    });
    drop(connection);
    // The halves close in tasks of this runtime, which must run for that.
    tokio::task::spawn_blocking(move || {
        wait_until("the session is gone", || agent.status()["incoming"] == json!([]));
        let log = agent.stop(Signal::SIGTERM);
        assert_eq!(log.matches("turned away").count(), 2, "{log}");
    })
    .await
    .unwrap();
}

#[test]
fn an_agent_stops_although_strangers_are_connected() {
    let lab = Lab::new("node1");
    let agent = lab.agent("node1");
    let mut stranger = std::net::TcpStream::connect(agent.control).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = std::net::TcpStream::connect(agent.control).unwrap();
    agent.status();
    let begun = Instant::now();
    agent.stop(Signal::SIGTERM);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
