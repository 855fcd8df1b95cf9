//! Breaks one of the seven rules on purpose, in test builds only, to show that the simulation would notice.

/// A rule that a test build can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Withholds a record though the frame that named its page was never acknowledged (rule 1).
    WithholdUnacknowledged,
    /// The target applies two pages of a frame at each other's address (rule 5 must find it).
    SwapPages,
    /// One bit of a page flips at the target between opening and writing (rule 5 must find it).
    FlipBit,
    /// A record of the stream is lost at the target between opening and writing (rule 5 must find it).
    DropRecord,
    /// The target applies a scattered frame after its VM's scatter was closed (rule 3).
    ApplyLateFrame,
    /// The target votes, and SHUT(0) is released, before the digests were compared (rule 4).
    ReleaseBeforeDigests,
    /// The source commits as soon as SHUT(0) is released, without waiting for `completed` (rule 4).
    CommitBeforeCompleted,
    /// The release is acted on before it is on disk (rule 4).
    ReleaseUnsynced,
    /// The vote is given before it is on disk (rule 4).
    VoteUnsynced,
    /// The target gives `cont` before the decision is on its disk (rule 4).
    CommitUnsynced,
    /// Recovery takes a guest back after the release without the target's abort (rule 4).
    TakeBackUnasked,
    /// Recovery lets a guest run at the target that was only voted for (rule 4).
    RunUndecided,
    /// A target forgets that it has given a guest up before the source knows of it (rule 4).
    ForgetAbort,
    /// A source QEMU that has ended counts as completed though it had let the guest go on (rule 4).
    CommitResumed,
    /// Recovery knows nothing of what the operator has forced (rule 4).
    IgnoreForced,
}

#[cfg(feature = "sabotage")]
mod switch {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Breaks `rule` in everything that runs on this thread from now on; `None` mends all.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
    }

    pub(crate) fn broken(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
    }
}

#[cfg(not(feature = "sabotage"))]
mod switch {
    use super::Rule;

    /// Never, in a build that anyone runs.
    pub(crate) const fn broken(_: Rule) -> bool {
        false
    }
}

#[cfg(feature = "sabotage")]
pub use switch::break_rule;
pub(crate) use switch::broken;
