//! `lab qemu-versions`: guests moved between QEMUs of two versions, each way and within each, with all RAM compared.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::assets::Assets;
use crate::guest::{GuestOptions, QEMU, qemu_version};
use crate::progress::Progress;
use crate::session::{Mode, Session, Settings};

/// A machine type that all these versions know, and a processor that is the same in each: `max` is what a version has.
const MACHINE: &str = "pc-i440fx-7.2";
const CPU: &str = "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2";

/// The program of each side of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Of the host that guests leave.
    pub source: PathBuf,
    /// Of those to which they go.
    pub target: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self { source: QEMU.into(), target: QEMU.into() }
    }
}

/// Moves guests in all four ways between the distribution's QEMU and another one; prints a line for each, and whether all
/// went well.
pub fn run(settings: &Settings, other: &Path) -> Result<bool> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let own = PathBuf::from(QEMU);
    for program in [&own, &other.to_owned()] {
        ensure!(!qemu_version(program).is_empty(), "{} is no QEMU that can be run", program.display());
    }
    let ways = [(&*own, &*own), (other, other), (&*own, other), (other, &*own)];
    let mut all_well = true;
    for (source, target) in ways {
        let programs = Programs { source: source.to_owned(), target: target.to_owned() };
        let guest =
            GuestOptions { machine: MACHINE.to_owned(), cpu: CPU.to_owned(), ..settings.guest.clone() };
        let settings = Settings { programs, guest, compare_ram: true, ..settings.clone() };
        let run = Session::boot(&settings, &assets, &progress)?.run(Mode::Scatter, &settings, &progress)?;
        let good = run
            .guests
            .iter()
            .filter(|guest| guest.verified && guest.running && guest.ram_equal == Some(true));
        let good = good.count();
        println!(
            "{} -> {}: {good} of {} guests verified and running, all RAM equal",
            number(source),
            number(target),
            run.guests.len()
        );
        for guest in run.guests.iter().filter(|guest| guest.problem.is_some()) {
            println!("  {}: {}", guest.name, guest.problem.as_deref().unwrap_or_default());
        }
        all_well &= good == run.guests.len();
    }
    progress.finish();
    Ok(all_well)
}

/// `7.2.22` of `QEMU emulator version 7.2.22 (Debian …)`.
fn number(program: &Path) -> String {
    let version = qemu_version(program);
    let number = version.split_once("version ").and_then(|(_, rest)| rest.split_whitespace().next());
    number.unwrap_or("unknown").to_owned()
}
