//! What a job says while it runs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::doctor::DoctorOutcome;
use super::outcome::{GuestOutcome, MigrateOutcome, ScanOutcome};
use super::plan::PlanOutcome;

/// A step of a session, of the whole job or of one guest; the design's steps by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// To the targets' agents.
    Connect,
    /// All guests' memory is read and hashed.
    Collect,
    /// Guests get their targets.
    Place,
    /// Targets start incoming twins.
    Prepare,
    /// Contents are grouped by target set.
    Schedule,
    /// Source QEMUs start to migrate, and are held.
    Open,
    /// Shared contents leave, by multicast.
    Scatter,
    /// QEMU's rounds flow.
    Stream,
    /// The last pages, digests, commit, resume at the target.
    HandOff,
    /// All guests have moved or stayed.
    Report,
}

impl Phase {
    /// The name as it is shown and serialised.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Collect => "collect",
            Phase::Place => "place",
            Phase::Prepare => "prepare",
            Phase::Schedule => "schedule",
            Phase::Open => "open",
            Phase::Scatter => "scatter",
            Phase::Stream => "stream",
            Phase::HandOff => "hand off",
            Phase::Report => "report",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Counters of one guest, or of the whole job; each is the sum since the job began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Progress {
    /// The guest; `None`: the whole job.
    pub guest: Option<String>,
    /// Bytes of guest memory that the phase has to go through.
    pub total_bytes: u64,
    /// Bytes of guest memory that it has gone through.
    pub done_bytes: u64,
    /// Bytes of pages that were withheld, as the target holds them.
    pub withheld_bytes: u64,
    /// Bytes that left for targets by unicast, as sealed.
    pub unicast_bytes: u64,
    /// Bytes that left by multicast, repair included, as sealed.
    pub multicast_bytes: u64,
}

/// One thing that a job says. Guests are called by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// A phase has begun.
    Phase {
        /// The guest; `None`: the whole job.
        guest: Option<String>,
        /// The phase.
        phase: Phase,
    },
    /// Where the counters stand; a newer one replaces an older one of the same guest.
    Progress(Progress),
    /// A guest has moved or stayed.
    Guest(GuestOutcome),
    /// Something that the operator should know and that stopped nothing.
    Warning {
        /// The guest that it concerns, if it is one.
        guest: Option<String>,
        /// One line.
        text: String,
    },
    /// The job has ended; the last event.
    Done {
        /// How.
        outcome: JobOutcome,
    },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// `migrate`.
    Migrate(MigrateOutcome),
    /// `plan`.
    Plan(Box<PlanOutcome>),
    /// `scan`.
    Scan(ScanOutcome),
    /// `doctor`.
    Doctor(DoctorOutcome),
}

impl JobOutcome {
    /// The code with which the command line ends.
    pub fn exit(&self) -> super::outcome::Exit {
        match self {
            JobOutcome::Migrate(outcome) => outcome.exit,
            JobOutcome::Plan(outcome) => outcome.exit,
            JobOutcome::Scan(outcome) => outcome.exit,
            JobOutcome::Doctor(outcome) => outcome.exit,
        }
    }

    /// The error that concerns the whole job, if there is one.
    pub fn error(&self) -> Option<&str> {
        match self {
            JobOutcome::Migrate(outcome) => outcome.error.as_deref(),
            JobOutcome::Plan(outcome) => outcome.error.as_deref(),
            JobOutcome::Scan(outcome) => outcome.error.as_deref(),
            JobOutcome::Doctor(outcome) => outcome.error.as_deref(),
        }
    }
}
