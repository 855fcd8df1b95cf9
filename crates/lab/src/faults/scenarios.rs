//! The scenarios; see [`super::Scenario`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::bench::{Bench, Ended};

/// A session that nothing slows down.
const QUICK: Duration = Duration::from_secs(60);
/// Guests under way end by then, whatever was done to their target.
const SOON: Duration = Duration::from_secs(30);
/// Slow enough that something can happen meanwhile.
const SLOW: [&str; 2] = ["--bandwidth", "50mbit"];
/// So is this, and what guests rewrite is little of it: those that go on converge soon.
const MODEST: [&str; 2] = ["--bandwidth", "150mbit"];

fn all(bench: &Bench<'_>) -> std::ops::Range<usize> {
    0..bench.session.guests.len()
}

fn all_moved(bench: &Bench<'_>, ended: &Ended) -> Result<()> {
    ended.exited(&[0])?;
    all(bench).try_for_each(|index| bench.moved(ended, index))
}

pub(super) fn paused(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest(0);
    let source = &guest.source.qmp;
    source.execute("stop", json!({}))?;
    let ended = bench.migrate(&[])?.end(QUICK)?;
    ended.exited(&[0])?;
    ended.line("vm1: paused at host1, verified")?;
    (1..bench.session.guests.len()).try_for_each(|index| bench.moved(&ended, index))?;
    let twin = &ended.twins[0].as_ref().context("no QEMU at the target")?.qmp;
    let status = bench.status(twin)?;
    ensure!(status == "paused", "vm1 was paused, and is {status} at its target");
    ensure!(twin.last_event("RESUME").is_none(), "vm1 was paused, and ran at its target");
    ensure!(source.is_closed(), "vm1's source QEMU has not ended");
    twin.execute("cont", json!({}))?;
    bench.is_well(0, twin, true).context("vm1 after cont")
}

pub(super) fn loss(bench: &mut Bench<'_>) -> Result<()> {
    for host in &bench.session.lab.targets {
        bench.session.lab.network.set_udp_loss(&host.link, 10)?;
    }
    let ended = bench.migrate(&[])?.end(QUICK)?;
    ensure!(!ended.stderr.contains("warning"), "{}", ended.stderr.trim());
    all_moved(bench, &ended)
}

pub(super) fn no_multicast(bench: &mut Bench<'_>) -> Result<()> {
    bench.target(1).nft(
        "table netdev lab { chain multicast { type filter hook ingress device eth0 priority 0; \
         ip daddr 224.0.0.0/4 ip protocol udp drop; }; }",
    )?;
    let ended = bench.migrate(&[])?.end(QUICK)?;
    ended.line("warning: multicast does not reach host2")?;
    ensure!(!ended.stderr.contains("not reach host1"), "{}", ended.stderr.trim());
    all_moved(bench, &ended)
}

/// Twice: while contents are scattered, and while guests are streamed. Then, after all that, all are moved.
pub(super) fn cancel(bench: &mut Bench<'_>) -> Result<()> {
    for phase in ["] scatter", ": stream"] {
        let mut running = bench.migrate(&SLOW)?;
        running.wait_for(phase, SOON)?;
        std::thread::sleep(Duration::from_millis(300));
        running.interrupt()?;
        let ended = running.end(SOON)?;
        ended.exited(&[130])?;
        all(bench).try_for_each(|index| bench.stayed(&ended, index)).with_context(|| phase.to_owned())?;
    }
    let ended = bench.migrate(&[])?.end(QUICK)?;
    all_moved(bench, &ended).context("moved after all")
}

pub(super) fn target_dies(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&MODEST)?;
    running.wait_for("] scatter", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    bench.kill_host(bench.target(1))?;
    let ended = running.end(SOON)?;
    ended.exited(&[3])?;
    ended.line("vm2: failed, stays: host2")?;
    bench.stayed(&ended, 1)?;
    bench.moved(&ended, 0)?;
    bench.moved(&ended, 2)
}

/// The guests' QEMUs are not the agent's children: they see a closed socket and go on.
pub(super) fn source_dies(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&SLOW)?;
    running.wait_for(": stream", SOON)?;
    std::thread::sleep(Duration::from_millis(200));
    bench.agents.kill_source()?;
    let ended = running.end(SOON)?;
    ended.exited(&[4])?;
    for index in all(bench) {
        let (guest, twin) = (bench.guest(index), &ended.twins[index]);
        let gone = twin.as_ref().is_none_or(|twin| super::bench::gone(&twin.qmp));
        ensure!(gone, "the QEMU at the target of {} has not ended", guest.file.name);
        bench.is_well(index, &guest.source.qmp, false).context(guest.file.name.clone())?;
    }
    Ok(())
}

/// vm1 wants a program that no host allows; vm2's RAM at the target would be another.
pub(super) fn bad_machine(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.guests[0].file.command[0] = "/bin/false".to_owned();
    let command = &mut bench.session.guests[1].file.command;
    let memory = command.iter().position(|argument| argument == "-m").context("no -m")?;
    command[memory + 1] = "224M".to_owned();
    let ended = bench.migrate(&[])?.end(QUICK)?;
    ended.exited(&[3])?;
    for (index, reason) in [(0, "/bin/false"), (1, "no RAM block pc.ram of ")] {
        let guest = bench.guest(index);
        let line = ended.line(&format!("{}: failed, stays: ", guest.file.name))?;
        ensure!(line.contains(reason), "{line}");
        let migration = guest.source.qmp.execute("query-migrate", json!({}))?;
        ensure!(migration.get("status").is_none(), "{} was told to migrate: {migration}", guest.file.name);
        bench.stayed(&ended, index)?;
    }
    bench.moved(&ended, 2)
}
