//! The lab's own monitor connections: commands, and events with the time at which QEMU saw them.
//!
//! Deliberately not vmscatter's QMP client: what measures must not share faults with what is measured.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::{Value, json};

/// How long a command may take. A QEMU that hands over its state can be busy for seconds.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// An event of QEMU.
#[derive(Debug, Clone)]
pub struct Event {
    /// `STOP`, `RESUME`, `MIGRATION` …
    pub name: String,
    /// Its data, or null.
    pub data: Value,
    /// When QEMU saw it: time since the epoch, by the clock that all QEMUs of one machine share.
    pub at: Duration,
}

/// A connection to one QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    writer: Mutex<UnixStream>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    pid: i32,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    greeted: bool,
    closed: bool,
    replies: HashMap<u64, Value>,
    events: Vec<Event>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    /// Waits until `ready` gives a value, the connection closes (`None`) or `timeout` passes (`None`).
    fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state =
                self.changed.wait_timeout(state, left).expect("no thread panics while it holds the state").0;
        }
    }
}

impl Qmp {
    /// Connects to the monitor at `path`, which QEMU may have yet to open, and negotiates capabilities.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let until = Instant::now() + timeout;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => {
                    return Err(error).context(path.display().to_string());
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        Self::over(stream).with_context(|| path.display().to_string())
    }

    /// Takes over a connected monitor socket.
    pub fn over(stream: UnixStream) -> Result<Self> {
        let pid = getsockopt(&stream, PeerCredentials)?.pid();
        let shared = Arc::new(Shared::default());
        let (reader, reading) = (BufReader::new(stream.try_clone()?), shared.clone());
        thread::spawn(move || read(reader, &reading));
        let qmp = Self { writer: Mutex::new(stream), shared, next_id: AtomicU64::new(1), pid };
        qmp.shared
            .wait(REPLY_TIMEOUT, |state| state.greeted.then_some(()))
            .context("QEMU closed its monitor or did not greet")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The process at the other end.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Runs a command and returns what it returns.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let message = json!({ "execute": command, "arguments": arguments, "id": id });
        let mut writer = self.writer.lock().expect("no thread panics while it writes");
        writer.write_all(format!("{message}\n").as_bytes()).with_context(|| command.to_owned())?;
        drop(writer);
        let reply = self.shared.wait(REPLY_TIMEOUT, |state| state.replies.remove(&id));
        let Some(mut reply) = reply else { bail!("{command}: QEMU closed its monitor or did not answer") };
        match reply.get("error") {
            Some(error) => bail!("{command}: {}", error["desc"].as_str().unwrap_or("QEMU gave no reason")),
            None => Ok(reply["return"].take()),
        }
    }

    /// Runs a command of the human monitor and returns its text.
    pub fn human(&self, command: &str) -> Result<String> {
        let text = self.execute("human-monitor-command", json!({ "command-line": command }))?;
        text.as_str().map(str::to_owned).with_context(|| command.to_owned())
    }

    /// The first event, from the beginning of the connection on, that `wanted` accepts.
    pub fn wait_event(&self, timeout: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        self.shared.wait(timeout, |state| state.events.iter().find(|event| wanted(event)).cloned())
    }

    /// The last event of this name so far.
    pub fn last_event(&self, name: &str) -> Option<Event> {
        self.shared.lock().events.iter().rev().find(|event| event.name == name).cloned()
    }

    /// Whether QEMU is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }
}

fn read(reader: BufReader<UnixStream>, shared: &Shared) {
    for line in reader.lines() {
        let Ok(line) = line else { break };
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        let mut state = shared.lock();
        if message.get("QMP").is_some() {
            state.greeted = true;
        } else if let Some(event) = parse_event(&message) {
            state.events.push(event);
        } else if let Some(id) = message["id"].as_u64() {
            state.replies.insert(id, message);
        }
        drop(state);
        shared.changed.notify_all();
    }
    shared.lock().closed = true;
    shared.changed.notify_all();
}

fn parse_event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let time = &message["timestamp"];
    let at = Duration::from_secs(time["seconds"].as_u64()?)
        + Duration::from_micros(time["microseconds"].as_u64()?);
    Some(Event { name, data: message["data"].clone(), at })
}
