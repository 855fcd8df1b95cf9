//! `doctor`: looks at everything between this host and others that a migration would need. Nothing is moved or changed.
//!
//! ```text
//! a connection for each target ─ Examine ─► Examined, and probes back        checks ─► a row each
//! a session with all of them ─ group, probes, frames for nobody ─► trial ──────┘
//! ```

mod checks;
mod querier;
mod trial;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender as Queue, unbounded};
use vmscatter_core::placement::TargetId;
use vmscatter_core::wire::control::{FEATURE_EXAMINE, HostReport, Message, SetGrant, Uuid};
use vmscatter_core::wire::piece::{open_piece, session_tag};
use vmscatter_core::wire::seal::{Channel, OpenKey};

use self::checks::Facts;
use self::querier::Querier;
use self::trial::{Said, Setup, Trial};
use super::groups::{SetLink, random_groups};
use super::link::{TargetLink, local_addr};
use super::migrate::{RawKeys, open_target};
use super::prepare::reach;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::control::{ControlConnection, Fault, PeerInfo};
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{DoctorRequest, TargetSpec};
use crate::clock::since_epoch;
use crate::net::udp::GroupReceivers;
use crate::random::{random, random_uuid};
use crate::report::doctor::DoctorOutcome;
use crate::report::event::{JobEvent, Phase};
use crate::target::examined::host_report;

/// A join takes switches a moment.
const JOIN_SPAN: Duration = Duration::from_millis(300);
/// A target that is examined answers within this time: its QEMUs are asked for their versions.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// What the last probes may take to arrive.
const LATE_MAX: Duration = Duration::from_millis(100);
/// Batches of probes that wait to be counted.
const BATCHES_MAX: usize = 64;
/// Messages of one target that wait for the trial.
const MESSAGES_MAX: usize = 8;
const LOOK_UP: Duration = Duration::from_millis(100);

/// Examines the request's targets.
pub async fn run_doctor(
    ctx: Arc<AgentContext>,
    request: DoctorRequest,
    sink: EventSink,
    cancel: CancelToken,
) -> DoctorOutcome {
    let work = examine(&ctx, &request, &sink, &cancel);
    tokio::select! {
        outcome = work => outcome,
        () = cancel.cancelled() => DoctorOutcome::cancelled(),
    }
}

async fn examine(
    ctx: &Arc<AgentContext>,
    request: &DoctorRequest,
    sink: &EventSink,
    cancel: &CancelToken,
) -> DoctorOutcome {
    let begun = Instant::now();
    let ipv6 = request.targets.iter().any(|target| target.addr.ip().to_canonical().is_ipv6());
    let querier = Querier::listen(ipv6).map_err(|error| crate::agent::config::os_text(&error));
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Connect });
    let ours = host_report(&ctx.config.programs).await;
    let mut facts = Vec::new();
    for target in &request.targets {
        facts.push(ask(ctx, target).await);
    }
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Scatter });
    let bandwidth = request.bandwidth_bits.map(|bits| bits / 8);
    let trial = try_scatter(ctx, request, &mut facts, bandwidth).await;
    let trial = match trial {
        Ok(trial) => trial,
        Err(error) => {
            sink.emit(JobEvent::Warning { guest: None, text: format!("no frames could be sent: {error}") });
            Trial::default()
        }
    };
    let listen = Duration::from_millis(request.listen_ms);
    while begun.elapsed() < listen
        && !cancel.is_cancelled()
        && querier.as_ref().is_ok_and(|querier| !querier.has_heard())
    {
        tokio::time::sleep(LOOK_UP).await;
    }
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Report });
    let listened = begun.elapsed();
    let heard = querier.map(Querier::end);
    let mut all: Vec<_> = facts.iter().flat_map(|facts| checks::of_target(facts, &ours, &trial)).collect();
    let protocol = if ipv6 { "MLD" } else { "IGMP" };
    all.extend(checks::of_source(&ctx.config.name, &ours, &trial, (protocol, heard), listened));
    DoctorOutcome::of(all)
}

/// Reaches a target and asks it what it is like.
async fn ask(ctx: &AgentContext, target: &TargetSpec) -> Facts {
    let mut facts = Facts { name: target.name.clone(), addr: target.addr.to_string(), ..Facts::default() };
    let begun = Instant::now();
    let connection = match reach(ctx, target, random_uuid()).await {
        Ok(connection) => connection,
        Err(error) => {
            facts.unreached = Some((error.fault.to_string(), advice(&error.fault)));
            return facts;
        }
    };
    facts.connected = begun.elapsed();
    let peer = connection.peer.clone();
    let mtu = ctx.interface(peer.local_addr).map_or(0, |interface| interface.mtu);
    facts.version = peer.version;
    facts.mtus = (mtu, peer.resources.mtu);
    facts.free_memory_bytes = peer.resources.free_memory_bytes;
    if peer.features & FEATURE_EXAMINE == 0 {
        let _ = connection.sender.send(Message::Close).await;
        return facts;
    }
    let probes = Probes::join(ctx, &peer);
    // Where no group can be joined, the target is asked all the same.
    let (group, key) =
        probes.as_ref().map_or_else(|_| (nowhere(), [0; 32]), |probes| (probes.group, probes.key));
    tokio::time::sleep(JOIN_SPAN).await;
    let report = question(connection, group, key, &mut facts).await;
    tokio::time::sleep(LATE_MAX).await;
    let sent = report.as_ref().map_or(0, |report| report.probes);
    facts.back = report.is_some().then(|| probes.map(|probes| (sent, probes.count())));
    facts.report = report;
    facts
}

/// What to do about a connection that failed so.
fn advice(fault: &Fault) -> &'static str {
    match fault {
        Fault::Connect(_) => {
            "see that the agent runs there, that the address is right, and that the port is open"
        }
        Fault::Tls(_) => {
            "the certificates of both hosts must be of one CA, for the names that they are called by, and valid now: 'vmscatter keys init'"
        }
        Fault::Name(_) | Fault::NotPermitted | Fault::Refused => {
            "see [tls] in both configurations, and the log of the agent there"
        }
        Fault::Version(..) => "bring both sides to versions that have a protocol in common",
        _ => "see whether an agent of vmscatter listens there, and its log",
    }
}

/// No group: a target sends nothing to it.
fn nowhere() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// Asks, and compares the clocks: the answer was written between question and arrival.
async fn question(
    connection: ControlConnection,
    group: SocketAddr,
    key: [u8; 32],
    facts: &mut Facts,
) -> Option<HostReport> {
    let ControlConnection { sender, mut receiver, .. } = connection;
    sender.send(Message::Examine { group, key }).await.ok()?;
    let report = loop {
        let next = tokio::time::timeout(ANSWER_DEADLINE, receiver.recv()).await;
        match next.ok()?.ok()?? {
            Message::Examined(report) => break report,
            Message::Ping(number) => sender.send(Message::Pong(number)).await.ok()?,
            Message::Pong(_) => {}
            _ => return None,
        }
    };
    // It is written last, so half of the way back is all that it may be late by; a first answer is as good as any.
    let now = since_epoch().as_micros() as i64;
    let give = (facts.connected.as_micros() as u64).max(1_000);
    facts.clock_us = (report.clock_unix_us as i64 - now, give);
    let _ = sender.send(Message::Close).await;
    Some(report)
}

/// A group of our own that a target's probes are to reach.
struct Probes {
    group: SocketAddr,
    key: [u8; 32],
    tag: u64,
    batches: crossbeam_channel::Receiver<crate::net::udp::PieceBatch>,
    /// Ends the membership when it goes.
    _receivers: GroupReceivers,
}

impl Probes {
    fn join(ctx: &AgentContext, peer: &PeerInfo) -> Result<Probes, String> {
        let group = random_groups(1, ctx.config.multicast.prefix_for(peer.local_addr.ip()))[0];
        let interface = ctx.interface(peer.local_addr).map_err(|error| error.to_string())?;
        let source = ctx.config.multicast.source_specific.then_some(peer.addr.ip());
        let (to_batches, batches) = crossbeam_channel::bounded(BATCHES_MAX);
        let mut receivers = GroupReceivers::new();
        receivers.join(group, source, &interface, &to_batches).map_err(|error| error.to_string())?;
        let tag = session_tag(&peer.session);
        Ok(Probes { group, key: random(), tag, batches, _receivers: receivers })
    }

    /// Those that are genuine.
    fn count(self) -> u32 {
        let mut key = OpenKey::new(&self.key, &[Channel::PROBE]);
        let mut arrived = 0;
        for mut batch in self.batches.try_iter() {
            for piece in batch.pieces_mut() {
                let opened = open_piece(&mut key, piece);
                arrived += u32::from(opened.is_ok_and(|(header, _)| header.session == self.tag));
            }
        }
        arrived
    }
}

/// A session with all targets that can be reached, for frames that are for no guest.
async fn try_scatter(
    ctx: &Arc<AgentContext>,
    request: &DoctorRequest,
    facts: &mut [Facts],
    bandwidth: Option<u64>,
) -> Result<Trial, String> {
    let session: Uuid = random_uuid();
    let keys = RawKeys { session, mac: random(), digest: random() };
    let (to_said, said) = unbounded();
    let mut links: Vec<Arc<TargetLink>> = Vec::new();
    for (facts, target) in
        facts.iter_mut().zip(&request.targets).filter(|(facts, _)| facts.unreached.is_none())
    {
        let number = links.len() as u16;
        match open(ctx, target, &keys, number, to_said.clone()).await {
            Ok(link) => {
                facts.number = Some(links.len());
                links.push(link);
            }
            Err(why) => facts.session = Some(why),
        }
    }
    if links.is_empty() {
        return Ok(Trial::default());
    }
    let set = SetLink {
        number: links.len() as u16,
        set: (0..links.len() as u8).map(TargetId).collect(),
        key: random(),
        group: Some(random_groups(1, ctx.config.multicast.prefix_for(local_addr(&links)))[0]),
    };
    for link in &links {
        link.grant(vec![SetGrant { set: set.number, key: set.key, group: set.group }]);
    }
    let out = ctx
        .way_out(request.interface.as_deref(), links[0].local_addr())
        .map_err(|error| error.to_string())?;
    let setup = Setup { session_tag: session_tag(&session), links: links.clone(), set, out, bandwidth, said };
    let tried = tokio::task::spawn_blocking(move || trial::run(setup)).await;
    links.iter().for_each(|link| link.send(Message::Close));
    tried.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn open(
    ctx: &AgentContext,
    target: &TargetSpec,
    keys: &RawKeys,
    number: u16,
    said: Queue<Said>,
) -> Result<Arc<TargetLink>, String> {
    let connection = reach(ctx, target, keys.session).await.map_err(|error| error.to_string())?;
    let (link, receiver) = open_target(ctx, keys, number, connection, None).await?;
    tokio::spawn(receiver.forward(MESSAGES_MAX, move |next| said.send((number, next.ok())).is_ok()));
    Ok(link)
}
