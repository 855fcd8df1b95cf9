//! `lab peers`: guests moved between agents of this build and of another, each way, with all RAM compared.

use std::path::Path;

use anyhow::Result;

use crate::assets::Assets;
use crate::progress::Progress;
use crate::session::{Mode, Session, Settings};

/// Moves guests from this build's agent to the other's, and back; prints a line for each, and whether all went well.
pub fn run(settings: &Settings, other: &Path) -> Result<bool> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let own = &settings.vmscatter;
    let mut all_well = true;
    for (way, source, target) in [("this -> other", &**own, other), ("other -> this", other, &**own)] {
        let settings = Settings {
            vmscatter: source.to_owned(),
            target_vmscatter: Some(target.to_owned()),
            compare_ram: true,
            ..settings.clone()
        };
        let run = Session::boot(&settings, &assets, &progress)?.run(Mode::Scatter, &settings, &progress)?;
        all_well &= run.tell_of_ram(way);
    }
    progress.finish();
    Ok(all_well)
}
