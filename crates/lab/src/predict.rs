//! `lab predict`: idle guests, what `vmscatter plan` says of moving them, and what moving them then costs.
//!
//! Before the first plan other guests of the same kind are moved, so that the agent has measured its link and its hosts, as
//! one has that drained before; `--first` leaves that out. Each migration has a fresh boot.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::assets::Assets;
use crate::host::Host;
use crate::progress::Progress;
use crate::report::{Machine, Run};
use crate::scatter::Agents;
use crate::session::{Mode, Session, Settings};

/// What an error may be, in percent.
const ERROR_MAX: f64 = 10.0;
/// What the source's agent has measured, below its state directory.
const SPEEDS: &str = "state/speeds.json";

/// What to do.
#[derive(Debug)]
pub struct PredictOptions {
    /// What stays the same in all runs.
    pub settings: Settings,
    /// The modes, each of vmscatter's own.
    pub modes: Vec<Mode>,
    /// `--bandwidth` for plan and migration.
    pub bandwidth: Option<String>,
    /// No migration was measured before.
    pub first: bool,
    /// Where the JSON goes.
    pub json: Option<PathBuf>,
}

/// What the lab reads of `vmscatter plan --json`.
#[derive(Debug, Deserialize)]
struct Planned {
    plan: Option<Plan>,
}

#[derive(Debug, Deserialize)]
struct Plan {
    guests: Vec<PlannedGuest>,
    predicted: Prediction,
}

#[derive(Debug, Deserialize)]
struct PlannedGuest {
    name: String,
    target: String,
}

#[derive(Debug, Deserialize)]
struct Prediction {
    transferred_bytes: u64,
    traffic_bytes: u64,
    time_s: f64,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// How guests were moved.
    pub mode: Mode,
    /// What it is, with its unit.
    pub figure: &'static str,
    /// What the plan said.
    pub predicted: f64,
    /// What was measured.
    pub measured: f64,
    /// How far the plan was off, in percent of what was measured.
    pub error_percent: f64,
}

/// Plans and migrations, prints both, and whether all went well and every prediction held.
pub fn run(options: &PredictOptions) -> Result<bool> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let (mut comparisons, mut texts, mut good) = (Vec::new(), Vec::new(), true);
    let mut speeds: Option<String> = None;
    for &mode in &options.modes {
        if !options.first {
            let session = Session::boot(&options.settings, &assets, &progress)?;
            let agents = Agents::start(&session.lab, &options.settings)?;
            write_speeds(&session.lab.source, speeds.as_deref())?;
            let run = session.run_with(Some(&agents), mode, &options.settings, &progress)?;
            good &= is_good(&run);
            speeds = Some(read_speeds(&session.lab.source)?);
        }
        let mut session = Session::boot(&options.settings, &assets, &progress)?;
        let mut agents = Agents::start(&session.lab, &options.settings)?;
        write_speeds(&session.lab.source, speeds.as_deref())?;
        agents.unpinned = true;
        agents.options =
            options.bandwidth.iter().flat_map(|rate| ["--bandwidth".to_owned(), rate.clone()]).collect();
        progress.step(&format!("{}: planning", mode.name()));
        let (plan, text) = plan(&agents, &session, mode, &options.settings)?;
        texts.push(format!("{}\n{text}", mode.name()));
        session.placement = Some(plan.placement(&session)?);
        let run = session.run_with(Some(&agents), mode, &options.settings, &progress)?;
        good &= is_good(&run);
        comparisons.extend(compare(mode, &plan.predicted, &run));
    }
    progress.finish();
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&comparisons)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    texts.iter().for_each(|text| println!("{text}"));
    println!("{}", table(options, &comparisons));
    Ok(good && comparisons.iter().all(|comparison| comparison.error_percent.abs() <= ERROR_MAX))
}

fn read_speeds(source: &Host) -> Result<String> {
    let path = source.run_dir.join(SPEEDS);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// What an earlier lab's agent has measured, for this one's.
fn write_speeds(source: &Host, speeds: Option<&str>) -> Result<()> {
    let path = source.run_dir.join(SPEEDS);
    speeds.map_or(Ok(()), |speeds| fs::write(&path, speeds)).with_context(|| path.display().to_string())
}

/// Whether every guest is verified and runs; says which is not.
fn is_good(run: &Run) -> bool {
    let bad = run.guests.iter().filter(|guest| !(guest.verified && guest.running));
    bad.inspect(|guest| eprintln!("{} to {}: {:?}", guest.name, guest.target, guest.problem)).count() == 0
}

/// What `vmscatter plan` says, for programs and for people.
fn plan(agents: &Agents, session: &Session, mode: Mode, settings: &Settings) -> Result<(Plan, String)> {
    let mut outputs = Vec::new();
    for json in [false, true] {
        let mut command = agents.command_of("plan", session, settings)?;
        command.args(["--compress", mode.compress()]).args(&agents.options);
        if json {
            command.arg("--json");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = session.lab.source.spawn(&mut command)?.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "vmscatter plan: {}: {}", output.status, stderr.trim());
        outputs.push(String::from_utf8(output.stdout)?);
    }
    let json = outputs.pop().context("two outputs")?;
    let planned: Planned = serde_json::from_str(&json)?;
    Ok((planned.plan.context("vmscatter plan gave none")?, outputs.pop().context("two outputs")?))
}

impl Plan {
    /// For each of the session's guests the number of its host.
    fn placement(&self, session: &Session) -> Result<Vec<usize>> {
        let place = |name: &str| {
            let guest = self.guests.iter().find(|guest| guest.name == name);
            let target = &guest.with_context(|| format!("the plan lacks {name}"))?.target;
            match session.lab.targets.iter().position(|host| host.name == *target) {
                Some(place) => Ok(place),
                None => bail!("the plan names {target}"),
            }
        };
        session.guests.iter().map(|guest| place(&guest.file.name)).collect()
    }
}

fn compare(mode: Mode, predicted: &Prediction, run: &Run) -> [Comparison; 3] {
    let comparison = |figure, predicted: f64, measured: f64| Comparison {
        mode,
        figure,
        predicted,
        measured,
        error_percent: (predicted / measured - 1.0) * 100.0,
    };
    let mb = |bytes: u64| bytes as f64 / 1e6;
    [
        comparison("transferred, MB", mb(predicted.transferred_bytes), mb(run.transferred_bytes)),
        comparison("network traffic, MB", mb(predicted.traffic_bytes), mb(run.network_traffic_bytes)),
        comparison("time, s", predicted.time_s, run.total_time_s),
    ]
}

fn table(options: &PredictOptions, comparisons: &[Comparison]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["mode", "figure", "predicted", "measured", "error"]);
    for comparison in comparisons {
        table.add_row([
            comparison.mode.name().to_owned(),
            comparison.figure.to_owned(),
            format!("{:.1}", comparison.predicted),
            format!("{:.1}", comparison.measured),
            format!("{:+.1} %", comparison.error_percent),
        ]);
    }
    let settings = &options.settings;
    let machine = Machine::this(settings.guest.accel);
    let before =
        if options.first { "no migration measured before" } else { "after one migration of other guests" };
    format!(
        "{table}\n{} idle guests of {} MiB, {} target hosts, links of {}, {before}; {} x {}, {}",
        settings.guests,
        settings.guest.memory_mib,
        settings.hosts,
        settings.rate,
        machine.cpus,
        machine.cpu_model,
        machine.qemu,
    )
}
