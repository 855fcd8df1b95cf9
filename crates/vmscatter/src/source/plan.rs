//! `plan`: the phases before a session, and what would follow. Nothing is moved, and no incoming QEMU is started.

use std::sync::Arc;
use std::time::Instant;

use vmscatter_core::index::Sharing;
use vmscatter_core::page::{MacKey, PAGE_SIZE};
use vmscatter_core::predict::{Compressed, Inventory, PhaseTimes};
use vmscatter_core::wire::control::Resources;
use vmscatter_core::wire::frame::Compression;

use super::collect::Collected;
use super::prepare::{Setting, Stop, candidates};
use super::sample::sample;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{self, PlanRequest};
use crate::plan::{Input, MTU_DEFAULT, Source, Speed, make};
use crate::qemu::memory::GuestMemory;
use crate::random::{random, random_uuid};
use crate::report::event::Phase;
use crate::report::plan::PlanOutcome;

/// No scatter goes below it.
const MTU_MIN: u32 = 1280;

/// Says where the request's guests would go, and what that would cost.
pub async fn run_plan(
    ctx: Arc<AgentContext>,
    request: PlanRequest,
    sink: EventSink,
    cancel: CancelToken,
) -> PlanOutcome {
    let setting =
        Setting { ctx: &ctx, sink: &sink, cancel: &cancel, collect_cpu_percent: request.collect_cpu_percent };
    match plan(&setting, &request).await {
        Ok(outcome) => outcome,
        Err(Stop::BadInput(error)) => PlanOutcome::bad_input(error),
        Err(Stop::Failed(error)) => PlanOutcome::failed(error),
        Err(Stop::Cancelled) => PlanOutcome::cancelled(),
    }
}

async fn plan(setting: &Setting<'_>, request: &PlanRequest) -> Result<PlanOutcome, Stop> {
    let start = Instant::now();
    setting.phase(Phase::Connect);
    let guests = setting.open_guests(&request.guests).await?;
    let resources = setting.ask(&request.targets, random_uuid()).await?;
    setting.check_cancelled()?;
    let connect_s = start.elapsed().as_secs_f64();
    setting.phase(Phase::Collect);
    let collection = setting.collect(&guests, MacKey::new(&random())).await?;
    let collect_s = start.elapsed().as_secs_f64() - connect_s;
    setting.phase(Phase::Place);
    let compression = match request.compress {
        protocol::Compression::None => None,
        protocol::Compression::Zstd { level } => Some(Compression::Zstd(level)),
    };
    let times = PhaseTimes { connect_s, collect_s, ..PhaseTimes::default() };
    let input = Input {
        sources: vec![Source { name: setting.ctx.config.name.clone(), times }],
        candidates: candidates(&guests, &request.targets, &resources, &request.rules),
        source_of: vec![0; guests.len()],
        inventory: Inventory::default(),
        between_hosts: None,
        sampled: false,
        mtu: mtu(&resources),
        compressed: Compressed::NONE,
        speed: Speed::of(request.bandwidth_bits, setting.ctx.speeds.known(compression.is_some())),
        network: setting.network(&request.targets, request.topology.as_ref())?,
    };
    let memory = Memory {
        pages: guests.iter().map(|guest| guest.bytes() / PAGE_SIZE as u64).collect(),
        memories: guests.iter().map(|guest| guest.memory.clone()).collect(),
        collected: collection.collected,
        compression,
    };
    let outcome = tokio::task::spawn_blocking(move || memory.plan(input)).await;
    outcome.map_err(|error| Stop::Failed(format!("plan: {error}")))
}

/// Least MTU of the targets that tell theirs.
fn mtu(resources: &[Resources]) -> u32 {
    let told = resources.iter().map(|resources| resources.mtu).filter(|mtu| *mtu > 0).min();
    told.unwrap_or(MTU_DEFAULT).max(MTU_MIN)
}

/// The guests' memory, and what was found in it.
struct Memory {
    pages: Vec<u64>,
    memories: Vec<Arc<GuestMemory>>,
    collected: Collected,
    compression: Option<Compression>,
}

impl Memory {
    /// What takes time, off the async threads.
    fn plan(&self, mut input: Input) -> PlanOutcome {
        let contents = &self.collected.contents;
        let sharing = Sharing::of(contents, &self.collected.pages());
        input.inventory = Inventory::of(contents, &sharing, &self.pages);
        if let Some(compression) = self.compression {
            input.compressed = sample(&self.memories, contents, compression);
        }
        match make(&input) {
            Ok(plan) => PlanOutcome::of(plan),
            Err(error) => PlanOutcome::bad_input(error.to_string()),
        }
    }
}
