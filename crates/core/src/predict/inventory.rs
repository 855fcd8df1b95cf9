//! What guests hold, and what of it leaves for whom under a placement.

use std::collections::HashMap;

use crate::index::{Contents, Sharing, VmSharing};
use crate::limits::SCHEDULE_SETS_MAX;
use crate::placement::{HolderGroups, Placement, TargetId, TargetSet};
use crate::schedule::{ClassCount, Classes};

/// What one VM holds, in pages; `total` is the sum of the others but `within_contents`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmInventory {
    /// Pages of its RAM blocks.
    pub total: u64,
    /// Zero pages.
    pub zero: u64,
    /// Pages whose content stands nowhere else, or that can't be read from outside.
    pub unique: u64,
    /// Pages whose content stands in this VM only, and more than once.
    pub within: u64,
    /// How many contents those are.
    pub within_contents: u64,
    /// Pages whose content another VM of the same source holds too.
    pub across: u64,
}

/// What the VMs of a plan hold, by holders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Each VM.
    pub vms: Vec<VmInventory>,
    /// Contents by the VMs that hold them.
    pub groups: HolderGroups,
    /// For each of the groups' shared entries, the pages that hold one of its contents.
    pub group_pages: Vec<u64>,
}

impl Inventory {
    /// Of what was indexed: `total_pages` are the pages of each VM's RAM blocks, those included that were not read.
    ///
    /// # Panics
    /// If the VMs are not those of `sharing`.
    pub fn of(contents: &Contents, sharing: &Sharing, total_pages: &[u64]) -> Self {
        let groups = HolderGroups::of(contents, sharing);
        let mut group_pages = vec![0; groups.shared.len()];
        let mut holders = Vec::new();
        for (_, content) in contents.iter() {
            holders.clear();
            holders.extend(content.addrs().map(|addr| addr.vm));
            holders.dedup();
            // The groups are sorted by their holders.
            if let Ok(at) = groups.shared.binary_search_by(|group| group.vms.as_slice().cmp(&holders)) {
                group_pages[at] += content.len() as u64;
            }
        }
        Inventory { vms: inventories(&groups, sharing, total_pages), groups, group_pages }
    }

    /// Of what was saved: how the pages of `sharing` are spread over the groups is not known, so each holder is taken to
    /// have as many copies of a content as VMs have on average.
    ///
    /// # Panics
    /// As for [`Inventory::of`].
    pub fn of_groups(groups: HolderGroups, sharing: &Sharing, total_pages: &[u64]) -> Self {
        let held: u64 = groups.shared.iter().map(|group| group.contents * group.vms.len() as u64).sum();
        let pages: u64 = sharing.vms.iter().map(|vm| vm.across).sum();
        let copies = (pages as f64 / held.max(1) as f64).max(1.0);
        let group_pages = groups.shared.iter();
        let group_pages =
            group_pages.map(|group| ((group.contents * group.vms.len() as u64) as f64 * copies) as u64);
        Inventory {
            vms: inventories(&groups, sharing, total_pages),
            group_pages: group_pages.collect(),
            groups,
        }
    }

    /// Pages of all VMs.
    pub fn total(&self) -> VmInventory {
        self.vms.iter().fold(VmInventory::default(), |sum, vm| VmInventory {
            total: sum.total + vm.total,
            zero: sum.zero + vm.zero,
            unique: sum.unique + vm.unique,
            within: sum.within + vm.within,
            within_contents: sum.within_contents + vm.within_contents,
            across: sum.across + vm.across,
        })
    }

    /// The pages of VMs that have a target, by class.
    pub fn classes(&self, placement: &Placement) -> Classes {
        let mut classes = Classes::default();
        for (vm, target) in self.vms.iter().zip(placement) {
            if target.is_some() {
                classes.zero_pages += vm.zero;
                classes.unique_pages += vm.unique;
                add(&mut classes.isvst, vm.within_contents, vm.within);
            }
        }
        for (group, pages) in self.groups.shared.iter().zip(&self.group_pages) {
            let targets = targets_of(&group.vms, placement);
            match targets.len() {
                0 => {}
                1 => add(&mut classes.imvst, group.contents, *pages),
                _ => add(&mut classes.imvmt, group.contents, *pages),
            }
        }
        classes
    }

    /// What leaves for whom. VMs without a target stay, and nothing of theirs is counted; a group counts as a whole if
    /// several of its VMs have a target.
    pub fn volume(&self, placement: &Placement) -> Volume {
        let target = |vm: usize| placement.get(vm).copied().flatten();
        let vms = self.vms.iter().enumerate().filter_map(|(at, vm)| {
            let record_pages = vm.total - vm.zero;
            Some(VmVolume { target: target(at)?, unique: vm.unique, zero: vm.zero, record_pages })
        });
        let mut volume = Volume { vms: vms.collect(), sets: Vec::new() };
        let mut sets: HashMap<TargetSet, SetVolume> = HashMap::new();
        let mut put = |targets: TargetSet, contents, pages| {
            let set = sets.entry(targets).or_insert(SetVolume { targets, contents: 0, pages: 0 });
            set.contents += contents;
            set.pages += pages;
        };
        for (at, vm) in self.vms.iter().enumerate() {
            if let Some(target) = target(at).filter(|_| vm.within_contents > 0) {
                put(TargetSet::single(target), vm.within_contents, vm.within);
            }
        }
        for (group, pages) in self.groups.shared.iter().zip(&self.group_pages) {
            let targets = targets_of(&group.vms, placement);
            if !targets.is_empty() {
                put(targets, group.contents, *pages);
            }
        }
        volume.sets = sets.into_values().collect();
        volume.sets.sort_unstable_by_key(|set| (std::cmp::Reverse(set.contents), set.targets));
        volume.sets.truncate(SCHEDULE_SETS_MAX);
        volume
    }
}

fn add(class: &mut ClassCount, contents: u64, pages: u64) {
    class.contents += contents;
    class.pages += pages;
}

fn targets_of(vms: &[u16], placement: &Placement) -> TargetSet {
    vms.iter().filter_map(|vm| placement.get(usize::from(*vm)).copied().flatten()).collect()
}

fn inventories(groups: &HolderGroups, sharing: &Sharing, total_pages: &[u64]) -> Vec<VmInventory> {
    assert_eq!((groups.alone.len(), sharing.vms.len()), (total_pages.len(), total_pages.len()));
    let vm = |((vm, alone), total): ((&VmSharing, &u64), &u64)| VmInventory {
        total: *total.max(&vm.pages),
        zero: vm.zero,
        unique: vm.unique + total.saturating_sub(vm.pages),
        within: vm.within,
        within_contents: alone.saturating_sub(vm.unique),
        across: vm.across,
    };
    sharing.vms.iter().zip(&groups.alone).zip(total_pages).map(vm).collect()
}

/// What leaves for whom under a placement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// VMs that have a target.
    pub vms: Vec<VmVolume>,
    /// Shared contents by target set, the set with the most contents first.
    pub sets: Vec<SetVolume>,
}

/// What a VM's stream has to deal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmVolume {
    /// Where it goes.
    pub target: TargetId,
    /// Pages that go by its stream.
    pub unique: u64,
    /// Zero pages.
    pub zero: u64,
    /// Pages that its QEMU writes into the stream, those included that are withheld.
    pub record_pages: u64,
}

/// What goes to a target set before the streams flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetVolume {
    /// To whom.
    pub targets: TargetSet,
    /// Distinct contents.
    pub contents: u64,
    /// Pages that they fill.
    pub pages: u64,
}

impl Volume {
    /// Sets of several targets.
    pub fn multicast(&self) -> impl Iterator<Item = &SetVolume> {
        self.sets.iter().filter(|set| set.targets.len() > 1)
    }

    /// Pages that targets write into guests before the streams flow.
    pub fn scatter_pages(&self) -> u64 {
        self.sets.iter().map(|set| set.pages).sum()
    }

    /// Pages that QEMUs write into their streams.
    pub fn record_pages(&self) -> u64 {
        self.vms.iter().map(|vm| vm.record_pages).sum()
    }
}
