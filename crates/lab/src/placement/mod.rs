//! `lab placement`: the paper's Table 2 on real guests. Random even groupings against the chosen one.
//!
//! For each workload guests are booted, run until they are warm, and stopped. Which contents they share is read once, by
//! vmscatter, and the traffic of all groupings is computed from that; the guests are saved as they stand, and some of
//! the groupings are tried: each time the very same guests go on and are migrated, and the bytes on the links counted.

mod contents;
mod grouping;
mod saved;
mod table;
mod trial;
mod workload;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use vmscatter::agent::protocol::PlacementRules;
use vmscatter::plan::place::{self, Candidates};
use vmscatter_core::limits::SCHEDULE_SETS_MAX;
use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::placement::{
    DeliveryTree, HolderGroups, Method, Problem, TargetCapacity, TargetId, VmDemand, greedy, lower_bound,
};

use crate::assets::{Assets, cache_directory};
use crate::guest::{Accel, GuestOptions};
use crate::progress::Progress;
use crate::report::Machine;
use crate::session::{Programs, Settings};

pub use grouping::{Grouping, random_even, traffic_bytes};
pub use table::{Choice, Composition, Report, Row, Trial, WorkloadReport};
pub use workload::Workload;

use saved::Saved;

/// KiB per second that the guests rewrite beside their workload: little, for it is the same in every grouping and would
/// only hide what differs.
const DIRTY_KIB_PER_S: u32 = 256;

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Workloads
    #[arg(long, value_enum, value_delimiter = ',', default_value = "compile,sysbench,shop")]
    pub workloads: Vec<Workload>,
    /// Number of guests
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(2..=32))]
    pub guests: u16,
    /// RAM of each guest, MiB
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(320..=65536))]
    pub memory: u32,
    /// Numbers of targets
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,6", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub targets: Vec<u16>,
    /// Random groupings for each number of targets
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub groupings: u32,
    /// Where the random groupings come from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Random groupings that are really migrated, beside the chosen one, for each workload
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub migrate: u32,
    /// Numbers of targets for which groupings are really migrated; `none`: only computed
    #[arg(long, value_name = "N,..", default_value = "3", value_parser = parse_targets)]
    pub migrate_targets: TargetNumbers,
    /// Rate of every link, in tc's notation
    #[arg(long, default_value = "1gbit")]
    pub rate: String,
    /// Write all figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Numbers of targets, none at all included.
#[derive(Debug, Clone)]
pub struct TargetNumbers(pub Vec<usize>);

fn parse_targets(text: &str) -> Result<TargetNumbers, String> {
    if text == "none" {
        return Ok(TargetNumbers(Vec::new()));
    }
    let number = |word: &str| match word.parse() {
        Ok(number @ 1..=32) => Ok(number),
        _ => Err(format!("'{word}' is no number of targets")),
    };
    text.split(',').map(number).collect::<Result<_, _>>().map(TargetNumbers)
}

/// Runs the experiment; prints nothing, but writes the JSON.
pub fn run(options: &Options, accel: Accel, vmscatter: PathBuf) -> Result<Report> {
    let progress = Progress::default();
    progress.step("preparing kernel, initramfs and disks");
    let assets = Assets::prepare_debian()?;
    let mut report = Report {
        workloads: Vec::new(),
        machine: Machine::this(accel),
        guest_count: options.guests.into(),
        memory_mib: options.memory,
        rate: options.rate.clone(),
        groupings: options.groupings,
        seed: options.seed,
    };
    for &workload in &options.workloads {
        let settings = Settings {
            guests: options.guests.into(),
            hosts: 1,
            rate: options.rate.clone(),
            guest: GuestOptions {
                memory_mib: options.memory,
                accel,
                dirty_kib_per_s: DIRTY_KIB_PER_S,
                workload: Some(workload),
                ..GuestOptions::default()
            },
            compare_ram: false,
            damage: None,
            programs: Programs::default(),
            vmscatter: vmscatter.clone(),
            target_vmscatter: None,
            rekey_mib: None,
            igmp_version: 2,
        };
        let done = run_workload(workload, options, &settings, &assets, &progress);
        report.workloads.push(done.with_context(|| workload.name())?);
        // After each, for the next may take half an hour.
        if let Some(path) = &options.json {
            fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
                .with_context(|| path.display().to_string())?;
        }
    }
    progress.finish();
    Ok(report)
}

fn run_workload(
    workload: Workload,
    options: &Options,
    settings: &Settings,
    assets: &Assets,
    progress: &Progress,
) -> Result<WorkloadReport> {
    progress.step(&format!("workload {}", workload.name()));
    let (session, warm_after_s) = saved::boot_warm(settings, assets, progress)?;
    progress.step("reading which contents the guests share");
    let groups = contents::read(&session, settings)?;
    let wanted = |targets: &usize| *targets <= settings.guests;
    let migrate_targets: Vec<usize> = options.migrate_targets.0.iter().copied().filter(wanted).collect();
    let saved = if migrate_targets.is_empty() {
        None
    } else {
        progress.step("saving the guests");
        let directory = cache_directory().join(format!("saved-{}", std::process::id()));
        Some(Saved::of(&session, &directory, progress)?)
    };
    // Not needed any more; the memory is.
    drop(session);

    let families: Vec<String> =
        (1..=settings.guests).map(|number| workload.family(number).to_owned()).collect();
    let composition = Composition::of(&groups, &families);
    let rows = options.targets.iter().map(|targets| usize::from(*targets)).filter(wanted);
    let rows = rows.map(|targets| compute(&groups, targets, options, settings)).collect::<Result<_>>()?;
    let mut done = WorkloadReport { workload, families, warm_after_s, composition, rows, trials: Vec::new() };
    if let Some(saved) = saved {
        for targets in migrate_targets {
            let row = match done.rows.iter().find(|row| row.targets == targets) {
                Some(row) => row.clone(),
                None => compute(&groups, targets, options, settings)?,
            };
            done.trials.extend(trial::run(&saved, &row, options, settings, progress));
        }
    }
    Ok(done)
}

/// The figures of one cell of the table.
fn compute(groups: &HolderGroups, targets: usize, options: &Options, settings: &Settings) -> Result<Row> {
    let guests = settings.guests;
    let random = random_even(guests, targets, options.groupings as usize, options.seed);
    let tree = DeliveryTree::flat(targets);
    let names: Vec<String> = (1..=guests).map(|number| format!("vm{number}")).collect();
    let hosts: Vec<String> = (1..=targets).map(|number| format!("host{number}")).collect();
    // What `vmscatter migrate` does when it is told no more than guests and targets: an even spread.
    let candidates = Candidates {
        guests: names.iter().map(|name| place::Guest { name: name.clone(), memory_bytes: 1 }).collect(),
        targets: hosts
            .iter()
            .map(|name| place::Target { name: name.clone(), free_bytes: guests as u64 })
            .collect(),
        rules: PlacementRules::default(),
    };
    let solution = place::choose(&candidates, groups, &tree)?;
    let chosen = Choice::of(groups, &solution.placement);
    ensure!(
        chosen.bytes == solution.cost * PAGE_SIZE as u64,
        "vmscatter says {} contents, its placement has {} bytes",
        solution.cost,
        chosen.bytes
    );

    let demand = |name| VmDemand { name, memory_bytes: 1, pinned: None };
    let vms: Vec<VmDemand> = names.iter().map(|name| demand(name)).collect();
    let vms_max = Some(guests.div_ceil(targets) as u32);
    let capacity = |name| TargetCapacity { name, free_bytes: guests as u64, vms_max };
    let capacities: Vec<TargetCapacity> = hosts.iter().map(|name| capacity(name)).collect();
    let problem = Problem {
        vms: &vms,
        targets: &capacities,
        apart: &[],
        groups,
        tree: &tree,
        few_targets: false,
        group_addresses: SCHEDULE_SETS_MAX,
    };
    Ok(Row {
        targets,
        random_bytes: random.iter().map(|grouping| traffic_bytes(groups, grouping)).collect(),
        random,
        chosen,
        greedy: Choice::of(groups, &greedy(&problem)?),
        is_optimal: solution.method == Method::Exact,
        bound_bytes: solution.bound * PAGE_SIZE as u64,
        quick_bound_bytes: lower_bound(&problem)? * PAGE_SIZE as u64,
    })
}

impl Choice {
    fn of(groups: &HolderGroups, placement: &[TargetId]) -> Self {
        let grouping: Grouping = placement.iter().map(|target| target.0.into()).collect();
        Self { bytes: traffic_bytes(groups, &grouping), grouping }
    }
}
