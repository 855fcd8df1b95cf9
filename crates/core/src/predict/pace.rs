//! From bytes to time: what the link carries, and how fast hosts copy pages.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bytes, Volume};

/// A phase that used less of the link than this was held up by the hosts, not by the link.
const LINK_BOUND: f64 = 0.8;

/// What one phase of a migration has moved, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseMeasured {
    /// Bytes that left the source.
    pub bytes: u64,
    /// Pages that were written into guests (scatter), or that QEMUs wrote into their streams.
    pub pages: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What a migration has measured, for the prediction of the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What the link carried at best, or was allowed to carry, in bytes a second.
    pub link_bytes_per_s: f64,
    /// An operator's limit kept it to that.
    pub link_was_given: bool,
    /// VMs of the target that had most.
    pub vms_a_target: u64,
    /// From the order to start incoming QEMUs until all waited, in seconds; zero where that went on beside collecting.
    pub prepare_s: f64,
    /// Until the source QEMUs were held and probes answered, in seconds.
    pub open_s: f64,
    /// Shared contents.
    pub scatter: PhaseMeasured,
    /// The streams.
    pub streams: PhaseMeasured,
    /// From the end of the last stream's RAM to the last RESUME, in seconds.
    pub hand_off_s: f64,
}

/// How fast a migration goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// What the source's link carries, in bytes a second, headers included.
    pub link_bytes_per_s: f64,
    /// What an earlier migration has measured.
    pub measured: Option<Measured>,
}

/// How long each step will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// To reach guests' monitors and the targets' agents.
    pub connect_s: f64,
    /// To read and index all memory.
    pub collect_s: f64,
    /// To choose targets.
    pub place_s: f64,
    /// To start incoming QEMUs.
    pub prepare_s: f64,
    /// To begin all streams, and hold them.
    pub open_s: f64,
    /// To send shared contents.
    pub scatter_s: f64,
    /// To send the rest.
    pub streams_s: f64,
    /// To load the last guest's state and let it run.
    pub hand_off_s: f64,
}

impl PhaseTimes {
    /// Both, one after the other.
    pub fn plus(&self, other: &PhaseTimes) -> PhaseTimes {
        PhaseTimes {
            connect_s: self.connect_s + other.connect_s,
            collect_s: self.collect_s + other.collect_s,
            place_s: self.place_s + other.place_s,
            prepare_s: self.prepare_s + other.prepare_s,
            open_s: self.open_s + other.open_s,
            scatter_s: self.scatter_s + other.scatter_s,
            streams_s: self.streams_s + other.streams_s,
            hand_off_s: self.hand_off_s + other.hand_off_s,
        }
    }

    /// All of it.
    pub fn total_s(&self) -> f64 {
        let before = self.connect_s + self.collect_s + self.place_s + self.prepare_s + self.open_s;
        before + self.scatter_s + self.streams_s + self.hand_off_s
    }
}

/// Where no migration has measured it: an incoming QEMU that starts, held streams, the last state. Measured in the lab of
/// this repository (two cores, QEMU under TCG).
const PREPARE_A_VM: Duration = Duration::from_millis(150);
const OPEN: Duration = Duration::from_millis(500);
const HAND_OFF: Duration = Duration::from_millis(20);

impl Pace {
    /// Adds to `times`, which holds connect, collect and place already, what follows.
    pub fn complete(&self, times: PhaseTimes, volume: &Volume, bytes: &Bytes) -> PhaseTimes {
        let measured = self.measured.unwrap_or_default();
        let or = |measured: f64, default: Duration| match measured {
            0.0 => default.as_secs_f64(),
            measured => measured,
        };
        let vms_a_target = vms_a_target(volume);
        let prepare_a_vm = or(measured.prepare_s / measured.vms_a_target.max(1) as f64, PREPARE_A_VM);
        PhaseTimes {
            prepare_s: prepare_a_vm * vms_a_target as f64,
            open_s: or(measured.open_s, OPEN),
            scatter_s: self.phase(bytes.scatter, volume.scatter_pages(), &measured.scatter),
            streams_s: self.phase(bytes.streams, volume.record_pages(), &measured.streams),
            hand_off_s: or(measured.hand_off_s, HAND_OFF),
            ..times
        }
    }

    /// Off the shelf nothing is collected and everything goes by the streams, as fast as the link carries it.
    pub fn off_the_shelf(&self, times: PhaseTimes, volume: &Volume, bytes: u64) -> PhaseTimes {
        let ours = self.complete(times, volume, &Bytes::default());
        PhaseTimes {
            collect_s: 0.0,
            place_s: 0.0,
            open_s: 0.0,
            scatter_s: 0.0,
            streams_s: bytes as f64 / self.link_bytes_per_s,
            ..ours
        }
    }

    /// The link's time, or the hosts' where they were what limited this phase before.
    fn phase(&self, bytes: u64, pages: u64, measured: &PhaseMeasured) -> f64 {
        let link = bytes as f64 / self.link_bytes_per_s;
        let link_before = self.measured.map_or(self.link_bytes_per_s, |measured| measured.link_bytes_per_s);
        let used = measured.bytes as f64 / measured.seconds / link_before;
        if measured.pages == 0 || measured.seconds <= 0.0 || used > LINK_BOUND {
            return link;
        }
        link.max(pages as f64 * measured.seconds / measured.pages as f64)
    }
}

/// VMs of the target that has most.
fn vms_a_target(volume: &Volume) -> u64 {
    let mut counts = std::collections::HashMap::new();
    for vm in &volume.vms {
        *counts.entry(vm.target).or_insert(0u64) += 1;
    }
    counts.into_values().max().unwrap_or(0)
}
