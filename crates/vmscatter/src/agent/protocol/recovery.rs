//! Guests that no session has brought to their ends, as the command line sees them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A guest whose end has not been found, or is not known on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedStatus {
    /// Its name.
    pub guest: String,
    /// Its UUID.
    pub uuid: String,
    /// The session in which it was to be moved.
    pub session: String,
    /// This host is the one that it was to leave.
    pub at_source: bool,
    /// The host at the other end.
    pub peer: String,
    /// Where that one's agent listens.
    pub peer_addr: SocketAddr,
    /// How far it has come, by this host's journal.
    pub step: String,
    /// When that was written, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// What stands in the way, and what can be done, in one line.
    pub note: String,
    /// It stays so until the operator decides.
    pub needs_operator: bool,
}

/// What `vmscatter recover` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// The guest; `None`: all.
    pub guest: Option<String>,
    /// For which side the operator decides; needs a guest.
    pub force: Option<ForceSide>,
}

/// For which side the operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForceSide {
    /// The guest is the source's.
    Source,
    /// The guest is the target's.
    Target,
}

/// What came of a guest that was unfinished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredVm {
    /// Its name.
    pub guest: String,
    /// The host at the other end.
    pub peer: String,
    /// What was done, a line each.
    pub done: Vec<String>,
    /// What stands in the way of its end, and what can be done; `None`: nothing does.
    pub missing: Option<String>,
    /// Only the other side has yet to hear of its end.
    pub harmless: bool,
}
