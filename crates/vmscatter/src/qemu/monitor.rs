//! The monitor's commands that a migration needs, typed.

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::qmp::{Qmp, QmpError, QmpErrorKind};

/// What a QEMU can do, probed by the names of its capabilities, parameters and commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Capability `return-path`: without it a migration is not gated, so it is required.
    pub return_path: bool,
    /// Capability `events`: `MIGRATION` events.
    pub events: bool,
    /// Capability `switchover-ack` (8.1 on).
    pub switchover_ack: bool,
    /// Capability `late-block-activate`.
    pub late_block_activate: bool,
    /// Capability `pause-before-switchover`.
    pub pause_before_switchover: bool,
    /// Parameter `avail-switchover-bandwidth` (8.2 on).
    pub avail_switchover_bandwidth: bool,
    /// Parameter `zero-page-detection` (9.0 on).
    pub zero_page_detection: bool,
    /// Command `x-query-ramblock` (6.2 on, unstable).
    pub query_ramblock: bool,
}

/// `query-status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// QEMU's name of the state: `running`, `paused`, `prelaunch`, `inmigrate`, `postmigrate`, `finish-migrate`, …
    pub status: String,
    /// Whether virtual CPUs run.
    pub running: bool,
}

/// Where a migration stands (`MigrationStatus` in QEMU's `qapi/migration.json`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// There was none yet.
    #[default]
    None,
    /// Being set up.
    Setup,
    /// Rounds of precopy.
    Active,
    /// The guest is stopped, before the last pages (with `pause-before-switchover`).
    PreSwitchover,
    /// The guest is stopped, device state is sent.
    Device,
    /// Done; at the source the guest stays paused.
    Completed,
    /// Failed; at the source the guest runs on.
    Failed,
    /// Being cancelled.
    Cancelling,
    /// Cancelled; at the source the guest runs on.
    Cancelled,
    /// A state of postcopy, COLO or a later version.
    #[serde(other)]
    Other,
}

impl MigrationStatus {
    /// Whether a migration is under way.
    pub fn is_under_way(self) -> bool {
        !matches!(self, Self::None | Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// `query-migrate`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// Where the migration stands.
    pub status: MigrationStatus,
    /// RAM counters, while it is under way and after.
    pub ram: Option<RamStats>,
    /// By how many percent auto-converge slows the guest down.
    pub cpu_throttle_percentage: u8,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why a migration would be refused (6.0 on).
    pub blocked_reasons: Vec<String>,
    /// Milliseconds that the guest was stopped, as the source knows it.
    pub downtime: Option<u64>,
    /// Milliseconds so far, or in all.
    pub total_time: Option<u64>,
}

/// RAM counters of a migration (`MigrationStats`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamStats {
    /// Bytes of RAM.
    pub total: u64,
    /// Bytes that are still to be sent.
    pub remaining: u64,
    /// Bytes sent, as QEMU counts them (before we withhold any).
    pub transferred: u64,
    /// Pages a second that the guest dirties.
    pub dirty_pages_rate: u64,
    /// Megabits a second, as QEMU measures it at its socket.
    pub mbps: f64,
    /// Rounds begun.
    pub dirty_sync_count: u64,
}

/// A machine type of `query-machines`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MachineType {
    /// Full name, `pc-i440fx-7.2`.
    pub name: String,
    /// Short name of the newest, `pc`.
    #[serde(default)]
    pub alias: Option<String>,
}

impl Qmp {
    /// Probes what this QEMU can do.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; so with all commands below.
    pub async fn features(&self) -> Result<Features, QmpError> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        let capabilities: HashSet<_> = self.capabilities().await?.into_iter().map(|(name, _)| name).collect();
        let parameters = self.parameters().await?;
        let commands: Vec<Named> = self.ask("query-commands", json!({})).await?;
        Ok(Features {
            return_path: capabilities.contains("return-path"),
            events: capabilities.contains("events"),
            switchover_ack: capabilities.contains("switchover-ack"),
            late_block_activate: capabilities.contains("late-block-activate"),
            pause_before_switchover: capabilities.contains("pause-before-switchover"),
            avail_switchover_bandwidth: parameters.contains_key("avail-switchover-bandwidth"),
            zero_page_detection: parameters.contains_key("zero-page-detection"),
            query_ramblock: commands.iter().any(|command| command.name == "x-query-ramblock"),
        })
    }

    /// Whether the guest runs.
    pub async fn query_status(&self) -> Result<RunState, QmpError> {
        self.ask("query-status", json!({})).await
    }

    /// The guest's UUID, all zero if it was given none.
    pub async fn query_uuid(&self) -> Result<String, QmpError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "UUID")]
            uuid: String,
        }
        self.ask("query-uuid", json!({})).await.map(|answer: Answer| answer.uuid)
    }

    /// The guest's name, if it was given one.
    pub async fn query_name(&self) -> Result<Option<String>, QmpError> {
        #[derive(Deserialize)]
        struct Answer {
            name: Option<String>,
        }
        self.ask("query-name", json!({})).await.map(|answer: Answer| answer.name)
    }

    /// Where the migration stands.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        self.ask("query-migrate", json!({})).await
    }

    /// All migration capabilities and whether each is on.
    pub async fn capabilities(&self) -> Result<Vec<(String, bool)>, QmpError> {
        #[derive(Deserialize)]
        struct Capability {
            capability: String,
            state: bool,
        }
        let list: Vec<Capability> = self.ask("query-migrate-capabilities", json!({})).await?;
        Ok(list.into_iter().map(|entry| (entry.capability, entry.state)).collect())
    }

    /// Switches capabilities on or off; the others stay as they are.
    pub async fn set_capabilities(&self, states: &[(&str, bool)]) -> Result<(), QmpError> {
        let list: Vec<_> =
            states.iter().map(|(name, state)| json!({ "capability": name, "state": state })).collect();
        self.run("migrate-set-capabilities", json!({ "capabilities": list })).await
    }

    /// All migration parameters, so that those which are changed can be restored.
    pub async fn parameters(&self) -> Result<Map<String, Value>, QmpError> {
        self.ask("query-migrate-parameters", json!({})).await
    }

    /// Sets parameters, e.g. `max-bandwidth` (bytes a second) and `downtime-limit` (milliseconds).
    pub async fn set_parameters(&self, parameters: Map<String, Value>) -> Result<(), QmpError> {
        self.run("migrate-set-parameters", Value::Object(parameters)).await
    }

    /// Begins a migration to `uri` (`unix:PATH`), at the source.
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.run("migrate", json!({ "uri": uri })).await
    }

    /// Begins to listen at `uri`, at a target that was started with `-incoming defer`.
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.run("migrate-incoming", json!({ "uri": uri })).await
    }

    /// Cancels the migration; the guest runs on.
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.run("migrate_cancel", json!({})).await
    }

    /// Lets the virtual CPUs run.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.run("cont", json!({})).await
    }

    /// Stops the virtual CPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.run("stop", json!({})).await
    }

    /// Ends QEMU. The monitor may close before the answer, which counts as success.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.run("quit", json!({})).await {
            Err(QmpError { kind: QmpErrorKind::Closed, .. }) => Ok(()),
            result => result,
        }
    }

    /// The guest's machine type, full name, as the stream's configuration has it.
    pub async fn current_machine(&self) -> Result<String, QmpError> {
        let class: String = self.ask("qom-get", json!({ "path": "/machine", "property": "type" })).await?;
        Ok(class.strip_suffix("-machine").unwrap_or(&class).to_owned())
    }

    /// The machine types that this QEMU has.
    pub async fn machine_types(&self) -> Result<Vec<MachineType>, QmpError> {
        self.ask("query-machines", json!({})).await
    }

    /// Runs a command of the human monitor and gives its text.
    pub async fn human(&self, command: &str) -> Result<String, QmpError> {
        self.ask("human-monitor-command", json!({ "command-line": command })).await
    }

    /// A command whose answer is of type `T`.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let answer = self.execute(command, arguments).await?;
        serde_json::from_value(answer).map_err(|e| self.error(command, QmpErrorKind::Answer(e.to_string())))
    }

    async fn run(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.execute(command, arguments).await.map(|_| ())
    }
}
