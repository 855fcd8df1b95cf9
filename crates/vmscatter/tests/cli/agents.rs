//! Agents that start, meet, answer and stop.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use vmscatter::agent::control::{ControlConnection, hello};
use vmscatter::agent::tls::TlsContext;
use vmscatter_core::wire::control::Resources;

use crate::harness::{Lab, failing, vmscatter, wait_until};

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
fn a_log_that_nobody_reads_holds_nothing_up() {
    let lab = Lab::new("node1");
    let agent = lab.agent("node1");
    // A line for each, and more of them than a pipe holds.
    for _ in 0..1500 {
        drop(TcpStream::connect(agent.control).unwrap());
    }
    for _ in 0..3 {
        assert_eq!(agent.status()["name"], "node1");
    }
    let log = agent.stop(Signal::SIGTERM);
    assert!(log.lines().filter(|line| line.contains("turned away")).count() > 700);
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

#[test]
fn a_job_that_fails_is_kept_and_shown_again() {
    let lab = Lab::new("node1");
    let agent = lab.agent("node1");
    let (guest, qmp) = lab.guest("vm1");
    // A monitor that says nothing and closes.
    let monitor = std::thread::spawn(move || qmp.accept().map(drop));
    let scan = vmscatter(&["scan", "--agent", agent.socket(), "--guest", &guest]);
    assert!(!scan.status.success());
    let stderr = String::from_utf8(scan.stderr).unwrap();
    assert!(stderr.lines().last().unwrap().starts_with("vmscatter: "), "{stderr}");
    let status = agent.status();
    let job = &status["jobs"][0];
    assert_eq!(
        (&job["kind"], &job["state"], &job["guests"]),
        (&json!("scan"), &json!("done"), &json!(["vm1"]))
    );
    assert_eq!(job["exit"], json!(scan.status.code().unwrap()));
    let again = vmscatter(&["attach", "1", "--agent", agent.socket()]);
    assert_eq!(again.status.code(), scan.status.code());
    let line = stderr.lines().last().unwrap();
    assert_eq!(String::from_utf8(again.stderr).unwrap().lines().last(), Some(line));
    let log = agent.stop(Signal::SIGTERM);
    assert!(!log.contains("panicked"), "{log}");
    drop(monitor);
}
