//! A placement with what every move of one VM would cost.

use crate::placement::model::{Load, Model};
use crate::placement::{TargetId, TargetSet};

/// A VM without a place.
pub(super) const NOWHERE: u8 = u8::MAX;
/// What a used target costs where few are wanted: more than all links.
const TARGET_COST: i64 = 1 << 59;

/// A placement of all or some VMs, and the cost of its sample of groups.
pub(super) struct State<'m> {
    pub(super) model: &'m Model<'m>,
    pub(super) load: Load<'m>,
    pub(super) placed: Vec<u8>,
    /// Of all links; without targets.
    pub(super) cost: u64,
    pub(super) used: u32,
    /// VMs of a group behind a link: groups by links.
    counts: Vec<u16>,
    /// What a VM has and no other one behind a link, whether it is there itself or not: VMs by links.
    marginal: Vec<u64>,
    links: usize,
}

impl<'m> State<'m> {
    /// Of all VMs in these places, which the constraints allow.
    pub(super) fn new(model: &'m Model<'m>, placed: &[u8]) -> Self {
        let (sample, links) = (&model.sample, model.links.len());
        let mut state = State {
            model,
            load: Load::new(&model.rules),
            placed: placed.to_vec(),
            cost: 0,
            used: 0,
            counts: vec![0; sample.groups() * links],
            marginal: vec![0; placed.len() * links],
            links,
        };
        for (vm, target) in placed.iter().enumerate().filter(|(_, target)| **target != NOWHERE) {
            state.occupy(vm, usize::from(*target));
        }
        for vm in 0..placed.len() {
            state.marginal[vm * links..][..links].fill(sample.alone[vm]);
            for link in state.path(placed[vm]) {
                state.cost += model.links.cost[*link as usize] * sample.alone[vm];
            }
        }
        for group in 0..sample.groups() {
            state.count(group);
        }
        state
    }

    /// Counts a group into its row of counts, the margins of its VMs, and the cost.
    fn count(&mut self, group: usize) {
        let (model, links) = (self.model, self.links);
        let contents = model.sample.contents[group];
        let row = &mut self.counts[group * links..][..links];
        for vm in model.sample.members(group) {
            for link in path(model, self.placed[usize::from(*vm)]) {
                row[*link as usize] += 1;
            }
        }
        for (_, cost) in row.iter().zip(&model.links.cost).filter(|(count, _)| **count > 0) {
            self.cost += cost * contents;
        }
        for vm in model.sample.members(group) {
            let margins = &mut self.marginal[usize::from(*vm) * links..][..links];
            for (margin, count) in margins.iter_mut().zip(row.iter()) {
                *margin += if *count == 0 { contents } else { 0 };
            }
            for link in path(model, self.placed[usize::from(*vm)]) {
                margins[*link as usize] += if row[*link as usize] == 1 { contents } else { 0 };
            }
        }
    }

    pub(super) fn path(&self, target: u8) -> &'m [u32] {
        path(self.model, target)
    }

    /// What is least first: targets, if few are wanted, then cost.
    pub(super) fn score(&self) -> (u32, u64) {
        (if self.model.problem.few_targets { self.used } else { 0 }, self.cost)
    }

    /// What a VM would cost at a target more than where it is (or, if it is nowhere, in all); with what opening and
    /// emptying targets costs, where few are wanted.
    pub(super) fn move_cost(&self, vm: usize, target: usize) -> i64 {
        let cost = self.link_cost(vm, target as u8);
        if self.model.problem.few_targets { cost + self.target_cost(vm, target) } else { cost }
    }

    fn target_cost(&self, vm: usize, target: usize) -> i64 {
        let empties = self.placed[vm] != NOWHERE && self.load.counts[usize::from(self.placed[vm])] == 1;
        let opens = self.load.counts[target] == 0;
        TARGET_COST * (i64::from(opens) - i64::from(empties && usize::from(self.placed[vm]) != target))
    }

    /// What two VMs cost more in each other's place; where both moves by themselves gain nothing, the swap neither does, and
    /// their sum is given.
    pub(super) fn swap_cost(&self, one: usize, other: usize) -> i64 {
        let (a, b) = (self.placed[one], self.placed[other]);
        let moves = self.link_cost(one, b) + self.link_cost(other, a);
        if moves >= 0 {
            return moves;
        }
        let (old, new) = (self.path(a), self.path(b));
        let common = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        // A content that both hold and no third one there neither leaves nor comes.
        let kept = |group: usize| {
            let counts = &self.counts[group * self.links..][..self.links];
            let kept = old[common..].iter().chain(&new[common..]).filter(|link| counts[**link as usize] == 1);
            kept.map(|link| self.model.links.cost[*link as usize]).sum::<u64>()
                * self.model.sample.contents[group]
        };
        let sample = &self.model.sample;
        moves + both(sample.groups_of(one), sample.groups_of(other)).map(kept).sum::<u64>() as i64
    }

    /// As [`State::move_cost`], of links alone.
    fn link_cost(&self, vm: usize, target: u8) -> i64 {
        let (old, new) = (self.path(self.placed[vm]), self.path(target));
        let common = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        let margins = &self.marginal[vm * self.links..][..self.links];
        let price = |link: &u32| (self.model.links.cost[*link as usize] * margins[*link as usize]) as i64;
        new[common..].iter().map(price).sum::<i64>() - old[common..].iter().map(price).sum::<i64>()
    }

    /// Whether two VMs may take each other's place.
    pub(super) fn can_swap(&self, one: usize, other: usize) -> bool {
        let (a, b) = (usize::from(self.placed[one]), usize::from(self.placed[other]));
        self.load.fits_after(one, b, other) && self.load.fits_after(other, a, one)
    }

    pub(super) fn relocate(&mut self, vm: usize, target: u8) {
        self.lift(vm);
        self.put(vm, target);
    }

    pub(super) fn swap(&mut self, one: usize, other: usize) {
        let (a, b) = (self.placed[one], self.placed[other]);
        self.lift(one);
        self.lift(other);
        self.put(one, b);
        self.put(other, a);
    }

    /// Takes a VM from its place.
    pub(super) fn lift(&mut self, vm: usize) {
        let target = std::mem::replace(&mut self.placed[vm], NOWHERE);
        self.load.take(vm, usize::from(target));
        self.used -= u32::from(self.load.counts[usize::from(target)] == 0);
        for link in self.path(target) {
            let link = *link as usize;
            self.cost -= self.model.links.cost[link] * self.marginal[vm * self.links + link];
            for group in self.model.sample.groups_of(vm) {
                let count = &mut self.counts[*group as usize * self.links + link];
                *count -= 1;
                let left = *count;
                self.change_margins(*group as usize, link, vm, left, |margin, contents| *margin += contents);
            }
        }
    }

    /// Puts a VM that is nowhere to a target where it fits.
    pub(super) fn put(&mut self, vm: usize, target: u8) {
        self.occupy(vm, usize::from(target));
        for link in self.path(target) {
            let link = *link as usize;
            self.cost += self.model.links.cost[link] * self.marginal[vm * self.links + link];
            for group in self.model.sample.groups_of(vm) {
                let count = &mut self.counts[*group as usize * self.links + link];
                let before = *count;
                *count += 1;
                self.change_margins(*group as usize, link, vm, before, |margin, contents| {
                    *margin -= contents
                });
            }
        }
        self.placed[vm] = target;
    }

    fn occupy(&mut self, vm: usize, target: usize) {
        self.load.put(vm, target);
        self.used += u32::from(self.load.counts[target] == 1);
    }

    /// Changes what depends on whether `vm`, which is nowhere, is one of a group behind a link, beside `others`: where there
    /// is none, all other VMs' margins; where there is one, that one's.
    fn change_margins(
        &mut self,
        group: usize,
        link: usize,
        vm: usize,
        others: u16,
        change: impl Fn(&mut u64, u64),
    ) {
        if others > 1 {
            return;
        }
        let (sample, behind) = (&self.model.sample, self.model.links.behind[link]);
        let contents = sample.contents[group];
        for other in sample.members(group).iter().map(|vm| usize::from(*vm)).filter(|other| *other != vm) {
            if others == 0 {
                change(&mut self.marginal[other * self.links + link], contents);
            } else if is_behind(behind, self.placed[other]) {
                change(&mut self.marginal[other * self.links + link], contents);
                return;
            }
        }
    }
}

fn path<'m>(model: &'m Model, target: u8) -> &'m [u32] {
    model.links.paths.get(usize::from(target)).map_or(&[], |path| path)
}

fn is_behind(targets: TargetSet, target: u8) -> bool {
    targets.contains(TargetId(target))
}

/// What stands in both of two ascending lists.
fn both<'a>(one: &'a [u32], other: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
    let mut other = other.iter().peekable();
    one.iter().filter_map(move |item| {
        while other.peek().is_some_and(|next| *next < item) {
            other.next();
        }
        (other.peek() == Some(&item)).then_some(*item as usize)
    })
}
