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
        let entries = (0..self.nodes.len()).map(|node| self.entries(source, &hops, node)).collect();
        let mut nearest_first: Vec<usize> = (0..targets.len()).collect();
        nearest_first.sort_by_key(|at| hops[targets[*at].0 as usize]);
        let orders = if self.routes_by_tier { permutations(self.tiers.len() as u8) } else { Vec::new() };
        Ok(Routes { topology: self, source, targets: targets.to_vec(), nearest_first, entries, orders })
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
        let member = |at: &&usize| set.0 >> **at & 1 == 1;
        let nodes: Vec<NodeId> =
            self.nearest_first.iter().filter(member).map(|at| self.targets[*at]).collect();
        if self.orders.is_empty() {
            return self.tree_by_reuse(&nodes, flow);
        }
        let by_order = |(at, ranks): (usize, &Vec<u8>)| {
            let tree = self.tree_by_order(&nodes, ranks);
            ((self.price(&tree), mix(flow, at as u64)), tree)
        };
        self.orders.iter().enumerate().map(by_order).min_by_key(|(price, _)| *price).expect("an order").1
    }

    /// Targets one after the other, each by the shortest path that adds least to the tree.
    fn tree_by_reuse(&self, nodes: &[NodeId], flow: u64) -> Vec<LinkId> {
        let mut tree = Vec::new();
        let mut reached = HashSet::from([self.source]);
        for node in nodes {
            let mut path = self.cheapest_path(*node, &reached, flow);
            path.reverse();
            reached.extend(path.iter().map(|id| self.topology.ends(*id).1));
            tree.extend(path);
        }
        tree
    }

    /// The links from a target back to the tree, on the shortest path that has the least price.
    fn cheapest_path(&self, target: NodeId, reached: &HashSet<NodeId>, flow: u64) -> Vec<LinkId> {
        // All nodes on shortest paths between the tree and the target, the farthest from the source first.
        let (mut between, mut seen) = (vec![target], HashSet::from([target]));
        let mut at = 0;
        while let Some(node) = between.get(at).copied() {
            at += 1;
            if !reached.contains(&node) {
                between.extend(self.entries(node).map(|(from, _)| from).filter(|from| seen.insert(*from)));
            }
        }
        let mut prices: HashMap<NodeId, Price> = HashMap::new();
        let mut best_entry: HashMap<NodeId, (NodeId, LinkId)> = HashMap::new();
        for node in between.into_iter().rev() {
            if reached.contains(&node) {
                prices.insert(node, (0, 0));
                continue;
            }
            let price = |(from, id): (NodeId, LinkId)| {
                let (cost, links) = prices[&from];
                (
                    (cost + self.topology.links[id.link as usize].cost, links + 1),
                    mix(flow, u64::from(id.link)),
                )
            };
            let best = self.entries(node).min_by_key(|entry| price(*entry)).expect("a path leads here");
            prices.insert(node, price(best).0);
            best_entry.insert(node, best);
        }
        let mut path = Vec::new();
        let mut node = target;
        while let Some((from, id)) = best_entry.get(&node) {
            path.push(*id);
            node = *from;
        }
        path
    }

    /// Each node is entered by the tier that comes last in the order.
    fn tree_by_order(&self, nodes: &[NodeId], ranks: &[u8]) -> Vec<LinkId> {
        let mut tree = Vec::new();
        let mut reached = HashSet::from([self.source]);
        for node in nodes {
            let mut path = Vec::new();
            let mut node = *node;
            while reached.insert(node) {
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

    fn entries(&self, node: NodeId) -> impl Iterator<Item = (NodeId, LinkId)> {
        self.entries[node.0 as usize].iter().copied()
    }

    fn price(&self, tree: &[LinkId]) -> Price {
        (tree.iter().map(|id| self.topology.links[id.link as usize].cost).sum(), tree.len() as u32)
    }
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
