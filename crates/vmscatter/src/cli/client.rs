//! The command line's side of the local socket.
//!
//! The job belongs to the agent. A client that is killed, or whose terminal is lost, cancels nothing; only Ctrl-C in
//! `migrate`, `plan` and `scan` asks the agent to cancel, and goes on to show how the job ends. A second Ctrl-C leaves.

use std::io::{BufWriter, Write};
use std::path::Path;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use vmscatter_core::index::fingerprint::FILE_BYTES_MAX;

use super::options::{RecoverOptions, ViewOptions};
use super::out_file::OutFile;
use super::{Failure, complain};
use crate::agent::input::one_line;
use crate::agent::local::{LineError, read_line, write_line};
use crate::agent::protocol::{ForceSide, LocalReply, LocalRequest, REPLY_BYTES_MAX, RecoverRequest};
use crate::report::doctor;
use crate::report::event::{JobEvent, JobOutcome};
use crate::report::outcome::Exit;
use crate::report::plan::{self, PlanOutcome};
use crate::report::progress::ProgressView;
use crate::report::summary;

/// How a job is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Progress, and a table at the end.
    Table,
    /// JSON at the end.
    Json,
    /// Its number only.
    Detached,
}

impl View {
    pub(super) fn of(options: &ViewOptions, detach: bool) -> View {
        match (options.json, detach) {
            (_, true) => View::Detached,
            (true, false) => View::Json,
            (false, false) => View::Table,
        }
    }
}

/// What Ctrl-C does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupt {
    Cancels,
    Leaves,
}

/// Starts a job and shows it; the file that it leaves goes to `out`.
pub(super) fn run(
    socket: &Path,
    request: LocalRequest,
    view: View,
    out: Option<OutFile>,
) -> Result<Exit, Failure> {
    block_on(follow(socket, &request, view, Interrupt::Cancels, out))
}

/// Shows a job that was started before.
pub(super) fn attach(socket: &Path, job: u64, view: View) -> Result<Exit, Failure> {
    let request = LocalRequest::Attach { job };
    block_on(follow(socket, &request, view, Interrupt::Leaves, None))
}

/// Cancels a job.
pub(super) fn cancel(socket: &Path, job: u64) -> Result<Exit, Failure> {
    block_on(async {
        Connection::open(socket, &LocalRequest::Cancel { job }).await?.done().await?;
        Ok(Exit::Success)
    })
}

/// Shows what the agent does.
pub(super) fn status(socket: &Path, json: bool) -> Result<Exit, Failure> {
    block_on(async {
        let mut connection = Connection::open(socket, &LocalRequest::Status).await?;
        let LocalReply::Status { status } = connection.next().await? else {
            return Err(connection.unexpected());
        };
        match json {
            true => print(&to_json(&status)?),
            false => print(&summary::status(&status)),
        }
        Ok(Exit::Success)
    })
}

/// Brings unfinished guests to their ends.
pub(super) fn recover(options: &RecoverOptions) -> Result<Exit, Failure> {
    let (guest, force) = match (&options.force_source, &options.force_target) {
        (Some(name), _) => (Some(name), Some(ForceSide::Source)),
        (None, Some(name)) => (Some(name), Some(ForceSide::Target)),
        (None, None) => (options.guest.as_ref(), None),
    };
    let request = LocalRequest::Recover(RecoverRequest { guest: guest.cloned(), force });
    block_on(async {
        let mut connection = Connection::open(&options.agent.socket, &request).await?;
        let LocalReply::Recovered { vms } = connection.next().await? else {
            return Err(connection.unexpected());
        };
        match options.view.json {
            true => print(&to_json(&vms)?),
            false => print(&summary::recovered(&vms)),
        }
        let over = vms.iter().all(|vm| vm.missing.is_none() || vm.harmless);
        Ok(if over { Exit::Success } else { Exit::Failed })
    })
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(anyhow::Error::new(e).context("runtime")))?;
    runtime.block_on(work)
}

async fn follow(
    socket: &Path,
    request: &LocalRequest,
    view: View,
    interrupt: Interrupt,
    out: Option<OutFile>,
) -> Result<Exit, Failure> {
    // Before the request leaves: from then on Ctrl-C must find the job.
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|e| Failure::Other(anyhow::Error::new(e).context("SIGINT")))?;
    let mut connection = Connection::open(socket, request).await?;
    let LocalReply::Job { job } = connection.next().await? else { return Err(connection.unexpected()) };
    if view == View::Detached {
        print(&format!("job {job}\n"));
        return Ok(Exit::Success);
    }
    let mut progress = if view == View::Json { ProgressView::quiet() } else { ProgressView::for_stderr() };
    progress.started(job);
    let mut cancelled = false;
    let outcome = loop {
        let reply = tokio::select! {
            reply = connection.next() => reply?,
            () = next(&mut interrupts) => {
                if cancelled || interrupt == Interrupt::Leaves {
                    progress.finish();
                    complain(&format!("job {job} goes on without this view; 'vmscatter attach {job}' shows it"));
                    return Ok(Exit::Cancelled);
                }
                cancelled = true;
                progress.line(&format!("cancelling job {job}; Ctrl-C again leaves it alone"));
                Connection::open(socket, &LocalRequest::Cancel { job }).await?.done().await?;
                continue;
            }
        };
        match reply {
            LocalReply::Event { event: JobEvent::Done { outcome } } => break outcome,
            LocalReply::Event { event } => progress.event(&event),
            _ => return Err(connection.unexpected()),
        }
    };
    progress.finish();
    if let Some(out) = out
        && let Some(bytes) = connection.file().await?
    {
        out.write(&bytes).map_err(|bad| Failure::Other(bad.into()))?;
    }
    show(&outcome, view)?;
    Ok(outcome.exit())
}

/// Shows a plan that no agent has made.
pub(super) fn show_plan(outcome: PlanOutcome, view: View) -> Result<Exit, Failure> {
    let outcome = JobOutcome::Plan(Box::new(outcome));
    show(&outcome, view)?;
    Ok(outcome.exit())
}

async fn next(interrupts: &mut Signal) {
    if interrupts.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

fn show(outcome: &JobOutcome, view: View) -> Result<(), Failure> {
    if let Some(error) = outcome.error() {
        complain(&one_line(error));
    }
    match (view, outcome) {
        (View::Json, JobOutcome::Migrate(outcome)) => print(&to_json(outcome)?),
        (View::Json, JobOutcome::Plan(outcome)) => print(&to_json(outcome)?),
        (View::Json, JobOutcome::Scan(outcome)) => print(&to_json(outcome)?),
        (View::Json, JobOutcome::Doctor(outcome)) => print(&to_json(outcome)?),
        (_, JobOutcome::Migrate(outcome)) => print(&summary::migrate(outcome)),
        (_, JobOutcome::Plan(outcome)) => print(&plan::text(outcome)),
        (_, JobOutcome::Scan(outcome)) => print(&summary::scan(outcome)),
        (_, JobOutcome::Doctor(outcome)) => print(&doctor::text(outcome)),
    }
    Ok(())
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Failure::Other(e.into()))?;
    text.push('\n');
    Ok(text)
}

/// To standard output; whoever reads it may have gone, and the exit code still tells.
fn print(text: &str) {
    let mut stdout = BufWriter::new(std::io::stdout().lock());
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// One request, and its replies.
struct Connection {
    socket: std::path::PathBuf,
    reader: BufReader<OwnedReadHalf>,
    /// Kept open: its end would tell the agent that nobody reads.
    _writer: OwnedWriteHalf,
}

impl Connection {
    async fn open(socket: &Path, request: &LocalRequest) -> Result<Connection, Failure> {
        let unreachable = |e| Failure::Unreachable(socket.display().to_string(), e);
        let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(LineError::Io(e)))?;
        let (reader, mut writer) = stream.into_split();
        write_line(&mut writer, request).await.map_err(unreachable)?;
        Ok(Connection { socket: socket.to_owned(), reader: BufReader::new(reader), _writer: writer })
    }

    /// The next reply.
    async fn next(&mut self) -> Result<LocalReply, Failure> {
        match read_line(&mut self.reader, REPLY_BYTES_MAX).await {
            Ok(Some(LocalReply::Refused { exit, reason })) => Err(Failure::Refused(exit, reason)),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(Failure::Lost(self.socket.display().to_string())),
            Err(LineError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Failure::Lost(self.socket.display().to_string()))
            }
            Err(error) => Err(Failure::Unreachable(self.socket.display().to_string(), error)),
        }
    }

    /// The file that the job leaves, if it does.
    async fn file(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let announced = match self.next().await? {
            LocalReply::File { bytes } if bytes <= FILE_BYTES_MAX as u64 => bytes,
            LocalReply::Done => return Ok(None),
            _ => return Err(self.unexpected()),
        };
        let mut bytes = Vec::new();
        match (&mut self.reader).take(announced).read_to_end(&mut bytes).await {
            Ok(read) if read as u64 == announced => Ok(Some(bytes)),
            _ => Err(Failure::Lost(self.socket.display().to_string())),
        }
    }

    async fn done(&mut self) -> Result<(), Failure> {
        match self.next().await? {
            LocalReply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> Failure {
        let error = anyhow::anyhow!("agent at {}: it gave a reply of another kind", self.socket.display());
        Failure::Other(error)
    }
}
