//! Incoming QEMUs: started paused from a guest file, let run after the commit, ended before it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use vmscatter_core::wire::control::VmSpec;

use crate::agent::AgentContext;
use crate::agent::guest_file::{ExpandedGuest, GuestFile, format_uuid};
use crate::agent::host::MemoryShare;
use crate::agent::input::one_line;
use crate::qemu::capabilities;
use crate::qemu::hardware::hardware;
use crate::qemu::qmp::{Qmp, QmpEvent};
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
    stderr: PathBuf,
    /// Set aside for the guest for as long as it is here.
    memory: MemoryShare,
}

/// Starts the VM's incoming QEMU and connects to its migration socket.
///
/// # Errors
/// One line that names what is wrong; nothing of the attempt is left then.
pub(super) async fn start(ctx: &AgentContext, spec: &VmSpec) -> Result<(Incoming, UnixStream), String> {
    let file = GuestFile::parse(&spec.guest_file, &format!("guest file of {}", spec.name))
        .map_err(|e| e.to_string())?;
    let guest = file.expand(&ctx.values).map_err(|e| e.to_string())?;
    let bytes = spec.blocks.iter().fold(0u64, |sum, block| sum.saturating_add(block.bytes));
    let memory = ctx
        .memory
        .take(bytes)
        .map_err(|free| format!("not enough memory: {} MiB needed, {} MiB free", bytes >> 20, free >> 20))?;
    let place = ctx.config.run_dir.join(format!("in-{}", format_uuid(&spec.uuid)));
    let (monitor, socket) = (place.with_extension("qmp"), place.with_extension("mig"));
    let stderr = place.with_extension("err");
    let child = spawn(&guest, &monitor, &stderr)?;
    match connect(child, spec, &monitor, &socket).await {
        Ok((child, qmp, events, stream)) => {
            // Both ends are connected: nobody else is to find them.
            let _ = std::fs::remove_file(&monitor);
            let _ = std::fs::remove_file(&socket);
            Ok((Incoming { child, qmp, events, stderr, memory }, stream))
        }
        Err((mut child, reason)) => {
            let _ = child.kill().await;
            let said = last_line(&stderr);
            for path in [&monitor, &socket, &stderr] {
                let _ = std::fs::remove_file(path);
            }
            Err(if said.is_empty() { reason } else { format!("{reason}: {said}") })
        }
    }
}

fn spawn(guest: &ExpandedGuest, monitor: &Path, stderr: &Path) -> Result<Child, String> {
    for path in [monitor, &guest.qmp] {
        let _ = std::fs::remove_file(path);
    }
    let log = std::fs::File::create(stderr).map_err(|e| format!("{}: {e}", stderr.display()))?;
    let mut command = Command::new(&guest.program);
    command.args(&guest.args).args(["-S", "-incoming", "defer", "-qmp"]);
    command.arg(format!("unix:{},server=on,wait=off", monitor.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // A group of its own: what is typed at the agent's terminal does not reach the guest.
    command.process_group(0).kill_on_drop(false);
    command.spawn().map_err(|e| format!("cannot start {}: {e}", guest.program.display()))
}

type Connected = (Child, Qmp, mpsc::Receiver<QmpEvent>, UnixStream);

async fn connect(
    mut child: Child,
    spec: &VmSpec,
    monitor: &Path,
    socket: &Path,
) -> Result<Connected, (Child, String)> {
    let attempt = async {
        let (qmp, events) = connect_monitor(&mut child, monitor).await?;
        configure(&qmp, spec).await?;
        let _ = std::fs::remove_file(socket);
        let uri = format!("unix:{}", socket.display());
        qmp.migrate_incoming(&uri).await.map_err(|e| e.to_string())?;
        let stream = UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
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

impl Incoming {
    /// Gives `cont` and waits for RESUME; returns its time in microseconds since the Unix epoch.
    pub(super) async fn resume(&mut self) -> Result<u64, String> {
        let resume = async {
            self.qmp.cont().await.map_err(|e| e.to_string())?;
            while let Some(event) = self.events.recv().await {
                if event.name == "RESUME" {
                    return Ok(event.time_us);
                }
            }
            Err("incoming QEMU's monitor closed before RESUME".to_owned())
        };
        let resumed = timeout(RESUME_DEADLINE, resume).await;
        resumed.unwrap_or_else(|_| Err(format!("no RESUME within {} s of cont", RESUME_DEADLINE.as_secs())))
    }

    /// Lets the guest be: it is this host's now. Where the host's capacity was configured (`counted`), its memory stays
    /// set aside until its QEMU ends; else Linux counts what it uses.
    pub(super) fn release(self, counted: bool) {
        let Incoming { mut child, stderr, memory, .. } = self;
        let _ = std::fs::remove_file(&stderr);
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
        let _ = std::fs::remove_file(&self.stderr);
    }

    /// What QEMU said last on standard error, if it said anything.
    pub(super) fn last_words(&self) -> String {
        last_line(&self.stderr)
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
