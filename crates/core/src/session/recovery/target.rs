//! What a target does about a guest that no session owns.

use super::{Heard, Note, SourceWord, TargetWord};
use crate::journal::TargetStep;
use crate::session::sabotage::{Rule, broken};
use crate::wire::control::Uuid;

/// What the guest's QEMU at the target is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetQemu {
    /// The process is there, but its monitor does not answer.
    Unknown,
    /// The process has ended.
    Gone,
    /// It has not loaded the guest.
    Loading,
    /// It has loaded the guest, which has not run.
    Paused,
    /// The guest runs, or has run.
    Running,
}

/// What to do next at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetNext {
    /// Ask the source, and say [`target_word`].
    Ask,
    /// Nothing, until something changes or the operator says.
    Wait(Note),
    /// Journal [`TargetStep::Aborted`] unless it stands there, then end the QEMU.
    Abort,
    /// Journal [`TargetStep::Committed`].
    Commit,
    /// Let the guest run (unless it was paused before), then journal [`TargetStep::Running`] (unless the operator's word
    /// stands there already). If QEMU refuses before a virtual CPU ran: as [`TargetNext::Abort`].
    Cont,
    /// It runs: journal [`TargetStep::Running`].
    Ran,
    /// Stop the virtual CPUs, then journal [`Entry::Closed`](crate::journal::Entry::Closed): the operator has decided for the source.
    Yield,
    /// End the QEMU, for which nobody has voted, then journal [`Entry::Closed`](crate::journal::Entry::Closed).
    Discard,
    /// Journal [`Entry::Closed`](crate::journal::Entry::Closed).
    Close,
}

/// What to do about a guest whose last step here is `step`; its source's journal had the identity `source_journal`.
pub fn target(
    step: TargetStep,
    qemu: TargetQemu,
    heard: Heard<SourceWord>,
    source_journal: &Uuid,
) -> TargetNext {
    use {SourceWord as S, TargetQemu as Q};
    // What the source has no record of it has given up: of a decision for us it keeps one until it knows that the guest runs.
    let heard = match heard {
        Heard::Word(S::Unknown { journal }) if journal == *source_journal && step == TargetStep::Voted => {
            Heard::Word(S::Aborted)
        }
        heard => heard,
    };
    match (step, qemu) {
        (TargetStep::Prepared, _) => TargetNext::Discard,
        (TargetStep::Voted, Q::Gone | Q::Loading) => TargetNext::Abort,
        (TargetStep::Voted, _) => voted(qemu, heard),
        (TargetStep::Committed, Q::Running) => TargetNext::Ran,
        (TargetStep::Committed, Q::Gone) => lost(heard),
        (TargetStep::Committed, Q::Paused) => committed(heard),
        (TargetStep::Committed, Q::Unknown | Q::Loading) => TargetNext::Wait(Note::Monitor),
        (TargetStep::Forced, Q::Paused) => TargetNext::Cont,
        (TargetStep::Aborted, qemu) if qemu != Q::Gone => TargetNext::Abort,
        (TargetStep::Running | TargetStep::Forced | TargetStep::Aborted, _) => ended(step, qemu, heard),
    }
}

/// What the target says of the guest.
pub fn target_word(step: TargetStep, qemu: TargetQemu) -> TargetWord {
    match step {
        TargetStep::Prepared => TargetWord::Undecided,
        TargetStep::Voted => TargetWord::Voted,
        TargetStep::Committed if qemu == TargetQemu::Gone => TargetWord::Lost,
        TargetStep::Committed => TargetWord::Committed,
        TargetStep::Running => TargetWord::Running,
        TargetStep::Aborted => TargetWord::Aborted,
        TargetStep::Forced => TargetWord::Forced,
    }
}

fn voted(qemu: TargetQemu, heard: Heard<SourceWord>) -> TargetNext {
    use SourceWord as S;
    if broken(Rule::RunUndecided) {
        return TargetNext::Commit;
    }
    match heard {
        Heard::Nothing => TargetNext::Ask,
        Heard::Unreachable => TargetNext::Wait(Note::Unreachable),
        Heard::Word(S::Busy | S::Undecided) => TargetNext::Wait(Note::PeerBusy),
        Heard::Word(S::Committed) => TargetNext::Commit,
        Heard::Word(S::Aborted | S::Forced) if qemu != TargetQemu::Running => TargetNext::Abort,
        Heard::Word(S::Aborted | S::Forced | S::Done) => TargetNext::Wait(Note::Contradiction),
        Heard::Word(S::Unknown { .. }) => TargetNext::Wait(Note::SourceUnknown),
    }
}

/// The decision is ours to carry out, also where the source can't be reached. One that can is asked first: the operator
/// may have taken the guest back meanwhile.
fn committed(heard: Heard<SourceWord>) -> TargetNext {
    use SourceWord as S;
    match heard {
        Heard::Nothing => TargetNext::Ask,
        Heard::Word(S::Forced | S::Aborted) if broken(Rule::IgnoreForced) => TargetNext::Cont,
        Heard::Word(S::Forced | S::Aborted) => TargetNext::Abort,
        Heard::Word(S::Undecided) => TargetNext::Wait(Note::Contradiction),
        Heard::Unreachable | Heard::Word(S::Committed | S::Busy | S::Done | S::Unknown { .. }) => {
            TargetNext::Cont
        }
    }
}

/// The QEMU has ended after the commit: the guest may have run here, so nobody lets it run elsewhere unasked.
fn lost(heard: Heard<SourceWord>) -> TargetNext {
    use SourceWord as S;
    match heard {
        Heard::Nothing => TargetNext::Ask,
        Heard::Word(S::Aborted | S::Forced | S::Done | S::Unknown { .. }) => TargetNext::Close,
        Heard::Unreachable | Heard::Word(S::Committed | S::Busy | S::Undecided) => {
            TargetNext::Wait(Note::TargetLost)
        }
    }
}

/// The guest has found its end here; the source has yet to hear of it.
fn ended(step: TargetStep, qemu: TargetQemu, heard: Heard<SourceWord>) -> TargetNext {
    use SourceWord as S;
    if step == TargetStep::Aborted && broken(Rule::ForgetAbort) {
        return TargetNext::Close;
    }
    match (step, heard) {
        (_, Heard::Nothing) => TargetNext::Ask,
        (_, Heard::Unreachable) => TargetNext::Wait(Note::Untold),
        (_, Heard::Word(S::Done | S::Unknown { .. })) => TargetNext::Close,
        (TargetStep::Aborted, Heard::Word(S::Aborted | S::Forced)) => TargetNext::Close,
        (TargetStep::Running, Heard::Word(S::Forced)) => match qemu {
            TargetQemu::Gone => TargetNext::Close,
            TargetQemu::Unknown => TargetNext::Wait(Note::Monitor),
            _ => TargetNext::Yield,
        },
        (_, Heard::Word(_)) => TargetNext::Wait(Note::PeerBusy),
    }
}
