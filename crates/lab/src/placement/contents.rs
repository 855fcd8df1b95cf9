//! Which contents stand in which guests, as `vmscatter scan` finds them.

use std::fs;

use anyhow::{Context, Result, ensure};
use vmscatter_core::index::Fingerprints;
use vmscatter_core::placement::{HolderGroups, SavedSharing};

use crate::scatter::Agents;
use crate::session::{Session, Settings};

/// Has the guests' memory read by an agent on their host. All contents are counted: an error if some were left out.
pub(super) fn read(session: &Session, settings: &Settings) -> Result<HolderGroups> {
    let agents = Agents::start(&session.lab, settings)?;
    let file = session.lab.directory().join("contents");
    agents.scan(session, &file)?;
    let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
    let saved = Fingerprints::decode(&bytes).context("what vmscatter scan has saved")?;
    ensure!(saved.rate_log2() == 0, "so many contents that vmscatter scan has saved a sample of them");
    for (guest, vm) in session.guests.iter().zip(saved.vms()) {
        let name = &guest.file.name;
        ensure!(vm.name == *name && vm.readable, "vmscatter scan has not read {name}");
    }
    let sharing = SavedSharing::of(std::slice::from_ref(&saved))?;
    ensure!(sharing.groups.vms() == session.guests.len(), "vmscatter scan has not read all guests");
    Ok(sharing.groups)
}
