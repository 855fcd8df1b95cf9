//! A guest is decided for its source, as its target's host is taken for lost; then that host comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::bench::{Bench, Ended, gone, wait_held};
use crate::qmp::Qmp;
use crate::scatter::log_of;
use crate::serial;

/// The command line gives the guest up after the silence that an agent allows.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// The source's agent lets nobody decide while it asks the other side, and the target's asks when it is back.
const SOON: Duration = Duration::from_secs(60);
/// What its QEMU has to say of it is read by then.
const SAID: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
const TICKS: usize = 10;

/// The target has the source's decision on its disk, and the guest does not run there yet.
const PLACE: &str = "target-after-committed";

/// First its agent alone is killed, and started again: the copy must never run. Then all of the host stands still and goes on
/// where it stood, at `cont`: the copy runs, and must be stopped.
pub(super) fn play(bench: &mut Bench<'_>) -> Result<()> {
    agent_comes_back(bench).context("its agent is started again")?;
    host_goes_on(bench).context("its host goes on")
}

fn agent_comes_back(bench: &mut Bench<'_>) -> Result<()> {
    let hold = hold(bench)?;
    let running = bench.migrate_some(&[0], &[])?;
    wait_held(&hold, GIVEN_UP)?;
    bench.agents.kill(1)?;
    let ended = running.end(GIVEN_UP)?;
    let twin = twin(&ended)?;
    decide_for_source(bench, &ended)?;
    std::fs::remove_file(hold)?;
    bench.agents.restart(1, &bench.session.lab)?;
    ensure!(gone(twin), "the copy at the target has not ended");
    ensure!(twin.last_event("RESUME").is_none(), "the copy at the target ran");
    bench.is_well(0, &bench.guest(0).source.qmp, false)?;
    nothing_unfinished(bench)
}

fn host_goes_on(bench: &mut Bench<'_>) -> Result<()> {
    let hold = hold(bench)?;
    let running = bench.migrate_some(&[0], &[])?;
    wait_held(&hold, GIVEN_UP)?;
    let host = bench.target(0).clone();
    bench.signal_host(&host, Signal::SIGSTOP)?;
    let ended = running.end(GIVEN_UP);
    let decided = ended.and_then(|ended| decide_for_source(bench, &ended).map(|()| ended));
    std::fs::remove_file(hold)?;
    let since = Instant::now();
    bench.signal_host(&host, Signal::SIGCONT)?;
    let ended = decided?;
    let twin = twin(&ended)?;
    let log = || log_of(&host).contains("the copy here was stopped and is left for inspection");
    while !log() {
        if since.elapsed() > SOON {
            let status = bench.command(&host, &["status"])?;
            bail!("the target's agent does not say that it has stopped a copy: {status}");
        }
        std::thread::sleep(LOOK);
    }
    let said = |name: &str| twin.wait_event(SAID, |event| event.name == name).is_some();
    ensure!(said("RESUME") && said("STOP"), "the copy at the target did not run, or was not stopped");
    println!("  the copy was stopped within {:.2?}", since.elapsed());
    ensure!(bench.status(twin)? == "paused", "the copy at the target is {}", bench.status(twin)?);
    // It has been inspected.
    twin.execute("quit", json!({}))?;
    ensure!(gone(twin), "the copy at the target has not ended");
    let guest = bench.guest(0);
    ensure!(bench.status(&guest.source.qmp)? == "running", "it does not run at the source");
    guest.check()?;
    let mut ticks = guest.serial.ticks();
    ticks.retain(|tick| tick.line == 0);
    ensure!(serial::is_gapless(&ticks), "ticks were lost at the source");
    nothing_unfinished(bench)
}

fn hold(bench: &Bench<'_>) -> Result<std::path::PathBuf> {
    bench.agents.hold(&bench.guest(0).file.name, PLACE)
}

fn twin(ended: &Ended) -> Result<&Qmp> {
    Ok(&ended.twins[0].as_ref().context("no QEMU at the target")?.qmp)
}

/// The guest is in doubt; the operator, who takes the target for dead, decides for the source, where it goes on.
fn decide_for_source(bench: &Bench<'_>, ended: &Ended) -> Result<()> {
    let (source, guest) = (&bench.session.lab.source, bench.guest(0));
    ended.exited(&[1])?;
    ensure!(bench.status(&guest.source.qmp)? != "running", "it runs before anybody has decided");
    let (name, until) = (&guest.file.name, Instant::now() + SOON);
    let decision = ["recover", "--force-source", name, "--yes"];
    let mut said = bench.command(source, &decision)?;
    while bench.status(&guest.source.qmp)? != "running" {
        ensure!(Instant::now() < until, "it does not run at the source: {said}");
        std::thread::sleep(Duration::from_secs(1));
        said = bench.command(source, &decision)?;
    }
    ensure!(guest.serial.wait_ticks(0, TICKS, SOON), "it does not tick at the source: {said}");
    Ok(())
}

fn nothing_unfinished(bench: &Bench<'_>) -> Result<()> {
    let until = Instant::now() + SOON;
    for host in [&bench.session.lab.source, bench.target(0)] {
        let status = || bench.command(host, &["status"]);
        while status()?.contains("unfinished") {
            ensure!(Instant::now() < until, "{}: {}", host.name, status()?);
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}
