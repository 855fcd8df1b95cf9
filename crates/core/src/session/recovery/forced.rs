//! The operator's word, where the two sides can't find an end by themselves.
//!
//! It is given at either side. Whoever gives it vouches that the guest does not run, and will not run, at the side that
//! is not decided for; what that side's agent finds when it comes back gives way ([`source`](super::source()),
//! [`target`](super::target())).

use super::{SourceQemu, TargetQemu};
use crate::journal::{SourceStep, TargetStep};

/// For which side the operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// The guest is the source's.
    Source,
    /// The guest is the target's.
    Target,
}

/// Why a word is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForceRefused {
    /// It would let a copy run beside one that runs.
    #[error("it runs here: stop it first")]
    Runs,
    /// There is nothing to run.
    #[error("its QEMU here is gone")]
    Gone,
    /// What this side's QEMU does is not known.
    #[error("its QEMU here does not answer, or is not done with the migration; try again")]
    Unknown,
    /// The end has been found.
    #[error("there is nothing left to decide")]
    Decided,
}

/// The step that the source journals for the operator's word; recovery goes on from it. Before [`SourceStep::Done`] is
/// journaled, the QEMU is ended; before [`SourceStep::Forced`], its migration parameters and capabilities are put back.
///
/// # Errors
/// [`ForceRefused`].
pub fn force_at_source(
    step: SourceStep,
    qemu: SourceQemu,
    forced: Forced,
) -> Result<SourceStep, ForceRefused> {
    if step >= SourceStep::Aborted {
        return Err(ForceRefused::Decided);
    }
    match (forced, qemu) {
        (_, SourceQemu::Unknown | SourceQemu::Busy) => Err(ForceRefused::Unknown),
        (Forced::Source, _) => Ok(SourceStep::Forced),
        (Forced::Target, SourceQemu::Own | SourceQemu::Replaced) => Err(ForceRefused::Runs),
        (Forced::Target, _) if step < SourceStep::Committed => Ok(SourceStep::Committed),
        (Forced::Target, _) => Ok(SourceStep::Done),
    }
}

/// The step that the target journals for the operator's word; recovery goes on from it.
///
/// # Errors
/// [`ForceRefused`].
pub fn force_at_target(
    step: TargetStep,
    qemu: TargetQemu,
    forced: Forced,
) -> Result<TargetStep, ForceRefused> {
    if !matches!(step, TargetStep::Voted | TargetStep::Committed) {
        return Err(ForceRefused::Decided);
    }
    match (forced, qemu) {
        (Forced::Source, TargetQemu::Running) => Err(ForceRefused::Runs),
        (Forced::Source, _) => Ok(TargetStep::Aborted),
        (Forced::Target, TargetQemu::Gone | TargetQemu::Loading) => Err(ForceRefused::Gone),
        (Forced::Target, TargetQemu::Unknown) => Err(ForceRefused::Unknown),
        (Forced::Target, TargetQemu::Paused | TargetQemu::Running) => Ok(TargetStep::Forced),
    }
}
