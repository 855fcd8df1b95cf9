//! What keeps a guest from being moved, found out before anything is changed; each with what to do instead.

use serde::Deserialize;
use serde_json::{Value, json};
use vmscatter_core::session::BlockError;

use super::capabilities::MUST_BE_OFF;
use super::hardware::{self, answered, property};
use super::monitor::Features;
use super::qmp::{Qmp, QmpError, one_line};

/// Reasons of QEMU's own that are passed on; it has a handful at most.
const REASONS_MAX: usize = 8;
/// Characters of one of them.
const REASON_CHARS_MAX: usize = 300;

/// One thing that keeps a guest from being moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It lacks what every migration needs.
    #[error("this QEMU has no migration capability '{0}': QEMU 7.2 or newer is needed")]
    NoCapability(&'static str),
    /// Somebody switched on what can't be carried.
    #[error("migration capability '{0}' is on: switch it off first (migrate-set-capabilities)")]
    Capability(String),
    /// The stream would be encrypted by QEMU itself.
    #[error(
        "migration parameter 'tls-creds' is set: unset it (migrate-set-parameters), vmscatter encrypts itself"
    )]
    Tls,
    /// Not a plain migration.
    #[error("migration parameter 'mode' is '{0}': set it to 'normal' (migrate-set-parameters)")]
    Mode(String),
    /// Another migration is under way.
    #[error(
        "it is being migrated already: wait for the end of that migration, or cancel it (migrate_cancel)"
    )]
    Migrating,
    /// Neither running nor paused.
    #[error("its state is '{0}': only a guest that runs or is paused can be moved")]
    State(String),
    /// QEMU would refuse, too.
    #[error(
        "QEMU says that it can't be migrated: {0} (take the device or option away, or shut the guest down)"
    )]
    Blocked(String),
    /// A device of the host, passed through.
    #[error(
        "device '{0}' ({1}) is passed through by VFIO: unplug it first (device_del), or shut the guest down"
    )]
    Vfio(String, String),
    /// Its memory stands in QEMU's stream in a form that is not known here.
    #[error(
        "device '{0}' is virtio-mem, whose memory can't be carried yet: unplug it, or migrate this guest with QEMU alone"
    )]
    VirtioMem(String),
    /// QEMU leaves out pages that the guest says are free, and so would never name them.
    #[error(
        "balloon '{0}' has free-page-hint=on, by which QEMU leaves pages out: set it to off, or migrate this guest with QEMU alone"
    )]
    FreePageHint(String),
    /// Memory that nobody but the guest can read.
    #[error(
        "it is a confidential guest ({0}), whose memory can't be read: shut it down and start it elsewhere"
    )]
    Confidential(String),
    /// Something works on its disks.
    #[error("block job '{0}' ({1}, {2}) is under way: wait for its end, or cancel it (job-cancel)")]
    BlockJob(String, String, String),
    /// Its RAM blocks.
    #[error("{0}: migrate this guest with QEMU alone")]
    Blocks(#[from] BlockError),
}

/// All that keeps the guest of this monitor from being moved, except for its RAM blocks; nothing is changed.
///
/// # Errors
/// The monitor's.
pub async fn refusals(qmp: &Qmp, features: &Features) -> Result<Vec<Refusal>, QmpError> {
    let mut found = Vec::new();
    capabilities(qmp, features, &mut found).await?;
    parameters(qmp, &mut found).await?;
    migration(qmp, &mut found).await?;
    let state = qmp.query_status().await?.status;
    if !matches!(state.as_str(), "running" | "paused" | "prelaunch") {
        found.push(Refusal::State(one_line(&state)));
    }
    devices(qmp, &mut found).await?;
    confidential(qmp, &mut found).await?;
    jobs(qmp, &mut found).await?;
    Ok(found)
}

async fn capabilities(qmp: &Qmp, features: &Features, found: &mut Vec<Refusal>) -> Result<(), QmpError> {
    let needed = [("return-path", features.return_path), ("events", features.events)];
    let missing = needed.into_iter().filter(|(_, have)| !have);
    found.extend(missing.map(|(name, _)| Refusal::NoCapability(name)));
    let on = |(name, state): &(String, bool)| *state && MUST_BE_OFF.contains(&name.as_str());
    let on = qmp.capabilities().await?.into_iter().filter(on);
    found.extend(on.map(|(name, _)| Refusal::Capability(name)));
    Ok(())
}

async fn parameters(qmp: &Qmp, found: &mut Vec<Refusal>) -> Result<(), QmpError> {
    let parameters = qmp.parameters().await?;
    let text = |name: &str| parameters.get(name).and_then(Value::as_str).unwrap_or_default();
    if !text("tls-creds").is_empty() {
        found.push(Refusal::Tls);
    }
    // 8.2 on; 'cpr-reboot' and the like end in another way.
    if !matches!(text("mode"), "" | "normal") {
        found.push(Refusal::Mode(one_line(text("mode"))));
    }
    Ok(())
}

/// What `query-migrate` says: non-migratable devices and blockers are named there from 6.0 on.
async fn migration(qmp: &Qmp, found: &mut Vec<Refusal>) -> Result<(), QmpError> {
    let info = qmp.query_migrate().await?;
    if info.status.is_under_way() {
        found.push(Refusal::Migrating);
    }
    let reasons = info.blocked_reasons.iter().take(REASONS_MAX);
    found.extend(reasons.map(|reason| {
        let reason: String = one_line(reason).chars().take(REASON_CHARS_MAX).collect();
        Refusal::Blocked(reason.trim_end_matches('.').to_owned())
    }));
    Ok(())
}

async fn devices(qmp: &Qmp, found: &mut Vec<Refusal>) -> Result<(), QmpError> {
    for device in hardware::devices(qmp).await? {
        let name = device.name().to_owned();
        if device.kind.contains("vfio") {
            found.push(Refusal::Vfio(name, device.kind));
        } else if device.kind.starts_with("virtio-mem") {
            found.push(Refusal::VirtioMem(name));
        } else if device.kind.starts_with("virtio-balloon")
            && property(qmp, &device.path, "free-page-hint").await? == Some(Value::Bool(true))
        {
            found.push(Refusal::FreePageHint(name));
        }
    }
    Ok(())
}

/// SEV, SEV-SNP, TDX and whatever else is given as the machine's `confidential-guest-support` (6.0 on).
async fn confidential(qmp: &Qmp, found: &mut Vec<Refusal>) -> Result<(), QmpError> {
    let support = property(qmp, "/machine", "confidential-guest-support").await?;
    if let Some(path) = support.as_ref().and_then(Value::as_str).filter(|path| !path.is_empty()) {
        let kind = property(qmp, path, "type").await?;
        let kind = kind.as_ref().and_then(Value::as_str).unwrap_or(path);
        found.push(Refusal::Confidential(one_line(kind)));
        return Ok(());
    }
    if let Some(Value::Bool(true)) =
        answered(qmp, "query-sev", json!({})).await?.map(|sev| sev["enabled"].clone())
    {
        found.push(Refusal::Confidential("SEV".to_owned()));
    }
    Ok(())
}

async fn jobs(qmp: &Qmp, found: &mut Vec<Refusal>) -> Result<(), QmpError> {
    #[derive(Deserialize)]
    struct Job {
        id: String,
        #[serde(rename = "type")]
        kind: String,
        status: String,
    }
    let jobs: Vec<Job> = qmp.ask("query-jobs", json!({})).await?;
    let running = jobs.into_iter().filter(|job| !matches!(job.status.as_str(), "concluded" | "null"));
    found.extend(
        running.map(|job| Refusal::BlockJob(one_line(&job.id), one_line(&job.kind), one_line(&job.status))),
    );
    Ok(())
}
