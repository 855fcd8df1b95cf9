//! A program of the Debian disk that runs beside everything else: what a tenant would run.
//!
//! The disk is read-only and the same for all guests; what the program writes stays in memory, in a tmpfs laid over it. The
//! program is `/lab/run/<workload> <family> <guest's number>`, and what guests of a family have in common is below
//! `/lab/<workload>/<family>`: these files are brought into the page cache first, as a nightly backup would. It
//! prints `done` after each unit of its work, and once `warm`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::chroot;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::{Line, mount_disk, say, sys, walk};

const DISK: &str = "/debian";
const ROOT: &str = "/root";
const UPPER: &str = "/upper";
/// What may be written; beyond it the program fails, and not the guest.
const UPPER_OPTIONS: &str = "size=160m,mode=755";

/// What to run, from the kernel command line.
pub(crate) struct Task {
    /// `compile`, `sysbench`, `shop`.
    pub(crate) workload: String,
    /// What the guest has in common with some others.
    pub(crate) family: String,
    /// The guest's number, so that no two do the same at the same time.
    pub(crate) number: u64,
}

/// Starts the program. `P done=N` is said once it is warm, `E` if it ends.
pub(crate) fn start(task: &Task, line: &Line) -> io::Result<()> {
    mount_disk("/dev/vdb", DISK)?;
    lay_over()?;
    fill_cache(&format!("{ROOT}/lab/{}/{}", task.workload, task.family))?;
    let mut command = Command::new(format!("/lab/run/{}", task.workload));
    command.arg(&task.family).arg(task.number.to_string());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").env("HOME", "/root");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only chroot(2) and chdir(2) are called, which allocate nothing for such short paths.
    unsafe { command.pre_exec(|| chroot(ROOT).and_then(|()| std::env::set_current_dir("/"))) };
    let child = command.spawn().map_err(|error| io::Error::other(format!("{}: {error}", task.workload)))?;
    let line = line.clone();
    thread::spawn(move || {
        let end = follow(child, &line).unwrap_or_else(|error| error.to_string());
        let _ = say(&line, &format!("E the workload has ended: {end}"));
    });
    Ok(())
}

/// The disk with a tmpfs over it, and what programs expect to find mounted.
fn lay_over() -> io::Result<()> {
    for directory in [ROOT, UPPER] {
        let _ = fs::create_dir(directory);
    }
    sys::mount_with("tmpfs", UPPER, "tmpfs", UPPER_OPTIONS)?;
    for directory in ["data", "work"] {
        fs::create_dir(Path::new(UPPER).join(directory))?;
    }
    sys::mount_with(
        "overlay",
        ROOT,
        "overlay",
        &format!("lowerdir={DISK},upperdir={UPPER}/data,workdir={UPPER}/work"),
    )?;
    sys::mount_at("devtmpfs", &format!("{ROOT}/dev"), "devtmpfs", false)?;
    sys::mount_at("proc", &format!("{ROOT}/proc"), "proc", false)
}

fn fill_cache(directory: &str) -> io::Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    walk(Path::new(directory), &mut paths)?;
    for path in paths {
        let file = File::open(path)?;
        sys::fill_cache(&file, file.metadata()?.len() as usize)?;
    }
    Ok(())
}

/// Reads what the program says until it ends; returns how it ended.
fn follow(mut child: Child, line: &Line) -> io::Result<String> {
    // Read by another thread, so that the program never waits for us to take its complaints.
    let errors = child.stderr.take().map(|stderr| thread::spawn(move || last_line(stderr)));
    let mut done = 0;
    if let Some(stdout) = child.stdout.take() {
        for text in BufReader::new(stdout).lines() {
            match text?.as_str() {
                "done" => done += 1,
                "warm" => say(line, &format!("P done={done}"))?,
                _ => {}
            }
        }
    }
    let status = child.wait()?;
    let last = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
    Ok(format!("{status}: {last}"))
}

/// The last line that is not empty.
fn last_line(stream: impl Read) -> String {
    let (mut last, mut line) = (Vec::new(), Vec::new());
    let mut stream = BufReader::new(stream);
    while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
        if !line.trim_ascii().is_empty() {
            std::mem::swap(&mut last, &mut line);
        }
        line.clear();
    }
    String::from_utf8_lossy(&last).trim().to_owned()
}
