//! What a seed makes of a run: sizes, sharing, network, faults.

use std::time::Duration;

use vmscatter_core::page::PAGE_SIZE;

use super::qemu::Memory;
use super::rng::Rng;
use super::world::Event;

/// One run's circumstances.
pub struct Plan {
    pub targets: u16,
    pub vms: u16,
    pub loss_per_mille: u64,
    pub delay_us_max: u64,
    pub compress: bool,
    pub streams_max: usize,
    /// Multicast group addresses, over which the sets are divided.
    pub addresses: usize,
    /// Multicast never reaches this target; this one can join no group.
    pub deaf: Option<u16>,
    /// Sets have few contents each, so that several have the same members.
    pub splits: bool,
    /// Multicast is not used: shared frames are passed on from target to target.
    pub relay: bool,
    /// All targets can use parity.
    pub parity: bool,
    /// Targets are tried with trains of probes.
    pub trains: bool,
    /// No more than one in ten datagrams of multicast gets to this target.
    pub policed: Option<u16>,
    /// Multicast does not reach this target any more from some time on.
    pub falls_silent: Option<(Duration, u16)>,
    /// From some time on what the first passes on to the second is lost; whether it notices.
    pub hop_breaks: Option<(Duration, (u16, u16), bool)>,
    /// Hops can't be opened from this target.
    pub hopless: Option<u16>,
    pub refusing: Option<u16>,
    /// Repair window in bytes: small ones make the sender wait.
    pub window_bytes: usize,
    /// An incoming QEMU takes this long for an output, at most.
    pub load_us_max: u64,
    pub kill: Option<(Duration, u16)>,
    pub cancel: Option<Duration>,
    pub incoming_dies: Option<(Duration, u16)>,
    /// A target falls behind: it leaves the scatter while frames are on their way to it.
    pub falls_behind: Option<(Duration, u16)>,
    /// Until then its queue is that long, so that frames reach it after it has left.
    pub queue: Duration,
    /// A VM's incoming QEMU takes this long to start, and when the others wait for it no longer.
    pub slow_twin: Option<(u16, Duration)>,
    pub wait_no_longer: Option<Duration>,
    pub dirty_rates: Vec<usize>,
    pub paused: Vec<bool>,
    placement: Vec<u16>,
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let targets = 1 + rng.below(4) as u16;
        let vms = 1 + rng.below(6) as u16;
        let moment = |rng: &mut Rng| Duration::from_micros(rng.below(1_500_000));
        let faulty = rng.one_in(2);
        let mut plan = Plan {
            targets,
            vms,
            loss_per_mille: if rng.one_in(3) { 0 } else { rng.below(300) },
            delay_us_max: 100 + rng.below(5_000),
            compress: rng.one_in(2),
            streams_max: 1 + rng.below(3) as usize,
            addresses: 1 + rng.below(4) as usize,
            deaf: rng.one_in(40).then(|| rng.below(u64::from(targets)) as u16),
            refusing: rng.one_in(24).then(|| rng.below(u64::from(targets)) as u16),
            window_bytes: (512 * 1024) << rng.below(4),
            load_us_max: 100 + rng.below(5_000),
            kill: (faulty && rng.one_in(2)).then(|| (moment(rng), rng.below(u64::from(targets)) as u16)),
            cancel: (faulty && rng.one_in(4)).then(|| moment(rng)),
            incoming_dies: (faulty && rng.one_in(3)).then(|| (moment(rng), rng.below(u64::from(vms)) as u16)),
            falls_behind: rng.one_in(3).then(|| {
                (Duration::from_micros(5_000 + rng.below(80_000)), rng.below(u64::from(targets)) as u16)
            }),
            slow_twin: rng.one_in(4).then(|| (rng.below(u64::from(vms)) as u16, moment(rng))),
            wait_no_longer: rng.one_in(3).then(|| Duration::from_micros(rng.below(100_000))),
            dirty_rates: (0..vms).map(|_| rng.below(12) as usize).collect(),
            paused: (0..vms).map(|_| rng.one_in(10)).collect(),
            placement: (0..vms).map(|_| rng.below(u64::from(targets)) as u16).collect(),
            ..Plan::quiet(targets, vms)
        };
        if let Some((at, _)) = plan.falls_behind.filter(|_| rng.one_in(2)) {
            plan.queue = at;
        }
        plan.draw_relay(&mut rng.fork());
        plan
    }

    fn draw_relay(&mut self, rng: &mut Rng) {
        let moment = |rng: &mut Rng| Duration::from_micros(5_000 + rng.below(200_000));
        let target = |rng: &mut Rng| rng.below(u64::from(self.targets)) as u16;
        self.relay = rng.one_in(4);
        self.parity = rng.one_in(2);
        self.falls_silent = rng.one_in(8).then(|| (moment(rng), target(rng)));
        self.hop_breaks = rng.one_in(3).then(|| (moment(rng), (target(rng), target(rng)), rng.one_in(2)));
        self.hopless = rng.one_in(8).then(|| target(rng));
        self.splits = rng.one_in(8);
        self.trains = rng.one_in(4);
        self.policed = (self.trains && rng.one_in(2)).then(|| target(rng));
    }

    /// A quiet run of `vms` guests, one after another over the targets: no loss, no fault.
    pub fn quiet(targets: u16, vms: u16) -> Self {
        Plan {
            targets,
            vms,
            loss_per_mille: 0,
            delay_us_max: 200,
            compress: false,
            streams_max: 2,
            addresses: 16,
            deaf: None,
            refusing: None,
            window_bytes: 8 * 1024 * 1024,
            load_us_max: 200,
            kill: None,
            cancel: None,
            incoming_dies: None,
            falls_behind: None,
            queue: Duration::ZERO,
            splits: false,
            relay: false,
            parity: false,
            trains: false,
            policed: None,
            falls_silent: None,
            hop_breaks: None,
            hopless: None,
            slow_twin: None,
            wait_no_longer: None,
            dirty_rates: vec![0; usize::from(vms)],
            paused: vec![false; usize::from(vms)],
            placement: (0..vms).map(|vm| vm % targets).collect(),
        }
    }

    pub fn target_of(&self, vm: u16) -> u16 {
        self.placement[usize::from(vm)]
    }

    pub fn paused(&self, vm: u16) -> bool {
        self.paused[usize::from(vm)]
    }

    pub fn faults(&self) -> Vec<(Duration, Event)> {
        let mut faults = Vec::new();
        if let Some((at, target)) = self.kill {
            faults.push((at, Event::Kill(target)));
        }
        if let Some(at) = self.cancel {
            faults.push((at, Event::Cancel));
        }
        if let Some((at, vm)) = self.incoming_dies {
            faults.push((at, Event::IncomingDies(self.target_of(vm), vm)));
        }
        if let Some((at, target)) = self.falls_behind {
            faults.push((at, Event::FallsBehind(target)));
        }
        faults.extend(self.falls_silent.map(|(at, target)| (at, Event::FallsSilent(target))));
        faults.extend(self.hop_breaks.map(|(at, hop, is_said)| (at, Event::HopBreaks(hop, is_said))));
        faults.extend(self.wait_no_longer.map(|at| (at, Event::WaitNoLonger)));
        faults
    }

    /// A guest's memory: zero pages, contents that all guests hold, contents that stand twice in it, its own.
    pub fn memory(&self, vm: u16, rng: &mut Rng) -> Memory {
        let mut own_pages = 0u64;
        [40 + rng.below(60), 1 + rng.below(8)]
            .iter()
            .map(|pages| {
                let mut bytes = vec![0; *pages as usize * PAGE_SIZE];
                for page in bytes.chunks_exact_mut(PAGE_SIZE) {
                    match rng.below(8) {
                        0 | 1 => {}
                        2..=4 => page.fill(rng.below(40) as u8 + 1),
                        5 => page.fill(100 + (rng.below(6) as u8) * 10 + vm as u8),
                        _ => {
                            own_pages += 1;
                            page[..8].copy_from_slice(&(own_pages << 16 | u64::from(vm)).to_le_bytes());
                            page[2000] = rng.below(256) as u8;
                        }
                    }
                }
                bytes
            })
            .collect()
    }
}
