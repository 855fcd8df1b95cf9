//! Off-the-shelf: QEMU's own pre-copy over TCP, all guests at once, as the common managers set it up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::guest::{Guest, Qemu};
use crate::host::Host;
use crate::progress::Progress;
use crate::session::{Arrival, Mode, Session, Settings, stop_and_resume};
use crate::weight;

const FIRST_PORT: u16 = 4444;
/// Ten times what the fastest link of a lab carries: the links limit, and not QEMU's default of 128 MiB/s.
const MAX_BANDWIDTH: u64 = 10 << 30;
const SERIAL_TIMEOUT: Duration = Duration::from_secs(30);
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts the incoming QEMUs, then migrates all guests at once. One result for each guest, in their order.
pub fn migrate_all(
    session: &Session,
    mode: Mode,
    settings: &Settings,
    progress: &Progress,
) -> Result<Vec<Result<Arrival>>> {
    let moved = AtomicUsize::new(0);
    let arrived = || {
        let count = moved.fetch_add(1, Ordering::Relaxed) + 1;
        progress.note(&format!("{count} of {} guests moved", session.guests.len()));
    };
    let hosts: Vec<&Host> =
        (0..session.guests.len()).map(|index| session.target_of(index, settings.hosts)).collect();
    let places = || session.guests.iter().zip(&hosts).zip(FIRST_PORT..);
    thread::scope(|scope| {
        let starts: Vec<_> = places()
            .map(|((guest, host), port)| scope.spawn(move || prepare(guest, host, port, mode)))
            .collect();
        let twins: Vec<Result<Qemu>> = starts.into_iter().map(joined).collect();
        let migrations: Vec<_> = places()
            .zip(twins)
            .map(|(((guest, host), port), twin)| {
                let arrived = &arrived;
                scope.spawn(move || {
                    let arrival = migrate(guest, host, port, twin?, mode, settings);
                    arrived();
                    arrival
                })
            })
            .collect();
        Ok(migrations.into_iter().map(joined).collect())
    })
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Starts the twin that waits for `guest`.
fn prepare(guest: &Guest, host: &Host, port: u16, mode: Mode) -> Result<Qemu> {
    let twin = guest.file.start(host, true)?;
    weight::lower_vcpus(&twin.qmp)?;
    guest.serial.attach(&guest.file.serial(host), SERIAL_TIMEOUT)?;
    configure(&twin, mode)?;
    twin.qmp.execute("migrate-incoming", json!({ "uri": format!("tcp:{}:{port}", host.link.address) }))?;
    Ok(twin)
}

fn configure(qemu: &Qemu, mode: Mode) -> Result<()> {
    let multifd = mode == Mode::OffTheShelfMultifdZstd;
    let mut capabilities = vec!["events", "return-path"];
    let mut parameters = json!({ "max-bandwidth": MAX_BANDWIDTH });
    if multifd {
        capabilities.push("multifd");
        parameters["multifd-channels"] = json!(2);
        parameters["multifd-compression"] = json!("zstd");
    }
    let capabilities: Vec<_> =
        capabilities.iter().map(|capability| json!({ "capability": capability, "state": true })).collect();
    qemu.qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
    qemu.qmp.execute("migrate-set-parameters", parameters)?;
    Ok(())
}

fn migrate(
    guest: &Guest,
    host: &Host,
    port: u16,
    twin: Qemu,
    mode: Mode,
    settings: &Settings,
) -> Result<Arrival> {
    let source = &guest.source.qmp;
    configure(&guest.source, mode)?;
    source.execute("migrate", json!({ "uri": format!("tcp:{}:{port}", host.link.address) }))?;
    let ended = source.wait_event(MIGRATION_TIMEOUT, |event| {
        event.name == "MIGRATION"
            && matches!(event.data["status"].as_str(), Some("completed" | "failed" | "cancelled"))
    });
    let ended = ended.with_context(|| format!("no end of the migration within {MIGRATION_TIMEOUT:?}"))?;
    if ended.data["status"] != "completed" {
        bail!("QEMU's migration {}", ended.data["status"]);
    }
    let ram_equal = settings.while_held(&guest.file.name, source, &twin.qmp)?;
    twin.qmp.execute("cont", json!({}))?;
    let (stopped, resumed) = stop_and_resume(&guest.source, &twin, RESUME_TIMEOUT)?;
    Ok(Arrival { qemu: twin, stopped, resumed, digests_agree: true, ram_equal })
}
