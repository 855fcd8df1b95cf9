//! What it costs to bring contents to targets: on one switch, or over a topology that an operator has described.

use vmscatter_core::placement::{DeliveryTree, HolderGroups, TargetId};
use vmscatter_core::topology::{Loads, Topology};

use crate::agent::input::BadInput;
use crate::agent::protocol::GuestText;
use crate::report::plan::{TierBytes, TopologyReport};
use crate::topology_file;

/// The network between a source and its targets.
#[derive(Clone, Debug)]
pub struct Network {
    tree: DeliveryTree,
    fabric: Option<Fabric>,
}

#[derive(Clone, Debug)]
struct Fabric {
    topology: Topology,
    origin: String,
    source: String,
    targets: Vec<String>,
}

impl Network {
    /// One switch.
    pub fn flat(targets: usize) -> Network {
        Network { tree: DeliveryTree::flat(targets), fabric: None }
    }

    /// As a topology file says.
    ///
    /// # Errors
    /// One line that names the file and what is wrong, or the host that it lacks.
    pub fn of(file: &GuestText, source: &str, targets: &[&str]) -> Result<Network, BadInput> {
        let topology = topology_file::parse(&file.text, &file.origin)?;
        let tree = topology_file::routes(&topology, &file.origin, source, targets)?.delivery_tree();
        let targets = targets.iter().map(|name| (*name).to_owned()).collect();
        let fabric = Fabric { topology, origin: file.origin.clone(), source: source.to_owned(), targets };
        Ok(Network { tree, fabric: Some(fabric) })
    }

    /// The cost of bringing a content to a set of targets.
    pub fn tree(&self) -> &DeliveryTree {
        &self.tree
    }

    /// The same with one target left out.
    pub fn without(&self, target: usize) -> Network {
        let rest = |targets: &[String]| -> Vec<String> {
            let kept = targets.iter().enumerate().filter(|(at, _)| *at != target);
            kept.map(|(_, name)| name.clone()).collect()
        };
        let Some(fabric) = &self.fabric else { return Network::flat(self.tree.targets() - 1) };
        let fabric = Fabric { targets: rest(&fabric.targets), ..fabric.clone() };
        let names: Vec<&str> = fabric.targets.iter().map(String::as_str).collect();
        let routes = topology_file::routes(&fabric.topology, &fabric.origin, &fabric.source, &names);
        // Those that are left could be reached before.
        let tree = routes.map_or_else(|_| DeliveryTree::flat(names.len()), |routes| routes.delivery_tree());
        Network { tree, fabric: Some(fabric) }
    }

    /// The same with one target more; nobody knows where in a topology that would stand.
    pub fn with_one_more(&self) -> Option<Network> {
        self.fabric.is_none().then(|| Network::flat(self.tree.targets() + 1))
    }

    /// What each tier carries in the three ways of moving guests; `None` without a topology.
    pub fn report(
        &self,
        groups: &HolderGroups,
        nonzero_pages: &[u64],
        placement: &[TargetId],
    ) -> Option<TopologyReport> {
        let fabric = self.fabric.as_ref()?;
        let names: Vec<&str> = fabric.targets.iter().map(String::as_str).collect();
        let routes = topology_file::routes(&fabric.topology, &fabric.origin, &fabric.source, &names).ok()?;
        let loads = routes.evaluate(groups, nonzero_pages, placement);
        let tiers = |loads: &Loads| loads.by_tier(&fabric.topology);
        let (before, unicast, multicast) =
            (tiers(&loads.off_the_shelf), tiers(&loads.unicast), tiers(&loads.multicast));
        let tier = |(at, tier): (usize, &vmscatter_core::topology::Tier)| TierBytes {
            tier: tier.name.clone(),
            off_the_shelf: before[at].bytes,
            unicast: unicast[at].bytes,
            multicast: multicast[at].bytes,
        };
        let busiest = |loads: &Loads| {
            loads
                .busiest(&fabric.topology)
                .map(|link| (fabric.topology.describe(link.id), link.time.as_secs_f64()))
        };
        Some(TopologyReport {
            tiers: fabric.topology.tiers().iter().enumerate().map(tier).collect(),
            busiest_off_the_shelf: busiest(&loads.off_the_shelf),
            busiest_unicast: busiest(&loads.unicast),
            busiest_multicast: busiest(&loads.multicast),
        })
    }
}
