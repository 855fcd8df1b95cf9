//! `migrate`: all guests at once, or in waves, each of which is a session; and those that have failed again, if that is asked for.

use std::sync::Arc;
use std::time::Instant;

use vmscatter_core::page::MacKey;
use vmscatter_core::placement::TargetId;

use super::guest::SourceGuest;
use super::migrate::Run;
use super::prepare::Stop;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::guest_file::GuestFile;
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{GuestText, MigrateRequest, Pin, PlacementRules};
use crate::random::{random, random_uuid};
use crate::report::event::Phase;
use crate::report::outcome::{
    GuestOutcome, GuestStatus, MigrateOutcome, PageCounts, PlacementOutcome, ScatterOutcome,
};

/// Moves the request's guests: all at once, or, with `parallel`, in waves of so many, each a session of its own. Then, with
/// `retries`, again those that have stayed at the source against the operator's will.
pub async fn run_migrate(
    ctx: Arc<AgentContext>,
    request: MigrateRequest,
    sink: EventSink,
    cancel: CancelToken,
) -> MigrateOutcome {
    let run = Run { ctx, request, settled: Vec::new(), sink, cancel, start: Instant::now() };
    let mut outcome = match run.clone().waves().await {
        Ok(outcome) => outcome,
        Err(stop) => return stop.into_outcome(),
    };
    for attempt in 1..=run.request.retries {
        if !run.again(&mut outcome, attempt).await {
            break;
        }
    }
    outcome
}

impl Stop {
    /// What is said of a job that has moved nothing.
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
            journal_ms: None,
            reason: Some(reason),
            pages: PageCounts::default(),
            unicast_bytes: 0,
            dirty_bytes_per_s: None,
            throttled_percent: None,
            attempts: 1,
        }
    }
}

impl Run {
    /// Moves the request's guests, in waves if so many may not be open at once.
    ///
    /// Targets are chosen once, over all guests of all waves: who shares with whom does not end at a wave. For that all memory
    /// is read before the first wave; each wave reads its own again, as it may begin hours later. Contents that stand in
    /// guests of several waves are sent once in each.
    ///
    /// # Errors
    /// Why it ended before anything was moved; a later wave's end concerns only its own guests.
    pub(super) async fn waves(mut self) -> Result<MigrateOutcome, Stop> {
        let all = &self.request.guests;
        let wave_len = self.request.parallel.unwrap_or(all.len()).max(1);
        let (mut guests, mut scatter, mut session) = (Vec::new(), ScatterOutcome::default(), String::new());
        let mut placement = None;
        if wave_len < all.len() && !self.all_pinned() {
            let (pins, outcome) = self.place_all().await?;
            self.request.rules = PlacementRules { pins, ..PlacementRules::default() };
            placement = Some(outcome);
        }
        let all = std::mem::take(&mut self.request.guests);
        for wave in all.chunks(wave_len) {
            self.request.guests = wave.to_vec();
            match self.run().await {
                Ok(outcome) => {
                    session = outcome.session;
                    guests.extend(outcome.guests);
                    scatter.add(&outcome.scatter);
                    placement = placement.or(outcome.placement);
                }
                Err(stop) if guests.is_empty() => return Err(stop),
                Err(stop) => guests.extend(wave.iter().map(|guest| stop.stayed(guest))),
            }
        }
        let outcome = MigrateOutcome::of_guests(session, self.start.elapsed().as_secs_f64(), guests, scatter);
        Ok(MigrateOutcome { placement, ..outcome })
    }

    /// Whether every guest's target is given.
    pub(super) fn all_pinned(&self) -> bool {
        let pins = &self.request.rules.pins;
        let pinned = |text: &GuestText| {
            // The file was parsed when the request was checked.
            let name = GuestFile::parse(&text.text, &text.origin).map(|file| file.name);
            name.is_ok_and(|name| pins.iter().any(|pin| pin.guest == name))
        };
        self.request.guests.iter().all(pinned)
    }

    /// Chooses targets for the guests of all waves.
    async fn place_all(&self) -> Result<(Vec<Pin>, PlacementOutcome), Stop> {
        let setting = self.setting();
        setting.phase(Phase::Connect);
        let guests = setting.open_guests(&self.request.guests).await?;
        let resources = setting.ask(&self.request.targets, random_uuid()).await?;
        setting.phase(Phase::Collect);
        let collected = setting.collect(&guests, MacKey::new(&random())).await?.collected;
        setting.phase(Phase::Place);
        let chosen = self.choose(&guests, &resources, &collected).await?;
        let pin = |(guest, target): (&SourceGuest, &TargetId)| Pin {
            guest: guest.name.clone(),
            target: self.request.targets[usize::from(target.0)].name.clone(),
        };
        let pins = guests.iter().zip(&chosen.solution.placement).map(pin).collect();
        Ok((pins, PlacementOutcome::of(&chosen.solution, chosen.time)))
    }
}
