use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::limits::SESSION_VMS_MAX;
use crate::page::{Mac, PAGE_SIZE, PageAddr};

/// A MAC for content number `content`. Few first bytes, so that shards hold several; equal upper halves here
/// and there, so that the lower half decides.
fn mac(content: u8) -> Mac {
    let mut mac = [0; 16];
    mac[0] = [0, 1, 127, 255][usize::from(content % 4)];
    mac[7] = content / 8;
    mac[15] = content;
    Mac(mac)
}

fn addr(vm: u16, block: u16, page: u32) -> PageAddr {
    PageAddr { vm, block, page }
}

/// Four VMs with two blocks; each block's pages lie in several windows.
fn space() -> PageSpace {
    PageSpace::new(&vec![vec![(0, 66_000), (1, 66_000)]; 4]).unwrap()
}

/// The pages, dealt to `threads` builders in turn.
fn records(pages: &[(PageAddr, u8)], threads: usize) -> Records {
    let space = space();
    let mut builders: Vec<RunBuilder> = (0..threads).map(|_| RunBuilder::new()).collect();
    for (at, (addr, content)) in pages.iter().enumerate() {
        assert!(builders[at % threads].push(mac(*content), space.number(*addr).unwrap()).is_none());
    }
    Records::new(builders.into_iter().filter_map(RunBuilder::finish).collect())
}

fn contents(pages: &[(PageAddr, u8)]) -> Contents {
    Contents::from_records(space(), records(pages, 2))
}

/// Pages at distinct addresses, in random order, with contents from a small range.
fn pages() -> impl Strategy<Value = Vec<(PageAddr, u8)>> {
    // On both sides of where a window ends.
    let place = (0u16..4, 0u16..2, prop_oneof![0u32..8, 4_090u32..4_100, 65_990u32..66_000]);
    let map = proptest::collection::btree_map(place, 0u8..24, 0..80);
    map.prop_map(|map| {
        map.into_iter().map(|((vm, block, page), content)| (addr(vm, block, page), content)).collect()
    })
    .prop_shuffle()
}

fn model(pages: &[(PageAddr, u8)]) -> BTreeMap<Mac, Vec<PageAddr>> {
    let mut model: BTreeMap<Mac, Vec<PageAddr>> = BTreeMap::new();
    for (addr, content) in pages {
        model.entry(mac(*content)).or_default().push(*addr);
    }
    model.retain(|_, addrs| addrs.len() > 1);
    model.values_mut().for_each(|addrs| addrs.sort());
    model
}

proptest! {
    #[test]
    fn contents_are_what_a_map_finds(pages in pages(), threads in 1usize..4) {
        let contents = Contents::from_records(space(), records(&pages, threads));
        let model = model(&pages);
        let found: BTreeMap<Mac, Vec<PageAddr>> =
            contents.iter().map(|(_, content)| (content.mac, content.addrs().collect())).collect();
        prop_assert_eq!(contents.len() as usize, model.len());
        prop_assert_eq!(contents.pages(), model.values().map(|addrs| addrs.len() as u64).sum::<u64>());
        prop_assert_eq!(found, model);
        for (id, content) in contents.iter() {
            prop_assert_eq!(contents.get(id), content);
        }
    }

    #[test]
    fn numbers_do_not_depend_on_threads_or_order(pages in pages(), threads in 1usize..4) {
        let mut sorted = pages.clone();
        sorted.sort();
        let once = contents(&sorted);
        let mut records = records(&pages, threads);
        let mut groups: Vec<Group> =
            std::iter::from_fn(|| records.take_shard()).map(|shard| shard.group()).collect();
        groups.reverse();
        let again = Contents::from_groups(space(), groups);
        prop_assert!(once.iter().eq(again.iter()));
    }

    #[test]
    fn address_order_visits_each_content_once_ascending(pages in pages()) {
        let contents = contents(&pages);
        let order: Vec<u32> = contents.in_address_order().collect();
        let firsts: Vec<PageAddr> = order.iter().map(|id| contents.get(*id).first()).collect();
        prop_assert!(firsts.is_sorted());
        let mut all = order;
        all.sort();
        prop_assert!(all.into_iter().eq(0..contents.len()));
    }

    #[test]
    fn an_excluded_vm_leaves_no_trace(pages in pages(), vm in 0u16..4) {
        let without: Vec<_> = pages.iter().copied().filter(|(addr, _)| addr.vm != vm).collect();
        let mut records = records(&pages, 2);
        records.exclude(&space(), &[vm]);
        prop_assert!(Contents::from_records(space(), records).iter().eq(contents(&without).iter()));
    }

    #[test]
    fn sharing_is_what_counting_finds(pages in pages(), zero in 0u64..9) {
        let mut holders: HashMap<u8, Vec<u16>> = HashMap::new();
        pages.iter().for_each(|(addr, content)| holders.entry(*content).or_default().push(addr.vm));
        let mut expected = vec![VmSharing { zero, pages: zero, ..VmSharing::default() }; 4];
        for (addr, content) in &pages {
            let (holders, vm) = (&holders[content], &mut expected[usize::from(addr.vm)]);
            vm.pages += 1;
            match holders.len() {
                1 => vm.unique += 1,
                _ if holders.iter().all(|holder| *holder == addr.vm) => vm.within += 1,
                _ => vm.across += 1,
            }
        }
        let counted: Vec<VmPages> =
            expected.iter().map(|vm| VmPages { pages: vm.pages, zero: vm.zero }).collect();
        let sharing = Sharing::of(&contents(&pages), &counted);
        prop_assert_eq!(sharing.distinct_nonzero_bytes(), (holders.len() * PAGE_SIZE) as u64);
        prop_assert_eq!(sharing.total().pages, pages.len() as u64 + 4 * zero);
        prop_assert_eq!(sharing.vms, expected);
    }
}

#[test]
fn full_runs_come_out_and_nothing_is_lost() {
    // Each content twice, half the pages apart, so in different runs.
    let half = RUN_RECORDS as u32 + 10;
    let space = PageSpace::new(&[vec![(0, 2 * half)]]).unwrap();
    let mut builder = RunBuilder::new();
    let mut runs = Vec::new();
    for page in 0..2 * half {
        let mut mac = [0; 16];
        mac[..4].copy_from_slice(&(page % half).wrapping_mul(0x9e37_79b1).to_be_bytes());
        runs.extend(builder.push(Mac(mac), space.number(addr(0, 0, page)).unwrap()));
    }
    assert_eq!(runs.len(), 2);
    runs.extend(builder.finish());
    let contents = Contents::from_records(space, Records::new(runs));
    assert_eq!(contents.len(), half);
    for (_, content) in contents.iter() {
        let first = content.first().page;
        assert!(content.addrs().eq([addr(0, 0, first), addr(0, 0, first + half)]));
        assert!(content.narrowed(1..2).addrs().eq([content.last()]));
    }
    let firsts = contents.in_address_order().map(|id| contents.get(id).first().page);
    assert!(firsts.eq(0..half));
}

#[test]
fn one_content_everywhere_is_found() {
    // More records than a shard is dealt with, all in one.
    let pages = 3 << 20;
    let space = PageSpace::new(&[vec![(0, pages)]]).unwrap();
    let mut builder = RunBuilder::new();
    let mut runs: Vec<Run> = (0..pages).rev().filter_map(|page| builder.push(mac(1), page)).collect();
    runs.extend(builder.finish());
    let contents = Contents::from_records(space, Records::new(runs));
    assert_eq!(contents.len(), 1);
    assert!(contents.get(0).addrs().map(|addr| addr.page).eq(0..pages));
}

#[test]
fn nothing_read_is_nothing_shared() {
    assert!(RunBuilder::new().finish().is_none());
    let contents = Contents::from_records(space(), Records::new(Vec::new()));
    assert!(contents.is_empty());
    assert_eq!(contents.in_address_order().next(), None);
    assert_eq!(Sharing::of(&contents, &[VmPages::default()]).distinct_nonzero_bytes(), 0);
}

#[test]
fn numbers_sort_as_addresses_do_and_lead_back() {
    let space = PageSpace::new(&[vec![(7, 5_000), (2, 1)], vec![], vec![(0, 4_096)]]).unwrap();
    let pages = (0..5_000).map(|page| addr(0, 7, page)).chain((0..4_096).map(|page| addr(2, 0, page)));
    let all: Vec<PageAddr> = std::iter::once(addr(0, 2, 0)).chain(pages).collect();
    let numbers: Vec<u32> = all.iter().map(|addr| space.number(*addr).unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
    assert!(numbers.iter().zip(&all).all(|(number, addr)| space.addr(*number) == *addr));
    assert_eq!(space.windows().iter().map(|window| window.pages).sum::<u32>() as usize, all.len());
    for none in
        [addr(0, 0, 0), addr(0, 2, 1), addr(0, 7, 5_000), addr(1, 0, 0), addr(2, 0, 4_096), addr(3, 0, 0)]
    {
        assert_eq!(space.number(none), None, "{none:?}");
    }
}

#[test]
fn a_space_has_limits() {
    let vm = vec![(0, u32::MAX)];
    assert!(PageSpace::new(std::slice::from_ref(&vm)).is_ok());
    assert_eq!(PageSpace::new(&[vm, vec![(0, 1)]]), Err(PageSpaceError::TooManyPages));
    let many = vec![Vec::new(); SESSION_VMS_MAX + 1];
    assert_eq!(PageSpace::new(&many), Err(PageSpaceError::TooManyVms(SESSION_VMS_MAX + 1)));
}
