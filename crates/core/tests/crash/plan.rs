//! What a seed makes of a run.

use std::time::Duration;

use crate::sim::Rng;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A host's agent ends (0 is the source); with `power` the whole host.
    Crash { host: usize, power: bool },
    /// The same, right before or behind the so-manieth action that it takes from then on.
    CrashAt { host: usize, power: bool, actions: u64 },
    /// A guest's QEMU is killed at the source, or at its target.
    Kill { vm: usize, at_source: bool },
    /// What a target says does not arrive, what it is told does not arrive, or both.
    Cut { target: usize, to_target: bool, to_source: bool, lasts: Duration },
    /// The operator cancels.
    Cancel,
    /// The operator decides where one side is down.
    Force,
}

/// One run's circumstances.
pub struct Plan {
    pub targets: usize,
    pub vms: usize,
    pub placement: Vec<usize>,
    pub paused: Vec<bool>,
    pub streams_max: usize,
    pub delay_us_max: u64,
    /// A process that ends loses what was not synced, as if its host had lost its power.
    pub harsh: bool,
    /// Monitors do not always answer.
    pub busy_monitors: bool,
    /// A source QEMU's migration fails right when SHUT(0) is released, or before.
    pub fails: Vec<bool>,
    pub faults: Vec<(Duration, Fault)>,
    /// Guests for whose target's word, after the release, the source hardly waits.
    pub impatient: Vec<bool>,
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let targets = 1 + rng.below(2) as usize;
        let vms = 1 + rng.below(3) as usize;
        let count = rng.below(5);
        Plan {
            targets,
            vms,
            placement: (0..vms).map(|_| rng.below(targets as u64) as usize).collect(),
            paused: (0..vms).map(|_| rng.one_in(10)).collect(),
            streams_max: 1 + rng.below(2) as usize,
            delay_us_max: 1_000 << rng.below(6),
            harsh: rng.one_in(2),
            busy_monitors: rng.one_in(4),
            fails: (0..vms).map(|_| rng.one_in(20)).collect(),
            faults: (0..count).map(|_| fault(rng, targets, vms)).collect(),
            impatient: (0..vms).map(|_| rng.one_in(10)).collect(),
        }
    }
}

fn fault(rng: &mut Rng, targets: usize, vms: usize) -> (Duration, Fault) {
    // Sessions take some hundred milliseconds; what comes later meets recovery.
    let late = rng.one_in(3);
    let at = Duration::from_micros(rng.below(if late { 60_000_000 } else { 600_000 }));
    let host = rng.below(targets as u64 + 1) as usize;
    let power = rng.one_in(4);
    let fault = match rng.below(16) {
        0..=2 => Fault::Crash { host, power },
        3..=8 => return (Duration::ZERO, Fault::CrashAt { host, power, actions: 1 + rng.below(40) }),
        9 | 10 => Fault::Kill { vm: rng.below(vms as u64) as usize, at_source: rng.one_in(2) },
        11..=13 => {
            let direction = rng.below(3);
            Fault::Cut {
                target: rng.below(targets as u64) as usize,
                to_target: direction != 1,
                to_source: direction != 2,
                lasts: Duration::from_micros(rng.below(40_000_000)),
            }
        }
        14 => Fault::Cancel,
        _ => Fault::Force,
    };
    (at, fault)
}
