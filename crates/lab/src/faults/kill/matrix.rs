//! Steps, faults, and where each leaves a guest.

use std::str::FromStr;

use crate::names::by_name;

/// Where a guest has come to when something happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Its QEMU is told to migrate.
    Open,
    /// Contents are scattered.
    Scatter,
    /// Its stream flows.
    Streaming,
    /// It has been stopped: its last pages are in flight.
    Stopped,
    /// The target has loaded it, agrees, and has put that on disk; the source has not heard of it.
    Voted,
    /// The source has put the release on disk; QEMU has not heard of it.
    Released,
    /// QEMU has completed; the decision is not on disk.
    Completed,
    /// The decision is on disk; the target has not heard of it.
    Committed,
    /// The target has put the decision on disk; the guest does not run yet.
    Told,
    /// The guest runs at the target; the source has not heard of it.
    Running,
    /// The source's QEMU is gone; that is not on disk.
    Left,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `vmscatter migrate` is killed.
    CommandLine,
    /// The source's agent is killed, and started again.
    SourceAgent,
    /// The target's agent is killed, and started again.
    TargetAgent,
    /// The guest's QEMU at the source is killed.
    SourceQemu,
    /// Its QEMU at the target is killed.
    TargetQemu,
    /// Source and target don't hear each other for a while.
    Cut,
    /// The target does not hear the source for a while.
    CutToTarget,
    /// The source does not hear the target for a while.
    CutToSource,
}

/// Where a guest is found in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// It runs at its source.
    Source,
    /// It runs at its target.
    Target,
    /// It has ended with the QEMU that was killed.
    Gone,
}

/// One step and one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) step: Step,
    pub(super) fault: Fault,
}

impl Step {
    pub(super) const ALL: [Self; 11] = [
        Self::Open,
        Self::Scatter,
        Self::Streaming,
        Self::Stopped,
        Self::Voted,
        Self::Released,
        Self::Completed,
        Self::Committed,
        Self::Told,
        Self::Running,
        Self::Left,
    ];

    /// Its name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Scatter => "scatter",
            Self::Streaming => "streaming",
            Self::Stopped => "stopped",
            Self::Voted => "voted",
            Self::Released => "released",
            Self::Completed => "completed",
            Self::Committed => "committed",
            Self::Told => "told",
            Self::Running => "running",
            Self::Left => "left",
        }
    }

    /// Where an agent is to hold the guest for it, where that is needed to meet the step.
    pub(super) fn hold(self) -> Option<&'static str> {
        match self {
            Self::Open | Self::Scatter | Self::Streaming | Self::Stopped => None,
            Self::Voted => Some("target-after-voted"),
            Self::Released => Some("source-after-released"),
            Self::Completed => Some("source-before-committed"),
            Self::Committed => Some("source-after-committed"),
            Self::Told => Some("target-after-committed"),
            Self::Running => Some("target-before-running"),
            Self::Left => Some("source-before-done"),
        }
    }
}

impl Fault {
    pub(super) const ALL: [Self; 8] = [
        Self::CommandLine,
        Self::SourceAgent,
        Self::TargetAgent,
        Self::SourceQemu,
        Self::TargetQemu,
        Self::Cut,
        Self::CutToTarget,
        Self::CutToSource,
    ];

    /// Its name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::CommandLine => "command-line",
            Self::SourceAgent => "source-agent",
            Self::TargetAgent => "target-agent",
            Self::SourceQemu => "source-qemu",
            Self::TargetQemu => "target-qemu",
            Self::Cut => "cut",
            Self::CutToTarget => "cut-to-target",
            Self::CutToSource => "cut-to-source",
        }
    }
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Gone => "ended",
        }
    }
}

impl Cell {
    /// Few, for every day: agents killed before and after the decision, a QEMU, and a network that is cut one way.
    pub(super) const SHORT: [Self; 4] = [
        Self::new(Step::Streaming, Fault::SourceAgent),
        Self::new(Step::Voted, Fault::TargetQemu),
        Self::new(Step::Completed, Fault::SourceAgent),
        Self::new(Step::Committed, Fault::CutToSource),
    ];

    const fn new(step: Step, fault: Fault) -> Self {
        Self { step, fault }
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        Step::ALL.into_iter().flat_map(|step| Fault::ALL.into_iter().map(move |fault| Self { step, fault }))
    }

    /// The ends that are right for a guest, by its place: 0 is the one at whose step it happens, 1 goes to another host,
    /// 2 to the same host as 0.
    ///
    /// Rule 4: until the release all that fails ends at the source, from the decision on all ends at the target. In between, and where
    /// nobody holds the guest still, either is right; that it is one of them is what is asked for.
    pub(super) fn ends(self, guest: usize) -> &'static [End] {
        use End::{Gone, Source, Target};
        let Self { step, fault } = self;
        let either: &[End] = &[Source, Target];
        match (guest, fault) {
            (_, Fault::CommandLine) => &[Target],
            (1, Fault::SourceAgent) => either,
            (1, _) => &[Target],
            (2, Fault::SourceQemu | Fault::TargetQemu) => &[Target],
            (2, _) => either,
            (_, Fault::SourceQemu) => match step {
                Step::Open | Step::Scatter | Step::Streaming => &[Gone],
                Step::Stopped => &[Gone, Target],
                _ => &[Target],
            },
            (_, Fault::TargetQemu) => match step {
                Step::Running | Step::Left => &[Gone],
                _ => &[Source],
            },
            // The vote still reaches the source, which may decide for the target; that one hears of it later.
            (_, Fault::CutToTarget) if step == Step::Voted => either,
            _ => match step {
                Step::Open | Step::Scatter | Step::Streaming | Step::Voted => &[Source],
                Step::Stopped | Step::Released => either,
                _ => &[Target],
            },
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        by_name("step", name, &Self::ALL, Self::name)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        by_name("fault", name, &Self::ALL, Self::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_and_every_fault_is_in_the_matrix_and_has_its_name() {
        assert_eq!(Cell::all().count(), Step::ALL.len() * Fault::ALL.len());
        assert!(Step::ALL.into_iter().all(|step| step.name().parse() == Ok(step)));
        assert!(Fault::ALL.into_iter().all(|fault| fault.name().parse() == Ok(fault)));
        assert!("nowhere".parse::<Step>().is_err_and(|error| error.contains("open, scatter")));
    }

    #[test]
    fn the_decision_parts_the_ends() {
        let ends = |step, fault| Cell { step, fault }.ends(0);
        assert_eq!(ends(Step::Voted, Fault::TargetAgent), [End::Source]);
        assert_eq!(ends(Step::Committed, Fault::SourceAgent), [End::Target]);
        assert_eq!(ends(Step::Told, Fault::TargetQemu), [End::Source]);
        assert_eq!(ends(Step::Running, Fault::TargetQemu), [End::Gone]);
        assert!(Cell::all().all(|cell| cell.ends(1) != [End::Gone] && !cell.ends(2).contains(&End::Gone)));
    }
}
