//! The work on a host that takes guests in.

use std::sync::Arc;

use crate::agent::AgentContext;
use crate::agent::control::ControlConnection;

/// Serves a source's session until its connection ends; not implemented on this branch.
pub async fn serve(_ctx: Arc<AgentContext>, mut connection: ControlConnection) {
    while let Ok(Some(_)) = connection.receiver.recv().await {}
}
