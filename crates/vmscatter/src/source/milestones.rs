//! What a session measures on its way, from which the next one's time is predicted.

use std::time::Instant;

use vmscatter_core::predict::{Measured, PhaseMeasured, tcp_wire_bytes, udp_wire_bytes};

use super::actor::Actor;
use super::link::TargetLink;

/// Less than this tells nothing of the link.
const BYTES_MIN: u64 = 4 << 20;

/// When a session passed what.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Milestones {
    preparing: Option<Instant>,
    opening: Option<Instant>,
    scattering: Option<Instant>,
    streaming: Option<Instant>,
    /// The last so far.
    ram_ended: Option<Instant>,
    /// The last so far.
    running: Option<Instant>,
    /// Bytes by TCP when the streams began, as sealed.
    tcp_before_streams: u64,
}

impl Milestones {
    /// Incoming QEMUs start, and nothing else is done meanwhile.
    pub(super) fn preparing(&mut self) {
        self.preparing.get_or_insert_with(Instant::now);
    }

    pub(super) fn opening(&mut self) {
        self.opening.get_or_insert_with(Instant::now);
    }

    pub(super) fn scattering(&mut self) {
        self.scattering.get_or_insert_with(Instant::now);
    }

    pub(super) fn streaming(&mut self, tcp_bytes: u64) {
        if self.streaming.is_none() {
            self.streaming = Some(Instant::now());
            self.tcp_before_streams = tcp_bytes;
        }
    }

    pub(super) fn ram_ended(&mut self) {
        self.ram_ended = Some(Instant::now());
    }

    pub(super) fn running(&mut self) {
        self.running = Some(Instant::now());
    }
}

fn seconds(from: Option<Instant>, to: Option<Instant>) -> Option<f64> {
    Some(to?.saturating_duration_since(from?).as_secs_f64())
}

impl Actor {
    /// What the session has measured; `None` if it came to no end that tells anything. `bandwidth` is what it was told
    /// to keep to, in bytes a second.
    pub(super) fn measured(&self, bandwidth: Option<u64>) -> Option<Measured> {
        let marks = &self.milestones;
        let mtu = self.links.iter().map(|link| link.mtu()).min()?;
        let counters = self.scatter.counters();
        let tcp_bytes: u64 = self.links.iter().map(|link| TargetLink::sent_bytes(link)).sum();
        let scatter = PhaseMeasured {
            bytes: udp_wire_bytes(counters.multicast_bytes, mtu)
                + tcp_wire_bytes(marks.tcp_before_streams, mtu),
            pages: counters.addresses,
            seconds: seconds(marks.scattering, marks.streaming)?,
        };
        let records = |vm: &super::actor::Vm| vm.stream.with(|stream| stream.counts());
        let streams = PhaseMeasured {
            bytes: tcp_wire_bytes(tcp_bytes.saturating_sub(marks.tcp_before_streams), mtu),
            pages: self.vms.iter().map(records).map(|counts| counts.withheld + counts.sent).sum(),
            seconds: seconds(marks.streaming, marks.ram_ended)?,
        };
        if scatter.bytes + streams.bytes < BYTES_MIN || streams.seconds <= 0.0 {
            return None;
        }
        let rate = |phase: &PhaseMeasured| match phase.bytes {
            bytes if bytes < BYTES_MIN || phase.seconds <= 0.0 => 0.0,
            bytes => bytes as f64 / phase.seconds,
        };
        let mut vms_a_target = vec![0; self.links.len()];
        self.vms.iter().for_each(|vm| vms_a_target[usize::from(vm.target)] += 1);
        Some(Measured {
            link_bytes_per_s: bandwidth.map_or(rate(&scatter).max(rate(&streams)), |bytes| bytes as f64),
            link_was_given: bandwidth.is_some(),
            vms_a_target: vms_a_target.into_iter().max().unwrap_or(0),
            prepare_s: seconds(marks.preparing, marks.opening).unwrap_or(0.0),
            open_s: seconds(marks.opening, marks.scattering)?,
            scatter,
            streams,
            hand_off_s: seconds(marks.ram_ended, marks.running)?,
        })
    }
}
