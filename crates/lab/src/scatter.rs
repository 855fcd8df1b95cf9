//! vmscatter in the lab: one agent on each host, one `migrate` command for all guests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::guest::{Guest, Qemu};
use crate::host::{Host, Lab};
use crate::progress::Progress;
use crate::session::{Arrival, Mode, Session, Settings, stop_and_resume};

const PORT: u16 = 7940;
/// Where agents take data connections: the port after it.
pub(crate) const DATA_PORT: u16 = PORT + 1;
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// As much as the slowest links that make sense here need.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(600);
/// Lines of each agent's log that an error shows.
const LOG_LINES: usize = 10;
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the lab looks for what an agent makes: sockets of a twin, marks of a held guest.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// `migrate` moved some guests and not all.
const EXIT_PARTIAL: i32 = 3;

/// The configuration file of an agent.
#[derive(Serialize)]
struct AgentConfig<'a> {
    name: &'a str,
    listen: String,
    socket: PathBuf,
    state_dir: PathBuf,
    run_dir: &'a Path,
    tls: Tls,
    qemu: Programs<'a>,
    fingerprints: FleetKey,
    test: Test,
    values: BTreeMap<&'static str, &'a Path>,
}

#[derive(Serialize)]
struct Tls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Serialize)]
struct Test {
    holds: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    rekey_mib: Option<u64>,
}

#[derive(Serialize)]
struct FleetKey {
    key: PathBuf,
}

#[derive(Serialize)]
struct Programs<'a> {
    programs: Vec<&'a Path>,
}

/// What the lab reads of the report of `vmscatter migrate --json`.
#[derive(Debug, Deserialize)]
struct Outcome {
    guests: Vec<GuestOutcome>,
    scatter: ScatterOutcome,
}

#[derive(Debug, Deserialize)]
struct ScatterOutcome {
    distinct_nonzero_bytes: u64,
    multicast_bytes: u64,
    /// Older builds don't say.
    #[serde(default)]
    relay_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct GuestOutcome {
    name: String,
    status: String,
    reason: Option<String>,
    verified: bool,
}

/// Running agents, one on each host. They end with the value.
#[derive(Debug)]
pub struct Agents {
    program: PathBuf,
    target_program: PathBuf,
    directory: PathBuf,
    children: Vec<Child>,
    /// Streams get a new key after so much.
    rekey_mib: Option<u64>,
    /// No guest's target is given: vmscatter chooses.
    pub(crate) unpinned: bool,
    /// Targets are reached over IPv6.
    pub(crate) over_ipv6: bool,
    /// Options for `migrate` besides.
    pub(crate) options: Vec<String>,
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Agents {
    /// Makes keys and configurations, starts the agents, and waits until all listen.
    pub fn start(lab: &Lab, settings: &Settings) -> Result<Self> {
        let directory = lab.directory().to_owned();
        let mut agents = Self {
            program: settings.vmscatter.clone(),
            target_program: settings.target_vmscatter.as_ref().unwrap_or(&settings.vmscatter).clone(),
            directory,
            children: Vec::new(),
            rekey_mib: settings.rekey_mib,
            unpinned: false,
            over_ipv6: false,
            options: Vec::new(),
        };
        let keys = agents.directory.join("keys");
        let hosts: Vec<&Host> = lab.hosts().collect();
        let mut command = Command::new(&agents.program);
        command.args(["keys", "init", "--dir"]).arg(&keys);
        for host in &hosts {
            command.args(["--host", &host.name]);
        }
        let output =
            command.stdin(Stdio::null()).output().with_context(|| agents.program.display().to_string())?;
        ensure!(
            output.status.success(),
            "vmscatter keys init: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        for host in hosts {
            let child = agents.start_agent(host, &keys)?;
            agents.children.push(child);
        }
        Ok(agents)
    }

    /// Where agents look whether a guest is to be held at some step.
    fn holds(&self) -> PathBuf {
        self.directory.join("holds")
    }

    /// Has agents hold a guest at a step, such as `source-before-committed`, until the file is removed; once it is held
    /// there is one with `.held` in place of `.hold`.
    pub(crate) fn hold(&self, guest: &str, place: &str) -> Result<PathBuf> {
        let path = self.holds().join(format!("{guest}.{place}.hold"));
        fs::create_dir_all(self.holds())?;
        let _ = fs::remove_file(path.with_extension("held"));
        File::create(&path)?;
        Ok(path)
    }

    /// Kills an agent: the source's is number 0.
    pub(crate) fn kill(&mut self, number: usize) -> Result<()> {
        let agent = self.children.get_mut(number).context("no such agent")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Starts an agent again that was killed, with the same state; its log goes on.
    pub(crate) fn restart(&mut self, number: usize, lab: &Lab) -> Result<()> {
        let host = lab.hosts().nth(number).context("no such host")?;
        self.children[number] = self.start_agent(host, &self.directory.join("keys"))?;
        Ok(())
    }

    /// The process of an agent: the source's is number 0.
    pub(crate) fn pid(&self, number: usize) -> Result<nix::unistd::Pid> {
        let child = self.children.get(number).context("no such agent")?;
        Ok(nix::unistd::Pid::from_raw(child.id().try_into()?))
    }

    /// The vmscatter program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Starts a host's agent with the keys of this directory, and waits until it listens.
    pub(crate) fn start_agent(&self, host: &Host, keys: &Path) -> Result<Child> {
        let file = |name: &str, extension: &str| keys.join(format!("{name}.{extension}"));
        let config = AgentConfig {
            name: &host.name,
            listen: format!("[::]:{PORT}"),
            socket: socket(host),
            state_dir: host.run_dir.join("state"),
            run_dir: &host.run_dir,
            tls: Tls { ca: file("ca", "pem"), cert: file(&host.name, "pem"), key: file(&host.name, "key") },
            qemu: Programs { programs: vec![&host.qemu] },
            fingerprints: FleetKey { key: file("fleet", "key") },
            test: Test { holds: self.holds(), rekey_mib: self.rekey_mib },
            values: BTreeMap::from([("qemu", &*host.qemu)]),
        };
        fs::create_dir_all(&config.state_dir)?;
        let path = host.run_dir.join("agent.toml");
        fs::write(&path, toml::to_string(&config)?)?;
        let log_path = host.run_dir.join("agent.log");
        let program = if host.name == "source" { &self.program } else { &self.target_program };
        let mut command = Command::new(program);
        command.args(["agent", "--config"]).arg(&path);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log_path)?);
        let mut child = host.spawn(std::os::unix::process::CommandExt::process_group(&mut command, 0))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            // Read to the end, for an agent must not block on a full pipe.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.contains("ready") {
                    let _ = ready.send(());
                }
            }
        });
        if is_ready.recv_timeout(READY_TIMEOUT).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            bail!("the agent of {} is not ready: {}", host.name, log.trim());
        }
        Ok(child)
    }

    /// Runs `vmscatter migrate` for all guests. One result for each guest, in their order, and the bytes of distinct
    /// contents that vmscatter found in them.
    pub fn migrate_all(
        &self,
        session: &Session,
        mode: Mode,
        settings: &Settings,
        progress: &Progress,
    ) -> Result<(Vec<Result<Arrival>>, u64)> {
        // Before the decision: QEMU has completed here, and the twin has all RAM and does not run.
        let hold = |guest: &Guest| match settings.holds() {
            true => self.hold(&guest.file.name, "source-before-committed").map(Some),
            false => Ok(None),
        };
        let holds: Vec<Option<PathBuf>> = session.guests.iter().map(hold).collect::<Result<_>>()?;
        let mut command = self.migrate_command(session, mode, settings)?;
        let ended = AtomicBool::new(false);
        let (output, watched) = thread::scope(|scope| {
            let watchers: Vec<_> = session
                .guests
                .iter()
                .zip(&holds)
                .enumerate()
                .map(|(index, (guest, hold))| {
                    let host = session.target_of(index, settings.hosts);
                    let (ended, hold) = (&ended, hold.as_deref());
                    scope.spawn(move || watch(guest, host, hold, settings, ended, progress))
                })
                .collect();
            let output = self.run_command(&session.lab.source, &mut command);
            ended.store(true, Ordering::Relaxed);
            let watched: Vec<_> = watchers
                .into_iter()
                .map(|watcher| watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            (output, watched)
        });
        let outcome = output.and_then(|output| parse(&output)).map_err(|error| {
            let logs = session.lab.hosts().map(last_of_log);
            error.context(format!("the agents' last words:\n{}", logs.collect::<String>()))
        })?;
        let ScatterOutcome { multicast_bytes, relay_bytes, .. } = outcome.scatter;
        ensure!(
            mode != Mode::Relay || (multicast_bytes == 0 && relay_bytes > 0),
            "{multicast_bytes} bytes went by multicast, {relay_bytes} were passed on"
        );
        let rekeyed = || log_of(&session.lab.source).contains("streams get a new key");
        ensure!(self.rekey_mib.is_none() || rekeyed(), "no stream got a new key");
        let arrivals = session.guests.iter().zip(watched);
        let arrivals = arrivals.map(|(guest, watched)| outcome.arrival(guest, watched)).collect();
        Ok((arrivals, outcome.scatter.distinct_nonzero_bytes))
    }

    /// Runs `vmscatter scan` for all guests; what they hold is saved to `out`.
    pub(crate) fn scan(&self, session: &Session, out: &Path) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("scan").arg("--agent").arg(socket(&session.lab.source)).arg("--out").arg(out);
        for guest in &session.guests {
            command.arg("--guest").arg(guest.file.write(&self.directory)?);
        }
        let output = self.run_command(&session.lab.source, &mut command)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "vmscatter scan: {}: {}", output.status, stderr.trim());
        Ok(())
    }

    /// Runs it to its end, or ends it when its time is over. Its output goes to files, for nothing reads pipes meanwhile.
    pub(crate) fn run_command(&self, host: &Host, command: &mut Command) -> Result<Output> {
        let paths = ["migrate.out", "migrate.err"].map(|name| self.directory.join(name));
        command.stdin(Stdio::null()).stdout(File::create(&paths[0])?).stderr(File::create(&paths[1])?);
        let mut child = host.spawn(command)?;
        let since = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if since.elapsed() > MIGRATE_TIMEOUT {
                child.kill()?;
                child.wait()?;
                let stderr = fs::read_to_string(&paths[1]).unwrap_or_default();
                bail!("vmscatter did not end within {MIGRATE_TIMEOUT:?}: {}", stderr.trim());
            }
            thread::sleep(LOOK_INTERVAL);
        };
        Ok(Output { status, stdout: fs::read(&paths[0])?, stderr: fs::read(&paths[1])? })
    }

    /// `vmscatter migrate` with agent, targets and guests; what else is wanted can be added.
    pub(crate) fn command(&self, session: &Session, settings: &Settings) -> Result<Command> {
        self.command_of("migrate", session, settings)
    }

    /// The same for `vmscatter migrate` or `plan`.
    pub(crate) fn command_of(&self, what: &str, session: &Session, settings: &Settings) -> Result<Command> {
        self.command_for(what, session, settings, &Vec::from_iter(0..session.guests.len()))
    }

    /// The same for some of the guests.
    pub(crate) fn command_for(
        &self,
        what: &str,
        session: &Session,
        settings: &Settings,
        guests: &[usize],
    ) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.arg(what).arg("--agent").arg(socket(&session.lab.source));
        for host in &session.lab.targets[..settings.hosts] {
            let addr: IpAddr =
                if self.over_ipv6 { host.link.address_v6().into() } else { host.link.address.into() };
            command.arg("--to").arg(format!("{}={}", host.name, SocketAddr::new(addr, PORT)));
        }
        for index in guests.iter().copied() {
            let guest = &session.guests[index];
            command.arg("--guest").arg(guest.file.write(&self.directory)?);
            if self.unpinned {
                continue;
            }
            // The same places as off-the-shelf, so that the figures compare the transfer alone.
            let target = &session.target_of(index, settings.hosts).name;
            command.arg("--vm").arg(format!("{}={target}", guest.file.name));
        }
        Ok(command)
    }

    /// `vmscatter scan` with agent and guests, its outcome as JSON; what else is wanted can be added.
    pub(crate) fn scan_command(&self, lab: &Lab, guests: &[Guest]) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(["scan", "--json", "--agent"]).arg(socket(&lab.source));
        for guest in guests {
            command.arg("--guest").arg(guest.file.write(&self.directory)?);
        }
        Ok(command)
    }

    fn migrate_command(&self, session: &Session, mode: Mode, settings: &Settings) -> Result<Command> {
        let mut command = self.command(session, settings)?;
        command.args(["--compress", mode.compress(), "--json"]);
        if mode == Mode::Relay {
            command.args(["--transport", "relay"]);
        }
        command.args(&self.options);
        Ok(command)
    }
}

/// The end of what a host's agent has logged.
/// What a host's agent has logged.
pub(crate) fn log_of(host: &Host) -> String {
    fs::read_to_string(host.run_dir.join("agent.log")).unwrap_or_default()
}

pub(crate) fn last_of_log(host: &Host) -> String {
    let log = log_of(host);
    let lines: Vec<&str> = log.lines().collect();
    format!("{}: {}\n", host.name, lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  "))
}

pub(crate) fn socket(host: &Host) -> PathBuf {
    host.run_dir.join("agent.sock")
}

/// The report is the last thing on stdout: the whole of it, or its last line.
fn parse(output: &Output) -> Result<Outcome> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let outcome = serde_json::from_str(&stdout)
        .or_else(|_| serde_json::from_str(stdout.trim().lines().next_back().unwrap_or_default()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("lab: vmscatter migrate: {}: {}", output.status, stderr.trim());
    }
    match outcome {
        Ok(outcome) if output.status.success() || output.status.code() == Some(EXIT_PARTIAL) => Ok(outcome),
        Ok(_) => bail!("vmscatter migrate ended with {}", output.status),
        Err(error) => {
            bail!("vmscatter migrate gave no report ({error}): {}: {}", output.status, stderr.trim())
        }
    }
}

impl Outcome {
    fn arrival(&self, guest: &Guest, watched: Result<(Qemu, Option<bool>)>) -> Result<Arrival> {
        let name = &guest.file.name;
        let told = self.guests.iter().find(|told| told.name == *name);
        let told = told.with_context(|| format!("vmscatter's report does not name {name}"))?;
        let reason = told.reason.as_deref().unwrap_or("no reason given");
        ensure!(told.status == "running", "vmscatter reports status {:?}: {reason}", told.status);
        let (qemu, ram_equal) = watched?;
        let (stopped, resumed) = stop_and_resume(&guest.source, &qemu, RESUME_TIMEOUT)?;
        Ok(Arrival { qemu, stopped, resumed, digests_agree: told.verified, ram_equal })
    }
}

/// Follows one guest to its target: attaches to the twin as soon as it is there, compares RAM while the guest is held.
fn watch(
    guest: &Guest,
    host: &Host,
    hold: Option<&Path>,
    settings: &Settings,
    ended: &AtomicBool,
    progress: &Progress,
) -> Result<(Qemu, Option<bool>)> {
    let name = &guest.file.name;
    let sockets = [guest.file.serial(host), guest.file.monitor(host)];
    until(ended, || sockets.iter().all(|socket| socket.exists()))
        .with_context(|| format!("no twin of {name} at {}", host.name))?;
    guest.serial.attach(&sockets[0], RESUME_TIMEOUT)?;
    let qemu = Qemu::attach(&sockets[1], RESUME_TIMEOUT)?;
    let mut ram_equal = None;
    if let Some(hold) = hold {
        until(ended, || hold.with_extension("held").exists())
            .with_context(|| format!("{name} was not held"))?;
        let compared = settings.while_held(name, &guest.source.qmp, &qemu.qmp);
        // Let go whatever the comparison says: the guest must go on.
        fs::remove_file(hold)?;
        ram_equal = compared?;
    }
    until(ended, || qemu.qmp.last_event("RESUME").is_some())
        .with_context(|| format!("{name} did not resume"))?;
    progress.note(&format!("{name} runs at {}", host.name));
    Ok((qemu, ram_equal))
}

/// Waits until `condition` holds; an error if the command ends and it still does not.
fn until(ended: &AtomicBool, condition: impl Fn() -> bool) -> Result<()> {
    let mut last_look = None;
    while !condition() {
        if ended.load(Ordering::Relaxed) {
            // What the command's end has just brought about may take a moment to be seen.
            ensure!(
                last_look.get_or_insert_with(Instant::now).elapsed() < RESUME_TIMEOUT,
                "the command has ended"
            );
        }
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}
