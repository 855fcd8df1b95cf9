//! A placement with what every move of one VM would cost.

use crate::placement::TargetId;
use crate::placement::model::{Load, Model};

/// A VM without a place.
pub(super) const NOWHERE: u8 = u8::MAX;
/// What a used target costs where few are wanted: more than all links.
const TARGET_COST: i64 = 1 << 60;

/// A placement of all or some VMs, and the cost of its sample of groups.
pub(super) struct State<'m> {
    pub(super) model: &'m Model<'m>,
    pub(super) load: Load<'m>,
    pub(super) placed: Vec<u8>,
    /// Each target's VMs.
    there: Vec<Vec<u16>>,
    /// Of all links; without targets.
    cost: u64,
    /// Targets that have a VM.
    used: u32,
    /// VMs of a group behind a link: groups by links.
    counts: Vec<u16>,
    /// What a VM costs at a target beside the others, whether it is there or not: targets by VMs. Over each link on the way
    /// it brings what no other VM behind that link has.
    extra: Vec<u64>,
}

impl<'m> State<'m> {
    /// Of all VMs in these places, which the constraints allow.
    pub(super) fn new(model: &'m Model<'m>, placed: &[u8]) -> Self {
        let (sample, links, targets) = (&model.sample, &model.links, model.rules.targets());
        let mut state = State {
            model,
            load: Load::new(&model.rules),
            placed: placed.to_vec(),
            there: vec![Vec::new(); targets],
            cost: 0,
            used: 0,
            counts: vec![0; sample.groups() * links.len()],
            extra: Vec::with_capacity(targets * placed.len()),
        };
        for path in &links.paths {
            let price: u64 = path.iter().map(|link| links.cost[*link as usize]).sum();
            state.extra.extend(sample.alone.iter().map(|contents| price * contents));
        }
        for vm in 0..placed.len() {
            state.occupy(vm, placed[vm]);
            state.cost += state.extra_cost(vm, placed[vm]);
        }
        for group in 0..sample.groups() {
            state.count(group);
        }
        state
    }

    /// Counts a group that is not counted yet.
    fn count(&mut self, group: usize) {
        let (sample, links) = (&self.model.sample, &self.model.links);
        let row = &mut self.counts[group * links.len()..][..links.len()];
        for vm in sample.members(group) {
            for link in &links.paths[usize::from(self.placed[usize::from(*vm)])] {
                row[*link as usize] += 1;
            }
        }
        for link in 0..links.len() {
            let count = self.counts[group * links.len() + link];
            self.cost += if count > 0 { links.cost[link] * sample.contents[group] } else { 0 };
            self.change_extra(group, link, None, count, |extra, cost| *extra += cost);
        }
    }

    /// What is least first: targets, if few are wanted, then cost.
    pub(super) fn score(&self) -> (u32, u64) {
        (if self.model.problem.few_targets { self.used } else { 0 }, self.cost)
    }

    /// What a VM costs at a target beside the others, whether it is there or not.
    fn extra_cost(&self, vm: usize, target: u8) -> u64 {
        self.extra[usize::from(target) * self.placed.len() + vm]
    }

    /// What a VM would cost at a target more than where it is (or, if it is nowhere, in all); with what opening and
    /// emptying targets costs, where few are wanted.
    pub(super) fn move_cost(&self, vm: usize, target: u8) -> i64 {
        let here = self.placed[vm];
        let now = if here == NOWHERE { 0 } else { self.extra_cost(vm, here) };
        let cost = self.extra_cost(vm, target) as i64 - now as i64;
        if !self.model.problem.few_targets || target == here {
            return cost;
        }
        let empties = here != NOWHERE && self.load.counts[usize::from(here)] == 1;
        let opens = self.load.counts[usize::from(target)] == 0;
        cost + TARGET_COST * (i64::from(opens) - i64::from(empties))
    }

    /// The VM whose swap with this one gains most, and more than `least`, with what it costs.
    pub(super) fn best_swap(&self, vm: usize, least: i64) -> Option<(usize, i64)> {
        let (here, vms) = (self.placed[vm], self.placed.len());
        let now = self.extra_cost(vm, here);
        // What this one gains at each target.
        let gains: Vec<i64> =
            (0..self.load.free.len() as u8).map(|to| self.extra_cost(vm, to) as i64 - now as i64).collect();
        let others_here = &self.extra[usize::from(here) * vms..][..vms];
        let (mut least, mut best) = (least, None);
        for (other, there) in self.placed.iter().enumerate() {
            if *there == here || *there == NOWHERE {
                continue;
            }
            // Never more than what the swap costs in truth.
            let moves = gains[usize::from(*there)] + others_here[other] as i64
                - self.extra_cost(other, *there) as i64;
            if moves < least && self.can_swap(vm, other) {
                let cost = moves + self.kept(vm, other) as i64;
                if cost < least {
                    (least, best) = (cost, Some((other, cost)));
                }
            }
        }
        best
    }

    /// What two VMs cost more in each other's place.
    pub(super) fn swap_cost(&self, one: usize, other: usize) -> i64 {
        let (a, b) = (self.placed[one], self.placed[other]);
        let gain =
            |vm: usize, from: u8, to: u8| self.extra_cost(vm, to) as i64 - self.extra_cost(vm, from) as i64;
        gain(one, a, b) + gain(other, b, a) + self.kept(one, other) as i64
    }

    /// What both moves of a swap, each by itself, would count as gained, though a content that both VMs hold, and
    /// no third one behind a link, neither leaves that link nor comes to the other.
    fn kept(&self, one: usize, other: usize) -> u64 {
        let (sample, links) = (&self.model.sample, &self.model.links);
        let (old, new) = (self.path(self.placed[one]), self.path(self.placed[other]));
        let common = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        let kept = |group: usize| {
            let counts = &self.counts[group * links.len()..][..links.len()];
            let alone =
                old[common..].iter().chain(&new[common..]).filter(|link| counts[**link as usize] == 1);
            alone.map(|link| links.cost[*link as usize]).sum::<u64>() * sample.contents[group]
        };
        both(sample.groups_of(one), sample.groups_of(other)).map(kept).sum()
    }

    /// Whether two VMs may take each other's place.
    pub(super) fn can_swap(&self, one: usize, other: usize) -> bool {
        let (a, b) = (usize::from(self.placed[one]), usize::from(self.placed[other]));
        self.load.fits_after(one, b, other) && self.load.fits_after(other, a, one)
    }

    /// The VMs at a target.
    pub(super) fn at(&self, target: u8) -> impl Iterator<Item = usize> + '_ {
        self.there[usize::from(target)].iter().map(|vm| usize::from(*vm))
    }

    /// The links to a target.
    pub(super) fn path(&self, target: u8) -> &'m [u32] {
        &self.model.links.paths[usize::from(target)]
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
        self.there[usize::from(target)].retain(|other| usize::from(*other) != vm);
        self.used -= u32::from(self.load.counts[usize::from(target)] == 0);
        self.cost -= self.extra_cost(vm, target);
        for link in self.path(target) {
            for group in self.model.sample.groups_of(vm) {
                let count = &mut self.counts[*group as usize * self.model.links.len() + *link as usize];
                *count -= 1;
                let others = *count;
                self.change_extra(*group as usize, *link as usize, Some(vm), others, |extra, cost| {
                    *extra += cost
                });
            }
        }
    }

    /// Puts a VM that is nowhere to a target where it fits.
    pub(super) fn put(&mut self, vm: usize, target: u8) {
        self.occupy(vm, target);
        self.cost += self.extra_cost(vm, target);
        for link in self.path(target) {
            for group in self.model.sample.groups_of(vm) {
                let count = &mut self.counts[*group as usize * self.model.links.len() + *link as usize];
                let others = *count;
                *count += 1;
                self.change_extra(*group as usize, *link as usize, Some(vm), others, |extra, cost| {
                    *extra -= cost
                });
            }
        }
        self.placed[vm] = target;
    }

    fn occupy(&mut self, vm: usize, target: u8) {
        self.load.put(vm, usize::from(target));
        self.there[usize::from(target)].push(vm as u16);
        self.used += u32::from(self.load.counts[usize::from(target)] == 1);
    }

    /// Changes what depends on whether `vm` is one of a group behind a link, beside `others`: where there is none, what all
    /// others of the group cost behind it; where there is one, what that one does.
    #[inline]
    fn change_extra(
        &mut self,
        group: usize,
        link: usize,
        vm: Option<usize>,
        others: u16,
        change: impl Fn(&mut u64, u64),
    ) {
        if others > 1 {
            return;
        }
        let (sample, links, vms) = (&self.model.sample, &self.model.links, self.placed.len());
        let (behind, cost) = (links.behind[link], links.cost[link] * sample.contents[group]);
        let members =
            sample.members(group).iter().map(|vm| usize::from(*vm)).filter(|other| Some(*other) != vm);
        if others == 0 {
            for target in behind.members() {
                let extra = &mut self.extra[usize::from(target.0) * vms..][..vms];
                members.clone().for_each(|other| change(&mut extra[other], cost));
            }
            return;
        }
        let is_behind = |other: &usize| behind.contains(TargetId(self.placed[*other]));
        let other = members.clone().find(is_behind).expect("one is counted");
        for target in behind.members() {
            change(&mut self.extra[usize::from(target.0) * vms + other], cost);
        }
    }
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
