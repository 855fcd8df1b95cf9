//! The agent's log, on standard error.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for who reads the log; further ones are lost.
const LINES_MAX: usize = 16_384;

/// Logs what `VMSCATTER_LOG` asks for (`info` by default), in `tracing-subscriber`'s filter syntax, until the value is
/// dropped. Nothing waits for the log: guests must not stand still because nobody reads it.
pub(super) fn init() -> WorkerGuard {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("VMSCATTER_LOG")
        .from_env_lossy();
    let lines = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true);
    let (lines, guard) = lines.finish(std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would panic if standard error were gone.
        .log_internal_errors(false)
        .init();
    guard
}
