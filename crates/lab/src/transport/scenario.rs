//! What is tried, and what is measured of it.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::peer::{SourceResult, TargetResult};
use super::process::{TcpFlow, run_peers, task};
use super::rivals::{self, Rival};
use crate::host::Lab;
use crate::progress::Progress;

/// Receivers of every scenario.
pub(super) const TARGETS: usize = 3;
/// A slow receiver's link carries one part in so many of the others'.
const SLOW_PART: u64 = 10;
/// A TCP flow has the link to itself for this long, and is measured over the latter half.
const TCP_ALONE: Duration = Duration::from_secs(4);

/// A state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Nothing is lost
    Loss0,
    /// 1 % lost at each receiver, independently
    Loss1,
    /// 5 %
    Loss5,
    /// A TCP flow from the source to the first receiver
    Tcp,
    /// A TCP flow from another host to the first receiver
    TcpCross,
    /// One receiver at a tenth of the rate
    Slow,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 6] =
        [Self::Loss0, Self::Loss1, Self::Loss5, Self::Tcp, Self::TcpCross, Self::Slow];

    fn loss_per_mille(self) -> u32 {
        match self {
            Self::Loss1 => 10,
            Self::Loss5 => 50,
            _ => 0,
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
    /// Payload, in bytes.
    pub bytes: u64,
    /// Bytes a second; `None`: congestion control.
    pub bandwidth: Option<u64>,
    /// What each link carries, in Mbit/s.
    pub link_mbit: u64,
    /// Of each link, in bytes.
    pub mtu: u16,
    /// Losses may be answered by parity.
    pub parity: bool,
    /// To be compared with, in the scenarios of loss.
    pub rivals: Vec<Rival>,
}

/// One run of vmscatter's transport.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) scenario: Scenario,
    pub(super) bytes: u64,
    /// Through the source's shaping qdisc, over all paths, what the TCP flow sent not taken off.
    pub(super) wire_bytes: u64,
    pub(super) source: SourceResult,
    pub(super) targets: Vec<TargetResult>,
    /// Payload of the TCP flow in bytes a second: alone, and beside us.
    pub(super) tcp: Option<(f64, f64)>,
    /// Packets that the shaping qdiscs dropped: at the source, and towards each receiver.
    pub(super) dropped: Vec<u64>,
}

/// Runs the scenarios one after another and prints a table; `false` if something did not arrive as it was sent.
pub fn run(options: &Options) -> Result<bool> {
    // One more, for traffic that is not ours.
    let lab = Lab::new(TARGETS + 1, &format!("{}mbit", options.link_mbit))?;
    lab.hosts().try_for_each(|host| lab.network.set_mtu(&host.link, options.mtu.into()))?;
    let progress = Progress::default();
    let (mut runs, mut rival_runs) = (Vec::new(), Vec::new());
    let material = rivals::Material::new(if options.rivals.is_empty() { 0 } else { options.bytes })?;
    for scenario in &options.scenarios {
        progress.step(&format!("{scenario:?}"));
        runs.push(run_one(&lab, *scenario, options)?);
        if matches!(scenario, Scenario::Loss0 | Scenario::Loss1 | Scenario::Loss5) {
            for rival in &options.rivals {
                progress.step(&format!("{scenario:?} {rival:?}"));
                rival_runs.push((*scenario, rival.run(&lab, &material, options)?));
            }
        }
    }
    print!("{}", super::table::table(&runs));
    print!("{}", rivals::table(&rival_runs, &material));
    let good = |run: &Run| run.targets.iter().all(|target| target.wrong_frames == 0);
    Ok(runs.iter().all(good))
}

fn run_one(lab: &Lab, scenario: Scenario, options: &Options) -> Result<Run> {
    let slow = &lab.targets[TARGETS - 1].link;
    for host in &lab.targets {
        lab.network.set_udp_loss(&host.link, scenario.loss_per_mille())?;
    }
    let mbit = options.link_mbit / if scenario == Scenario::Slow { SLOW_PART } else { 1 };
    lab.network.set_rate(slow, &format!("{mbit}mbit"))?;
    let mut task = task(lab, TARGETS, options.bytes);
    (task.bandwidth, task.parity, task.mtu) = (options.bandwidth, options.parity, options.mtu.into());
    let flow = match scenario {
        Scenario::Tcp => Some(TcpFlow::start(&lab.source, &lab.targets[0])?),
        Scenario::TcpCross => Some(TcpFlow::start(&lab.targets[TARGETS], &lab.targets[0])?),
        _ => None,
    };
    let alone = flow.as_ref().map(|flow| {
        thread::sleep(TCP_ALONE / 2);
        let before = flow.received();
        thread::sleep(TCP_ALONE / 2);
        (flow.received() - before) as f64 / (TCP_ALONE / 2).as_secs_f64()
    });
    let dropped_before = dropped(lab)?;
    let before = Cell::new((lab.network.sent_bytes(&lab.source.link)?, 0, Instant::now()));
    let (source, targets) = run_peers(lab, &task, || {
        let received = flow.as_ref().map_or(0, TcpFlow::received);
        before.set((lab.network.sent_bytes(&lab.source.link)?, received, Instant::now()));
        Ok(())
    })?;
    let (sent, received, started) = before.get();
    let beside =
        flow.as_ref().map(|flow| (flow.received() - received) as f64 / started.elapsed().as_secs_f64());
    Ok(Run {
        scenario,
        bytes: options.bytes,
        wire_bytes: lab.network.sent_bytes(&lab.source.link)? - sent,
        source,
        targets,
        tcp: alone.zip(beside),
        dropped: dropped(lab)?.iter().zip(dropped_before).map(|(now, before)| now - before).collect(),
    })
}

fn dropped(lab: &Lab) -> Result<Vec<u64>> {
    let mut all = vec![lab.network.dropped_packets(&lab.source.link)?.0];
    for host in &lab.targets {
        all.push(lab.network.dropped_packets(&host.link)?.1);
    }
    Ok(all)
}
