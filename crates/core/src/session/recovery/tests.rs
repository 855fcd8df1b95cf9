//! The two tables, looked at cell by cell: what no cell may say, whatever is found and heard.

use super::*;
use crate::journal::{SourceStep as SS, TargetStep as TS};
use {SourceQemu as SQ, SourceWord as SW, TargetQemu as TQ, TargetWord as TW};

const JOURNAL: Uuid = [4; 16];
const OTHER: Uuid = [5; 16];

const SOURCE_STEPS: [SS; 8] = [
    SS::Prepared,
    SS::Streaming,
    SS::Stopped,
    SS::Released,
    SS::Committed,
    SS::Aborted,
    SS::Forced,
    SS::Done,
];
const SOURCE_QEMUS: [SQ; 6] = [SQ::Unknown, SQ::Gone, SQ::Replaced, SQ::Busy, SQ::Completed, SQ::Own];
const TARGET_STEPS: [TS; 6] = [TS::Prepared, TS::Voted, TS::Committed, TS::Running, TS::Aborted, TS::Forced];
const TARGET_QEMUS: [TQ; 5] = [TQ::Unknown, TQ::Gone, TQ::Loading, TQ::Paused, TQ::Running];

fn heard<W: Copy>(words: &[W]) -> Vec<Heard<W>> {
    [Heard::Nothing, Heard::Unreachable].into_iter().chain(words.iter().map(|w| Heard::Word(*w))).collect()
}

fn target_words() -> Vec<Heard<TW>> {
    use TW::*;
    heard(&[Busy, Undecided, Voted, Committed, Lost, Running, Aborted, Forced, Unknown])
}

fn source_words() -> Vec<Heard<SW>> {
    use SW::*;
    let unknown = [JOURNAL, OTHER].map(|journal| Unknown { journal });
    heard(&[Busy, Undecided, Committed, Aborted, Forced, Done, unknown[0], unknown[1]])
}

fn source_cells() -> impl Iterator<Item = (SS, SQ, Heard<TW>, SourceNext)> {
    SOURCE_STEPS.into_iter().flat_map(|step| {
        SOURCE_QEMUS.into_iter().flat_map(move |qemu| {
            target_words().into_iter().map(move |heard| (step, qemu, heard, source(step, false, qemu, heard)))
        })
    })
}

fn target_cells() -> impl Iterator<Item = (TS, TQ, Heard<SW>, TargetNext)> {
    TARGET_STEPS.into_iter().flat_map(|step| {
        TARGET_QEMUS.into_iter().flat_map(move |qemu| {
            source_words()
                .into_iter()
                .map(move |heard| (step, qemu, heard, target(step, qemu, heard, &JOURNAL)))
        })
    })
}

#[test]
fn after_the_release_the_source_lets_a_guest_run_only_by_the_targets_abort() {
    for (step, qemu, heard, next) in
        source_cells().filter(|(step, ..)| matches!(step, SS::Released | SS::Committed))
    {
        if next == (SourceNext::Stay { cont: true }) {
            assert_eq!((qemu, heard), (SQ::Completed, Heard::Word(TW::Aborted)), "{step:?}");
        }
    }
}

#[test]
fn the_source_commits_only_what_has_completed_and_was_voted_for() {
    for (step, qemu, heard, next) in source_cells().filter(|(.., next)| *next == SourceNext::Commit) {
        assert_eq!((step, qemu), (SS::Released, SQ::Completed));
        assert!(matches!(heard, Heard::Word(TW::Voted | TW::Committed)), "{heard:?} {next:?}");
    }
}

#[test]
fn the_source_ends_its_copy_only_if_the_target_runs_it() {
    for (step, qemu, heard, _) in source_cells().filter(|(.., next)| *next == SourceNext::Leave) {
        let gone = qemu == SQ::Gone && heard == Heard::Word(TW::Committed);
        assert!(
            gone || matches!(heard, Heard::Word(TW::Running | TW::Forced)),
            "{step:?} {qemu:?} {heard:?}"
        );
    }
}

#[test]
fn no_word_commits_a_guest_that_runs_at_the_source() {
    for step in SOURCE_STEPS {
        assert_ne!(source_word(step, SQ::Own), SW::Committed);
        assert_ne!(source_word(step, SQ::Replaced), SW::Committed);
    }
}

#[test]
fn the_target_lets_run_only_what_was_decided() {
    for (step, qemu, heard, next) in target_cells() {
        match next {
            TargetNext::Commit => assert_eq!((step, heard), (TS::Voted, Heard::Word(SW::Committed))),
            TargetNext::Cont => assert!(matches!((step, qemu), (TS::Committed | TS::Forced, TQ::Paused))),
            _ => {}
        }
    }
}

#[test]
fn the_target_gives_up_a_voted_copy_only_by_the_sources_word_or_if_it_is_gone() {
    for (step, qemu, heard, next) in target_cells().filter(|(step, ..)| *step == TS::Voted) {
        let given_up = matches!(heard, Heard::Word(SW::Aborted | SW::Forced))
            || heard == Heard::Word(SW::Unknown { journal: JOURNAL });
        let worthless = matches!(qemu, TQ::Gone | TQ::Loading);
        if matches!(next, TargetNext::Abort | TargetNext::Close) {
            assert!(given_up || worthless, "{step:?} {qemu:?} {heard:?}");
        }
        assert!(!(next == TargetNext::Abort && qemu == TQ::Running), "{heard:?}");
    }
}

#[test]
fn a_copy_that_may_have_run_is_never_given_up_unasked() {
    for (step, qemu, heard, next) in target_cells() {
        let may_have_run = matches!((step, qemu), (TS::Committed, TQ::Gone | TQ::Running) | (TS::Running, _));
        assert!(!(may_have_run && next == TargetNext::Abort), "{step:?} {qemu:?} {heard:?}");
    }
}

/// Whoever comes back after the operator has decided for the other side gives way.
#[test]
fn a_forced_side_wins() {
    use {SourceNext as N, TargetNext as M};
    let told = Heard::Word(TW::Forced);
    for step in [SS::Released, SS::Committed] {
        assert_eq!(source(step, false, SQ::Completed, told), N::Leave);
    }
    for step in [SS::Aborted, SS::Forced] {
        assert_eq!(source(step, false, SQ::Own, told), N::Yield);
    }
    let told = Heard::Word(SW::Forced);
    assert_eq!(target(TS::Voted, TQ::Paused, told, &JOURNAL), M::Abort);
    assert_eq!(target(TS::Committed, TQ::Paused, told, &JOURNAL), M::Abort);
    assert_eq!(target(TS::Committed, TQ::Gone, told, &JOURNAL), M::Close);
    assert_eq!(target(TS::Running, TQ::Running, told, &JOURNAL), M::Yield);
}

/// A journal that was lost says nothing about what had been in it.
#[test]
fn only_the_journal_of_the_beginning_may_know_nothing() {
    let own = Heard::Word(SW::Unknown { journal: JOURNAL });
    let other = Heard::Word(SW::Unknown { journal: OTHER });
    assert_eq!(target(TS::Voted, TQ::Paused, own, &JOURNAL), TargetNext::Abort);
    assert_eq!(target(TS::Voted, TQ::Paused, other, &JOURNAL), TargetNext::Wait(Note::SourceUnknown));
}

#[test]
fn the_operator_can_not_make_two_run() {
    for step in SOURCE_STEPS {
        for qemu in [SQ::Own, SQ::Replaced, SQ::Unknown, SQ::Busy] {
            assert!(force_at_source(step, qemu, Forced::Target).is_err());
        }
    }
    for step in TARGET_STEPS {
        for qemu in [TQ::Running, TQ::Gone, TQ::Unknown] {
            let forced = if qemu == TQ::Running { Forced::Source } else { Forced::Target };
            assert!(force_at_target(step, qemu, forced).is_err());
        }
    }
    assert_eq!(force_at_source(SS::Committed, SQ::Completed, Forced::Source), Ok(SS::Forced));
    assert_eq!(force_at_target(TS::Voted, TQ::Paused, Forced::Target), Ok(TS::Forced));
    assert_eq!(force_at_source(SS::Aborted, SQ::Own, Forced::Source), Err(ForceRefused::Decided));
}

/// Each question says which options answer it.
#[test]
fn questions_name_the_options() {
    let notes = [Note::SourceGone, Note::TargetLost, Note::TargetUnknown, Note::SourceUnknown];
    for note in notes {
        let text = note.to_string();
        assert!(
            note.is_question() && text.contains("--force-source") && text.contains("--force-target"),
            "{text}"
        );
    }
    assert!(!Note::Unreachable.is_question() && !Note::Untold.is_question());
}
