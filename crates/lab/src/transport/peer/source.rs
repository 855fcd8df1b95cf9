//! The source: core's sender, the product's sockets, bodies from memory.

use std::collections::{HashMap, HashSet};
use std::io::BufReader;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use vmscatter::net::data::{DataSender, Priority};
use vmscatter::net::outlet::Outlet;
use vmscatter::net::udp::{MulticastSender, WayOut};
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Path, Sender, SenderConfig, SenderEvent, TRANSMITS_MAX};
use vmscatter_core::wire::control::{LinkCounters, Message, Report};
use vmscatter_core::wire::piece::{PieceHeader, PieceKind, seal_piece};
use vmscatter_core::wire::seal::{Channel, SealKey};

use super::{Bodies, SET, SourceResult, Task, control, cpu_seconds, own_set};

/// As in the product's scatter thread.
const LOOK_UP: Duration = Duration::from_millis(5);
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
const PROBE_MAX: Duration = Duration::from_secs(5);
/// Frames that are made at a time, as many as the product encodes at once: what is ready leaves meanwhile.
const PUSHES_MAX: usize = 16;
/// A run that takes longer has failed.
const END_MAX: Duration = Duration::from_secs(300);

struct Source<'a> {
    task: &'a Task,
    start: Instant,
    sender: Sender,
    outlet: Outlet,
    links: Vec<Link>,
    said: Receiver<(u16, Said)>,
    /// When each target had everything.
    done: Vec<Option<Instant>>,
    acked: HashMap<u16, u64>,
    /// The last look at what could leave ended with as much as is sent in a row: there may be more.
    has_more: bool,
    result: SourceResult,
}

/// What a target says.
enum Said {
    Report(Report),
    LinkCounters(LinkCounters),
    /// A probe has reached it.
    Heard,
    Ended,
}

struct Link {
    control: TcpStream,
    data: DataSender,
    key: SealKey,
}

pub(super) fn run(task: &Task) -> Result<SourceResult> {
    let mut links = Vec::new();
    let (to_said, said) = unbounded();
    for (target, addr) in (0..).zip(&task.targets) {
        let control = TcpStream::connect((*addr, control::CONTROL_PORT)).context("control connection")?;
        control.set_nodelay(true)?;
        let mut control_in = BufReader::new(control.try_clone()?);
        let to_said = to_said.clone();
        std::thread::spawn(move || {
            while let Ok(Some(message)) = control::receive(&mut control_in) {
                let said = match message {
                    Message::Report(report) => Said::Report(report),
                    Message::LinkCounters(counters) => Said::LinkCounters(counters),
                    _ => Said::Heard,
                };
                if to_said.send((target, said)).is_err() {
                    return;
                }
            }
            let _ = to_said.send((target, Said::Ended));
        });
        let mut key = SealKey::new(&task.key(own_set(target)), Channel::unicast(target));
        let mut hello = Vec::new();
        let header = PieceHeader::whole(PieceKind::DataHello, own_set(target), task.session, 0, 1);
        seal_piece(&mut key, &header, &[0], &mut hello)?;
        let data = DataSender::connect((*addr, control::DATA_PORT).into(), &hello, None)?;
        links.push(Link { control, data, key });
    }
    let members: Vec<u16> = (0..task.targets.len() as u16).collect();
    let socket = MulticastSender::bind(task.source.into(), WayOut::LINK)?;
    let mut outlet = Outlet::new(task.session, Some(socket));
    let config =
        SenderConfig { bandwidth: task.bandwidth, datagram_bytes: task.mtu - 28, ..SenderConfig::default() };
    let mut sender = Sender::new(config, Time::ZERO);
    outlet.add_set(SET, &task.key(SET), &members, Some(task.group));
    sender.add_set(SET, &members, true);
    for target in &members {
        sender.add_set(own_set(*target), &[*target], false);
        if task.parity {
            sender.takes_parity(*target);
        }
    }
    let source = Source {
        task,
        start: Instant::now(),
        sender,
        outlet,
        done: vec![None; links.len()],
        links,
        said,
        acked: HashMap::new(),
        has_more: false,
        result: SourceResult::default(),
    };
    source.run()
}

impl Source<'_> {
    fn now(&self) -> Time {
        Time(self.start.elapsed().as_micros() as u64)
    }

    fn is_expelled(&self, target: u16) -> bool {
        self.result.expelled.iter().any(|(expelled, _)| *expelled == target)
    }

    /// Until multicast reaches every target: joins take the switch a moment.
    fn probe(&mut self) -> Result<()> {
        let mut waiting: HashSet<u16> = (0..self.links.len() as u16).collect();
        let start = Instant::now();
        while !waiting.is_empty() {
            if start.elapsed() > PROBE_MAX {
                bail!("multicast does not reach {waiting:?}");
            }
            self.outlet.probe(SET, self.task.mtu - 28);
            while let Ok((target, said)) = self.said.recv_timeout(PROBE_INTERVAL) {
                if matches!(said, Said::Heard) {
                    waiting.remove(&target);
                }
            }
        }
        Ok(())
    }

    fn run(mut self) -> Result<SourceResult> {
        self.probe()?;
        let (bodies, frames, mut next) = (Bodies::new(self.task), self.task.frames(), 0);
        let cpu = cpu_seconds()?;
        self.start = Instant::now();
        while next < frames || !self.sender.is_idle() {
            for _ in 0..PUSHES_MAX {
                if next == frames || self.sender.window_free() < self.task.body_bytes {
                    break;
                }
                self.sender.push(next, SET, bodies.body(next).into());
                next += 1;
            }
            self.wait()?;
            self.transmit()?;
            self.events()?;
            if self.start.elapsed() > END_MAX {
                bail!("not over after {END_MAX:?}: {:?}", self.sender.counters());
            }
        }
        let counters = self.sender.counters();
        let until = |done: &Instant| done.duration_since(self.start).as_secs_f64();
        Ok(SourceResult {
            seconds: self.start.elapsed().as_secs_f64(),
            target_seconds: self.done.iter().map(|done| done.as_ref().map(until)).collect(),
            cpu_seconds: cpu_seconds()? - cpu,
            first_pieces: counters.multicast_pieces,
            multicast_repairs: counters.multicast_repairs,
            parity_pieces: counters.parity_pieces,
            unicast_pieces: counters.unicast_pieces,
            unicast_repairs: counters.unicast_repairs,
            losses: counters.losses,
            ..self.result
        })
    }

    fn wait(&mut self) -> Result<()> {
        let now = self.now();
        let span = match self.sender.poll_timeout() {
            _ if self.has_more => Duration::ZERO,
            Some(at) => at.since(now).min(LOOK_UP),
            None => LOOK_UP,
        };
        let first = if span.is_zero() {
            self.said.try_recv().ok()
        } else {
            match self.said.recv_timeout(span) {
                Ok(said) => Some(said),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => bail!("all control connections are lost"),
            }
        };
        let Some(first) = first else { return Ok(()) };
        let more: Vec<_> = self.said.try_iter().collect();
        for (target, said) in std::iter::once(first).chain(more) {
            let report = match said {
                Said::Report(report) if !self.is_expelled(target) => report,
                Said::LinkCounters(counters) => {
                    self.sender.on_link_counters(target, &counters, self.now());
                    continue;
                }
                Said::Report(_) | Said::Heard => continue,
                Said::Ended => bail!("target {target} has closed its connection"),
            };
            let now = self.now();
            self.sender.on_report(target, &report, now)?;
            self.events()?;
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<()> {
        self.has_more = false;
        for _ in 0..TRANSMITS_MAX {
            let Some(transmit) = self.sender.poll_transmit(self.now()) else { return Ok(()) };
            match &transmit.path {
                Path::Relay { .. } => bail!("a chain, where no hop is open"),
                Path::Multicast { .. } => {
                    let sent = self.outlet.multicast(&transmit);
                    self.result.multicast_bytes += sent.bytes as u64;
                    if sent.waited {
                        self.sender.waited();
                    }
                }
                Path::Unicast { target } => {
                    let link = &mut self.links[usize::from(*target)];
                    let key = std::cell::RefCell::new(&mut link.key);
                    let own = |header: &PieceHeader, payload: &[u8], out: &mut Vec<u8>| {
                        seal_piece(&mut key.borrow_mut(), header, payload, out).map(drop)
                    };
                    for piece in self.outlet.seal_unicast(&transmit, *target, own)? {
                        self.result.unicast_bytes += piece.len() as u64;
                        link.data.send(Priority::Scatter, piece)?;
                    }
                }
            }
        }
        self.has_more = true;
        Ok(())
    }

    fn events(&mut self) -> Result<()> {
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::Announce { target, spans } => {
                    control::send(&mut self.links[usize::from(target)].control, Message::Sent(spans))?;
                }
                SenderEvent::Acked { target, .. } => {
                    let acked = self.acked.entry(target).or_default();
                    *acked += 1;
                    if *acked == self.task.frames() {
                        self.done[usize::from(target)] = Some(Instant::now());
                    }
                }
                SenderEvent::Expelled { target, why } => {
                    let leave = Message::Leave { set: SET };
                    control::send(&mut self.links[usize::from(target)].control, leave)?;
                    self.result.expelled.push((target, format!("{why:?}")));
                }
                SenderEvent::Unheard { target } => bail!("target {target} hears nothing any more"),
                SenderEvent::Settled { .. } | SenderEvent::Throttled { .. } => {}
            }
        }
        Ok(())
    }
}
