//! Hosts, switches and the links between them.

use std::collections::HashMap;

use thiserror::Error;

/// Hosts and switches of one topology.
pub const NODES_MAX: usize = 4_096;
/// Links of one topology.
pub const LINKS_MAX: usize = 16_384;
/// Tiers of one topology.
pub const TIERS_MAX: usize = 16;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 255;
/// The largest cost of a link: 2^32 contents over [`NODES_MAX`] such links are far from overflow.
const COST_MAX: u64 = 65_536;

/// A host or a switch, in the order in which they were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    /// The link's place in [`Topology::links`].
    pub link: u32,
    /// From its second end to its first.
    pub backward: bool,
}

/// A host or a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the topology.
    pub name: String,
    /// A host may be a source or a target; a switch is neither.
    pub is_host: bool,
}

/// A full-duplex link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it joins.
    pub ends: [NodeId; 2],
    /// Its tier's place in [`Topology::tiers`].
    pub tier: u8,
    /// What one content that crosses it costs, in either direction.
    pub cost: u64,
    /// Capacity of each direction, in bits per second, above zero.
    pub bits_per_s: u64,
}

/// Links that are summed up together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Unique in the topology.
    pub name: String,
}

/// A network. See the [module](super).
#[derive(Clone, Debug)]
pub struct Topology {
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    pub(super) tiers: Vec<Tier>,
    /// For each node its links, in their order, and what is at their other ends.
    pub(super) neighbours: Vec<Vec<(NodeId, LinkId)>>,
    /// Whether hosts pass on what is not for them, as servers do in BCube.
    pub(super) hosts_relay: bool,
    /// Whether a route crosses all links of one tier, then all of the next, as digits are corrected in BCube.
    pub(super) routes_by_tier: bool,
}

/// What is wrong with a topology, or with what is asked of it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TopologyError {
    /// More of something than there may be.
    #[error("more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A parameter of a builder is outside its range.
    #[error("{what} is {value}, not {min} to {max}")]
    Range {
        /// The parameter.
        what: &'static str,
        /// What was given.
        value: usize,
        /// The least it may be.
        min: usize,
        /// The most it may be.
        max: usize,
    },
    /// `k` of a fat tree is odd.
    #[error("k is {0}; a fat tree's k is even")]
    Odd(usize),
    /// A name that has no or too many bytes.
    #[error("a name has {0} bytes, not 1 to {NAME_BYTES_MAX}")]
    Name(usize),
    /// Two nodes have this name.
    #[error("'{0}' is there twice")]
    Twice(String),
    /// There is no node of this name.
    #[error("there is no '{0}'")]
    Unknown(String),
    /// A source or a target is a switch.
    #[error("'{0}' is a switch, not a host")]
    Switch(String),
    /// A link that joins a node with itself.
    #[error("a link joins '{0}' with itself")]
    Loop(String),
    /// A link without capacity.
    #[error("a link of '{0}' has a rate of 0")]
    NoRate(String),
    /// A link's cost is too large.
    #[error("a link of '{0}' costs more than {COST_MAX}")]
    Cost(String),
    /// The source is among the targets.
    #[error("'{0}' is the source and a target")]
    SourceIsTarget(String),
    /// No path leads to a target.
    #[error("no path leads from '{0}' to '{1}'")]
    NoPath(String, String),
}

impl Topology {
    /// All hosts and switches; a [`NodeId`] is a place here.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(at, node)| (NodeId(at as u32), node))
    }

    /// All links.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// All tiers, hosts' links first where a builder made them.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The host of this name.
    ///
    /// # Errors
    /// If there is none, or it is a switch.
    pub fn host(&self, name: &str) -> Result<NodeId, TopologyError> {
        match self.nodes().find(|(_, node)| node.name == name) {
            Some((id, node)) if node.is_host => Ok(id),
            Some(_) => Err(TopologyError::Switch(name.to_owned())),
            None => Err(TopologyError::Unknown(name.to_owned())),
        }
    }

    /// Where one direction of a link begins and where it ends.
    ///
    /// # Panics
    /// If the link is another topology's and not in this one.
    pub fn ends(&self, id: LinkId) -> (NodeId, NodeId) {
        let [first, second] = self.links[id.link as usize].ends;
        if id.backward { (second, first) } else { (first, second) }
    }

    /// One direction of a link for people: `source > leaf 1`. Panics as [`Topology::ends`] does.
    pub fn describe(&self, id: LinkId) -> String {
        let (from, to) = self.ends(id);
        format!("{} > {}", self.name(from), self.name(to))
    }

    pub(super) fn name(&self, id: NodeId) -> &str {
        &self.nodes[id.0 as usize].name
    }
}

/// Puts a [`Topology`] together: nodes, then the links between them.
#[derive(Clone, Debug, Default)]
pub struct TopologyBuilder {
    nodes: Vec<Node>,
    by_name: HashMap<String, NodeId>,
    links: Vec<Link>,
    tiers: Vec<Tier>,
}

impl TopologyBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        TopologyBuilder::default()
    }

    /// Adds a host.
    ///
    /// # Errors
    /// If the name is no name or taken, or there are too many nodes.
    pub fn host(&mut self, name: &str) -> Result<NodeId, TopologyError> {
        self.node(name, true)
    }

    /// Adds a switch; errors as [`TopologyBuilder::host`].
    pub fn switch(&mut self, name: &str) -> Result<NodeId, TopologyError> {
        self.node(name, false)
    }

    /// The node of this name.
    pub fn get(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    /// Adds a tier, or finds the one of this name.
    ///
    /// # Errors
    /// If the name is no name, or there are too many tiers.
    pub fn tier(&mut self, name: &str) -> Result<u8, TopologyError> {
        check_name(name)?;
        if let Some(at) = self.tiers.iter().position(|tier| tier.name == name) {
            return Ok(at as u8);
        }
        check_room(self.tiers.len(), TIERS_MAX, "tiers")?;
        self.tiers.push(Tier { name: name.to_owned() });
        Ok((self.tiers.len() - 1) as u8)
    }

    /// Adds a link. Several between the same two nodes are parallel links.
    ///
    /// # Errors
    /// If its ends are one node, it has no rate, or costs too much, or there are too many links.
    ///
    /// # Panics
    /// If its ends or its tier are not of this builder.
    pub fn link(&mut self, link: Link) -> Result<(), TopologyError> {
        assert!(usize::from(link.tier) < self.tiers.len(), "the tier has been added");
        let [first, second] = link.ends.map(|end| self.nodes[end.0 as usize].name.as_str());
        let name = first.to_owned();
        match link {
            _ if first == second => return Err(TopologyError::Loop(name)),
            Link { bits_per_s: 0, .. } => return Err(TopologyError::NoRate(name)),
            Link { cost, .. } if cost > COST_MAX => return Err(TopologyError::Cost(name)),
            _ => check_room(self.links.len(), LINKS_MAX, "links")?,
        }
        self.links.push(link);
        Ok(())
    }

    /// The topology. `hosts_relay`: hosts with several links pass on what is not for them.
    pub fn finish(self, hosts_relay: bool) -> Topology {
        let mut neighbours = vec![Vec::new(); self.nodes.len()];
        for (at, Link { ends: [first, second], .. }) in self.links.iter().enumerate() {
            let link = at as u32;
            neighbours[first.0 as usize].push((*second, LinkId { link, backward: false }));
            neighbours[second.0 as usize].push((*first, LinkId { link, backward: true }));
        }
        let TopologyBuilder { nodes, links, tiers, .. } = self;
        Topology { nodes, links, tiers, neighbours, hosts_relay, routes_by_tier: false }
    }

    fn node(&mut self, name: &str, is_host: bool) -> Result<NodeId, TopologyError> {
        check_name(name)?;
        check_room(self.nodes.len(), NODES_MAX, "hosts and switches")?;
        let id = NodeId(self.nodes.len() as u32);
        if self.by_name.insert(name.to_owned(), id).is_some() {
            return Err(TopologyError::Twice(name.to_owned()));
        }
        self.nodes.push(Node { name: name.to_owned(), is_host });
        Ok(id)
    }
}

fn check_name(name: &str) -> Result<(), TopologyError> {
    match name.len() {
        1..=NAME_BYTES_MAX => Ok(()),
        bytes => Err(TopologyError::Name(bytes)),
    }
}

fn check_room(count: usize, max: usize, what: &'static str) -> Result<(), TopologyError> {
    if count < max { Ok(()) } else { Err(TopologyError::TooMany { what, max }) }
}
