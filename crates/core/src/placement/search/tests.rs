use proptest::prelude::*;

use super::state::{NOWHERE, State};
use crate::placement::model::Model;
use crate::placement::tests::case::{Case, case};
use crate::placement::{TargetId, TargetSet};

/// A number of random placements that keep the constraints, as far as filling one VM after the other finds them.
fn random_placement(model: &Model, picks: &[usize]) -> Option<Vec<u8>> {
    let mut load = crate::placement::model::Load::new(&model.rules);
    (0..model.rules.vms())
        .map(|vm| {
            let fitting: Vec<usize> =
                (0..model.rules.targets()).filter(|target| load.fits(vm, *target)).collect();
            let target = *fitting.get(picks[vm] % fitting.len().max(1))?;
            load.put(vm, target);
            Some(target as u8)
        })
        .collect()
}

fn ids(placed: &[u8]) -> Vec<TargetId> {
    placed.iter().copied().map(TargetId).collect()
}

fn assert_is(state: &State, case: &Case) {
    let placement = ids(&state.placed);
    assert!(case.is_allowed(&placement));
    assert_eq!(state.score().1, case.cost(&placement));
    if case.few_targets {
        assert_eq!(state.score().0 as usize, placement.iter().copied().collect::<TargetSet>().len());
    }
}

/// The cost, where each used target counts as the state counts it.
fn weighed(state: &State) -> i128 {
    let (used, cost) = state.score();
    (i128::from(used) << 60) + i128::from(cost)
}

proptest! {
    /// What moves and swaps are said to cost is what they cost.
    #[test]
    fn costs_are_foretold(case in case(8, 4), picks in proptest::collection::vec(any::<usize>(), 24)) {
        case.with(|problem| {
            let Ok(model) = Model::new(problem) else { return };
            let Some(placed) = random_placement(&model, &picks) else { return };
            let mut state = State::new(&model, &placed);
            assert_is(&state, &case);
            for pick in picks.chunks_exact(2) {
                if placed.is_empty() {
                    return;
                }
                let (vm, before) = (pick[0] % placed.len(), weighed(&state));
                let target = (pick[1] % model.rules.targets()) as u8;
                if target != state.placed[vm] && state.load.fits(vm, target.into()) {
                    let cost = state.move_cost(vm, target);
                    state.relocate(vm, target);
                    assert_eq!(before + i128::from(cost), weighed(&state));
                }
                let (other, before) = (pick[1] % placed.len(), weighed(&state));
                if state.placed[vm] != state.placed[other] && state.can_swap(vm, other) {
                    let cost = state.swap_cost(vm, other);
                    state.swap(vm, other);
                    assert_eq!(before + i128::from(cost), weighed(&state));
                }
                let best = (0..placed.len()).filter(|other| {
                    state.placed[vm] != state.placed[*other] && state.can_swap(vm, *other)
                });
                let least = best.map(|other| state.swap_cost(vm, other)).min().filter(|cost| *cost < 0);
                assert_eq!(state.best_swap(vm, 0).map(|(_, cost)| cost), least);
                assert_is(&state, &case);
            }
            state.lift(0);
            assert_eq!(state.placed[0], NOWHERE);
            let before = weighed(&state);
            let cost = state.move_cost(0, placed[0]);
            if state.load.fits(0, placed[0].into()) {
                state.put(0, placed[0]);
                assert_eq!(before + i128::from(cost), weighed(&state));
            }
        });
    }
}
