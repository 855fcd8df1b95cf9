//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::units;
use crate::agent::protocol::{Compression, GROUPS_DEFAULT, Pin, Transport};

/// Where the agent listens for the command line unless it is told otherwise.
const SOCKET_DEFAULT: &str = "/run/vmscatter/agent.sock";

const EXIT_CODES: &str = "Exit codes:
  0    everything that was asked for is done; migrate: all guests have moved
  1    failed; migrate: no guest has moved, all go on at the source
  2    bad input; nothing has started
  3    partial success: some guests have moved, the others go on at the source
  4    the agent can't be reached, or was lost (a job that it has begun may go on)
  130  cancelled; no guest has moved";

const RECOVER_HELP: &str = "Agents do this by themselves when they start and as long as something is unfinished; \
'recover' does it now and says what is missing. It can be given on either host.

--force-source and --force-target are for guests that stay paused since the other host can't be reached and will not \
come back, or about which 'status' says that they need a decision. Switch the other host off first, or end its QEMU: \
a guest that runs on two hosts destroys its disks.

Exit codes:
  0    nothing is unfinished any more
  1    something is
  2    bad input, or a decision that is refused
  4    the agent can't be reached";

/// Empty a host: move many running virtual machines to many hosts at once, shared pages by multicast.
#[derive(Debug, Parser)]
#[command(name = "vmscatter", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(super) struct Options {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent of this host; every host has one.
    Agent {
        /// Its configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Certificates with which agents know each other, and the key of the fleet's fingerprints.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Move guests from this host to others, live.
    #[command(after_help = EXIT_CODES)]
    Migrate(MigrateOptions),
    /// Say where guests would go, and what moving them would cost; nothing is moved.
    #[command(after_help = EXIT_CODES)]
    Plan(PlanOptions),
    /// Show what is equal in the guests' memory, per guest and across.
    #[command(after_help = EXIT_CODES)]
    Scan(ScanOptions),
    /// Look at other hosts and at what lies between: certificates, clocks, memory, QEMUs, multicast, rate and loss.
    #[command(after_help = EXIT_CODES)]
    Doctor(DoctorOptions),
    /// Show a job from its beginning until it ends; Ctrl-C leaves it alone.
    #[command(after_help = EXIT_CODES)]
    Attach {
        /// The job's number, as `status` shows it.
        job: u64,
        #[command(flatten)]
        agent: AgentOptions,
        #[command(flatten)]
        view: ViewOptions,
    },
    /// Cancel a job: guests that have not moved go on here as if nothing had been.
    Cancel {
        /// The job's number, as `status` shows it.
        job: u64,
        #[command(flatten)]
        agent: AgentOptions,
    },
    /// Bring guests to their ends whose migration was broken off: by a crash, a lost host, a cut network.
    #[command(after_help = RECOVER_HELP)]
    Recover(RecoverOptions),
    /// Show what the agent of this host does, and which guests have no end yet.
    Status {
        #[command(flatten)]
        agent: AgentOptions,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RecoverOptions {
    #[command(flatten)]
    pub(super) agent: AgentOptions,
    /// This guest only.
    #[arg(long = "vm", value_name = "NAME", conflicts_with_all = ["force_source", "force_target"])]
    pub(super) guest: Option<String>,
    /// Decide that the guest is the source's; needs --yes.
    #[arg(long, value_name = "NAME", conflicts_with = "force_target", requires = "yes")]
    pub(super) force_source: Option<String>,
    /// Decide that the guest is the target's; needs --yes.
    #[arg(long, value_name = "NAME", requires = "yes")]
    pub(super) force_target: Option<String>,
    /// I have made sure that the guest does not run, and will not run, on the side that I do not decide for.
    #[arg(long)]
    pub(super) yes: bool,
    #[command(flatten)]
    pub(super) view: ViewOptions,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a private CA and a fleet key, unless DIR has them, and a certificate for each host.
    Init(KeysOptions),
}

#[derive(Debug, Args)]
pub(super) struct KeysOptions {
    /// Where ca.pem, ca.key, fleet.key, NAME.pem and NAME.key go.
    #[arg(long, value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Hosts that get a certificate; those that have one in DIR are refused.
    #[arg(long = "host", value_name = "NAME", required = true, value_delimiter = ',', num_args = 1..)]
    pub(super) hosts: Vec<String>,
    /// Days for which the hosts' certificates hold.
    #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(super) days: u32,
}

#[derive(Debug, Args)]
pub(super) struct AgentOptions {
    /// The socket of this host's agent.
    #[arg(long = "agent", value_name = "SOCKET", default_value = SOCKET_DEFAULT)]
    pub(super) socket: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ViewOptions {
    /// Print the outcome as JSON, and no progress.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CollectOptions {
    /// What reading and indexing guests' memory may take of this host's processors, in percent of all of them (1 to 100).
    #[arg(long = "collect-cpu", value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(super) cpu_percent: u8,
}

#[derive(Debug, Args)]
pub(super) struct MigrateOptions {
    #[command(flatten)]
    pub(super) agent: AgentOptions,
    /// Target hosts: the name in its certificate, and where its agent listens (port 7940 unless given).
    #[arg(long = "to", value_name = "NAME=ADDR[:PORT]", required = true, num_args = 1.., value_parser = units::target)]
    pub(super) targets: Vec<units::TargetOption>,
    /// Guest files of the guests that leave.
    #[arg(long = "guest", value_name = "FILE", required = true, num_args = 1..)]
    pub(super) guests: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) placement: PlacementOptions,
    /// Compress pages: none, zstd, or zstd:LEVEL with a level of -7 to 19.
    #[arg(long, value_name = "HOW", default_value = "none", allow_hyphen_values = true, value_parser = units::compression)]
    pub(super) compress: Compression,
    /// What may leave this host for all targets together: bits per second with kbit, mbit, gbit or tbit.
    #[arg(long, value_name = "RATE", value_parser = units::bandwidth)]
    pub(super) bandwidth: Option<u64>,
    /// Guests that may be on their way at once.
    #[arg(long, value_name = "N")]
    pub(super) parallel: Option<usize>,
    /// Try guests that have failed up to so many times again, on another target if they are not pinned and there is one.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) retry: u32,
    #[command(flatten)]
    pub(super) convergence: ConvergenceOptions,
    /// How contents that several targets need reach them.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub(super) transport: Transport,
    /// The interface by which multicast leaves this host [default: the agent's configuration, else that by which the targets are
    /// reached].
    #[arg(long, value_name = "NAME")]
    pub(super) interface: Option<String>,
    /// Multicast groups; sets of targets beyond so many share them, one after the other (up to 64).
    #[arg(long, value_name = "K", default_value_t = GROUPS_DEFAULT)]
    pub(super) groups: usize,
    /// For comparisons: the groups serve the sets of targets in the order in which they come.
    #[arg(long, hide_short_help = true)]
    pub(super) unsorted_groups: bool,
    #[command(flatten)]
    pub(super) collect: CollectOptions,
    /// Return once the agent has begun; `attach` shows the job.
    #[arg(long, conflicts_with = "json")]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) view: ViewOptions,
}

/// What is done about guests that dirty their memory faster than it can be sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Guests that do not converge")]
pub(super) struct ConvergenceOptions {
    /// Throttle a guest that dirties memory faster than its stream carries it, until it can be handed over.
    #[arg(long)]
    pub(super) auto_converge: bool,
    /// How long a guest may stand at its hand-over [default: 300ms; less is aimed at first].
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(super) max_downtime: Option<Duration>,
    /// Leave a guest at the source that can't be handed over so long after its stream began [default: its rounds after the first
    /// may take twice as long as that, and a minute at least].
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(super) deadline: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct PlacementOptions {
    /// Pin a guest to a target; the others go where least has to be sent.
    #[arg(long = "vm", value_name = "NAME=HOST", num_args = 1.., value_parser = units::pin)]
    pub(super) pins: Vec<Pin>,
    /// Guests of which no two may share a target; may be given several times.
    #[arg(long = "apart", value_name = "NAME,NAME..", value_parser = units::apart)]
    pub(super) apart: Vec<units::ApartOption>,
    /// Guests that a target takes at most [default: as many as an even spread needs].
    #[arg(long, value_name = "N")]
    pub(super) vms_max: Option<u32>,
    /// Use as few targets as their memory allows.
    #[arg(long)]
    pub(super) few_targets: bool,
    /// The network between the hosts: contents are kept off its dear links.
    #[arg(long, value_name = "FILE")]
    pub(super) topology: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("memory").required(true))]
pub(super) struct PlanOptions {
    #[command(flatten)]
    pub(super) agent: AgentOptions,
    /// Guest files of guests that run here; the agent reads their memory and asks the targets what they can take.
    #[arg(long = "guest", value_name = "FILE", num_args = 1.., group = "memory", requires = "targets")]
    pub(super) guests: Vec<PathBuf>,
    /// Target hosts, with --guest: as in `migrate`.
    #[arg(long = "to", value_name = "NAME=ADDR[:PORT]", num_args = 1.., requires = "guests", value_parser = units::target)]
    pub(super) targets: Vec<units::TargetOption>,
    /// Files of `scan --out`, each of one host; no agent is asked.
    #[arg(long = "from", value_name = "FILE", num_args = 1.., group = "memory", requires = "hosts")]
    pub(super) files: Vec<PathBuf>,
    /// Target hosts, with --from: a name, and the memory that guests may take there, as in 64GiB [default: enough].
    #[arg(long = "target", value_name = "NAME[=MEMORY]", num_args = 1.., requires = "files", value_parser = units::saved_target)]
    pub(super) hosts: Vec<units::SavedTarget>,
    #[command(flatten)]
    pub(super) placement: PlacementOptions,
    /// Multicast groups, as in `migrate`.
    #[arg(long, value_name = "K", default_value_t = GROUPS_DEFAULT)]
    pub(super) groups: usize,
    /// Compress pages: none, zstd, or zstd:LEVEL with a level of -7 to 19; only with --guest.
    #[arg(long, value_name = "HOW", default_value = "none", allow_hyphen_values = true, conflicts_with = "files", value_parser = units::compression)]
    pub(super) compress: Compression,
    /// What may leave the source for all targets together: bits per second with kbit, mbit, gbit or tbit [default: what
    /// the last migration has measured].
    #[arg(long, value_name = "RATE", value_parser = units::bandwidth)]
    pub(super) bandwidth: Option<u64>,
    #[command(flatten)]
    pub(super) collect: CollectOptions,
    #[command(flatten)]
    pub(super) view: ViewOptions,
}

#[derive(Debug, Args)]
pub(super) struct DoctorOptions {
    #[command(flatten)]
    pub(super) agent: AgentOptions,
    /// The hosts: as in `migrate`.
    #[arg(long = "to", value_name = "NAME=ADDR[:PORT]", required = true, num_args = 1.., value_parser = units::target)]
    pub(super) targets: Vec<units::TargetOption>,
    /// What may leave this host meanwhile: bits per second with kbit, mbit, gbit or tbit [default: as much as the links carry,
    /// for two seconds].
    #[arg(long, value_name = "RATE", value_parser = units::bandwidth)]
    pub(super) bandwidth: Option<u64>,
    /// The interface by which multicast leaves this host, as in `migrate`.
    #[arg(long, value_name = "NAME")]
    pub(super) interface: Option<String>,
    /// Listen for an IGMP querier so long; one asks every 125 s as a rule.
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(super) listen: Option<Duration>,
    #[command(flatten)]
    pub(super) view: ViewOptions,
}

#[derive(Debug, Args)]
pub(super) struct ScanOptions {
    #[command(flatten)]
    pub(super) agent: AgentOptions,
    /// Guest files of the guests whose memory is read.
    #[arg(long = "guest", value_name = "FILE", required = true, num_args = 1..)]
    pub(super) guests: Vec<PathBuf>,
    /// Save what placement needs to know of the contents, for 'plan --from'. The agent needs the fleet's key for it.
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) collect: CollectOptions,
    #[command(flatten)]
    pub(super) view: ViewOptions,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn clap_finds_the_options_consistent() {
        super::Options::command().debug_assert();
    }
}
