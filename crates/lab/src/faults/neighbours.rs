//! One target is a bad neighbour: its agent hangs, it runs out of memory, or most of its packets are lost. What is asked is
//! that guests of other targets do not feel it: they are away in about the time that they need with good neighbours.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::bench::{Bench, Ended, gone};
use crate::assets::Assets;
use crate::memory_limit::MemoryLimit;
use crate::progress::Progress;
use crate::session::Settings;

/// What is wrong with the first target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its agent is stopped while shared contents are sent.
    HangsInScatter,
    /// Its agent is stopped while its guests' streams flow.
    HangsInStream,
    /// Its QEMUs have no memory to load their guests into.
    NoMemory,
    /// It loses half of all packets for as long as there is a session.
    Loses,
}

/// The host of each guest, from 0. Those of the bad neighbour stream first, and as many as may stream at once.
const PLACES: [usize; 6] = [BAD, BAD, 1, 1, 2, 2];
const GUESTS: usize = PLACES.len();
const HOSTS: usize = 3;
const BAD: usize = 0;
/// So that something can be done to it while guests are under way.
const RATE: [&str; 2] = ["--bandwidth", "150mbit"];
const START: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(150);
/// What the others may need more than usual, in seconds, though there are fewer to share the link with: a stream of the bad
/// neighbour keeps its place for two seconds ...
const LONGER: f64 = 3.0;
/// ... and what is scattered waits for ten until its target leaves the scatter.
const LONGER_IN_SCATTER: f64 = 11.0;
/// Room for one guest and a half.
const MEMORY_BYTES: u64 = 230 << 20;

/// How long the guests of good neighbours take when all are.
pub(super) fn usual(settings: &Settings, assets: &Assets, progress: &Progress) -> Result<f64> {
    let settings = with_guests(settings);
    let mut bench = Bench::start(&settings, assets, progress)?;
    bench.session.placement = Some(PLACES.to_vec());
    progress.step("all neighbours good");
    let ended = bench.migrate(&RATE)?.end(END)?;
    ended.exited(&[0])?;
    others_moved(&bench, &ended)
}

fn with_guests(settings: &Settings) -> Settings {
    Settings { guests: GUESTS, hosts: HOSTS, ..settings.clone() }
}

fn is_bad(index: usize) -> bool {
    PLACES[index] == BAD
}

/// When the last guest of a good neighbour ran there, by the command's clock.
fn others_moved(bench: &Bench<'_>, ended: &Ended) -> Result<f64> {
    let mut last = 0.0f64;
    for index in (0..GUESTS).filter(|index| !is_bad(*index)) {
        bench.moved(ended, index)?;
        let name = &bench.guest(index).file.name;
        last = last.max(ended.when(&format!("{name}: running"))?);
    }
    Ok(last)
}

/// Plays one; `usual` is what [`usual`] has measured.
pub(super) fn play(fault: Fault, bench: &mut Bench<'_>, usual: f64) -> Result<()> {
    bench.session.placement = Some(PLACES.to_vec());
    let host = bench.session.lab.targets[BAD].clone();
    let agent = bench.agents.pid(BAD + 1)?;
    let _limit = match fault {
        Fault::NoMemory => {
            let name = format!("vsl{}", std::process::id());
            Some(MemoryLimit::new(&name, MEMORY_BYTES, agent.as_raw().try_into()?)?)
        }
        Fault::Loses => {
            bench.session.lab.network.set_loss(&host.link, 500)?;
            None
        }
        _ => None,
    };
    let mut running = bench.migrate(&RATE)?;
    match fault {
        Fault::HangsInScatter => running.wait_for("] scatter", START)?,
        Fault::HangsInStream => running.wait_for("vm2: stream", START)?,
        _ => {}
    }
    let hangs = matches!(fault, Fault::HangsInScatter | Fault::HangsInStream);
    if hangs {
        std::thread::sleep(Duration::from_millis(300));
        kill(agent, Signal::SIGSTOP)?;
    }
    let ended = running.end(END);
    if hangs {
        kill(agent, Signal::SIGCONT)?;
    }
    let ended = ended?;
    bench.session.lab.network.set_loss(&host.link, 0)?;
    let others = others_moved(bench, &ended)?;
    let longer = match fault {
        Fault::HangsInScatter | Fault::Loses => LONGER_IN_SCATTER,
        Fault::HangsInStream | Fault::NoMemory => LONGER,
    };
    ensure!(
        others < usual + longer,
        "the others were away after {others:.1} s, usually after {usual:.1} s: {}",
        ended.stderr.trim()
    );
    let stayed = own_guests(bench, &ended, hangs)?;
    match fault {
        Fault::HangsInScatter | Fault::HangsInStream => {
            ensure!(stayed.len() == 2, "one has moved to a host that hangs: {}", ended.stderr.trim());
        }
        Fault::NoMemory => ensure!(!stayed.is_empty(), "all had enough memory: {}", ended.stderr.trim()),
        Fault::Loses => {}
    }
    let last = (0..GUESTS).filter_map(|index| {
        let name = &bench.guest(index).file.name;
        ended.when(&format!("{name}: failed")).or_else(|_| ended.when(&format!("{name}: running"))).ok()
    });
    let last = last.fold(0.0, f64::max);
    println!("  others away after {others:.1} s (usually {usual:.1} s); session over after {last:.1} s");
    stayed.iter().for_each(|reason| println!("  {reason}"));
    Ok(())
}

/// The bad neighbour's own guests have moved or stayed, and are well; gives back what is said of those that stayed.
fn own_guests(bench: &Bench<'_>, ended: &Ended, hung: bool) -> Result<Vec<String>> {
    let mut stayed = Vec::new();
    for index in (0..GUESTS).filter(|index| is_bad(*index)) {
        let name = &bench.guest(index).file.name;
        let failed = format!("{name}: failed, stays: ");
        match ended.line(&failed) {
            Ok(line) => {
                stayed.push(line.trim().to_owned());
                // The agent goes on where it was stopped, and finds that its session has ended.
                if let Some(twin) = ended.twins[index].as_ref().filter(|_| hung) {
                    ensure!(gone(&twin.qmp), "the QEMU of {name} at the host that hung has not ended");
                }
                bench.stayed(ended, index)?;
            }
            Err(_) => bench.moved(ended, index).context("it has not stayed either")?,
        }
    }
    Ok(stayed)
}

impl Fault {
    /// What the lab is like in which it is played.
    pub(super) fn settings(settings: &Settings) -> Settings {
        with_guests(settings)
    }
}
