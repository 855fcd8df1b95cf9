//! What no placement can cost less than.

use super::model::Model;

/// The bound.
pub(super) fn lower_bound(model: &Model) -> u64 {
    let cheapest =
        model.links.paths.iter().map(|path| path.iter().map(|link| model.links.cost[*link as usize]).sum());
    model.problem.groups.contents() * cheapest.min().unwrap_or(0u64)
}
