//! Runs the peers in their hosts, and a TCP flow beside them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::peer::{Role, SourceResult, TargetResult, Task};
use crate::host::{Host, Lab};

const TCP_PORT: u16 = 7960;
/// From the joins to the first byte: the switch learns of them.
const SETTLE: Duration = Duration::from_millis(300);

/// A task for a lab's source and its first `targets` hosts; role and sizes are the caller's.
pub(super) fn task(lab: &Lab, targets: usize, bytes: u64) -> Task {
    Task {
        role: Role::Source,
        session: 0x7663_6174,
        secret: [0x5a; 32],
        group: SocketAddr::new(Ipv4Addr::new(239, 77, 3, 4).into(), 7950),
        source: lab.source.link.address,
        targets: lab.targets[..targets].iter().map(|host| host.link.address).collect(),
        bytes,
        body_bytes: 100 << 10,
        bandwidth: None,
        parity: true,
        mtu: 1500,
    }
}

/// A peer that ends with the value.
struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Peer {
    fn start(host: &Host, task: &Task, role: Role) -> Result<Peer> {
        let task = serde_json::to_string(&Task { role, ..task.clone() })?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["transport-peer", &task]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = host.spawn(&mut command)?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Peer { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "a peer ended before its time");
        Ok(line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the receivers, then the source; returns when all have said what became of it. `started` is called when the
/// source is about to begin.
pub(super) fn run_peers(
    lab: &Lab,
    task: &Task,
    started: impl FnOnce() -> Result<()>,
) -> Result<(SourceResult, Vec<TargetResult>)> {
    let mut targets = Vec::new();
    for (number, host) in (0..task.targets.len() as u16).zip(&lab.targets) {
        targets.push(Peer::start(host, task, Role::Target(number))?);
    }
    for target in &mut targets {
        ensure!(target.line()?.trim() == "ready", "a receiver is not ready");
    }
    thread::sleep(SETTLE);
    started()?;
    let source: SourceResult = serde_json::from_str(&Peer::start(&lab.source, task, Role::Source)?.line()?)?;
    let results = targets.iter_mut().map(|target| Ok(serde_json::from_str(&target.line()?)?));
    Ok((source, results.collect::<Result<_>>()?))
}

/// A TCP flow that sends what it can from one host to another, until it is dropped.
pub(super) struct TcpFlow {
    received: Arc<AtomicU64>,
    stream: TcpStream,
}

impl TcpFlow {
    pub(super) fn start(from: &Host, to: &Host) -> Result<TcpFlow> {
        let address = to.link.address;
        let listener = to.inside(|| TcpListener::bind((address, TCP_PORT)))??;
        let mut stream = from.inside(|| TcpStream::connect((address, TCP_PORT)))??;
        let (mut sink, _) = listener.accept()?;
        let received = Arc::new(AtomicU64::new(0));
        let count = received.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(length @ 1..) = sink.read(&mut buffer) {
                count.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        let flow = TcpFlow { received, stream: stream.try_clone()? };
        thread::spawn(move || {
            let data = vec![1; 1 << 18];
            while stream.write_all(&data).is_ok() {}
        });
        Ok(flow)
    }

    /// Payload that has arrived so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
