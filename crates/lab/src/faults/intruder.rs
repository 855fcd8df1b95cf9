//! A host on the same switch that is in nobody's set, and has no certificate of the CA: it joins the groups, keeps what it hears,
//! plays it again and changed, in the source's name, and calls on the targets' ports.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossbeam_channel::bounded;
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};
use vmscatter::agent::host::Interface;
use vmscatter::net::udp::{GroupReceivers, PieceBatch};

use super::bench::Bench;
use super::scenarios::all_moved;
use crate::host::Host;
use crate::net::Namespace;
use crate::scatter::{DATA_PORT, socket};

/// So long that there is time for all of it.
const QUICK: Duration = Duration::from_secs(60);
const MODEST: [&str; 2] = ["--bandwidth", "150mbit"];
const LOOK: Duration = Duration::from_millis(5);
/// Of so many pieces one is played again.
const REPLAYED_ONE_IN: u64 = 8;
/// More than an agent keeps of connections that have said nothing.
const SILENT: usize = 40;
/// Where a piece has its packet number and its payload.
const NUMBER: std::ops::Range<usize> = 16..24;
const HEADER_BYTES: usize = 40;
/// Of sealed bytes one in 256 is zero; of guests' pages every other.
const ZEROS_MAX: f64 = 0.006;

/// What it came to.
#[derive(Debug, Default)]
struct Loot {
    pieces: u64,
    bytes: u64,
    zeros: u64,
    injected: u64,
    callers_closed: usize,
}

pub(super) fn play(bench: &mut Bench<'_>) -> Result<()> {
    bench.session.lab.add_host()?;
    let intruder = bench.session.lab.targets.last().context("it was added")?;
    let (own, source) = (intruder.link.address, bench.session.lab.source.link.address);
    let targets = [bench.target(0).link.address, bench.target(1).link.address];
    let agents = [bench.agents.pid(1)?, bench.agents.pid(2)?];
    let (ended, loot) = bench
        .migrate_beside(&MODEST, QUICK, |stop| intrude(intruder, own, source, &agents, &targets, stop))?;
    all_moved(bench, &ended)?;
    let share = loot.zeros as f64 / loot.bytes.max(1) as f64;
    println!("  {loot:?}, {:.2} % of the bytes zero", share * 100.0);
    ensure!(loot.pieces > 1000 && loot.injected > 200, "it was not there for it: {loot:?}");
    ensure!(share < ZEROS_MAX, "what it has heard is not sealed");
    ensure!(
        loot.callers_closed == 2 * targets.len(),
        "connections with a false hello are kept open: {loot:?}"
    );
    let log = fs::read_to_string(bench.target(0).run_dir.join("agent.log"))?;
    let dropped =
        log.lines().find(|line| line.contains("were not the source's")).context("host1 saw nothing of it")?;
    println!("  {}", dropped.trim());
    foreign_agent(bench, intruder)
}

/// Until it is told to stop.
fn intrude(
    host: &Namespace,
    own: Ipv4Addr,
    source: Ipv4Addr,
    agents: &[Pid],
    targets: &[Ipv4Addr],
    stop: &AtomicBool,
) -> Result<Loot> {
    let mut loot = Loot::default();
    let (to_batches, batches) = bounded::<PieceBatch>(1024);
    let mut receivers = GroupReceivers::new();
    let interface = host.inside(|| Interface::with_address(own.into()))??;
    let raw = host.inside(|| -> std::io::Result<Socket> {
        // RAW (255): the IP header is ours to write (raw(7)).
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        raw.set_multicast_if_v4(&own)?;
        Ok(raw)
    })??;
    let silent = |target: &Ipv4Addr| host.inside(|| TcpStream::connect((*target, DATA_PORT)));
    let silent: Vec<_> = targets.iter().flat_map(|target| (0..SILENT).map(move |_| silent(target))).collect();
    let mut joined: HashSet<SocketAddrV4> = HashSet::new();
    let mut callers: Vec<TcpStream> = Vec::new();
    while !stop.load(Relaxed) {
        for group in agents.iter().flat_map(|agent| groups_of(*agent)) {
            if joined.insert(group) {
                host.inside(|| receivers.join(group.into(), Some(source.into()), &interface, &to_batches))??;
            }
        }
        while let Ok(mut batch) = batches.try_recv() {
            for piece in batch.pieces_mut().filter(|piece| piece.len() > HEADER_BYTES) {
                loot.pieces += 1;
                loot.bytes += (piece.len() - HEADER_BYTES) as u64;
                loot.zeros += piece[HEADER_BYTES..].iter().filter(|byte| **byte == 0).count() as u64;
                if !loot.pieces.is_multiple_of(REPLAYED_ONE_IN) {
                    continue;
                }
                if callers.is_empty() && piece.len() < 1000 {
                    callers = call(host, targets, piece)?;
                }
                for group in &joined {
                    loot.injected += inject(&raw, source, *group, piece);
                }
            }
        }
        thread::sleep(LOOK);
    }
    for mut caller in callers {
        caller.set_read_timeout(Some(Duration::from_secs(10)))?;
        loot.callers_closed += usize::from(matches!(caller.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    drop(silent);
    Ok(loot)
}

/// Groups that the process listens to, in its own namespace.
pub(super) fn groups_of(process: Pid) -> Vec<SocketAddrV4> {
    let table = fs::read_to_string(format!("/proc/{process}/net/udp")).unwrap_or_default();
    let local = |line: &str| {
        let (addr, port) = line.split_whitespace().nth(1)?.split_once(':')?;
        let addr = Ipv4Addr::from(u32::from_str_radix(addr, 16).ok()?.to_le_bytes());
        Some(SocketAddrV4::new(addr, u16::from_str_radix(port, 16).ok()?))
    };
    table.lines().skip(1).filter_map(local).filter(|addr| addr.ip().is_multicast()).collect()
}

/// Calls each target twice, with what was heard in place of a hello, and with noise.
fn call(host: &Namespace, targets: &[Ipv4Addr], piece: &[u8]) -> Result<Vec<TcpStream>> {
    let mut callers = Vec::new();
    for target in targets {
        for hello in [piece, &[0xa5; 57]] {
            let mut caller = host.inside(|| TcpStream::connect((*target, DATA_PORT)))??;
            // It may be turned away before it has said all.
            let _ =
                caller.write_all(&(hello.len() as u32).to_be_bytes()).and_then(|()| caller.write_all(hello));
            callers.push(caller);
        }
    }
    Ok(callers)
}

/// The piece as it is, and changed: in its payload, and in the packet number too, in the source's name.
fn inject(raw: &Socket, source: Ipv4Addr, group: SocketAddrV4, piece: &[u8]) -> u64 {
    let mut damaged = piece.to_vec();
    damaged[HEADER_BYTES] ^= 1;
    let mut renumbered = damaged.clone();
    renumbered[NUMBER].copy_from_slice(&(u64::MAX / 2).to_be_bytes());
    let packets = [piece.to_vec(), damaged, renumbered].map(|piece| packet(source, group, &piece));
    let to = SocketAddr::from(group).into();
    packets.iter().filter(|packet| raw.send_to(packet, &to).is_ok()).count() as u64
}

/// An IP packet with a datagram; the kernel fills in the header's checksum, and UDP's may be none.
fn packet(source: Ipv4Addr, group: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let total = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 1, 17, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&group.ip().octets());
    packet.extend_from_slice(&5_000u16.to_be_bytes());
    packet.extend_from_slice(&group.port().to_be_bytes());
    packet.extend_from_slice(&(total - 20).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// An agent whose certificate is of another CA is turned away at the door, whatever it calls itself.
fn foreign_agent(bench: &Bench<'_>, intruder: &Host) -> Result<()> {
    let keys = bench.session.lab.directory().join("foreign");
    let mut command = Command::new(bench.agents.program());
    command.args(["keys", "init", "--host", &intruder.name, "--dir"]).arg(&keys);
    ensure!(command.stdin(Stdio::null()).output()?.status.success(), "no foreign keys");
    let mut agent = bench.agents.start_agent(intruder, &keys)?;
    let mut command = Command::new(bench.agents.program());
    let target = bench.target(0);
    command.arg("doctor").arg("--agent").arg(socket(intruder));
    command.arg("--to").arg(format!("{}={}", target.name, target.link.address));
    let output = bench.agents.run_command(intruder, &mut command);
    agent.kill()?;
    agent.wait()?;
    let output = output?;
    let shown = String::from_utf8_lossy(&output.stdout);
    let row = shown.lines().find(|line| line.contains("BAD")).context("it was let in")?;
    println!("  {}", row.trim());
    ensure!(row.contains("TLS"), "{shown}");
    Ok(())
}
