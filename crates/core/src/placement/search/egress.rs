//! Among placements of equal cost, one whose source sends less.

use super::State;
use crate::placement::model::Model;
use crate::placement::{TargetId, egress_contents};

/// Placements that are tried.
const TRIES_MAX: usize = 2_000;
/// Members of groups that are walked over, all tries together.
const WALKED_MAX: usize = 200_000_000;

/// Moves VMs and swaps them where that costs nothing and the source sends less, until nothing more is found. Where only a sample
/// of the groups is searched, it is not known what costs nothing, and nothing is done.
pub(in crate::placement) fn lessen_egress(model: &Model, placed: Vec<u8>) -> Vec<u8> {
    let groups = model.problem.groups;
    let egress = |placed: &[u8]| {
        let placement: Vec<TargetId> = placed.iter().copied().map(TargetId).collect();
        egress_contents(groups, &placement, model.problem.group_addresses)
    };
    let mut least = egress(&placed);
    if least == groups.contents() || !model.sample.is_whole() {
        return placed;
    }
    let members: usize = groups.shared.iter().map(|group| group.vms.len()).sum();
    let mut tries = TRIES_MAX.min(WALKED_MAX / members.max(1));
    let mut state = State::new(model, &placed);
    let mut improved = true;
    while std::mem::take(&mut improved) {
        for vm in (0..placed.len()).filter(|vm| model.rules.pinned[*vm].is_none()) {
            for step in free_steps(&state, vm) {
                if tries == 0 {
                    return state.placed;
                }
                tries -= 1;
                let before = state.placed[vm];
                take(&mut state, vm, step);
                let sent = egress(&state.placed);
                if sent < least {
                    (least, improved) = (sent, true);
                    // What else was free may be so no more.
                    break;
                }
                take(&mut state, vm, if let Step::Move(_) = step { Step::Move(before) } else { step });
            }
        }
    }
    state.placed
}

/// A change that costs nothing.
#[derive(Clone, Copy)]
enum Step {
    Move(u8),
    Swap(usize),
}

fn free_steps(state: &State, vm: usize) -> Vec<Step> {
    let here = state.placed[vm];
    let targets = (0..state.load.free.len() as u8).filter(|target| *target != here);
    let moves = targets
        .filter(|target| state.move_cost(vm, *target) == 0 && state.load.fits(vm, usize::from(*target)));
    let others = (0..state.placed.len()).filter(|other| state.placed[*other] != here);
    let swaps = others.filter(|other| state.can_swap(vm, *other) && state.swap_cost(vm, *other) == 0);
    moves.map(Step::Move).chain(swaps.map(Step::Swap)).collect()
}

fn take(state: &mut State, vm: usize, step: Step) {
    match step {
        Step::Move(target) => state.relocate(vm, target),
        Step::Swap(other) => state.swap(vm, other),
    }
}
