//! `lab demo`: the same guests moved in several modes, each from a fresh boot, and one table of it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::assets::Assets;
use crate::guest::{Accel, Guest, GuestFile, GuestOptions};
use crate::host::Lab;
use crate::progress::Progress;
use crate::report::{Machine, Report};
use crate::session::{Damage, Mode, Session, Settings};

/// A guest that KVM runs is ready in a second or two; one on broken nested virtualisation may never be.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(20);

/// What to do.
#[derive(Debug)]
pub struct DemoOptions {
    /// What stays the same in all runs.
    pub settings: Settings,
    /// The modes, in the order in which they are run.
    pub modes: Vec<Mode>,
    /// Where the JSON goes.
    pub json: Option<PathBuf>,
}

/// Runs all modes, prints the table, writes the JSON; the report tells whether all went well.
pub fn run(options: &DemoOptions) -> Result<Report> {
    let progress = Progress::default();
    progress.step("preparing kernel, initramfs and disk");
    let assets = Assets::prepare()?;
    let mut runs = Vec::new();
    for &mode in &options.modes {
        let session = Session::boot(&options.settings, &assets, &progress)?;
        runs.push(session.run(mode, &options.settings, &progress).with_context(|| mode.name())?);
    }
    progress.finish();
    let report = Report { runs, machine: Machine::this(options.settings.guest.accel) };
    if let Some(path) = &options.json {
        report.write(path).with_context(|| path.display().to_string())?;
    }
    Ok(report)
}

/// Moves guests in each mode and compares all their RAM; then again with one flipped bit in one guest, which must be
/// found in that guest and in no other. Returns what went wrong, nothing if all is well.
pub fn end_to_end(mut settings: Settings, modes: &[Mode]) -> Result<Vec<String>> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let mut wrong = Vec::new();
    for &mode in modes {
        // What finds a flipped bit is the same with and without multicast.
        let damages = if mode == Mode::Relay { &[false][..] } else { &[false, true] };
        for &damaged in damages {
            settings.compare_ram = !damaged;
            let damage = Damage { guest: "vm1".to_owned(), page: assets.sample_page()? };
            settings.damage = damaged.then_some(damage);
            let run = Session::boot(&settings, &assets, &progress)?.run(mode, &settings, &progress)?;
            for guest in &run.guests {
                let expected = !(damaged && guest.name == "vm1");
                if guest.verified != expected || !guest.running {
                    wrong.push(format!(
                        "{}{}, {}: verified {}, running {}: {}",
                        mode.name(),
                        if damaged { " with a flipped bit in vm1" } else { "" },
                        guest.name,
                        guest.verified,
                        guest.running,
                        guest.problem.as_deref().unwrap_or("no problem was seen")
                    ));
                }
            }
        }
    }
    progress.finish();
    Ok(wrong)
}

/// KVM if a guest really boots with it, else TCG.
pub fn detect_accel(memory_mib: u32) -> Result<Accel> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    let assets = Assets::prepare()?;
    let lab = Lab::new(1, "1gbit")?;
    let options = GuestOptions { memory_mib, accel: Accel::Kvm, ..GuestOptions::default() };
    let booted = Guest::start(GuestFile::new(1, &assets, &options), &lab.source)
        .and_then(|guest| guest.serial.wait_line("R ", KVM_BOOT_LIMIT));
    Ok(if booted.is_ok() { Accel::Kvm } else { Accel::Tcg })
}
