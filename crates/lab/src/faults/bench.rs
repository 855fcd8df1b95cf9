//! What every scenario needs: booted guests with agents, `vmscatter migrate` under way, and what is asked of guests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::assets::Assets;
use crate::guest::{Guest, Qemu};
use crate::host::Host;
use crate::progress::Progress;
use crate::qmp::Qmp;
use crate::scatter::{Agents, last_of_log, socket};
use crate::serial;
use crate::session::{Session, Settings};
use crate::weight;

const LOOK: Duration = Duration::from_millis(5);
const ATTACH: Duration = Duration::from_secs(5);
/// What says whether interrupts come.
const INTERRUPTS: [&str; 3] = ["info irq", "info registers -a", "info lapic"];
/// Ticks seen before a guest counts as running, and how long they may take.
const TICKS: usize = 10;
const TICKS_WITHIN: Duration = Duration::from_secs(20);
/// A QEMU that was told to quit is gone by then.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Booted guests and an agent on each host.
pub(super) struct Bench<'a> {
    /// First, so that they end before their hosts.
    pub(super) agents: Agents,
    pub(super) session: Session,
    pub(super) settings: &'a Settings,
    /// Migration parameters and capabilities of each guest before anything was done.
    before: Vec<(Value, Value)>,
}

/// `vmscatter migrate` while it runs.
pub(super) struct Running {
    child: Child,
    files: [PathBuf; 2],
    ended: Arc<AtomicBool>,
    twins: Vec<JoinHandle<Option<Qemu>>>,
}

/// How `vmscatter migrate` ended.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    /// What it wrote to standard output.
    summary: String,
    pub(super) stderr: String,
    /// The guests' QEMUs at their targets, as far as there ever were any.
    pub(super) twins: Vec<Option<Qemu>>,
}

/// What can be seen of a guest that does nothing: what it said last, where its processors are, what they wait for, and whether interrupts come, a
/// second apart: one that gets its timer's may wait for the serial line alone.
fn stuck(guest: &Guest, qmp: &Qmp, since: usize) -> String {
    let monitor = |command: &str| qmp.human(command).unwrap_or_else(|error| error.to_string());
    let (ticks, lines) = (guest.serial.ticks().len() - since, guest.serial.last_lines(20).join("\n"));
    let said: Vec<String> = [&["info status", "info cpus"][..], &INTERRUPTS, &["info pic"]]
        .concat()
        .into_iter()
        .map(monitor)
        .collect();
    thread::sleep(Duration::from_secs(1));
    let said: Vec<String> = said.into_iter().chain(INTERRUPTS.map(monitor)).collect();
    format!("{ticks} ticks since\n{lines}\n{}", said.join("\n"))
}

fn parameters(qmp: &Qmp) -> Result<(Value, Value)> {
    let get = |command| qmp.execute(command, json!({}));
    Ok((get("query-migrate-parameters")?, get("query-migrate-capabilities")?))
}

fn status(qmp: &Qmp) -> Result<String> {
    let status = qmp.execute("query-status", json!({}))?;
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}

impl<'a> Bench<'a> {
    pub(super) fn start(settings: &'a Settings, assets: &Assets, progress: &Progress) -> Result<Self> {
        let session = Session::boot(settings, assets, progress)?;
        let agents = Agents::start(&session.lab, settings)?;
        let before =
            session.guests.iter().map(|guest| parameters(&guest.source.qmp)).collect::<Result<_>>()?;
        Ok(Self { agents, session, settings, before })
    }

    pub(super) fn guest(&self, index: usize) -> &Guest {
        &self.session.guests[index]
    }

    pub(super) fn target(&self, index: usize) -> &Host {
        self.session.target_of(index, self.settings.hosts)
    }

    /// The end of every agent's log.
    pub(super) fn last_words(&self) -> String {
        self.session.lab.hosts().map(last_of_log).collect()
    }

    /// Starts `vmscatter migrate` with these options besides, and follows each guest to its target.
    pub(super) fn migrate(&self, options: &[&str]) -> Result<Running> {
        self.migrate_some(&Vec::from_iter(0..self.session.guests.len()), options)
    }

    /// The same to its end, with `work` beside it, which is told by the flag that it is over.
    pub(super) fn migrate_beside<T: Send>(
        &self,
        options: &[&str],
        within: Duration,
        work: impl FnOnce(&AtomicBool) -> Result<T> + Send,
    ) -> Result<(Ended, T)> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let work = scope.spawn(|| work(&stop));
            let ended = self.migrate(options).and_then(|running| running.end(within));
            stop.store(true, Ordering::Relaxed);
            Ok((ended?, work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?))
        })
    }

    /// Runs `vmscatter doctor` for all targets: its exit code, and of each check the host, what was looked at, and the verdict.
    pub(super) fn doctor(&self) -> Result<(Option<i32>, Vec<[String; 3]>)> {
        let run = |json: bool| {
            let mut command = self.agents.command_for("doctor", &self.session, self.settings, &[])?;
            command.args(json.then_some("--json"));
            self.agents.run_command(&self.session.lab.source, &mut command)
        };
        let output = run(true)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found: Value = serde_json::from_str(&text).with_context(|| text.into_owned())?;
        let word = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let checks = found["checks"].as_array().cloned().unwrap_or_default();
        for check in checks.iter().filter(|check| check["verdict"] != "good") {
            println!("  {}, {}: {}", word(check, "host"), word(check, "what"), word(check, "found"));
        }
        let checks = checks.iter().map(|check| ["host", "what", "verdict"].map(|key| word(check, key)));
        Ok((output.status.code(), checks.collect()))
    }

    /// The same for some of the guests.
    pub(super) fn migrate_some(&self, guests: &[usize], options: &[&str]) -> Result<Running> {
        let mut command = self.agents.command_for("migrate", &self.session, self.settings, guests)?;
        let files = ["out", "err"].map(|name| self.session.lab.directory().join(format!("migrate.{name}")));
        command.args(options).stdin(Stdio::null());
        command.stdout(File::create(&files[0])?).stderr(File::create(&files[1])?);
        let ended = Arc::new(AtomicBool::new(false));
        let twins = self.session.guests.iter().enumerate().map(|(index, guest)| {
            if !guests.contains(&index) {
                return thread::spawn(|| None);
            }
            let hosts = &self.session.lab.targets[..self.settings.hosts];
            let mut sockets: Vec<_> =
                hosts.iter().map(|host| [guest.file.serial(host), guest.file.monitor(host)]).collect();
            for socket in sockets.iter().flatten() {
                // Of an attempt before this one.
                let _ = fs::remove_file(socket);
            }
            let (line, ended) = (guest.serial.clone(), ended.clone());
            thread::spawn(move || {
                let mut twin = None;
                // One that failed may be tried on another host.
                while !ended.load(Ordering::Relaxed) {
                    let there = sockets.iter().position(|pair| pair.iter().all(|socket| socket.exists()));
                    if let Some(at) = there {
                        let [serial, monitor] = sockets.swap_remove(at);
                        if line.attach(&serial, ATTACH).is_ok() {
                            twin = Qemu::attach(&monitor, ATTACH).ok().or(twin);
                        }
                    }
                    thread::sleep(LOOK);
                }
                twin
            })
        });
        let twins = twins.collect();
        let child = self.session.lab.source.spawn(&mut command)?;
        Ok(Running { child, files, ended, twins })
    }

    /// The guest has moved: its source QEMU is gone, it runs at its target, its ticks go on and its data is whole.
    pub(super) fn moved(&self, ended: &Ended, index: usize) -> Result<()> {
        self.moved_to(ended, index, &self.target(index).name)
    }

    /// The same, to this host.
    pub(super) fn moved_to(&self, ended: &Ended, index: usize, host: &str) -> Result<()> {
        let guest = self.guest(index);
        let moved = self.moved_inner(ended, index, host);
        moved.with_context(|| format!("{} should have moved to {host}", guest.file.name))
    }

    fn moved_inner(&self, ended: &Ended, index: usize, host: &str) -> Result<()> {
        let guest = self.guest(index);
        let name = &guest.file.name;
        let line = ended.line(&format!("{name}: running at {host}"))?;
        ensure!(line.ends_with(", verified"), "{line}");
        let twin = ended.twins[index].as_ref().context("no QEMU at its target")?;
        ensure!(gone(&guest.source.qmp), "its source QEMU has not ended");
        self.is_well(index, &twin.qmp, true)
    }

    /// The guest has stayed: its twin is gone, it runs at the source as before, and can be moved another time.
    pub(super) fn stayed(&self, ended: &Ended, index: usize) -> Result<()> {
        let guest = self.guest(index);
        let stayed = || -> Result<()> {
            let twin = ended.twins[index].as_ref();
            ensure!(twin.is_none_or(|twin| gone(&twin.qmp)), "its QEMU at the target has not ended");
            self.is_well(index, &guest.source.qmp, false)?;
            let (now, before) = (parameters(&guest.source.qmp)?, &self.before[index]);
            for (now, before) in [(&now.0, &before.0), (&now.1, &before.1)] {
                ensure!(now == before, "not put back: {now}, was {before}");
            }
            Ok(())
        };
        stayed().with_context(|| format!("{} should have stayed", guest.file.name))
    }

    /// The guest runs here, its ticks go on without a gap, and its data is whole.
    pub(super) fn is_well(&self, index: usize, qmp: &Qmp, at_target: bool) -> Result<()> {
        let guest = self.guest(index);
        ensure!(status(qmp)? == "running", "its status is {}", status(qmp)?);
        // Nothing is measured any more: it may check its data as fast as it can.
        let _ = weight::restore_vcpus(qmp);
        let (since, until) = (guest.serial.ticks().len(), Instant::now() + TICKS_WITHIN);
        while guest.serial.ticks().len() < since + TICKS {
            ensure!(Instant::now() < until, "it does not tick: {}", stuck(guest, qmp, since));
            thread::sleep(LOOK);
        }
        guest.check()?;
        let ticks = guest.serial.ticks();
        ensure!(serial::is_gapless(&ticks), "ticks were lost or repeated");
        ensure!(ticks[since..].iter().all(|tick| (tick.line > 0) == at_target), "it ticks elsewhere");
        let _ = weight::lower_vcpus(qmp);
        Ok(())
    }

    /// What the guest's QEMU at the source says, or the one given.
    pub(super) fn status(&self, qmp: &Qmp) -> Result<String> {
        status(qmp)
    }

    /// Runs `vmscatter` on a host; what it prints.
    pub(super) fn command(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.agents.program());
        command.args(arguments).arg("--agent").arg(socket(host));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = host.spawn(&mut command)?.wait_with_output()?;
        let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// The QEMU of a guest on a host.
    pub(super) fn qemu_at(&self, host: &Host, guest: &str) -> Result<Pid> {
        let is_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.any(|word| word == b"-name") && words.next() == Some(guest.as_bytes())
        };
        let pid = host.processes()?.into_iter().find(is_it);
        pid.map(Pid::from_raw).with_context(|| format!("no QEMU of {guest} at {}", host.name))
    }

    /// Kills every process on a host at once, as if it had lost its power; its network stack still answers.
    pub(super) fn kill_host(&self, host: &Host) -> Result<()> {
        self.signal_host(host, Signal::SIGKILL)
    }

    /// The same with another signal.
    pub(super) fn signal_host(&self, host: &Host, signal: Signal) -> Result<()> {
        for pid in host.processes()? {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        Ok(())
    }
}

/// Waits until an agent holds the guest for which [`Agents::hold`] has asked.
pub(super) fn wait_held(hold: &Path, within: Duration) -> Result<()> {
    let (held, until) = (hold.with_extension("held"), Instant::now() + within);
    while !held.exists() {
        ensure!(Instant::now() < until, "no guest came to {}", held.display());
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Whether a QEMU's monitor closes in time.
pub(super) fn gone(qmp: &Qmp) -> bool {
    let until = Instant::now() + END_WITHIN;
    while !qmp.is_closed() {
        if Instant::now() > until {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

impl Running {
    /// Waits until its progress has a line that holds `text`.
    pub(super) fn wait_for(&mut self, text: &str, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        loop {
            let told = fs::read_to_string(&self.files[1])?;
            if told.contains(text) {
                return Ok(());
            }
            ensure!(self.child.try_wait()?.is_none(), "it ended before it said {text:?}: {}", told.trim());
            ensure!(Instant::now() < until, "it did not say {text:?} within {within:?}: {}", told.trim());
            thread::sleep(LOOK);
        }
    }

    /// Kills it; the job is the agent's, and goes on.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        Ok(())
    }

    /// What Ctrl-C does.
    pub(super) fn interrupt(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?)
    }

    /// Waits for its end, for `within` from now at most.
    pub(super) fn end(mut self, within: Duration) -> Result<Ended> {
        let status = self.wait(within);
        self.ended.store(true, Ordering::Relaxed);
        let twins = self.twins.drain(..).map(|twin| twin.join().ok().flatten()).collect();
        let [summary, stderr] = [fs::read_to_string(&self.files[0])?, fs::read_to_string(&self.files[1])?];
        let code = status.with_context(|| stderr.trim().to_owned())?.code();
        Ok(Ended { code, summary, stderr, twins })
    }

    fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > until {
                self.child.kill()?;
                self.child.wait()?;
                bail!("it did not end within {within:?}");
            }
            thread::sleep(LOOK);
        }
    }
}

impl Ended {
    /// The line of its progress that holds `text`.
    pub(super) fn line(&self, text: &str) -> Result<&str> {
        let line = self.stderr.lines().find(|line| line.contains(text));
        line.with_context(|| format!("it did not say {text:?}: {}", self.stderr.trim()))
    }

    /// Its summary holds `text`.
    pub(super) fn sums_up(&self, text: &str) -> Result<()> {
        ensure!(self.summary.contains(text), "its summary does not say {text:?}: {}", self.summary.trim());
        Ok(())
    }

    /// Something was multicast.
    pub(super) fn went_by_multicast(&self) -> Result<()> {
        let scatter = self.summary.lines().find(|line| line.contains("multicast ")).unwrap_or_default();
        println!("  {}", scatter.trim());
        ensure!(!scatter.is_empty() && !scatter.contains("multicast 0 "), "{}", self.summary.trim());
        Ok(())
    }

    /// When it said that line, in seconds by its own clock.
    pub(super) fn when(&self, text: &str) -> Result<f64> {
        let line = self.line(text)?;
        let time = line.trim_start_matches('[').split_once(" s]").map(|(time, _)| time.trim().parse());
        Ok(time.with_context(|| format!("no time in {line:?}"))??)
    }

    /// Its exit code is one of these.
    pub(super) fn exited(&self, codes: &[i32]) -> Result<()> {
        let known = self.code.is_some_and(|code| codes.contains(&code));
        ensure!(known, "exit code {:?}, not {codes:?}: {}", self.code, self.stderr.trim());
        Ok(())
    }
}
