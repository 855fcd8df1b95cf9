//! A guest at the source: its monitor, its memory, what it runs, and how it is put back as it was.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use vmscatter_core::limits::IN_FLIGHT_BYTES_MIN;
use vmscatter_core::session::check_blocks;
use vmscatter_core::session::handoff::{QemuView, SwitchoverLimits};
use vmscatter_core::wire::control::{BlockSpec, Uuid, VmSpec};

use crate::agent::AgentContext;
use crate::agent::guest_file::GuestFile;
use crate::qemu::features::{self, Features};
use crate::qemu::memory::GuestMemory;
use crate::qemu::qmp::{Qmp, QmpError, QmpEvent};
use crate::qemu::ramblock::ram_blocks;

/// `max-bandwidth` that holds a stream: some 41 KB/s flow, and the monitor still answers.
const HELD_BYTES_PER_S: u64 = 20_480;
/// `max-bandwidth` that never limits: 64 GiB/s (zero would mean the same, but not to every version).
const FULL_BYTES_PER_S: u64 = 64 << 30;

/// A guest that is to be moved.
#[derive(Debug)]
pub(super) struct SourceGuest {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) guest_file: String,
    pub(super) machine: String,
    pub(super) blocks: Vec<BlockSpec>,
    pub(super) paused: bool,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) monitor: Monitor,
    /// STOP, RESUME, MIGRATION and the like; taken by the session's loop.
    pub(super) events: Option<mpsc::Receiver<QmpEvent>>,
    /// Where QEMU is told to migrate to.
    pub(super) socket: PathBuf,
}

/// A guest's QEMU, as far as its monitor goes.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    qmp: Qmp,
    features: Arc<Features>,
    /// Migration parameters as they were.
    before: Arc<Value>,
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
        let (qmp, events) = Qmp::connect(&path).await.map_err(fault)?;
        let features = features::probe(&qmp).await.map_err(fault)?;
        features.check_source().map_err(|what| format!("{origin}: {what}"))?;
        let status = qmp.status().await.map_err(fault)?;
        let paused = match status.as_str() {
            "running" => false,
            "paused" | "prelaunch" => true,
            other => return Err(format!("{origin}: the guest can't be moved while its state is '{other}'")),
        };
        let migration = qmp.migration_status().await.map_err(fault)?;
        if matches!(migration.as_deref(), Some("setup" | "active" | "device" | "cancelling" | "pre-switchover" | "postcopy-active")) {
            return Err(format!("{origin}: the guest is being migrated already"));
        }
        let uuid = match file.uuid {
            Some(uuid) => uuid,
            None => qmp.uuid().await.map_err(fault)?.unwrap_or_else(random_uuid),
        };
        let machine = qmp.machine_type().await.map_err(fault)?;
        let blocks = ram_blocks(&qmp).await.map_err(fault)?;
        let memory = GuestMemory::open(&qmp, &blocks).await.map_err(|e| format!("{origin}: {e}"))?;
        let blocks: Vec<_> = blocks.iter().map(|b| BlockSpec { name: b.name.clone(), bytes: b.bytes }).collect();
        check_blocks(&blocks).map_err(|e| format!("{origin}: {e}"))?;
        let before = qmp.migration_parameters().await.map_err(fault)?;
        let tag = crate::agent::guest_file::format_uuid(&uuid);
        Ok(SourceGuest {
            name: file.name.clone(),
            uuid,
            guest_file: text.to_owned(),
            machine,
            blocks,
            paused,
            memory: Arc::new(memory),
            monitor: Monitor { qmp, features: Arc::new(features), before: Arc::new(before) },
            events: Some(events),
            socket: ctx.config.run_dir.join(format!("out-{tag}.mig")),
        })
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
            paused: self.paused,
        }
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

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

fn random_uuid() -> Uuid {
    let mut uuid = [0; 16];
    aws_lc_rs::rand::fill(&mut uuid).expect("the system has random numbers");
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

impl Monitor {
    /// Tells QEMU to migrate to `socket`, held to a trickle.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn migrate(&self, socket: &Path) -> Result<(), QmpError> {
        features::prepare_source(&self.qmp, &self.features).await?;
        self.set(json!({ "max-bandwidth": HELD_BYTES_PER_S, "downtime-limit": 1 })).await?;
        let uri = format!("unix:{}", socket.display());
        self.qmp.execute("migrate", json!({ "uri": uri })).await.map(drop)
    }

    /// Lets the stream flow as fast as it is read.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn full_speed(&self) -> Result<(), QmpError> {
        self.set(json!({ "max-bandwidth": FULL_BYTES_PER_S })).await
    }

    /// Sets when QEMU may stop the guest.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn limit_switchover(&self, limits: SwitchoverLimits) -> Result<(), QmpError> {
        let mut parameters = json!({ "downtime-limit": limits.downtime_limit_ms });
        if let Some(bytes) = limits.avail_switchover_bandwidth {
            parameters["avail-switchover-bandwidth"] = json!(bytes);
        }
        self.set(parameters).await
    }

    /// Whether QEMU takes the link's share itself.
    pub(super) fn takes_switchover_bandwidth(&self) -> bool {
        self.features.avail_switchover_bandwidth
    }

    async fn set(&self, parameters: Value) -> Result<(), QmpError> {
        self.qmp.execute("migrate-set-parameters", parameters).await.map(drop)
    }

    /// What QEMU says of the rounds, `None` where it does not say it yet.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn view(&self) -> Result<Option<QemuView>, QmpError> {
        let info = self.qmp.execute("query-migrate", json!({})).await?;
        let ram = &info["ram"];
        let round = ram["dirty-sync-count"].as_u64();
        let mbps = ram["mbps"].as_f64().unwrap_or(0.0);
        Ok(round.map(|round| QemuView { round, apparent_bytes_per_s: mbps * 1e6 / 8.0 }))
    }

    /// Why QEMU says that the migration failed.
    pub(super) async fn migration_error(&self) -> Option<String> {
        let info = self.qmp.execute("query-migrate", json!({})).await.ok()?;
        info["error-desc"].as_str().map(str::to_owned)
    }

    /// Puts the migration parameters back; the capabilities are as QEMU had them by default.
    pub(super) async fn restore(&self) {
        let names = ["max-bandwidth", "downtime-limit", "avail-switchover-bandwidth"];
        let mut parameters = json!({});
        for name in names {
            if let Some(value) = self.before.get(name) {
                parameters[name] = value.clone();
            }
        }
        if let Err(error) = self.set(parameters).await {
            tracing::warn!("migration parameters can't be put back: {error}");
        }
    }

    /// Lets a guest run again whose migration had completed.
    ///
    /// # Errors
    /// QEMU's own words.
    pub(super) async fn cont(&self) -> Result<(), QmpError> {
        self.qmp.execute("cont", json!({})).await.map(drop)
    }

    /// Ends the QEMU.
    ///
    /// # Errors
    /// QEMU's own words; that the monitor closes is none.
    pub(super) async fn quit(&self) -> Result<(), QmpError> {
        let _ = tokio::time::timeout(Duration::from_secs(5), self.qmp.execute("quit", json!({}))).await;
        Ok(())
    }
}

/// Plain bytes of one VM between the two QEMUs, of `streams` that flow over a link of `link_bytes_per_s`: rule 6.
pub(super) fn in_flight_limit(link_bytes_per_s: f64, streams: usize) -> usize {
    let span = vmscatter_core::limits::IN_FLIGHT_SPAN.as_secs_f64();
    ((link_bytes_per_s * span) as usize / streams.max(1)).max(IN_FLIGHT_BYTES_MIN)
}
