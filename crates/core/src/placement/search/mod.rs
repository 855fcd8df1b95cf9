//! Local search: from several placements downhill, then by taking apart and rebuilding a few targets at a time.

mod descent;
mod egress;
mod rebuild;
mod state;
#[cfg(test)]
mod tests;

pub(super) use self::egress::lessen_egress;

use self::descent::Queue;
use self::state::{NOWHERE, State};
use super::model::Model;
use super::sample::Random;
use super::solve::Effort;

/// VMs up to which all starts are tried; beyond, what is downhill from any but the first never was the best.
const STARTS_VMS_MAX: usize = 200;

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
    let mut best = search.first(starts);
    for _ in 0..effort.rounds {
        if search.is_stopped() {
            break;
        }
        if search.perturb() {
            search.descend(false);
        }
        search.keep_or_return(&mut best);
    }
    search.queue.add_all();
    search.descend(true);
    search.keep_or_return(&mut best);
    best.placed
}

/// The best that was seen.
struct Best {
    score: (u32, u64),
    placed: Vec<u8>,
}

impl Search<'_, '_> {
    /// The best of what lies downhill from the starts.
    fn first(&mut self, starts: &[Vec<u8>]) -> Best {
        self.queue.add_all();
        self.descend(true);
        let mut best = Best { score: self.state.score(), placed: self.state.placed.clone() };
        if self.state.placed.len() > STARTS_VMS_MAX {
            return best;
        }
        for start in &starts[1..] {
            self.go_to(start);
            self.queue.add_all();
            self.descend(true);
            self.keep_or_return(&mut best);
        }
        if self.insert_all() {
            self.queue.add_all();
            self.descend(true);
        }
        self.keep_or_return(&mut best);
        best
    }

    /// Takes what is as good as the best for the best, and goes back to that from what is not.
    fn keep_or_return(&mut self, best: &mut Best) {
        let is_complete = !self.state.placed.contains(&NOWHERE);
        if is_complete && self.state.score() <= best.score {
            best.score = self.state.score();
            best.placed.clone_from(&self.state.placed);
        } else {
            self.go_to(&best.placed);
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
