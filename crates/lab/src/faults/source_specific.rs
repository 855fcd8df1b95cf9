//! A switch that knows who wants what from whom: groups are joined for the session's source alone, and what others send to them does not
//! even get to the targets' links.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossbeam_channel::bounded;
use nix::unistd::Pid;
use vmscatter::agent::host::Interface;
use vmscatter::net::udp::{GroupReceivers, PieceBatch};

use super::bench::Bench;
use super::intruder::groups_of;
use super::scenarios::all_moved;
use crate::net::{Link, Namespace};

const QUICK: Duration = Duration::from_secs(60);
/// So long that there is time for the stranger.
const MODEST: [&str; 4] = ["--transport", "multicast", "--bandwidth", "150mbit"];
const LOOK: Duration = Duration::from_millis(5);
/// A switch has learnt of a join by then.
const SETTLE: Duration = Duration::from_millis(500);
/// A group of nobody's session.
const OTHER_GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(239, 1, 2, 3), 7951);

/// Counts multicast of the stranger and of the source that gets to a host.
fn counters(stranger: Ipv4Addr, source: Ipv4Addr) -> String {
    format!(
        "table netdev lab {{ counter stranger {{ }}; counter source {{ }}; \
         chain multicast {{ type filter hook ingress device eth0 priority 0; \
         ip saddr {stranger} ip daddr 239.0.0.0/8 counter name stranger; \
         ip saddr {source} ip daddr 239.0.0.0/8 counter name source; }}; }}"
    )
}

pub(super) fn play(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.lab.add_host()?;
    let lab = &bench.session.lab;
    let stranger = &lab.targets.last().context("it was added")?.link;
    let targets = [&bench.target(0).link, &bench.target(1).link];
    for target in targets {
        target.namespace.nft(&counters(stranger.address, lab.source.link.address))?;
    }
    let agents = [bench.agents.pid(1)?, bench.agents.pid(2)?];
    let (ended, sent) =
        bench.migrate_beside(&MODEST, QUICK, |stop| disturb(&stranger.namespace, &agents, stop))?;
    ended.went_by_multicast()?;
    all_moved(bench, &ended)?;
    let arrived = |link: &Link, of: &str| link.namespace.counted_bytes("lab", of);
    for target in targets {
        let (wanted, strange) = (arrived(target, "source")?, arrived(target, "stranger")?);
        println!(
            "  {sent} bytes of a stranger to the session's groups: {strange} arrived, of the source's {wanted}"
        );
        ensure!(sent > 10_000 && wanted > 1_000_000, "there was little to see");
        ensure!(strange == 0, "what a stranger sends gets to {}", target.address);
    }
    // The same switch does bring it to whom joins for any source.
    let (target, (group, port)) = (targets[0], OTHER_GROUP);
    let interface = target.namespace.inside(|| Interface::with_address(target.address.into()))??;
    let (to_batches, _batches) = bounded::<PieceBatch>(16);
    let mut receivers = GroupReceivers::new();
    let other = SocketAddr::new(group.into(), port);
    target.namespace.inside(|| receivers.join(other, None, &interface, &to_batches))??;
    thread::sleep(SETTLE);
    stranger.namespace.inside(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&[0; 1000], other))??;
    thread::sleep(SETTLE);
    ensure!(arrived(target, "stranger")? > 0, "the stranger is not heard even by whom asks for it");
    Ok(())
}

/// Sends to the groups that the agents are in until it is told to stop; how many bytes.
fn disturb(host: &Namespace, agents: &[Pid], stop: &AtomicBool) -> Result<usize> {
    let socket = host.inside(|| UdpSocket::bind("0.0.0.0:0"))??;
    let mut sent = 0;
    while !stop.load(Relaxed) {
        let groups: HashSet<_> = agents.iter().flat_map(|agent| groups_of(*agent)).collect();
        for group in groups {
            sent += socket.send_to(&[0; 1000], group)?;
        }
        thread::sleep(LOOK);
    }
    Ok(sent)
}
