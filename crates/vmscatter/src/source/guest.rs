//! A guest at the source: its monitor, its memory, what it runs, and how it is put back as it was.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{Mutex, mpsc};
use vmscatter_core::journal::{Facts, Peer, ProcessId, Side};
use vmscatter_core::limits::IN_FLIGHT_BYTES_MIN;
use vmscatter_core::session::check_blocks;
use vmscatter_core::session::handoff::{QemuView, SwitchoverLimits};
use vmscatter_core::wire::control::{BlockSpec, Uuid, VmSpec};
use vmscatter_core::wire::hardware::Hardware;

use crate::agent::AgentContext;
use crate::agent::guest_file::{GuestFile, format_uuid, parse_uuid};
use crate::qemu::capabilities;
use crate::qemu::hardware::hardware;
use crate::qemu::memory::GuestMemory;
use crate::qemu::monitor::Features;
use crate::qemu::process;
use crate::qemu::qmp::{Qmp, QmpError, QmpEvent};
use crate::qemu::ramblock::ram_blocks;
use crate::qemu::refusal::{Refusal, refusals};
use crate::random::random_uuid;

/// `max-bandwidth` that holds a stream: some 41 KB/s flow, and the monitor still answers.
const HELD_BYTES_PER_S: u64 = 20_480;
/// `max-bandwidth` that never limits: 64 GiB/s (zero would mean the same, but not to every version).
const FULL_BYTES_PER_S: u64 = 64 << 30;

/// A monitor that does not answer within this time is taken for dead.
const MONITOR_DEADLINE: Duration = Duration::from_secs(10);
/// A QEMU that was told to quit has ended by then.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// The parameters that are changed, and put back where a guest stays.
const PARAMETERS: [&str; 5] = [
    "max-bandwidth",
    "downtime-limit",
    "avail-switchover-bandwidth",
    "cpu-throttle-initial",
    "cpu-throttle-increment",
];
/// By how many percent a guest that does not converge is throttled at first, and by how many more each time that this was
/// not enough. More than QEMU's own 20 and 10: its steps take a round or two each.
const THROTTLE_PERCENT: (u64, u64) = (30, 20);

/// A guest that is to be moved.
#[derive(Debug)]
pub(super) struct SourceGuest {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) guest_file: String,
    pub(super) machine: String,
    pub(super) blocks: Vec<BlockSpec>,
    hardware: Hardware,
    pub(super) paused: bool,
    /// What keeps it from being moved; its memory can be read all the same.
    refusals: Vec<Refusal>,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) monitor: Monitor,
    /// Its QEMU, where the system lets it be known.
    pub(super) process: Option<ProcessId>,
    /// STOP, RESUME, MIGRATION and the like; taken by the session's loop.
    pub(super) events: Option<mpsc::Receiver<QmpEvent>>,
    /// Where QEMU is told to migrate to.
    pub(super) socket: PathBuf,
}

/// A guest's QEMU, as far as its monitor goes.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    qmp: Qmp,
    features: Features,
    /// Migration parameters as they were.
    before: Arc<Map<String, Value>>,
    /// Capabilities as they were.
    capabilities: Arc<Vec<(String, bool)>>,
    /// Nothing may be changed any more, as everything is being put back. Held while QEMU is asked to change something:
    /// what comes too late must not undo what was put back.
    put_back: Arc<Mutex<bool>>,
}

impl SourceGuest {
    /// Connects to the guest's monitor and finds out what it is. Nothing is changed yet.
    ///
    /// # Errors
    /// One line that names the guest file and what is wrong, or what can't be handled.
    pub(super) async fn open(ctx: &AgentContext, origin: &str, text: &str) -> Result<SourceGuest, String> {
        let file = GuestFile::parse(text, origin).map_err(|e| e.to_string())?;
        let path = file.expand_qmp(&ctx.values).map_err(|e| e.to_string())?;
        let fault = |e: QmpError| format!("{origin}: {e}");
        let (qmp, events) = Qmp::connect(&path, MONITOR_DEADLINE).await.map_err(fault)?;
        let features = qmp.features().await.map_err(fault)?;
        let refusals = refusals(&qmp, &features).await.map_err(fault)?;
        let paused = !qmp.query_status().await.map_err(fault)?.running;
        let uuid = match file.uuid {
            Some(uuid) => uuid,
            None => parse_uuid(&qmp.query_uuid().await.map_err(fault)?)
                .filter(|uuid| uuid != &[0; 16])
                .unwrap_or_else(random_uuid),
        };
        let machine = qmp.current_machine().await.map_err(fault)?;
        let blocks = ram_blocks(&qmp).await.map_err(fault)?;
        let memory = GuestMemory::locate(&qmp).await.map_err(|e| format!("{origin}: {e}"))?;
        let blocks: Vec<_> =
            blocks.iter().map(|b| BlockSpec { name: b.name.clone(), bytes: b.bytes }).collect();
        check_blocks(&blocks).map_err(|e| format!("{origin}: {}", Refusal::from(e)))?;
        let before = Arc::new(qmp.parameters().await.map_err(fault)?);
        let states = Arc::new(qmp.capabilities().await.map_err(fault)?);
        let process = process::identify(memory.pid());
        Ok(SourceGuest {
            name: file.name.clone(),
            uuid,
            guest_file: text.to_owned(),
            machine,
            blocks,
            hardware: hardware(&qmp).await.map_err(fault)?,
            paused,
            refusals,
            memory: Arc::new(memory),
            monitor: Monitor { qmp, features, before, capabilities: states, put_back: Arc::default() },
            process,
            events: Some(events),
            socket: ctx.config.run_dir.join(format!("out-{}.mig", format_uuid(&uuid))),
        })
    }

    /// Why it can't be moved, on one line.
    pub(super) fn refused(&self) -> Option<String> {
        let reasons: Vec<String> = self.refusals.iter().map(Refusal::to_string).collect();
        (!reasons.is_empty()).then(|| format!("can't be moved: {}", reasons.join("; ")))
    }

    /// What a target is told of it; `vm` is its number in the session.
    pub(super) fn spec(&self, vm: u16) -> VmSpec {
        VmSpec {
            vm,
            uuid: self.uuid,
            name: self.name.clone(),
            guest_file: self.guest_file.clone(),
            machine: self.machine.clone(),
            blocks: self.blocks.clone(),
            hardware: self.hardware.clone(),
            paused: self.paused,
        }
    }

    /// What the journal keeps of it while it is on its way to `peer`.
    pub(super) fn facts(&self, peer: Peer) -> Facts {
        let Monitor { qmp, before, capabilities, .. } = &self.monitor;
        let parameter = |name: &&str| Some(((*name).to_owned(), before.get(*name)?.as_u64()?));
        let side = Side::Source {
            process: self.process,
            parameters: PARAMETERS.iter().filter_map(parameter).collect(),
            capabilities: capabilities.as_ref().clone(),
        };
        Facts { name: self.name.clone(), peer, monitor: qmp.path().to_owned(), paused: self.paused, side }
    }

    /// Its RAM, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes).sum()
    }

    /// A listener for QEMU's migration stream.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn listen(&self) -> std::io::Result<UnixListener> {
        remove(&self.socket);
        UnixListener::bind(&self.socket)
    }
}

fn parameters(values: &[(&str, u64)]) -> Map<String, Value> {
    values.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect()
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

impl Monitor {
    /// Tells QEMU to migrate to `socket`, held to a trickle, and to throttle the guest where it does not converge if that is
    /// asked for; nothing is done once [`Monitor::restore`] was called.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn migrate(&self, socket: &Path, auto_converge: bool) -> Result<(), QmpError> {
        let put_back = self.put_back.lock().await;
        if *put_back {
            return Ok(());
        }
        capabilities::prepare(&self.qmp, &self.features).await?;
        let mut changed = vec![("max-bandwidth", HELD_BYTES_PER_S), ("downtime-limit", 1)];
        if auto_converge {
            self.qmp.set_capabilities(&[("auto-converge", true)]).await?;
            let (initial, increment) = THROTTLE_PERCENT;
            changed.extend([("cpu-throttle-initial", initial), ("cpu-throttle-increment", increment)]);
        }
        self.qmp.set_parameters(parameters(&changed)).await?;
        self.qmp.migrate(&format!("unix:{}", socket.display())).await
    }

    /// Lets the stream flow as fast as it is read.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn full_speed(&self) -> Result<(), QmpError> {
        self.set(&[("max-bandwidth", FULL_BYTES_PER_S)]).await
    }

    /// Sets when QEMU may stop the guest.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn limit_switchover(&self, limits: SwitchoverLimits) -> Result<(), QmpError> {
        let mut parameters = vec![("downtime-limit", limits.downtime_limit_ms)];
        parameters
            .extend(limits.avail_switchover_bandwidth.map(|bytes| ("avail-switchover-bandwidth", bytes)));
        self.set(&parameters).await
    }

    /// Whether QEMU takes the link's share itself.
    pub(super) fn takes_switchover_bandwidth(&self) -> bool {
        self.features.avail_switchover_bandwidth
    }

    async fn set(&self, values: &[(&str, u64)]) -> Result<(), QmpError> {
        let put_back = self.put_back.lock().await;
        if *put_back { Ok(()) } else { self.qmp.set_parameters(parameters(values)).await }
    }

    /// What QEMU says of the rounds, `None` where it does not say it yet.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn view(&self) -> Result<Option<QemuView>, QmpError> {
        let info = self.qmp.query_migrate().await?;
        Ok(info.ram.map(|ram| QemuView {
            round: ram.dirty_sync_count,
            apparent_bytes_per_s: ram.mbps * 1e6 / 8.0,
            throttle_percent: info.cpu_throttle_percentage,
        }))
    }

    /// Why QEMU says that the migration failed.
    pub(super) async fn migration_error(&self) -> Option<String> {
        self.qmp.query_migrate().await.ok()?.error_desc
    }

    /// Puts migration parameters and capabilities back as they were.
    pub(super) async fn restore(&self) {
        *self.put_back.lock().await = true;
        let before =
            PARAMETERS.iter().filter_map(|name| Some(((*name).to_owned(), self.before.get(*name)?.clone())));
        let states: Vec<(&str, bool)> =
            self.capabilities.iter().map(|(name, state)| (name.as_str(), *state)).collect();
        // Capabilities can't be set while a migration is being torn down, which takes QEMU a moment.
        for attempt in 0..50 {
            let result = match self.qmp.set_parameters(before.clone().collect()).await {
                Ok(()) => self.qmp.set_capabilities(&states).await,
                error => error,
            };
            match result {
                Ok(()) => return,
                Err(error) if attempt == 49 || self.qmp.is_closed() => {
                    return tracing::warn!("migration parameters can't be put back: {error}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Lets a guest run again whose migration had completed.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn cont(&self) -> Result<(), QmpError> {
        self.qmp.cont().await
    }

    /// Whether QEMU has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.qmp.is_closed()
    }

    /// Ends the QEMU; whether it is gone.
    pub(super) async fn quit(&self, process: Option<ProcessId>) -> bool {
        let told = self.qmp.quit().await;
        match process {
            Some(process) => ended(process, QUIT_DEADLINE).await,
            None => told.is_ok(),
        }
    }
}

/// Whether the process ends within this time.
pub(super) async fn ended(process: ProcessId, limit: Duration) -> bool {
    let until = tokio::time::Instant::now() + limit;
    while process::is_alive(&process) {
        if tokio::time::Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Plain bytes of one VM between the two QEMUs, of `streams` that flow over a link of `link_bytes_per_s`: rule 6.
pub(super) fn in_flight_limit(link_bytes_per_s: f64, streams: usize) -> usize {
    let span = vmscatter_core::limits::IN_FLIGHT_SPAN.as_secs_f64();
    ((link_bytes_per_s * span) as usize / streams.max(1)).max(IN_FLIGHT_BYTES_MIN)
}
