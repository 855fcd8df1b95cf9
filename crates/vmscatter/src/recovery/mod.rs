//! Guests that no session brought to their ends: after a crash, a lost connection, a stop of the agent.
//!
//! Core's [`recovery`](vmscatter_core::session::recovery) says what to do; here it is done. Every guest in the journal that no
//! session owns is looked after: at the agent's start, when a session ends, and from then on again and again, less
//! and less often, until its end is found. Nothing is remembered besides the journal.
//!
//! - `source`, `target`: look at QEMU, and act
//! - `exchange`: ask the other side, and answer it
//! - `operator`: `vmscatter recover`
//!
//! A guest's lock is held while it is looked at and acted upon, never while the other side is asked: so two agents
//! that ask each other about the same guest do not wait for each other.

pub mod exchange;
pub mod operator;
mod source;
mod target;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use vmscatter_core::journal::{Step, VmKey, VmRecord};
use vmscatter_core::session::recovery::{Heard, Note, Word};

use crate::agent::AgentContext;
use crate::agent::guest_file::format_uuid;
use crate::agent::input::one_line;
use crate::agent::protocol::UnfinishedStatus;
use exchange::Conversation;

/// Guests that are looked after at once.
const AT_ONCE: usize = 8;
/// Questions to the other side in one go: a way has five steps.
const ROUNDS_MAX: usize = 16;
/// Things done for a guest between two questions.
const ACTS_MAX: usize = 32;
/// The first pause after an attempt that has not brought an end; doubled with each.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What recovery knows besides the journal: who is at work, and what stood in the way last. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Guests that a session owns.
    live: Mutex<HashSet<VmKey>>,
    standing: Mutex<HashMap<VmKey, Standing>>,
    locks: Mutex<HashMap<VmKey, Arc<Locks>>>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Locks {
    /// Held while a guest is looked at and acted upon.
    acting: tokio::sync::Mutex<()>,
    /// Held by whoever brings a guest to its end, the other side's answers included.
    settling: tokio::sync::Mutex<()>,
}

/// Why a guest has no end yet.
#[derive(Clone, Debug)]
struct Standing {
    note: Option<Note>,
    text: String,
    attempts: u32,
    due: Instant,
}

/// A session's hold on a guest; recovery begins when it is dropped.
#[derive(Debug)]
pub struct Live {
    shared: Arc<Shared>,
    key: VmKey,
}

impl Drop for Live {
    fn drop(&mut self) {
        lock(&self.shared.live).remove(&self.key);
        self.shared.wake.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Recovery {
    /// Takes hold of a guest for a session.
    pub fn hold(&self, key: VmKey) -> Live {
        lock(&self.shared.live).insert(key);
        Live { shared: self.shared.clone(), key }
    }

    fn is_live(&self, key: &VmKey) -> bool {
        lock(&self.shared.live).contains(key)
    }

    fn locks(&self, key: VmKey) -> Arc<Locks> {
        lock(&self.shared.locks).entry(key).or_default().clone()
    }

    fn forget(&self, key: &VmKey) {
        lock(&self.shared.standing).remove(key);
        lock(&self.shared.locks).remove(key);
    }

    /// Notes what stands in the way, and when to try again.
    fn stands(&self, key: VmKey, note: Option<Note>, text: String) {
        let mut standing = lock(&self.shared.standing);
        let attempts = standing.get(&key).map_or(0, |before| before.attempts.saturating_add(1));
        let pause = PAUSE.saturating_mul(1 << attempts.min(10)).min(PAUSE_MAX);
        standing.insert(key, Standing { note, text, attempts, due: Instant::now() + pause });
    }

    /// When a guest is to be looked at, given that it is `now`: at once if it never was.
    fn due(&self, key: &VmKey, now: Instant) -> Instant {
        lock(&self.shared.standing).get(key).map_or(now, |standing| standing.due)
    }

    /// What `vmscatter status` shows of guests that no session owns.
    pub fn status(&self, vms: Vec<VmRecord>) -> Vec<UnfinishedStatus> {
        let standing = lock(&self.shared.standing);
        let unfinished = vms.into_iter().filter(|vm| !self.is_live(&vm.key));
        let status = |vm: VmRecord| {
            let stands = standing.get(&vm.key);
            UnfinishedStatus {
                guest: vm.facts.name.clone(),
                uuid: format_uuid(&vm.key.vm),
                session: format_uuid(&vm.key.session),
                at_source: matches!(vm.step, Step::Source(_)),
                peer: vm.facts.peer.name.clone(),
                peer_addr: vm.facts.peer.addr,
                step: vm.step.name().to_owned(),
                since_unix_ms: vm.unix_ms[1],
                note: stands.map_or_else(|| "is being looked at".to_owned(), |stands| stands.text.clone()),
                needs_operator: stands.and_then(|stands| stands.note).is_some_and(Note::is_question),
            }
        };
        unfinished.map(status).collect()
    }
}

/// Looks after all guests of the journal that no session owns, until the agent stops.
pub async fn run(ctx: Arc<AgentContext>) {
    target::count_memory(&ctx);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut work = JoinSet::new();
    let mut under_way = HashSet::new();
    loop {
        let now = Instant::now();
        let waiting: Vec<VmKey> =
            ctx.journal.vms().iter().map(|vm| vm.key).filter(|key| !ctx.recovery.is_live(key)).collect();
        for key in waiting.iter().filter(|key| ctx.recovery.due(key, now) <= now) {
            if under_way.insert(*key) {
                let (ctx, room, key) = (ctx.clone(), room.clone(), *key);
                work.spawn(async move {
                    let _room = room.acquire_owned().await;
                    settle(&ctx, key).await;
                    key
                });
            }
        }
        let idle = waiting.iter().filter(|key| !under_way.contains(*key));
        let next = idle.map(|key| ctx.recovery.due(key, now)).min().unwrap_or(now + PAUSE_MAX);
        tokio::select! {
            () = ctx.recovery.shared.wake.notified() => {}
            Some(done) = work.join_next() => {
                if let Ok(key) = done {
                    under_way.remove(&key);
                }
            }
            () = sleep_until(next) => {}
            () = ctx.shutdown.cancelled() => return,
        }
    }
}

/// What came of an attempt to bring a guest to its end.
#[derive(Debug)]
pub struct Settled {
    /// What was done, a line each.
    pub done: Vec<String>,
    /// What stands in the way; `None`: its end is found, and known on both sides.
    pub note: Option<(Option<Note>, String)>,
}

/// Where a guest has come to.
enum Stand {
    /// The other side has to be asked, and told this.
    Ask(Word),
    Wait(Note),
    /// Nothing is left in the journal, or a session owns it.
    Over,
}

/// Brings a guest to its end, as far as that can be found now.
pub async fn settle(ctx: &Arc<AgentContext>, key: VmKey) -> Settled {
    let locks = ctx.recovery.locks(key);
    let _settling = locks.settling.lock().await;
    let mut done = Vec::new();
    let stands = match ctx.journal.get(&key) {
        Some(record) => attempt(ctx, &record, &mut done).await,
        None => None,
    };
    match &stands {
        None => ctx.recovery.forget(&key),
        Some((note, text)) => ctx.recovery.stands(key, *note, text.clone()),
    }
    Settled { done, note: stands }
}

async fn attempt(
    ctx: &Arc<AgentContext>,
    record: &VmRecord,
    done: &mut Vec<String>,
) -> Option<(Option<Note>, String)> {
    let mut other = Conversation::with(record);
    let mut heard = Heard::Nothing;
    for _ in 0..ROUNDS_MAX {
        heard = match conclude(ctx, record.key, heard, true, done).await {
            Ok(Stand::Over) => return None,
            Ok(Stand::Wait(note)) => return Some((Some(note), other.explain(note))),
            Ok(Stand::Ask(word)) => other.ask(ctx, word).await,
            Err(text) => return Some((None, one_line(&text))),
        };
    }
    Some((None, "the two sides do not come to an end".to_owned()))
}

/// Acts until something has to be asked or waited for. `asking`: what was heard is old once something was done.
async fn conclude(
    ctx: &Arc<AgentContext>,
    key: VmKey,
    mut heard: Heard<Word>,
    asking: bool,
    done: &mut Vec<String>,
) -> Result<Stand, String> {
    let locks = ctx.recovery.locks(key);
    let _acting = locks.acting.lock().await;
    for _ in 0..ACTS_MAX {
        if ctx.recovery.is_live(&key) {
            return Ok(Stand::Over);
        }
        let Some(record) = ctx.journal.get(&key) else { return Ok(Stand::Over) };
        let before = done.len();
        let stand = match record.step {
            Step::Source(step) => source::advance(ctx, &record, step, heard, done).await,
            Step::Target(step) => target::advance(ctx, &record, step, heard, done).await,
        };
        for text in &done[before..] {
            tracing::info!(guest = record.facts.name, peer = record.facts.peer.name, "recovery: {text}");
        }
        if let Some(stand) = stand? {
            return Ok(stand);
        }
        if asking {
            heard = Heard::Nothing;
        }
    }
    Err("no end after many steps".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_was_never_looked_at_is_due_at_once_and_then_later_and_later() {
        let recovery = Recovery::default();
        let key = VmKey { session: [1; 16], vm: [2; 16] };
        let now = Instant::now();
        assert_eq!(recovery.due(&key, now), now);
        recovery.stands(key, None, "unreachable".to_owned());
        let first = recovery.due(&key, now);
        assert!(first > now && first <= Instant::now() + PAUSE);
        (0..40).for_each(|_| recovery.stands(key, None, "unreachable".to_owned()));
        let last = recovery.due(&key, now);
        assert!(last > now + PAUSE_MAX - PAUSE && last <= Instant::now() + PAUSE_MAX);
    }
}
