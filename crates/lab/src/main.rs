//! `lab`: measures migrations of real guests on hosts in network namespaces.
//!
//! Exit codes: 0 every guest was verified and runs; 1 one is not, or the run failed; 2 an option is wrong, before
//! anything has started; 128 + n ended by signal n.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use lab::collect::{self, CollectOptions};
use lab::demo::{self, DemoOptions};
use lab::faults::kill::{self, Choice, Fault, Step};
use lab::faults::{self, Scenario};
use lab::groups::{self, Way};
use lab::guest::DIRTY_KIB_PER_S;
use lab::predict::{self, PredictOptions};
use lab::session::{Programs, Settings};
use lab::{Accel, GuestOptions, Mode, peers, placement, state, transport, versions};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot guests, move them in each mode, print one table
    Demo(DemoArguments),
    /// Move guests in each mode and compare all RAM; then see that one flipped bit is found, and that one group serves all
    /// sets of hosts
    EndToEnd(EndToEndArguments),
    /// Move guests while things go wrong: loss, dead targets, cancellation and the like
    Faults(FaultsArguments),
    /// Kill agents, QEMUs and the command line, and cut the network, at each step of a guest's way
    KillMatrix(KillArguments),
    /// Move guests between the distribution's QEMU and one of another version, each way, and compare all RAM
    QemuVersions(VersionsArguments),
    /// Move guests between agents of this build and of another, each way, and compare all RAM
    Peers(PeersArguments),
    /// Measure the transport alone, without guests: under loss, beside TCP, with a slow receiver
    Transport(TransportArguments),
    /// Measure what a core does of the transport, on links without a limit, with segmentation offload and without; needs ethtool
    Batching {
        /// Payload, MiB
        #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=65536))]
        mib: u64,
    },
    /// One end of `transport`
    #[command(hide = true)]
    TransportPeer {
        /// What to do, as JSON
        task: String,
    },
    /// Ask `vmscatter plan` what moving idle guests will cost, move them, and compare
    Predict(PredictArguments),
    /// Compare random groupings of guests with the chosen one, as in the paper's Table 2 (scripts/table2 prepares it)
    Placement(PlacementArguments),
    /// Measure what working guests feel of their memory being collected
    Collect(CollectArguments),
    /// Move guests with few and with many multicast groups, and count joins and leaves at the switch
    Groups(GroupsArguments),
    /// Remove what labs left whose process has died
    Clean,
}

#[derive(clap::Args)]
struct DemoArguments {
    /// Number of guests
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    guests: u16,
    /// Number of target hosts; guest i goes to host i mod M
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
    /// RAM of each guest, MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(192..=65536))]
    memory: u32,
    /// Rate of every link, in tc's notation
    #[arg(long, default_value = "1gbit", value_parser = parse_rate)]
    rate: String,
    /// Modes: off-the-shelf, off-the-shelf-multifd-zstd, scatter, scatter+cm, relay
    #[arg(long, value_delimiter = ',', default_value = "off-the-shelf,scatter,scatter+cm")]
    modes: Vec<Mode>,
    /// What each guest rewrites, KiB per second
    #[arg(long, default_value_t = DIRTY_KIB_PER_S, value_parser = clap::value_parser!(u32).range(2048..))]
    dirty: u32,
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// QEMU's machine type
    #[arg(long, default_value = "pc")]
    machine: String,
    /// Compare all RAM, stopped source against loaded target, before a guest goes on; downtimes are then not comparable
    #[arg(long)]
    compare_ram: bool,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct EndToEndArguments {
    /// Modes: off-the-shelf, off-the-shelf-multifd-zstd, scatter, scatter+cm, relay
    #[arg(long, value_delimiter = ',', default_value = "off-the-shelf,scatter,scatter+cm,relay")]
    modes: Vec<Mode>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct PredictArguments {
    /// Number of guests
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    guests: u16,
    /// Number of target hosts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
    /// RAM of each guest, MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(192..=65536))]
    memory: u32,
    /// Rate of every link, in tc's notation
    #[arg(long, default_value = "1gbit", value_parser = parse_rate)]
    rate: String,
    /// Modes: scatter, scatter+cm, relay
    #[arg(long, value_delimiter = ',', default_value = "scatter,scatter+cm")]
    modes: Vec<Mode>,
    /// Keep plan and migration to this rate, as `vmscatter --bandwidth` has it
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<String>,
    /// Move no other guests before: the agent has measured nothing yet
    #[arg(long)]
    first: bool,
    /// Write the comparison to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct FaultsArguments {
    /// Only these scenarios [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<Scenario>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Tcg)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct KillArguments {
    /// A few cells of it, a minute and a half
    #[arg(long)]
    short: bool,
    /// Only these steps [default: all]
    #[arg(long = "step", value_delimiter = ',', value_name = "NAME")]
    steps: Vec<Step>,
    /// Only these faults [default: all]
    #[arg(long = "fault", value_delimiter = ',', value_name = "NAME")]
    faults: Vec<Fault>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Tcg)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct VersionsArguments {
    /// The other QEMU, as scripts/provision.sh's provision_qemu_alt has it
    #[arg(long, value_name = "PROGRAM", env = "VMSCATTER_QEMU_ALT")]
    alt: PathBuf,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Tcg)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct PeersArguments {
    /// The vmscatter program of another build
    #[arg(long, value_name = "FILE", env = "VMSCATTER_OTHER")]
    other: PathBuf,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Tcg)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct TransportArguments {
    /// Only these scenarios [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<transport::Scenario>,
    /// Payload that goes to every receiver, MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=65536))]
    mib: u64,
    /// Rate of the source, Mbit/s on the link [default: congestion control]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u64).range(1..))]
    bandwidth: Option<u64>,
    /// What each link carries, Mbit/s; rivals keep as far below it
    #[arg(long, value_name = "MBIT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    link: u64,
    /// MTU of each link, in bytes; uftp's blocks grow with it, udpcast's are never longer than 1456
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1000..=9000))]
    mtu: u16,
    /// Answer losses by the pieces themselves only
    #[arg(long)]
    without_parity: bool,
    /// Send the same bytes with these too, under each loss
    #[arg(long, value_delimiter = ',')]
    rivals: Vec<transport::Rival>,
}

#[derive(clap::Args)]
struct PlacementArguments {
    #[command(flatten)]
    options: placement::Options,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct CollectArguments {
    /// Number of guests [default: as many as there are processors]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    guests: Option<u16>,
    /// RAM of each guest, MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(192..=65536))]
    memory: u32,
    /// Length of each span that is measured
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Values of --collect-cpu to measure
    #[arg(long, value_delimiter = ',', default_value = "100,50,25", value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: Vec<u8>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(clap::Args)]
struct GroupsArguments {
    /// Number of guests, each to a host of its own
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(2..=10))]
    guests: u16,
    /// Numbers of groups
    #[arg(long, value_delimiter = ',', value_name = "K", default_value = "1,2,4,16", value_parser = clap::value_parser!(u16).range(1..=64))]
    groups: Vec<u16>,
    /// Pages that the guests of each set have in common
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pages: u16,
    /// RAM of each guest, MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(192..=65536))]
    memory: u32,
    /// Rate of every link, in tc's notation
    #[arg(long, default_value = "1gbit", value_parser = parse_rate)]
    rate: String,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// The vmscatter program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    vmscatter: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AccelChoice {
    /// KVM if a guest boots with it, else TCG
    Auto,
    /// QEMU's translator
    Tcg,
    /// The processor
    Kvm,
}

/// Guests and target hosts of `end-to-end`: enough that contents go to two hosts, and one host has two guests.
const END_TO_END: (usize, usize) = (3, 2);

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Clean => match state::remove_dead() {
            Ok(count) => {
                println!("removed what {count} dead labs had left");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error, 1),
        },
        Command::Demo(arguments) => {
            let checked = check(&arguments.modes, arguments.vmscatter.clone(), arguments.json.as_deref());
            run(checked, |vmscatter| arguments.run(vmscatter))
        }
        Command::EndToEnd(arguments) => {
            let checked = check(&arguments.modes, arguments.vmscatter.clone(), None);
            run(checked, |vmscatter| arguments.run(vmscatter))
        }
        Command::Transport(arguments) => {
            let options = transport::Options {
                scenarios: if arguments.only.is_empty() {
                    transport::Scenario::ALL.to_vec()
                } else {
                    arguments.only
                },
                bytes: arguments.mib << 20,
                rivals: arguments.rivals,
                bandwidth: arguments.bandwidth.map(|mbit| mbit * 1_000_000 / 8),
                link_mbit: arguments.link,
                mtu: arguments.mtu,
                parity: !arguments.without_parity,
            };
            ended(state::clean_up_on_signals().and_then(|()| transport::run(&options)))
        }
        Command::Batching { mib } => ended(
            state::clean_up_on_signals().and_then(|()| transport::batching::run(mib << 20)).map(|()| true),
        ),
        Command::TransportPeer { task } => match transport::peer::run(&task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        },
        Command::Predict(arguments) => {
            let checked = check(&arguments.modes, arguments.vmscatter.clone(), arguments.json.as_deref());
            let foreign = arguments.modes.iter().find(|mode| !mode.needs_vmscatter());
            let checked = checked.and_then(|vmscatter| match foreign {
                None => Ok(vmscatter),
                Some(mode) => bail!("--modes: {} makes no plans", mode.name()),
            });
            run(checked, |vmscatter| arguments.run(vmscatter))
        }
        Command::Placement(arguments) => {
            let json = arguments.options.json.clone();
            let checked = check(&[Mode::Scatter], arguments.vmscatter.clone(), json.as_deref());
            run(checked, |vmscatter| arguments.run(vmscatter))
        }
        Command::Collect(arguments) => {
            scatter(arguments.vmscatter.clone(), |vmscatter| arguments.run(vmscatter))
        }
        Command::Groups(arguments) => {
            scatter(arguments.vmscatter.clone(), |vmscatter| arguments.run(vmscatter))
        }
        Command::QemuVersions(arguments) => {
            scatter(arguments.vmscatter.clone(), |vmscatter| arguments.run(vmscatter))
        }
        Command::Peers(arguments) => {
            scatter(arguments.vmscatter.clone(), |vmscatter| arguments.run(vmscatter))
        }
        Command::KillMatrix(arguments) => {
            scatter(arguments.vmscatter.clone(), |vmscatter| arguments.run(vmscatter))
        }
        Command::Faults(arguments) => {
            scatter(arguments.vmscatter.clone(), |vmscatter| arguments.run(vmscatter))
        }
    }
}

fn parse_rate(text: &str) -> Result<String, String> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let known = ["bit", "kbit", "mbit", "gbit"].contains(&unit);
    match number.parse::<f64>() {
        Ok(rate) if known && rate > 0.0 && rate.is_finite() => Ok(text.to_owned()),
        _ => Err("a rate is a number with bit, kbit, mbit or gbit, such as 1gbit".to_owned()),
    }
}

/// Runs what needs the vmscatter program, once its options have been found right.
fn run(checked: Result<PathBuf>, work: impl FnOnce(PathBuf) -> Result<bool>) -> ExitCode {
    match checked {
        Err(error) => failed(&error, 2),
        Ok(vmscatter) => ended(work(vmscatter)),
    }
}

/// The same for what only scatters, and writes no JSON.
fn scatter(vmscatter: Option<PathBuf>, work: impl FnOnce(PathBuf) -> Result<bool>) -> ExitCode {
    run(check(&[Mode::Scatter], vmscatter, None), work)
}

fn ended(result: Result<bool>) -> ExitCode {
    state::wait_if_ending();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => failed(&error, 1),
    }
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("lab: {error:#}");
    ExitCode::from(code)
}

/// Finds what can be wrong before anything has started; returns the vmscatter program.
fn check(modes: &[Mode], vmscatter: Option<PathBuf>, json: Option<&Path>) -> Result<PathBuf> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    ensure!(!modes.is_empty(), "--modes is empty");
    if let Some(directory) = json.and_then(Path::parent) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        ensure!(directory.is_dir(), "--json: {} is not a directory", directory.display());
    }
    let beside = std::env::current_exe()?.with_file_name("vmscatter");
    let vmscatter = vmscatter.unwrap_or(beside);
    if let Some(mode) = modes.iter().find(|mode| mode.needs_vmscatter()) {
        ensure!(vmscatter.is_file(), "mode {} needs {}", mode.name(), vmscatter.display());
    }
    Ok(vmscatter)
}

impl AccelChoice {
    fn resolve(self, memory_mib: u32) -> Result<Accel> {
        match self {
            Self::Tcg => Ok(Accel::Tcg),
            Self::Kvm => Ok(Accel::Kvm),
            Self::Auto => demo::detect_accel(memory_mib),
        }
    }
}

impl DemoArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let settings = Settings {
            guests: self.guests.into(),
            hosts: self.hosts.into(),
            rate: self.rate,
            guest: GuestOptions {
                memory_mib: self.memory,
                accel: self.accel.resolve(self.memory)?,
                dirty_kib_per_s: self.dirty,
                machine: self.machine,
                ..GuestOptions::default()
            },
            compare_ram: self.compare_ram,
            damage: None,
            programs: Programs::default(),
            vmscatter,
            target_vmscatter: None,
            rekey_mib: None,
            igmp_version: 2,
        };
        let report = demo::run(&DemoOptions { settings, modes: self.modes, json: self.json })?;
        print!("{}", report.to_text());
        Ok(report.is_good())
    }
}

impl PredictArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let guest = GuestOptions {
            memory_mib: self.memory,
            accel: self.accel.resolve(self.memory)?,
            dirty_kib_per_s: 0,
            ..GuestOptions::default()
        };
        let settings = Settings {
            guests: self.guests.into(),
            hosts: self.hosts.into(),
            rate: self.rate,
            guest,
            compare_ram: false,
            damage: None,
            programs: Programs::default(),
            vmscatter,
            target_vmscatter: None,
            rekey_mib: None,
            igmp_version: 2,
        };
        let (modes, bandwidth, first, json) = (self.modes, self.bandwidth, self.first, self.json);
        predict::run(&PredictOptions { settings, modes, bandwidth, first, json })
    }
}

/// What `end-to-end` and `faults` have in common: few guests, few hosts, everything else as in the demo.
fn test_settings(accel: AccelChoice, compare_ram: bool, vmscatter: PathBuf) -> Result<Settings> {
    let guest = GuestOptions::default();
    Ok(Settings {
        guests: END_TO_END.0,
        hosts: END_TO_END.1,
        rate: "1gbit".to_owned(),
        guest: GuestOptions { accel: accel.resolve(guest.memory_mib)?, ..guest },
        compare_ram,
        damage: None,
        programs: Programs::default(),
        vmscatter,
        target_vmscatter: None,
        rekey_mib: None,
        igmp_version: 2,
    })
}

/// A guest's stream has more.
const REKEY_MIB: u64 = 8;

impl EndToEndArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let settings = test_settings(self.accel, true, vmscatter)?;
        let settings = Settings { rekey_mib: Some(REKEY_MIB), ..settings };
        let mut wrong = demo::end_to_end(settings.clone(), &self.modes)?;
        if self.modes.contains(&Mode::Scatter) {
            wrong.extend(groups::end_to_end(&Settings { compare_ram: false, ..settings })?);
        }
        for line in &wrong {
            println!("{line}");
        }
        Ok(wrong.is_empty())
    }
}

impl GroupsArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let guest = GuestOptions {
            memory_mib: self.memory,
            accel: self.accel.resolve(self.memory)?,
            ..GuestOptions::default()
        };
        let guests = usize::from(self.guests);
        let settings = Settings {
            guests,
            hosts: guests,
            rate: self.rate,
            guest,
            compare_ram: false,
            damage: None,
            programs: Programs::default(),
            vmscatter,
            target_vmscatter: None,
            rekey_mib: None,
            igmp_version: 2,
        };
        let way = |groups: &u16, unsorted| Way { groups: usize::from(*groups), unsorted };
        // With fewest groups the order matters most.
        let fewest = self.groups.iter().min().map(|groups| way(groups, true));
        let ways: Vec<Way> =
            fewest.into_iter().chain(self.groups.iter().map(|groups| way(groups, false))).collect();
        groups::run(&settings, &ways, usize::from(self.pages))
    }
}

impl FaultsArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let settings = test_settings(self.accel, false, vmscatter)?;
        let chosen = if self.only.is_empty() { Scenario::ALL.to_vec() } else { self.only };
        faults::run(&settings, &chosen)
    }
}

impl KillArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let settings = test_settings(self.accel, false, vmscatter)?;
        kill::run(&settings, &Choice { steps: self.steps, faults: self.faults, short: self.short })
    }
}

impl VersionsArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        versions::run(&test_settings(self.accel, true, vmscatter)?, &self.alt)
    }
}

impl PeersArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        peers::run(&test_settings(self.accel, true, vmscatter)?, &self.other)
    }
}

impl PlacementArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let accel = self.accel.resolve(self.options.memory)?;
        let report = placement::run(&self.options, accel, vmscatter)?;
        print!("{}", report.to_text());
        Ok(report.is_good())
    }
}

impl CollectArguments {
    fn run(self, vmscatter: PathBuf) -> Result<bool> {
        state::clean_up_on_signals()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let guest = GuestOptions {
            memory_mib: self.memory,
            accel: self.accel.resolve(self.memory)?,
            ..GuestOptions::default()
        };
        let options = CollectOptions {
            guests: self.guests.map_or(processors, usize::from),
            guest,
            span: std::time::Duration::from_secs(self.seconds),
            percents: self.percent,
            vmscatter,
        };
        print!("{}", collect::run(&options)?);
        Ok(true)
    }
}
