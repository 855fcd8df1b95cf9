//! What the source does about a guest that no session owns.

use super::{Heard, Note, SourceWord, TargetWord};
use crate::journal::SourceStep;
use crate::session::sabotage::{Rule, broken};

/// What the guest's QEMU at the source is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceQemu {
    /// Its monitor does not answer.
    Unknown,
    /// The process has ended.
    Gone,
    /// The process has ended, and another one answers for the guest.
    Replaced,
    /// Its migration is under way.
    Busy,
    /// Its migration has completed: the guest stands paused there until `cont`.
    Completed,
    /// No migration, or one that failed: the guest is its own, running unless somebody paused it.
    Own,
}

/// What to do next at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNext {
    /// Ask the target, and say [`source_word`].
    Ask,
    /// Nothing, until something changes or the operator says.
    Wait(Note),
    /// Tell QEMU to cancel its migration: nobody reads it.
    Cancel,
    /// Put migration parameters and capabilities back, let the guest run if `cont`, then journal
    /// [`SourceStep::Aborted`] (unless the operator's word stands there already).
    Stay {
        /// Its migration had completed, and it was running before.
        cont: bool,
    },
    /// Journal [`SourceStep::Committed`].
    Commit,
    /// End the QEMU, then journal [`SourceStep::Done`].
    Leave,
    /// Stop the virtual CPUs, then journal [`SourceStep::Done`]: the operator has decided for the target.
    Yield,
    /// Journal [`Entry::Closed`](crate::journal::Entry::Closed).
    Close,
}

/// What to do about a guest whose last step here is `step`; `paused`: it was so before it was moved.
pub fn source(step: SourceStep, paused: bool, qemu: SourceQemu, heard: Heard<TargetWord>) -> SourceNext {
    use SourceQemu as Q;
    match step {
        SourceStep::Done => SourceNext::Close,
        // A crash after the target's abort, or the operator's word, and before `cont`.
        SourceStep::Aborted | SourceStep::Forced if qemu == Q::Completed && !paused => {
            SourceNext::Stay { cont: true }
        }
        SourceStep::Aborted => after_abort(qemu, heard),
        SourceStep::Forced => after_force(qemu, heard),
        SourceStep::Prepared | SourceStep::Streaming | SourceStep::Stopped => match qemu {
            Q::Unknown => SourceNext::Wait(Note::Monitor),
            Q::Busy => SourceNext::Cancel,
            Q::Own | Q::Replaced => SourceNext::Stay { cont: false },
            Q::Completed => SourceNext::Stay { cont: !paused },
            Q::Gone => gone(heard),
        },
        SourceStep::Released => released(paused, qemu, heard),
        SourceStep::Committed => committed(paused, qemu, heard),
    }
}

/// What the source says of the guest.
pub fn source_word(step: SourceStep, qemu: SourceQemu) -> SourceWord {
    match step {
        SourceStep::Committed if matches!(qemu, SourceQemu::Own | SourceQemu::Replaced) => {
            SourceWord::Undecided
        }
        SourceStep::Committed => SourceWord::Committed,
        SourceStep::Aborted => SourceWord::Aborted,
        SourceStep::Forced => SourceWord::Forced,
        SourceStep::Done => SourceWord::Done,
        _ => SourceWord::Undecided,
    }
}

/// The guest's QEMU has ended without a word of ours: what is left of it may stand at the target.
fn gone(heard: Heard<TargetWord>) -> SourceNext {
    use TargetWord as T;
    match heard {
        Heard::Nothing => SourceNext::Ask,
        Heard::Unreachable => SourceNext::Wait(Note::Unreachable),
        Heard::Word(T::Busy) => SourceNext::Wait(Note::PeerBusy),
        Heard::Word(T::Voted) => SourceNext::Wait(Note::SourceGone),
        Heard::Word(T::Lost) => SourceNext::Wait(Note::TargetLost),
        Heard::Word(T::Running | T::Committed | T::Forced) => SourceNext::Leave,
        Heard::Word(T::Undecided | T::Aborted | T::Unknown) => SourceNext::Stay { cont: false },
    }
}

fn released(paused: bool, qemu: SourceQemu, heard: Heard<TargetWord>) -> SourceNext {
    use {SourceQemu as Q, TargetWord as T};
    let word = match (qemu, heard) {
        // SHUT(0) has never reached it: QEMU itself let the guest go on, and nothing will ever be committed.
        (Q::Own, _) => return SourceNext::Stay { cont: false },
        (Q::Busy, _) => return SourceNext::Wait(Note::QemuBusy),
        (Q::Gone, _) => return gone(heard),
        (Q::Completed, _) if broken(Rule::TakeBackUnasked) => return SourceNext::Stay { cont: !paused },
        (_, Heard::Nothing) => return SourceNext::Ask,
        (_, Heard::Unreachable) => return SourceNext::Wait(Note::Unreachable),
        (_, Heard::Word(word)) => word,
    };
    match (qemu, word) {
        (_, T::Busy | T::Undecided) => SourceNext::Wait(Note::PeerBusy),
        (Q::Unknown, _) => SourceNext::Wait(Note::Monitor),
        (Q::Replaced, T::Aborted | T::Unknown) => SourceNext::Stay { cont: false },
        (Q::Replaced, _) => SourceNext::Wait(Note::Restarted),
        (_, T::Voted | T::Committed) => SourceNext::Commit,
        (_, T::Aborted) => SourceNext::Stay { cont: !paused },
        (_, T::Running | T::Forced) => SourceNext::Leave,
        (_, T::Lost) => SourceNext::Wait(Note::TargetLost),
        (_, T::Unknown) => SourceNext::Wait(Note::TargetUnknown),
    }
}

fn committed(paused: bool, qemu: SourceQemu, heard: Heard<TargetWord>) -> SourceNext {
    use {SourceQemu as Q, TargetWord as T};
    let word = match heard {
        Heard::Nothing => return SourceNext::Ask,
        Heard::Unreachable => return SourceNext::Wait(Note::Unreachable),
        Heard::Word(word) => word,
    };
    match (qemu, word) {
        (_, T::Busy) => SourceNext::Wait(Note::PeerBusy),
        (Q::Unknown, _) => SourceNext::Wait(Note::Monitor),
        (Q::Busy, _) => SourceNext::Wait(Note::QemuBusy),
        (_, T::Aborted) => SourceNext::Stay { cont: qemu == Q::Completed && !paused },
        (Q::Replaced, _) => SourceNext::Wait(Note::Restarted),
        (Q::Own, _) => SourceNext::Wait(Note::Contradiction),
        (_, T::Running | T::Forced) => SourceNext::Leave,
        (_, T::Undecided | T::Voted | T::Committed) => SourceNext::Wait(Note::PeerBusy),
        (_, T::Lost) => SourceNext::Wait(Note::TargetLost),
        // It was decided for what the target had, and that one had not got all of it.
        (Q::Gone, T::Unknown) => SourceNext::Stay { cont: false },
        (Q::Completed, T::Unknown) => SourceNext::Wait(Note::TargetUnknown),
    }
}

/// The guest is ours; a target that has voted waits to hear it.
fn after_abort(qemu: SourceQemu, heard: Heard<TargetWord>) -> SourceNext {
    use TargetWord as T;
    match heard {
        Heard::Nothing => SourceNext::Ask,
        Heard::Unreachable => SourceNext::Wait(Note::Untold),
        Heard::Word(T::Busy | T::Voted | T::Committed) => SourceNext::Wait(Note::PeerBusy),
        Heard::Word(T::Running | T::Forced) => give_way(qemu),
        Heard::Word(T::Undecided | T::Aborted | T::Unknown | T::Lost) => SourceNext::Close,
    }
}

/// The operator has decided for this side. A target that was decided for as well keeps the guest: one has to.
fn after_force(qemu: SourceQemu, heard: Heard<TargetWord>) -> SourceNext {
    use TargetWord as T;
    match heard {
        Heard::Nothing => SourceNext::Ask,
        Heard::Unreachable => SourceNext::Wait(Note::Untold),
        Heard::Word(T::Busy | T::Voted | T::Committed | T::Running) => SourceNext::Wait(Note::PeerBusy),
        Heard::Word(T::Forced) => give_way(qemu),
        Heard::Word(T::Undecided | T::Aborted | T::Unknown | T::Lost) => SourceNext::Close,
    }
}

fn give_way(qemu: SourceQemu) -> SourceNext {
    match qemu {
        SourceQemu::Completed | SourceQemu::Gone => SourceNext::Leave,
        SourceQemu::Own => SourceNext::Yield,
        SourceQemu::Busy => SourceNext::Wait(Note::QemuBusy),
        SourceQemu::Unknown => SourceNext::Wait(Note::Monitor),
        SourceQemu::Replaced => SourceNext::Wait(Note::Restarted),
    }
}
