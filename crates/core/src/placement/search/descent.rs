//! Downhill: as long as moving a VM, swapping two, or a chain of three gains something.

use super::Search;
use super::state::State;

/// Targets that a chain tries next, the most promising.
const CHAIN_TARGETS: usize = 3;
/// Chains that are tried, of those that promise something.
const CHAIN_TRIES: usize = 4;
/// VMs that are looked at between two questions whether to stop.
const STOP_VMS: u32 = 64;

/// VMs whose moves have to be looked at, since something near them has changed.
pub(super) struct Queue {
    vms: Vec<usize>,
    is_in: Vec<bool>,
}

impl Queue {
    pub(super) fn new(vms: usize) -> Self {
        Queue { vms: Vec::new(), is_in: vec![false; vms] }
    }

    pub(super) fn add(&mut self, vm: usize) {
        if !std::mem::replace(&mut self.is_in[vm], true) {
            self.vms.push(vm);
        }
    }

    pub(super) fn add_all(&mut self) {
        (0..self.is_in.len()).for_each(|vm| self.add(vm));
    }

    fn next(&mut self) -> Option<usize> {
        let vm = self.vms.pop()?;
        self.is_in[vm] = false;
        Some(vm)
    }

    fn clear(&mut self) {
        while self.next().is_some() {}
    }
}

/// A change for the better.
enum Step {
    Move(u8),
    Swap(usize),
}

impl Search<'_, '_> {
    /// Until nothing in the queue gains any more. Chains take most of the time and seldom gain, so they are for placements
    /// that nothing else improves.
    pub(super) fn descend(&mut self, with_chains: bool) {
        self.random.shuffle(&mut self.queue.vms);
        let mut looked = 0;
        while let Some(vm) = self.queue.next() {
            looked += 1;
            if looked % STOP_VMS == 0 && self.is_stopped() {
                self.queue.clear();
                return;
            }
            if self.state.model.rules.pinned[vm].is_some() {
                continue;
            }
            while self.improve(vm, with_chains) {}
        }
    }

    fn improve(&mut self, vm: usize, with_chains: bool) -> bool {
        let old = self.state.placed[vm];
        match best_step(&self.state, vm) {
            Some(Step::Move(target)) => {
                self.state.relocate(vm, target);
                self.changed(&[old, target]);
                true
            }
            Some(Step::Swap(other)) => {
                let target = self.state.placed[other];
                self.state.swap(vm, other);
                self.changed(&[old, target]);
                true
            }
            None => with_chains && self.chain(vm),
        }
    }

    /// What stands at these targets has other margins now.
    pub(super) fn changed(&mut self, targets: &[u8]) {
        for target in targets {
            self.state.at(*target).for_each(|vm| self.queue.add(vm));
        }
    }

    /// Moves a VM, one that it displaces, and where that has no room a third one, which takes the first one's place.
    fn chain(&mut self, vm: usize) -> bool {
        let mut chains = promising_chains(&self.state, vm);
        chains.sort_by_key(|(cost, _)| *cost);
        let score = self.state.score();
        for (_, chain) in chains.into_iter().take(CHAIN_TRIES) {
            let before: Vec<u8> = chain.iter().map(|(vm, _)| self.state.placed[*vm]).collect();
            chain.iter().for_each(|(vm, _)| self.state.lift(*vm));
            chain.iter().for_each(|(vm, target)| self.state.put(*vm, *target));
            if self.state.score() < score {
                let targets: Vec<u8> = chain.iter().map(|(_, target)| *target).chain(before).collect();
                self.changed(&targets);
                return true;
            }
            chain.iter().for_each(|(vm, _)| self.state.lift(*vm));
            chain.iter().zip(before).for_each(|((vm, _), target)| self.state.put(*vm, target));
        }
        false
    }
}

fn best_step(state: &State, vm: usize) -> Option<Step> {
    let (mut least, mut best) = (0, None);
    let here = state.placed[vm];
    for target in (0..state.load.free.len() as u8).filter(|target| *target != here) {
        let cost = state.move_cost(vm, target);
        if cost < least && state.load.fits(vm, usize::from(target)) {
            (least, best) = (cost, Some(Step::Move(target)));
        }
    }
    if let Some((other, _)) = state.best_swap(vm, least) {
        best = Some(Step::Swap(other));
    }
    best
}

type Chain = Vec<(usize, u8)>;

/// Chains whose moves, each by itself, gain something together.
fn promising_chains(state: &State, vm: usize) -> Vec<(i64, Chain)> {
    let mut chains = Vec::new();
    let (here, load) = (state.placed[vm], &state.load);
    let movable = |at| state.at(at).filter(|vm| state.model.rules.pinned[*vm].is_none());
    for (first, second) in cheapest(state, vm, &[here]) {
        for pushed in movable(second).filter(|pushed| load.fits_after(vm, usize::from(second), *pushed)) {
            for (cost, third) in cheapest(state, pushed, &[here, second]) {
                let cost = first + cost;
                if cost < 0 && load.fits(pushed, usize::from(third)) {
                    chains.push((cost, vec![(vm, second), (pushed, third)]));
                    continue;
                }
                for last in movable(third) {
                    let cost = cost + state.move_cost(last, here);
                    let fits =
                        |vm: usize, target: u8, leaves| load.fits_after(vm, usize::from(target), leaves);
                    if cost < 0 && fits(pushed, third, last) && fits(last, here, vm) {
                        chains.push((cost, vec![(vm, second), (pushed, third), (last, here)]));
                    }
                }
            }
        }
    }
    chains
}

/// The targets at which a VM would cost least, with what it would cost more than now, whether there is room or not.
fn cheapest(state: &State, vm: usize, without: &[u8]) -> Vec<(i64, u8)> {
    let targets = (0..state.load.free.len() as u8).filter(|target| !without.contains(target));
    let mut costs: Vec<(i64, u8)> = targets.map(|target| (state.move_cost(vm, target), target)).collect();
    let count = CHAIN_TARGETS.min(costs.len());
    if count < costs.len() {
        costs.select_nth_unstable(count);
        costs.truncate(count);
    }
    costs
}
