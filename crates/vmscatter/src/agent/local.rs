//! The local socket: who may reach it may move guests, so its mode is 0600, and its peers run as the agent's user or root.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::AgentContext;
use super::config::os_text;
use super::guest_file::GuestFile;
use super::input::BadInput;
use super::jobs::Job;
use super::protocol::{
    DoctorRequest, JobKind, LocalReply, LocalRequest, MigrateRequest, PlanRequest, REQUEST_BYTES_MAX,
    ScanRequest, TargetSpec,
};
use crate::recovery::operator;
use crate::report::event::JobOutcome;
use crate::report::outcome::Exit;

/// A client has this long for its request, and for taking each reply.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a file that are given to a client within [`CLIENT_DEADLINE`].
const FILE_CHUNK_BYTES: usize = 1024 * 1024;
/// Events that are copied out of a job at a time.
const EVENTS_AT_ONCE: usize = 64;

/// Why a line can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The socket failed.
    #[error("{}", os_text(.0))]
    Io(#[from] std::io::Error),
    /// No end of line within the limit.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// Not what was expected.
    #[error("malformed line: {0}")]
    Json(#[from] serde_json::Error),
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
}

/// Reads a line of JSON of at most `bytes_max` bytes; `None` at the end.
///
/// # Errors
/// [`LineError`]; the stream is of no use then.
pub async fn read_line<T: DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
    bytes_max: usize,
) -> Result<Option<T>, LineError> {
    let mut line = Vec::new();
    let read = reader.take(bytes_max as u64 + 1).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return match line.len() > bytes_max {
            true => Err(LineError::TooLong(bytes_max)),
            false => Err(LineError::Io(std::io::ErrorKind::UnexpectedEof.into())),
        };
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Writes a line of JSON.
///
/// # Errors
/// [`LineError`]; the stream is of no use then.
pub async fn write_line<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> Result<(), LineError> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    Ok(writer.flush().await?)
}

/// Binds the socket; one that a dead agent left behind is replaced, one that answers is not.
///
/// # Errors
/// One line that names the path.
pub fn bind(path: &Path) -> Result<UnixListener, BadInput> {
    let bad = |detail: String| BadInput::file(path, format!("socket: {detail}"));
    if let Some(dir) = path.parent() {
        super::make_dir(dir)?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(bad("there is a file that is no socket".into()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(bad("another agent listens there".into()));
        }
        std::fs::remove_file(path).map_err(|e| bad(os_text(&e)))?;
    }
    // The mode must hold from the first moment; nothing else creates files while the agent starts.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(|e| bad(os_text(&e)))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|e| bad(os_text(&e)))?;
    Ok(listener)
}

/// Serves one client: a request, its replies.
///
/// # Errors
/// The client vanished, is too slow, or sent no request; jobs go on.
pub async fn serve(context: Arc<AgentContext>, stream: UnixStream) -> Result<(), LineError> {
    let user = stream.peer_cred()?.uid();
    let (read_half, write_half) = stream.into_split();
    let mut client = Client { reader: BufReader::new(read_half), writer: write_half };
    if user != 0 && user != geteuid().as_raw() {
        return client.refuse(Exit::BadInput, format!("user {user} may not use this agent")).await;
    }
    let read = timeout(CLIENT_DEADLINE, read_line(&mut client.reader, REQUEST_BYTES_MAX));
    let request = match read.await.map_err(|_| LineError::TimedOut)? {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => return client.refuse(Exit::BadInput, error.to_string()).await,
    };
    match request {
        LocalRequest::Status => {
            client.send(&LocalReply::Status { status: context.status() }).await?;
            client.send(&LocalReply::Done).await
        }
        LocalRequest::Recover(request) => match operator::recover(&context, &request).await {
            Ok(vms) => {
                client.send(&LocalReply::Recovered { vms }).await?;
                client.send(&LocalReply::Done).await
            }
            Err(reason) => client.refuse(Exit::BadInput, reason).await,
        },
        LocalRequest::Cancel { job } => match context.jobs.get(job) {
            Some(job) => {
                tracing::info!(job = job.id, "cancelled by a client");
                job.cancel.cancel();
                client.send(&LocalReply::Done).await
            }
            None => client.refuse_unknown(job).await,
        },
        LocalRequest::Attach { job } => match context.jobs.get(job) {
            Some(job) => client.follow(&job, None).await,
            None => client.refuse_unknown(job).await,
        },
        LocalRequest::Migrate(request) => match start_migrate(&context, request) {
            Ok(job) => client.follow(&job, None).await,
            Err(refusal) => client.refuse(refusal.exit, refusal.reason).await,
        },
        LocalRequest::Plan(request) => match start_plan(&context, request) {
            Ok(job) => client.follow(&job, None).await,
            Err(refusal) => client.refuse(refusal.exit, refusal.reason).await,
        },
        LocalRequest::Doctor(request) => match start_doctor(&context, request) {
            Ok(job) => client.follow(&job, None).await,
            Err(refusal) => client.refuse(refusal.exit, refusal.reason).await,
        },
        LocalRequest::Scan(request) => match start_scan(&context, request) {
            Ok((job, file)) => client.follow(&job, Some(file)).await,
            Err(refusal) => client.refuse(refusal.exit, refusal.reason).await,
        },
    }
}

struct Refusal {
    exit: Exit,
    reason: String,
}

impl From<BadInput> for Refusal {
    fn from(bad: BadInput) -> Refusal {
        Refusal { exit: Exit::BadInput, reason: bad.to_string() }
    }
}

impl From<super::jobs::StartError> for Refusal {
    fn from(error: super::jobs::StartError) -> Refusal {
        Refusal { exit: Exit::Failed, reason: error.to_string() }
    }
}

fn start_migrate(context: &Arc<AgentContext>, request: MigrateRequest) -> Result<Arc<Job>, Refusal> {
    let guests = request.check()?;
    check_sockets(context, &guests)?;
    check_elsewhere(context, &request.targets)?;
    let names = guests.into_iter().map(|g| g.name).collect();
    let task_context = context.clone();
    Ok(context.jobs.start(JobKind::Migrate, names, |events, cancel| async move {
        JobOutcome::Migrate(crate::source::run_migrate(task_context, request, events, cancel).await)
    })?)
}

fn start_plan(context: &Arc<AgentContext>, request: PlanRequest) -> Result<Arc<Job>, Refusal> {
    let guests = request.check()?;
    check_sockets(context, &guests)?;
    check_elsewhere(context, &request.targets)?;
    let names = guests.into_iter().map(|g| g.name).collect();
    let task_context = context.clone();
    Ok(context.jobs.start(JobKind::Plan, names, |events, cancel| async move {
        JobOutcome::Plan(Box::new(crate::source::run_plan(task_context, request, events, cancel).await))
    })?)
}

fn start_doctor(context: &Arc<AgentContext>, request: DoctorRequest) -> Result<Arc<Job>, Refusal> {
    request.check()?;
    check_elsewhere(context, &request.targets)?;
    let task_context = context.clone();
    Ok(context.jobs.start(JobKind::Doctor, Vec::new(), |events, cancel| async move {
        JobOutcome::Doctor(crate::source::run_doctor(task_context, request, events, cancel).await)
    })?)
}

/// No target is this host.
fn check_elsewhere(context: &AgentContext, targets: &[TargetSpec]) -> Result<(), BadInput> {
    match targets.iter().find(|target| target.name == context.config.name) {
        None => Ok(()),
        Some(target) => {
            let origin = format!("--to {}={}", target.name, target.addr);
            Err(BadInput::new(origin, "is the host that the guests leave"))
        }
    }
}

/// The file goes to the client that asked for it, and to nobody if it has gone.
fn start_scan(
    context: &Arc<AgentContext>,
    request: ScanRequest,
) -> Result<(Arc<Job>, oneshot::Receiver<Vec<u8>>), Refusal> {
    let guests = request.check()?;
    if request.fingerprints && context.fleet_key.is_none() {
        let detail = "[fingerprints] is missing, which 'scan --out' needs: copy fleet.key, one for all hosts, from \
                      where 'vmscatter keys init' made it, and add key = \"fleet.key\" with its path";
        return Err(BadInput::new(&context.config.origin, detail).into());
    }
    check_sockets(context, &guests)?;
    let names = guests.into_iter().map(|g| g.name).collect();
    let task_context = context.clone();
    let (file, to_client) = oneshot::channel();
    let job = context.jobs.start(JobKind::Scan, names, |events, cancel| async move {
        JobOutcome::Scan(crate::source::run_scan(task_context, request, events, cancel, file).await)
    })?;
    Ok((job, to_client))
}

/// Whether there is a QMP socket for each guest; whether QEMU answers is seen when the job begins.
fn check_sockets(context: &AgentContext, guests: &[GuestFile]) -> Result<(), BadInput> {
    for guest in guests {
        let path = guest.expand_qmp(&context.values)?;
        let bad =
            |detail: String| BadInput::new(guest.origin(), format!("qmp: {}: {detail}", path.display()));
        let metadata = std::fs::metadata(&path).map_err(|e| bad(os_text(&e)))?;
        if !metadata.file_type().is_socket() {
            return Err(bad("is no socket".into()));
        }
    }
    Ok(())
}

struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    async fn send(&mut self, reply: &LocalReply) -> Result<(), LineError> {
        timeout(CLIENT_DEADLINE, write_line(&mut self.writer, reply))
            .await
            .map_err(|_| LineError::TimedOut)?
    }

    async fn refuse(&mut self, exit: Exit, reason: String) -> Result<(), LineError> {
        self.send(&LocalReply::Refused { exit, reason }).await
    }

    async fn refuse_unknown(&mut self, job: u64) -> Result<(), LineError> {
        self.refuse(Exit::BadInput, format!("job {job}: the agent knows no such job")).await
    }

    /// The job's number, all that it has said and says, the file that it leaves, and `done` when it has ended.
    async fn follow(&mut self, job: &Job, file: Option<oneshot::Receiver<Vec<u8>>>) -> Result<(), LineError> {
        self.send(&LocalReply::Job { job: job.id }).await?;
        let mut from = 0;
        loop {
            let (events, to) = tokio::select! {
                read = job.events(from, EVENTS_AT_ONCE) => read,
                // A client says nothing more, so anything here is its end.
                _ = self.reader.fill_buf() => return Ok(()),
            };
            if events.is_empty() {
                break;
            }
            for event in events {
                self.send(&LocalReply::Event { event }).await?;
            }
            from = to;
        }
        // A job that has ended has sent its file, or never will.
        if let Some(file) = file
            && let Ok(bytes) = file.await
        {
            self.send_file(&bytes).await?;
        }
        self.send(&LocalReply::Done).await
    }

    async fn send_file(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        self.send(&LocalReply::File { bytes: bytes.len() as u64 }).await?;
        for chunk in bytes.chunks(FILE_CHUNK_BYTES) {
            let write = timeout(CLIENT_DEADLINE, self.writer.write_all(chunk));
            write.await.map_err(|_| LineError::TimedOut)??;
        }
        Ok(())
    }
}
