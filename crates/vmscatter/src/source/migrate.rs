//! A session of `migrate` from the request to the report, phase by phase.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use vmscatter_core::index::{Contents, Sharing};
use vmscatter_core::journal::{Peer, VmKey};
use vmscatter_core::page::{DigestKey, MacKey};
use vmscatter_core::placement::{HolderGroups, TargetId};
use vmscatter_core::schedule::{Classes, Schedule};
use vmscatter_core::session::{OwnKeys, SessionKeys, SourceSession, SourceVm};
use vmscatter_core::wire::control::{Contact, Message, Resources, SetGrant, Uuid};
use vmscatter_core::wire::frame::Compression;

use super::actor::{Actor, Event, Vm};
use super::collect::Collected;
use super::encode::EncodePool;
use super::events::CLOSED;
use super::groups::Groups;
use super::guest::{SourceGuest, in_flight_limit};
use super::link::{TargetLink, local_addr};
use super::milestones::Milestones;
use super::prepare::{Chosen, Setting, Stop, candidates, holder_groups};
use super::scatter::ScatterThread;
use super::stream::Stream;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::control::{ControlConnection, ControlReceiver};
use crate::agent::guest_file::format_uuid;
use crate::agent::host::HostError;
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{self, GROUPS_DEFAULT, MigrateRequest, Pin, Transport};
use crate::net::data::RateLimit;
use crate::net::udp::WayOut;
use crate::plan::LINK_BYTES_PER_S;
use crate::random::{random, random_uuid};
use crate::report::event::{JobEvent, Phase};
use crate::report::outcome::{MigrateOutcome, PageClasses, PlacementOutcome, ScatterOutcome};

/// Streams that flow at once: one that is read and one that is loaded keep the link busy, and each is short.
const STREAMS_MAX: usize = 2;
/// A target says within this time that its own key is in use.
const GRANT_DEADLINE: Duration = Duration::from_secs(20);

/// A session that is to be, or several of one job.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) ctx: Arc<AgentContext>,
    pub(super) request: MigrateRequest,
    /// Guests of the job that earlier sessions have moved, and where they are: rules hold for them too.
    pub(super) settled: Vec<Pin>,
    pub(super) sink: EventSink,
    pub(super) cancel: CancelToken,
    pub(super) start: Instant,
}

/// All that is known once the phases before the session are over.
struct Prepared {
    keys: RawKeys,
    /// When targets were asked for incoming QEMUs.
    asked: Instant,
    guests: Vec<SourceGuest>,
    placement: Vec<Option<TargetId>>,
    contents: Arc<Contents>,
    schedule: Schedule,
    /// What collecting found, as the report shows it.
    found: ScatterOutcome,
    /// How targets were chosen, unless all were given.
    chosen: Option<PlacementOutcome>,
    milestones: Milestones,
}

/// The links of a session, and what comes from them.
struct Links {
    links: Vec<Arc<TargetLink>>,
    events: UnboundedReceiver<Event>,
    to_events: UnboundedSender<Event>,
}

/// The keys of a session, as they are given to targets.
pub(super) struct RawKeys {
    pub(super) session: Uuid,
    pub(super) mac: [u8; 16],
    pub(super) digest: [u8; 16],
}

impl Run {
    pub(super) fn setting(&self) -> Setting<'_> {
        Setting {
            ctx: &self.ctx,
            sink: &self.sink,
            cancel: &self.cancel,
            collect_cpu_percent: self.request.collect_cpu_percent,
        }
    }

    /// By what the guests hold in common.
    pub(super) async fn choose(
        &self,
        guests: &[SourceGuest],
        resources: &[Resources],
        collected: &Collected,
    ) -> Result<Chosen, Stop> {
        let sharing = Sharing::of(&collected.contents, &collected.pages());
        let groups = holder_groups(collected.contents.clone(), sharing).await?;
        self.choose_by(guests, resources, groups).await
    }

    async fn choose_by(
        &self,
        guests: &[SourceGuest],
        resources: &[Resources],
        mut groups: HolderGroups,
    ) -> Result<Chosen, Stop> {
        let MigrateRequest { targets, rules, topology, .. } = &self.request;
        let network = self.setting().network(targets, topology.as_ref())?;
        let mut candidates = candidates(guests, targets, resources, rules);
        // Those that have moved take their places, but no more memory, and nothing is sent for them.
        candidates.settle(&self.settled);
        groups.alone.resize(candidates.guests.len(), 0);
        let mut chosen = self.setting().choose(candidates, network, groups).await?;
        chosen.solution.placement.truncate(guests.len());
        Ok(chosen)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Why it ended before its guests had been dealt with.
    pub(super) async fn run(&self) -> Result<MigrateOutcome, Stop> {
        let setting = self.setting();
        let keys = RawKeys { session: random_uuid(), mac: random(), digest: random() };
        setting.phase(Phase::Connect);
        let guests = setting.open_guests(&self.request.guests).await?;
        let connections = setting.connect(&self.request.targets, keys.session).await?;
        setting.check_cancelled()?;
        let resources: Vec<Resources> = connections.iter().map(|c| c.peer.resources.clone()).collect();
        let mut chosen = None;
        if self.all_pinned() {
            setting.phase(Phase::Place);
            let nothing = HolderGroups { alone: vec![0; guests.len()], shared: Vec::new() };
            chosen = Some(self.choose_by(&guests, &resources, nothing).await?);
        }
        let links = self.open_targets(&keys, connections).await?;
        // Where targets are given, incoming QEMUs start while memory is read: both take their time.
        let mut milestones = Milestones::default();
        let mut asked = Instant::now();
        if let Some(chosen) = &chosen {
            setting.phase(Phase::Prepare);
            prepare(&guests, &chosen.placement(), &links);
        }
        setting.phase(Phase::Collect);
        let collected = setting.collect(&guests, MacKey::new(&keys.mac)).await?.collected;
        setting.check_cancelled()?;
        let given = chosen.is_some();
        let chosen = match chosen {
            Some(chosen) => chosen,
            None => {
                setting.phase(Phase::Place);
                let chosen = self.choose(&guests, &resources, &collected).await?;
                setting.check_cancelled()?;
                setting.phase(Phase::Prepare);
                milestones.preparing();
                asked = Instant::now();
                prepare(&guests, &chosen.placement(), &links);
                chosen
            }
        };
        setting.phase(Phase::Schedule);
        let placement = chosen.placement();
        let schedule = Schedule::new(&collected.contents, &placement);
        let found = found(&collected, &placement);
        let chosen = (!given).then(|| PlacementOutcome::of(&chosen.solution, chosen.time));
        let contents = collected.contents;
        let prepared =
            Prepared { keys, asked, guests, placement, contents, schedule, found, chosen, milestones };
        self.session(prepared, links).await
    }

    async fn open_targets(&self, keys: &RawKeys, connections: Vec<ControlConnection>) -> Result<Links, Stop> {
        let (to_events, events) = unbounded_channel();
        let limit = self.request.bandwidth_bits.map(|bits| Arc::new(RateLimit::new(bits / 8)));
        let mut links = Vec::new();
        for (number, connection) in connections.into_iter().enumerate() {
            links.push(self.open_target(keys, number as u16, connection, limit.clone(), &to_events).await?);
        }
        Ok(Links { links, events, to_events })
    }

    /// From the groups to the report.
    async fn session(&self, prepared: Prepared, links: Links) -> Result<MigrateOutcome, Stop> {
        let Prepared { keys, asked, guests, placement, contents, schedule, found, chosen, milestones } =
            prepared;
        let Links { links, events, to_events } = links;
        let session_keys = SessionKeys { mac: MacKey::new(&keys.mac), digest: DigestKey::new(&keys.digest) };
        let groups_max = self.request.groups.unwrap_or(GROUPS_DEFAULT);
        let is_sorted = !self.request.unsorted_groups;
        let prefix = self.ctx.config.multicast.prefix_for(local_addr(&links));
        let transport = self.transport(&links);
        let out = self.way_out(transport, &links).map_err(|error| Stop::BadInput(error.to_string()))?;
        let first_number = links.len() as u16;
        let groups = match transport {
            Transport::Relay => Groups::none(&schedule, first_number),
            Transport::Multicast | Transport::Auto => {
                Groups::new(&schedule, groups_max, is_sorted, first_number, prefix)
            }
        };
        for (target, link) in (0..).zip(&links) {
            link.grant(groups.grants(target));
        }
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
            let live = self.ctx.recovery.hold(VmKey { session: keys.session, vm: guest.uuid });
            vms.push(Vm::new(guest, stream, target, live));
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
            groups,
            links: links.clone(),
            streams: vms.iter().map(|vm| vm.stream.clone()).collect(),
            memories: vms.iter().map(|vm| vm.guest.memory.clone()).collect(),
            encoders,
            transport,
            out,
            bandwidth,
            parity: self.ctx.config.multicast.parity,
            assumed_bytes_per_s: rate,
            events: to_events.clone(),
        })
        .map_err(|e| Stop::Failed(format!("scatter: {e}")))?;
        // From here on guests are touched.
        let begun = self.ctx.journal.begin(vms.iter().map(|vm| {
            let target = &self.request.targets[usize::from(vm.target)];
            let peer = Peer { name: target.name.clone(), addr: target.addr };
            (VmKey { session: keys.session, vm: vm.guest.uuid }, vm.guest.facts(peer))
        }));
        begun.map_err(|e| Stop::Failed(format!("the journal can't be written: {e}")))?;
        let mut actor = Actor {
            session,
            session_id: keys.session,
            vms,
            links,
            scatter,
            journal: self.ctx.journal.clone(),
            events,
            to_events,
            stream_events,
            sink: self.sink.clone(),
            holds: self.ctx.holds.clone(),
            streams_max: STREAMS_MAX,
            policy: self.request.convergence.policy(),
            auto_converge: self.request.convergence.auto_converge,
            twins_since: (asked, None),
            patience: Default::default(),
            start: self.start,
            milestones,
            tasks: JoinSet::new(),
            finished: false,
            cancelled: false,
        };
        actor.run(&self.cancel).await;
        self.setting().phase(Phase::Report);
        if let Some(measured) = actor.measured(bandwidth) {
            self.ctx.speeds.keep(compression != Compression::None, &measured);
        }
        Ok(MigrateOutcome { placement: chosen, ..self.outcome(&actor, found) })
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
        let opened = open_target(&self.ctx, keys, number, connection, limit).await;
        let (link, receiver) = opened.map_err(Stop::Failed)?;
        forward_control(number, receiver, events.clone());
        Ok(link)
    }

    /// What was asked for, as far as there is multicast for these targets.
    fn transport(&self, links: &[Arc<TargetLink>]) -> Transport {
        let asked = self.request.transport;
        let is_v6 = |link: &Arc<TargetLink>| link.local_addr().ip().to_canonical().is_ipv6();
        if asked != Transport::Auto || links.iter().all(is_v6) || !links.iter().any(is_v6) {
            return asked;
        }
        let text = "some targets are reached over IPv4 and others over IPv6: no multicast reaches all, so they pass on what several need";
        self.sink.emit(JobEvent::Warning { guest: None, text: text.to_owned() });
        Transport::Relay
    }

    /// By which way multicast leaves; of no account where there is none.
    fn way_out(&self, transport: Transport, links: &[Arc<TargetLink>]) -> Result<WayOut, HostError> {
        match links.first().filter(|_| transport != Transport::Relay) {
            Some(link) => self.ctx.way_out(self.request.interface.as_deref(), link.local_addr()),
            None => Ok(WayOut::LINK),
        }
    }

    fn outcome(&self, actor: &Actor, mut found: ScatterOutcome) -> MigrateOutcome {
        let guests = (0..actor.vms.len() as u16).map(|vm| actor.guest_outcome(vm));
        found.add(&actor.scatter.counters());
        MigrateOutcome::of_guests(
            format_uuid(&actor.session_id),
            self.start.elapsed().as_secs_f64(),
            guests.collect(),
            found,
        )
    }
}

/// Opens the session at a target: keys, its own set, the data connection.
///
/// # Errors
/// One line that names the target.
pub(super) async fn open_target(
    ctx: &AgentContext,
    keys: &RawKeys,
    number: u16,
    connection: ControlConnection,
    limit: Option<Arc<RateLimit>>,
) -> Result<(Arc<TargetLink>, ControlReceiver), String> {
    let ControlConnection { sender, mut receiver, peer } = connection;
    let fault = |what: String| format!("{}: {what}", peer.name);
    let own = SetGrant { set: number, key: random(), group: None };
    let contact = Contact { addr: ctx.listen, journal: ctx.journal.id() };
    let (mac_key, digest_key) = (keys.mac, keys.digest);
    let open = Message::Open { mac_key, digest_key, target: number, own_set: number, contact };
    for message in [open, Message::Grant(vec![own.clone()])] {
        sender.send(message).await.map_err(|e| fault(e.to_string()))?;
    }
    // Its answer says that the session is there for a data connection to find.
    match tokio::time::timeout(GRANT_DEADLINE, receiver.recv()).await {
        Ok(Ok(Some(Message::Granted))) => {}
        Ok(Ok(Some(_))) => return Err(fault("answers what was not asked".to_owned())),
        Ok(Ok(None)) => return Err(fault("closed the connection".to_owned())),
        Ok(Err(error)) => return Err(fault(error.to_string())),
        Err(_) => return Err(fault(format!("no answer within {} s", GRANT_DEADLINE.as_secs()))),
    }
    let own = OwnKeys::new(number, &own).rekey_after(ctx.config.rekey_bytes.unwrap_or(u64::MAX));
    let link = TargetLink::connect(&peer, sender, keys.session, own, limit).await;
    Ok((link.map_err(|e| fault(format!("data connection: {e}")))?, receiver))
}

/// Has each target start the incoming QEMUs of its guests.
fn prepare(guests: &[SourceGuest], placement: &[Option<TargetId>], links: &Links) {
    for (vm, guest) in guests.iter().enumerate() {
        let target = placement[vm].map_or(0, |target| usize::from(target.0));
        links.links[target].send(Message::Prepare(guest.spec(vm as u16)));
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

/// Messages of one target that wait for the session or the scatter; beyond that its connection is not read.
const MESSAGES_MAX: usize = 8;

fn forward_control(number: u16, receiver: ControlReceiver, events: UnboundedSender<Event>) {
    tokio::spawn(receiver.forward(MESSAGES_MAX, move |next| {
        let event = match next {
            Ok((message, place)) => Event::Target(number, message, place),
            Err(None) => Event::TargetLost(number, "the target closed the connection".to_owned()),
            Err(Some(error)) => Event::TargetLost(number, error.to_string()),
        };
        events.send(event).is_ok()
    }));
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
