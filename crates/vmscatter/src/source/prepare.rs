//! What stands before a session, and before a plan: guests are opened, targets asked, memory is collected, targets chosen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmscatter_core::index::{Contents, Sharing};
use vmscatter_core::journal::{SourceStep, Step, TargetStep, VmRecord};
use vmscatter_core::page::MacKey;
use vmscatter_core::placement::{HolderGroups, Solution, TargetId};
use vmscatter_core::wire::control::{Message, Resources, Uuid};

use super::collect::{CollectError, CollectKey};
use super::guest::SourceGuest;
use super::scan::{Collection, collect_guests};
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::control::{ControlConnection, PeerError, hello};
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{GuestText, PlacementRules, TargetSpec};
use crate::plan::network::Network;
use crate::plan::place::{Candidates, Guest, Target, choose};
use crate::report::event::{JobEvent, Phase};

/// Why a job ended before its guests had been dealt with.
#[derive(Debug)]
pub(super) enum Stop {
    /// The request is wrong; nothing was started.
    BadInput(String),
    Failed(String),
    Cancelled,
}

/// Who takes part, and what a job is told with.
pub(super) struct Setting<'a> {
    pub(super) ctx: &'a AgentContext,
    pub(super) sink: &'a EventSink,
    pub(super) cancel: &'a CancelToken,
    /// What collecting may take of this host's processors, in percent.
    pub(super) collect_cpu_percent: u8,
}

/// Targets for all guests, and how long choosing them took.
pub(super) struct Chosen {
    pub(super) solution: Solution,
    pub(super) time: Duration,
}

impl Chosen {
    pub(super) fn placement(&self) -> Vec<Option<TargetId>> {
        self.solution.placement.iter().copied().map(Some).collect()
    }
}

impl Setting<'_> {
    pub(super) fn phase(&self, phase: Phase) {
        self.sink.emit(JobEvent::Phase { guest: None, phase });
    }

    pub(super) fn check_cancelled(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    /// Finds out what each guest is, and refuses those that can't be moved, all of them at once; nothing is changed.
    pub(super) async fn open_guests(&self, texts: &[GuestText]) -> Result<Vec<SourceGuest>, Stop> {
        let mut guests: Vec<SourceGuest> = Vec::new();
        let mut refused = Vec::new();
        for GuestText { origin, text } in texts {
            let guest = SourceGuest::open(self.ctx, origin, text).await.map_err(Stop::BadInput)?;
            if let Some(other) =
                guests.iter().find(|other| other.uuid == guest.uuid || other.name == guest.name)
            {
                return Err(Stop::BadInput(format!("{origin}: the same guest as '{}'", other.name)));
            }
            refused.extend(guest.refused().map(|reason| format!("{origin}: {} {reason}", guest.name)));
            self.check_finished(&guest).map_err(|error| Stop::BadInput(format!("{origin}: {error}")))?;
            guests.push(guest);
        }
        if refused.is_empty() { Ok(guests) } else { Err(Stop::BadInput(refused.join("; "))) }
    }

    /// No guest leaves whose earlier way has no end yet.
    pub(super) fn check_finished(&self, guest: &SourceGuest) -> Result<(), String> {
        let unfinished = |vm: &VmRecord| match vm.step {
            Step::Source(step) => step <= SourceStep::Committed,
            Step::Target(step) => step <= TargetStep::Committed,
        };
        let same = |vm: &VmRecord| vm.key.vm == guest.uuid || vm.facts.name == guest.name;
        match self.ctx.journal.vms().into_iter().find(|vm| same(vm) && unfinished(vm)) {
            Some(vm) => Err(format!(
                "an earlier migration of '{}' is unfinished ('vmscatter status', 'vmscatter recover')",
                vm.facts.name
            )),
            None => Ok(()),
        }
    }

    /// Reaches all targets, who say what they can take.
    pub(super) async fn connect(
        &self,
        targets: &[TargetSpec],
        session: Uuid,
    ) -> Result<Vec<ControlConnection>, Stop> {
        let mut connections = Vec::new();
        for target in targets {
            let connection = reach(self.ctx, target, session).await;
            connections.push(connection.map_err(|error| Stop::BadInput(error.to_string()))?);
        }
        Ok(connections)
    }

    /// As [`Setting::connect`], and hangs up.
    pub(super) async fn ask(&self, targets: &[TargetSpec], session: Uuid) -> Result<Vec<Resources>, Stop> {
        let mut resources = Vec::new();
        for connection in self.connect(targets, session).await? {
            let _ = connection.sender.send(Message::Close).await;
            resources.push(connection.peer.resources);
        }
        Ok(resources)
    }

    /// Reads all guests' memory.
    pub(super) async fn collect(&self, guests: &[SourceGuest], key: MacKey) -> Result<Collection, Stop> {
        let memories = guests.iter().map(|guest| guest.memory.clone()).collect();
        let key = CollectKey::Session(key);
        let collection = match collect_guests(memories, key, self.collect_cpu_percent, self.cancel).await {
            Ok(collection) => collection,
            Err(CollectError::Cancelled) => return Err(Stop::Cancelled),
            Err(error) => return Err(Stop::BadInput(error.to_string())),
        };
        for (guest, vm) in guests.iter().zip(&collection.collected.vms) {
            if let Some(error) = &vm.error {
                let text = format!("its memory can't be read, all of it goes by its stream: {error}");
                self.sink.emit(JobEvent::Warning { guest: Some(guest.name.clone()), text });
            }
        }
        Ok(collection)
    }

    /// What it costs to reach the targets.
    pub(super) fn network(
        &self,
        targets: &[TargetSpec],
        topology: Option<&GuestText>,
    ) -> Result<Network, Stop> {
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        match topology {
            None => Ok(Network::flat(names.len())),
            Some(file) => {
                let network = Network::of(file, &self.ctx.config.name, &names);
                network.map_err(|error| Stop::BadInput(error.to_string()))
            }
        }
    }

    /// Gives each guest its target; `groups` says what they hold in common.
    pub(super) async fn choose(
        &self,
        candidates: Candidates,
        network: Network,
        groups: HolderGroups,
    ) -> Result<Chosen, Stop> {
        let start = Instant::now();
        let work = tokio::task::spawn_blocking(move || choose(&candidates, &groups, network.tree()));
        let chosen = work.await.map_err(|error| Stop::Failed(format!("placement: {error}")))?;
        let solution = chosen.map_err(|error| Stop::BadInput(error.to_string()))?;
        let time = start.elapsed();
        tracing::info!(
            job = self.sink.job(),
            method = ?solution.method,
            contents = solution.cost,
            bound = solution.bound,
            ms = time.as_millis() as u64,
            "placement"
        );
        Ok(Chosen { solution, time })
    }
}

/// Reaches a target.
///
/// # Errors
/// The connection's.
pub(super) async fn reach(
    ctx: &AgentContext,
    target: &TargetSpec,
    session: Uuid,
) -> Result<ControlConnection, PeerError> {
    let ours = hello(&ctx.config.name, Resources::default());
    ControlConnection::connect(target.addr, &target.name, &ctx.tls, ours, session).await
}

/// Guests, targets and rules, as a placement is asked for.
pub(super) fn candidates(
    guests: &[SourceGuest],
    targets: &[TargetSpec],
    resources: &[Resources],
    rules: &PlacementRules,
) -> Candidates {
    let guest = |guest: &SourceGuest| Guest { name: guest.name.clone(), memory_bytes: guest.bytes() };
    let target = |(target, resources): (&TargetSpec, &Resources)| Target {
        name: target.name.clone(),
        free_bytes: resources.free_memory_bytes,
    };
    Candidates {
        guests: guests.iter().map(guest).collect(),
        targets: targets.iter().zip(resources).map(target).collect(),
        rules: rules.clone(),
    }
}

/// What guests hold in common, off the async threads: it is a pass over all shared pages.
pub(super) async fn holder_groups(contents: Arc<Contents>, sharing: Sharing) -> Result<HolderGroups, Stop> {
    let work = tokio::task::spawn_blocking(move || HolderGroups::of(&contents, &sharing));
    work.await.map_err(|error| Stop::Failed(format!("placement: {error}")))
}
