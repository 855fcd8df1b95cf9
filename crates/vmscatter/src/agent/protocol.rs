//! What the command line and the agent say to each other over the local socket: one line of JSON as request, lines
//! of JSON as replies, the last of them `done` or `refused`. Behind a reply `file` follow the bytes of one.
//!
//! Files are read and written by the command line, so that the agent opens no path because somebody asked it to.
//! A request is checked on both sides by the same [`MigrateRequest::check`].

mod convergence;
mod doctor;
mod placement;
mod recovery;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use vmscatter_core::limits::{GROUPS_MAX, SESSION_TARGETS_MAX, SESSION_VMS_MAX};

pub use convergence::ConvergenceRequest;
pub use doctor::DoctorRequest;
pub use placement::{Pin, PlacementRules};
pub use recovery::{ForceSide, RecoverRequest, RecoveredVm, UnfinishedStatus};

use super::config;
use super::guest_file::GuestFile;
use super::input::{BadInput, is_host_name, one_line};
use crate::report::event::JobEvent;
use crate::report::outcome::Exit;

/// One request, as a line: all guest files of a session fit.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// One reply, as a line; the longest is the outcome of a session of the most guests.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Multicast groups of a session unless `--groups` says otherwise: what switches with small tables can bear.
pub const GROUPS_DEFAULT: usize = 16;
/// Most `--retry`.
pub const RETRIES_MAX: u32 = 100;
/// Level that `--compress zstd` stands for.
pub const ZSTD_LEVEL_DEFAULT: i32 = 1;

/// How frames are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// With zstd on several threads.
    Zstd {
        /// zstd's level, -7 to 19.
        level: i32,
    },
}

/// How contents that several targets need reach them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// By multicast where it reaches them; the others pass them on to each other.
    #[default]
    Auto,
    /// By multicast, and over TCP from the source to each target that it does not reach.
    Multicast,
    /// Over TCP, once from the source, and on from target to target.
    Relay,
}

/// A target host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// Its name, which its certificate must have.
    pub name: String,
    /// Where its agent listens.
    pub addr: SocketAddr,
}

/// A guest file, or a topology file, as the command line has read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestText {
    /// What errors call it: its path.
    pub origin: String,
    /// Its content.
    pub text: String,
}

/// What `vmscatter migrate` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The guests that leave.
    pub guests: Vec<GuestText>,
    /// The hosts that take them in.
    pub targets: Vec<TargetSpec>,
    /// Which guests may go where.
    #[serde(default)]
    pub rules: PlacementRules,
    /// The network between this host and the targets, as a topology file; `None`: one switch.
    #[serde(default)]
    pub topology: Option<GuestText>,
    /// How frames are compressed.
    #[serde(default)]
    pub compress: Compression,
    /// Bits per second that may leave this host for all targets together.
    pub bandwidth_bits: Option<u64>,
    /// Guests that may be open at once.
    pub parallel: Option<usize>,
    /// How often guests that have failed are tried again, up to [`RETRIES_MAX`].
    #[serde(default)]
    pub retries: u32,
    /// What is done about guests that dirty faster than their streams carry.
    #[serde(default)]
    pub convergence: ConvergenceRequest,
    /// How contents that several targets need reach them.
    #[serde(default)]
    pub transport: Transport,
    /// The interface by which multicast leaves, instead of the agent's own choice.
    #[serde(default)]
    pub interface: Option<String>,
    /// Multicast groups that target sets share, [`GROUPS_DEFAULT`] unless given.
    #[serde(default)]
    pub groups: Option<usize>,
    /// For comparisons: the groups serve the sets in the order in which they come.
    #[serde(default)]
    pub unsorted_groups: bool,
    /// Percent of this host's processors that collecting may take.
    #[serde(default = "all_percent")]
    pub collect_cpu_percent: u8,
}

/// What `vmscatter plan` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The guests that would leave.
    pub guests: Vec<GuestText>,
    /// The hosts that would take them in.
    pub targets: Vec<TargetSpec>,
    /// Which guests may go where.
    #[serde(default)]
    pub rules: PlacementRules,
    /// The network between this host and the targets, as a topology file; `None`: one switch.
    #[serde(default)]
    pub topology: Option<GuestText>,
    /// How frames would be compressed.
    #[serde(default)]
    pub compress: Compression,
    /// Multicast groups that target sets would share, [`GROUPS_DEFAULT`] unless given.
    #[serde(default)]
    pub groups: Option<usize>,
    /// Bits per second that could leave this host for all targets together.
    pub bandwidth_bits: Option<u64>,
    /// What collecting may take of this host's processors, in percent.
    #[serde(default = "all_percent")]
    pub collect_cpu_percent: u8,
}

fn all_percent() -> u8 {
    100
}

/// What `vmscatter scan` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanRequest {
    /// The guests whose memory is read.
    pub guests: Vec<GuestText>,
    /// Percent of this host's processors that collecting may take.
    #[serde(default = "all_percent")]
    pub collect_cpu_percent: u8,
    /// Whether the contents' fingerprints are wanted, in a `file` reply.
    #[serde(default)]
    pub fingerprints: bool,
}

/// A line from the command line to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum LocalRequest {
    /// Start a migration; answered by `job`, its events, `done`.
    Migrate(MigrateRequest),
    /// Start a plan; answered by `job`, its events, `done`.
    Plan(PlanRequest),
    /// Start a scan; answered by `job`, its events, a `file` if one was asked for and the scan has succeeded, `done`.
    Scan(ScanRequest),
    /// Start an examination; answered by `job`, its events, `done`.
    Doctor(DoctorRequest),
    /// Show a job from its beginning, as far as its events are kept; answered as if it had just been started.
    Attach {
        /// The job.
        job: u64,
    },
    /// Cancel a job; answered by `done` at once.
    Cancel {
        /// The job.
        job: u64,
    },
    /// Answered by `status`, `done`.
    Status,
    /// Bring unfinished guests to their ends; answered by `recovered`, `done`.
    Recover(RecoverRequest),
}

/// A line from the agent to the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum LocalReply {
    /// The job whose events follow.
    Job {
        /// Its number.
        job: u64,
    },
    /// What it says.
    Event {
        /// The event.
        event: JobEvent,
    },
    /// What came of guests that were unfinished.
    Recovered {
        /// One each.
        vms: Vec<RecoveredVm>,
    },
    /// What the agent does.
    Status {
        /// All of it.
        status: AgentStatus,
    },
    /// So many bytes follow behind this line's end.
    File {
        /// At most `vmscatter_core::index::fingerprint::FILE_BYTES_MAX`.
        bytes: u64,
    },
    /// The request was not carried out; nothing follows.
    Refused {
        /// With which the command line ends.
        exit: Exit,
        /// One line.
        reason: String,
    },
    /// Nothing follows.
    Done,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Moves guests.
    Migrate,
    /// Says what moving them would cost.
    Plan,
    /// Looks for equal pages.
    Scan,
    /// Looks at other hosts, and what lies between.
    Doctor,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It works.
    Running,
    /// It was told to stop, and has not yet.
    Cancelling,
    /// It has ended.
    Done,
}

/// One job of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its number, for `attach` and `cancel`.
    pub job: u64,
    /// What it does.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// Whole seconds since it was started.
    pub age_s: u64,
    /// Its guests.
    pub guests: Vec<String>,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
}

/// A session in which this host takes guests in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingStatus {
    /// The source's name.
    pub source: String,
    /// Its address.
    pub addr: SocketAddr,
    /// The session's UUID.
    pub session: String,
}

/// What an agent does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The host's name.
    pub name: String,
    /// The agent's version.
    pub version: String,
    /// Where control connections come in.
    pub listen: SocketAddr,
    /// Where data connections come in.
    pub data_listen: SocketAddr,
    /// Memory that guests may take here, in bytes.
    pub free_memory_bytes: u64,
    /// Jobs, the oldest first.
    pub jobs: Vec<JobStatus>,
    /// Sessions in which guests come in.
    pub incoming: Vec<IncomingStatus>,
    /// Guests that no session has brought to their ends.
    #[serde(default)]
    pub unfinished: Vec<UnfinishedStatus>,
}

impl MigrateRequest {
    /// Everything that can be checked without a host's values; the guests in the request's order.
    ///
    /// # Errors
    /// One line: a guest file that is wrong, a guest or target named twice, a pin of neither, a bound exceeded.
    pub fn check(&self) -> Result<Vec<GuestFile>, BadInput> {
        let guests = check_move(&self.guests, &self.targets, &self.rules)?;
        check_compression(self.compress)?;
        check_bandwidth(self.bandwidth_bits)?;
        if self.parallel.is_some_and(|n| !(1..=SESSION_VMS_MAX).contains(&n)) {
            return Err(BadInput::new("--parallel", format!("must be 1 to {SESSION_VMS_MAX}")));
        }
        if self.retries > RETRIES_MAX {
            return Err(BadInput::new("--retry", format!("must be 0 to {RETRIES_MAX}")));
        }
        self.convergence.check()?;
        check_groups(self.groups)?;
        check_interface(self.interface.as_deref())?;
        check_collect_cpu(self.collect_cpu_percent)?;
        Ok(guests)
    }
}

/// The least `--bandwidth`, in bits per second; below it one frame would outlast the deadlines.
pub const BANDWIDTH_BITS_MIN: u64 = 1_000_000;

impl PlanRequest {
    /// As [`MigrateRequest::check`].
    ///
    /// # Errors
    /// One line, as there.
    pub fn check(&self) -> Result<Vec<GuestFile>, BadInput> {
        let guests = check_move(&self.guests, &self.targets, &self.rules)?;
        check_groups(self.groups)?;
        check_compression(self.compress)?;
        check_bandwidth(self.bandwidth_bits)?;
        check_collect_cpu(self.collect_cpu_percent)?;
        Ok(guests)
    }
}

impl ScanRequest {
    /// As [`MigrateRequest::check`].
    ///
    /// # Errors
    /// One line: a guest file that is wrong, a guest named twice, or a bound exceeded.
    pub fn check(&self) -> Result<Vec<GuestFile>, BadInput> {
        check_collect_cpu(self.collect_cpu_percent)?;
        check_guests(&self.guests)
    }
}

fn check_move(
    guests: &[GuestText],
    targets: &[TargetSpec],
    rules: &PlacementRules,
) -> Result<Vec<GuestFile>, BadInput> {
    let guests = check_guests(guests)?;
    check_targets(targets)?;
    let is_guest = |name: &str| match guests.iter().any(|guest| guest.name == name) {
        true => Ok(()),
        false => Err(format!("no guest file has the name '{}'", one_line(name))),
    };
    let is_target = |name: &str| match targets.iter().any(|target| target.name == name) {
        true => Ok(()),
        false => Err(format!("no --to has the name '{}'", one_line(name))),
    };
    rules.check(is_guest, is_target)?;
    Ok(guests)
}

fn check_compression(compress: Compression) -> Result<(), BadInput> {
    match compress {
        Compression::Zstd { level } if !(-7..=19).contains(&level) => {
            Err(BadInput::new("--compress", format!("zstd level {level} is not within -7 to 19")))
        }
        _ => Ok(()),
    }
}

/// Whether so many multicast groups can be had.
///
/// # Errors
/// One line.
pub fn check_groups(groups: Option<usize>) -> Result<(), BadInput> {
    match groups {
        Some(count) if !(1..=GROUPS_MAX).contains(&count) => {
            Err(BadInput::new("--groups", format!("must be 1 to {GROUPS_MAX}")))
        }
        _ => Ok(()),
    }
}

fn check_interface(name: Option<&str>) -> Result<(), BadInput> {
    name.map_or(Ok(()), config::check_interface).map_err(|detail| BadInput::new("--interface", detail))
}

fn check_bandwidth(bits: Option<u64>) -> Result<(), BadInput> {
    match bits {
        Some(bits) if bits < BANDWIDTH_BITS_MIN => Err(BadInput::new("--bandwidth", "must be 1mbit or more")),
        _ => Ok(()),
    }
}

fn check_collect_cpu(percent: u8) -> Result<(), BadInput> {
    match percent {
        1..=100 => Ok(()),
        _ => Err(BadInput::new("--collect-cpu", "must be 1 to 100, in percent of this host's processors")),
    }
}

fn check_guests(texts: &[GuestText]) -> Result<Vec<GuestFile>, BadInput> {
    if texts.is_empty() || texts.len() > SESSION_VMS_MAX {
        return Err(BadInput::new(
            "--guest",
            format!("{} guests are not within 1 to {SESSION_VMS_MAX}", texts.len()),
        ));
    }
    let mut guests = Vec::with_capacity(texts.len());
    let mut by_name: BTreeMap<String, String> = BTreeMap::new();
    let mut by_uuid = BTreeMap::new();
    for text in texts {
        let guest = GuestFile::parse(&text.text, &text.origin)?;
        if let Some(other) = by_name.insert(guest.name.clone(), text.origin.clone()) {
            return Err(BadInput::new(
                &text.origin,
                format!("name: guest '{}' is in {other} already", guest.name),
            ));
        }
        if let Some(uuid) = guest.uuid
            && let Some(other) = by_uuid.insert(uuid, text.origin.clone())
        {
            return Err(BadInput::new(&text.origin, format!("uuid: is the same as in {other}")));
        }
        guests.push(guest);
    }
    Ok(guests)
}

fn check_targets(targets: &[TargetSpec]) -> Result<(), BadInput> {
    if targets.is_empty() || targets.len() > SESSION_TARGETS_MAX {
        return Err(BadInput::new(
            "--to",
            format!("{} targets are not within 1 to {SESSION_TARGETS_MAX}", targets.len()),
        ));
    }
    for (index, target) in targets.iter().enumerate() {
        let origin = || format!("--to {}={}", target.name, target.addr);
        if !is_host_name(&target.name) {
            return Err(BadInput::new(origin(), "is no host name (lower case, as in DNS)"));
        }
        for other in &targets[..index] {
            if other.name == target.name {
                return Err(BadInput::new(origin(), "the target is given twice"));
            }
            if other.addr == target.addr {
                return Err(BadInput::new(
                    origin(),
                    format!("the address is that of '{}' already", other.name),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
