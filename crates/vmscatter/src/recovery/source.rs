//! A guest at the host that it was to leave.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};
use vmscatter_core::journal::{ProcessId, Side, SourceStep, Step, VmRecord};
use vmscatter_core::session::recovery::{
    Heard, SourceNext, SourceQemu, TargetWord, Word, source, source_word,
};

use super::Stand;
use crate::agent::AgentContext;
use crate::agent::guest_file::parse_uuid;
use crate::qemu::monitor::MigrationStatus;
use crate::qemu::process;
use crate::qemu::qmp::{Qmp, QmpError, QmpErrorKind};

/// A monitor that does not answer within this time is taken for one that does not.
const MONITOR_DEADLINE: Duration = Duration::from_secs(5);
/// A QEMU whose migration socket was closed has failed or completed its migration within this time.
const BUSY_MAX: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
/// A QEMU that was told to quit has ended by then, or is killed.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// Capabilities can't be set while a migration is being torn down.
const RESTORE_ATTEMPTS: usize = 50;

/// A guest's QEMU as it was found.
pub(super) struct Found {
    pub(super) qemu: SourceQemu,
    monitor: Option<Qmp>,
}

/// Does the next thing; `None`: something was done, so look again.
pub(super) async fn advance(
    ctx: &Arc<AgentContext>,
    record: &VmRecord,
    step: SourceStep,
    heard: Heard<Word>,
    done: &mut Vec<String>,
) -> Result<Option<Stand>, String> {
    let found = look(record).await;
    let next = source(step, record.facts.paused, found.qemu, at_source(heard));
    let peer = &record.facts.peer.name;
    let journal = |step| {
        ctx.journal.step(record.key, Step::Source(step)).map(drop).map_err(|e| format!("journal: {e}"))
    };
    match next {
        SourceNext::Ask => return Ok(Some(Stand::Ask(Word::Source(source_word(step, found.qemu))))),
        SourceNext::Wait(note) => return Ok(Some(Stand::Wait(note))),
        SourceNext::Cancel => {
            let qmp = found.monitor()?;
            qmp.migrate_cancel().await.map_err(|e| e.to_string())?;
            sleep(LOOK).await;
        }
        SourceNext::Stay { cont } => {
            restore(record, &found).await;
            if cont {
                found.monitor()?.cont().await.map_err(|e| e.to_string())?;
            }
            if step != SourceStep::Forced {
                journal(SourceStep::Aborted)?;
            }
            done.push(stays(found.qemu, cont).to_owned());
        }
        SourceNext::Commit => {
            journal(SourceStep::Committed)?;
            done.push(format!("{peer} has all of it: it is {peer}'s"));
        }
        SourceNext::Leave => {
            end_qemu(record, &found).await?;
            journal(SourceStep::Done)?;
            done.push(format!("runs at {peer}; its QEMU here has ended"));
        }
        SourceNext::Yield => {
            found.monitor()?.stop().await.map_err(|e| e.to_string())?;
            journal(SourceStep::Done)?;
            let text = format!(
                "the operator has decided for {peer} while it ran here too: the copy here was stopped and is left for inspection"
            );
            tracing::error!(guest = record.facts.name, "{text}");
            done.push(text);
        }
        SourceNext::Close => ctx.journal.close(record.key).map_err(|e| format!("journal: {e}"))?,
    }
    Ok(None)
}

fn stays(qemu: SourceQemu, cont: bool) -> &'static str {
    match (qemu, cont) {
        (SourceQemu::Gone, _) => "its QEMU here is gone, and nothing of it is left at the target",
        (_, true) => "goes on here: it was let run again",
        (_, false) => "goes on here",
    }
}

impl Found {
    fn monitor(&self) -> Result<&Qmp, String> {
        self.monitor.as_ref().ok_or_else(|| "its monitor does not answer".to_owned())
    }
}

fn at_source(heard: Heard<Word>) -> Heard<TargetWord> {
    match heard {
        Heard::Word(Word::Target(word)) => Heard::Word(word),
        // Who speaks as a source to a source is none of ours.
        Heard::Unreachable | Heard::Word(Word::Source(_)) => Heard::Unreachable,
        Heard::Nothing => Heard::Nothing,
    }
}

/// Finds out what has become of the guest's QEMU. One that is about to end its migration is given a moment.
pub(super) async fn look(record: &VmRecord) -> Found {
    let until = Instant::now() + BUSY_MAX;
    loop {
        let found = look_once(record).await;
        if found.qemu != SourceQemu::Busy || Instant::now() > until {
            return found;
        }
        drop(found);
        sleep(LOOK).await;
    }
}

async fn look_once(record: &VmRecord) -> Found {
    let ended = |process: &ProcessId| !process::is_alive(process);
    match Qmp::connect(&record.facts.monitor, MONITOR_DEADLINE).await {
        Ok((qmp, _events)) => {
            if record.process.as_ref().is_some_and(ended) {
                return Found { qemu: SourceQemu::Replaced, monitor: None };
            }
            let qemu = state(&qmp, record).await.unwrap_or(SourceQemu::Unknown);
            Found { qemu, monitor: Some(qmp) }
        }
        Err(error) => {
            let qemu = match &record.process {
                Some(process) if ended(process) => SourceQemu::Gone,
                Some(_) => SourceQemu::Unknown,
                None if nobody_listens(&error) => SourceQemu::Gone,
                None => SourceQemu::Unknown,
            };
            Found { qemu, monitor: None }
        }
    }
}

fn nobody_listens(error: &QmpError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(&error.kind, QmpErrorKind::Socket(error) if matches!(error.kind(), ConnectionRefused | NotFound))
}

async fn state(qmp: &Qmp, record: &VmRecord) -> Result<SourceQemu, QmpError> {
    // A guest without a UUID of its own was given one by the session.
    let uuid = parse_uuid(&qmp.query_uuid().await?).filter(|uuid| uuid != &[0; 16]);
    if record.process.is_none() && uuid.is_some_and(|uuid| uuid != record.key.vm) {
        return Ok(SourceQemu::Replaced);
    }
    let migration = qmp.query_migrate().await?.status;
    let status = qmp.query_status().await?.status;
    Ok(match migration {
        migration if migration.is_under_way() => SourceQemu::Busy,
        MigrationStatus::Completed if status == "postmigrate" => SourceQemu::Completed,
        _ => SourceQemu::Own,
    })
}

/// Puts migration parameters and capabilities back as the journal has them.
pub(super) async fn restore(record: &VmRecord, found: &Found) {
    let (Side::Source { parameters, capabilities, .. }, Some(qmp)) = (&record.facts.side, &found.monitor)
    else {
        return;
    };
    let parameters: Map<String, Value> =
        parameters.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect();
    let states: Vec<(&str, bool)> =
        capabilities.iter().map(|(name, state)| (name.as_str(), *state)).collect();
    for attempt in 1..=RESTORE_ATTEMPTS {
        let result = match qmp.set_parameters(parameters.clone()).await {
            Ok(()) => qmp.set_capabilities(&states).await,
            error => error,
        };
        match result {
            Ok(()) => return,
            Err(error) if attempt == RESTORE_ATTEMPTS || qmp.is_closed() => {
                tracing::warn!(guest = record.facts.name, "migration parameters can't be put back: {error}");
                return;
            }
            Err(_) => sleep(LOOK * 2).await,
        }
    }
}

/// Ends the guest's QEMU here: it runs at its target.
pub(super) async fn end_qemu(record: &VmRecord, found: &Found) -> Result<(), String> {
    let Some(qmp) = &found.monitor else { return Ok(()) };
    let told = qmp.quit().await;
    let Some(process) = record.process else { return told.map_err(|e| e.to_string()) };
    let until = Instant::now() + QUIT_DEADLINE;
    while process::is_alive(&process) {
        if Instant::now() > until {
            return Err(format!("its QEMU here (process {}) does not end", process.pid));
        }
        sleep(LOOK).await;
    }
    Ok(())
}
