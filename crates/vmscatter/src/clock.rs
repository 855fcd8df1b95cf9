//! This host's clock.

use std::time::{Duration, SystemTime};

/// Time since the Unix epoch; zero before it.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
