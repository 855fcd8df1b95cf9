//! Guests that have run until they are warm, saved to files: every migration of an experiment begins with the same bytes.
//!
//! A guest is saved by QEMU's own migration into a file, while it is stopped, and goes on from there in a new QEMU as
//! often as wanted. It notices nothing of it: also its clock stood still.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::assets::Assets;
use crate::guest::{Guest, GuestFile};
use crate::host::{Host, Lab};
use crate::placement::Grouping;
use crate::progress::Progress;
use crate::qmp::Qmp;
use crate::serial::Serial;
use crate::session::{Session, Settings};
use crate::weight;

/// Twelve guests under TCG are warm within a third of it.
const WARM_TIMEOUT: Duration = Duration::from_secs(900);
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const TICKS_TIMEOUT: Duration = Duration::from_secs(60);
/// As fast as the disk takes it.
const MAX_BANDWIDTH: u64 = 10 << 30;

/// Files with guests' states; removed with the value.
#[derive(Debug)]
pub(crate) struct Saved {
    directory: PathBuf,
    guests: Vec<(GuestFile, String)>,
}

impl Drop for Saved {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Boots the guests, waits until their workload is warm, and stops them all. Returns them and the seconds that took.
pub(crate) fn boot_warm(settings: &Settings, assets: &Assets, progress: &Progress) -> Result<(Session, f64)> {
    let started = Instant::now();
    let session = Session::boot(settings, assets, progress)?;
    progress.step("waiting until the guests are warm");
    for guest in &session.guests {
        // Nothing is measured yet, and other processes of the machine should not make it last longer.
        weight::restore_vcpus(&guest.source.qmp)?;
    }
    for (index, guest) in session.guests.iter().enumerate() {
        let left = WARM_TIMEOUT.saturating_sub(started.elapsed());
        let warm = guest.serial.wait_line("P ", left);
        warm.with_context(|| format!("{} did not become warm", guest.file.name))?;
        progress.note(&format!("{} of {} guests are warm", index + 1, session.guests.len()));
    }
    for guest in &session.guests {
        guest.source.qmp.execute("stop", json!({}))?;
    }
    Ok((session, started.elapsed().as_secs_f64()))
}

impl Saved {
    /// Saves the guests of a session, which are stopped, into `directory`, which is made.
    pub(crate) fn of(session: &Session, directory: &Path, progress: &Progress) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let mut saved = Self { directory: directory.to_owned(), guests: Vec::new() };
        for (index, guest) in session.guests.iter().enumerate() {
            let name = &guest.file.name;
            save(&guest.source.qmp, &saved.file(name)).with_context(|| format!("{name} was not saved"))?;
            saved.guests.push((guest.file.clone(), guest.ready.clone()));
            progress.note(&format!("{} of {} guests are saved", index + 1, session.guests.len()));
        }
        Ok(saved)
    }

    /// A new lab with the guests on its source host, running; they are to go where `grouping` says.
    pub(crate) fn restore(
        &self,
        settings: &Settings,
        grouping: Grouping,
        progress: &Progress,
    ) -> Result<Session> {
        ensure!(grouping.len() == self.guests.len(), "a target for each guest");
        let lab = Lab::new(settings.hosts, &settings.rate)?;
        let mut session = Session { guests: Vec::new(), lab, placement: Some(grouping) };
        for (file, ready) in &self.guests {
            let guest = self.load(file, ready, &session.lab.source);
            session.guests.push(guest.with_context(|| format!("{} was not restored", file.name))?);
            progress.note(&format!("{} of {} guests are back", session.guests.len(), self.guests.len()));
        }
        // All at once, so that none is further than the others.
        for guest in &session.guests {
            guest.source.qmp.execute("cont", json!({}))?;
        }
        for guest in &session.guests {
            ensure!(guest.serial.wait_ticks(0, 5, TICKS_TIMEOUT), "{} does not tick", guest.file.name);
            weight::lower_vcpus(&guest.source.qmp)?;
        }
        Ok(session)
    }

    fn load(&self, file: &GuestFile, ready: &str, host: &Host) -> Result<Guest> {
        let source = file.start(host, true)?;
        let serial = Arc::new(Serial::default());
        serial.attach(&file.serial(host), START_TIMEOUT)?;
        let uri = format!("exec:cat {}", self.file(&file.name).display());
        source.qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
        wait_migration(&source.qmp)?;
        Ok(Guest { file: file.clone(), serial, source, ready: ready.to_owned(), restored: true })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.state"))
    }
}

fn save(qmp: &Qmp, file: &Path) -> Result<()> {
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": MAX_BANDWIDTH }))?;
    // The path is the lab's own and needs no quoting.
    qmp.execute("migrate", json!({ "uri": format!("exec:cat > {}", file.display()) }))?;
    wait_migration(qmp)
}

/// Asked and not awaited as an event: events would have to be switched on, and would be on in the experiment.
fn wait_migration(qmp: &Qmp) -> Result<()> {
    let since = Instant::now();
    loop {
        let state = qmp.execute("query-migrate", json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => bail!("QEMU: {state}"),
            _ => ensure!(since.elapsed() < SAVE_TIMEOUT, "no end within {SAVE_TIMEOUT:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
