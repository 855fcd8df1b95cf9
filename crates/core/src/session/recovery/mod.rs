//! One end for every guest whose session did not bring it to one: crashed agents, lost connections, stopped hosts.
//!
//! Each side knows the last step in its own journal, can look at its own QEMU, and may hear the other side's word.
//! From these [`source()`] and [`target()`] say what to do next; the driver does it and asks again, until nothing is left
//! to do or something has to be waited for. Nothing is remembered besides the journal, so a crash within recovery is no
//! other case than a crash before it.
//!
//! ```text
//! this side's step, its QEMU ──► source() / target() ──► ask the other side, act and journal, wait, or put it to the operator
//!                 the other side's word ──┘
//! ```
//!
//! What holds, at every moment and whatever is lost (rule 4):
//! - The source lets a guest run again after the release only if the target has given it up, if QEMU itself had never
//!   stopped being its owner, or if the operator vouches for the target.
//! - The target lets a guest run only if the source has committed, or if the operator vouches for the source.
//! - A word stays true: a decision is never taken back, but by those of whom it says so. So it does no harm if it is old.
//! - Who has been told to run or to give up keeps its record until the other side is known to have drawn its own conclusion.

mod forced;
mod note;
mod source;
mod target;

pub use forced::{ForceRefused, Forced, force_at_source, force_at_target};
pub use note::Note;
pub use source::{SourceNext, SourceQemu, source, source_word};
pub use target::{TargetNext, TargetQemu, target, target_word};

use serde::{Deserialize, Serialize};

use crate::wire::control::Uuid;

/// What a source says of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceWord {
    /// A session is still at work on it, or recovery is.
    Busy,
    /// Nothing is decided.
    Undecided,
    /// It is the target's.
    Committed,
    /// It stays at the source.
    Aborted,
    /// The operator has taken it back.
    Forced,
    /// It runs at the target, and the source's QEMU is gone.
    Done,
    /// The journal of this identity has nothing about it: it stays at the source, if that journal is the one in which it was begun.
    Unknown {
        /// [`Book::id`](crate::journal::Book::id).
        journal: Uuid,
    },
}

/// What a target says of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetWord {
    /// A session is still at work on it, or recovery is.
    Busy,
    /// It has not been voted for.
    Undecided,
    /// It can run here.
    Voted,
    /// The commit has arrived, and `cont` is due.
    Committed,
    /// The commit had arrived, and now its QEMU is gone: it may have run here.
    Lost,
    /// It runs here.
    Running,
    /// It was given up, and has never run here.
    Aborted,
    /// The operator lets it run here.
    Forced,
    /// There is nothing about it in the journal.
    Unknown,
}

/// A word of either side, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Of a source, to a target.
    Source(SourceWord),
    /// Of a target, to a source.
    Target(TargetWord),
}

/// What is known of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<W> {
    /// It has not been asked.
    Nothing,
    /// It was asked, and can't be reached.
    Unreachable,
    /// What it said.
    Word(W),
}

#[cfg(test)]
mod tests;
