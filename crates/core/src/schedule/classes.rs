//! The classes of pages, by where the copies are and where they go (VMScatter, VEE 2013, section 2).

use serde::Serialize;

use super::target_of;
use crate::index::{Content, Contents, VmPages};
use crate::page::PageAddr;
use crate::placement::{Placement, TargetSet};

/// How many contents, and how many pages hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// Distinct contents.
    pub contents: u64,
    /// Pages that hold one of them.
    pub pages: u64,
}

/// The pages of all VMs that have a target, by class. The other VMs' pages count nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    /// Zero pages.
    pub zero_pages: u64,
    /// Pages whose content stands nowhere else.
    pub unique_pages: u64,
    /// Identical pages of a single VM to a single target.
    pub isvst: ClassCount,
    /// Identical pages of multiple VMs to a single target.
    pub imvst: ClassCount,
    /// Identical pages of multiple VMs to multiple targets: those that multicast is for.
    pub imvmt: ClassCount,
}

impl Classes {
    /// Counts. `vms` holds what was counted of each VM when it was read.
    pub fn of(contents: &Contents, vms: &[VmPages], placement: &Placement) -> Self {
        let placed = vms.iter().zip(placement).filter(|(_, target)| target.is_some());
        let (mut pages, mut zero_pages) = (0, 0);
        for (vm, _) in placed {
            pages += vm.pages;
            zero_pages += vm.zero;
        }
        let mut classes = Classes { zero_pages, ..Classes::default() };
        for (_, content) in contents.iter() {
            let reach = Reach::of(content, placement);
            let class = match (reach.pages, reach.several_vms, reach.targets.len()) {
                (0 | 1, _, _) => continue,
                (_, false, _) => &mut classes.isvst,
                (_, true, 1) => &mut classes.imvst,
                (_, true, _) => &mut classes.imvmt,
            };
            class.contents += 1;
            class.pages += reach.pages;
        }
        let shared = classes.isvst.pages + classes.imvst.pages + classes.imvmt.pages;
        classes.unique_pages = pages.saturating_sub(zero_pages + shared);
        classes
    }
}

/// Where a content goes.
pub(super) struct Reach {
    pub(super) targets: TargetSet,
    /// Pages that go anywhere.
    pub(super) pages: u64,
    /// Whether they are of several VMs.
    pub(super) several_vms: bool,
}

impl Reach {
    pub(super) fn of(content: Content<'_>, placement: &Placement) -> Self {
        let mut reach = Reach { targets: TargetSet::EMPTY, pages: 0, several_vms: false };
        let mut first: Option<PageAddr> = None;
        for addr in content.addrs() {
            let Some(target) = target_of(addr, placement) else { continue };
            reach.targets.insert(target);
            reach.pages += 1;
            reach.several_vms |= first.get_or_insert(addr).vm != addr.vm;
        }
        reach
    }
}
