//! What is identical within VMs and across them, before anyone knows where the VMs go.

use serde::Serialize;

use super::Contents;
use crate::page::PAGE_SIZE;

/// What reading a VM has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmPages {
    /// Pages in all, holes included.
    pub pages: u64,
    /// Zero pages, holes included.
    pub zero: u64,
}

/// A VM's pages by how they are shared. `pages` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VmSharing {
    /// Pages in all.
    pub pages: u64,
    /// Zero pages.
    pub zero: u64,
    /// Pages whose content stands nowhere else.
    pub unique: u64,
    /// Pages whose content stands in this VM only, and more than once.
    pub within: u64,
    /// Pages whose content stands in another VM too.
    pub across: u64,
}

/// What is identical, per VM and in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Per VM, in the session's order.
    pub vms: Vec<VmSharing>,
    /// Contents that stand more than once, all in one VM.
    pub contents_within: u64,
    /// Contents that stand in several VMs.
    pub contents_across: u64,
}

impl Sharing {
    /// Counts. `vms` holds what was counted of each VM; a VM that could not be read has no pages.
    ///
    /// # Panics
    /// If `contents` names a VM beyond `vms`.
    pub fn of(contents: &Contents, vms: &[VmPages]) -> Self {
        let mut sharing = Sharing { vms: vec![VmSharing::default(); vms.len()], ..Sharing::default() };
        for (_, content) in contents.iter() {
            let first = content.first().vm;
            // Addresses ascend, so a content in one VM has it at both ends.
            if content.last().vm == first {
                sharing.contents_within += 1;
                sharing.vms[usize::from(first)].within += content.len() as u64;
            } else {
                sharing.contents_across += 1;
                for addr in content.addrs() {
                    sharing.vms[usize::from(addr.vm)].across += 1;
                }
            }
        }
        for (vm, counted) in sharing.vms.iter_mut().zip(vms) {
            vm.pages = counted.pages;
            vm.zero = counted.zero;
            vm.unique = counted.pages.saturating_sub(counted.zero + vm.within + vm.across);
        }
        sharing
    }

    /// All VMs together.
    pub fn total(&self) -> VmSharing {
        self.vms.iter().fold(VmSharing::default(), |sum, vm| VmSharing {
            pages: sum.pages + vm.pages,
            zero: sum.zero + vm.zero,
            unique: sum.unique + vm.unique,
            within: sum.within + vm.within,
            across: sum.across + vm.across,
        })
    }

    /// Bytes of all distinct contents but the zero page: what has to leave the source at least, uncompressed.
    pub fn distinct_nonzero_bytes(&self) -> u64 {
        (self.total().unique + self.contents_within + self.contents_across) * PAGE_SIZE as u64
    }
}
