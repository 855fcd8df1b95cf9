//! Finds any placement that keeps memory, limits, pins and anti-affinity, without regard to its cost.

use std::cmp::Reverse;

use super::bound::Rooms;
use super::model::{Load, Rules};
use super::sample::Random;

/// Orders of the VMs that are tried.
const ORDERS_MAX: u64 = 200;
/// Orders that are tried for each number of targets, where few are wanted.
const FEW_ORDERS_MAX: u64 = 12;
/// VMs that are tried in another's place, over all of one packing.
const EJECTIONS_MAX: u32 = 20_000;
/// VMs that one VM may push on, each the next.
const CHAIN_MAX: u32 = 3;

/// A placement in the making.
#[derive(Clone)]
pub(super) struct Packing<'a> {
    pub(super) load: Load<'a>,
    pub(super) placed: Vec<Option<u8>>,
    ejections: u32,
}

/// How a target is chosen among those that have room.
#[derive(Clone, Copy)]
enum Choice {
    /// The one with the fewest VMs, then with the most memory.
    Even,
    /// The one with the least memory left.
    Tight,
}

/// Packs all VMs: largest first and evenly, which is what an operator expects; else tightly; else in shuffled orders.
///
/// # Errors
/// The fewest that were left over. That is no proof that there is no packing.
pub(super) fn pack(rules: &Rules, seed: u64) -> Result<Vec<u8>, LeftOver> {
    pack_in_orders(rules, seed, ORDERS_MAX)
}

/// Packs all VMs into as few targets as it can: the largest, and those to which VMs are pinned.
pub(super) fn pack_few(rules: &Rules, seed: u64) -> Option<Vec<u8>> {
    let mut targets: Vec<usize> = (0..rules.targets()).collect();
    let is_pinned = |target: usize| rules.pinned.contains(&Some(target as u8));
    targets.sort_by_key(|target| Reverse((is_pinned(*target), rules.free[*target], rules.vms_max[*target])));
    let all: Vec<u16> = (0..rules.vms() as u16).collect();
    let fewest = Rooms::new(rules).needed(&all).targets;
    (fewest..=targets.len()).find_map(|count| {
        let mut some = rules.clone();
        targets[count..].iter().for_each(|target| some.vms_max[*target] = 0);
        pack_in_orders(&some, seed, FEW_ORDERS_MAX).ok()
    })
}

fn pack_in_orders(rules: &Rules, seed: u64, orders: u64) -> Result<Vec<u8>, LeftOver> {
    let mut random = Random::new(seed);
    let mut fewest: Option<LeftOver> = None;
    for attempt in 0..orders {
        let mut packing = Packing::with_pins(rules);
        let mut order: Vec<usize> = (0..rules.vms()).filter(|vm| rules.pinned[*vm].is_none()).collect();
        if attempt >= 4 {
            random.shuffle(&mut order);
        }
        // Shuffled orders are in turn kept whole, and used only among VMs of one size.
        match attempt % 3 {
            _ if attempt >= 4 && attempt % 2 == 0 => {}
            0 | 1 => order.sort_by_key(|vm| Reverse(rules.memory[*vm])),
            _ => order.sort_by_key(|vm| Reverse((rules.apart_of[*vm].len(), rules.memory[*vm]))),
        }
        let choice = if attempt % 2 == 0 { Choice::Even } else { Choice::Tight };
        let left: Vec<usize> = order.into_iter().filter(|vm| !packing.insert(*vm, choice)).collect();
        let left: Vec<usize> = left.into_iter().filter(|vm| !packing.push_in(*vm)).collect();
        match left.first() {
            None => return Ok(packing.complete()),
            Some(vm) if fewest.as_ref().is_none_or(|fewest| left.len() < fewest.vms) => {
                fewest = Some(LeftOver { vm: *vm, vms: left.len(), free: packing.load.free });
            }
            Some(_) => {}
        }
    }
    Err(fewest.expect("there is a first attempt"))
}

/// What could not be placed.
pub(super) struct LeftOver {
    /// The first of them.
    pub(super) vm: usize,
    vms: usize,
    /// Memory left at each target.
    pub(super) free: Vec<u64>,
}

impl<'a> Packing<'a> {
    /// With nothing but what is pinned, which is known to fit.
    pub(super) fn with_pins(rules: &'a Rules) -> Self {
        let mut packing = Packing { load: Load::new(rules), placed: vec![None; rules.vms()], ejections: 0 };
        for (vm, pin) in rules.pinned.iter().enumerate() {
            if let Some(pin) = pin {
                packing.put(vm, usize::from(*pin));
            }
        }
        packing
    }

    pub(super) fn put(&mut self, vm: usize, target: usize) {
        self.load.put(vm, target);
        self.placed[vm] = Some(target as u8);
    }

    fn take(&mut self, vm: usize, target: usize) {
        self.load.take(vm, target);
        self.placed[vm] = None;
    }

    /// All VMs' targets.
    ///
    /// # Panics
    /// If a VM has none.
    pub(super) fn complete(self) -> Vec<u8> {
        self.placed.into_iter().map(|target| target.expect("each VM has its place")).collect()
    }

    fn insert(&mut self, vm: usize, choice: Choice) -> bool {
        let load = &self.load;
        let fitting = (0..load.free.len()).filter(|target| load.fits(vm, *target));
        let target = match choice {
            Choice::Even => fitting.min_by_key(|target| (load.counts[*target], Reverse(load.free[*target]))),
            Choice::Tight => fitting.min_by_key(|target| load.free[*target]),
        };
        target.map(|target| self.put(vm, target)).is_some()
    }

    /// Makes room for a VM: another one goes elsewhere, for which another may have to go elsewhere, and so on.
    pub(super) fn push_in(&mut self, vm: usize) -> bool {
        (1..=CHAIN_MAX).any(|chain| self.push(vm, chain))
    }

    fn push(&mut self, vm: usize, chain: u32) -> bool {
        if self.insert(vm, Choice::Tight) {
            return true;
        }
        if chain == 0 {
            return false;
        }
        for other in 0..self.placed.len() {
            let Some(target) = self.placed[other].map(usize::from) else { continue };
            if self.load.rules.pinned[other].is_some() || !self.load.fits_after(vm, target, other) {
                continue;
            }
            if self.ejections == EJECTIONS_MAX {
                return false;
            }
            self.ejections += 1;
            self.take(other, target);
            self.put(vm, target);
            if self.push(other, chain - 1) {
                return true;
            }
            self.take(vm, target);
            self.put(other, target);
        }
        false
    }
}
