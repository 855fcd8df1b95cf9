//! What an agent keeps on disk about guests on their way: enough to find one end for each of them after any crash.
//!
//! - [`Record`]: one entry; [`Entry`]: what it says
//! - [`Book`]: where every guest stands, once all records have been applied
//! - [`mod@file`]: how records lie in the file, and how a torn end is told apart from damage
//!
//! ```text
//! source:  Prepared ─► Streaming ─► Stopped ─► Released ─► Committed ─► Done
//!             └───────────┴────────────┴──────────┴────────────┴──────► Aborted, or Forced by the operator
//! target:  Prepared ─► Voted ─► Committed ─► Running
//!             └──────────┴─────────┴───────► Aborted;  Voted ─► Forced by the operator
//! ```
//!
//! A step that the other side builds upon is on disk before it is acted on ([`Step::is_durable`]): what is lost of the others
//! is found out again from QEMU.

pub mod file;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::session::sabotage::{Rule, broken};
use crate::wire::control::Uuid;

/// Guests in one book: those of many sessions that have not found their ends.
pub const BOOK_VMS_MAX: usize = 65_536;

/// A guest's way in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmKey {
    /// The session.
    pub session: Uuid,
    /// The VM.
    pub vm: Uuid,
}

/// One entry of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whom it is about.
    pub key: VmKey,
    /// When it was written, in milliseconds since the Unix epoch; for people, never for order.
    pub unix_ms: u64,
    /// What it says.
    pub entry: Entry,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The guest is about to be moved: all that recovery needs to know. The first of its records.
    Begun(Box<Facts>),
    /// At a target: the incoming QEMU is this process.
    Spawned(ProcessId),
    /// A step was taken, or is taken right after this.
    Step(Step),
    /// The guest has found its end, and the other side knows all that it needs of us. The last of its records.
    Closed,
}

/// A process, told apart from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
    /// The boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: Uuid,
}

/// The agent at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, as its certificate has it.
    pub name: String,
    /// Where it listens for control connections.
    pub addr: SocketAddr,
}

/// What does not change while a guest is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The guest's name.
    pub name: String,
    /// The agent at the other end.
    pub peer: Peer,
    /// The monitor (QMP) of its QEMU on this side.
    pub monitor: PathBuf,
    /// The guest was paused, and stays so wherever it ends.
    pub paused: bool,
    /// What only one side has.
    pub side: Side,
}

/// What only one side has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// This host is the one that the guest leaves.
    Source {
        /// Its QEMU, where it is known.
        process: Option<ProcessId>,
        /// Migration parameters as they were, those that are changed.
        parameters: Vec<(String, u64)>,
        /// Migration capabilities as they were.
        capabilities: Vec<(String, bool)>,
    },
    /// This host is the one that takes it in.
    Target {
        /// The incoming QEMU's program.
        program: PathBuf,
        /// The guest's RAM, in bytes.
        memory_bytes: u64,
        /// [`Book::id`] of the source's journal: only that one may say that it knows nothing of the guest.
        source_journal: Uuid,
    },
}

/// How far a guest has come, as its source knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SourceStep {
    /// Its QEMU is about to be told to migrate.
    Prepared,
    /// Its stream flows.
    Streaming,
    /// RAM has ended: from here on the target may vote.
    Stopped,
    /// SHUT(0) is about to be released: the guest may run here again only by the target's word, or if QEMU itself resumed it.
    Released,
    /// The one decision: the guest is the target's, unless that one has given it up.
    Committed,
    /// The guest stays here.
    Aborted,
    /// The operator has taken it back, and vouched that it does not run at the target.
    Forced,
    /// It runs at its target, and the QEMU here is gone.
    Done,
}

/// How far a guest has come, as its target knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TargetStep {
    /// Its incoming QEMU is about to be started.
    Prepared,
    /// Loaded, and the digests agree: it can run here if the source says so.
    Voted,
    /// The source has said so: `cont` is due, or was given.
    Committed,
    /// It runs here, or stands here paused as it was.
    Running,
    /// It was given up, and never has run or will run here: its QEMU is gone, or about to be ended.
    Aborted,
    /// The operator has decided for this copy, and vouched that the guest does not run at the source.
    Forced,
}

/// A step of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Of a source.
    Source(SourceStep),
    /// Of a target.
    Target(TargetStep),
}

impl Step {
    /// Whether it must be on disk before anything is done that follows from it.
    pub fn is_durable(self) -> bool {
        match self {
            Step::Source(SourceStep::Released) => !broken(Rule::ReleaseUnsynced),
            Step::Target(TargetStep::Voted) => !broken(Rule::VoteUnsynced),
            Step::Target(TargetStep::Committed) => !broken(Rule::CommitUnsynced),
            Step::Source(step) => step >= SourceStep::Committed,
            Step::Target(step) => step >= TargetStep::Running,
        }
    }

    /// The name as it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Step::Source(SourceStep::Prepared) | Step::Target(TargetStep::Prepared) => "prepared",
            Step::Source(SourceStep::Streaming) => "streaming",
            Step::Source(SourceStep::Stopped) => "stopped",
            Step::Source(SourceStep::Released) => "released",
            Step::Source(SourceStep::Committed) | Step::Target(TargetStep::Committed) => "committed",
            Step::Source(SourceStep::Aborted) | Step::Target(TargetStep::Aborted) => "aborted",
            Step::Source(SourceStep::Forced) | Step::Target(TargetStep::Forced) => "forced",
            Step::Source(SourceStep::Done) => "done",
            Step::Target(TargetStep::Voted) => "voted",
            Step::Target(TargetStep::Running) => "running",
        }
    }
}

/// Where a guest stands, by this side's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRecord {
    /// Whom it is about.
    pub key: VmKey,
    /// What does not change.
    pub facts: Facts,
    /// Its QEMU on this side, where it is known.
    pub process: Option<ProcessId>,
    /// The last step.
    pub step: Step,
    /// When the guest was begun, and when the last step was taken, in milliseconds since the Unix epoch.
    pub unix_ms: [u64; 2],
}

impl VmRecord {
    /// The records that lead to this state again.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let record = |unix_ms, entry| Record { key: self.key, unix_ms, entry };
        let [begun, stepped] = self.unix_ms;
        let spawned = match self.facts.side {
            Side::Target { .. } => self.process.map(Entry::Spawned),
            Side::Source { .. } => None,
        };
        let first = record(begun, Entry::Begun(Box::new(self.facts.clone())));
        let step = record(stepped, Entry::Step(self.step));
        std::iter::once(first).chain(spawned.map(|entry| record(begun, entry))).chain(std::iter::once(step))
    }
}

/// Why a record can't follow those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A guest that was never begun, or is closed.
    #[error("a record of a guest that was not begun")]
    Unknown,
    /// Begun twice.
    #[error("a guest begun twice")]
    Twice,
    /// A step of the other side.
    #[error("a source's step at a target, or the reverse")]
    Side,
    /// [`BOOK_VMS_MAX`].
    #[error("more than {BOOK_VMS_MAX} guests")]
    TooMany,
}

/// Where every guest stands that has not found its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Drawn when the journal was made: another journal of the same host has another.
    pub id: Uuid,
    vms: BTreeMap<VmKey, VmRecord>,
}

impl Book {
    /// An empty one.
    pub fn new(id: Uuid) -> Book {
        Book { id, vms: BTreeMap::new() }
    }

    /// Whether the record can follow; nothing is changed.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, record: &Record) -> Result<(), RecordError> {
        let known = self.vms.get(&record.key);
        match (&record.entry, known) {
            (Entry::Begun(_), Some(_)) => Err(RecordError::Twice),
            (Entry::Begun(_), None) if self.vms.len() >= BOOK_VMS_MAX => Err(RecordError::TooMany),
            (Entry::Begun(_), None) => Ok(()),
            (_, None) => Err(RecordError::Unknown),
            (Entry::Closed, Some(_)) => Ok(()),
            (Entry::Spawned(_) | Entry::Step(Step::Target(_)), Some(vm)) => vm.check_side(false),
            (Entry::Step(Step::Source(_)), Some(vm)) => vm.check_side(true),
        }
    }

    /// Applies a record.
    ///
    /// # Errors
    /// As [`Book::check`].
    pub fn apply(&mut self, record: &Record) -> Result<(), RecordError> {
        self.check(record)?;
        if let Entry::Begun(facts) = &record.entry {
            self.vms.insert(record.key, VmRecord::begun(record, facts));
            return Ok(());
        }
        if record.entry == Entry::Closed {
            self.vms.remove(&record.key);
            return Ok(());
        }
        let Some(vm) = self.vms.get_mut(&record.key) else { return Err(RecordError::Unknown) };
        match &record.entry {
            Entry::Spawned(process) => vm.process = Some(*process),
            Entry::Step(step) => (vm.step, vm.unix_ms[1]) = (*step, record.unix_ms),
            Entry::Begun(_) | Entry::Closed => {}
        }
        Ok(())
    }

    /// Where a guest stands.
    pub fn get(&self, key: &VmKey) -> Option<&VmRecord> {
        self.vms.get(key)
    }

    /// All guests that have not found their ends.
    pub fn vms(&self) -> impl Iterator<Item = &VmRecord> {
        self.vms.values()
    }
}

impl VmRecord {
    fn begun(record: &Record, facts: &Facts) -> VmRecord {
        let (process, step) = match facts.side {
            Side::Source { process, .. } => (process, Step::Source(SourceStep::Prepared)),
            Side::Target { .. } => (None, Step::Target(TargetStep::Prepared)),
        };
        let unix_ms = [record.unix_ms; 2];
        VmRecord { key: record.key, facts: facts.clone(), process, step, unix_ms }
    }

    fn check_side(&self, source: bool) -> Result<(), RecordError> {
        let is_source = matches!(self.facts.side, Side::Source { .. });
        if is_source == source { Ok(()) } else { Err(RecordError::Side) }
    }
}

#[cfg(test)]
mod tests;
