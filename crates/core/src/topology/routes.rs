//! Shortest paths from a source, and the trees of them by which sets of targets are reached.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};

use super::graph::{LinkId, NodeId, Topology, TopologyError};
use crate::limits::SESSION_TARGETS_MAX;
use crate::placement::{DeliveryLink, DeliveryTree, TargetId, TargetSet};

/// All shortest paths from a source to its targets.
#[derive(Clone, Debug)]
pub struct Routes<'a> {
    topology: &'a Topology,
    source: NodeId,
    /// As the session numbers them.
    targets: Vec<NodeId>,
    /// Places in `targets`, nearest first.
    nearest_first: Vec<usize>,
    /// For each node the links by which shortest paths enter it, and where these come from.
    entries: Vec<Vec<(NodeId, LinkId)>>,
    /// For each target the nodes on its shortest paths, the source left out, in the order of their distance.
    between: Vec<Vec<NodeId>>,
    /// Where the topology routes by tier: the orders in which tiers may be crossed, each as a rank for each tier.
    orders: Vec<Vec<u8>>,
}

/// What a new part of a tree costs; fewer links decide between equal costs.
type Price = (u64, u32);

impl Topology {
    /// The shortest paths from `source` to `targets`, which are numbered as given.
    ///
    /// # Errors
    /// If one of them is a switch or given twice, a target can't be reached, or there are more targets than a
    /// session has.
    ///
    /// # Panics
    /// If a node is another topology's and not in this one.
    pub fn routes(&self, source: NodeId, targets: &[NodeId]) -> Result<Routes<'_>, TopologyError> {
        if targets.len() > SESSION_TARGETS_MAX {
            return Err(TopologyError::TooMany { what: "targets", max: SESSION_TARGETS_MAX });
        }
        let hops = self.hops_from(source);
        for (at, node) in std::iter::once(&source).chain(targets).enumerate() {
            let name = || self.name(*node).to_owned();
            match () {
                () if !self.nodes[node.0 as usize].is_host => return Err(TopologyError::Switch(name())),
                () if at == 0 => {}
                () if *node == source => return Err(TopologyError::SourceIsTarget(name())),
                () if targets[..at - 1].contains(node) => return Err(TopologyError::Twice(name())),
                () if hops[node.0 as usize] == u32::MAX => {
                    return Err(TopologyError::NoPath(self.name(source).to_owned(), name()));
                }
                () => {}
            }
        }
        let entries: Vec<_> = (0..self.nodes.len()).map(|node| self.entries(source, &hops, node)).collect();
        let between = targets.iter().map(|target| nodes_between(*target, source, &entries)).collect();
        let mut nearest_first: Vec<usize> = (0..targets.len()).collect();
        nearest_first.sort_by_key(|at| hops[targets[*at].0 as usize]);
        let orders = if self.routes_by_tier { permutations(self.tiers.len() as u8) } else { Vec::new() };
        Ok(Routes {
            topology: self,
            source,
            targets: targets.to_vec(),
            nearest_first,
            entries,
            between,
            orders,
        })
    }

    /// Links on the shortest path to each node; `u32::MAX` where there is none.
    fn hops_from(&self, source: NodeId) -> Vec<u32> {
        let mut hops = vec![u32::MAX; self.nodes.len()];
        hops[source.0 as usize] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(node) = queue.pop_front() {
            if !self.passes_on(source, node) {
                continue;
            }
            let next = hops[node.0 as usize] + 1;
            for (neighbour, _) in &self.neighbours[node.0 as usize] {
                let hops = &mut hops[neighbour.0 as usize];
                if *hops == u32::MAX {
                    *hops = next;
                    queue.push_back(*neighbour);
                }
            }
        }
        hops
    }

    fn entries(&self, source: NodeId, hops: &[u32], node: usize) -> Vec<(NodeId, LinkId)> {
        let before = |from: NodeId| {
            let from_hops = hops[from.0 as usize];
            from_hops != u32::MAX && from_hops + 1 == hops[node] && self.passes_on(source, from)
        };
        let reversed = |(from, out): &(NodeId, LinkId)| {
            before(*from).then_some((*from, LinkId { link: out.link, backward: !out.backward }))
        };
        self.neighbours[node].iter().filter_map(reversed).collect()
    }

    fn passes_on(&self, source: NodeId, node: NodeId) -> bool {
        self.hosts_relay || node == source || !self.nodes[node.0 as usize].is_host
    }
}

impl<'a> Routes<'a> {
    /// What these are routes in.
    pub fn topology(&self) -> &'a Topology {
        self.topology
    }

    /// The targets, as the session numbers them.
    pub fn targets(&self) -> &[NodeId] {
        &self.targets
    }

    /// What placement minimises over: the tree to all targets, with the links' costs.
    ///
    /// In a leaf-spine or a fat tree, where every spine or core gives a tree of the same shape, its part to a set
    /// of targets costs what [`Routes::tree`] to that set costs. In BCube it is an upper bound, as one order of
    /// digits serves all sets here.
    pub fn delivery_tree(&self) -> DeliveryTree {
        let all = (0..self.targets.len()).map(|target| TargetId(target as u8)).collect();
        let mut ends_at: HashMap<NodeId, usize> = HashMap::new();
        let mut links = Vec::new();
        for id in self.tree(all, 0) {
            let (from, to) = self.topology.ends(id);
            ends_at.insert(to, links.len());
            let cost = self.topology.links[id.link as usize].cost;
            links.push(DeliveryLink { parent: ends_at.get(&from).copied(), cost });
        }
        DeliveryTree::new(links, self.targets.iter().map(|target| ends_at[target]).collect())
    }

    /// The links by which a set of targets is reached, each once and behind the one that leads to it. `flow` picks
    /// among trees that are equally good.
    ///
    /// # Panics
    /// If the set has a target that was not given.
    pub fn tree(&self, set: TargetSet, flow: u64) -> Vec<LinkId> {
        assert!(set.members().all(|target| usize::from(target.0) < self.targets.len()), "all are targets");
        if self.orders.is_empty() {
            return self.tree_by_reuse(set, flow);
        }
        let by_order = |(at, ranks): (usize, &Vec<u8>)| {
            let tree = self.tree_by_order(set, ranks);
            ((self.price(&tree), mix(flow, at as u64)), tree)
        };
        self.orders.iter().enumerate().map(by_order).min_by_key(|(price, _)| *price).expect("an order").1
    }

    /// Targets one after the other, the nearest first, each by the shortest path that adds least to the tree.
    fn tree_by_reuse(&self, set: TargetSet, flow: u64) -> Vec<LinkId> {
        let nodes = self.topology.nodes.len();
        let (mut tree, mut reached) = (Vec::new(), vec![false; nodes]);
        reached[self.source.0 as usize] = true;
        let mut best: Vec<Option<(Price, u64, NodeId, LinkId)>> = vec![None; nodes];
        for target in self.members(set) {
            for node in &self.between[target] {
                let enter = |(from, id): (NodeId, LinkId)| {
                    let (cost, links) = match best[from.0 as usize] {
                        Some((price, ..)) if !reached[from.0 as usize] => price,
                        _ => (0, 0),
                    };
                    let price = (cost + self.topology.links[id.link as usize].cost, links + 1);
                    (price, mix(flow, u64::from(id.link)), from, id)
                };
                // What is reached costs nothing, but to look at it again is harmless.
                best[node.0 as usize] = self.entries(*node).map(enter).min();
            }
            let mut path = Vec::new();
            let mut node = self.targets[target];
            while !std::mem::replace(&mut reached[node.0 as usize], true) {
                let (.., from, id) = best[node.0 as usize].expect("a path leads here");
                path.push(id);
                node = from;
            }
            tree.extend(path.into_iter().rev());
        }
        tree
    }

    /// Each node is entered by the tier that comes last in the order.
    fn tree_by_order(&self, set: TargetSet, ranks: &[u8]) -> Vec<LinkId> {
        let (mut tree, mut reached) = (Vec::new(), vec![false; self.topology.nodes.len()]);
        reached[self.source.0 as usize] = true;
        for target in self.members(set) {
            let mut path = Vec::new();
            let mut node = self.targets[target];
            while !std::mem::replace(&mut reached[node.0 as usize], true) {
                let rank = |(_, id): &(NodeId, LinkId)| {
                    Reverse(ranks[usize::from(self.topology.links[id.link as usize].tier)])
                };
                let (from, id) = self.entries(node).min_by_key(rank).expect("a path leads here");
                path.push(id);
                node = from;
            }
            tree.extend(path.into_iter().rev());
        }
        tree
    }

    /// Places of a set's targets, nearest first.
    fn members(&self, set: TargetSet) -> impl Iterator<Item = usize> {
        self.nearest_first.iter().copied().filter(move |at| set.0 >> at & 1 == 1)
    }

    fn entries(&self, node: NodeId) -> impl Iterator<Item = (NodeId, LinkId)> {
        self.entries[node.0 as usize].iter().copied()
    }

    fn price(&self, tree: &[LinkId]) -> Price {
        (tree.iter().map(|id| self.topology.links[id.link as usize].cost).sum(), tree.len() as u32)
    }
}

/// The nodes by which a target is reached, and the target itself, in the order of their distance from the source.
fn nodes_between(target: NodeId, source: NodeId, entries: &[Vec<(NodeId, LinkId)>]) -> Vec<NodeId> {
    let (mut between, mut seen) = (vec![target], HashSet::from([target, source]));
    let mut at = 0;
    while let Some(node) = between.get(at) {
        let before = entries[node.0 as usize].iter().map(|(from, _)| *from);
        between.extend(before.filter(|from| seen.insert(*from)).collect::<Vec<_>>());
        at += 1;
    }
    between.reverse();
    between
}

/// All orders of `count` tiers, each as the rank of every tier.
fn permutations(count: u8) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    for next in 0..count {
        let widen = |ranks: Vec<u8>| {
            (0..=next).map(move |rank| {
                let moved = ranks.iter().map(|other| other + u8::from(*other >= rank));
                moved.chain([rank]).collect::<Vec<u8>>()
            })
        };
        all = all.into_iter().flat_map(widen).collect();
    }
    all
}

/// A hash of both, to spread what is equal: splitmix64's output function.
pub(super) fn mix(flow: u64, of: u64) -> u64 {
    let word = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(of.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
