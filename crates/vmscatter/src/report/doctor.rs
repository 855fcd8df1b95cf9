//! What an examination found, and how it is shown.

use serde::{Deserialize, Serialize};

use super::outcome::Exit;
use super::summary::table;
use crate::agent::input::one_line;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It could not be told.
    Unknown,
    /// Guests move all the same, slower or at a cost.
    Poor,
    /// No guest can move there.
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Good => "ok",
            Verdict::Unknown => "unknown",
            Verdict::Poor => "poor",
            Verdict::Bad => "BAD",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The host that it concerns.
    pub host: String,
    /// What was looked at.
    pub what: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, in one line.
    pub found: String,
    /// What to do about it.
    #[serde(default)]
    pub advice: Option<String>,
}

/// An examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorOutcome {
    /// With which the command line ends: [`Exit::Failed`] if something is [`Verdict::Bad`].
    pub exit: Exit,
    /// Why there is nothing more.
    #[serde(default)]
    pub error: Option<String>,
    /// What was looked at, host by host.
    pub checks: Vec<Check>,
}

impl DoctorOutcome {
    /// What was found.
    pub fn of(checks: Vec<Check>) -> DoctorOutcome {
        let is_bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
        DoctorOutcome { exit: if is_bad { Exit::Failed } else { Exit::Success }, error: None, checks }
    }

    /// Nothing could be found out.
    pub fn failed(error: impl Into<String>) -> DoctorOutcome {
        DoctorOutcome { exit: Exit::Failed, error: Some(error.into()), checks: Vec::new() }
    }

    /// It was cancelled.
    pub fn cancelled() -> DoctorOutcome {
        DoctorOutcome { exit: Exit::Cancelled, ..DoctorOutcome::failed("cancelled") }
    }
}

/// A row for each check, and below what to do.
pub fn text(outcome: &DoctorOutcome) -> String {
    if outcome.checks.is_empty() {
        return String::new();
    }
    let mut rows = table(&["host", "", "", "found"], 0..0);
    let mut advice = String::new();
    for check in &outcome.checks {
        let Check { host, what, verdict, found, .. } = check;
        rows.add_row([host.clone(), what.clone(), verdict.word().into(), one_line(found)]);
        if let Some(todo) = &check.advice {
            advice.push_str(&format!("{host}, {what}: {}\n", one_line(todo)));
        }
    }
    format!("{rows}\n{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bad_decides_and_advice_stands_below() {
        let check = |verdict, advice: Option<&str>| Check {
            host: "host1".into(),
            what: "clock".into(),
            verdict,
            found: "3 ms ahead".into(),
            advice: advice.map(str::to_owned),
        };
        let fair =
            DoctorOutcome::of(vec![check(Verdict::Good, None), check(Verdict::Poor, Some("run chrony"))]);
        assert_eq!(fair.exit, Exit::Success);
        let shown = text(&fair);
        assert!(shown.ends_with("host1, clock: run chrony\n") && shown.contains("3 ms ahead"), "{shown}");
        assert_eq!(DoctorOutcome::of(vec![check(Verdict::Bad, None)]).exit, Exit::Failed);
        assert_eq!(text(&DoctorOutcome::failed("no such host")), "");
        let json = serde_json::to_string(&fair).unwrap();
        assert_eq!(serde_json::from_str::<DoctorOutcome>(&json).unwrap(), fair);
    }
}
