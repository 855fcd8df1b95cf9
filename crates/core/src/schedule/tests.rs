use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::index::{Contents, PageSpace, Records, RunBuilder, VmPages};
use crate::limits::{
    CONTENT_ADDRS_MAX, FRAME_ADDRS_MAX, FRAME_PAGES_MAX, SCHEDULE_SETS_MAX, SESSION_TARGETS_MAX,
};
use crate::page::{Mac, PageAddr};
use crate::placement::TargetSet;

fn mac(content: u32) -> Mac {
    Mac((u128::from(content.wrapping_mul(0x9e37_79b1)) << 96).to_be_bytes())
}

/// Contents of pages given as (VM, content); each VM's pages are numbered as they come.
fn contents(pages: impl IntoIterator<Item = (u16, u32)>) -> Contents {
    let space = PageSpace::new(&vec![vec![(0, 1 << 20)]; 16]).unwrap();
    let mut builder = RunBuilder::new();
    let mut runs = Vec::new();
    let mut next: BTreeMap<u16, u32> = BTreeMap::new();
    for (vm, content) in pages {
        let page = next.entry(vm).or_default();
        let number = space.number(PageAddr { vm, block: 0, page: *page }).unwrap();
        runs.extend(builder.push(mac(content), number));
        *page += 1;
    }
    runs.extend(builder.finish());
    Contents::from_records(space, Records::new(runs))
}

fn to(targets: &[i16]) -> Vec<Option<TargetId>> {
    targets.iter().map(|target| u8::try_from(*target).ok().map(TargetId)).collect()
}

fn set(targets: &[u8]) -> TargetSet {
    targets.iter().copied().map(TargetId).collect()
}

/// All frames of a schedule; checks each against the limits.
fn frames(schedule: &Schedule, contents: &Contents) -> Vec<FramePlan> {
    let frames: Vec<FramePlan> = schedule.sets.iter().flat_map(|plan| plan.frames(contents)).collect();
    for frame in &frames {
        assert!(!frame.parts.is_empty() && frame.parts.len() <= FRAME_PAGES_MAX);
        assert!(frame.parts.iter().map(|part| part.addrs.len()).sum::<usize>() <= FRAME_ADDRS_MAX);
        let ids: BTreeSet<u32> = frame.parts.iter().map(|part| part.content).collect();
        assert_eq!(ids.len(), frame.parts.len(), "a content stands twice in one frame");
        for part in &frame.parts {
            assert!(!part.addrs.is_empty() && part.addrs.len() <= CONTENT_ADDRS_MAX);
        }
    }
    frames
}

#[test]
fn each_class_on_its_own() {
    // VMs 0 and 1 go to target 0, VM 2 to target 1, VM 3 stays.
    let placement = to(&[0, 0, 1, -1]);
    let classes = |pages: &[(u16, u32)]| {
        let mut vms = vec![VmPages { pages: 5, zero: 5 }; 4];
        pages.iter().for_each(|(vm, _)| vms[usize::from(*vm)].pages += 1);
        Classes::of(&contents(pages.iter().copied()), &vms, &placement)
    };
    let none = Classes { zero_pages: 15, ..Classes::default() };
    let count = |contents, pages| ClassCount { contents, pages };
    assert_eq!(classes(&[]), none);
    assert_eq!(classes(&[(0, 1), (1, 2)]), Classes { unique_pages: 2, ..none });
    assert_eq!(classes(&[(0, 1), (0, 1), (0, 1)]), Classes { isvst: count(1, 3), ..none });
    assert_eq!(classes(&[(0, 1), (1, 1), (1, 1)]), Classes { imvst: count(1, 3), ..none });
    assert_eq!(classes(&[(0, 1), (2, 1)]), Classes { imvmt: count(1, 2), ..none });
    // With a VM that stays, a page is alone, or as if that VM were not.
    assert_eq!(classes(&[(0, 1), (3, 1)]), Classes { unique_pages: 1, ..none });
    assert_eq!(classes(&[(2, 1), (2, 1), (3, 1)]), Classes { isvst: count(1, 2), ..none });
    assert_eq!(classes(&[(3, 1), (3, 1)]), none);
    let all = classes(&[(0, 1), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (0, 3), (0, 4)]);
    let expected = Classes { isvst: count(1, 2), imvst: count(1, 2), imvmt: count(1, 3), ..none };
    assert_eq!(all, Classes { unique_pages: 1, ..expected });
}

#[test]
fn multicast_comes_first_and_the_largest_of_each() {
    let pages =
        [(0, 1), (0, 1), (1, 2), (2, 2), (1, 3), (2, 3), (0, 4), (1, 4), (2, 5), (2, 5), (2, 6), (2, 6)];
    let contents = contents(pages);
    let schedule = Schedule::new(&contents, &to(&[0, 1, 2]));
    let sets: Vec<_> = schedule.sets.iter().map(|plan| (plan.set, plan.contents.len())).collect();
    assert_eq!(sets, [(set(&[1, 2]), 2), (set(&[0, 1]), 1), (set(&[2]), 2), (set(&[0]), 1)]);
    assert_eq!((schedule.multicast().len(), schedule.singles().len(), schedule.contents()), (2, 2, 6));
}

#[test]
fn a_content_that_stands_everywhere_is_cut() {
    let copies = 2 * CONTENT_ADDRS_MAX + 1;
    let pages = std::iter::repeat_n((0, 1), copies).chain([(1, 1), (0, 2), (1, 2)]);
    let contents = contents(pages);
    let schedule = Schedule::new(&contents, &to(&[0, 1]));
    let frames = frames(&schedule, &contents);
    let lengths: Vec<Vec<usize>> =
        frames.iter().map(|frame| frame.parts.iter().map(|part| part.addrs.len()).collect()).collect();
    assert_eq!(lengths, [vec![CONTENT_ADDRS_MAX], vec![CONTENT_ADDRS_MAX], vec![2, 2]]);
}

#[test]
fn frames_end_at_their_limit_of_addresses() {
    let copies = CONTENT_ADDRS_MAX as u32 - 1;
    let contents = contents((0..6 * copies).map(|page| ((page % 2) as u16, page / copies)));
    let schedule = Schedule::new(&contents, &to(&[0, 1]));
    let parts: Vec<usize> = frames(&schedule, &contents).iter().map(|frame| frame.parts.len()).collect();
    assert_eq!(parts, [4, 2]);
}

#[test]
fn sets_are_limited_and_the_smallest_are_left_out() {
    // A content for each of more sets of VMs than a schedule takes, three contents for one of them.
    let vms = 13;
    let placement: Vec<_> = (0..vms).map(|vm| Some(TargetId(vm))).collect();
    let sets: Vec<u32> = (0u32..1 << vms).filter(|set| set.count_ones() > 1).collect();
    assert!(sets.len() > SCHEDULE_SETS_MAX);
    let large = sets[sets.len() - 1];
    let all = sets.iter().copied().zip(0..).chain([(large, 1_000_000), (large, 1_000_001)]);
    let pages = all.flat_map(|(set, content)| {
        (0..16).filter(move |vm| set & (1 << vm) != 0).map(move |vm| (vm, content))
    });
    let schedule = Schedule::new(&contents(pages), &placement);
    assert_eq!(schedule.sets.len(), SCHEDULE_SETS_MAX);
    assert_eq!(schedule.sets[0].set, TargetSet(u128::from(large)));
    assert_eq!(schedule.contents() as usize, SCHEDULE_SETS_MAX + 2);
}

#[test]
fn a_set_with_more_than_its_keys_last_for_is_several() {
    let pages =
        (0..7).flat_map(|content| [(0, content), (1, content)]).chain([(2, 90), (2, 90), (2, 91), (2, 91)]);
    let contents = contents(pages);
    let placement = to(&[0, 1, 2]);
    let whole = Schedule::new(&contents, &placement);
    let split = Schedule::split(&contents, &placement, 3);
    let sizes = |schedule: &Schedule| -> Vec<(TargetSet, usize)> {
        schedule.sets.iter().map(|plan| (plan.set, plan.contents.len())).collect()
    };
    let (both, own) = (set(&[0, 1]), set(&[2]));
    assert_eq!(sizes(&whole), [(both, 7), (own, 2)]);
    assert_eq!(sizes(&split), [(both, 3), (both, 3), (both, 1), (own, 2)]);
    assert_eq!(split.multicast().len(), 3);
    let order = |schedule: &Schedule| -> Vec<u32> {
        schedule.sets.iter().flat_map(|plan| plan.contents.clone()).collect()
    };
    assert_eq!(order(&split), order(&whole), "each once, in the same order");
}

#[test]
fn the_last_target_can_be_scheduled() {
    let last = SESSION_TARGETS_MAX as i16 - 1;
    let schedule = Schedule::new(&contents([(0, 1), (1, 1)]), &to(&[0, last]));
    assert_eq!(schedule.sets[0].set, set(&[0, last as u8]));
}

proptest! {
    #[test]
    fn every_shared_page_of_a_placed_vm_is_in_one_frame_for_its_target(
        pages in proptest::collection::vec((0u16..6, 0u32..40), 0..400),
        placement in proptest::collection::vec(-1i16..4, 6),
    ) {
        let (contents, placement) = (contents(pages.iter().copied()), to(&placement));
        let mut counted = [VmPages::default(); 6];
        pages.iter().for_each(|(vm, _)| counted[usize::from(*vm)].pages += 1);
        let schedule = Schedule::new(&contents, &placement);

        let mut expected: BTreeMap<PageAddr, TargetSet> = BTreeMap::new();
        for (_, content) in contents.iter() {
            let placed: Vec<(PageAddr, TargetId)> = content.addrs()
                .filter_map(|addr| Some((addr, placement[usize::from(addr.vm)]?))).collect();
            let targets: TargetSet = placed.iter().map(|(_, target)| *target).collect();
            if placed.len() > 1 {
                expected.extend(placed.iter().map(|(addr, _)| (*addr, targets)));
            }
        }
        let mut sent: BTreeMap<PageAddr, TargetSet> = BTreeMap::new();
        for frame in frames(&schedule, &contents) {
            for part in &frame.parts {
                for addr in part.addresses(&contents, &placement) {
                    prop_assert!(sent.insert(addr, frame.set).is_none(), "{:?} is sent twice", addr);
                }
            }
        }
        let classes = Classes::of(&contents, &counted, &placement);
        let all = [classes.isvst, classes.imvst, classes.imvmt];
        prop_assert_eq!(all.iter().map(|class| class.pages).sum::<u64>(), expected.len() as u64);
        prop_assert_eq!(all.iter().map(|class| class.contents).sum::<u64>(), schedule.contents());
        let multicast = schedule.multicast().iter().map(|plan| plan.contents.len() as u64).sum::<u64>();
        prop_assert_eq!(classes.imvmt.contents, multicast);
        prop_assert_eq!(sent, expected);
        for plan in &schedule.sets {
            let first = |id: &u32| contents.get(*id).first();
            prop_assert!(plan.contents.is_sorted_by_key(first));
        }
    }
}
