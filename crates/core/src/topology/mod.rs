//! A network between the source and the targets: what bringing contents to them costs, and which link it loads.
//!
//! A [`Topology`] is hosts and switches joined by full-duplex links with a rate, a tier and a cost per content; the
//! builders [`leaf_spine`], [`fat_tree`] and [`bcube`] make the usual ones. [`Topology::routes`] works out the shortest
//! paths from one source to its targets. From these [`Routes`] comes the [`DeliveryTree`] that placement minimises
//! over, and with [`Routes::evaluate`] the bytes that a placement puts on each link in three ways of moving the VMs.
//!
//! This is a model: contents are counted as pages, without headers, repair or compression, and dirtied pages are left
//! out. All paths have the fewest hops; among these, multicast takes those that reuse links which the same
//! content crosses already, as PIM routers do that choose the next hop by a hash of source and group, and ties are
//! broken by a hash of the target set (or of the flow), so that sets spread over equal paths.
//!
//! [`DeliveryTree`]: crate::placement::DeliveryTree

mod build;
mod graph;
mod load;
mod routes;
#[cfg(test)]
mod tests;

pub use build::{BCube, FatTree, LeafSpine, LinkSpec, bcube, fat_tree, leaf_spine};
pub use graph::{
    LINKS_MAX, Link, LinkId, NODES_MAX, Node, NodeId, TIERS_MAX, Tier, Topology, TopologyBuilder,
    TopologyError,
};
pub use load::{BusiestLink, Evaluation, Loads, TierLoad};
pub use routes::Routes;
