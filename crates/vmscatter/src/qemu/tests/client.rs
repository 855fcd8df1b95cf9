//! The QMP client against a scripted monitor.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use vmscatter_core::limits::{QMP_EVENTS_MAX, QMP_LINE_BYTES_MAX};

use crate::qemu::qmp::{Qmp, QmpErrorKind, QmpEvent};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "new": 1}, "capabilities": ["oob"]}}"#;
const LIMIT: Duration = Duration::from_millis(500);

/// The monitor's side of a connection.
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    pub(super) async fn say(&mut self, line: &str) {
        self.0.write_all(line.as_bytes()).await.expect("write");
        self.0.write_all(b"\r\n").await.expect("write");
    }

    pub(super) async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.expect("read");
        serde_json::from_str(&line).expect("JSON")
    }
}

pub(super) async fn connected() -> (Qmp, mpsc::Receiver<QmpEvent>, Monitor) {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let mut monitor = Monitor(BufReader::new(theirs));
    let greet = async {
        monitor.say(GREETING).await;
        let command = monitor.hear().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        monitor.say(&json!({ "return": {}, "id": command["id"] }).to_string()).await;
    };
    let (connection, ()) = tokio::join!(Qmp::start(ours, Path::new("/run/vm.qmp"), LIMIT), greet);
    let (qmp, events) = connection.expect("connect");
    (qmp, events, monitor)
}

#[tokio::test]
async fn answers_find_their_command_in_any_order() {
    let (qmp, _events, mut monitor) = connected().await;
    assert_eq!(qmp.version().to_string(), "7.2.22");
    let serve = async {
        let (first, second) = (monitor.hear().await, monitor.hear().await);
        assert_eq!(first["arguments"], json!({ "n": 1 }));
        monitor.say("neither JSON nor an answer").await;
        monitor.say(&json!({ "return": "second", "id": second["id"], "more": [1] }).to_string()).await;
        monitor.say(&json!({ "return": "nobody's", "id": 999 }).to_string()).await;
        monitor.say(&json!({ "return": "first", "id": first["id"] }).to_string()).await;
    };
    let (first, second, ()) =
        tokio::join!(qmp.execute("a", json!({ "n": 1 })), qmp.execute("b", json!({})), serve);
    assert_eq!((first.expect("a"), second.expect("b")), (json!("first"), json!("second")));
}

#[tokio::test]
async fn events_come_with_their_time() {
    let (qmp, mut events, mut monitor) = connected().await;
    let serve = async {
        let command = monitor.hear().await;
        monitor.say(r#"{"timestamp": {"seconds": 5, "microseconds": 7}, "event": "STOP"}"#).await;
        monitor
            .say(r#"{"timestamp": {"seconds": -1}, "event": "MIGRATION", "data": {"status": "active"}}"#)
            .await;
        monitor.say(&json!({ "return": {}, "id": command["id"] }).to_string()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("stop", json!({})), serve);
    answer.expect("stop");
    let stop = QmpEvent { name: "STOP".into(), data: Value::Null, time_us: 5_000_007 };
    assert_eq!(events.recv().await, Some(stop));
    let migration = events.recv().await.expect("second event");
    assert_eq!((migration.data["status"].as_str(), migration.time_us), (Some("active"), 0));
}

#[tokio::test]
async fn refusals_name_socket_and_command_in_one_line() {
    let (qmp, _events, mut monitor) = connected().await;
    let serve = async {
        let id = monitor.hear().await["id"].clone();
        let error = json!({ "class": "CommandNotFound", "desc": "The command\nis not known" });
        monitor.say(&json!({ "error": error, "id": id }).to_string()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("x-query-ramblock", json!({})), serve);
    let error = answer.expect_err("refused");
    assert!(error.is_unknown_command());
    let expected = "QMP /run/vm.qmp: x-query-ramblock: The command is not known (CommandNotFound)";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn command_without_answer_times_out_and_harms_no_other() {
    let (qmp, _events, mut monitor) = connected().await;
    let error = qmp.execute_within("stop", json!({}), Duration::from_millis(20)).await.expect_err("silent");
    assert!(matches!(error.kind, QmpErrorKind::Timeout(_)), "{error}");
    let serve = async {
        let (late, next) = (monitor.hear().await, monitor.hear().await);
        monitor.say(&json!({ "return": "late", "id": late["id"] }).to_string()).await;
        monitor.say(&json!({ "return": "next", "id": next["id"] }).to_string()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute("cont", json!({})), serve);
    assert_eq!(answer.expect("cont"), json!("next"));
}

#[tokio::test]
async fn closing_ends_what_is_under_way_and_what_follows() {
    let (qmp, mut events, mut monitor) = connected().await;
    let serve = async {
        monitor.hear().await;
        drop(monitor);
    };
    let (answer, ()) = tokio::join!(qmp.execute("quit", json!({})), serve);
    assert!(matches!(answer.expect_err("closed").kind, QmpErrorKind::Closed));
    assert_eq!(events.recv().await, None);
    assert!(qmp.is_closed());
    let error = qmp.execute("cont", json!({})).await.expect_err("closed");
    assert!(matches!(error.kind, QmpErrorKind::Closed), "{error}");
}

#[tokio::test]
async fn line_without_end_closes() {
    let (qmp, _events, mut monitor) = connected().await;
    let line = vec![b' '; QMP_LINE_BYTES_MAX + 1];
    let write = async {
        // The client may hang up before all is written.
        let _ = monitor.0.write_all(&line).await;
    };
    let limit = Duration::from_secs(20);
    let (answer, ()) = tokio::join!(qmp.execute_within("cont", json!({}), limit), write);
    assert!(matches!(answer.expect_err("closed").kind, QmpErrorKind::Closed));
}

#[tokio::test]
async fn flood_of_passes_loses_no_other_event() {
    let (qmp, mut events, mut monitor) = connected().await;
    let serve = async {
        for _ in 0..2 * QMP_EVENTS_MAX {
            monitor.say(r#"{"event": "MIGRATION_PASS", "data": {"pass": 1}}"#).await;
        }
        monitor.say(r#"{"event": "STOP"}"#).await;
        let id = monitor.hear().await["id"].clone();
        monitor.say(&json!({ "return": {}, "id": id }).to_string()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute_within("stop", json!({}), Duration::from_secs(20)), serve);
    answer.expect("stop");
    assert!(qmp.events_lost() > 0);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event.name);
    }
    assert_eq!(seen.last().map(String::as_str), Some("STOP"));
    assert!(seen.len() <= QMP_EVENTS_MAX);
}

#[tokio::test]
async fn what_is_no_monitor_is_told() {
    let (ours, _silent) = UnixStream::pair().expect("socket pair");
    let limit = Duration::from_millis(20);
    let error = Qmp::start(ours, Path::new("/run/vm.qmp"), limit).await.expect_err("silent");
    assert!(matches!(error.kind, QmpErrorKind::NoGreeting(_)), "{error}");
    let (ours, mut other) = UnixStream::pair().expect("socket pair");
    other.write_all(b"220 mail.example ESMTP\r\n{}\n").await.expect("write");
    let error = Qmp::start(ours, Path::new("/run/vm.qmp"), LIMIT).await.expect_err("not QMP");
    assert!(matches!(error.kind, QmpErrorKind::NotQmp), "{error}");
    let error = Qmp::connect(Path::new("/nonexistent/vm.qmp"), LIMIT).await.expect_err("no socket");
    assert_eq!(error.to_string(), "QMP /nonexistent/vm.qmp: connect: No such file or directory (os error 2)");
}
