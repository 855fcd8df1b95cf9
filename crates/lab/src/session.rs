//! One run: boot guests, move them all in one mode, measure, check.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, Serializer};

use crate::assets::{Assets, SHARED_BYTES};
use crate::guest::{Guest, GuestFile, GuestOptions, QEMU, Qemu, fact};
use crate::host::{Host, Lab};
use crate::names::by_name;
use crate::progress::Progress;
use crate::qmp::Qmp;
use crate::report::{Downtime, GuestRow, Run};
use crate::{baseline, ram, scatter, serial, weight};

/// Ticks seen at the target before a guest counts as running there, and how long they may take.
const TICKS_TO_SEE: usize = 25;
const TICKS_WITHIN: Duration = Duration::from_secs(20);
/// Random data that each guest must hold at least.
const OWN_BYTES: u64 = 16 << 20;
const PAGE_SIZE: u64 = 4096;

/// How guests are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// QEMU's own pre-copy over TCP.
    OffTheShelf,
    /// The same with two multifd channels, compressed by zstd.
    OffTheShelfMultifdZstd,
    /// vmscatter, frames as they are.
    Scatter,
    /// vmscatter, frames compressed with zstd.
    ScatterCm,
    /// vmscatter, without multicast: targets pass frames on.
    Relay,
}

impl Mode {
    const ALL: [Self; 5] =
        [Self::OffTheShelf, Self::OffTheShelfMultifdZstd, Self::Scatter, Self::ScatterCm, Self::Relay];

    /// Its name in options, table and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::OffTheShelf => "off-the-shelf",
            Self::OffTheShelfMultifdZstd => "off-the-shelf-multifd-zstd",
            Self::Scatter => "scatter",
            Self::ScatterCm => "scatter+cm",
            Self::Relay => "relay",
        }
    }

    /// What it is for `--compress`.
    pub(crate) fn compress(self) -> &'static str {
        if self == Self::ScatterCm { "zstd" } else { "none" }
    }

    /// Whether the vmscatter program is needed.
    pub fn needs_vmscatter(self) -> bool {
        matches!(self, Self::Scatter | Self::ScatterCm | Self::Relay)
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        by_name("mode", name, &Self::ALL, Self::name)
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The program of each side of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Of the host that guests leave.
    pub source: PathBuf,
    /// Of those to which they go.
    pub target: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self { source: QEMU.into(), target: QEMU.into() }
    }
}

/// What stays the same in all runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Number of guests.
    pub guests: usize,
    /// Number of target hosts.
    pub hosts: usize,
    /// Rate of every link, in tc's notation.
    pub rate: String,
    /// How guests are made.
    pub guest: GuestOptions,
    /// Compare all RAM before a guest goes on at its target. Its downtime then says nothing.
    pub compare_ram: bool,
    /// Damage done to a guest at its target before it goes on, to see that it is found.
    pub damage: Option<Damage>,
    /// What runs guests.
    pub programs: Programs,
    /// The vmscatter program.
    pub vmscatter: PathBuf,
    /// That of the targets, if it is another.
    pub target_vmscatter: Option<PathBuf>,
    /// Streams get a new key after so much, instead of very late.
    pub rekey_mib: Option<u64>,
    /// What the switch asks hosts in: 2 or, with sources, 3.
    pub igmp_version: u8,
}

/// One flipped bit in one guest.
#[derive(Debug, Clone)]
pub struct Damage {
    /// The guest's name.
    pub guest: String,
    /// Content of the page to damage, which the guest must hold.
    pub page: Vec<u8>,
}

impl Settings {
    /// Whether guests are held at the target before they go on.
    pub fn holds(&self) -> bool {
        self.compare_ram || self.damage.is_some()
    }

    /// What is done with a guest that is stopped at the source, loaded at the target and not yet running: whether all
    /// RAM is equal, None if that was not asked for.
    pub(crate) fn while_held(&self, guest: &str, source: &Qmp, target: &Qmp) -> Result<Option<bool>> {
        let mut equal = None;
        if self.compare_ram {
            equal = Some(ram::compare(source, target, self.guest.accel)?.report(guest));
        }
        if let Some(damage) = self.damage.as_ref().filter(|damage| damage.guest == guest) {
            let flipped = ram::flip_bit_of(target, &damage.page)?;
            ensure!(flipped > 0, "{guest} does not hold the page to damage");
        }
        Ok(equal)
    }
}

/// A lab with booted guests on its source host.
#[derive(Debug)]
pub struct Session {
    /// Guests first, so that they end before their hosts.
    pub guests: Vec<Guest>,
    /// The hosts.
    pub lab: Lab,
    /// Each guest's target, from 0; None: guest i goes to host i mod the number of hosts.
    pub placement: Option<Vec<usize>>,
}

/// A guest that runs at its target.
#[derive(Debug)]
pub struct Arrival {
    /// Its QEMU there.
    pub qemu: Qemu,
    /// STOP at the source and RESUME at the target, since the epoch.
    pub stopped: Duration,
    /// See `stopped`.
    pub resumed: Duration,
    /// Whether vmscatter's digests of both sides agreed; true where nothing has digests.
    pub digests_agree: bool,
    /// All RAM was the same; None if it was not compared.
    pub ram_equal: Option<bool>,
}

/// When the migration began, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// The clock of ticks.
    pub monotonic: Instant,
    /// The clock of QEMU's events, since the epoch.
    pub real: Duration,
}

impl Start {
    /// Now.
    pub fn now() -> Result<Self> {
        Ok(Self { monotonic: Instant::now(), real: SystemTime::now().duration_since(UNIX_EPOCH)? })
    }
}

impl Session {
    /// Lays out the lab, boots all guests on its source host, and makes sure that their load is what is promised.
    pub fn boot(settings: &Settings, assets: &Assets, progress: &Progress) -> Result<Self> {
        let mut lab = Lab::with_igmp(settings.hosts, &settings.rate, settings.igmp_version)?;
        lab.source.qemu = settings.programs.source.clone();
        lab.targets.iter_mut().for_each(|host| host.qemu = settings.programs.target.clone());
        let mut session = Self { guests: Vec::new(), lab, placement: None };
        progress.step(&format!("booting {} guests of {} MiB", settings.guests, settings.guest.memory_mib));
        for number in 1..=settings.guests {
            let mut file = GuestFile::new(number, assets, &settings.guest);
            if settings.guest.own_disks {
                file.add_disk(session.lab.directory())?;
            }
            session.guests.push(Guest::start(file, &session.lab.source)?);
        }
        for guest in &mut session.guests {
            guest.wait_ready()?;
            let number = |name| fact(&guest.ready, name).and_then(|value| value.parse().ok()).unwrap_or(0);
            let (cached, own): (u64, u64) = (number("cached") * PAGE_SIZE, number("random"));
            ensure!(cached >= SHARED_BYTES, "{} has only {cached} bytes of files in cache", guest.file.name);
            ensure!(own >= OWN_BYTES, "{} has only {own} bytes of its own", guest.file.name);
        }
        let first = session.guests.first().map(Guest::kernel_address);
        let randomised = session.guests.iter().any(|guest| Some(guest.kernel_address()) != first);
        // Two or three kernels may well meet at one of some 500 places.
        ensure!(
            randomised || session.guests.len() < 4,
            "all kernels are at the same address: no randomisation"
        );
        Ok(session)
    }

    /// The host that guest number `index`, from 0, goes to: the same in every mode.
    pub fn target_of(&self, index: usize, hosts: usize) -> &Host {
        let target = self.placement.as_ref().map_or(index % hosts, |placement| placement[index]);
        &self.lab.targets[target]
    }

    /// Moves all guests and measures. The guests' QEMUs end with the session.
    ///
    /// An error if the run as a whole could not be done; a guest that fails alone is a row that says so.
    pub fn run(self, mode: Mode, settings: &Settings, progress: &Progress) -> Result<Run> {
        let agents =
            mode.needs_vmscatter().then(|| scatter::Agents::start(&self.lab, settings)).transpose()?;
        self.run_with(agents.as_ref(), mode, settings, progress)
    }

    /// The same with agents that run already; None off the shelf.
    pub(crate) fn run_with(
        &self,
        agents: Option<&scatter::Agents>,
        mode: Mode,
        settings: &Settings,
        progress: &Progress,
    ) -> Result<Run> {
        let before = self.bytes(settings.hosts)?;
        progress.step(&format!("{}: moving {} guests", mode.name(), self.guests.len()));
        let start = Start::now()?;
        let (arrivals, distinct_nonzero_bytes) = match agents {
            None => (baseline::migrate_all(self, mode, settings, progress)?, None),
            Some(agents) => {
                let (arrivals, bytes) = agents.migrate_all(self, mode, settings, progress)?;
                (arrivals, Some(bytes))
            }
        };
        let end = Instant::now();
        let after = self.bytes(settings.hosts)?;
        progress.step(&format!("{}: checking the guests", mode.name()));
        let last_resume = arrivals.iter().flatten().map(|arrival| arrival.resumed).max();
        let rows = self.check_all(&arrivals, settings, start.monotonic, end)?;
        let per_host =
            before.received.iter().zip(&after.received).map(|(before, after)| after - before).collect();
        Ok(Run {
            mode,
            guest_count: settings.guests,
            host_count: settings.hosts,
            total_time_s: last_resume.map_or(f64::NAN, |last| last.saturating_sub(start.real).as_secs_f64()),
            transferred_bytes: after.sent - before.sent,
            network_traffic_bytes: after.received.iter().sum::<u64>() - before.received.iter().sum::<u64>(),
            downtime_ms: Downtime::of(&rows),
            distinct_nonzero_bytes,
            guests: rows,
            rate: settings.rate.clone(),
            memory_mib: settings.guest.memory_mib,
            downtime_comparable: !settings.holds(),
            host_bytes: per_host,
        })
    }

    fn bytes(&self, hosts: usize) -> Result<Bytes> {
        let network = &self.lab.network;
        let received = self.lab.targets[..hosts].iter().map(|host| network.received_bytes(&host.link));
        Ok(Bytes {
            sent: network.sent_bytes(&self.lab.source.link)?,
            received: received.collect::<Result<_>>()?,
        })
    }

    fn check_all(
        &self,
        arrivals: &[Result<Arrival>],
        settings: &Settings,
        from: Instant,
        to: Instant,
    ) -> Result<Vec<GuestRow>> {
        std::thread::scope(|scope| {
            let checks: Vec<_> = self
                .guests
                .iter()
                .zip(arrivals)
                .enumerate()
                .map(|(index, (guest, arrival))| {
                    let target = &self.target_of(index, settings.hosts).name;
                    scope.spawn(move || check(guest, arrival, target, from, to))
                })
                .collect();
            checks.into_iter().map(|check| check.join().ok().context("a check panicked")).collect()
        })
    }
}

/// Bytes on the links at one moment.
struct Bytes {
    sent: u64,
    received: Vec<u64>,
}

fn check(guest: &Guest, arrival: &Result<Arrival>, target: &str, from: Instant, to: Instant) -> GuestRow {
    let mut row = GuestRow::new(&guest.file.name, target);
    let arrival = match arrival {
        Ok(arrival) => arrival,
        Err(error) => {
            row.problem = Some(format!("{error:#}"));
            return row;
        }
    };
    // What was to be measured is over. Should this fail, the check takes longer.
    let _ = weight::restore_vcpus(&arrival.qemu.qmp);
    let ticked = guest.serial.wait_ticks(1, TICKS_TO_SEE, TICKS_WITHIN);
    let checked = guest.check();
    let ticks = guest.serial.ticks();
    let gapless = match guest.restored {
        false => serial::is_gapless(&ticks),
        true => serial::is_gapless_from_first(&ticks),
    };
    row.running = ticked && gapless;
    row.verified = checked.is_ok() && arrival.digests_agree && arrival.ram_equal != Some(false);
    row.ram_equal = arrival.ram_equal;
    row.downtime_ms = arrival.resumed.saturating_sub(arrival.stopped).as_secs_f64() * 1e3;
    row.tick_gap_ms = serial::longest_gap(&ticks, from, to).as_secs_f64() * 1e3;
    row.handover_gap_ms = serial::handover_gap(&ticks).map(|gap| gap.as_secs_f64() * 1e3);
    row.problem = match &checked {
        Err(error) => Some(format!("{error:#}")),
        Ok(_) if !ticked => Some("no ticks at its target".to_owned()),
        Ok(_) if !gapless => Some("ticks were lost or repeated".to_owned()),
        Ok(_) if !arrival.digests_agree => Some("the digests of both sides differ".to_owned()),
        Ok(_) if arrival.ram_equal == Some(false) => Some("its RAM differs at the target".to_owned()),
        Ok(facts) => {
            row.dirtied_kib_per_s = dirty_rate(facts);
            None
        }
    };
    row
}

/// KiB per second that the guest has rewritten, by its own clock.
fn dirty_rate(facts: &str) -> Option<f64> {
    let number = |name| fact(facts, name)?.parse::<f64>().ok();
    Some(number("rewritten")? * PAGE_SIZE as f64 / 1024.0 / (number("ms")? / 1e3))
}

/// STOP of the source and RESUME of the target; both must have happened.
pub(crate) fn stop_and_resume(
    source: &Qemu,
    target: &Qemu,
    timeout: Duration,
) -> Result<(Duration, Duration)> {
    let Some(resume) = target.qmp.wait_event(timeout, |event| event.name == "RESUME") else {
        bail!("no RESUME at the target within {timeout:?}");
    };
    let stop = source.qmp.last_event("STOP").context("no STOP at the source")?;
    Ok((stop.at, resume.at))
}
