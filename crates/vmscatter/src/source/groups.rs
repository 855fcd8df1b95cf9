//! Multicast groups of a session: which target sets share one, and what their members are granted.

use std::net::SocketAddr;

use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::placement::{TargetId, TargetSet};
use vmscatter_core::schedule::{Schedule, SetLoad, SetPlan, order_sets, unsorted};
use vmscatter_core::session::AddressSet;
use vmscatter_core::wire::control::SetGrant;

use crate::agent::config::MulticastPrefix;
use crate::random::random;

/// A target set of several members, as it is granted.
#[derive(Clone, Debug)]
pub(super) struct SetLink {
    /// Its number on the wire.
    pub(super) number: u16,
    pub(super) set: TargetSet,
    pub(super) key: [u8; 32],
    /// The group that serves it; none where multicast is not used.
    pub(super) group: Option<SocketAddr>,
}

/// All sets of several members and the groups that serve them.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    /// In the schedule's order.
    pub(super) sets: Vec<SetLink>,
    /// For each group its sets, in the order in which it serves them.
    pub(super) lists: Vec<Vec<AddressSet>>,
    /// Joins and leaves of members if all goes well.
    pub(super) planned_changes: u64,
}

impl Groups {
    /// The schedule's sets where multicast is not used. Wire numbers begin with `first_number`.
    pub(super) fn none(schedule: &Schedule, first_number: u16) -> Groups {
        let link =
            |(number, plan): (u16, &SetPlan)| SetLink { number, set: plan.set, key: random(), group: None };
        let sets = (first_number..).zip(schedule.multicast()).map(link).collect();
        Groups { sets, lists: Vec::new(), planned_changes: 0 }
    }

    /// Divides the schedule's sets over at most `groups_max` groups. Wire numbers begin with `first_number`.
    pub(super) fn new(
        schedule: &Schedule,
        groups_max: usize,
        is_sorted: bool,
        first_number: u16,
        prefix: &MulticastPrefix,
    ) -> Groups {
        let load =
            |plan: &SetPlan| SetLoad { set: plan.set, bytes: plan.contents.len() as u64 * PAGE_SIZE as u64 };
        let loads: Vec<SetLoad> = schedule.multicast().iter().map(load).collect();
        // As many as there are different ones.
        let groups_max = groups_max.min(usize::try_from(prefix.groups()).unwrap_or(usize::MAX));
        let order =
            if is_sorted { order_sets(&loads, groups_max) } else { unsorted(loads.len(), groups_max) };
        let addresses = random_groups(order.lists.len(), prefix);
        let mut group_of = vec![None; loads.len()];
        for (list, address) in order.lists.iter().zip(addresses) {
            list.iter().for_each(|set| group_of[*set] = Some(address));
        }
        let link = |((at, load), group): ((usize, &SetLoad), Option<SocketAddr>)| SetLink {
            number: first_number + at as u16,
            set: load.set,
            key: random(),
            group: Some(group.expect("every set is in one list")),
        };
        let sets: Vec<SetLink> = loads.iter().enumerate().zip(group_of).map(link).collect();
        let address_set = |at: &usize| AddressSet { number: sets[*at].number, members: sets[*at].set };
        let lists = order.lists.iter().map(|list| list.iter().map(address_set).collect()).collect();
        Groups { lists, planned_changes: order.joins_and_leaves(&loads), sets }
    }

    /// What a target is a member of.
    pub(super) fn grants(&self, target: u16) -> Vec<SetGrant> {
        let member = |set: &&SetLink| set.set.contains(TargetId(target as u8));
        let grant = |set: &SetLink| SetGrant { set: set.number, key: set.key, group: set.group };
        self.sets.iter().filter(member).map(grant).collect()
    }
}

/// Different groups, all with one port, random so that two sources that drain to one target never meet; the prefix must have as many.
pub(super) fn random_groups(count: usize, prefix: &MulticastPrefix) -> Vec<SocketAddr> {
    let port = 1024 + u16::from_be_bytes(random()) % 60_000;
    let mut groups: Vec<SocketAddr> = Vec::with_capacity(count);
    while groups.len() < count {
        let group = SocketAddr::new(prefix.group(u128::from_be_bytes(random())), port);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}
