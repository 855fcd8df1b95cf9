//! Guests that have failed, tried again: elsewhere where the rules allow it, with hosts that answer.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;
use vmscatter_core::wire::control::Message;

use super::guest::SourceGuest;
use super::migrate::Run;
use super::prepare::{Stop, reach};
use crate::agent::protocol::{GuestText, Pin, TargetSpec};
use crate::random::random_uuid;
use crate::report::event::JobEvent;
use crate::report::outcome::{Exit, GuestOutcome, GuestStatus, MigrateOutcome};

/// Between the end of an attempt and the next: what a failed one has left at a target is gone by then, and a host that starts
/// its agent anew may answer again.
const PAUSE: Duration = Duration::from_secs(3);

/// A guest that has failed and can be tried again.
struct Failed {
    /// Its place in the request.
    at: usize,
    name: String,
    /// Where it was to go.
    target: Option<String>,
}

impl Run {
    /// Tries once more what has failed, and writes down in `outcome` what came of it; whether another attempt could follow.
    pub(super) async fn again(&self, outcome: &mut MigrateOutcome, attempt: u32) -> bool {
        if !outcome.guests.iter().any(|guest| guest.status == GuestStatus::Failed) {
            return false;
        }
        tokio::select! {
            () = self.cancel.cancelled() => return false,
            () = tokio::time::sleep(PAUSE) => {}
        }
        let answering = self.answering().await;
        let failed = self.can_be_tried(outcome, &answering).await;
        if failed.is_empty() {
            return true;
        }
        let names: Vec<&str> = failed.iter().map(|guest| guest.name.as_str()).collect();
        let text = format!("tried again ({attempt} of {}): {}", self.request.retries, names.join(", "));
        self.sink.emit(JobEvent::Warning { guest: None, text });
        let elsewhere = elsewhere(&answering, &failed, &self.request.rules.pins);
        let mut result = self.attempt(outcome, &failed, &elsewhere).await;
        // They may not all fit on the others.
        if matches!(result, Err(Stop::BadInput(_))) && elsewhere.len() < answering.len() {
            result = self.attempt(outcome, &failed, &answering).await;
        }
        match result {
            Ok(again) => merge(outcome, &failed, again),
            Err(stop) => {
                for guest in &failed {
                    stayed(&mut outcome.guests[guest.at], &stop);
                }
            }
        }
        outcome.exit = Exit::of_guests(&outcome.guests);
        outcome.total_time_s = self.start.elapsed().as_secs_f64();
        !self.cancel.is_cancelled()
    }

    /// The targets of the request whose agents can be reached now.
    async fn answering(&self) -> Vec<TargetSpec> {
        let mut asked = JoinSet::new();
        for (at, target) in self.request.targets.iter().cloned().enumerate() {
            let ctx = self.ctx.clone();
            asked.spawn(async move {
                let connection = reach(&ctx, &target, random_uuid()).await.ok()?;
                let _ = connection.sender.send(Message::Close).await;
                Some((at, target))
            });
        }
        let mut answering = Vec::new();
        while let Some(answer) = asked.join_next().await {
            answering.extend(answer.ok().flatten());
        }
        answering.sort_by_key(|(at, _)| *at);
        answering.into_iter().map(|(_, target)| target).collect()
    }

    /// Those of the failed guests that are still here and may still go somewhere; of the others it is said why not.
    async fn can_be_tried(&self, outcome: &MigrateOutcome, answering: &[TargetSpec]) -> Vec<Failed> {
        let mut failed = Vec::new();
        for (at, guest) in outcome.guests.iter().enumerate() {
            if guest.status != GuestStatus::Failed {
                continue;
            }
            match self.obstacle(&guest.name, &self.request.guests[at], answering).await {
                None => failed.push(Failed { at, name: guest.name.clone(), target: guest.target.clone() }),
                Some(obstacle) => {
                    let text = format!("not tried again: {obstacle}");
                    self.sink.emit(JobEvent::Warning { guest: Some(guest.name.clone()), text });
                }
            }
        }
        failed
    }

    /// What keeps a guest from being tried again.
    async fn obstacle(
        &self,
        name: &str,
        GuestText { origin, text }: &GuestText,
        answering: &[TargetSpec],
    ) -> Option<String> {
        if answering.is_empty() {
            return Some("no target answers".to_owned());
        }
        if let Some(pin) = self.request.rules.pins.iter().find(|pin| pin.guest == name)
            && !answering.iter().any(|target| target.name == pin.target)
        {
            return Some(format!("{}, to which it is pinned, does not answer", pin.target));
        }
        match SourceGuest::open(&self.ctx, origin, text).await {
            Ok(guest) => guest.refused().or_else(|| self.setting().check_finished(&guest).err()),
            Err(error) => Some(error),
        }
    }

    /// Sessions of their own for the failed guests.
    async fn attempt(
        &self,
        outcome: &MigrateOutcome,
        failed: &[Failed],
        targets: &[TargetSpec],
    ) -> Result<MigrateOutcome, Stop> {
        let mut run = self.clone();
        run.request.guests = failed.iter().map(|guest| self.request.guests[guest.at].clone()).collect();
        run.request.targets = targets.to_vec();
        let moved = outcome.guests.iter().filter(|guest| guest.status.moved());
        let settled =
            moved.filter_map(|guest| Some(Pin { guest: guest.name.clone(), target: guest.target.clone()? }));
        run.settled = settled.collect();
        run.waves().await
    }
}

/// The targets at which none of the guests has failed, and those to which one of them has to go; all, if there are no others.
fn elsewhere(answering: &[TargetSpec], failed: &[Failed], pins: &[Pin]) -> Vec<TargetSpec> {
    let tried: BTreeSet<&str> = failed.iter().filter_map(|guest| guest.target.as_deref()).collect();
    let needed = |name: &str| {
        let mut pins = pins.iter().filter(|pin| pin.target == name);
        pins.any(|pin| failed.iter().any(|guest| guest.name == pin.guest))
    };
    let has_unpinned = failed.iter().any(|guest| !pins.iter().any(|pin| pin.guest == guest.name));
    let fresh = answering.iter().any(|target| !tried.contains(target.name.as_str()));
    let keep = |target: &&TargetSpec| {
        let name = target.name.as_str();
        !tried.contains(name) || needed(name) || (has_unpinned && !fresh)
    };
    answering.iter().filter(keep).cloned().collect()
}

fn merge(outcome: &mut MigrateOutcome, failed: &[Failed], again: MigrateOutcome) {
    for (guest, now) in failed.iter().zip(again.guests) {
        let before = &mut outcome.guests[guest.at];
        *before = GuestOutcome { attempts: before.attempts + 1, ..now };
    }
    outcome.session = again.session;
    outcome.scatter.add(&again.scatter);
}

/// A guest whose attempt ended before anything was done about it.
fn stayed(guest: &mut GuestOutcome, stop: &Stop) {
    guest.attempts += 1;
    match stop {
        Stop::Cancelled => guest.status = GuestStatus::Cancelled,
        Stop::BadInput(error) | Stop::Failed(error) => {
            let before = guest.reason.as_deref().unwrap_or("no reason was given");
            guest.reason = Some(format!("{before}; tried again: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::outcome::ScatterOutcome;
    use crate::report::outcome::tests::guest;

    fn targets(names: &[&str]) -> Vec<TargetSpec> {
        let spec = |name: &&str| TargetSpec { name: (*name).to_owned(), addr: "10.0.0.1:1".parse().unwrap() };
        names.iter().map(spec).collect()
    }

    fn failed(at: usize, name: &str, target: &str) -> Failed {
        Failed { at, name: name.to_owned(), target: Some(target.to_owned()) }
    }

    fn names(answering: &[&str], failed: &[Failed], pins: &[Pin]) -> Vec<String> {
        elsewhere(&targets(answering), failed, pins).into_iter().map(|target| target.name).collect()
    }

    #[test]
    fn it_goes_elsewhere_if_that_is_allowed_and_there_is_an_elsewhere() {
        let pin = [Pin { guest: "vm1".to_owned(), target: "t1".to_owned() }];
        assert_eq!(names(&["t1", "t2", "t3"], &[failed(0, "vm1", "t1")], &[]), ["t2", "t3"]);
        assert_eq!(names(&["t1"], &[failed(0, "vm1", "t1")], &[]), ["t1"]);
        assert_eq!(names(&["t1", "t2"], &[failed(0, "vm1", "t1")], &pin), ["t1", "t2"]);
        // All of them have failed somewhere: anywhere will do.
        let two = [failed(0, "vm1", "t1"), failed(1, "vm2", "t2")];
        assert_eq!(names(&["t1", "t2"], &two, &[]), ["t1", "t2"]);
    }

    #[test]
    fn what_came_of_it_stands_in_the_place_of_what_was_before() {
        let guests = ["vm1", "vm2", "vm3"].map(|name| {
            let status = if name == "vm2" { GuestStatus::Failed } else { GuestStatus::Running };
            guest(name, status)
        });
        let outcome = |guests| MigrateOutcome::of_guests("s".into(), 1.0, guests, ScatterOutcome::default());
        let mut before = outcome(guests.to_vec());
        let again = outcome(vec![guest("vm2", GuestStatus::Running)]);
        merge(&mut before, &[failed(1, "vm2", "t1")], again);
        assert_eq!(before.guests.iter().map(|guest| guest.attempts).collect::<Vec<_>>(), [1, 2, 1]);
        assert!(before.guests.iter().all(|guest| guest.status == GuestStatus::Running));
        let mut one = guest("vm2", GuestStatus::Failed);
        stayed(&mut one, &Stop::Failed("no threads".into()));
        assert_eq!(one.reason.as_deref(), Some("because; tried again: no threads"));
        stayed(&mut one, &Stop::Cancelled);
        assert_eq!((one.status, one.attempts), (GuestStatus::Cancelled, 3));
    }
}
