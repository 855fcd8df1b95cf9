//! A job's work on the host that the guests leave.

use std::sync::Arc;

use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{MigrateRequest, ScanRequest};
use crate::report::outcome::{MigrateOutcome, ScanOutcome};

/// Moves the request's guests; not implemented on this branch.
pub async fn run_migrate(
    _ctx: Arc<AgentContext>,
    _request: MigrateRequest,
    _events: EventSink,
    _cancel: CancelToken,
) -> MigrateOutcome {
    MigrateOutcome::failed("migrate: not implemented")
}

/// Looks for equal pages in the request's guests; not implemented on this branch.
pub async fn run_scan(
    _ctx: Arc<AgentContext>,
    _request: ScanRequest,
    _events: EventSink,
    _cancel: CancelToken,
) -> ScanOutcome {
    ScanOutcome::failed("scan: not implemented")
}
