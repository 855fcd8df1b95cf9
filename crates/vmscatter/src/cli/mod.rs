//! The command line: options in, a checked request to the agent on this host, and what comes back shown.
//!
//! Everything that is wrong with the input gets one line on standard error that begins with `vmscatter: `, and exit
//! code 2, before anything has started. Results go to standard output, progress and messages to standard error.

mod client;
mod logging;
mod options;
mod out_file;
mod request;
pub(crate) mod units;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::agent;
use crate::agent::config::AgentConfig;
use crate::agent::input::BadInput;
use crate::agent::local::LineError;
use crate::plan;
use crate::report::outcome::Exit;
use crate::report::plan::PlanOutcome;
use options::{Command, KeysCommand, Options};
use out_file::OutFile;

/// A command that ends with something other than success; printed as one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    BadInput(#[from] BadInput),
    /// What the agent said when it refused.
    #[error("{1}")]
    Refused(Exit, String),
    #[error("agent at {0}: {1}")]
    Unreachable(String, LineError),
    #[error("agent at {0}: it ended the connection; a job that it has begun may go on")]
    Lost(String),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Failure::BadInput(_) => Exit::BadInput,
            Failure::Refused(exit, _) => *exit,
            Failure::Unreachable(..) | Failure::Lost(_) => Exit::AgentUnreachable,
            Failure::Other(_) => Exit::Failed,
        }
    }
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    let exit = match run(options.command) {
        Ok(exit) => exit,
        Err(failure) => {
            complain(&failure.to_string());
            failure.exit()
        }
    };
    ExitCode::from(exit.code())
}

fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Agent { config } => {
            let config = AgentConfig::load(&config)?;
            let _log = logging::init();
            agent::run(config).map(|()| Exit::Success).map_err(|error| match error {
                agent::AgentError::BadInput(bad) => Failure::BadInput(bad),
                other => Failure::Other(other.into()),
            })
        }
        Command::Keys { command: KeysCommand::Init(options) } => {
            agent::keys::init(&options.dir, &options.hosts, options.days)?;
            Ok(Exit::Success)
        }
        Command::Migrate(options) => {
            let request = request::migrate(&options)?;
            client::run(&options.agent.socket, request, client::View::of(&options.view, options.detach), None)
        }
        Command::Plan(options) if !options.files.is_empty() => {
            let plan = plan::saved::plan(&request::plan_saved(&options)?)?;
            client::show_plan(PlanOutcome::of(plan), client::View::of(&options.view, false))
        }
        Command::Plan(options) => {
            let request = request::plan(&options)?;
            client::run(&options.agent.socket, request, client::View::of(&options.view, false), None)
        }
        Command::Scan(options) => {
            let request = request::scan(&options)?;
            let out = options.out.as_deref().map(OutFile::create).transpose()?;
            client::run(&options.agent.socket, request, client::View::of(&options.view, false), out)
        }
        Command::Doctor(options) => {
            let request = request::doctor(&options)?;
            client::run(&options.agent.socket, request, client::View::of(&options.view, false), None)
        }
        Command::Attach { job, agent, view } => {
            client::attach(&agent.socket, job, client::View::of(&view, false))
        }
        Command::Cancel { job, agent } => client::cancel(&agent.socket, job),
        Command::Recover(options) => client::recover(&options),
        Command::Status { agent, json } => client::status(&agent.socket, json),
    }
}

/// One line on standard error.
pub(crate) fn complain(text: &str) {
    use std::io::Write;
    // A terminal that is gone is no reason to panic.
    let _ = writeln!(std::io::stderr(), "vmscatter: {text}");
}

/// Help and version as clap prints them; a wrong option in one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(Exit::BadInput.code())
        }
        _ => {
            let text = error.render().to_string();
            let first: Vec<&str> =
                text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
            let line = first.join(" ");
            complain(line.strip_prefix("error: ").unwrap_or(&line));
            ExitCode::from(Exit::BadInput.code())
        }
    }
}
