//! A plan from saved fingerprints: of one host or several, without an agent.

use std::path::{Path, PathBuf};

use vmscatter_core::index::fingerprint::{FILE_BYTES_MAX, Fingerprints};
use vmscatter_core::limits::{SESSION_TARGETS_MAX, SESSION_VMS_MAX};
use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::placement::{SavedSharing, SavedSharingError};
use vmscatter_core::predict::{Compressed, Inventory, PhaseTimes};

use super::network::Network;
use super::place::{Candidates, Guest, Target};
use super::{Input, MTU_DEFAULT, Source, Speed, make};
use crate::agent::config::read_bytes_bounded;
use crate::agent::input::{BadInput, one_line};
use crate::agent::protocol::{BANDWIDTH_BITS_MIN, GuestText, PlacementRules};
use crate::report::plan::{BetweenHosts, Plan};

/// Connecting took so long in the lab of this repository, with six guests and three targets.
const CONNECT_S: f64 = 0.2;
/// Collecting reads so much in a second at least where memory has small pages (`docs/collect.md`).
const COLLECT_BYTES_PER_S: f64 = 3e9;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Files of `scan --out`, each of one host.
    pub files: Vec<PathBuf>,
    /// Hosts that could take guests.
    pub targets: Vec<Target>,
    /// Which guests may go where; a guest is called `NAME`, or `HOST/NAME` where several hosts have one of that name.
    pub rules: PlacementRules,
    /// Bits per second that may leave each host.
    pub bandwidth_bits: Option<u64>,
    /// The network between the hosts.
    pub topology: Option<GuestText>,
}

/// Reads the files and answers.
///
/// # Errors
/// One line on what is wrong with the question, or which constraint can't be met.
pub fn plan(question: &Question) -> Result<Plan, BadInput> {
    check_targets(&question.targets)?;
    if question.bandwidth_bits.is_some_and(|bits| bits < BANDWIDTH_BITS_MIN) {
        return Err(BadInput::new("--bandwidth", "must be 1mbit or more"));
    }
    let hosts = question.files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let sharing = SavedSharing::of(&hosts).map_err(|error| {
        let names: Vec<String> = question.files.iter().map(|path| path.display().to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match error {
            SavedSharingError::TooManyVms(_) => BadInput::new("--from", error.to_string()),
            _ => BadInput::new("--from", error.describe(&names)),
        }
    })?;
    if sharing.host_of.len() > SESSION_VMS_MAX {
        let count = sharing.host_of.len();
        return Err(BadInput::new("--from", format!("{count} guests; {SESSION_VMS_MAX} are the limit")));
    }
    let names = Names::of(&hosts);
    let rules = names.rules(&question.rules, &question.targets)?;
    let targets: Vec<&str> = question.targets.iter().map(|target| target.name.as_str()).collect();
    let network = match &question.topology {
        Some(_) if hosts.len() > 1 => {
            return Err(BadInput::new("--topology", "is for the guests of one host; --from names several"));
        }
        Some(text) => Network::of(text, &hosts[0].host, &targets)?,
        None => Network::flat(targets.len()),
    };
    let vms = || hosts.iter().flat_map(Fingerprints::vms);
    let input = Input {
        sources: hosts.iter().map(source).collect(),
        source_of: sharing.host_of.iter().map(|host| usize::from(*host)).collect(),
        candidates: Candidates {
            guests: vms()
                .zip(&names.names)
                .map(|(vm, name)| Guest { name: name.clone(), memory_bytes: vm.memory_bytes })
                .collect(),
            targets: question.targets.clone(),
            rules,
        },
        between_hosts: (hosts.len() > 1).then_some(BetweenHosts {
            contents: sharing.contents_between_hosts,
            repeated_bytes: sharing.pages_repeated_between_hosts * PAGE_SIZE as u64,
        }),
        sampled: hosts.iter().any(|host| host.rate_log2() > 0),
        inventory: Inventory::of_groups(
            sharing.groups,
            &sharing.sharing,
            &vms().map(|vm| vm.memory_bytes / PAGE_SIZE as u64).collect::<Vec<_>>(),
        ),
        mtu: MTU_DEFAULT,
        compressed: Compressed::NONE,
        speed: Speed::of(question.bandwidth_bits, None),
        network,
    };
    make(&input).map_err(|error| BadInput::new("placement", error.to_string()))
}

fn read(path: &Path) -> Result<Fingerprints, BadInput> {
    let bytes = read_bytes_bounded(path, FILE_BYTES_MAX as u64)?;
    Fingerprints::decode(&bytes).map_err(|error| BadInput::file(path, error.to_string()))
}

fn source(host: &Fingerprints) -> Source {
    let nonzero: u64 = host.vms().iter().map(|vm| vm.pages.pages.saturating_sub(vm.pages.zero)).sum();
    let collect_s = nonzero as f64 * PAGE_SIZE as f64 / COLLECT_BYTES_PER_S;
    let times = PhaseTimes { connect_s: CONNECT_S, collect_s, ..PhaseTimes::default() };
    Source { name: host.host.clone(), times }
}

fn check_targets(targets: &[Target]) -> Result<(), BadInput> {
    if targets.is_empty() || targets.len() > SESSION_TARGETS_MAX {
        let count = targets.len();
        return Err(BadInput::new(
            "--target",
            format!("{count} targets are not within 1 to {SESSION_TARGETS_MAX}"),
        ));
    }
    for (at, target) in targets.iter().enumerate() {
        if targets[..at].iter().any(|other| other.name == target.name) {
            return Err(BadInput::new(format!("--target {}", target.name), "the target is given twice"));
        }
    }
    Ok(())
}

/// What guests of several hosts are called.
struct Names {
    /// Each guest's name, with its host's before it where another host has one of that name.
    names: Vec<String>,
    /// The same without hosts.
    bare: Vec<String>,
}

impl Names {
    fn of(hosts: &[Fingerprints]) -> Names {
        let of_host = |host: &Fingerprints| -> Vec<(String, String)> {
            host.vms().iter().map(|vm| (host.host.clone(), vm.name.clone())).collect()
        };
        let all: Vec<(String, String)> = hosts.iter().flat_map(of_host).collect();
        let count = |name: &str| all.iter().filter(|(_, other)| other == name).count();
        let name = |(host, name): &(String, String)| match count(name) {
            1 => name.clone(),
            _ => format!("{host}/{name}"),
        };
        Names {
            names: all.iter().map(name).collect(),
            bare: all.iter().map(|(_, name)| name.clone()).collect(),
        }
    }

    /// The rules, once every name in them is one of a guest or target.
    fn rules(&self, rules: &PlacementRules, targets: &[Target]) -> Result<PlacementRules, BadInput> {
        let is_guest = |name: &str| {
            if self.names.iter().any(|known| known == name) {
                return Ok(());
            }
            Err(match self.bare.iter().any(|known| known == name) {
                true => format!("several hosts have a guest '{}': say HOST/NAME", one_line(name)),
                false => format!("no file has a guest '{}'", one_line(name)),
            })
        };
        let is_target = |name: &str| match targets.iter().any(|target| target.name == name) {
            true => Ok(()),
            false => Err(format!("no --target has the name '{}'", one_line(name))),
        };
        rules.check(is_guest, is_target)?;
        Ok(rules.clone())
    }
}
