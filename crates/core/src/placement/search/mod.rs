//! Local search: from several placements downhill, then by taking apart and rebuilding a few targets at a time.

mod descent;
mod rebuild;
mod state;
#[cfg(test)]
mod tests;

use self::descent::Queue;
use self::state::{NOWHERE, State};
use super::model::Model;
use super::sample::Random;
use super::solve::Effort;

/// A search under way.
struct Search<'m, 's> {
    state: State<'m>,
    queue: Queue,
    random: Random,
    stop: &'s mut dyn FnMut() -> bool,
    stopped: bool,
}

/// The best placement that is found from these, which keep the constraints; one of them, at least.
///
/// # Panics
/// If there is none to start from.
pub(super) fn solve(
    model: &Model,
    starts: &[Vec<u8>],
    effort: Effort,
    stop: &mut dyn FnMut() -> bool,
) -> Vec<u8> {
    let mut search = Search {
        state: State::new(model, &starts[0]),
        queue: Queue::new(model.rules.vms()),
        random: Random::new(effort.seed),
        stop,
        stopped: false,
    };
    let mut best: Option<((u32, u64), Vec<u8>)> = None;
    for start in starts {
        search.go_to(start);
        search.queue.add_all();
        search.descend();
        search.keep_best(&mut best);
    }
    if search.insert_all() {
        search.queue.add_all();
        search.descend();
        search.keep_best(&mut best);
    }
    let (mut score, mut placed) = best.expect("there is a start");
    search.go_to(&placed);
    for _ in 0..effort.rounds {
        if search.is_stopped() {
            break;
        }
        if search.perturb() {
            search.descend();
        }
        let is_complete = !search.state.placed.contains(&NOWHERE);
        if is_complete && search.state.score() <= score {
            score = search.state.score();
            placed.clone_from(&search.state.placed);
        } else {
            search.go_to(&placed);
        }
    }
    placed
}

impl Search<'_, '_> {
    fn keep_best(&self, best: &mut Option<((u32, u64), Vec<u8>)>) {
        let score = self.state.score();
        if best.as_ref().is_none_or(|(least, _)| score < *least) {
            *best = Some((score, self.state.placed.clone()));
        }
    }

    /// Changes what differs.
    fn go_to(&mut self, placed: &[u8]) {
        let differs = |(vm, target): (usize, &u8)| (self.state.placed[vm] != *target).then_some(vm);
        let vms: Vec<usize> = placed.iter().enumerate().filter_map(differs).collect();
        for vm in &vms {
            if self.state.placed[*vm] != NOWHERE {
                self.state.lift(*vm);
            }
        }
        vms.into_iter().for_each(|vm| self.state.put(vm, placed[vm]));
    }

    fn is_stopped(&mut self) -> bool {
        self.stopped = self.stopped || (self.stop)();
        self.stopped
    }
}
