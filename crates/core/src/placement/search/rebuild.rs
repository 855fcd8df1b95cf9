//! Uphill, to get elsewhere: a few targets are emptied and filled anew, or two exchange all they have.

use super::{NOWHERE, Search};

/// VMs that are placed anew at once.
const REBUILT_VMS_MAX: usize = 64;

impl Search<'_, '_> {
    /// Changes the placement, and queues what to look at. Where it says no, VMs may be without a place.
    pub(super) fn perturb(&mut self) -> bool {
        let movable = self.movable();
        if movable.is_empty() || self.state.load.free.len() < 2 {
            return false;
        }
        let vm = movable[self.random.below(movable.len())];
        let first = self.state.placed[vm];
        if self.targets_differ() && self.random.below(4) == 0 {
            let other = self.random.below(self.state.load.free.len()) as u8;
            return self.exchange(first, other);
        }
        let mut targets = vec![first];
        for _ in 0..1 + self.random.below(2) {
            let other = self.related(vm);
            if !targets.contains(&other) {
                targets.push(other);
            }
        }
        self.rebuild(&targets)
    }

    fn movable(&self) -> Vec<usize> {
        (0..self.state.placed.len()).filter(|vm| self.state.model.rules.pinned[*vm].is_none()).collect()
    }

    /// Whether it makes a difference which of two targets takes a set of VMs.
    fn targets_differ(&self) -> bool {
        let links = &self.state.model.links;
        links.paths.iter().any(|path| path.len() != 1 || links.cost[path[0] as usize] != links.cost[0])
    }

    /// A target: any, or one where the VM would cost little.
    fn related(&mut self, vm: usize) -> u8 {
        let targets = self.state.load.free.len();
        let any = self.random.below(targets);
        if self.random.below(2) == 0 {
            return any as u8;
        }
        let tries = (0..4).map(|_| self.random.below(targets)).chain([any]).collect::<Vec<_>>();
        let cost = |target: &usize| self.state.move_cost(vm, *target as u8);
        let elsewhere = tries.into_iter().filter(|target| *target != usize::from(self.state.placed[vm]));
        elsewhere.min_by_key(cost).unwrap_or(any) as u8
    }

    fn exchange(&mut self, one: u8, other: u8) -> bool {
        let movable = self.movable().into_iter();
        let swapped: Vec<(usize, u8)> = movable
            .filter_map(|vm| match self.state.placed[vm] {
                here if here == one => Some((vm, other)),
                here if here == other => Some((vm, one)),
                _ => None,
            })
            .collect();
        swapped.iter().for_each(|(vm, _)| self.state.lift(*vm));
        for (vm, target) in swapped {
            if !self.state.load.fits(vm, usize::from(target)) {
                return false;
            }
            self.state.put(vm, target);
        }
        self.changed(&[one, other]);
        true
    }

    fn rebuild(&mut self, targets: &[u8]) -> bool {
        let mut vms = self.movable();
        vms.retain(|vm| targets.contains(&self.state.placed[*vm]));
        self.random.shuffle(&mut vms);
        vms.truncate(REBUILT_VMS_MAX);
        vms.iter().for_each(|vm| self.state.lift(*vm));
        if self.random.below(2) == 0 {
            for target in targets {
                self.fill(*target, &mut vms);
            }
        }
        let placed = vms.into_iter().all(|vm| self.insert(vm, targets));
        self.changed(targets);
        placed
    }

    /// Fills a target with those that share most with what is there, and takes them off the list.
    fn fill(&mut self, target: u8, vms: &mut Vec<usize>) {
        let state = &mut self.state;
        let price: u64 = state.path(target).iter().map(|link| state.model.links.cost[*link as usize]).sum();
        loop {
            let fitting = (0..vms.len()).filter(|at| state.load.fits(vms[*at], usize::from(target)));
            let shares = |at: &usize| {
                let own = state.model.sample.contents_of(vms[*at]) * price;
                own as i64 - state.move_cost(vms[*at], target)
            };
            let Some(most) = fitting.max_by_key(shares) else { return };
            let vm = vms.swap_remove(most);
            state.put(vm, target);
        }
    }

    /// Puts a VM where it costs least, of these targets or, if none has room, of all.
    fn insert(&mut self, vm: usize, targets: &[u8]) -> bool {
        let state = &mut self.state;
        let fits = |target: &u8| state.load.fits(vm, usize::from(*target));
        let cost = |target: &u8| state.move_cost(vm, *target);
        let near = targets.iter().copied().filter(fits).min_by_key(cost);
        let all = 0..state.load.free.len() as u8;
        let Some(target) = near.or_else(|| all.filter(fits).min_by_key(cost)) else { return false };
        state.put(vm, target);
        true
    }

    /// Places all VMs anew, the one with most contents first, each where it costs least. Where it says no, VMs may be without
    /// a place.
    pub(super) fn insert_all(&mut self) -> bool {
        let mut vms = self.movable();
        vms.iter().for_each(|vm| self.state.lift(*vm));
        let sample = &self.state.model.sample;
        vms.sort_by_key(|vm| std::cmp::Reverse(sample.contents_of(*vm)));
        vms.into_iter().all(|vm| self.insert(vm, &[]))
    }
}

const _: () = assert!(NOWHERE as usize >= crate::limits::SESSION_TARGETS_MAX);
