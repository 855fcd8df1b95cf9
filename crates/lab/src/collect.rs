//! `lab collect`: what guests feel of their memory being collected.
//!
//! All guests work all the time and count it, so that whatever collecting takes of processors, caches and memory shows in
//! their counts. vCPUs have the weight of any other thread here, unlike in the lab's migrations. What is measured is put
//! between two spans in which nothing happens and compared with those, as the machine may change meanwhile.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::Deserialize;
use serde_json::json;

use crate::assets::Assets;
use crate::guest::{Guest, GuestFile, GuestOptions, fact};
use crate::host::Lab;
use crate::progress::Progress;
use crate::scatter::Agents;
use crate::session::{Programs, Settings};
use crate::weight;

const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// What QEMU may send when it migrates a guest, bytes per second: 1 Gbit/s.
const MIGRATION_BYTES_PER_S: u64 = 125_000_000;
/// How often QEMU is asked whether it has migrated.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// From one undisturbed span to the next, guests may do this much more or less; beyond, the table says so.
const DRIFT_PERCENT_MAX: f64 = 5.0;

/// What to do.
#[derive(Debug, Clone)]
pub struct CollectOptions {
    /// Guests; of these as many as there are processors keep all of them busy.
    pub guests: usize,
    /// How they are made.
    pub guest: GuestOptions,
    /// How long each span is.
    pub span: Duration,
    /// Values of `--collect-cpu`.
    pub percents: Vec<u8>,
    /// The vmscatter program.
    pub vmscatter: PathBuf,
}

/// What happens while guests work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// `vmscatter scan` again and again, with this `--collect-cpu`.
    Scan(u8),
    /// QEMU migrates the first guest again and again, to nowhere.
    Qemu,
}

/// One line of the table.
#[derive(Debug, Clone)]
struct Row {
    what: String,
    /// Units of work per second, all guests together.
    rate: f64,
    /// The same undisturbed, before and after.
    undisturbed: [f64; 2],
    meanwhile: String,
}

/// Boots guests, measures, returns the table.
pub fn run(options: &CollectOptions) -> Result<String> {
    let progress = Progress::default();
    progress.step("preparing kernel, initramfs and disk");
    let assets = Assets::prepare()?;
    let lab = Lab::new(1, "1gbit")?;
    progress.step(&format!("booting {} guests of {} MiB", options.guests, options.guest.memory_mib));
    let guests = boot(options, &assets, &lab)?;
    let settings = Settings {
        guests: options.guests,
        hosts: 1,
        rate: "1gbit".to_owned(),
        guest: options.guest.clone(),
        compare_ram: false,
        damage: None,
        programs: Programs::default(),
        vmscatter: options.vmscatter.clone(),
        target_vmscatter: None,
        rekey_mib: None,
        igmp_version: 2,
    };
    let agents = Agents::start(&lab, &settings)?;
    let scans = options.percents.iter().map(|percent| Disturbance::Scan(*percent));
    let mut rows = Vec::new();
    progress.step("undisturbed");
    let mut before = work_during(&guests, options.span)?;
    for disturbance in scans.chain([Disturbance::Qemu]) {
        progress.step(&disturbance.name());
        let mut row = disturb(disturbance, &guests, &lab, &agents, options.span)?;
        progress.step("undisturbed");
        let after = work_during(&guests, options.span)?;
        row.undisturbed = [before, after];
        before = after;
        rows.push(row);
    }
    progress.finish();
    Ok(table(options, &rows))
}

fn boot(options: &CollectOptions, assets: &Assets, lab: &Lab) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for number in 1..=options.guests {
        let mut file = GuestFile::new(number, assets, &options.guest);
        let append = file.command.iter_mut().find(|argument| argument.contains("console="));
        // Much to collect, and more than any cache holds to read.
        let random_mib = options.guest.memory_mib / 2;
        let words = format!(" load.work=1 load.random_mib={random_mib}");
        append.context("no kernel command line")?.push_str(&words);
        guests.push(Guest::start(file, &lab.source)?);
    }
    for guest in &mut guests {
        guest.wait_ready()?;
        weight::restore_vcpus(&guest.source.qmp)?;
    }
    Ok(guests)
}

/// Units of work per second of all guests together, for so long.
fn work_during(guests: &[Guest], span: Duration) -> Result<f64> {
    let counts = || -> Result<Vec<(Instant, u64)>> { guests.iter().map(count).collect() };
    let before = counts()?;
    thread::sleep(span);
    let rate = |((from, first), (to, last)): (&(Instant, u64), &(Instant, u64))| {
        (last - first) as f64 / (*to - *from).as_secs_f64()
    };
    Ok(before.iter().zip(&counts()?).map(rate).sum())
}

/// What a guest has done so far, and when it said so.
fn count(guest: &Guest) -> Result<(Instant, u64)> {
    let answer = guest.serial.ask("count", "N ", ANSWER_WITHIN)?;
    let units = fact(&answer, "units").and_then(|units| units.parse().ok());
    Ok((Instant::now(), units.with_context(|| format!("{}: {answer:?}", guest.file.name))?))
}

impl Disturbance {
    fn name(self) -> String {
        match self {
            Self::Scan(percent) => format!("scan --collect-cpu {percent}, again and again"),
            Self::Qemu => "QEMU migrates one guest at 1 Gbit/s, again and again".to_owned(),
        }
    }
}

fn disturb(
    disturbance: Disturbance,
    guests: &[Guest],
    lab: &Lab,
    agents: &Agents,
    span: Duration,
) -> Result<Row> {
    let ended = AtomicBool::new(false);
    let (rate, meanwhile) = thread::scope(|scope| {
        let work = scope.spawn(|| match disturbance {
            Disturbance::Scan(percent) => scan(percent, guests, lab, agents, &ended),
            Disturbance::Qemu => migrate(&guests[0], &ended),
        });
        let rate = work_during(guests, span);
        ended.store(true, Relaxed);
        let meanwhile = work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (rate, meanwhile)
    });
    Ok(Row { what: disturbance.name(), rate: rate?, undisturbed: [f64::NAN; 2], meanwhile: meanwhile? })
}

/// What the lab reads of the outcome of `vmscatter scan --json`.
#[derive(Debug, Deserialize)]
struct ScanOutcome {
    collect_time_s: f64,
    read_bytes: u64,
}

/// Scans until `ended`; tells what that came to.
fn scan(percent: u8, guests: &[Guest], lab: &Lab, agents: &Agents, ended: &AtomicBool) -> Result<String> {
    let since = Instant::now();
    let (mut scans, mut collecting_s, mut bytes) = (0, 0.0, 0);
    while !ended.load(Relaxed) {
        let mut command: Command = agents.scan_command(lab, guests)?;
        command.args(["--collect-cpu", &percent.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let output = lab.source.spawn(&mut command)?.wait_with_output()?;
        ensure!(output.status.success(), "vmscatter scan: {}", output.status);
        let outcome: ScanOutcome = serde_json::from_slice(&output.stdout)?;
        scans += 1;
        collecting_s += outcome.collect_time_s;
        bytes += outcome.read_bytes;
    }
    Ok(format!(
        "{scans} scans, {:.1} GB/s while collecting, which was {:.0} % of the time",
        bytes as f64 / collecting_s / 1e9,
        100.0 * collecting_s / since.elapsed().as_secs_f64()
    ))
}

/// Lets QEMU migrate a guest until `ended`, to a program that reads and forgets. After each migration the guest goes on.
fn migrate(guest: &Guest, ended: &AtomicBool) -> Result<String> {
    let qmp = &guest.source.qmp;
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": MIGRATION_BYTES_PER_S }))?;
    let (mut count, mut cancelled) = (0, false);
    while !cancelled {
        qmp.execute("migrate", json!({ "uri": "exec:cat > /dev/null" }))?;
        loop {
            let status = qmp.execute("query-migrate", json!({}))?["status"].clone();
            match status.as_str().unwrap_or_default() {
                "completed" => break,
                "cancelled" => {
                    cancelled = true;
                    break;
                }
                "failed" => bail!("QEMU's migration failed"),
                _ if ended.load(Relaxed) => drop(qmp.execute("migrate_cancel", json!({}))?),
                _ => thread::sleep(LOOK_INTERVAL),
            }
        }
        if !cancelled {
            count += 1;
            qmp.execute("cont", json!({}))?;
            cancelled = ended.load(Relaxed);
        }
    }
    Ok(format!("{count} migrations"))
}

fn table(options: &CollectOptions, rows: &[Row]) -> String {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["meanwhile", "guests' work", "undisturbed", "left", "what was done"]);
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut notes = String::new();
    for row in rows {
        let undisturbed = row.undisturbed.iter().sum::<f64>() / 2.0;
        table.add_row([
            row.what.clone(),
            format!("{:.0}/s", row.rate),
            format!("{undisturbed:.0}/s"),
            format!("{:.1} %", 100.0 * row.rate / undisturbed),
            row.meanwhile.clone(),
        ]);
        let drift = 100.0 * (row.undisturbed[1] / row.undisturbed[0] - 1.0);
        if drift.abs() > DRIFT_PERCENT_MAX {
            notes += &format!(
                "{}: undisturbed work differed by {drift:+.1} % before and after: the machine was not quiet\n",
                row.what
            );
        }
    }
    format!(
        "{} guests of {} MiB on {processors} processors, working all the time; spans of {:.0} s; a unit is 64 KiB of \
         memory read and summed up\n\n{table}\n{notes}",
        options.guests,
        options.guest.memory_mib,
        options.span.as_secs_f64()
    )
}
