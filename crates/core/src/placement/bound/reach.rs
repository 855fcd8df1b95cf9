//! What it costs to reach some number of targets.

use std::collections::HashMap;

use super::room::Needed;
use crate::placement::TargetSet;
use crate::placement::delivery::Links;

/// Sets of pinned targets for which the costs are kept; for others pins are left out of account.
const PINNED_SETS_MAX: usize = 1_000;

/// The least cost of a content that goes to so many targets.
pub(super) struct Reach<'a> {
    links: &'a Links,
    children: Vec<Vec<usize>>,
    /// For each set of targets that are among them, the cost by their number.
    costs: HashMap<TargetSet, Vec<u64>>,
}

impl<'a> Reach<'a> {
    pub(super) fn new(links: &'a Links) -> Self {
        let mut children = vec![Vec::new(); links.len() + 1];
        for (link, parent) in links.parent.iter().enumerate() {
            children[parent.map_or(links.len(), |parent| parent as usize)].push(link);
        }
        let mut reach = Reach { links, children, costs: HashMap::new() };
        let any = reach.behind(links.len(), TargetSet::EMPTY);
        reach.costs.insert(TargetSet::EMPTY, any);
        reach
    }

    pub(super) fn cost(&mut self, needed: &Needed) -> u64 {
        if !self.costs.contains_key(&needed.pinned) && self.costs.len() < PINNED_SETS_MAX {
            let costs = self.behind(self.links.len(), needed.pinned);
            self.costs.insert(needed.pinned, costs);
        }
        let costs = self.costs.get(&needed.pinned).unwrap_or_else(|| &self.costs[&TargetSet::EMPTY]);
        costs[needed.targets]
    }

    /// The least cost behind a link (or behind the source, which has the number after the last link) by the number of targets
    /// that are reached there, `among` them all that lie there; `u64::MAX` where that can't be.
    fn behind(&self, link: usize, among: TargetSet) -> Vec<u64> {
        let ends_here = |path: &Vec<u32>| path.last().map_or(self.links.len(), |last| *last as usize) == link;
        let (mut must, mut may) = (0, 0);
        for (target, _) in self.links.paths.iter().enumerate().filter(|(_, path)| ends_here(path)) {
            if among.contains(crate::placement::TargetId(target as u8)) { must += 1 } else { may += 1 }
        }
        let mut costs = vec![u64::MAX; must];
        costs.extend(vec![0; may + 1]);
        for child in &self.children[link] {
            let behind = self.behind(*child, among);
            let mut merged = vec![u64::MAX; costs.len() + behind.len() - 1];
            for (here, cost) in costs.iter().enumerate().filter(|(_, cost)| **cost < u64::MAX) {
                for (there, more) in behind.iter().enumerate() {
                    let least = &mut merged[here + there];
                    *least = (*least).min(cost.saturating_add(*more));
                }
            }
            costs = merged;
        }
        let own = self.links.cost.get(link).copied().unwrap_or(0);
        for cost in costs.iter_mut().skip(1) {
            *cost = cost.saturating_add(own);
        }
        costs
    }
}
