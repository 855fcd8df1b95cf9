//! One placement out of several algorithms, with the bound beside it.

use super::exact::{self, ExactError};
use super::feasible::{check, why_not};
use super::greedy::greedy as fill_greedily;
use super::model::Model;
use super::pack::{pack, pack_few};
use super::problem::{PlacementError, Problem};
use super::{TargetId, TargetSet, bound, cost, egress_contents, search};

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Steps of the exact search, each a few nanoseconds; a problem that needs more is left to the local search.
    pub exact_steps_max: u64,
    /// Perturbations of the local search's best placement: a tenth of a millisecond each for a dozen VMs, some milliseconds
    /// for 1,000.
    pub rounds: u32,
    /// Of the local search. The same problem, effort and seed give the same placement, unless `stop` cuts in.
    pub seed: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { exact_steps_max: 300_000_000, rounds: 3_000, seed: 0 }
    }
}

/// A placement and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// Each VM's target.
    pub placement: Vec<TargetId>,
    /// As [`cost`] says.
    pub cost: u64,
    /// As [`egress_contents`] says.
    pub egress_contents: u64,
    /// Targets that get a VM.
    pub targets_used: usize,
    /// No placement that keeps the constraints costs less. With `few_targets`: none on as few targets, if exact.
    pub bound: u64,
    /// What found it.
    pub method: Method,
}

/// What found a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Complete search: there is no better one.
    Exact,
    /// Local search, from the greedy placement and others.
    LocalSearch,
}

/// Finds a placement of least cost under all constraints; among equals one whose source sends little.
///
/// `stop` is asked now and then; once it says yes, the best found so far is returned, so that a caller with a clock
/// can set a time limit. Memory: about 2 bytes a pair of holder group and link, 128 MiB at most, and 6 bytes a group's
/// member, 96 MiB at most (beyond that a sample of the groups is searched), and for the exact search
/// 16 MiB or less a target.
///
/// # Errors
/// The constraint that can't be met. Packing is hard: for more VMs than the exact search takes, an error may be
/// returned where an exhaustive search would find room.
///
/// # Panics
/// If `problem.groups` is not of as many VMs, or `problem.tree` of as many targets, as the problem.
pub fn solve(
    problem: &Problem,
    effort: Effort,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Solution, PlacementError> {
    let model = Model::new(problem)?;
    check(problem, &model.rules)?;
    let exact = exact::solve(&model, effort.exact_steps_max, stop);
    let (placed, method) = match exact {
        Ok(placed) => (placed, Method::Exact),
        Err(ExactError::Infeasible) => return Err(why_not(problem, &model.rules, effort)),
        Err(ExactError::TooLarge | ExactError::Stopped) => {
            let few = problem.few_targets.then(|| pack_few(&model.rules, effort.seed)).flatten();
            let others = fill_greedily(&model).into_iter().chain(pack(&model.rules, effort.seed).ok());
            let starts: Vec<Vec<u8>> = few.into_iter().chain(others).collect();
            if starts.is_empty() {
                return Err(why_not(problem, &model.rules, effort));
            }
            (search::solve(&model, &starts, effort, stop), Method::LocalSearch)
        }
    };
    let placement: Vec<TargetId> = search::lessen_egress(&model, placed).into_iter().map(TargetId).collect();
    let cost = cost(problem.groups, problem.tree, &placement);
    Ok(Solution {
        cost,
        egress_contents: egress_contents(problem.groups, &placement, problem.group_addresses),
        targets_used: placement.iter().copied().collect::<TargetSet>().len(),
        bound: if method == Method::Exact { cost } else { bound::lower_bound(&model).min(cost) },
        placement,
        method,
    })
}

/// The placement of VMScatter (VEE 2013): the target of greatest capacity is filled first, taking the VM that shares
/// most with those already there. It is the local search's start, and what to compare with.
///
/// # Errors
/// As [`solve`]; where filling leaves a VM without room, others are pushed on, and where that fails, any placement is taken.
///
/// # Panics
/// As [`solve`].
pub fn greedy(problem: &Problem) -> Result<Vec<TargetId>, PlacementError> {
    let model = Model::new(problem)?;
    check(problem, &model.rules)?;
    let placed = match fill_greedily(&model) {
        Some(placed) => placed,
        None => match pack(&model.rules, 0) {
            Ok(placed) => placed,
            Err(_) => return Err(why_not(problem, &model.rules, Effort::default())),
        },
    };
    Ok(placed.into_iter().map(TargetId).collect())
}

/// No placement that keeps the constraints costs less than this.
///
/// # Errors
/// As [`solve`], but for what only a search would find.
///
/// # Panics
/// As [`solve`].
pub fn lower_bound(problem: &Problem) -> Result<u64, PlacementError> {
    let model = Model::new(problem)?;
    check(problem, &model.rules)?;
    Ok(bound::lower_bound(&model))
}
