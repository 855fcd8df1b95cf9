//! What no placement can cost less than.
//!
//! *By group*: the VMs of a group need some number of targets at least, by memory, limits, pins and anti-affinity, and to
//! reach so many costs something at least.
//!
//! *By VM*: a content that several VMs at a target hold is charged to them in equal shares, over the links that lead to this
//! target alone. A VM has so many neighbours at most, and whoever they are, its shares add up to something at least.
//! Links that lead to several targets are counted by group still.
//!
//! The first is the stronger where groups are larger than a target, the second where groups overlap; each group is
//! counted by one of them, in three ways to deal them, of which the best counts.

mod neighbours;
mod reach;
mod room;

use self::neighbours::Neighbours;
use self::reach::Reach;
pub(super) use self::room::Rooms;
use super::delivery::Links;
use super::model::Model;

/// Pairs of VMs in one group, over all groups, beyond which only the bound by group is computed.
const PAIRS_MAX: u64 = 50_000_000;

/// No placement that keeps the constraints costs less.
pub(super) fn lower_bound(model: &Model) -> u64 {
    let (rooms, groups) = (Rooms::new(&model.rules), model.problem.groups);
    let needed: Vec<room::Needed> = groups.shared.iter().map(|group| rooms.needed(&group.vms)).collect();
    let all = by_group(model, &needed, &mut Reach::new(&model.links));
    let members = |group: &super::HolderGroup| (group.vms.len() as u64).pow(2);
    let pairs = groups.shared.iter().map(members).fold(0u64, u64::saturating_add);
    if pairs > PAIRS_MAX || !model.sample.is_whole() {
        return all.iter().sum();
    }
    let own = own_costs(&model.links);
    let shared = by_group(model, &needed, &mut Reach::new(&without_own(&model.links)));
    let neighbours = Neighbours::new(model, &rooms, &own);
    // Contents of one VM come last, and have no neighbours to share with.
    let deal = |to_vms: &dyn Fn(usize) -> bool| {
        let by_group = all.iter().zip(&shared).enumerate();
        let group_cost = |(at, (all, shared)): (usize, (&u64, &u64))| match groups.shared.get(at) {
            Some(_) if to_vms(at) => *shared,
            _ => *all,
        };
        by_group.map(group_cost).sum::<u64>() + neighbours.bound(to_vms)
    };
    let fills_targets = |at: usize| {
        let vms = groups.shared[at].vms.len();
        vms <= rooms.vms_max() || vms % rooms.vms_max() == 0
    };
    all.iter().sum::<u64>().max(deal(&|_| true)).max(deal(&fills_targets))
}

/// For each group, and then for each VM's own contents, the least that they cost.
fn by_group(model: &Model, needed: &[room::Needed], reach: &mut Reach) -> Vec<u64> {
    let groups = model.problem.groups;
    let shared = groups.shared.iter().zip(needed);
    let mut costs: Vec<u64> = shared.map(|(group, needed)| group.contents * reach.cost(needed)).collect();
    for (vm, contents) in groups.alone.iter().enumerate() {
        let pinned = model.rules.pinned[vm].map(super::TargetId).into_iter().collect();
        costs.push(contents * reach.cost(&room::Needed { pinned, targets: 1 }));
    }
    costs
}

/// For each target what the links cost that lead to it alone.
fn own_costs(links: &Links) -> Vec<u64> {
    let own = |link: &u32| links.behind[*link as usize].len() == 1;
    let cost =
        |path: &Vec<u32>| path.iter().filter(|link| own(link)).map(|link| links.cost[*link as usize]).sum();
    links.paths.iter().map(cost).collect()
}

fn without_own(links: &Links) -> Links {
    let mut links = links.clone();
    for (cost, behind) in links.cost.iter_mut().zip(&links.behind) {
        *cost = if behind.len() == 1 { 0 } else { *cost };
    }
    links
}
