use proptest::prelude::*;

use super::*;

fn loads(sets: &[u128]) -> Vec<SetLoad> {
    sets.iter().zip(1..).map(|(set, bytes)| SetLoad { set: TargetSet(*set), bytes }).collect()
}

/// Different sets of two targets or more of `targets`.
fn some_sets(targets: u32, count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<SetLoad>> {
    let set = (0u128..1 << targets).prop_filter("several targets", |set| set.count_ones() > 1);
    let sets = proptest::collection::btree_set(set, count);
    sets.prop_map(|sets| loads(&sets.into_iter().collect::<Vec<_>>()))
}

/// Every set stands at one address once, and as many addresses are used as can be.
fn assert_is_division(lists: &AddressLists, sets: usize, addresses: usize) {
    let mut all: Vec<usize> = lists.lists.concat();
    all.sort_unstable();
    assert_eq!(all, (0..sets).collect::<Vec<_>>());
    assert_eq!(lists.lists.len(), addresses.min(sets));
    assert!(lists.lists.iter().all(|list| !list.is_empty()));
}

/// Counts what members do, address by address.
fn counted(lists: &AddressLists, sets: &[SetLoad]) -> u64 {
    let mut count = 0;
    for list in &lists.lists {
        let mut joined = TargetSet::EMPTY;
        for set in list.iter().map(|set| sets[*set].set).chain([TargetSet::EMPTY]) {
            let joins = set.members().filter(|target| !joined.contains(*target)).count();
            let leaves = joined.members().filter(|target| !set.contains(*target)).count();
            count += (joins + leaves) as u64;
            joined = set;
        }
    }
    count
}

fn uneven(lists: &AddressLists, sets: &[SetLoad]) -> u128 {
    lists.address_bytes(sets).map(unevenness).sum()
}

/// The least cost, and with it the least unevenness, over all orders of all divisions.
fn brute_force(sets: &[SetLoad], addresses: usize) -> (u64, u128) {
    /// Puts the next set at every place of every address that is in use, or at the next new one.
    fn put(next: usize, lists: &mut Vec<Vec<usize>>, sets: &[SetLoad], used: usize, best: &mut (u64, u128)) {
        if next == sets.len() {
            if lists.len() == used {
                let lists = AddressLists { lists: lists.clone() };
                *best = (*best).min((counted(&lists, sets), uneven(&lists, sets)));
            }
            return;
        }
        for address in 0..lists.len() {
            for at in 0..=lists[address].len() {
                lists[address].insert(at, next);
                put(next + 1, lists, sets, used, best);
                lists[address].remove(at);
            }
        }
        if lists.len() < used {
            lists.push(vec![next]);
            put(next + 1, lists, sets, used, best);
            lists.pop();
        }
    }
    let mut best = (u64::MAX, u128::MAX);
    put(0, &mut Vec::new(), sets, addresses.min(sets.len()), &mut best);
    best
}

#[test]
fn nothing_to_order() {
    assert_eq!(order_sets(&[], 0), AddressLists::default());
    let one = loads(&[0b11]);
    assert_eq!(order_sets(&one, 16).lists, [[0]]);
    assert_eq!(order_sets(&one, 16).joins_and_leaves(&one), 4);
}

#[test]
fn enough_addresses_need_no_order() {
    let sets = loads(&[0b11, 0b110, 0b111]);
    for addresses in [3, 4, 16] {
        assert_eq!(order_sets(&sets, addresses).lists, [[0], [1], [2]]);
    }
}

#[test]
fn neighbours_share_an_address() {
    // Two families that have nothing in common.
    let sets = loads(&[0b0011, 0b11_0000, 0b0111, 0b111_0000, 0b1111, 0b1111_0000]);
    let one = order_sets(&sets, 1);
    assert_eq!(one.joins_and_leaves(&sets), 16);
    let mut two = order_sets(&sets, 2);
    two.lists.iter_mut().for_each(|list| list.sort_unstable());
    two.lists.sort_unstable();
    assert_eq!(two.lists, [[0, 2, 4], [1, 3, 5]]);
    assert_eq!(unsorted(6, 2).lists, [[0, 2, 4], [1, 3, 5]], "as dealt out, too");
    assert!(unsorted(6, 1).joins_and_leaves(&sets) > 16);
}

#[test]
fn of_equal_costs_the_even_one_is_taken() {
    // The small ones cost nothing beside either of the large ones.
    let mut sets = loads(&[0b0111, 0b1110, 0b0110, 0b0110]);
    (sets[0].bytes, sets[1].bytes, sets[2].bytes, sets[3].bytes) = (100, 90, 10, 20);
    for lists in [order_exactly(&sets, 2), order_by_search(&sets, 2)] {
        let bytes: Vec<u64> = lists.address_bytes(&sets).collect();
        assert_eq!((lists.joins_and_leaves(&sets), &bytes[..]), (12, &[110, 110][..]));
    }
}

#[test]
fn thousands_of_sets_are_ordered() {
    let mut state = 1u128;
    let sets: Vec<SetLoad> = (0..3_000)
        .map(|_| {
            state = state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
            SetLoad { set: TargetSet(state >> 96 & 0xff_ffff | 3), bytes: 1 }
        })
        .collect();
    for addresses in [1, 16] {
        let lists = order_sets(&sets, addresses);
        assert_is_division(&lists, sets.len(), addresses);
        assert!(lists.joins_and_leaves(&sets) * 2 < unsorted(sets.len(), addresses).joins_and_leaves(&sets));
    }
}

proptest! {
    #[test]
    fn cost_is_what_members_do(sets in some_sets(10, 1..40), addresses in 1usize..6) {
        for lists in [order_by_search(&sets, addresses), unsorted(sets.len(), addresses)] {
            assert_is_division(&lists, sets.len(), addresses);
            prop_assert_eq!(lists.joins_and_leaves(&sets), counted(&lists, &sets));
        }
    }

    #[test]
    fn exact_is_the_best_of_all(
        sets in some_sets(5, 1..6),
        bytes in proptest::collection::vec(0u64..50, 6),
        addresses in 1usize..4,
    ) {
        let mut sets = sets;
        sets.iter_mut().zip(bytes).for_each(|(load, bytes)| load.bytes = bytes);
        let lists = order_exactly(&sets, addresses);
        assert_is_division(&lists, sets.len(), addresses);
        let found = (lists.joins_and_leaves(&sets), uneven(&lists, &sets));
        // Where each has its own, there is nothing to choose.
        prop_assert_eq!(found, brute_force(&sets, addresses));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn search_is_near_the_best(sets in some_sets(9, 2..EXACT_SETS_MAX + 1), addresses in 1usize..4) {
        let exact = order_exactly(&sets, addresses).joins_and_leaves(&sets);
        let lists = order_by_search(&sets, addresses);
        assert_is_division(&lists, sets.len(), addresses);
        let found = lists.joins_and_leaves(&sets);
        prop_assert!(found >= exact && found * 100 <= exact * 103, "{found} for {exact}");
    }
}
