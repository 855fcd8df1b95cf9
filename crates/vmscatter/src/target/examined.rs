//! What this host says of itself to a source that examines it, and the probes that it sends back.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use vmscatter_core::wire::control::{HostReport, Message, QemuProgram};
use vmscatter_core::wire::piece::session_tag;

use crate::agent::AgentContext;
use crate::agent::config::os_text;
use crate::agent::control::{ControlSender, PeerInfo};
use crate::agent::input::one_line;
use crate::clock::since_epoch;
use crate::net::outlet::{Outlet, PROBE_BYTES_MIN};
use crate::net::udp::{MulticastSender, receive_buffer_bytes};

/// Probes, and how far apart.
const PROBES: u32 = 20;
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// The group has one set, of which nobody is a member.
const SET: u16 = 0;
/// A QEMU that says no version by then says none.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// Answers [`Message::Examine`].
pub(super) async fn answer(
    ctx: &AgentContext,
    peer: &PeerInfo,
    sender: &ControlSender,
    group: SocketAddr,
    key: [u8; 32],
) {
    let probes = match probe(ctx, peer, group, key).await {
        Ok(probes) => probes,
        Err(error) => {
            tracing::warn!(source = peer.name, %group, "probes for an examination: {error}");
            0
        }
    };
    let report = HostReport { probes, ..host_report(&ctx.config.programs).await };
    // A connection that is lost is told of by its reader.
    let _ = sender.send(Message::Examined(report)).await;
}

/// What this host is like; no probes have been sent.
pub(crate) async fn host_report(programs: &[std::path::PathBuf]) -> HostReport {
    let mut qemus = Vec::new();
    for program in programs {
        qemus.push(QemuProgram { path: program.display().to_string(), version: version(program).await });
    }
    let memberships = std::fs::read_to_string("/proc/sys/net/ipv4/igmp_max_memberships");
    HostReport {
        clock_unix_us: since_epoch().as_micros() as u64,
        igmp_max_memberships: memberships.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0),
        receive_buffer_bytes: receive_buffer_bytes().unwrap_or(0),
        qemus,
        probes: 0,
    }
}

/// As `PROGRAM --version` has it: what stands behind "version" in its first line.
async fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").kill_on_drop(true).output();
    let output = match tokio::time::timeout(VERSION_DEADLINE, output).await {
        Ok(output) => output.map_err(|error| os_text(&error))?,
        Err(_) => return Err(format!("says nothing within {} s", VERSION_DEADLINE.as_secs())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(|line| line.split_once("version "));
    match version {
        Some((_, version)) => Ok(one_line(version.split_whitespace().next().unwrap_or_default())),
        None => Err("does not say its version".to_owned()),
    }
}

async fn probe(ctx: &AgentContext, peer: &PeerInfo, group: SocketAddr, key: [u8; 32]) -> Result<u32, String> {
    // The peer names it: nothing but a group is sent to.
    if !group.ip().is_multicast() {
        return Err("no multicast group".to_owned());
    }
    let out = ctx.way_out(None, peer.local_addr).map_err(|error| error.to_string())?;
    let socket = MulticastSender::bind(peer.local_addr.ip(), out).map_err(|error| os_text(&error))?;
    let mut outlet = Outlet::new(session_tag(&peer.session), Some(socket));
    outlet.add_set(SET, &key, &[], Some(group));
    let mut sent = 0;
    for _ in 0..PROBES {
        sent += u32::from(outlet.probe(SET, PROBE_BYTES_MIN));
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    Ok(sent)
}
