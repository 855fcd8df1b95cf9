//! Local search.

use super::model::Model;
use super::solve::Effort;
use super::{TargetId, cost};

pub(super) fn solve(model: &Model, starts: Vec<Vec<u8>>, _: Effort, _: &mut dyn FnMut() -> bool) -> Vec<u8> {
    let ids = |placed: &[u8]| placed.iter().copied().map(TargetId).collect::<Vec<_>>();
    let cost = |placed: &Vec<u8>| cost(model.problem.groups, model.problem.tree, &ids(placed));
    starts.into_iter().min_by_key(cost).expect("there is a start")
}
