//! The bytes that a placement puts on each link.

use std::collections::HashMap;
use std::time::Duration;

use super::graph::{LinkId, Topology};
use super::routes::{Routes, mix};
use crate::page::PAGE_SIZE;
use crate::placement::{HolderGroups, TargetId, TargetSet};

/// Bytes on each direction of each link of a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loads {
    /// By link, forward and backward.
    bytes: Vec<[u64; 2]>,
}

/// The same placement in three ways of moving the VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// Each VM's non-zero pages go to its target.
    pub off_the_shelf: Loads,
    /// Each content goes once to each target that needs it.
    pub unicast: Loads,
    /// Each content crosses each link once, behind which a target needs it.
    pub multicast: Loads,
}

/// What the links of one tier carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierLoad {
    /// All of them, both directions together.
    pub bytes: u64,
    /// One direction of the one that carries most.
    pub bytes_max: u64,
}

/// The link that takes longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusiestLink {
    /// The link and the direction.
    pub id: LinkId,
    /// What it carries.
    pub bytes: u64,
    /// How long that takes at its full rate: no migration along these routes can be faster.
    pub time: Duration,
}

impl Loads {
    /// No load.
    pub fn none(topology: &Topology) -> Self {
        Loads { bytes: vec![[0; 2]; topology.links().len()] }
    }

    /// Adds bytes to each of these links.
    ///
    /// # Panics
    /// If a link is another topology's and not in this one.
    pub fn add(&mut self, links: &[LinkId], bytes: u64) {
        for id in links {
            let load = &mut self.bytes[id.link as usize][usize::from(id.backward)];
            *load = load.saturating_add(bytes);
        }
    }

    /// Adds another source's loads in the same topology.
    ///
    /// # Panics
    /// If the other topology has another number of links.
    pub fn merge(&mut self, other: &Loads) {
        assert_eq!(self.bytes.len(), other.bytes.len(), "loads of one topology");
        for (mine, others) in self.bytes.iter_mut().flatten().zip(other.bytes.iter().flatten()) {
            *mine = mine.saturating_add(*others);
        }
    }

    /// Every link, each direction by itself, and what it carries.
    pub fn iter(&self) -> impl Iterator<Item = (LinkId, u64)> + '_ {
        self.bytes.iter().enumerate().flat_map(|(at, both)| {
            let id = |backward| LinkId { link: at as u32, backward };
            [(id(false), both[0]), (id(true), both[1])]
        })
    }

    /// Bytes times the links that each crosses.
    pub fn byte_hops(&self) -> u64 {
        self.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(bytes))
    }

    /// Bytes times the cost of the links that each crosses: what placement minimises under multicast, times the bytes
    /// of a page. `topology` is the one that these are loads of.
    pub fn cost_bytes(&self, topology: &Topology) -> u64 {
        let cost = |id: LinkId| topology.links()[id.link as usize].cost;
        self.iter().fold(0, |sum, (id, bytes)| sum.saturating_add(bytes.saturating_mul(cost(id))))
    }

    /// What each tier carries, as [`Topology::tiers`] orders them.
    pub fn by_tier(&self, topology: &Topology) -> Vec<TierLoad> {
        let mut tiers = vec![TierLoad::default(); topology.tiers().len()];
        for (id, bytes) in self.iter() {
            let tier = &mut tiers[usize::from(topology.links()[id.link as usize].tier)];
            tier.bytes = tier.bytes.saturating_add(bytes);
            tier.bytes_max = tier.bytes_max.max(bytes);
        }
        tiers
    }

    /// The link that takes longest, the first of equals; `None` where nothing is carried.
    pub fn busiest(&self, topology: &Topology) -> Option<BusiestLink> {
        let rate = |id: LinkId| topology.links()[id.link as usize].bits_per_s;
        // Compared crosswise, without rounding: bytes and rates have 64 bits.
        let slower = |a: (LinkId, u64), b: (LinkId, u64)| {
            let longer = u128::from(b.1) * u128::from(rate(a.0)) > u128::from(a.1) * u128::from(rate(b.0));
            if longer { b } else { a }
        };
        let (id, bytes) = self.iter().filter(|(_, bytes)| *bytes > 0).reduce(slower)?;
        let seconds = bytes as f64 * 8.0 / rate(id) as f64;
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Some(BusiestLink { id, bytes, time })
    }
}

impl Routes<'_> {
    /// The bytes on each link when every VM goes to its target of `placement`. `nonzero_pages` are each VM's pages
    /// that are not zero, repeats included; all three have the same VMs, in the session's order.
    ///
    /// # Panics
    /// If the numbers of VMs differ, or the placement names a target that was not given.
    pub fn evaluate(
        &self,
        groups: &HolderGroups,
        nonzero_pages: &[u64],
        placement: &[TargetId],
    ) -> Evaluation {
        assert_eq!(groups.vms(), placement.len(), "each VM has a target");
        assert_eq!(nonzero_pages.len(), placement.len(), "each VM has its pages");
        let none = Loads::none(self.topology());
        let mut loads = Evaluation { off_the_shelf: none.clone(), unicast: none.clone(), multicast: none };
        for (vm, (pages, target)) in nonzero_pages.iter().zip(placement).enumerate() {
            let path = self.tree(TargetSet::single(*target), vm as u64);
            loads.off_the_shelf.add(&path, page_bytes(*pages));
        }
        let mut to_target = vec![0u64; self.targets().len()];
        for (set, contents) in contents_by_set(groups, placement) {
            let flow = mix(set.0 as u64, (set.0 >> 64) as u64);
            loads.multicast.add(&self.tree(set, flow), page_bytes(contents));
            for target in set.members() {
                let sum = &mut to_target[usize::from(target.0)];
                *sum = sum.saturating_add(contents);
            }
        }
        for (target, contents) in to_target.into_iter().enumerate() {
            let path = self.tree(TargetSet::single(TargetId(target as u8)), target as u64);
            loads.unicast.add(&path, page_bytes(contents));
        }
        loads
    }
}

/// How many distinct contents each set of targets needs.
fn contents_by_set(groups: &HolderGroups, placement: &[TargetId]) -> HashMap<TargetSet, u64> {
    let mut by_set: HashMap<TargetSet, u64> = HashMap::new();
    let alone =
        groups.alone.iter().zip(placement).map(|(count, target)| (TargetSet::single(*target), *count));
    let target = |vm: &u16| placement[usize::from(*vm)];
    let shared = groups.shared.iter().map(|group| (group.vms.iter().map(target).collect(), group.contents));
    for (set, contents) in alone.chain(shared) {
        let sum = by_set.entry(set).or_default();
        *sum = sum.saturating_add(contents);
    }
    by_set
}

fn page_bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE as u64)
}
