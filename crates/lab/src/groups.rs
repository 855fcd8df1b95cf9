//! `lab groups`: guests moved with few and with many multicast group addresses, and what targets join and leave meanwhile.
//!
//! Guests hold, for every set of several guests, contents that just these have in common: as many target sets as there can
//! be, of about equal size, besides the files that all have.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use vmscatter::report::outcome::{MigrateOutcome, ScatterOutcome};

use crate::assets::Assets;
use crate::guest::SharedSets;
use crate::igmp::{Changes, IgmpCounter};
use crate::progress::Progress;
use crate::report::Run;
use crate::scatter::Agents;
use crate::session::{Mode, Session, Settings};

/// One way to use group addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// `--groups`.
    pub groups: usize,
    /// The sets in the order in which they come (`--unsorted-groups`).
    pub unsorted: bool,
}

/// What came of one.
struct Row {
    way: Way,
    scatter: ScatterOutcome,
    counted: Changes,
    run: Run,
}

/// Moves the guests in each way, each time from a fresh boot, and prints a table; whether all guests arrived and all
/// joins and leaves were as planned.
pub fn run(settings: &Settings, ways: &[Way], pages_a_set: usize) -> Result<bool> {
    let progress = Progress::default();
    progress.step("preparing kernel, initramfs and disk");
    let assets = Assets::prepare()?;
    let rows: Vec<Row> = ways
        .iter()
        .map(|way| play(settings, *way, pages_a_set, &assets, &progress))
        .collect::<Result<_>>()?;
    progress.finish();
    println!("{}", table(&rows));
    println!(
        "{} guests to {} hosts, links of {}. Joins + leaves: as planned, as targets were told, and as IGMP at the switch \
         showed them.",
        settings.guests, settings.hosts, settings.rate
    );
    rows.iter().flat_map(Row::problems).for_each(|problem| println!("{problem}"));
    Ok(rows.iter().all(|row| row.problems().is_empty()))
}

/// The least that shows whether guests arrive when all sets share one address: what went wrong.
pub fn end_to_end(settings: &Settings) -> Result<Vec<String>> {
    let settings = Settings { guests: 4, hosts: 3, ..settings.clone() };
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let row = play(&settings, Way { groups: 1, unsorted: false }, 16, &assets, &progress)?;
    progress.finish();
    Ok(row.problems())
}

fn play(
    settings: &Settings,
    way: Way,
    pages_a_set: usize,
    assets: &Assets,
    progress: &Progress,
) -> Result<Row> {
    let mut settings = settings.clone();
    settings.guest.shared = Some(SharedSets { guests: settings.guests, pages: pages_a_set });
    let session = Session::boot(&settings, assets, progress)?;
    let mut agents = Agents::start(&session.lab, &settings)?;
    agents.options = vec!["--groups".to_owned(), way.groups.to_string()];
    if way.unsorted {
        agents.options.push("--unsorted-groups".to_owned());
    }
    let counter = IgmpCounter::start(session.lab.network.switch())?;
    progress.step(&format!("{} groups, {}", way.groups, way.order()));
    let run = session.run_with(Some(&agents), Mode::Scatter, &settings, progress)?;
    let counted = counter.finish()?;
    Ok(Row { way, scatter: outcome(session.lab.directory())?.scatter, counted, run })
}

/// The report of `vmscatter migrate`, as it was printed.
fn outcome(directory: &Path) -> Result<MigrateOutcome> {
    let text = std::fs::read_to_string(directory.join("migrate.out"))?;
    serde_json::from_str(&text).context("the report of vmscatter migrate")
}

impl Way {
    fn order(self) -> &'static str {
        if self.unsorted { "unsorted" } else { "sorted" }
    }
}

impl Row {
    /// What is not as it should be.
    fn problems(&self) -> Vec<String> {
        let way = format!("{} groups, {}", self.way.groups, self.way.order());
        let guests = self.run.guests.iter().filter(|guest| !guest.verified || !guest.running);
        let mut problems: Vec<String> = guests
            .map(|guest| {
                let problem = guest.problem.as_deref().unwrap_or("no problem was seen");
                format!("{way}: {}: {problem}", guest.name)
            })
            .collect();
        let (planned, told) = (self.scatter.group_changes_planned, self.scatter.joins + self.scatter.leaves);
        let counted = self.counted.joins + self.counted.leaves;
        if counted != planned || self.counted.joins != self.counted.leaves || told != planned {
            problems.push(format!(
                "{way}: {planned} joins and leaves were planned, targets were told {told}, and {} joins and {} leaves \
                 were seen",
                self.counted.joins, self.counted.leaves
            ));
        }
        problems
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "groups",
        "order",
        "sets",
        "planned",
        "told",
        "joins seen",
        "leaves seen",
        "scatter",
        "total time",
        "multicast",
        "traffic",
        "good",
    ]);
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    for row in rows {
        let (scatter, run) = (&row.scatter, &row.run);
        let good = run.guests.iter().filter(|guest| guest.verified && guest.running).count();
        table.add_row([
            row.way.groups.to_string(),
            row.way.order().to_owned(),
            scatter.sets.to_string(),
            scatter.group_changes_planned.to_string(),
            (scatter.joins + scatter.leaves).to_string(),
            row.counted.joins.to_string(),
            row.counted.leaves.to_string(),
            format!("{:.2} s", scatter.time_s),
            format!("{:.1} s", run.total_time_s),
            megabytes(scatter.multicast_bytes),
            megabytes(run.network_traffic_bytes),
            format!("{good} of {}", run.guest_count),
        ]);
    }
    for column in (0..11).filter(|column| *column != 1) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
