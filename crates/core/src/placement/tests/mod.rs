mod case;

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
