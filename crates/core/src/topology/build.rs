//! Builders of the usual fabrics.

use super::graph::{Link, NODES_MAX, NodeId, Topology, TopologyBuilder, TopologyError};

/// Rate and cost of the links of one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Capacity of each direction, in bits per second.
    pub bits_per_s: u64,
    /// What one content costs that crosses such a link.
    pub cost: u64,
}

/// Two tiers: each leaf has one link to each spine, and hosts hang on leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafSpine {
    /// Leaf switches, 1 or more.
    pub leaves: usize,
    /// Spine switches, 1 or more.
    pub spines: usize,
    /// The hosts of each leaf, by leaf; at most as many lists as leaves.
    pub hosts: Vec<Vec<String>>,
    /// Between host and leaf.
    pub link: LinkSpec,
    /// Between leaf and spine.
    pub uplink: LinkSpec,
}

/// Three tiers of switches with `k` ports (Al-Fares et al., SIGCOMM 2008): `k` pods of `k/2` edge and `k/2`
/// aggregation switches, `(k/2)²` cores, `k/2` hosts an edge switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatTree {
    /// Ports of each switch: even, 2 or more.
    pub k: usize,
    /// The hosts of each edge switch, at most `k/2`, pod by pod; at most as many lists as edge switches.
    pub hosts: Vec<Vec<String>>,
    /// Between host and edge.
    pub link: LinkSpec,
    /// Between edge and aggregation.
    pub uplink: LinkSpec,
    /// Between aggregation and core.
    pub core: LinkSpec,
}

/// BCube(n, k) (Guo et al., SIGCOMM 2009): `n^(k+1)` servers with addresses of `k+1` digits below `n`. At each level
/// a switch joins the `n` servers that differ in that level's digit only. Servers pass on what is not for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BCube {
    /// Ports of each switch, 2 or more.
    pub n: usize,
    /// The highest level; levels count from 0.
    pub k: usize,
    /// The servers in the order of their addresses; those without a name here are there too, as `server 13` in BCube(4, 1)
    /// for digits 1 and 3.
    pub hosts: Vec<String>,
    /// All links, or those of each level: 1 or `k+1`.
    pub links: Vec<LinkSpec>,
}

/// Levels of a BCube less one. Every order of digits is tried for every target set.
const BCUBE_K_MAX: usize = 3;

/// Builds a leaf-spine fabric: tiers `access` and `uplink`, switches `leaf 1`… and `spine 1`….
///
/// # Errors
/// A parameter out of range, a name twice, or a fabric beyond the limits.
pub fn leaf_spine(fabric: &LeafSpine) -> Result<Topology, TopologyError> {
    check_range("leaves", fabric.leaves, 1, NODES_MAX)?;
    check_range("spines", fabric.spines, 1, NODES_MAX)?;
    check_range("lists of hosts", fabric.hosts.len(), 0, fabric.leaves)?;
    let mut builder = TopologyBuilder::new();
    let leaves = switches(&mut builder, fabric.leaves, |leaf| format!("leaf {}", leaf + 1))?;
    let spines = switches(&mut builder, fabric.spines, |spine| format!("spine {}", spine + 1))?;
    join_hosts(&mut builder, &leaves, &fabric.hosts, fabric.link)?;
    let pairs = leaves.iter().flat_map(|leaf| spines.iter().map(|spine| [*leaf, *spine]));
    join(&mut builder, "uplink", fabric.uplink, pairs)?;
    Ok(builder.finish(false))
}

/// Builds a fat tree: tiers `access`, `uplink` and `core`, switches `pod 1 edge 1`…, `pod 1 aggregation 1`…,
/// `core 1`….
///
/// # Errors
/// A parameter out of range, a name twice, or a fabric beyond the limits.
pub fn fat_tree(fabric: &FatTree) -> Result<Topology, TopologyError> {
    let (k, half) = (fabric.k, fabric.k / 2);
    check_range("k", k, 2, NODES_MAX)?;
    if k % 2 == 1 {
        return Err(TopologyError::Odd(k));
    }
    check_range("lists of hosts", fabric.hosts.len(), 0, k * half)?;
    for hosts in &fabric.hosts {
        check_range("an edge switch's hosts", hosts.len(), 0, half)?;
    }
    let mut builder = TopologyBuilder::new();
    let in_pod =
        |kind: &'static str| move |at: usize| format!("pod {} {kind} {}", at / half + 1, at % half + 1);
    let edges = switches(&mut builder, k * half, in_pod("edge"))?;
    let aggregations = switches(&mut builder, k * half, in_pod("aggregation"))?;
    let cores = switches(&mut builder, half * half, |core| format!("core {}", core + 1))?;
    join_hosts(&mut builder, &edges, &fabric.hosts, fabric.link)?;
    let pod_of = |at: usize| at / half * half;
    let uplinks = (0..k * half).flat_map(|edge| {
        let pod = &aggregations[pod_of(edge)..][..half];
        let edge = edges[edge];
        pod.iter().map(move |aggregation| [edge, *aggregation])
    });
    join(&mut builder, "uplink", fabric.uplink, uplinks)?;
    // Aggregation switch j of every pod has the cores of row j.
    let to_cores = (0..k * half).flat_map(|at| {
        let aggregation = aggregations[at];
        cores[at % half * half..][..half].iter().map(move |core| [aggregation, *core])
    });
    join(&mut builder, "core", fabric.core, to_cores)?;
    Ok(builder.finish(false))
}

/// Builds a BCube: tiers `level 0`…, switches `level 0 switch 0`….
///
/// # Errors
/// A parameter out of range, a name twice, or a fabric beyond the limits.
pub fn bcube(fabric: &BCube) -> Result<Topology, TopologyError> {
    let (n, levels) = (fabric.n, fabric.k + 1);
    check_range("n", n, 2, NODES_MAX)?;
    check_range("k", fabric.k, 0, BCUBE_K_MAX)?;
    let too_many = TopologyError::TooMany { what: "hosts and switches", max: NODES_MAX };
    let servers = n.checked_pow(levels as u32).filter(|servers| *servers <= NODES_MAX).ok_or(too_many)?;
    check_range("hosts", fabric.hosts.len(), 0, servers)?;
    if fabric.links.len() != 1 {
        check_range("links", fabric.links.len(), levels, levels)?;
    }
    let mut builder = TopologyBuilder::new();
    let mut hosts = Vec::with_capacity(servers);
    for server in 0..servers {
        let unnamed = || format!("server {}", digits(server, n, levels));
        hosts.push(builder.host(&fabric.hosts.get(server).cloned().unwrap_or_else(unnamed))?);
    }
    for level in 0..levels {
        let name =
            |switch| format!("level {level} switch {}", digits(switch, n, levels - 1)).trim_end().to_owned();
        let switches = switches(&mut builder, servers / n, name)?;
        // A switch is numbered by the servers' other digits: those above the level, then those below.
        let below = n.pow(level as u32);
        let switch_of = |server: usize| server / (below * n) * below + server % below;
        let spec = fabric.links[if fabric.links.len() == 1 { 0 } else { level }];
        let pairs = hosts.iter().enumerate().map(|(server, host)| [*host, switches[switch_of(server)]]);
        join(&mut builder, &format!("level {level}"), spec, pairs)?;
    }
    let mut topology = builder.finish(true);
    topology.routes_by_tier = true;
    Ok(topology)
}

fn switches(
    builder: &mut TopologyBuilder,
    count: usize,
    name: impl Fn(usize) -> String,
) -> Result<Vec<NodeId>, TopologyError> {
    // Refused at the limit, before more are made.
    (0..count).map(|at| builder.switch(&name(at))).collect()
}

fn join_hosts(
    builder: &mut TopologyBuilder,
    switches: &[NodeId],
    hosts: &[Vec<String>],
    spec: LinkSpec,
) -> Result<(), TopologyError> {
    let mut pairs = Vec::new();
    for (switch, names) in switches.iter().zip(hosts) {
        for name in names {
            pairs.push([builder.host(name)?, *switch]);
        }
    }
    join(builder, "access", spec, pairs)
}

fn join(
    builder: &mut TopologyBuilder,
    tier: &str,
    spec: LinkSpec,
    pairs: impl IntoIterator<Item = [NodeId; 2]>,
) -> Result<(), TopologyError> {
    let tier = builder.tier(tier)?;
    for ends in pairs {
        builder.link(Link { ends, tier, cost: spec.cost, bits_per_s: spec.bits_per_s })?;
    }
    Ok(())
}

fn check_range(what: &'static str, value: usize, min: usize, max: usize) -> Result<(), TopologyError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(TopologyError::Range { what, value, min, max }) }
}

/// A number's digits in base `n`, the highest first; separated where one digit may need two characters.
fn digits(number: usize, n: usize, count: usize) -> String {
    let digit = |place: usize| (number / n.pow(place as u32) % n).to_string();
    let digits: Vec<String> = (0..count).rev().map(digit).collect();
    digits.join(if n > 10 { "." } else { "" })
}
