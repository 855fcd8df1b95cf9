//! The agent's log, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Logs what `VMSCATTER_LOG` asks for (`info` by default), in `tracing-subscriber`'s filter syntax.
pub(super) fn init() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("VMSCATTER_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would panic if standard error were gone.
        .log_internal_errors(false)
        .init();
}
