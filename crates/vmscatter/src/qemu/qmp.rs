//! A tolerant QMP client: what it does not know in an answer it ignores.
//!
//! Two tasks own the socket's halves. Answers find their command by `id`, so a command that timed out harms
//! neither those after it nor its own late answer. QMP may hang while a guest is stopped and its migration is
//! blocked on its socket, so no deadline of a migration may depend on an answer.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use vmscatter_core::limits::{QMP_EVENTS_MAX, QMP_LINE_BYTES_MAX};

/// What went wrong, at which socket and with which command; displays as one line.
#[derive(Debug, Error)]
#[error("QMP {}: {command}: {kind}", path.display())]
pub struct QmpError {
    /// The monitor's socket.
    pub path: PathBuf,
    /// The command, or `connect`.
    pub command: String,
    /// What went wrong.
    pub kind: QmpErrorKind,
}

/// What went wrong with a command.
#[derive(Debug, Error)]
pub enum QmpErrorKind {
    /// The socket can't be used.
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    /// Nothing came in time; the command may still be carried out.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// No greeting: a monitor serves one client at a time.
    #[error("no greeting within {} ms (is another client connected to this monitor?)", .0.as_millis())]
    NoGreeting(Duration),
    /// Something else than QEMU's monitor answered.
    #[error("not a QMP monitor")]
    NotQmp,
    /// QEMU closed the monitor, or sent a line that is too long.
    #[error("the monitor was closed")]
    Closed,
    /// QEMU refused the command.
    #[error("{desc} ({class})")]
    Refused {
        /// QEMU's error class, e.g. `GenericError`, `CommandNotFound`.
        class: String,
        /// QEMU's description.
        desc: String,
    },
    /// The answer lacks something that is needed.
    #[error("unexpected answer: {0}")]
    Answer(String),
}

impl QmpError {
    /// Whether this QEMU does not have the command.
    pub fn is_unknown_command(&self) -> bool {
        matches!(&self.kind, QmpErrorKind::Refused { class, .. } if class == "CommandNotFound")
    }
}

/// An event, e.g. `STOP`, `RESUME`, `MIGRATION`.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// The event's name.
    pub name: String,
    /// Its data, `Null` if it has none.
    pub data: Value,
    /// QEMU's host clock at the event, in microseconds since the Unix epoch.
    pub time_us: u64,
}

/// The version in the greeting. For messages: what a QEMU can do is probed by name, see [`super::Features`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct QemuVersion {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A connected monitor. Clones share the connection, which is closed when the last one goes.
#[derive(Clone, Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
}

type Answer = Result<Value, QmpErrorKind>;

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    peer_pid: Option<i32>,
    version: QemuVersion,
    limit: Duration,
    next_id: AtomicU64,
    events_lost: Arc<AtomicU64>,
    waiting: Arc<Waiting>,
    lines: mpsc::Sender<Vec<u8>>,
    tasks: [JoinHandle<()>; 2],
}

/// The commands under way; `None` once the connection has ended.
#[derive(Debug)]
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Waiting {
    fn with<R>(&self, act: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Answer>>>) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Qmp {
    /// Connects to the monitor at `path` and leaves negotiation mode. `limit` holds for this and for each command.
    ///
    /// Events go to the receiver; while it is not read, at most [`QMP_EVENTS_MAX`] wait and further ones are
    /// lost ([`Qmp::events_lost`]), of the frequent `MIGRATION_PASS` half as many.
    ///
    /// # Errors
    /// If nothing listens there, or what listens is no QMP monitor or is busy with another client.
    pub async fn connect(path: &Path, limit: Duration) -> Result<(Qmp, mpsc::Receiver<QmpEvent>), QmpError> {
        let error = |kind| QmpError { path: path.to_owned(), command: "connect".into(), kind };
        let stream = match tokio::time::timeout(limit, UnixStream::connect(path)).await {
            Ok(stream) => stream.map_err(|e| error(e.into()))?,
            Err(_) => return Err(error(QmpErrorKind::Timeout(limit))),
        };
        Qmp::start(stream, path, limit).await
    }

    /// As [`Qmp::connect`], over a socket that is connected already; `path` is for messages.
    pub async fn start(
        stream: UnixStream,
        path: &Path,
        limit: Duration,
    ) -> Result<(Qmp, mpsc::Receiver<QmpEvent>), QmpError> {
        let error = |kind| QmpError { path: path.to_owned(), command: "connect".into(), kind };
        let peer_pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (read, write) = stream.into_split();
        let mut reader = Lines { reader: BufReader::new(read), line: Vec::new() };
        let version = match tokio::time::timeout(limit, reader.greeting()).await {
            Ok(version) => version.map_err(error)?,
            Err(_) => return Err(error(QmpErrorKind::NoGreeting(limit))),
        };
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let events_lost = Arc::new(AtomicU64::new(0));
        let (lines, to_write) = mpsc::channel(64);
        let (events, event_receiver) = mpsc::channel(QMP_EVENTS_MAX);
        let tasks = [
            tokio::spawn(read_all(reader, waiting.clone(), events, events_lost.clone())),
            tokio::spawn(write_all(write, to_write)),
        ];
        let next_id = AtomicU64::new(1);
        let path = path.to_owned();
        let shared = Shared { path, peer_pid, version, limit, next_id, events_lost, waiting, lines, tasks };
        let qmp = Qmp { shared: Arc::new(shared) };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, event_receiver))
    }

    /// Runs a command and gives its answer's `return`.
    ///
    /// # Errors
    /// If QEMU refuses it, does not answer in time, or the monitor is closed.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, self.shared.limit).await
    }

    /// As [`Qmp::execute`], with a time limit of its own.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = tokio::time::timeout(limit, self.round_trip(id, command, arguments)).await;
        let answer = answer.unwrap_or_else(|_| {
            self.shared.waiting.with(|waiting| waiting.as_mut().and_then(|map| map.remove(&id)));
            Err(QmpErrorKind::Timeout(limit))
        });
        answer.map_err(|kind| self.error(command, kind))
    }

    async fn round_trip(&self, id: u64, command: &str, arguments: Value) -> Answer {
        let (sender, answer) = oneshot::channel();
        let open =
            self.shared.waiting.with(|waiting| waiting.as_mut().map(|map| map.insert(id, sender)).is_some());
        let mut line =
            json!({ "execute": command, "arguments": arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        if !open || self.shared.lines.send(line).await.is_err() {
            return Err(QmpErrorKind::Closed);
        }
        answer.await.unwrap_or(Err(QmpErrorKind::Closed))
    }

    pub(super) fn error(&self, command: &str, kind: QmpErrorKind) -> QmpError {
        QmpError { path: self.shared.path.clone(), command: command.into(), kind }
    }

    /// The monitor's socket.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The process that made the socket (`SO_PEERCRED`): QEMU, unless a manager opened the socket for it or it
    /// went into the background since.
    pub fn peer_pid(&self) -> Option<i32> {
        self.shared.peer_pid
    }

    /// QEMU's version, for messages.
    pub fn version(&self) -> QemuVersion {
        self.shared.version
    }

    /// Events that were dropped because nobody read them in time.
    pub fn events_lost(&self) -> u64 {
        self.shared.events_lost.load(Ordering::Relaxed)
    }

    /// Whether the monitor was closed: QEMU has ended, as a rule.
    pub fn is_closed(&self) -> bool {
        self.shared.waiting.with(|waiting| waiting.is_none())
    }
}

/// Any line that QEMU sends; what else it has is ignored.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<Value>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    timestamp: Value,
}

impl Line {
    fn answer(self) -> Answer {
        let Some(error) = self.error else { return Ok(self.result.unwrap_or_default()) };
        let text = |key: &str| one_line(error[key].as_str().unwrap_or("unknown"));
        Err(QmpErrorKind::Refused { class: text("class"), desc: text("desc") })
    }

    fn time_us(&self) -> u64 {
        let number = |key: &str| self.timestamp[key].as_u64().unwrap_or_default();
        number("seconds").saturating_mul(1_000_000).saturating_add(number("microseconds"))
    }
}

/// QEMU's text without line breaks and other control characters.
pub(super) fn one_line(text: &str) -> String {
    text.trim().replace(|c: char| c.is_control(), " ")
}

struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    /// The next line that is JSON; `None` at the end and for a line that is too long.
    async fn next(&mut self) -> Result<Option<Line>, std::io::Error> {
        loop {
            self.line.clear();
            let mut bounded = (&mut self.reader).take(QMP_LINE_BYTES_MAX as u64);
            if bounded.read_until(b'\n', &mut self.line).await? == 0 || self.line.last() != Some(&b'\n') {
                return Ok(None);
            }
            match serde_json::from_slice(&self.line) {
                Ok(line) => return Ok(Some(line)),
                Err(error) => tracing::debug!(%error, "QMP line ignored"),
            }
        }
    }

    async fn greeting(&mut self) -> Result<QemuVersion, QmpErrorKind> {
        let greeting = self.next().await?.and_then(|line| line.greeting).ok_or(QmpErrorKind::NotQmp)?;
        Ok(QemuVersion::deserialize(&greeting["version"]["qemu"]).unwrap_or_default())
    }
}

async fn read_all(
    mut lines: Lines,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<QmpEvent>,
    events_lost: Arc<AtomicU64>,
) {
    while let Ok(Some(line)) = lines.next().await {
        if let Some(name) = &line.event {
            let event = QmpEvent { name: name.clone(), time_us: line.time_us(), data: line.data };
            let crowded = event.name == "MIGRATION_PASS" && events.capacity() < QMP_EVENTS_MAX / 2;
            if crowded || matches!(events.try_send(event), Err(mpsc::error::TrySendError::Full(_))) {
                events_lost.fetch_add(1, Ordering::Relaxed);
            }
            continue;
        }
        let Some(id) = line.id.as_ref().and_then(Value::as_u64) else { continue };
        let sender = waiting.with(|waiting| waiting.as_mut().and_then(|map| map.remove(&id)));
        if let Some(sender) = sender {
            // Whoever asked may have given up meanwhile.
            let _ = sender.send(line.answer());
        }
    }
    // Dropping the senders ends every command under way with `Closed`.
    waiting.with(Option::take);
}

async fn write_all(mut socket: OwnedWriteHalf, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if socket.write_all(&line).await.is_err() {
            return;
        }
    }
}
