//! Which contents stand in which VMs: all that placement needs to know of their pages.

use std::collections::HashMap;

use crate::index::{Contents, Sharing};

/// Distinct contents that exactly these VMs hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderGroup {
    /// The VMs, ascending, two or more.
    pub vms: Vec<u16>,
    /// How many distinct contents; an estimate where it comes from a sample.
    pub contents: u64,
}

/// Distinct contents by the VMs that hold them. Zero pages are no content here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderGroups {
    /// For each VM, in the session's order, the distinct contents that it alone holds.
    pub alone: Vec<u64>,
    /// What several VMs hold; no two groups have the same VMs.
    pub shared: Vec<HolderGroup>,
}

impl HolderGroups {
    /// Counts what was indexed. `sharing` is that of the same contents.
    ///
    /// # Panics
    /// If `contents` names a VM that `sharing` does not have.
    pub fn of(contents: &Contents, sharing: &Sharing) -> Self {
        let mut alone: Vec<u64> = sharing.vms.iter().map(|vm| vm.unique).collect();
        let mut counts: HashMap<Vec<u16>, u64> = HashMap::new();
        let mut vms = Vec::new();
        for (_, content) in contents.iter() {
            vms.clear();
            vms.extend(content.addrs().map(|addr| addr.vm));
            vms.dedup();
            match vms[..] {
                [vm] => alone[usize::from(vm)] += 1,
                _ => match counts.get_mut(&vms) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(vms.clone(), 1)),
                },
            }
        }
        let mut shared: Vec<HolderGroup> =
            counts.into_iter().map(|(vms, contents)| HolderGroup { vms, contents }).collect();
        shared.sort_unstable_by(|a, b| a.vms.cmp(&b.vms));
        HolderGroups { alone, shared }
    }

    /// How many VMs.
    pub fn vms(&self) -> usize {
        self.alone.len()
    }

    /// Distinct contents in all: what has to leave the source at least once.
    pub fn contents(&self) -> u64 {
        self.alone.iter().sum::<u64>() + self.shared.iter().map(|group| group.contents).sum::<u64>()
    }
}
