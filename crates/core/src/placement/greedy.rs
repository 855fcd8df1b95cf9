//! The placement of VMScatter (VEE 2013).

use std::cmp::Reverse;

use super::model::Model;
use super::pack::Packing;

/// Fills the target of greatest capacity first, always with the VM that shares most with those already there; the
/// first is the one that shares most with all that have no place yet. `None` if that, and pushing others on, leaves one without a place.
pub(super) fn greedy(model: &Model) -> Option<Vec<u8>> {
    let (rules, sample) = (&model.rules, &model.sample);
    let mut packing = Packing::with_pins(rules);
    let mut order: Vec<usize> = (0..rules.targets()).collect();
    order.sort_by_key(|target| Reverse((rules.free[*target], rules.vms_max[*target])));
    let mut open: Vec<usize> = (0..rules.vms()).filter(|vm| rules.pinned[*vm].is_none()).collect();
    // In how many of the groups' VMs without a place a content stands.
    let mut open_members: Vec<u32> = vec![0; sample.groups()];
    for vm in &open {
        sample.groups_of(*vm).iter().for_each(|group| open_members[*group as usize] += 1);
    }
    let mut held = vec![false; sample.groups()];
    let mut shares = vec![0u64; rules.vms()];
    for target in order {
        held.fill(false);
        shares.fill(0);
        let mut hold = |vm: usize, shares: &mut [u64]| {
            for group in sample.groups_of(vm) {
                let group = *group as usize;
                if !std::mem::replace(&mut held[group], true) {
                    let members = sample.members(group).iter();
                    members.for_each(|vm| shares[usize::from(*vm)] += sample.contents[group]);
                }
            }
        };
        let pinned = (0..rules.vms()).filter(|vm| packing.placed[*vm] == Some(target as u8));
        let mut empty = true;
        for vm in pinned {
            hold(vm, &mut shares);
            empty = false;
        }
        loop {
            let fitting = open.iter().filter(|vm| packing.load.fits(**vm, target));
            let with_open = |vm: usize| {
                let groups = sample.groups_of(vm).iter().map(|group| *group as usize);
                groups.filter(|group| open_members[*group] > 1).map(|group| sample.contents[group]).sum()
            };
            // Of equals the first.
            let most = fitting
                .copied()
                .max_by_key(|vm| (if empty { with_open(*vm) } else { shares[*vm] }, Reverse(*vm)));
            let Some(vm) = most else { break };
            packing.put(vm, target);
            hold(vm, &mut shares);
            sample.groups_of(vm).iter().for_each(|group| open_members[*group as usize] -= 1);
            open.retain(|other| *other != vm);
            empty = false;
        }
    }
    open.into_iter().all(|vm| packing.push_in(vm)).then(|| packing.complete())
}
