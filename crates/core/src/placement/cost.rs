//! What a placement costs.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::delivery::Links;
use super::{DeliveryTree, HolderGroups, TargetId, TargetSet};

/// The sum over all links of their cost times the distinct contents that are carried over them; with
/// [`DeliveryTree::flat`] the network traffic in contents. Saturates.
///
/// # Panics
/// If `placement` has not one of the tree's targets for each VM of `groups`.
pub fn cost(groups: &HolderGroups, tree: &DeliveryTree, placement: &[TargetId]) -> u64 {
    assert_eq!(groups.vms(), placement.len(), "each VM has a target");
    let links = Links::of(tree);
    // The last group, by its number plus one, that was found behind each link.
    let mut seen = vec![0usize; links.len()];
    let mut sum = 0u128;
    let mut add = |number: usize, vms: &mut dyn Iterator<Item = usize>, contents: u64| {
        let mut cost = 0u128;
        for vm in vms {
            for link in links.paths[usize::from(placement[vm].0)].iter().rev() {
                if std::mem::replace(&mut seen[*link as usize], number) == number {
                    break;
                }
                cost += u128::from(links.cost[*link as usize]);
            }
        }
        sum = sum.saturating_add(cost.saturating_mul(u128::from(contents)));
    };
    for (vm, contents) in groups.alone.iter().enumerate() {
        add(vm + 1, &mut std::iter::once(vm), *contents);
    }
    for (at, group) in groups.shared.iter().enumerate() {
        let mut vms = group.vms.iter().map(|vm| usize::from(*vm));
        add(groups.vms() + at + 1, &mut vms, group.contents);
    }
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// Contents that leave the source with so many multicast group addresses: each once, but where there are more sets of
/// several targets than addresses, those that gain least by multicast go to each member by itself. Saturates.
///
/// # Panics
/// If `placement` has not one target below 128 for each VM of `groups`.
pub fn egress_contents(groups: &HolderGroups, placement: &[TargetId], group_addresses: usize) -> u64 {
    assert_eq!(groups.vms(), placement.len(), "each VM has a target");
    let mut sets: HashMap<TargetSet, u64> = HashMap::new();
    for group in &groups.shared {
        let set: TargetSet = group.vms.iter().map(|vm| placement[usize::from(*vm)]).collect();
        if set.len() > 1 {
            let contents = sets.entry(set).or_default();
            *contents = contents.saturating_add(group.contents);
        }
    }
    // Copies that multicast saves.
    let saved = |(set, contents): (TargetSet, u64)| contents.saturating_mul(set.len() as u64 - 1);
    let mut saved: Vec<u64> = sets.into_iter().map(saved).collect();
    saved.sort_unstable_by_key(|copies| Reverse(*copies));
    saved.iter().skip(group_addresses).fold(groups.contents(), |sum, copies| sum.saturating_add(*copies))
}
