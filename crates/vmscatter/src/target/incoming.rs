//! Incoming QEMUs: started paused from a guest file, let run after the commit, ended before it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use vmscatter_core::journal::VmKey;
use vmscatter_core::wire::control::VmSpec;

use crate::agent::AgentContext;
use crate::agent::guest_file::{ExpandedGuest, GuestFile, format_uuid};
use crate::agent::host::MemoryShare;
use crate::agent::input::one_line;
use crate::qemu::capabilities;
use crate::qemu::hardware::hardware;
use crate::qemu::process;
use crate::qemu::qmp::{Qmp, QmpErrorKind, QmpEvent};
use crate::qemu::ramblock::ram_blocks;

/// A QEMU that has not opened its monitor by then will not.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// RESUME follows `cont` within this time, once the stream is loaded.
const RESUME_DEADLINE: Duration = Duration::from_secs(30);
/// A monitor that does not answer within this time is taken for dead.
const MONITOR_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// What is kept of an incoming QEMU's standard error.
const STDERR_BYTES_MAX: u64 = 4096;

/// An incoming QEMU.
#[derive(Debug)]
pub(super) struct Incoming {
    child: Child,
    qmp: Qmp,
    events: mpsc::Receiver<QmpEvent>,
    monitor: PathBuf,
    /// Set aside for the guest for as long as it is here.
    memory: MemoryShare,
}

/// Our own monitor of a VM's incoming QEMU; beside it are the other files of that QEMU. Of its session only: a VM that has left
/// and comes again must not meet what is not yet closed of the time before.
pub(super) fn monitor_path(ctx: &AgentContext, key: VmKey) -> PathBuf {
    let [a, b, c, d, ..] = key.session;
    ctx.config.run_dir.join(format!("in-{}-{a:02x}{b:02x}{c:02x}{d:02x}.qmp", format_uuid(&key.vm)))
}

/// The argument with which a QEMU is told of our monitor; no other process has it.
pub(crate) fn monitor_argument(monitor: &Path) -> String {
    format!("unix:{},server=on,wait=off", monitor.display())
}

/// Takes away what an incoming QEMU leaves in the file system; one that runs keeps what it has open.
pub(crate) fn remove_files(monitor: &Path) {
    for extension in ["qmp", "mig", "err"] {
        let _ = std::fs::remove_file(monitor.with_extension(extension));
    }
}

/// The program that a VM's guest file names, as this host would start it.
///
/// # Errors
/// One line: what is wrong with the guest file.
pub(super) fn program(ctx: &AgentContext, spec: &VmSpec) -> Result<PathBuf, String> {
    expand(ctx, spec).map(|guest| guest.program)
}

fn expand(ctx: &AgentContext, spec: &VmSpec) -> Result<ExpandedGuest, String> {
    let file = GuestFile::parse(&spec.guest_file, &format!("guest file of {}", spec.name))
        .map_err(|e| e.to_string())?;
    file.expand(&ctx.values).map_err(|e| e.to_string())
}

/// Starts the VM's incoming QEMU and connects to its migration socket. Its process goes into the journal.
///
/// # Errors
/// One line that names what is wrong; nothing of the attempt is left then.
pub(super) async fn start(
    ctx: &AgentContext,
    key: VmKey,
    spec: &VmSpec,
) -> Result<(Incoming, UnixStream), String> {
    let guest = expand(ctx, spec)?;
    let bytes = spec.memory_bytes();
    let memory = ctx
        .memory
        .take(bytes)
        .map_err(|free| format!("not enough memory: {} MiB needed, {} MiB free", bytes >> 20, free >> 20))?;
    let monitor = monitor_path(ctx, key);
    let child = spawn(&guest, &monitor)?;
    let process = child.id().and_then(|pid| process::identify(pid as i32));
    if let Some(Err(error)) = process.map(|process| ctx.journal.spawned(key, process)) {
        tracing::warn!(vm = spec.name, "journal: {error}");
    }
    match connect(child, spec, &monitor).await {
        Ok((child, qmp, events, stream)) => Ok((Incoming { child, qmp, events, monitor, memory }, stream)),
        Err((mut child, reason)) => {
            let _ = child.kill().await;
            let said = last_line(&monitor.with_extension("err"));
            remove_files(&monitor);
            Err(if said.is_empty() { reason } else { format!("{reason}: {said}") })
        }
    }
}

fn spawn(guest: &ExpandedGuest, monitor: &Path) -> Result<Child, String> {
    remove_files(monitor);
    let _ = std::fs::remove_file(&guest.qmp);
    let stderr = monitor.with_extension("err");
    let log = std::fs::File::create(&stderr).map_err(|e| format!("{}: {e}", stderr.display()))?;
    let mut command = Command::new(&guest.program);
    command.args(&guest.args).args(["-S", "-incoming", "defer", "-qmp"]);
    command.arg(monitor_argument(monitor));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // A group of its own: what is typed at the agent's terminal does not reach the guest.
    command.process_group(0).kill_on_drop(false);
    command.spawn().map_err(|e| format!("cannot start {}: {e}", guest.program.display()))
}

type Connected = (Child, Qmp, mpsc::Receiver<QmpEvent>, UnixStream);

async fn connect(mut child: Child, spec: &VmSpec, monitor: &Path) -> Result<Connected, (Child, String)> {
    let attempt = async {
        let (qmp, events) = connect_monitor(&mut child, monitor).await?;
        configure(&qmp, spec).await?;
        let socket = monitor.with_extension("mig");
        let uri = format!("unix:{}", socket.display());
        qmp.migrate_incoming(&uri).await.map_err(|e| e.to_string())?;
        let stream = UnixStream::connect(&socket).map_err(|e| format!("{}: {e}", socket.display()))?;
        let _ = std::fs::remove_file(&socket);
        Ok((qmp, events, stream))
    };
    match timeout(START_DEADLINE, attempt).await {
        Ok(Ok((qmp, events, stream))) => Ok((child, qmp, events, stream)),
        Ok(Err(reason)) => Err((child, reason)),
        Err(_) => Err((child, format!("incoming QEMU was not ready within {} s", START_DEADLINE.as_secs()))),
    }
}

/// Connects as soon as QEMU listens, or says that it has ended.
async fn connect_monitor(
    child: &mut Child,
    monitor: &Path,
) -> Result<(Qmp, mpsc::Receiver<QmpEvent>), String> {
    let start = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("incoming QEMU ended at once ({status})"));
        }
        // The socket's file is there a moment before QEMU listens.
        if monitor.exists() {
            match Qmp::connect(monitor, MONITOR_DEADLINE).await {
                Ok(connected) => return Ok(connected),
                Err(error) if start.elapsed() > MONITOR_DEADLINE => return Err(error.to_string()),
                Err(_) => {}
            }
        }
        sleep(if start.elapsed() < Duration::from_secs(1) { POLL } else { POLL * 10 }).await;
    }
}

async fn configure(qmp: &Qmp, spec: &VmSpec) -> Result<(), String> {
    let text = |e: crate::qemu::qmp::QmpError| e.to_string();
    let machine = qmp.current_machine().await.map_err(text)?;
    if machine != spec.machine {
        return Err(format!("machine type is {machine} here, and {} at the source", spec.machine));
    }
    let blocks = ram_blocks(qmp).await.map_err(text)?;
    for block in &spec.blocks {
        if !blocks.iter().any(|ours| ours.name == block.name && ours.bytes == block.bytes) {
            return Err(format!(
                "no RAM block {} of {} bytes here (is the command line the same?)",
                block.name, block.bytes
            ));
        }
    }
    spec.hardware.check_twin(&hardware(qmp).await.map_err(text)?).map_err(|e| e.to_string())?;
    let features = qmp.features().await.map_err(text)?;
    capabilities::prepare(qmp, &features).await.map_err(text)
}

/// What became of `cont`.
#[derive(Debug)]
pub(crate) enum Resumed {
    /// The guest runs since then, in microseconds since the Unix epoch (zero: it was paused before and stays so).
    At(u64),
    /// It has not run and will not: QEMU refused, or ended before.
    Never(String),
    /// QEMU has not answered yet.
    Unknown(String),
}

/// Gives `cont` and waits for RESUME, which QEMU sends before a virtual CPU runs (`vm_prepare_start`): one that ends
/// without it has never run the guest.
pub(crate) async fn resume(qmp: &Qmp, events: &mut mpsc::Receiver<QmpEvent>, limit: Duration) -> Resumed {
    let told = match qmp.cont().await {
        Ok(()) => None,
        Err(error) => match error.kind {
            QmpErrorKind::Refused { .. } | QmpErrorKind::Closed => Some(error.to_string()),
            _ => return Resumed::Unknown(error.to_string()),
        },
    };
    let refused = told.is_some();
    let seen = async {
        loop {
            // After a refusal what has been said is all.
            let event =
                if refused && !qmp.is_closed() { events.try_recv().ok() } else { events.recv().await };
            match event {
                Some(event) if event.name == "RESUME" => return Some(event.time_us),
                Some(_) => {}
                None => return None,
            }
        }
    };
    match timeout(limit, seen).await {
        Ok(Some(time_us)) => Resumed::At(time_us),
        Ok(None) => Resumed::Never(told.unwrap_or_else(|| "incoming QEMU ended before RESUME".to_owned())),
        Err(_) => Resumed::Unknown(format!("no RESUME within {} s of cont", limit.as_secs())),
    }
}

impl Incoming {
    /// Lets the guest run. Once `cont` was given there is no way back while QEMU has not said what came of it.
    pub(super) async fn resume(&mut self) -> Resumed {
        loop {
            match resume(&self.qmp, &mut self.events, RESUME_DEADLINE).await {
                Resumed::Unknown(reason) if !self.qmp.is_closed() => tracing::warn!("{reason}; waiting on"),
                resumed => return resumed,
            }
        }
    }

    /// Lets the guest be: it is this host's now. Where the host's capacity was configured (`counted`), its memory stays
    /// set aside until its QEMU ends; else Linux counts what it uses.
    ///
    /// One that is `unfinished` keeps its monitor's socket, by which recovery finds it: it may have to be let run, or, if the operator
    /// decides for the source meanwhile, to be stopped.
    pub(super) fn release(self, counted: bool, unfinished: bool) {
        let Incoming { mut child, monitor, memory, .. } = self;
        if !unfinished {
            remove_files(&monitor);
        }
        if counted {
            tokio::spawn(async move {
                let _ = child.wait().await;
                drop(memory);
            });
        }
    }

    /// Ends the QEMU for good; it is gone when this returns.
    pub(super) async fn kill(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::error!("incoming QEMU can't be ended: {error}");
        }
        remove_files(&self.monitor);
    }

    /// What QEMU said last on standard error, if it said anything.
    pub(super) fn last_words(&self) -> String {
        last_line(&self.monitor.with_extension("err"))
    }
}

fn last_line(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = String::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let len = file.metadata().map_or(0, |meta| meta.len());
        let _ = file.seek(SeekFrom::Start(len.saturating_sub(STDERR_BYTES_MAX)));
        let mut bytes = Vec::new();
        let _ = file.take(STDERR_BYTES_MAX).read_to_end(&mut bytes);
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    telling_line(&text)
}

/// The last thing that QEMU complained of (`PROGRAM: …`): hints and warnings may follow. Else its last line.
fn telling_line(text: &str) -> String {
    let complains = |line: &&str| {
        let said = line.split_once(": ").filter(|(program, _)| !program.contains(char::is_whitespace));
        said.is_some_and(|(_, said)| !said.starts_with("warning: ") && !said.starts_with("info: "))
    };
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    one_line(lines().rfind(complains).or(lines().next_back()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::telling_line;

    #[test]
    fn complaints_stand_before_hints_and_warnings() {
        let cases = [
            ("", ""),
            (
                "qemu: unsupported machine type\nUse -machine help to list supported machines\n",
                "qemu: unsupported machine type",
            ),
            (
                "qemu: -cpu x: bad\nqemu: warning: TCG doesn't support requested feature\n\n",
                "qemu: -cpu x: bad",
            ),
            ("some libraries\nsay: this", "say: this"),
            ("qemu: warning: only this\n", "qemu: warning: only this"),
            ("qemu: first\nqemu: second: \tlast\n", "qemu: second:  last"),
        ];
        for (text, expected) in cases {
            assert_eq!(telling_line(text), expected);
        }
    }
}
