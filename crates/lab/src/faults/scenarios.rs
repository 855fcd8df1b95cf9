//! The scenarios; see [`super::Scenario`].

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::bench::{Bench, Ended};
use crate::scatter::{DATA_PORT, log_of};

/// A session that nothing slows down.
const QUICK: Duration = Duration::from_secs(60);
/// Guests under way end by then, whatever was done to their target.
const SOON: Duration = Duration::from_secs(30);
/// Slow enough that something can happen meanwhile.
const SLOW: [&str; 2] = ["--bandwidth", "50mbit"];
/// So is this, and what guests rewrite is little of it: those that go on converge soon.
const MODEST: [&str; 2] = ["--bandwidth", "150mbit"];

/// Guests go on, with QEMU's parameters as they were, within this time of Ctrl-C.
const CANCEL_MAX: Duration = Duration::from_secs(1);

fn all(bench: &Bench<'_>) -> std::ops::Range<usize> {
    0..bench.session.guests.len()
}

fn ensure_gone(qmp: &crate::qmp::Qmp) -> Result<()> {
    ensure!(super::bench::gone(qmp), "a QEMU has not ended");
    Ok(())
}

/// What targets share has gone to all of them to its end.
fn none_left_the_scatter(bench: &Bench<'_>) -> Result<()> {
    ensure!(
        !log_of(&bench.session.lab.source).contains("leaves the scatter"),
        "a target has left the scatter"
    );
    Ok(())
}

/// All guests have moved, each to its target.
pub(super) fn all_moved(bench: &Bench<'_>, ended: &Ended) -> Result<()> {
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

/// Drops all multicast on its way in.
const DEAF: &str = "table netdev lab { chain multicast { type filter hook ingress device eth0 priority 0; \
     ip daddr 224.0.0.0/4 ip protocol udp drop; }; }";

/// Drops multicast that is longer than many networks carry, as a switch does whose MTU is smaller than its hosts'.
const SHORT_ONLY: &str = "table netdev lab { chain multicast { type filter hook ingress device eth0 priority 0; \
     ip daddr 224.0.0.0/4 udp length > 1300 drop; }; }";

pub(super) fn ipv6(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.lab.hosts().try_for_each(|host| bench.session.lab.network.add_ipv6(&host.link))?;
    bench.agents.over_ipv6 = true;
    let (_, checks) = bench.doctor()?;
    let is_wrong = |[_, what, verdict]: &&[String; 3]| verdict != "good" && what != "MLD querier";
    let wrong: Vec<_> = checks.iter().filter(is_wrong).collect();
    ensure!(checks.iter().any(|[_, what, _]| what == "MLD querier") && wrong.is_empty(), "{wrong:?}");
    let ended = bench.migrate(&["--transport", "multicast"])?.end(QUICK)?;
    ensure!(!ended.stderr.contains("not reach"), "{}", ended.stderr.trim());
    ended.went_by_multicast()?;
    all_moved(bench, &ended)
}

/// Drops multicast beyond so many kilobytes a second, as switches do that guard against storms. What a second may have passes at once.
fn guard(kbytes: u32) -> String {
    format!(
        "table netdev lab {{ chain multicast {{ type filter hook ingress device eth0 priority 0; \
         ip daddr 224.0.0.0/4 ip protocol udp limit rate over {kbytes} kbytes/second burst 16 kbytes drop; }}; }}"
    )
}

/// Counts bytes of multicast, and of those in datagrams that no link of Ethernet's usual MTU carries.
const LONG: &str = "table netdev lab { counter any { }; counter long { }; \
     chain multicast { type filter hook ingress device eth0 priority 0; \
     ip daddr 224.0.0.0/4 ip protocol udp counter name any; ip daddr 224.0.0.0/4 udp length > 8000 counter name long; }; }";

/// Datagrams are as long as that: nearly all of what is multicast stands in such.
pub(super) fn jumbo(bench: &mut Bench<'_>) -> Result<()> {
    let network = &bench.session.lab.network;
    bench.session.lab.hosts().try_for_each(|host| network.set_mtu(&host.link, 9000))?;
    let counting = bench.target(0);
    network.cut_super_packets(&counting.link, true)?;
    counting.nft(LONG)?;
    let ended = bench.migrate(&["--transport", "multicast"])?.end(QUICK)?;
    ended.went_by_multicast()?;
    let bytes = |counter: &str| counting.link.namespace.counted_bytes("lab", counter);
    let (long, all) = (bytes("long")?, bytes("any")?);
    println!("  {long} bytes of {all} came in datagrams of more than 8000");
    ensure!(all > 0 && long as f64 > 0.9 * all as f64, "{long} of {all} bytes");
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

pub(super) fn no_multicast(bench: &mut Bench<'_>) -> Result<()> {
    bench.target(1).nft(DEAF)?;
    let ended = bench.migrate(&[])?.end(QUICK)?;
    ended.line("warning: multicast does not reach host2")?;
    ensure!(!ended.stderr.contains("not reach host1"), "{}", ended.stderr.trim());
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

/// What gets there is found.
pub(super) fn no_long_multicast(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.lab.network.cut_super_packets(&bench.target(1).link, true)?;
    bench.target(1).nft(SHORT_ONLY)?;
    let ended = bench.migrate(&["--transport", "multicast"])?.end(QUICK)?;
    ensure!(!ended.stderr.contains("not reach"), "{}", ended.stderr.trim());
    ended.went_by_multicast()?;
    all_moved(bench, &ended)
}

pub(super) fn no_multicast_at_all(bench: &mut Bench<'_>) -> Result<()> {
    all(bench).try_for_each(|index| bench.target(index).nft(DEAF))?;
    let ended = bench.migrate(&[])?.end(QUICK)?;
    for host in ["host1", "host2"] {
        ended.line(&format!("warning: multicast does not reach {host}"))?;
    }
    ended.sums_up("passed on by targets")?;
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

/// Probes reach both, and a train of them one: that is found before anything is sent, and the other's frames go by multicast as ever.
pub(super) fn little_multicast(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.lab.network.cut_super_packets(&bench.target(1).link, true)?;
    bench.target(1).nft(&guard(100))?;
    let ended = bench.migrate(&[])?.end(QUICK)?;
    let line = ended.line("warning: multicast does not reach host2 (")?;
    println!("  {line}");
    ensure!(line.contains("datagrams arrive at 200 Mbit/s"), "{line}");
    ensure!(!ended.stderr.contains("not reach host1"), "{}", ended.stderr.trim());
    ended.went_by_multicast()?;
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

/// The trains get to both, and what follows is held back: it is passed on instead.
pub(super) fn multicast_is_throttled(bench: &mut Bench<'_>) -> Result<()> {
    for index in 0..2 {
        bench.session.lab.network.cut_super_packets(&bench.target(index).link, true)?;
        bench.target(index).nft(&guard(2000))?;
    }
    let ended = bench.migrate(&[])?.end(QUICK)?;
    for host in ["host1", "host2"] {
        let line = ended.line(&format!("warning: multicast does not reach {host} ("))?;
        println!("  {line}");
        ensure!(line.contains("Mbit/s get there"), "{line}");
    }
    ended.sums_up("passed on by targets")?;
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

pub(super) fn groups_fall_silent(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&SLOW)?;
    running.wait_for("] scatter", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    all(bench).try_for_each(|index| bench.target(index).nft(DEAF))?;
    running.wait_for("warning: multicast does not reach host1", SOON)?;
    let took = since.elapsed();
    println!("  noticed after {took:.2?}");
    ensure!(took < Duration::from_secs(2), "it took {took:.2?} to notice");
    let ended = running.end(QUICK)?;
    ended.sums_up("passed on by targets")?;
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

/// Nothing by multicast, at a modest rate.
const RELAYED: [&str; 4] = ["--transport", "relay", "--bandwidth", "50mbit"];

pub(super) fn relay_dies(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&RELAYED)?;
    running.wait_for("] scatter", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    bench.kill_host(bench.target(1))?;
    let ended = running.end(QUICK)?;
    ended.exited(&[3])?;
    ended.line("vm2: failed, stays: host2")?;
    bench.stayed(&ended, 1)?;
    bench.moved(&ended, 0)?;
    bench.moved(&ended, 2)
}

pub(super) fn relay_is_cut(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&RELAYED)?;
    running.wait_for("] scatter", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    let from = bench.target(0).link.address;
    bench.target(1).nft(&format!(
        "table netdev lab {{ chain hop {{ type filter hook ingress device eth0 priority 0; \
         ip saddr {from} tcp dport {DATA_PORT} drop; }}; }}"
    ))?;
    let ended = running.end(QUICK)?;
    ended.sums_up("passed on by targets")?;
    none_left_the_scatter(bench)?;
    all_moved(bench, &ended)
}

/// The others go on without it, and it gets what it can take.
pub(super) fn relay_is_slow(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.lab.network.set_rate(&bench.target(1).link, "40mbit")?;
    let ended = bench.migrate(&["--transport", "relay"])?.end(QUICK)?;
    let log = log_of(&bench.session.lab.source);
    ensure!(log.contains("leaves the scatter") && log.contains("host2"), "nobody left");
    let [fast, slow] = [ended.when("vm1: running")?, ended.when("vm2: running")?];
    println!("  vm1 runs at host1 after {fast:.1} s, vm2 at host2 after {slow:.1} s");
    ensure!(fast < slow / 2.0, "vm1 has waited for vm2");
    all_moved(bench, &ended)
}

/// All is well; then a target loses datagrams; then it hears none at all; then its agent is killed.
pub(super) fn doctor(bench: &mut Bench<'_>) -> Result<()> {
    let complaints = |bench: &Bench<'_>| -> Result<(Option<i32>, Vec<String>)> {
        let (code, checks) = bench.doctor()?;
        for host in ["host1", "host2"] {
            let about = checks.iter().filter(|[on, ..]| on == host).count();
            ensure!(about > 0, "it says nothing of {host}");
        }
        // Whether somebody asks for groups is not known so soon.
        let wrong = checks.iter().filter(|[_, what, verdict]| verdict != "good" && what != "IGMP querier");
        Ok((code, wrong.map(|[host, what, verdict]| format!("{host}: {what}: {verdict}")).collect()))
    };
    let expect = |bench: &Bench<'_>, case: &str, code: i32, expected: &[&str]| -> Result<()> {
        println!("  {case}:");
        let found = complaints(bench)?;
        ensure!(found.0 == Some(code) && found.1 == expected, "{case}: {found:?}");
        Ok(())
    };
    expect(bench, "all is well", 0, &[])?;
    bench.session.lab.network.set_udp_loss(&bench.target(1).link, 100)?;
    expect(bench, "host2 loses one in ten", 0, &["host2: multicast to it: poor"])?;
    bench.target(1).nft(DEAF)?;
    expect(bench, "host2 hears no multicast", 0, &["host2: multicast to it: poor"])?;
    bench.kill_host(bench.target(1))?;
    expect(bench, "host2's agent is killed", 1, &["host2: connection: bad"])
}

/// Twice: while contents are scattered, and while guests are streamed. Then, after all that, all are moved.
pub(super) fn cancel(bench: &mut Bench<'_>) -> Result<()> {
    for phase in ["] scatter", ": stream"] {
        let mut running = bench.migrate(&SLOW)?;
        running.wait_for(phase, SOON)?;
        std::thread::sleep(Duration::from_millis(300));
        let since = Instant::now();
        running.interrupt()?;
        let ended = running.end(SOON)?;
        let took = since.elapsed();
        ended.exited(&[130])?;
        ensure!(took < CANCEL_MAX, "cancelling took {took:.2?}");
        println!(
            "  cancelled in {}: all go on, and QEMUs are put back, after {took:.2?}",
            phase.trim_matches([']', ':', ' '])
        );
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

/// The same with guests that may go anywhere, and `--retry`: the one that loses its target gets another.
pub(super) fn retry(bench: &mut Bench<'_>) -> Result<()> {
    bench.agents.unpinned = true;
    let mut running = bench.migrate(&[&MODEST[..], &["--retry", "2"]].concat())?;
    running.wait_for("] scatter", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    let lost = bench.target(1).name.clone();
    bench.kill_host(bench.target(1))?;
    let ended = running.end(QUICK)?;
    ended.exited(&[0])?;
    let again = ended.line("tried again (1 of 2): ")?;
    let again: Vec<&str> = again.rsplit(": ").next().unwrap_or_default().split(", ").collect();
    let names = all(bench).map(|index| bench.guest(index).file.name.as_str());
    let failed = |name: &&str| ended.line(&format!("{name}: failed, stays: {lost}")).is_ok();
    let failed: Vec<&str> = names.filter(failed).collect();
    ensure!(!failed.is_empty() && failed == again, "{}", ended.stderr);
    for index in all(bench) {
        let name = bench.guest(index).file.name.as_str();
        let others = bench.session.lab.targets.iter().filter(|host| host.name != lost);
        let there =
            |host: &&crate::host::Host| ended.line(&format!("{name}: running at {}", host.name)).is_ok();
        let host = others.into_iter().find(there).with_context(|| ended.stderr.clone())?;
        bench.moved_to(&ended, index, &host.name)?;
    }
    Ok(())
}

/// vm1 is reset while contents are scattered, and vm2 switches itself off; vm3 has nothing to do with it.
pub(super) fn guest_events(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&MODEST)?;
    running.wait_for("] scatter", SOON)?;
    bench.guest(0).serial.tell(0, "sysrq b")?;
    bench.guest(1).serial.tell(0, "sysrq o")?;
    let ended = running.end(QUICK)?;
    ended.exited(&[3])?;
    ended.line("warning: vm1: the guest was reset on its way")?;
    ended.line("vm2: failed, stays: the guest shut down")?;
    let twin = ended.twins[1].iter().map(|twin| &twin.qmp);
    twin.chain([&bench.guest(1).source.qmp]).try_for_each(ensure_gone).context("vm2")?;
    bench.moved(&ended, 2)?;
    let line = ended.line("vm1: running at host1")?;
    ensure!(line.ends_with(", verified"), "{line}");
    ensure_gone(&bench.guest(0).source.qmp).context("vm1")?;
    // It boots at its target, or has done so already: its ticks begin anew.
    let (serial, until) = (&bench.guest(0).serial, Instant::now() + QUICK);
    let again = || serial.ticks().iter().any(|tick| tick.line > 0 && tick.sequence > 0);
    while !again() || bench.guest(0).check().is_err() {
        ensure!(Instant::now() < until, "vm1 does not come up after its reset");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// vm1 panics while contents are scattered, and its QEMU ends; vm2 does so in its stream, and its QEMU is to keep it.
pub(super) fn guest_panics(bench: &mut Bench<'_>) -> Result<()> {
    let kept = &bench.guest(1).source.qmp;
    kept.execute("set-action", json!({ "panic": "pause" }))?;
    let mut running = bench.migrate(&MODEST)?;
    running.wait_for("] scatter", SOON)?;
    bench.guest(0).serial.tell(0, "panic")?;
    running.wait_for("vm2: stream", SOON)?;
    bench.guest(1).serial.tell(0, "panic")?;
    let ended = running.end(QUICK)?;
    ended.exited(&[3])?;
    for (index, name) in ["vm1", "vm2"].into_iter().enumerate() {
        ended.line(&format!("{name}: failed, stays: the guest panicked"))?;
        ended.twins[index].iter().try_for_each(|twin| ensure_gone(&twin.qmp)).context(name)?;
    }
    ensure_gone(&bench.guest(0).source.qmp).context("vm1")?;
    let (kept, status) = (&bench.guest(1).source.qmp, bench.status(&bench.guest(1).source.qmp)?);
    ensure!(status == "guest-panicked" && !kept.is_closed(), "vm2 is {status}");
    bench.moved(&ended, 2)
}

/// The guests' QEMUs are not the agent's children: they see a closed socket and go on.
pub(super) fn source_dies(bench: &mut Bench<'_>) -> Result<()> {
    let mut running = bench.migrate(&SLOW)?;
    running.wait_for(": stream", SOON)?;
    std::thread::sleep(Duration::from_millis(200));
    bench.agents.kill(0)?;
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
