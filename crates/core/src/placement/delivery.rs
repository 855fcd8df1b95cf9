//! What it costs to bring a content from the source to a set of targets.

use super::{TargetId, TargetSet};

/// The links over which targets are reached, as a tree that grows from the source: multicast carries a content once
/// over each link behind which a target needs it.
///
/// Nodes are numbered so that a parent's number is below its children's; the links from the source itself have no parent.
/// Without a topology each target has one link of its own, of cost 1, and the cost of a placement is the network traffic:
/// the distinct contents over all targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryTree {
    links: Vec<DeliveryLink>,
    /// For each target the link that ends at it.
    targets: Vec<usize>,
}

/// One link of a [`DeliveryTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryLink {
    /// The link before it; `None` at the source.
    pub parent: Option<usize>,
    /// What one content over it costs.
    pub cost: u64,
}

impl DeliveryTree {
    /// One link of cost 1 to each target: what a single switch looks like.
    pub fn flat(targets: usize) -> Self {
        let link = DeliveryLink { parent: None, cost: 1 };
        DeliveryTree { links: vec![link; targets], targets: (0..targets).collect() }
    }

    /// A tree of these links; `targets` names for each target the link that ends at it.
    ///
    /// # Panics
    /// If a link's parent does not stand before it, or a target's link does not exist.
    pub fn new(links: Vec<DeliveryLink>, targets: Vec<usize>) -> Self {
        let in_order = |(at, link): (usize, &DeliveryLink)| link.parent.is_none_or(|parent| parent < at);
        assert!(links.iter().enumerate().all(in_order), "a parent stands before its children");
        assert!(targets.iter().all(|link| *link < links.len()), "a target's link exists");
        DeliveryTree { links, targets }
    }

    /// All links, parents first.
    pub fn links(&self) -> &[DeliveryLink] {
        &self.links
    }

    /// How many targets.
    pub fn targets(&self) -> usize {
        self.targets.len()
    }

    /// The links to a target, from it back to the source.
    ///
    /// # Panics
    /// If there is no such target.
    pub fn path(&self, target: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(self.targets[target]), |link| self.links[*link].parent)
    }
}

/// The links of a tree that make a difference: those without cost or without a target behind them are left out, and
/// links behind which the same targets lie are one. At most twice as many as targets.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    /// What one content over each link costs.
    pub(super) cost: Vec<u64>,
    /// The link before each, which has a lower number.
    pub(super) parent: Vec<Option<u32>>,
    /// The targets behind each.
    pub(super) behind: Vec<TargetSet>,
    /// For each target the links to it, from the source on.
    pub(super) paths: Vec<Vec<u32>>,
}

impl Links {
    /// At most 128 targets.
    pub(super) fn of(tree: &DeliveryTree) -> Self {
        let mut behind = vec![TargetSet::EMPTY; tree.links.len()];
        for target in 0..tree.targets() {
            tree.path(target).for_each(|link| behind[link].insert(TargetId(target as u8)));
        }
        let mut links = Links::default();
        // For each link of the tree the one that stands for it, or for the nearest before it.
        let mut kept: Vec<Option<u32>> = Vec::with_capacity(tree.links.len());
        for (link, set) in tree.links.iter().zip(&behind) {
            let before = link.parent.and_then(|parent| kept[parent]);
            kept.push(match before {
                before if link.cost == 0 || set.is_empty() => before,
                Some(before) if links.behind[before as usize] == *set => {
                    let cost = &mut links.cost[before as usize];
                    *cost = cost.saturating_add(link.cost);
                    Some(before)
                }
                before => {
                    links.cost.push(link.cost);
                    links.parent.push(before);
                    links.behind.push(*set);
                    Some(links.behind.len() as u32 - 1)
                }
            });
        }
        let path = |target: &usize| {
            let upwards = std::iter::successors(kept[*target], |link| links.parent[*link as usize]);
            let mut path: Vec<u32> = upwards.collect();
            path.reverse();
            path
        };
        links.paths = tree.targets.iter().map(path).collect();
        links
    }

    pub(super) fn len(&self) -> usize {
        self.cost.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_make_no_difference_are_left_out() {
        let link = |parent, cost| DeliveryLink { parent, cost };
        // Link 0 leads to all by 1 (free) and 2; 3 and 4 are a chain to target 0; 5 leads nowhere; 6 to target 1.
        let all = vec![
            link(None, 2),
            link(Some(0), 0),
            link(Some(1), 3),
            link(Some(2), 1),
            link(Some(3), 4),
            link(Some(2), 9),
            link(Some(2), 7),
        ];
        let links = Links::of(&DeliveryTree::new(all, vec![4, 6, 1]));
        assert_eq!(links.cost, [2, 3, 5, 7]);
        assert_eq!(links.parent, [None, Some(0), Some(1), Some(1)]);
        assert_eq!(links.paths, [vec![0, 1, 2], vec![0, 1, 3], vec![0]]);
    }
}
