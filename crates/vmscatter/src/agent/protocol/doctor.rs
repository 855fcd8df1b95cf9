//! A request to look at other hosts.

use serde::{Deserialize, Serialize};

use super::{TargetSpec, check_bandwidth, check_interface, check_targets};
use crate::agent::input::BadInput;

/// A day.
const LISTEN_MS_MAX: u64 = 24 * 3600 * 1000;

/// What `vmscatter doctor` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoctorRequest {
    /// The hosts that are looked at.
    pub targets: Vec<TargetSpec>,
    /// Bits per second that may leave this host meanwhile.
    #[serde(default)]
    pub bandwidth_bits: Option<u64>,
    /// The interface by which multicast leaves, instead of the agent's own choice.
    #[serde(default)]
    pub interface: Option<String>,
    /// How long to listen for IGMP queries at least, in milliseconds.
    #[serde(default)]
    pub listen_ms: u64,
}

impl DoctorRequest {
    /// As [`super::MigrateRequest::check`].
    ///
    /// # Errors
    /// One line: a target named twice, a bound exceeded.
    pub fn check(&self) -> Result<(), BadInput> {
        check_targets(&self.targets)?;
        check_bandwidth(self.bandwidth_bits)?;
        check_interface(self.interface.as_deref())?;
        if self.listen_ms > LISTEN_MS_MAX {
            return Err(BadInput::new("--listen", "must be a day or less"));
        }
        Ok(())
    }
}
