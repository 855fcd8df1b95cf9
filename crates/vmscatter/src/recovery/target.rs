//! A guest at the host that was to take it in.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use vmscatter_core::journal::{ProcessId, Side, Step, TargetStep, VmRecord};
use vmscatter_core::session::recovery::{
    Heard, Note, SourceWord, TargetNext, TargetQemu, Word, target, target_word,
};

use super::Stand;
use crate::agent::AgentContext;
use crate::qemu::process;
use crate::qemu::qmp::{Qmp, QmpEvent};
use crate::target::incoming::{Resumed, monitor_argument, remove_files, resume};

/// A monitor that does not answer within this time is taken for one that does not.
const MONITOR_DEADLINE: Duration = Duration::from_secs(5);
/// RESUME follows `cont` within this time, or recovery comes back to it.
const RESUME_DEADLINE: Duration = Duration::from_secs(10);
/// A process that was killed is gone by then, unless the kernel holds it.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether a guest that counts for this host's memory has ended.
const MEMORY_LOOK: Duration = Duration::from_secs(5);

/// A guest's QEMU as it was found.
pub(super) struct Found {
    pub(super) qemu: TargetQemu,
    process: Option<ProcessId>,
    monitor: Option<(Qmp, mpsc::Receiver<QmpEvent>)>,
}

/// Does the next thing; `None`: something was done, so look again.
pub(super) async fn advance(
    ctx: &Arc<AgentContext>,
    record: &VmRecord,
    step: TargetStep,
    heard: Heard<Word>,
    done: &mut Vec<String>,
) -> Result<Option<Stand>, String> {
    let Side::Target { source_journal, .. } = &record.facts.side else {
        return Err("a target's step in a source's record".to_owned());
    };
    let mut found = look(record).await;
    let next = target(step, found.qemu, at_target(heard), source_journal);
    let peer = &record.facts.peer.name;
    let journal = |step| {
        ctx.journal.step(record.key, Step::Target(step)).map(drop).map_err(|e| format!("journal: {e}"))
    };
    // Until then it may have to be stopped.
    let close = || {
        remove_files(&record.facts.monitor);
        ctx.journal.close(record.key).map_err(|e| format!("journal: {e}"))
    };
    match next {
        TargetNext::Ask => return Ok(Some(Stand::Ask(Word::Target(target_word(step, found.qemu))))),
        TargetNext::Wait(note) => return Ok(Some(Stand::Wait(note))),
        TargetNext::Abort => {
            if step != TargetStep::Aborted {
                journal(TargetStep::Aborted)?;
            }
            end(record, &found).await?;
            done.push(format!("stays at {peer}; its copy here has ended"));
        }
        TargetNext::Commit => {
            journal(TargetStep::Committed)?;
            done.push(format!("{peer} has decided: it is this host's"));
        }
        TargetNext::Cont => {
            let resumed = match (&mut found.monitor, record.facts.paused) {
                (_, true) => Resumed::At(0),
                (Some((qmp, events)), false) => resume(qmp, events, RESUME_DEADLINE).await,
                (None, false) => return Ok(Some(Stand::Wait(Note::Monitor))),
            };
            match resumed {
                Resumed::At(_) => {
                    // A paused guest looks the same before and after: the journal tells.
                    if step != TargetStep::Forced || record.facts.paused {
                        journal(TargetStep::Running)?;
                    }
                    done.push("runs here".to_owned());
                }
                Resumed::Never(reason) => {
                    journal(TargetStep::Aborted)?;
                    done.push(format!("can't run here, and has not: {reason}"));
                }
                Resumed::Unknown(reason) => return Err(reason),
            }
        }
        TargetNext::Ran => {
            journal(TargetStep::Running)?;
            done.push("runs here".to_owned());
        }
        TargetNext::Yield => {
            if let Some((qmp, _)) = &found.monitor {
                qmp.stop().await.map_err(|e| e.to_string())?;
            }
            close()?;
            let text = format!(
                "the operator has decided for {peer} while it ran here too: the copy here was stopped and is left for inspection"
            );
            tracing::error!(guest = record.facts.name, "{text}");
            done.push(text);
        }
        TargetNext::Discard => {
            end(record, &found).await?;
            close()?;
            done.push(format!("never came here whole and stays at {peer}; its copy here has ended"));
        }
        TargetNext::Close => close()?,
    }
    Ok(None)
}

fn at_target(heard: Heard<Word>) -> Heard<SourceWord> {
    match heard {
        Heard::Word(Word::Source(word)) => Heard::Word(word),
        // Who speaks as a target to a target is none of ours.
        Heard::Unreachable | Heard::Word(Word::Target(_)) => Heard::Unreachable,
        Heard::Nothing => Heard::Nothing,
    }
}

/// Finds out what has become of the guest's QEMU. Its process is known by what the journal says of it, or, where
/// the agent ended before it could write that down, by its monitor's argument, which no other process has.
pub(super) async fn look(record: &VmRecord) -> Found {
    let argument = monitor_argument(&record.facts.monitor);
    let known = record.process.filter(process::is_alive);
    let process = match record.process {
        Some(_) => known,
        None => tokio::task::spawn_blocking(move || process::with_argument(&argument)).await.unwrap_or(None),
    };
    if process.is_none() {
        return Found { qemu: TargetQemu::Gone, process, monitor: None };
    }
    let Ok((qmp, events)) = Qmp::connect(&record.facts.monitor, MONITOR_DEADLINE).await else {
        let gone = process.is_some_and(|process| !process::is_alive(&process));
        let qemu = if gone { TargetQemu::Gone } else { TargetQemu::Unknown };
        return Found { qemu, process, monitor: None };
    };
    let qemu = match qmp.query_status().await {
        Ok(state) if state.running => TargetQemu::Running,
        Ok(state) => match state.status.as_str() {
            "inmigrate" => TargetQemu::Loading,
            "paused" | "prelaunch" => TargetQemu::Paused,
            // Shut down, panicked, out of disk space: it has run.
            _ => TargetQemu::Running,
        },
        Err(_) => TargetQemu::Unknown,
    };
    Found { qemu, process, monitor: Some((qmp, events)) }
}

/// Ends the guest's QEMU here, and takes its files away.
async fn end(record: &VmRecord, found: &Found) -> Result<(), String> {
    if let Some(process) = found.process {
        let argument = monitor_argument(&record.facts.monitor);
        let ended =
            tokio::task::spawn_blocking(move || process::end(&process, &argument, KILL_DEADLINE)).await;
        if !ended.unwrap_or(false) {
            return Err(format!("its QEMU here (process {}) can't be ended", process.pid));
        }
    }
    remove_files(&record.facts.monitor);
    Ok(())
}

/// Sets memory aside for guests that an earlier run of the agent took in and that are still here, where the host's
/// capacity was configured; else Linux counts what they use.
pub(super) fn count_memory(ctx: &Arc<AgentContext>) {
    if ctx.config.memory.capacity_bytes.is_none() {
        return;
    }
    for record in ctx.journal.vms() {
        let (Side::Target { memory_bytes, .. }, Some(process)) = (&record.facts.side, record.process) else {
            continue;
        };
        if !process::is_alive(&process) {
            continue;
        }
        match ctx.memory.take(*memory_bytes) {
            Ok(share) => drop(tokio::spawn(async move {
                while process::is_alive(&process) {
                    sleep(MEMORY_LOOK).await;
                }
                drop(share);
            })),
            Err(_) => tracing::warn!(guest = record.facts.name, "takes more memory than this host may give"),
        }
    }
}
