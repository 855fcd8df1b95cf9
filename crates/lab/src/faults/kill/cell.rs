//! One cell: guests are booted, vm1 is brought to the step, the fault is done to it, and then all find their ends.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::matrix::{Cell, End, Fault, Step};
use crate::assets::Assets;
use crate::faults::bench::{Bench, Ended, Running, gone, wait_held};
use crate::host::Host;
use crate::progress::Progress;
use crate::qmp::Qmp;
use crate::session::Settings;

/// vm1 has come to its step by then.
const REACH: Duration = Duration::from_secs(60);
/// Longer than the silence after which an agent takes the other side for lost.
const CUT: Duration = Duration::from_secs(20);
/// Agents are started again after so long.
const DOWN: Duration = Duration::from_secs(1);
/// All guests have found their ends by then, once all is mended.
const SETTLED: Duration = Duration::from_secs(90);
/// Between two looks at the agents, and how long they try by themselves before `recover` is called.
const LOOK: Duration = Duration::from_millis(200);
const BY_THEMSELVES: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(10);

/// Where the guests of a cell have ended.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) ends: [End; 3],
    /// `vmscatter recover` was called, by hand as it were.
    pub(super) recovered: bool,
    /// The operator had to decide.
    pub(super) decided: bool,
}

/// What of `vmscatter status --json` is looked at.
#[derive(Debug, Deserialize)]
struct Status {
    jobs: Vec<Job>,
    incoming: Vec<serde_json::Value>,
    unfinished: Vec<Unfinished>,
}

#[derive(Debug, Deserialize)]
struct Job {
    state: String,
}

#[derive(Debug, Deserialize)]
struct Unfinished {
    guest: String,
    note: String,
    needs_operator: bool,
}

/// Plays a cell.
///
/// # Errors
/// What went wrong: a guest that is lost, doubled, damaged, or not where it should be; or the lab itself.
pub(super) fn play(cell: Cell, settings: &Settings, assets: &Assets, progress: &Progress) -> Result<Ends> {
    let mut bench = Bench::start(settings, assets, progress)?;
    progress.step(&format!("{} at {}", cell.fault.name(), cell.step.name()));
    let result = play_in(cell, &mut bench);
    result.with_context(|| bench.last_words())
}

fn play_in(cell: Cell, bench: &mut Bench<'_>) -> Result<Ends> {
    let name = bench.guest(0).file.name.clone();
    let hold = cell.step.hold().map(|place| bench.agents.hold(&name, place)).transpose()?;
    // Slow enough where nothing holds the guest: the step is to be met, and not missed.
    let options: &[&str] = if hold.is_some() { &[] } else { &["--bandwidth", "150mbit"] };
    let mut running = bench.migrate(options)?;
    reach(cell.step, bench, &mut running, hold.as_deref())?;
    strike(cell.fault, bench, &mut running)?;
    if let Some(hold) = hold {
        std::fs::remove_file(hold)?;
    }
    mend(cell.fault, bench)?;
    let (recovered, decided) = settle(bench)?;
    let ended = running.end(SOON)?;
    let mut ends = [End::Gone; 3];
    for (guest, end) in ends.iter_mut().enumerate() {
        *end = found(bench, &ended, guest)?;
        let (name, right) = (&bench.guest(guest).file.name, cell.ends(guest));
        ensure!(
            right.contains(end),
            "{name} is found {end:?}, and should be {right:?}: {}",
            ended.stderr.trim()
        );
    }
    Ok(Ends { ends, recovered, decided })
}

/// Waits until vm1 has come to the step.
fn reach(step: Step, bench: &Bench<'_>, running: &mut Running, hold: Option<&Path>) -> Result<()> {
    let (name, source) = (&bench.guest(0).file.name, &bench.guest(0).source.qmp);
    match step {
        Step::Open => running.wait_for(&format!("{name}: open"), REACH),
        Step::Scatter => running.wait_for("] scatter", REACH),
        Step::Streaming => running.wait_for(&format!("{name}: stream"), REACH),
        Step::Stopped => {
            let stopped = source.wait_event(REACH, |event| event.name == "STOP");
            stopped.map(drop).context("vm1 was not stopped")
        }
        _ => wait_held(hold.context("a step at which guests are held")?, REACH),
    }
}

fn strike(fault: Fault, bench: &mut Bench<'_>, running: &mut Running) -> Result<()> {
    match fault {
        Fault::CommandLine => running.kill(),
        Fault::SourceAgent => bench.agents.kill(0),
        Fault::TargetAgent => bench.agents.kill(1),
        Fault::SourceQemu => match kill(Pid::from_raw(bench.guest(0).source.qmp.pid()), Signal::SIGKILL) {
            // At the last step it has ended by itself.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => bail!("vm1's QEMU can't be killed: {error}"),
        },
        Fault::TargetQemu => {
            let pid = bench.qemu_at(bench.target(0), &bench.guest(0).file.name)?;
            Ok(kill(pid, Signal::SIGKILL)?)
        }
        Fault::Cut | Fault::CutToTarget | Fault::CutToSource => {
            deaf(fault, bench).into_iter().try_for_each(|(host, other)| cut(host, other))
        }
    }
}

/// Who does not hear whom while the network is cut.
fn deaf<'b>(fault: Fault, bench: &'b Bench<'_>) -> Vec<(&'b Host, &'b Host)> {
    let (source, target) = (&bench.session.lab.source, bench.target(0));
    match fault {
        Fault::Cut => vec![(source, target), (target, source)],
        Fault::CutToTarget => vec![(target, source)],
        Fault::CutToSource => vec![(source, target)],
        _ => Vec::new(),
    }
}

/// `host` hears nothing of `other`.
fn cut(host: &Host, other: &Host) -> Result<()> {
    host.nft(&format!(
        "table netdev cut {{ chain cut {{ type filter hook ingress device eth0 priority 0; ip saddr {} drop; }}; }}",
        other.link.address
    ))
}

fn mend(fault: Fault, bench: &mut Bench<'_>) -> Result<()> {
    match fault {
        Fault::SourceAgent | Fault::TargetAgent => {
            thread::sleep(DOWN);
            let number = usize::from(fault == Fault::TargetAgent);
            bench.agents.restart(number, &bench.session.lab)
        }
        Fault::Cut | Fault::CutToTarget | Fault::CutToSource => {
            thread::sleep(CUT);
            deaf(fault, bench).into_iter().try_for_each(|(host, _)| host.nft("delete table netdev cut"))
        }
        Fault::CommandLine | Fault::SourceQemu | Fault::TargetQemu => Ok(()),
    }
}

/// Waits until no agent has anything under way or unfinished: whether `recover` was called for it, and whether it took the operator's
/// decision.
fn settle(bench: &Bench<'_>) -> Result<(bool, bool)> {
    let (since, mut recovered, mut decided) = (Instant::now(), false, false);
    let mut idle = None;
    let hosts: Vec<&Host> = bench.session.lab.hosts().collect();
    loop {
        let statuses = hosts.iter().map(|host| status(bench, host)).collect::<Result<Vec<_>>>()?;
        let running = |status: &Status| status.jobs.iter().any(|job| job.state != "done");
        let quiet =
            |status: &Status| !running(status) && status.incoming.is_empty() && status.unfinished.is_empty();
        if statuses.iter().all(quiet) {
            return Ok((recovered, decided));
        }
        ensure!(since.elapsed() < SETTLED, "not settled within {SETTLED:?}: {statuses:?}");
        let undecided = hosts.iter().zip(&statuses).find_map(|(host, status)| {
            Some((*host, status.unfinished.iter().find(|guest| guest.needs_operator)?))
        });
        if let Some((host, guest)) = undecided {
            // It has run at its target, as the lab knows.
            let output = bench.command(host, &["recover", "--force-target", &guest.guest, "--yes"])?;
            decided = true;
            ensure!(guest.note.contains("has ended"), "a decision is asked for: {guest:?}; {output}");
        } else if statuses.iter().any(running) {
            idle = None;
        } else if idle.get_or_insert_with(Instant::now).elapsed() > BY_THEMSELVES {
            for host in &hosts {
                bench.command(host, &["recover"])?;
            }
            (recovered, idle) = (true, None);
        }
        thread::sleep(LOOK);
    }
}

fn status(bench: &Bench<'_>, host: &Host) -> Result<Status> {
    let text = bench.command(host, &["status", "--json"])?;
    serde_json::from_str(&text).with_context(|| format!("status of {}: {text}", host.name))
}

/// Where a guest runs, if it does so in one place only, and nothing of it is left in the other; its ticks and data are seen to be whole.
fn found(bench: &Bench<'_>, ended: &Ended, guest: usize) -> Result<End> {
    let name = &bench.guest(guest).file.name;
    let source = &bench.guest(guest).source.qmp;
    let twin = ended.twins[guest].as_ref().map(|twin| &twin.qmp);
    // A QEMU that was told to end takes a moment for it.
    let runs = |qmp: &Qmp| bench.status(qmp).is_ok_and(|status| status == "running");
    match (runs(source), twin.is_some_and(runs)) {
        (true, true) => bail!("{name} RUNS TWICE"),
        (true, false) => bench.stayed(ended, guest).map(|()| End::Source),
        (false, true) => {
            ensure!(gone(source), "{name} runs at its target, and its source QEMU is still there");
            let twin = twin.context("it runs")?;
            bench.is_well(guest, twin, true).with_context(|| format!("{name} at its target"))?;
            Ok(End::Target)
        }
        (false, false) => {
            let left = |qmp: &Qmp| (!gone(qmp)).then(|| bench.status(qmp).unwrap_or_default());
            match (left(source), twin.and_then(left)) {
                (None, None) => Ok(End::Gone),
                (source, target) => bail!("{name} RUNS NOWHERE: source {source:?}, target {target:?}"),
            }
        }
    }
}
