//! `vmscatter recover`: what is unfinished is tried at once, and the operator may decide what the two sides can't.

use std::sync::Arc;

use vmscatter_core::journal::{SourceStep, Step, VmRecord};
use vmscatter_core::session::recovery::{Forced, Note, force_at_source, force_at_target};

use super::{Settled, settle, source, target};
use crate::agent::AgentContext;
use crate::agent::protocol::{ForceSide, RecoverRequest, RecoveredVm};

/// Carries the request out.
///
/// # Errors
/// One line: there is no such guest, or several, or the operator's word is not to be taken.
pub async fn recover(ctx: &Arc<AgentContext>, request: &RecoverRequest) -> Result<Vec<RecoveredVm>, String> {
    let all = ctx.journal.vms();
    let wanted: Vec<VmRecord> = match &request.guest {
        Some(name) => all.into_iter().filter(|vm| vm.facts.name == *name).collect(),
        None => all,
    };
    if let Some(name) = request.guest.as_ref().filter(|_| wanted.is_empty()) {
        return Err(format!("there is nothing unfinished about a guest '{name}' on this host"));
    }
    let mut recovered = Vec::new();
    for vm in wanted {
        recovered.push(recover_one(ctx, &vm, request.force).await?);
    }
    Ok(recovered)
}

async fn recover_one(
    ctx: &Arc<AgentContext>,
    vm: &VmRecord,
    force: Option<ForceSide>,
) -> Result<RecoveredVm, String> {
    let mut settled = settle(ctx, vm.key).await;
    if let (Some(force), Some((note, text))) = (force, settled.note.clone()) {
        let answers = note.is_some_and(|note| note.is_question() || note == Note::Unreachable);
        if !answers {
            return Err(format!("{}: not forced, as there is nothing to decide: {text}", vm.facts.name));
        }
        settled.done.push(impose(ctx, vm, force).await?);
        let Settled { done, note } = settle(ctx, vm.key).await;
        settled.done.extend(done);
        settled.note = note;
    }
    let live = ctx.recovery.is_live(&vm.key);
    let (note, text) = settled.note.map_or((None, None), |(note, text)| (note, Some(text)));
    Ok(RecoveredVm {
        guest: vm.facts.name.clone(),
        peer: vm.facts.peer.name.clone(),
        done: settled.done,
        missing: if live { Some("a session is at work on it".to_owned()) } else { text },
        harmless: note.is_some_and(Note::is_harmless),
    })
}

/// Puts the operator's word into the journal, from where recovery goes on.
async fn impose(ctx: &Arc<AgentContext>, vm: &VmRecord, force: ForceSide) -> Result<String, String> {
    let locks = ctx.recovery.locks(vm.key);
    let _acting = locks.acting.lock().await;
    let name = &vm.facts.name;
    let record = ctx.journal.get(&vm.key).ok_or_else(|| format!("{name}: its end has been found"))?;
    let forced = match force {
        ForceSide::Source => Forced::Source,
        ForceSide::Target => Forced::Target,
    };
    let refused = |error| format!("{name}: not forced: {error}");
    let step = match record.step {
        Step::Source(step) => {
            let found = source::look(&record).await;
            let step = force_at_source(step, found.qemu, forced).map_err(refused)?;
            match step {
                SourceStep::Done => source::end_qemu(&record, &found).await?,
                SourceStep::Forced => source::restore(&record, &found).await,
                _ => {}
            }
            Step::Source(step)
        }
        Step::Target(step) => {
            let found = target::look(&record).await;
            Step::Target(force_at_target(step, found.qemu, forced).map_err(refused)?)
        }
    };
    ctx.journal.step(record.key, step).map_err(|e| format!("{name}: journal: {e}"))?;
    let whose = match force {
        ForceSide::Source => "the source",
        ForceSide::Target => "the target",
    };
    tracing::warn!(guest = name, "the operator has decided for {whose}");
    Ok(format!("the operator has decided for {whose}"))
}
