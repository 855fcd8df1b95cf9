use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
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

/// The pages, dealt to `threads` builders in turn.
fn records(pages: &[(PageAddr, u8)], threads: usize, excluded: Vec<u16>) -> Records {
    let mut builders: Vec<RunBuilder> = (0..threads).map(|_| RunBuilder::new()).collect();
    for (at, (addr, content)) in pages.iter().enumerate() {
        assert!(builders[at % threads].push(mac(*content), *addr).is_none());
    }
    Records::new(builders.into_iter().filter_map(RunBuilder::finish).collect(), excluded)
}

fn contents(pages: &[(PageAddr, u8)]) -> Contents {
    Contents::from_records(records(pages, 2, Vec::new()))
}

/// Pages at distinct addresses, in random order, with contents from a small range.
fn pages() -> impl Strategy<Value = Vec<(PageAddr, u8)>> {
    // Windows of the address walk are 65,536 pages wide: some pages lie in others.
    let place = (0u16..4, 0u16..2, prop_oneof![0u32..8, 65_530u32..65_540]);
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
        let contents = Contents::from_records(records(&pages, threads, Vec::new()));
        let model = model(&pages);
        let found: BTreeMap<Mac, Vec<PageAddr>> =
            contents.iter().map(|(_, content)| (content.mac, content.addrs.to_vec())).collect();
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
        let mut records = records(&pages, threads, Vec::new());
        let mut groups: Vec<Group> =
            std::iter::from_fn(|| records.take_shard()).map(|shard| shard.group()).collect();
        groups.reverse();
        let again = Contents::from_groups(groups);
        prop_assert!(once.iter().eq(again.iter()));
    }

    #[test]
    fn address_order_visits_each_content_once_ascending(pages in pages()) {
        let contents = contents(&pages);
        let order: Vec<u32> = contents.in_address_order().collect();
        let firsts: Vec<PageAddr> = order.iter().map(|id| contents.get(*id).addrs[0]).collect();
        prop_assert!(firsts.is_sorted());
        let mut all = order;
        all.sort();
        prop_assert!(all.into_iter().eq(0..contents.len()));
    }

    #[test]
    fn an_excluded_vm_leaves_no_trace(pages in pages(), vm in 0u16..4) {
        let without: Vec<_> = pages.iter().copied().filter(|(addr, _)| addr.vm != vm).collect();
        let excluded = Contents::from_records(records(&pages, 2, vec![vm]));
        prop_assert!(excluded.iter().eq(contents(&without).iter()));
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
    let mut builder = RunBuilder::new();
    let mut runs = Vec::new();
    // Each content twice, half the pages apart, so in different runs.
    let half = RUN_RECORDS as u32 + 10;
    for page in 0..2 * half {
        let mut mac = [0; 16];
        mac[..4].copy_from_slice(&(page % half).wrapping_mul(0x9e37_79b1).to_be_bytes());
        runs.extend(builder.push(Mac(mac), addr(0, 0, page)));
    }
    assert_eq!(runs.len(), 2);
    runs.extend(builder.finish());
    let contents = Contents::from_records(Records::new(runs, Vec::new()));
    assert_eq!(contents.len(), half);
    for (_, content) in contents.iter() {
        let first = content.addrs[0].page;
        assert_eq!(content.addrs, [addr(0, 0, first), addr(0, 0, first + half)]);
    }
    let firsts = contents.in_address_order().map(|id| contents.get(id).addrs[0].page);
    assert!(firsts.eq(0..half));
}

#[test]
fn nothing_read_is_nothing_shared() {
    assert!(RunBuilder::new().finish().is_none());
    let contents = Contents::from_records(Records::new(Vec::new(), Vec::new()));
    assert!(contents.is_empty());
    assert_eq!(contents.in_address_order().next(), None);
    assert_eq!(Sharing::of(&contents, &[VmPages::default()]).distinct_nonzero_bytes(), 0);
}
