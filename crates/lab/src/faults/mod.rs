//! `lab faults`: real guests moved while something goes wrong, each time from a fresh boot.
//!
//! What is asked of vmscatter is the same each time: a guest runs exactly once, at its source or at its target, its
//! ticks go on without a gap, its data is whole, and one that stayed has its migration parameters as they were.

mod bench;
mod busy;
mod intruder;
pub mod kill;
mod late_twin;
mod neighbours;
mod scenarios;
mod source_specific;

use std::time::Instant;

use anyhow::Result;

use crate::assets::Assets;
use crate::names::by_name;
use crate::progress::Progress;
use crate::session::Settings;
use bench::Bench;
use neighbours::Fault;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A guest is paused before it is moved, and stays so.
    Paused,
    /// Targets lose one UDP packet in a hundred.
    Loss,
    /// Targets are reached over IPv6, by `doctor` and then by guests.
    Ipv6,
    /// All links carry jumbo frames.
    Jumbo,
    /// Multicast does not reach one target.
    NoMulticast,
    /// Multicast reaches one target only as long as it is short.
    NoLongMulticast,
    /// Multicast reaches no target: they pass on to each other what all need.
    NoMulticastAtAll,
    /// The network lets no more than a trickle of multicast through to one target.
    LittleMulticast,
    /// The network lets a moment's worth of multicast through to all targets, and then no more than a trickle.
    MulticastIsThrottled,
    /// The switch forgets on the way who wants what: no multicast reaches any target any more.
    GroupsFallSilent,
    /// A target that passes frames on is killed.
    RelayDies,
    /// What one target passes on to another does not get there any more, and nobody is told.
    RelayIsCut,
    /// A target's link is much slower than the other's: nobody waits for it for long.
    RelayIsSlow,
    /// A host that is in nobody's set listens, plays again and forges.
    Intruder,
    /// The switch knows sources (IGMPv3), and a host that is not the session's sends to its groups.
    SourceSpecific,
    /// Nothing is moved: `doctor` finds what is wrong, and nothing else.
    Doctor,
    /// Ctrl-C while guests are on their way; then all are moved after all.
    Cancel,
    /// A target's agent and its QEMUs are killed.
    TargetDies,
    /// The same, and the guest that was to go there is tried again elsewhere.
    Retry,
    /// A guest is reset on its way, and another one switches itself off.
    GuestEvents,
    /// Guests panic: one whose QEMU ends then, and one whose QEMU keeps it as it is.
    GuestPanics,
    /// The source's agent is killed.
    SourceDies,
    /// A target's host is taken for lost, and comes back.
    LateTwin,
    /// Targets that can't take a guest.
    BadMachine,
    /// A guest that dirties memory faster than it can be sent: given up, by default and at a deadline; then throttled.
    Busy,
    /// The same guest, which may stand for longer.
    BusyMayStand,
    /// One target of three is a bad neighbour.
    Neighbour(neighbours::Fault),
}

impl Scenario {
    /// All, in the order in which they are run.
    pub const ALL: [Self; 30] = [
        Self::Paused,
        Self::Loss,
        Self::Ipv6,
        Self::Jumbo,
        Self::NoMulticast,
        Self::NoLongMulticast,
        Self::NoMulticastAtAll,
        Self::LittleMulticast,
        Self::MulticastIsThrottled,
        Self::GroupsFallSilent,
        Self::RelayDies,
        Self::RelayIsCut,
        Self::RelayIsSlow,
        Self::Intruder,
        Self::SourceSpecific,
        Self::Doctor,
        Self::Cancel,
        Self::TargetDies,
        Self::Retry,
        Self::GuestEvents,
        Self::GuestPanics,
        Self::SourceDies,
        Self::LateTwin,
        Self::BadMachine,
        Self::Busy,
        Self::BusyMayStand,
        Self::Neighbour(Fault::HangsInScatter),
        Self::Neighbour(Fault::HangsInStream),
        Self::Neighbour(Fault::NoMemory),
        Self::Neighbour(Fault::Loses),
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Loss => "loss",
            Self::Ipv6 => "ipv6",
            Self::Jumbo => "jumbo",
            Self::NoMulticast => "no-multicast",
            Self::NoLongMulticast => "no-long-multicast",
            Self::NoMulticastAtAll => "no-multicast-at-all",
            Self::LittleMulticast => "little-multicast",
            Self::MulticastIsThrottled => "multicast-is-throttled",
            Self::GroupsFallSilent => "groups-fall-silent",
            Self::RelayDies => "relay-dies",
            Self::RelayIsCut => "relay-is-cut",
            Self::RelayIsSlow => "relay-is-slow",
            Self::Intruder => "intruder",
            Self::SourceSpecific => "source-specific",
            Self::Doctor => "doctor",
            Self::Cancel => "cancel",
            Self::TargetDies => "target-dies",
            Self::Retry => "retry",
            Self::GuestEvents => "guest-events",
            Self::GuestPanics => "guest-panics",
            Self::SourceDies => "source-dies",
            Self::LateTwin => "late-twin",
            Self::BadMachine => "bad-machine",
            Self::Busy => "busy",
            Self::BusyMayStand => "busy-may-stand",
            Self::Neighbour(Fault::HangsInScatter) => "target-hangs-in-scatter",
            Self::Neighbour(Fault::HangsInStream) => "target-hangs",
            Self::Neighbour(Fault::NoMemory) => "target-no-memory",
            Self::Neighbour(Fault::Loses) => "target-loses",
        }
    }

    /// `usual` is what guests take whose neighbours are good, for those scenarios that need it.
    fn play(self, bench: &mut Bench<'_>, usual: f64) -> Result<()> {
        match self {
            Self::Paused => scenarios::paused(bench),
            Self::Loss => scenarios::loss(bench),
            Self::Ipv6 => scenarios::ipv6(bench),
            Self::Jumbo => scenarios::jumbo(bench),
            Self::NoMulticast => scenarios::no_multicast(bench),
            Self::NoLongMulticast => scenarios::no_long_multicast(bench),
            Self::NoMulticastAtAll => scenarios::no_multicast_at_all(bench),
            Self::LittleMulticast => scenarios::little_multicast(bench),
            Self::MulticastIsThrottled => scenarios::multicast_is_throttled(bench),
            Self::GroupsFallSilent => scenarios::groups_fall_silent(bench),
            Self::RelayDies => scenarios::relay_dies(bench),
            Self::RelayIsCut => scenarios::relay_is_cut(bench),
            Self::RelayIsSlow => scenarios::relay_is_slow(bench),
            Self::Intruder => intruder::play(bench),
            Self::SourceSpecific => source_specific::play(bench),
            Self::Doctor => scenarios::doctor(bench),
            Self::Cancel => scenarios::cancel(bench),
            Self::TargetDies => scenarios::target_dies(bench),
            Self::Retry => scenarios::retry(bench),
            Self::GuestEvents => scenarios::guest_events(bench),
            Self::GuestPanics => scenarios::guest_panics(bench),
            Self::SourceDies => scenarios::source_dies(bench),
            Self::LateTwin => late_twin::play(bench),
            Self::BadMachine => scenarios::bad_machine(bench),
            Self::Busy => busy::gives_up_or_throttles(bench),
            Self::BusyMayStand => busy::may_stand(bench),
            Self::Neighbour(fault) => neighbours::play(fault, bench, usual),
        }
    }

    /// What the lab is like in which it is played.
    fn settings(self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        match self {
            Self::Busy | Self::BusyMayStand => {
                settings.guest.first_dirty_kib_per_s = Some(busy::DIRTY_KIB_PER_S);
            }
            Self::SourceSpecific => settings.igmp_version = 3,
            Self::Neighbour(_) => settings = Fault::settings(&settings),
            _ => {}
        }
        settings
    }
}

impl std::str::FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        by_name("scenario", name, &Self::ALL, Self::name)
    }
}

/// Plays the scenarios and prints a line for each; whether all went well.
pub fn run(settings: &Settings, scenarios: &[Scenario]) -> Result<bool> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let mut all_well = true;
    let mut usual = None;
    for scenario in scenarios {
        if matches!(scenario, Scenario::Neighbour(_)) && usual.is_none() {
            usual = Some(neighbours::usual(settings, &assets, &progress)?);
        }
        let settings = scenario.settings(settings);
        let mut bench = Bench::start(&settings, &assets, &progress)?;
        progress.step(scenario.name());
        let since = Instant::now();
        let result = scenario.play(&mut bench, usual.unwrap_or(f64::NAN));
        let took = since.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("{:<25}ok ({took:.1} s)", scenario.name()),
            Err(error) => {
                all_well = false;
                println!("{:<25}FAILED {error:#} ({took:.1} s)\n{}", scenario.name(), bench.last_words());
            }
        }
    }
    progress.finish();
    Ok(all_well)
}
