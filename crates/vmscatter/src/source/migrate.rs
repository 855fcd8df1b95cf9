//! `migrate`: a session from the request to the report, phase by phase.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use vmscatter_core::index::{Contents, Sharing};
use vmscatter_core::page::{DigestKey, MacKey};
use vmscatter_core::placement::{
    DeliveryTree, Effort, HolderGroups, Problem, TargetCapacity, TargetId, VmDemand, even_vms_max, solve,
};
use vmscatter_core::schedule::{Classes, Schedule, SetPlan};
use vmscatter_core::session::{SessionKeys, SourceSession, SourceVm};
use vmscatter_core::wire::control::{Message, Resources, SetGrant, Uuid};
use vmscatter_core::wire::frame::Compression;

use super::actor::{Actor, CLOSED, Event, Vm};
use super::collect::{CollectError, Collected};
use super::encode::EncodePool;
use super::guest::{SourceGuest, in_flight_limit};
use super::link::TargetLink;
use super::scan::{Collection, collect_guests};
use super::scatter::{ScatterThread, SetLink};
use super::stream::Stream;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::control::{ControlConnection, ControlReceiver, hello};
use crate::agent::guest_file::{GuestFile, format_uuid};
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{self, GuestText, MigrateRequest};
use crate::net::data::RateLimit;
use crate::net::udp::random_group;
use crate::random::{random, random_uuid};
use crate::report::event::{JobEvent, Phase};
use crate::report::outcome::{
    GuestOutcome, GuestStatus, MigrateOutcome, PageClasses, PageCounts, ScatterOutcome,
};

/// Streams that flow at once: one that is read and one that is loaded keep the link busy, and each is short.
const STREAMS_MAX: usize = 2;
/// Target sets with a group of their own (Linux lets a socket join 20); those beyond get their frames by TCP.
const GROUPS_MAX: usize = 16;
/// Every target says within this time which groups it has joined.
const GRANT_DEADLINE: Duration = Duration::from_secs(20);
/// What the link is taken to carry until it has been measured: 1 Gbit/s.
const LINK_BYTES_PER_S: f64 = 125e6;

/// Why a session ended before its guests had been dealt with.
enum Stop {
    /// The request is wrong; nothing was started.
    BadInput(String),
    Failed(String),
    Cancelled,
}

/// Moves the request's guests: all at once, or, with `parallel`, in waves of so many, each a session of its own.
///
/// Contents that stand in guests of several waves are sent once in each.
pub async fn run_migrate(
    ctx: Arc<AgentContext>,
    request: MigrateRequest,
    sink: EventSink,
    cancel: CancelToken,
) -> MigrateOutcome {
    let start = Instant::now();
    let wave_len = request.parallel.unwrap_or(request.guests.len()).max(1);
    let (mut guests, mut scatter, mut session) = (Vec::new(), ScatterOutcome::default(), String::new());
    for wave in request.guests.chunks(wave_len) {
        let request = MigrateRequest { guests: wave.to_vec(), ..request.clone() };
        let run = Run { ctx: ctx.clone(), request, sink: sink.clone(), cancel: cancel.clone(), start };
        let outcome = match run.run().await {
            Ok(outcome) => outcome,
            // Before anything was moved the whole job ends so; afterwards only the guests of this wave have stayed.
            Err(stop) if guests.is_empty() => return stop.into_outcome(),
            Err(stop) => {
                guests.extend(wave.iter().map(|guest| stop.stayed(guest)));
                continue;
            }
        };
        session = outcome.session;
        guests.extend(outcome.guests);
        scatter.add(&outcome.scatter);
    }
    MigrateOutcome::of_guests(session, start.elapsed().as_secs_f64(), guests, scatter)
}

impl Stop {
    fn into_outcome(self) -> MigrateOutcome {
        match self {
            Stop::BadInput(error) => MigrateOutcome::bad_input(error),
            Stop::Failed(error) => MigrateOutcome::failed(error),
            Stop::Cancelled => MigrateOutcome::cancelled(),
        }
    }

    /// What is said of a guest that never became part of a session.
    fn stayed(&self, guest: &GuestText) -> GuestOutcome {
        let file = GuestFile::parse(&guest.text, &guest.origin);
        let (status, reason) = match self {
            Stop::BadInput(error) | Stop::Failed(error) => (GuestStatus::Failed, error.clone()),
            Stop::Cancelled => (GuestStatus::Cancelled, "cancelled".to_owned()),
        };
        GuestOutcome {
            name: file.map_or_else(|_| guest.origin.clone(), |file| file.name.clone()),
            uuid: String::new(),
            target: None,
            status,
            verified: false,
            downtime_ms: None,
            reason: Some(reason),
            pages: PageCounts::default(),
            unicast_bytes: 0,
        }
    }
}

struct Run {
    ctx: Arc<AgentContext>,
    request: MigrateRequest,
    sink: EventSink,
    cancel: CancelToken,
    start: Instant,
}

/// All that is known once the phases before the session are over.
struct Plan {
    keys: RawKeys,
    guests: Vec<SourceGuest>,
    placement: Vec<Option<TargetId>>,
    contents: Contents,
    schedule: Schedule,
    /// What collecting found, as the report shows it.
    found: ScatterOutcome,
}

/// The keys of a session, as they are given to targets.
struct RawKeys {
    session: Uuid,
    mac: [u8; 16],
    digest: [u8; 16],
}

impl Run {
    fn phase(&self, phase: Phase) {
        self.sink.emit(JobEvent::Phase { guest: None, phase });
    }

    fn check_cancelled(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    async fn run(&self) -> Result<MigrateOutcome, Stop> {
        let keys = RawKeys { session: random_uuid(), mac: random(), digest: random() };
        self.phase(Phase::Connect);
        let guests = self.open_guests().await?;
        let connections = self.connect(&keys).await?;
        self.check_cancelled()?;
        self.phase(Phase::Place);
        let placement = self.place(&guests, &connections)?;
        let (to_events, events) = unbounded_channel();
        let limit = self.request.bandwidth_bits.map(|bits| Arc::new(RateLimit::new(bits / 8)));
        let mut links = Vec::new();
        for (number, connection) in connections.into_iter().enumerate() {
            links.push(self.open_target(&keys, number as u16, connection, limit.clone(), &to_events).await?);
        }
        // Incoming QEMUs start while memory is read: both take their time, and neither needs the other.
        self.phase(Phase::Prepare);
        for (vm, guest) in guests.iter().enumerate() {
            let target = placement[vm].map_or(0, |target| usize::from(target.0));
            links[target].send(Message::Prepare(guest.spec(vm as u16)));
        }
        self.phase(Phase::Collect);
        let collected = self.collect(&guests, MacKey::new(&keys.mac)).await?;
        self.check_cancelled()?;
        self.phase(Phase::Schedule);
        let schedule = Schedule::new(&collected.contents, &placement);
        let found = found(&collected, &placement);
        let plan = Plan { keys, guests, placement, contents: collected.contents, schedule, found };
        self.session(plan, links, events, to_events).await
    }

    async fn open_guests(&self) -> Result<Vec<SourceGuest>, Stop> {
        let mut guests: Vec<SourceGuest> = Vec::new();
        for GuestText { origin, text } in &self.request.guests {
            let guest = SourceGuest::open(&self.ctx, origin, text).await.map_err(Stop::BadInput)?;
            if let Some(other) =
                guests.iter().find(|other| other.uuid == guest.uuid || other.name == guest.name)
            {
                return Err(Stop::BadInput(format!("{origin}: the same guest as '{}'", other.name)));
            }
            guests.push(guest);
        }
        Ok(guests)
    }

    async fn connect(&self, keys: &RawKeys) -> Result<Vec<ControlConnection>, Stop> {
        let mut connections = Vec::new();
        for target in &self.request.targets {
            let ours = hello(&self.ctx.config.name, Resources::default());
            let connect =
                ControlConnection::connect(target.addr, &target.name, &self.ctx.tls, ours, keys.session);
            connections.push(connect.await.map_err(|error| Stop::BadInput(error.to_string()))?);
        }
        Ok(connections)
    }

    fn place(
        &self,
        guests: &[SourceGuest],
        connections: &[ControlConnection],
    ) -> Result<Vec<Option<TargetId>>, Stop> {
        // A pin may name a guest of another wave.
        let pins: HashMap<&str, &str> =
            self.request.pins.iter().map(|pin| (pin.guest.as_str(), pin.target.as_str())).collect();
        let number = |name: &str| {
            let at = self.request.targets.iter().position(|target| target.name == name);
            at.map(|at| TargetId(at as u8))
        };
        let demand = |guest: &SourceGuest| {
            let pinned = pins.get(guest.name.as_str()).and_then(|host| number(host));
            (guest.name.clone(), guest.bytes(), pinned)
        };
        let demands: Vec<_> = guests.iter().map(demand).collect();
        let demands: Vec<VmDemand<'_>> = demands
            .iter()
            .map(|(name, memory_bytes, pinned)| VmDemand {
                name,
                memory_bytes: *memory_bytes,
                pinned: *pinned,
            })
            .collect();
        let capacity = |connection: &ControlConnection| connection.peer.resources.free_memory_bytes;
        let targets: Vec<TargetCapacity<'_>> = connections
            .iter()
            .map(|c| TargetCapacity { name: &c.peer.name, free_bytes: capacity(c), vms_max: None })
            .collect();
        let groups = HolderGroups { alone: vec![0; demands.len()], shared: Vec::new() };
        let tree = DeliveryTree::flat(targets.len());
        let problem = Problem {
            vms: &demands,
            targets: &targets,
            apart: &[],
            groups: &groups,
            tree: &tree,
            few_targets: false,
            group_addresses: GROUPS_MAX,
        };
        let bad_input = |error: vmscatter_core::placement::PlacementError| Stop::BadInput(error.to_string());
        let vms_max = Some(even_vms_max(&problem).map_err(bad_input)?);
        let even: Vec<_> = targets.iter().map(|target| TargetCapacity { vms_max, ..*target }).collect();
        let problem = Problem { targets: &even, ..problem };
        let solution = solve(&problem, Effort::default(), &mut || false).map_err(bad_input)?;
        Ok(solution.placement.into_iter().map(Some).collect())
    }

    async fn collect(&self, guests: &[SourceGuest], key: MacKey) -> Result<Collected, Stop> {
        let memories = guests.iter().map(|guest| guest.memory.clone()).collect();
        match collect_guests(memories, key, &self.cancel).await {
            Ok(Collection { collected, .. }) => {
                for (guest, vm) in guests.iter().zip(&collected.vms) {
                    if let Some(error) = &vm.error {
                        let text = format!("its memory can't be read, all of it goes by its stream: {error}");
                        self.sink.emit(JobEvent::Warning { guest: Some(guest.name.clone()), text });
                    }
                }
                Ok(collected)
            }
            Err(CollectError::Cancelled) => Err(Stop::Cancelled),
            Err(error) => Err(Stop::BadInput(error.to_string())),
        }
    }

    /// From the groups to the report.
    async fn session(
        &self,
        plan: Plan,
        links: Vec<Arc<TargetLink>>,
        mut events: UnboundedReceiver<Event>,
        to_events: UnboundedSender<Event>,
    ) -> Result<MigrateOutcome, Stop> {
        let Plan { keys, guests, placement, contents, schedule, found } = plan;
        let session_keys = SessionKeys { mac: MacKey::new(&keys.mac), digest: DigestKey::new(&keys.digest) };
        let sets = self.multicast_sets(&schedule, &links);
        self.grant(&sets, &links, &mut events, &to_events).await?;
        let compression = compression(self.request.compress);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let encoders =
            EncodePool::start(threads, compression).map_err(|e| Stop::Failed(format!("threads: {e}")))?;
        let bandwidth = self.request.bandwidth_bits.map(|bits| bits / 8);
        let rate = bandwidth.map_or(LINK_BYTES_PER_S, |bytes| bytes as f64);
        let (to_stream_events, stream_events) = unbounded_channel();
        let mut vms = Vec::new();
        for (number, mut guest) in guests.into_iter().enumerate() {
            let vm = number as u16;
            let target = placement[number].map_or(0, |target| u16::from(target.0));
            let machine = SourceVm::new(vm, &guest.blocks, &session_keys.mac, &session_keys.digest);
            let limit = in_flight_limit(rate, STREAMS_MAX) * plain_per_wire(compression);
            let link = links[usize::from(target)].clone();
            let stream = Stream::new(vm, machine, link, encoders.clone(), limit, to_stream_events.clone());
            forward_qmp(vm, &mut guest, &to_events);
            vms.push(Vm::new(guest, stream, target));
        }
        let session = SourceSession::new(
            vms.iter().enumerate().map(|(vm, state)| (vm as u16, state.target, state.guest.blocks.clone())),
            STREAMS_MAX,
        );
        let scatter = ScatterThread::new(super::scatter::Setup {
            keys: session_keys,
            session: keys.session,
            contents,
            schedule,
            placement,
            sets,
            links: links.clone(),
            streams: vms.iter().map(|vm| vm.stream.clone()).collect(),
            memories: vms.iter().map(|vm| vm.guest.memory.clone()).collect(),
            encoders,
            bandwidth,
            assumed_bytes_per_s: rate,
            events: to_events.clone(),
        })
        .map_err(|e| Stop::Failed(format!("scatter: {e}")))?;
        let mut actor = Actor {
            session,
            session_id: format_uuid(&keys.session),
            vms,
            links,
            scatter,
            journal: self.ctx.journal.clone(),
            events,
            to_events,
            stream_events,
            sink: self.sink.clone(),
            hold_before_cont: self.request.hold_before_cont.clone(),
            streams_max: STREAMS_MAX,
            tasks: JoinSet::new(),
            finished: false,
            cancelled: false,
        };
        actor.run(&self.cancel).await;
        self.phase(Phase::Report);
        for link in &actor.links {
            link.send(Message::Close);
        }
        Ok(self.outcome(&actor, found))
    }

    /// The sets of several targets, with their wire numbers, keys and groups; below them stands each target's own.
    fn multicast_sets(&self, schedule: &Schedule, links: &[Arc<TargetLink>]) -> Vec<SetLink> {
        let port = 1024 + u16::from_be_bytes(random()) % 60_000;
        let set = |(at, plan): (usize, &SetPlan)| SetLink {
            number: (links.len() + at) as u16,
            set: plan.set,
            key: random(),
            group: (at < GROUPS_MAX).then(|| SocketAddr::new(random_group(&self.ctx.config.multicast), port)),
        };
        schedule.multicast().iter().enumerate().map(set).collect()
    }

    /// Gives the sets to their members, and waits until each has joined what it can.
    async fn grant(
        &self,
        sets: &[SetLink],
        links: &[Arc<TargetLink>],
        events: &mut UnboundedReceiver<Event>,
        to_events: &UnboundedSender<Event>,
    ) -> Result<(), Stop> {
        let mut waiting = HashSet::new();
        for (number, link) in links.iter().enumerate() {
            let member = |set: &&SetLink| set.set.contains(TargetId(number as u8));
            let grant = |set: &SetLink| SetGrant { set: set.number, key: set.key, group: set.group };
            let grants: Vec<SetGrant> = sets.iter().filter(member).map(grant).collect();
            if !grants.is_empty() {
                waiting.insert(number as u16);
                link.send(Message::Grant(grants));
            }
        }
        let mut early = Vec::new();
        let deadline = tokio::time::Instant::now() + GRANT_DEADLINE;
        while !waiting.is_empty() {
            let event = tokio::select! {
                event = tokio::time::timeout_at(deadline, events.recv()) => event,
                () = self.cancel.cancelled() => return Err(Stop::Cancelled),
            };
            match event {
                Ok(Some(Event::Target(target, Message::Granted { failed, .. }))) => {
                    waiting.remove(&target);
                    for (_, reason) in failed {
                        let name = links[usize::from(target)].name();
                        let text = format!(
                            "{name} can't join a multicast group, and is sent what it lacks by TCP: {reason}"
                        );
                        self.sink.emit(JobEvent::Warning { guest: None, text });
                    }
                }
                Ok(Some(event)) => {
                    if let Event::TargetLost(target, _) = &event {
                        waiting.remove(target);
                    }
                    early.push(event);
                }
                Ok(None) | Err(_) => {
                    let names: Vec<&str> =
                        waiting.iter().map(|target| links[usize::from(*target)].name()).collect();
                    return Err(Stop::Failed(format!(
                        "no answer about multicast groups from {}",
                        names.join(", ")
                    )));
                }
            }
        }
        for event in early {
            let _ = to_events.send(event);
        }
        Ok(())
    }

    /// Opens the session at a target: keys, its own set, the data connection.
    async fn open_target(
        &self,
        keys: &RawKeys,
        number: u16,
        connection: ControlConnection,
        limit: Option<Arc<RateLimit>>,
        events: &UnboundedSender<Event>,
    ) -> Result<Arc<TargetLink>, Stop> {
        let ControlConnection { sender, mut receiver, peer } = connection;
        let fault = |what: String| Stop::Failed(format!("{}: {what}", peer.name));
        let own = SetGrant { set: number, key: random(), group: None };
        let open =
            Message::Open { mac_key: keys.mac, digest_key: keys.digest, target: number, own_set: number };
        for message in [open, Message::Grant(vec![own.clone()])] {
            sender.send(message).await.map_err(|e| fault(e.to_string()))?;
        }
        // Its answer says that the session is there for a data connection to find.
        match tokio::time::timeout(GRANT_DEADLINE, receiver.recv()).await {
            Ok(Ok(Some(Message::Granted { .. }))) => {}
            Ok(Ok(Some(_))) => return Err(fault("answers what was not asked".to_owned())),
            Ok(Ok(None)) => return Err(fault("closed the connection".to_owned())),
            Ok(Err(error)) => return Err(fault(error.to_string())),
            Err(_) => return Err(fault(format!("no answer within {} s", GRANT_DEADLINE.as_secs()))),
        }
        let link = TargetLink::connect(number, &peer, sender, keys.session, &own, limit).await;
        let link = link.map_err(|e| fault(format!("data connection: {e}")))?;
        forward_control(number, receiver, events.clone());
        Ok(link)
    }

    fn outcome(&self, actor: &Actor, mut found: ScatterOutcome) -> MigrateOutcome {
        let guests = (0..actor.vms.len() as u16).map(|vm| actor.guest_outcome(vm));
        found.add(&actor.scatter.counters());
        MigrateOutcome::of_guests(
            actor.session_id.clone(),
            self.start.elapsed().as_secs_f64(),
            guests.collect(),
            found,
        )
    }
}

/// What collecting found: the classes, and what has to leave at least.
fn found(collected: &Collected, placement: &[Option<TargetId>]) -> ScatterOutcome {
    let pages = collected.pages();
    let classes = Classes::of(&collected.contents, &pages, placement);
    ScatterOutcome {
        distinct_nonzero_bytes: Sharing::of(&collected.contents, &pages).distinct_nonzero_bytes(),
        classes: PageClasses {
            zero: classes.zero_pages,
            unique: classes.unique_pages,
            isvst: classes.isvst.pages,
            imvst: classes.imvst.pages,
            imvmt: classes.imvmt.pages,
        },
        ..ScatterOutcome::default()
    }
}

fn compression(asked: protocol::Compression) -> Compression {
    match asked {
        protocol::Compression::None => Compression::None,
        protocol::Compression::Zstd { level } => Compression::Zstd(level),
    }
}

/// Plain bytes that are worth one on the wire, about: what is in flight is bounded by what the link carries.
fn plain_per_wire(compression: Compression) -> usize {
    match compression {
        Compression::None => 1,
        Compression::Zstd(_) => 3,
    }
}

fn forward_control(number: u16, mut receiver: ControlReceiver, events: UnboundedSender<Event>) {
    tokio::spawn(async move {
        loop {
            let event = match receiver.recv().await {
                Ok(Some(message)) => Event::Target(number, message),
                Ok(None) => Event::TargetLost(number, "the target closed the connection".to_owned()),
                Err(error) => Event::TargetLost(number, error.to_string()),
            };
            let lost = matches!(event, Event::TargetLost(..));
            if events.send(event).is_err() || lost {
                return;
            }
        }
    });
}

fn forward_qmp(vm: u16, guest: &mut SourceGuest, events: &UnboundedSender<Event>) {
    let Some(mut source) = guest.events.take() else { return };
    let events = events.clone();
    tokio::spawn(async move {
        while let Some(event) = source.recv().await {
            if events.send(Event::Qmp(vm, event)).is_err() {
                return;
            }
        }
        let closed =
            crate::qemu::qmp::QmpEvent { name: CLOSED.to_owned(), data: serde_json::Value::Null, time_us: 0 };
        let _ = events.send(Event::Qmp(vm, closed));
    });
}
