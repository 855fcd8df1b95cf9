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

/// Sets of VMs that are counted by themselves.
const HOLDER_GROUPS_MAX: usize = 65_536;
/// Members of all these sets, 2 bytes each.
const HOLDER_MEMBERS_MAX: usize = 1 << 24;

impl HolderGroups {
    /// Counts what was indexed. `sharing` is that of the same contents.
    ///
    /// Exact as long as there are at most 65,536 sets of VMs that hold something together, with 16 million members in all. Guests
    /// that conspire could bring about 2^VMs of them; beyond, one of 2, 4, 8 and so on of the contents of several VMs
    /// is looked at, and counts for as many. Which one, their MACs decide, which no guest can aim.
    ///
    /// # Panics
    /// If `contents` names a VM that `sharing` does not have.
    pub fn of(contents: &Contents, sharing: &Sharing) -> Self {
        HolderGroups::within(contents, sharing, HOLDER_GROUPS_MAX, HOLDER_MEMBERS_MAX)
    }

    fn within(contents: &Contents, sharing: &Sharing, groups_max: usize, members_max: usize) -> Self {
        let mut alone: Vec<u64> = sharing.vms.iter().map(|vm| vm.unique).collect();
        let in_one_vm = contents.iter().filter(|(_, content)| content.first().vm == content.last().vm);
        in_one_vm.for_each(|(_, content)| alone[usize::from(content.first().vm)] += 1);
        let counted = |bits: u32| count_shared(contents, bits, groups_max, members_max);
        let shared = (0..u64::BITS).find_map(counted).expect("of ever fewer contents one or none is left");
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

/// Counts contents of several VMs by the VMs, looking only at those whose MACs end in so many zero bits. `None` if there are too
/// many sets, or members.
fn count_shared(
    contents: &Contents,
    bits: u32,
    groups_max: usize,
    members_max: usize,
) -> Option<Vec<HolderGroup>> {
    let mut counts: HashMap<Vec<u16>, u64> = HashMap::new();
    let (mut vms, mut members) = (Vec::new(), 0);
    for (_, content) in contents.iter() {
        let mac = u128::from_le_bytes(content.mac.0);
        if mac.leading_zeros() < bits || content.first().vm == content.last().vm {
            continue;
        }
        vms.clear();
        vms.extend(content.addrs().map(|addr| addr.vm));
        vms.dedup();
        match counts.get_mut(&vms) {
            Some(count) => *count += 1 << bits,
            None => {
                members += vms.len();
                if counts.len() == groups_max || members > members_max {
                    return None;
                }
                counts.insert(vms.clone(), 1 << bits);
            }
        }
    }
    let mut shared: Vec<HolderGroup> =
        counts.into_iter().map(|(vms, contents)| HolderGroup { vms, contents }).collect();
    shared.sort_unstable_by(|a, b| a.vms.cmp(&b.vms));
    Some(shared)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::index::{PageSpace, Records, RunBuilder, VmPages};
    use crate::page::{Mac, PageAddr};

    const VMS: u16 = 8;
    const PAGES: u32 = 5_000;

    /// VM `vm` holds content `page` if bit `vm` of `holders(page)` is set, and each content twice where `page` is even.
    fn index(holders: impl Fn(u32) -> u8) -> (Contents, Sharing) {
        let space = PageSpace::new(&vec![vec![(0, 2 * PAGES)]; usize::from(VMS)]).unwrap();
        let mut builder = RunBuilder::new();
        let (mut runs, mut vms) =
            (Vec::new(), vec![VmPages { pages: u64::from(2 * PAGES), zero: 0 }; VMS.into()]);
        for (vm, counted) in (0..VMS).zip(&mut vms) {
            counted.zero = counted.pages;
            for page in (0..PAGES).filter(|page| holders(*page) >> vm & 1 == 1) {
                let mac = Mac((u128::from(page + 1).wrapping_mul(0x2545_f491_4f6c_dd1d_9e37_79b9_7f4a_7c15))
                    .to_le_bytes());
                for copy in 0..=u32::from(page % 2 == 0) {
                    let number = space.number(PageAddr { vm, block: 0, page: page + copy * PAGES }).unwrap();
                    runs.extend(builder.push(mac, number));
                    counted.zero -= 1;
                }
            }
        }
        runs.extend(builder.finish());
        let contents = Contents::from_records(space, Records::new(runs));
        let sharing = Sharing::of(&contents, &vms);
        (contents, sharing)
    }

    #[test]
    fn contents_are_counted_by_their_holders() {
        let holders = |page: u32| (page * 37 % 251) as u8;
        let (contents, sharing) = index(holders);
        let mut expected: BTreeMap<Vec<u16>, u64> = BTreeMap::new();
        for page in 0..PAGES {
            let vms: Vec<u16> = (0..VMS).filter(|vm| holders(page) >> vm & 1 == 1).collect();
            *expected.entry(vms).or_default() += u64::from(holders(page) != 0);
        }
        let groups = HolderGroups::of(&contents, &sharing);
        for (vm, alone) in groups.alone.iter().enumerate() {
            assert_eq!(*alone, expected.get(&vec![vm as u16]).copied().unwrap_or(0));
        }
        expected.retain(|vms, _| vms.len() > 1);
        let found: Vec<(Vec<u16>, u64)> =
            groups.shared.iter().map(|group| (group.vms.clone(), group.contents)).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn too_many_sets_are_sampled() {
        // Most contents by all; and 250 sets, of which some have ten contents and some none.
        let holders = |page: u32| if page < 3_000 { 255 } else { (page % 250 + 3) as u8 };
        let (contents, sharing) = index(holders);
        let whole = HolderGroups::of(&contents, &sharing);
        let members = whole.shared.iter().map(|group| group.vms.len()).sum::<usize>();
        assert!(whole.shared.len() > 200);
        for (groups_max, members_max) in [(100, members), (whole.shared.len(), members / 3)] {
            let part = HolderGroups::within(&contents, &sharing, groups_max, members_max);
            assert!(part.shared.len() <= groups_max && !part.shared.is_empty());
            assert!(part.shared.iter().map(|group| group.vms.len()).sum::<usize>() <= members_max);
            assert_eq!(part.alone, whole.alone);
            let off = part.contents() as f64 / whole.contents() as f64;
            assert!((0.85..1.15).contains(&off), "{off}");
        }
    }
}
