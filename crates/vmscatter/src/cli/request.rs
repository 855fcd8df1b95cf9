//! From options to a request that has been checked as far as this side can.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::options::{DoctorOptions, MigrateOptions, PlacementOptions, PlanOptions, ScanOptions};
use super::units::{Host, SavedTarget, TargetOption};
use crate::agent::config::{os_text, read_bounded};
use crate::agent::guest_file::GuestFile;
use crate::agent::input::BadInput;
use crate::agent::protocol::{
    ConvergenceRequest, DoctorRequest, GuestText, LocalRequest, MigrateRequest, PlacementRules, PlanRequest,
    REQUEST_BYTES_MAX, ScanRequest, TargetSpec,
};
use crate::plan::place::Target;
use crate::plan::saved::Question;
use crate::topology_file::{self, TOPOLOGY_FILE_BYTES_MAX};

/// # Errors
/// One line on what is wrong and where.
pub(super) fn migrate(options: &MigrateOptions) -> Result<LocalRequest, BadInput> {
    let guests = read_guests(&options.guests)?;
    let targets = options.targets.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
    let request = MigrateRequest {
        guests,
        targets,
        rules: rules(&options.placement),
        topology: topology(&options.placement)?,
        compress: options.compress,
        bandwidth_bits: options.bandwidth,
        parallel: options.parallel,
        retries: options.retry,
        convergence: ConvergenceRequest {
            auto_converge: options.convergence.auto_converge,
            max_downtime_ms: options.convergence.max_downtime.map(millis),
            deadline_ms: options.convergence.deadline.map(millis),
        },
        groups: Some(options.groups),
        transport: options.transport,
        interface: options.interface.clone(),
        unsorted_groups: options.unsorted_groups,
        collect_cpu_percent: options.collect.cpu_percent,
    };
    request.check()?;
    Ok(LocalRequest::Migrate(request))
}

/// A plan of guests that run here.
///
/// # Errors
/// One line on what is wrong and where.
pub(super) fn plan(options: &PlanOptions) -> Result<LocalRequest, BadInput> {
    let request = PlanRequest {
        guests: read_guests(&options.guests)?,
        targets: options.targets.iter().map(resolve).collect::<Result<Vec<_>, _>>()?,
        rules: rules(&options.placement),
        topology: topology(&options.placement)?,
        groups: Some(options.groups),
        compress: options.compress,
        bandwidth_bits: options.bandwidth,
        collect_cpu_percent: options.collect.cpu_percent,
    };
    request.check()?;
    Ok(LocalRequest::Plan(request))
}

/// A plan from files, which needs no agent.
///
/// # Errors
/// One line on what is wrong and where.
pub(super) fn plan_saved(options: &PlanOptions) -> Result<Question, BadInput> {
    let target = |target: &SavedTarget| Target {
        name: target.name.clone(),
        free_bytes: target.memory_bytes.unwrap_or(u64::MAX),
    };
    Ok(Question {
        files: options.files.clone(),
        targets: options.hosts.iter().map(target).collect(),
        rules: rules(&options.placement),
        groups: options.groups,
        bandwidth_bits: options.bandwidth,
        topology: topology(&options.placement)?,
    })
}

/// The topology file's text, once it is known to be one.
fn topology(options: &PlacementOptions) -> Result<Option<GuestText>, BadInput> {
    let Some(path) = &options.topology else { return Ok(None) };
    let text = read_bounded(path, TOPOLOGY_FILE_BYTES_MAX)?;
    let origin = path.display().to_string();
    topology_file::parse(&text, &origin)?;
    Ok(Some(GuestText { origin, text }))
}

fn rules(options: &PlacementOptions) -> PlacementRules {
    PlacementRules {
        pins: options.pins.clone(),
        apart: options.apart.iter().map(|group| group.0.clone()).collect(),
        vms_max: options.vms_max,
        few_targets: options.few_targets,
    }
}

/// # Errors
/// One line on what is wrong and where.
pub(super) fn scan(options: &ScanOptions) -> Result<LocalRequest, BadInput> {
    let request = ScanRequest {
        guests: read_guests(&options.guests)?,
        collect_cpu_percent: options.collect.cpu_percent,
        fingerprints: options.out.is_some(),
    };
    request.check()?;
    Ok(LocalRequest::Scan(request))
}

/// # Errors
/// One line on what is wrong and where.
pub(super) fn doctor(options: &DoctorOptions) -> Result<LocalRequest, BadInput> {
    let request = DoctorRequest {
        targets: options.targets.iter().map(resolve).collect::<Result<Vec<_>, _>>()?,
        bandwidth_bits: options.bandwidth,
        interface: options.interface.clone(),
        listen_ms: options.listen.map_or(0, millis),
    };
    request.check()?;
    Ok(LocalRequest::Doctor(request))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn read_guests(paths: &[PathBuf]) -> Result<Vec<GuestText>, BadInput> {
    let mut guests = Vec::with_capacity(paths.len());
    let mut bytes = 0;
    for path in paths {
        let (guest, text) = GuestFile::load(path)?;
        bytes += text.len();
        // JSON may write a byte as six.
        if bytes > REQUEST_BYTES_MAX / 6 - 1024 * 1024 {
            return Err(BadInput::new("--guest", "the guest files together are too long"));
        }
        guests.push(GuestText { origin: guest.origin().to_owned(), text });
    }
    Ok(guests)
}

fn resolve(target: &TargetOption) -> Result<TargetSpec, BadInput> {
    let addr = match &target.host {
        Host::Address(ip) => SocketAddr::new(*ip, target.port),
        Host::Name(host) => {
            let bad = |detail: String| BadInput::new(format!("--to {}={host}", target.name), detail);
            let mut found = (host.as_str(), target.port)
                .to_socket_addrs()
                .map_err(|e| bad(format!("cannot look the host up: {}", os_text(&e))))?;
            found.next().ok_or_else(|| bad("the host has no address".into()))?
        }
    };
    Ok(TargetSpec { name: target.name.clone(), addr })
}
