//! Breaks each rule on purpose, and shows that the simulation notices: a check that can't fail checks nothing.

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sim::World;
use vmscatter_core::session::sabotage::{Rule, break_rule};

/// Seeds within which a broken rule must show.
const SEEDS: u64 = 400;

/// The first seed that fails with `rule` broken, and what it says.
fn first_failure(rule: Option<Rule>, seeds: u64) -> Option<(u64, String)> {
    break_rule(rule);
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let failure = (0..seeds).find_map(|seed| {
        let run = catch_unwind(AssertUnwindSafe(|| World::new(seed).run()));
        let error = run.err()?;
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
    let (seed, text) = first_failure(Some(rule), SEEDS).unwrap_or_else(|| panic!("{rule:?} is not noticed"));
    assert!(expected.iter().any(|part| text.contains(part)), "{rule:?}, seed {seed}: {text}");
}

// One test: the panic hook is the process's.
#[test]
fn every_broken_rule_is_found() {
    must_be_found(Rule::WithholdUnacknowledged, &["fails to verify"]);
    must_be_found(Rule::SwapPages, &["fails to verify"]);
    must_be_found(Rule::FlipBit, &["fails to verify"]);
    must_be_found(Rule::ApplyLateFrame, &["fails to verify"]);
    must_be_found(Rule::ReleaseBeforeDigests, &["before the digests"]);
    must_be_found(Rule::CommitBeforeCompleted, &["before the source completed"]);
    assert_eq!(first_failure(None, 20), None);
}
