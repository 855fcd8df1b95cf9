//! Groupings that are really migrated, and the bytes on the links.

use anyhow::{Context, Result};

use super::saved::Saved;
use super::{Choice, Options, Row, Trial};
use crate::progress::Progress;
use crate::session::{Mode, Settings};

/// Migrates the chosen grouping and the first random ones, each from the saved state.
pub(super) fn run(
    saved: &Saved,
    row: &Row,
    options: &Options,
    settings: &Settings,
    progress: &Progress,
) -> Result<Vec<Trial>> {
    let settings = Settings { hosts: row.targets, ..settings.clone() };
    let random = row.random.iter().zip(&row.random_bytes).zip(1..).take(options.migrate as usize);
    let random = random.map(|((grouping, bytes), number)| {
        (format!("random {number}"), Choice { grouping: grouping.clone(), bytes: *bytes })
    });
    let mut trials = Vec::new();
    for (name, choice) in std::iter::once(("chosen".to_owned(), row.chosen.clone())).chain(random) {
        progress.step(&format!("{} targets, {name}: the saved guests go on", row.targets));
        let session = saved.restore(&settings, choice.grouping.clone(), progress)?;
        let run = session.run(Mode::Scatter, &settings, progress).with_context(|| name.clone())?;
        progress.note(&format!("{:.1} MB of traffic", run.network_traffic_bytes as f64 / 1e6));
        trials.push(Trial { name, computed_bytes: choice.bytes, grouping: choice.grouping, run });
    }
    Ok(trials)
}
