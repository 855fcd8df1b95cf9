//! `lab qemu-versions`: guests moved between QEMUs of two versions, each way and within each, with all RAM compared.

use std::path::Path;

use anyhow::{Context, Result};

use crate::assets::Assets;
use crate::guest::{GuestOptions, QEMU, qemu_number};
use crate::progress::Progress;
use crate::session::{Mode, Programs, Session, Settings};

/// A machine type that all these versions know, and a processor that is the same in each: `max` is what a version has.
const MACHINE: &str = "pc-i440fx-7.2";
const CPU: &str = "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2";

/// Moves guests in all four ways between the distribution's QEMU and another one; prints a line for each, and whether all
/// went well.
pub fn run(settings: &Settings, other: &Path) -> Result<bool> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let version = |program| -> Result<(&Path, String)> {
        let number = qemu_number(program);
        Ok((program, number.with_context(|| format!("{} is no QEMU that can be run", program.display()))?))
    };
    let (own, other) = (version(Path::new(QEMU))?, version(other)?);
    let mut all_well = true;
    for (source, target) in [(&own, &own), (&other, &other), (&own, &other), (&other, &own)] {
        let programs = Programs { source: source.0.to_owned(), target: target.0.to_owned() };
        let guest =
            GuestOptions { machine: MACHINE.to_owned(), cpu: CPU.to_owned(), ..settings.guest.clone() };
        let settings = Settings { programs, guest, compare_ram: true, ..settings.clone() };
        let run = Session::boot(&settings, &assets, &progress)?.run(Mode::Scatter, &settings, &progress)?;
        all_well &= run.tell_of_ram(&format!("{} -> {}", source.1, target.1));
    }
    progress.finish();
    Ok(all_well)
}
