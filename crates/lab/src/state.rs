//! What a lab leaves on the machine while it runs, and its removal: also of labs whose process has died.
//!
//! Each lab has a directory `/run/vsl/<pid>` (short, for Unix socket paths end at 108 bytes) with the start time of
//! its process, and network namespaces whose names begin with `vsl<pid>-`. Every process of a lab runs in one of these
//! namespaces, so they can be found, and nothing else is ever ended.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

const ROOT: &str = "/run/vsl";
const NAMESPACES: &str = "/run/netns";
const AUTOGROUP: &str = "/proc/sys/kernel/sched_autogroup_enabled";
/// How long processes get to end after SIGTERM before they are killed.
const GRACE: Duration = Duration::from_millis(500);

/// The directory of the lab that process `pid` runs.
pub fn directory(pid: u32) -> PathBuf {
    Path::new(ROOT).join(pid.to_string())
}

/// The prefix of the names of that lab's network namespaces.
pub fn prefix(pid: u32) -> String {
    format!("vsl{pid}-")
}

/// Makes this process's lab directory, after removing what dead labs left.
pub(crate) fn claim() -> Result<PathBuf> {
    fs::create_dir_all(ROOT).with_context(|| format!("{ROOT}: the lab needs root"))?;
    remove_dead()?;
    let directory = directory(process::id());
    // A directory of this number without a living owner was removed just now; one of ours is from an earlier lab.
    remove(process::id());
    let started = start_time(process::id()).context("this process is not in /proc")?;
    // Renamed when complete, for another lab takes a directory without an owner for a dead one.
    let new = Path::new(ROOT).join(format!("new-{}", process::id()));
    fs::create_dir_all(&new)?;
    fs::write(new.join("owner"), started.to_string())?;
    fs::rename(&new, &directory).context("the lab's directory")?;
    Ok(directory)
}

/// Removes what labs left whose process has died; returns how many there were.
pub fn remove_dead() -> Result<usize> {
    let mut removed = 0;
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).context(ROOT),
    };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !is_alive(pid) {
            remove(pid);
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_alive(pid: u32) -> bool {
    let recorded = fs::read_to_string(directory(pid).join("owner")).unwrap_or_default();
    start_time(pid).is_some_and(|started| started.to_string() == recorded)
}

/// Start of a process in clock ticks since boot: with its number, this names it for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; field 22 is the 20th after it.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Ends the processes of the lab of `pid`, and removes its namespaces and its directory. Failures are not reported:
/// it runs where nothing more can be done about them.
pub fn remove(pid: u32) {
    let namespaces = namespaces(pid);
    let ids: Vec<(u64, u64)> = namespaces
        .iter()
        .filter_map(|path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino())))
        .collect();
    signal_all(&ids, Signal::SIGTERM);
    let since = Instant::now();
    while since.elapsed() < GRACE && !processes(&ids).is_empty() {
        thread::sleep(Duration::from_millis(10));
    }
    signal_all(&ids, Signal::SIGKILL);
    for path in namespaces {
        if let Some(name) = path.file_name() {
            let _ = Command::new("ip").args(["netns", "del"]).arg(name).stderr(Stdio::null()).status();
        }
    }
    let _ = fs::remove_dir_all(directory(pid));
    restore_autogroup();
}

fn namespaces(pid: u32) -> Vec<PathBuf> {
    let prefix = prefix(pid);
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect()
}

/// Processes, other than this one, in one of the network namespaces with these (device, inode) pairs.
pub(crate) fn processes(namespaces: &[(u64, u64)]) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != process::id() as i32)
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|meta| namespaces.contains(&(meta.dev(), meta.ino())))
        })
        .collect()
}

fn signal_all(namespaces: &[(u64, u64)], signal: Signal) {
    for pid in processes(namespaces) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Switches the scheduler's autogroups off while labs run (see [`crate::weight`]).
pub(crate) fn disable_autogroup() {
    if fs::read_to_string(AUTOGROUP).is_ok_and(|value| value.trim() == "1")
        && fs::write(AUTOGROUP, "0").is_ok()
    {
        let _ = fs::write(Path::new(ROOT).join("autogroup"), "1");
    }
}

/// Switches autogroups on again if a lab switched them off and no lab is left.
fn restore_autogroup() {
    let note = Path::new(ROOT).join("autogroup");
    let any_left = fs::read_dir(ROOT)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() != "autogroup"));
    if note.exists() && !any_left {
        let _ = fs::write(AUTOGROUP, "1");
        let _ = fs::remove_file(note);
    }
}

/// A signal has come and its thread cleans up.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether a signal is ending the process: what fails from then on fails because of that.
pub fn is_ending() -> bool {
    ENDING.load(Ordering::Relaxed)
}

/// Leaves the end of the process to the clean-up of a signal, if one has come.
pub fn wait_if_ending() {
    while is_ending() {
        thread::park();
    }
}

/// Where the signal handler writes the number of the signal.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note_signal(number: i32) {
    let byte = [number as u8];
    let fd = SIGNAL_PIPE.load(Ordering::Relaxed);
    // SAFETY: write(2) is async-signal-safe; the pipe is never closed and the buffer outlives the call.
    unsafe { nix::libc::write(fd, byte.as_ptr().cast(), 1) };
}

/// From now on SIGINT, SIGTERM and SIGHUP remove this process's lab and end the process with 128 + the signal's
/// number.
pub fn clean_up_on_signals() -> Result<()> {
    let (reader, writer) = nix::unistd::pipe()?;
    SIGNAL_PIPE.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::Relaxed);
    thread::spawn(move || {
        let mut byte = [0];
        while nix::unistd::read(&reader, &mut byte).unwrap_or(0) != 1 {}
        ENDING.store(true, Ordering::Relaxed);
        eprintln!("\nlab: ended by a signal, cleaning up");
        remove(process::id());
        process::exit(128 + i32::from(byte[0]));
    });
    let action = SigAction::new(SigHandler::Handler(note_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only calls write(2).
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
