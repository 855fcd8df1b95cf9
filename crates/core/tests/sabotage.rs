//! Breaks each rule on purpose, and shows that the simulation notices: a check that can't fail checks nothing.

mod crash;
mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sim::World;
use vmscatter_core::session::sabotage::{Rule, break_rule};

/// Seeds within which a broken rule must show.
const SEEDS: u64 = 400;
/// The same where hosts crash: runs are short, and what it takes is rare.
const CRASH_SEEDS: u64 = 20_000;

/// The first seed that fails with `rule` broken, and what it says.
fn first_failure(rule: Option<Rule>, seeds: u64, run: impl Fn(u64)) -> Option<(u64, String)> {
    break_rule(rule);
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let failure = (0..seeds).find_map(|seed| {
        let error = catch_unwind(AssertUnwindSafe(|| run(seed))).err()?;
        let text = error.downcast_ref::<String>().cloned();
        Some((
            seed,
            text.or_else(|| error.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default(),
        ))
    });
    std::panic::set_hook(quiet);
    break_rule(None);
    failure
}

/// `expected` is what the checks say of it: a failure for another reason would prove nothing.
fn must_be_found(rule: Rule, expected: &[&str]) {
    check(rule, expected, first_failure(Some(rule), SEEDS, |seed| _ = World::new(seed).run()));
}

/// The same where agents, hosts and QEMUs end at any step.
fn crashes_must_find(rule: Rule, expected: &[&str]) {
    let failure = first_failure(Some(rule), CRASH_SEEDS, |seed| _ = crash::World::new(seed).run());
    check(rule, expected, failure);
}

fn check(rule: Rule, expected: &[&str], failure: Option<(u64, String)>) {
    let (seed, text) = failure.unwrap_or_else(|| panic!("{rule:?} is not noticed"));
    println!("{rule:?}: seed {seed}: {}", text.lines().next().unwrap_or_default());
    assert!(expected.iter().any(|part| text.contains(part)), "{rule:?}, seed {seed}: {text}");
}

// One test: the panic hook is the process's.
#[test]
fn every_broken_rule_is_found() {
    must_be_found(Rule::WithholdUnacknowledged, &["fails to verify"]);
    // The report names where.
    must_be_found(Rule::SwapPages, &["fails to verify: digests differ: block "]);
    must_be_found(Rule::FlipBit, &["fails to verify: digests differ: block "]);
    must_be_found(Rule::DropRecord, &["fails to verify: digests differ: block "]);
    must_be_found(Rule::ApplyLateFrame, &["fails to verify"]);
    must_be_found(Rule::ReleaseBeforeDigests, &["before the digests"]);
    must_be_found(Rule::CommitBeforeCompleted, &["before the source completed"]);
    assert_eq!(first_failure(None, 20, |seed| { _ = World::new(seed).run() }), None);
    crashes_must_find(Rule::ReleaseUnsynced, &["after it had run at the target", "runs on two hosts"]);
    crashes_must_find(Rule::VoteUnsynced, &["put to the operator"]);
    crashes_must_find(Rule::CommitUnsynced, &["after it had run at the target"]);
    crashes_must_find(Rule::TakeBackUnasked, &["after it had run at the target", "old copy"]);
    crashes_must_find(Rule::RunUndecided, &["old copy", "runs on two hosts"]);
    crashes_must_find(Rule::ForgetAbort, &["put to the operator"]);
    crashes_must_find(Rule::CommitResumed, &["old copy"]);
    crashes_must_find(Rule::IgnoreForced, &["old copy", "runs on two hosts"]);
    assert_eq!(first_failure(None, 1000, |seed| { _ = crash::World::new(seed).run() }), None);
}
