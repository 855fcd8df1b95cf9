//! The processes at both ends, as `lab transport-peer` runs them: what they are told and what they say.

mod control;
mod source;
mod target;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

/// The one target set of several members.
const SET: u16 = 1_000;
/// The set that is this target alone.
fn own_set(target: u16) -> u16 {
    target
}

/// What both ends are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Which end this process is.
    pub role: Role,
    /// Tag of the session.
    pub session: u64,
    /// Keys of all sets are made of this.
    pub secret: [u8; 32],
    /// The shared set's group.
    pub group: SocketAddr,
    /// The source's address.
    pub source: Ipv4Addr,
    /// The receivers' addresses.
    pub targets: Vec<Ipv4Addr>,
    /// Payload that every receiver is to get, in bytes.
    pub bytes: u64,
    /// Bytes of one frame's body.
    pub body_bytes: usize,
    /// Bytes a second on the link; `None`: congestion control.
    pub bandwidth: Option<u64>,
    /// Losses may be answered by parity.
    pub parity: bool,
    /// MTU of the links.
    pub mtu: usize,
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Sends.
    Source,
    /// Receives, as target of this number.
    Target(u16),
}

impl Task {
    fn key(&self, set: u16) -> [u8; 32] {
        let mut key = self.secret;
        key[..2].copy_from_slice(&set.to_be_bytes());
        key
    }

    fn frames(&self) -> u64 {
        self.bytes.div_ceil(self.body_bytes as u64)
    }
}

/// What the source says at its end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SourceResult {
    /// From the first frame to the last acknowledgement.
    pub seconds: f64,
    /// The same, for each target that has all.
    pub target_seconds: Vec<Option<f64>>,
    /// CPU time of the process, user and system.
    pub cpu_seconds: f64,
    /// Sealed bytes by multicast.
    pub multicast_bytes: u64,
    /// Sealed bytes over TCP.
    pub unicast_bytes: u64,
    /// Pieces by multicast, the first time.
    pub first_pieces: u64,
    /// Pieces by multicast again.
    pub multicast_repairs: u64,
    /// Parity pieces.
    pub parity_pieces: u64,
    /// Pieces over TCP, of frames that went that way from the start.
    pub unicast_pieces: u64,
    /// Pieces repaired over TCP.
    pub unicast_repairs: u64,
    /// Losses that receivers reported.
    pub losses: u64,
    /// Targets that had to leave the scatter, and why.
    pub expelled: Vec<(u16, String)>,
}

impl SourceResult {
    /// A count of pieces as a share of those that were sent for the first time.
    pub(super) fn share(&self, pieces: u64) -> f64 {
        pieces as f64 / (self.first_pieces + self.unicast_pieces).max(1) as f64
    }

    /// Pieces sent again, as such a share.
    pub(super) fn sent_again(&self) -> f64 {
        self.share(self.multicast_repairs + self.parity_pieces + self.unicast_repairs)
    }
}

/// What a receiver says at its end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TargetResult {
    /// Bytes of bodies that came whole and as they should.
    pub good_bytes: u64,
    /// Frames that came and were not what was sent.
    pub wrong_frames: u64,
    /// CPU time of the process, user and system.
    pub cpu_seconds: f64,
    /// Pieces that were opened.
    pub opened: u64,
    /// Of these, pieces that were there already.
    pub duplicate: u64,
    /// Pieces that were dropped, for whatever reason.
    pub dropped: u64,
    /// Of these, replayed ones.
    pub replayed: u64,
    /// Datagrams that the kernel dropped before the socket.
    pub kernel_drops: u64,
}

/// Runs the end that `task`, as JSON, names; what it has to say goes to standard output.
pub fn run(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task).context("the task")?;
    let line = match task.role {
        Role::Source => serde_json::to_string(&source::run(&task)?)?,
        Role::Target(number) => serde_json::to_string(&target::run(&task, number)?)?,
    };
    println!("{line}");
    Ok(())
}

/// CPU time of this process so far.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros as u64).as_secs_f64())
}

/// Bodies of all frames are windows of one buffer of noise, so that making and comparing one costs no more than a copy.
struct Bodies {
    noise: Vec<u8>,
    body_bytes: usize,
    bytes: u64,
}

impl Bodies {
    const NOISE_BYTES: usize = 4 << 20;

    fn new(task: &Task) -> Self {
        let mut state = 1u64;
        let mut noise = Vec::with_capacity(Self::NOISE_BYTES + task.body_bytes);
        while noise.len() < Self::NOISE_BYTES + task.body_bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            noise.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
        }
        Bodies { noise, body_bytes: task.body_bytes, bytes: task.bytes }
    }

    fn body(&self, frame: u64) -> &[u8] {
        let left = self.bytes.saturating_sub(frame * self.body_bytes as u64);
        let start = (frame.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % Self::NOISE_BYTES;
        &self.noise[start..start + left.min(self.body_bytes as u64) as usize]
    }
}
