//! Why a guest is not at its end yet, in the operator's words.

/// Why recovery stands still, or what it has done that the operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// The other side does not answer, and it has to decide.
    #[error("stays paused: the other side has a say in it and can't be reached")]
    Unreachable,
    /// It only has to be told.
    #[error("nothing is left to do here; the other side can't be reached and has yet to be told")]
    Untold,
    /// The other side still works on it.
    #[error("the other side is at work on it")]
    PeerBusy,
    /// QEMU has not finished with its migration.
    #[error("QEMU is still busy with the migration")]
    QemuBusy,
    /// The monitor does not answer, or serves somebody else.
    #[error("its QEMU's monitor does not answer (is another client connected to it?)")]
    Monitor,
    /// After the release the source QEMU ended unseen: whether it had let the guest go on first is not known.
    #[error(
        "its QEMU at the source has ended, and whether the guest ran on there after it had been stopped is not known; \
         a whole copy stands paused at the target: --force-target lets it run, --force-source drops it"
    )]
    SourceGone,
    /// The target had been committed to, and its QEMU ended unseen: whether the guest had run there is not known.
    #[error(
        "its QEMU at the target has ended after the commit, and whether the guest had run there is not known; \
         a copy stands paused at the source: --force-source lets it run, --force-target drops it"
    )]
    TargetLost,
    /// The target has no record.
    #[error(
        "the target's journal does not know it: find out whether it runs there, \
         then --force-source lets it run at the source, --force-target drops the copy there"
    )]
    TargetUnknown,
    /// The source has another journal than when the guest was begun.
    #[error(
        "the source's journal is a new one and does not know it: find out whether it runs there, \
         then --force-target lets it run at the target, --force-source drops the copy there"
    )]
    SourceUnknown,
    /// Another QEMU than ours answers at the source.
    #[error(
        "another QEMU was started for it at the source meanwhile; end one of the two, then force the other"
    )]
    Restarted,
    /// It was let run by hand.
    #[error(
        "it was let run by hand on a side that had not been decided for; stop it on one side, then force the other"
    )]
    Contradiction,
    /// Both sides have an end, and the guest ran on both: the copy here was stopped.
    #[error(
        "the operator decided for the other side while it ran here: the copy here was stopped and is left for inspection"
    )]
    Yielded,
}

impl Note {
    /// Whether it will not resolve by itself: the operator has to say.
    pub fn is_question(self) -> bool {
        !matches!(self, Note::Unreachable | Note::Untold | Note::PeerBusy | Note::QemuBusy | Note::Monitor)
    }

    /// Whether the guest is where it belongs, and only the other side has yet to hear of it.
    pub fn is_harmless(self) -> bool {
        self == Note::Untold
    }
}
