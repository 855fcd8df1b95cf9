//! What it costs to bring a content from the source to a set of targets.

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
