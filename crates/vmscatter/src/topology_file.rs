//! The topology file: the network between the source and its targets, for `plan --topology FILE`.
//!
//! ```toml
//! kind = "leaf-spine"                          # or "fat-tree", "bcube", "links"
//! leaves = 2
//! spines = 2
//! hosts = [["source", "node1"], ["node2"]]     # by leaf; the names that the session knows
//! link = "10gbit"                              # between host and leaf
//! uplink = "40gbit"                            # between leaf and spine; default: as link
//! costs = [1, 2]                               # of a content on an access link and on an uplink; this is the default
//! ```
//!
//! All kinds, with an example each: `docs/topologies.md`.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use vmscatter_core::topology::{
    self, BCube, FatTree, LeafSpine, Link, LinkSpec, Routes, Topology, TopologyBuilder, TopologyError,
};

use crate::agent::config::read_bounded;
use crate::agent::input::{BadInput, is_guest_name, is_host_name, one_line};
use crate::cli::units::bandwidth;

#[cfg(test)]
mod tests;

/// A topology file may have this many bytes: the most links there may be, with long names.
pub const TOPOLOGY_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads the file at `path`.
///
/// # Errors
/// One line that names the file and the key.
pub fn load(path: &Path) -> Result<Topology, BadInput> {
    let text = read_bounded(path, TOPOLOGY_FILE_BYTES_MAX)?;
    parse(&text, &path.display().to_string())
}

/// The topology that `text` describes; `origin` is what errors call it.
///
/// # Errors
/// One line that names the origin and the key.
pub fn parse(text: &str, origin: &str) -> Result<Topology, BadInput> {
    let bad = |detail: String| BadInput::new(origin, detail);
    if text.len() as u64 > TOPOLOGY_FILE_BYTES_MAX {
        return Err(bad(format!("longer than {TOPOLOGY_FILE_BYTES_MAX} bytes")));
    }
    let topology = match read::<Kind>(text, origin)?.kind.as_str() {
        "leaf-spine" => read::<LeafSpineFile>(text, origin)?.build(),
        "fat-tree" => read::<FatTreeFile>(text, origin)?.build(),
        "bcube" => read::<BCubeFile>(text, origin)?.build(),
        "links" => read::<LinksFile>(text, origin)?.build(),
        other => Err(format!("kind: '{}' is not leaf-spine, fat-tree, bcube or links", one_line(other))),
    };
    topology.map_err(bad)
}

/// The routes from a source to a session's targets, by their names; `origin` is what errors call the topology.
///
/// # Errors
/// One line that names the origin, and the host that is missing, no host, there twice or out of reach.
pub fn routes<'a>(
    topology: &'a Topology,
    origin: &str,
    source: &str,
    targets: &[&str],
) -> Result<Routes<'a>, BadInput> {
    let source = topology.host(source);
    let targets: Result<Vec<_>, _> = targets.iter().map(|name| topology.host(name)).collect();
    source.and_then(|source| topology.routes(source, &targets?)).map_err(|e| BadInput::new(origin, said(e)))
}

fn read<'a, T: Deserialize<'a>>(text: &'a str, origin: &str) -> Result<T, BadInput> {
    toml::from_str(text).map_err(|e| BadInput::toml(origin, text, &e))
}

/// Read first, to know what the other keys mean.
#[derive(Deserialize)]
struct Kind {
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeafSpineFile {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    leaves: usize,
    spines: usize,
    hosts: Vec<Vec<String>>,
    link: String,
    uplink: Option<String>,
    costs: Option<Vec<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FatTreeFile {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    k: usize,
    hosts: Vec<Vec<String>>,
    link: String,
    uplink: Option<String>,
    core: Option<String>,
    costs: Option<Vec<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BCubeFile {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    n: usize,
    k: usize,
    hosts: Vec<String>,
    link: String,
    costs: Option<Vec<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinksFile {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    hosts: Vec<String>,
    #[serde(default)]
    switches: Vec<String>,
    #[serde(default)]
    hosts_relay: bool,
    links: Vec<LinkEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkEntry {
    ends: [String; 2],
    rate: String,
    #[serde(default = "LinkEntry::tier_default")]
    tier: String,
    #[serde(default = "LinkEntry::cost_default")]
    cost: u64,
}

impl LinkEntry {
    fn tier_default() -> String {
        "link".to_owned()
    }

    fn cost_default() -> u64 {
        1
    }
}

impl LeafSpineFile {
    fn build(self) -> Result<Topology, String> {
        check_hosts(self.hosts.iter().flatten())?;
        let rates = [("link", Some(&self.link)), ("uplink", self.uplink.as_ref())];
        let [link, uplink] = specs(rates, self.costs)?;
        let LeafSpineFile { leaves, spines, hosts, .. } = self;
        topology::leaf_spine(&LeafSpine { leaves, spines, hosts, link, uplink }).map_err(said)
    }
}

impl FatTreeFile {
    fn build(self) -> Result<Topology, String> {
        check_hosts(self.hosts.iter().flatten())?;
        let rates =
            [("link", Some(&self.link)), ("uplink", self.uplink.as_ref()), ("core", self.core.as_ref())];
        let [link, uplink, core] = specs(rates, self.costs)?;
        topology::fat_tree(&FatTree { k: self.k, hosts: self.hosts, link, uplink, core }).map_err(said)
    }
}

impl BCubeFile {
    fn build(self) -> Result<Topology, String> {
        check_hosts(&self.hosts)?;
        let bits_per_s = rate("link", &self.link)?;
        let costs = self.costs.unwrap_or_else(|| vec![1]);
        let links = costs.into_iter().map(|cost| LinkSpec { bits_per_s, cost }).collect();
        topology::bcube(&BCube { n: self.n, k: self.k, hosts: self.hosts, links }).map_err(|e| match e {
            // There is a link for each cost.
            TopologyError::Range { what: "links", value, .. } => {
                format!(
                    "costs: has {value} entries; one for each of the {} levels, or one for all",
                    self.k + 1
                )
            }
            other => said(other),
        })
    }
}

impl LinksFile {
    fn build(self) -> Result<Topology, String> {
        check_hosts(&self.hosts)?;
        let mut builder = TopologyBuilder::new();
        for host in &self.hosts {
            builder.host(host).map_err(|e| format!("hosts: {e}"))?;
        }
        for switch in &self.switches {
            check_name("switches", switch)?;
            builder.switch(switch).map_err(|e| format!("switches: {e}"))?;
        }
        for (at, entry) in self.links.iter().enumerate() {
            entry.add_to(&mut builder).map_err(|e| format!("links[{at}]: {e}"))?;
        }
        Ok(builder.finish(self.hosts_relay))
    }
}

impl LinkEntry {
    fn add_to(&self, builder: &mut TopologyBuilder) -> Result<(), String> {
        let end = |name: &String| {
            builder
                .get(name)
                .ok_or_else(|| format!("ends: '{}' is neither a host nor a switch", one_line(name)))
        };
        let ends = [end(&self.ends[0])?, end(&self.ends[1])?];
        let bits_per_s = rate("rate", &self.rate)?;
        check_name("tier", &self.tier)?;
        let tier = builder.tier(&self.tier).map_err(said)?;
        builder.link(Link { ends, tier, cost: self.cost, bits_per_s }).map_err(said)
    }
}

/// Rate and cost of each tier from the hosts up. A tier without a rate has that of the one below; a tier costs twice
/// what the one below costs unless `costs` says otherwise.
fn specs<const TIERS: usize>(
    rates: [(&str, Option<&String>); TIERS],
    costs: Option<Vec<u64>>,
) -> Result<[LinkSpec; TIERS], String> {
    let costs = costs.unwrap_or_else(|| (0..TIERS).map(|tier| 1 << tier).collect());
    if costs.len() != TIERS {
        return Err(format!(
            "costs: has {} entries, not {TIERS}, one for each tier from the hosts up",
            costs.len()
        ));
    }
    let mut specs = [LinkSpec { bits_per_s: 0, cost: 0 }; TIERS];
    let mut bits_per_s = 0;
    for ((spec, cost), (key, text)) in specs.iter_mut().zip(costs).zip(rates) {
        bits_per_s = text.map_or(Ok(bits_per_s), |text| rate(key, text))?;
        *spec = LinkSpec { bits_per_s, cost };
    }
    Ok(specs)
}

fn rate(key: &str, text: &str) -> Result<u64, String> {
    match bandwidth(text) {
        Ok(bits_per_s) => Ok(bits_per_s),
        Err(e) => Err(format!("{key}: '{}' {e}", one_line(text))),
    }
}

fn check_hosts<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), String> {
    match names.into_iter().find(|name| !is_host_name(name)) {
        Some(name) => Err(format!("hosts: '{}' is no host name (lower case, as in DNS)", one_line(name))),
        None => Ok(()),
    }
}

fn check_name(key: &str, name: &str) -> Result<(), String> {
    // What is fit to name a guest is fit to be printed.
    match is_guest_name(name) {
        true => Ok(()),
        false => Err(format!(
            "{key}: '{}' is not made of 1 to 64 letters, digits, '.', '_' and '-'",
            one_line(name)
        )),
    }
}

fn said(error: TopologyError) -> String {
    error.to_string()
}
