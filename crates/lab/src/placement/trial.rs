//! Groupings that are really migrated, and the bytes on the links.

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
) -> Vec<Trial> {
    let settings = Settings { hosts: row.targets, ..settings.clone() };
    let random = row.random.iter().zip(&row.random_bytes).zip(1..).take(options.migrate as usize);
    let random = random.map(|((grouping, bytes), number)| {
        (format!("random {number}"), Choice { grouping: grouping.clone(), bytes: *bytes })
    });
    let choices = std::iter::once(("chosen".to_owned(), row.chosen.clone())).chain(random);
    choices.map(|(name, choice)| one(saved, name, choice, &settings, progress)).collect()
}

/// One that fails is a trial that says so: what has been found so far must not be lost.
fn one(saved: &Saved, name: String, choice: Choice, settings: &Settings, progress: &Progress) -> Trial {
    progress.step(&format!("{} targets, {name}: the saved guests go on", settings.hosts));
    let run = saved
        .restore(settings, choice.grouping.clone(), progress)
        .and_then(|session| session.run(Mode::Scatter, settings, progress));
    match &run {
        Ok(run) => progress.note(&format!("{:.1} MB of traffic", run.network_traffic_bytes as f64 / 1e6)),
        Err(error) => progress.note(&format!("failed: {error:#}")),
    }
    let error = run.as_ref().err().map(|error| format!("{error:#}"));
    Trial {
        name,
        targets: settings.hosts,
        grouping: choice.grouping,
        computed_bytes: choice.bytes,
        run: run.ok(),
        error,
    }
}
