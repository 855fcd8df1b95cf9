pub(super) mod case;

use case::{Case, case};
use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn exact_is_brute_force(case in case(8, 3)) {
        match (case.solve(), case.brute_force()) {
            (Ok(solution), Some(best)) => {
                prop_assert!(case.is_allowed(&solution.placement));
                prop_assert_eq!(case.score(&solution.placement), best);
                prop_assert_eq!(case.cost(&solution.placement), solution.cost);
                prop_assert_eq!((solution.method, solution.bound), (Method::Exact, solution.cost));
            }
            (Err(_), None) => {}
            (solution, best) => prop_assert!(false, "{:?}, but by brute force {:?}", solution, best),
        }
    }

    #[test]
    fn bound_and_search_are_on_either_side_of_the_optimum(case in case(8, 3)) {
        let Some(best) = case.brute_force() else {
            prop_assert!(case.search().is_err());
            return Ok(());
        };
        let bound = case.with(|problem| lower_bound(problem)).unwrap();
        prop_assert!(bound <= best.1, "bound {} above the optimum {}", bound, best.1);
        let found = case.search().unwrap();
        prop_assert!(case.is_allowed(&found.placement));
        prop_assert!(case.score(&found.placement) >= best);
        let greedy = case.with(|problem| greedy(problem)).unwrap();
        prop_assert!(case.is_allowed(&greedy));
    }
}

#[test]
fn nothing_to_place_is_placed() {
    let solution = Case::plain(0, 2).solve().unwrap();
    assert_eq!((solution.placement, solution.cost, solution.targets_used), (Vec::new(), 0, 0));
}

/// Three kinds of VMs that share much within the kind, numbered in turn.
fn three_kinds(vms: usize, targets: usize) -> Case {
    let kind = |kind: u16| HolderGroup {
        vms: (0..vms as u16).filter(|vm| vm % 3 == kind).collect(),
        contents: 1_000,
    };
    let mut case = Case::plain(vms, targets);
    case.groups.shared = (0..3).map(kind).collect();
    case.vms_max = vec![Some(vms.div_ceil(targets) as u32); targets];
    case
}

#[test]
fn kinds_come_together_where_only_swaps_are_possible() {
    let case = three_kinds(30, 3);
    let solution = case.search().unwrap();
    assert_eq!(solution.cost, 30 * 10 + 3 * 1_000);
    assert_eq!((solution.bound, solution.method), (solution.cost, Method::LocalSearch));
    assert_eq!(solution.placement, case.search().unwrap().placement, "the same again");
}

#[test]
fn a_stopped_search_still_places() {
    let case = three_kinds(60, 6);
    let solution = case.with(|problem| solve(problem, Effort::default(), &mut || true)).unwrap();
    assert!(case.is_allowed(&solution.placement));
    let small = three_kinds(18, 3);
    let mut asked = 0;
    let mut stop = || {
        asked += 1;
        true
    };
    let solution = small.with(|problem| solve(problem, Effort::default(), &mut stop)).unwrap();
    assert!(small.is_allowed(&solution.placement) && asked > 0);
}

#[test]
fn few_targets_come_before_cost() {
    let mut case = three_kinds(30, 6);
    case.few_targets = true;
    // 30 VMs of memory 1 need three of these, which keep no kind apart from the others.
    case.vms_max = vec![None; 6];
    case.free = vec![9, 8, 11, 2, 11, 8];
    let solution = case.search().unwrap();
    assert_eq!(solution.targets_used, 3);
    assert!(case.is_allowed(&solution.placement));
    case.few_targets = false;
    assert!(case.search().unwrap().cost <= solution.cost);
}

/// Two racks of two hosts each, links to a rack cost as much as to a host.
fn two_racks() -> DeliveryTree {
    let link = |parent| DeliveryLink { parent, cost: 1 };
    DeliveryTree::new([None, None, Some(0), Some(0), Some(1), Some(1)].map(link).to_vec(), vec![2, 4, 3, 5])
}

#[test]
fn what_shares_comes_behind_one_core_link() {
    let mut case = Case::plain(20, 4);
    // Two kinds of ten; a host takes five. Hosts 0 and 2 are in one rack, 1 and 3 in the other.
    let kind =
        |kind: u16| HolderGroup { vms: (0..20).filter(|vm| vm % 2 == kind).collect(), contents: 1_000 };
    case.groups.shared = vec![kind(0), kind(1)];
    case.vms_max = vec![Some(5); 4];
    case.tree = two_racks();
    let solution = case.search().unwrap();
    assert_eq!(solution.cost, 2 * 20 * 10 + 2 * 3 * 1_000);
    assert_eq!(solution.bound, solution.cost);
    let racks = solution.placement.iter().map(|target| target.0 % 2).collect::<Vec<_>>();
    assert!((0..20).all(|vm| racks[vm] == racks[vm % 2]), "{racks:?}");
}

#[test]
fn of_equal_cost_the_source_sends_least() {
    // VMs 0 to 3 on hosts one and two, 4 to 7 on three and four; whichever way, each group is on two hosts.
    let group = |vms: &[u16], contents| HolderGroup { vms: vms.to_vec(), contents };
    let mut case = Case::plain(8, 4);
    case.groups.shared = vec![group(&[0, 1], 5), group(&[2, 3], 5), group(&[4, 5], 5), group(&[6, 7], 5)];
    case.apart = vec![vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]];
    case.vms_max = vec![Some(2); 4];
    let with_addresses = |group_addresses: usize| {
        case.with(|problem| solve(&Problem { group_addresses, ..*problem }, Effort::default(), &mut || false))
            .unwrap()
    };
    // With two addresses, two pairs of hosts are the best: four groups by two sets.
    let two = with_addresses(2);
    assert_eq!((two.cost, two.egress_contents), (8 * 10 + 8 * 5, 8 * 10 + 4 * 5));
    // With none, each content goes to each of its targets by itself.
    let none = with_addresses(0);
    assert_eq!((none.cost, none.egress_contents), (two.cost, none.cost));
}

#[test]
fn an_even_spread_gives_way_to_memory_and_pins() {
    let even = |case: &Case| case.with(even_vms_max);
    assert_eq!(even(&Case::plain(7, 3)), Ok(3));
    assert_eq!(even(&Case::plain(0, 3)), Ok(0));
    let mut pinned = Case::plain(7, 3);
    pinned.pins = [2, 2, 2, 2].map(Some).into_iter().chain([None; 3]).collect();
    assert_eq!(even(&pinned), Ok(4));
    let mut small = Case::plain(7, 3);
    small.free = vec![1, 1, 100];
    assert_eq!(even(&small), Ok(5));
    small.vms_max[2] = Some(4);
    assert!(matches!(even(&small), Err(PlacementError::Conflict { without: Constraint::VmsMax, .. })));
}

#[test]
fn tight_memory_is_packed() {
    // Evenly, each target would get one of 3 and one of 2, and have 1 left for the last of 2.
    let mut case = Case::plain(5, 2);
    (case.memory, case.free) = (vec![3, 2, 3, 2, 2], vec![6, 6]);
    let solution = case.solve().unwrap();
    assert!(case.is_allowed(&solution.placement));
    assert!(case.is_allowed(&case.search().unwrap().placement));
    // Forty targets, each of which one of 7, one of 5 and two of 4 fill to the last byte.
    let mut large = Case::plain(160, 40);
    (large.memory, large.free) = ([7, 5, 4, 4].repeat(40), vec![20; 40]);
    let effort = Effort { rounds: 5, ..Effort::default() };
    let solution = large.with(|problem| solve(problem, effort, &mut || false)).unwrap();
    assert!(large.is_allowed(&solution.placement));
}

#[test]
fn errors_name_what_stands_in_the_way() {
    let error = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::plain(4, 2);
        change(&mut case);
        assert_eq!(case.brute_force(), None);
        let error = case.solve().unwrap_err();
        assert_eq!(case.with(|problem| greedy(problem)), Err(error.clone()));
        error.to_string()
    };
    assert_eq!(
        error(&|case| (case.free[0], case.pins[0], case.pins[1]) = (1, Some(0), Some(0))),
        "VM b needs 1 bytes, but one, to which it is pinned, has 0 left"
    );
    assert_eq!(
        error(&|case| (case.memory[1], case.free) = (6, vec![4, 5])),
        "VM b needs 6 bytes; two has the most left, 5"
    );
    assert_eq!(
        error(&|case| (case.vms_max[1], case.pins) = (Some(2), vec![Some(1); 4])),
        "VM c is pinned to two, which takes at most 2 VMs and has as many pinned to it"
    );
    assert_eq!(
        error(&|case| (case.apart, case.pins) = (vec![vec![3, 1]], vec![Some(1); 4])),
        "VM d and VM b are to be kept apart, but both are pinned to two"
    );
    assert_eq!(
        error(&|case| case.apart = vec![vec![3, 1, 3], vec![2, 1, 0]]),
        "3 VMs, among them VM c, are to be kept apart, but there are 2 targets"
    );
    assert_eq!(
        error(&|case| case.vms_max = vec![Some(1), Some(2)]),
        "4 VMs, but the targets take at most 3 together"
    );
    assert_eq!(
        error(&|case| case.free = vec![2, 1]),
        "the VMs need 4 bytes together, but the targets have 3"
    );
    // The last two fit nowhere together, and nowhere with what is pinned.
    assert_eq!(
        error(&|case| (case.memory, case.free) = (vec![3, 3, 3, 1], vec![5, 5])),
        "VM c needs 3 bytes; two has the most left, 2"
    );
    assert_eq!(
        error(&|case| (case.apart, case.free) = (vec![vec![0, 1], vec![1, 2], vec![0, 2]], vec![9, 9])),
        "no target is left for VM c; there would be one without the VMs to be kept apart"
    );
    assert_eq!(
        error(&|case| (case.vms_max, case.free) = (vec![Some(2); 2], vec![1, 9])),
        "no target is left for VM d; there would be one without the limit of VMs a target"
    );
    assert_eq!(
        error(&|case| (case.memory, case.free, case.pins[0]) = (vec![1, 3, 3, 3], vec![6, 4], Some(0))),
        "no target is left for VM d; there would be one without the pins"
    );
}

#[test]
fn bad_numbers_are_refused() {
    let plain = Case::plain(2, 2);
    let pinned = Case { pins: vec![Some(2), None], ..plain.clone() };
    assert_eq!(pinned.solve().unwrap_err().to_string(), "VM a is pinned to target number 2, but there are 2");
    let apart = Case { apart: vec![vec![0, 2]], ..plain.clone() };
    assert_eq!(apart.solve().unwrap_err().to_string(), "VM number 2 is to be kept apart, but there are 2");
    assert_eq!(Case::plain(1, 0).solve(), Err(PlacementError::NoTarget));
    assert_eq!(Case::plain(1, 129).solve(), Err(PlacementError::TooManyTargets(129)));
    assert_eq!(Case::plain(4_097, 1).solve(), Err(PlacementError::TooManyVms(4_097)));
    let link = DeliveryLink { parent: None, cost: u64::MAX };
    let dear = Case { tree: DeliveryTree::new(vec![link; 2], vec![0, 1]), ..plain };
    assert_eq!(dear.solve(), Err(PlacementError::CostsTooLarge));
}
