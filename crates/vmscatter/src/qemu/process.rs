//! Which process a QEMU is, and what it has mapped.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmscatter_core::journal::ProcessId;

use super::qmp::Qmp;
use crate::agent::guest_file::parse_uuid;

/// How often the end of a process is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// What identifies a running process; `None` if there is none of this number, or it has ended.
pub fn identify(pid: i32) -> Option<ProcessId> {
    let boot = parse_uuid(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim())?;
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let (state, start_ticks) = parse_stat(&stat)?;
    (!matches!(state, b'Z' | b'X')).then_some(ProcessId { pid, start_ticks, boot })
}

/// State and start time. The name in parentheses before them may hold anything, parentheses too.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat[name_end + 1..].split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    // Field 22 of all, of which two stand before the state.
    let start_ticks = std::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()?;
    Some((state, start_ticks))
}

/// Whether the process is still there, and is the same.
pub fn is_alive(process: &ProcessId) -> bool {
    identify(process.pid) == Some(*process)
}

/// Whether the process was started with this argument.
pub fn has_argument(pid: i32, argument: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
}

/// A running process other than ours that was started with this argument.
pub fn with_argument(argument: &str) -> Option<ProcessId> {
    let entries = fs::read_dir("/proc").ok()?;
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| has_argument(*pid, argument)).and_then(identify)
}

/// Kills the process if it is the one that is meant: not by its number alone, but by its start and an argument
/// that it was started with. Waits until it is gone, for `limit` at most; whether it is.
pub fn end(process: &ProcessId, argument: &str, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while is_alive(process) {
        if !has_argument(process.pid, argument) {
            return false;
        }
        match kill(Pid::from_raw(process.pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(_) => return false,
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Readable by the process.
    pub readable: bool,
    /// Shared, so that what is written shows in the file.
    pub shared: bool,
    /// Where in the file it starts.
    pub offset: u64,
    /// Device of the file, as `major:minor` in hexadecimal.
    pub device: String,
    /// Inode of the file, 0 for anonymous memory.
    pub inode: u64,
}

/// The mappings of a process, in the order of their addresses.
///
/// # Errors
/// If the process has ended or may not be looked at.
pub fn mappings(pid: i32) -> io::Result<Vec<Mapping>> {
    Ok(fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().filter_map(parse_mapping).collect())
}

fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let modes = fields.next()?.as_bytes();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        readable: modes.first() == Some(&b'r'),
        shared: modes.get(3) == Some(&b's'),
        offset: hex(fields.next()?)?,
        device: fields.next()?.to_owned(),
        inode: fields.next()?.parse().ok()?,
    })
}

/// The mappings that cover `bytes` from `address` on without a gap, all readable; `None` if some of it is not.
pub fn covering(mappings: &[Mapping], address: u64, bytes: u64) -> Option<&[Mapping]> {
    let end = address.checked_add(bytes)?;
    let first = mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&address))?;
    let mut reached = address;
    for (index, mapping) in mappings.iter().enumerate().skip(first) {
        if !mapping.readable || mapping.start > reached {
            return None;
        }
        reached = mapping.end;
        if reached >= end {
            return Some(&mappings[first..=index]);
        }
    }
    None
}

/// Processes that may be the QEMU behind a monitor, the likeliest first.
///
/// The socket's peer is the process that began to listen. That is not QEMU where it went into the background
/// afterwards, or where a manager listened for it, so those that hold a socket of that path follow.
pub fn candidates(qmp: &Qmp) -> impl Iterator<Item = i32> {
    let path = qmp.path().to_owned();
    let peer = qmp.peer_pid();
    peer.into_iter()
        .chain(std::iter::once_with(move || holders(&path)).flatten().filter(move |pid| Some(*pid) != peer))
}

/// Processes other than ours that have a socket bound to `path` open.
fn holders(path: &Path) -> Vec<i32> {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let inodes: HashSet<_> =
        table.split(|byte| *byte == b'\n').filter_map(|line| inode_of(line, path)).collect();
    let links: HashSet<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| u32::try_from(*pid) != Ok(own) && holds(*pid, &links)).collect()
}

/// `Num: RefCount Protocol Flags Type St Inode Path`.
fn inode_of(line: &[u8], path: &Path) -> Option<u64> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let inode = std::str::from_utf8(fields.nth(6)?).ok()?.parse().ok()?;
    (Path::new(OsStr::from_bytes(fields.next()?)) == path).then_some(inode)
}

fn holds(pid: i32, links: &HashSet<String>) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.any(|target| target.to_str().is_some_and(|target| links.contains(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, readable: bool) -> Mapping {
        Mapping { start, end, readable, shared: false, offset: 0, device: "00:00".into(), inode: 0 }
    }

    #[test]
    fn a_process_is_told_apart_and_ended_by_more_than_its_number() {
        // Its argument is this run's own, and it outlives a failure by little.
        let argument = format!("30.{}", std::process::id());
        let mut child = std::process::Command::new("/bin/sleep")
            .arg(&argument)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        // It has its arguments a moment after its parent goes on: Linux sets them after the new image is in place.
        let until = Instant::now() + Duration::from_secs(10);
        while !has_argument(pid, &argument) && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        let process = identify(pid).unwrap();
        assert!(is_alive(&process));
        assert!(!is_alive(&ProcessId { start_ticks: process.start_ticks + 1, ..process }));
        assert!(!is_alive(&ProcessId { boot: [0; 16], ..process }));
        assert_eq!(with_argument(&argument).map(|found| found.start_ticks), Some(process.start_ticks));
        let later = ProcessId { start_ticks: process.start_ticks + 1, ..process };
        assert!(
            end(&later, &argument, LOOK),
            "another process of that number is none of ours, and ours is gone"
        );
        assert!(!end(&process, "nonsense", LOOK));
        assert!(is_alive(&process));
        // A process that has ended and is still to be waited for is gone, too.
        assert!(end(&process, &argument, Duration::from_secs(10)));
        assert!(identify(pid).is_none());
        child.wait().unwrap();
    }

    #[test]
    fn names_with_parentheses_do_not_shift_fields() {
        let mut stat = b"42 (a) b (c) S".to_vec();
        for field in 4..=52 {
            stat.extend_from_slice(format!(" {field}").as_bytes());
        }
        assert_eq!(parse_stat(&stat), Some((b'S', 22)));
        assert_eq!(parse_stat(b"42 (x"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn lines_of_maps_are_parsed() {
        let line =
            "7f222d4fd000-7f222e4fd000 rw-s 00001000 00:01 1114   /memfd:memory-backend-memfd (deleted)";
        let expected = Mapping {
            start: 0x7f22_2d4f_d000,
            end: 0x7f22_2e4f_d000,
            readable: true,
            shared: true,
            offset: 0x1000,
            device: "00:01".into(),
            inode: 1114,
        };
        assert_eq!(parse_mapping(line), Some(expected));
        assert_eq!(parse_mapping("7f-80 ---p 00000000 00:00 0").map(|m| m.readable), Some(false));
        assert_eq!(parse_mapping("nonsense"), None);
    }

    #[test]
    fn cover_must_be_without_gap_and_readable() {
        let all =
            [mapping(10, 20, true), mapping(20, 30, true), mapping(40, 50, true), mapping(50, 60, false)];
        assert_eq!(covering(&all, 12, 18).map(<[_]>::len), Some(2));
        assert_eq!(covering(&all, 12, 8).map(<[_]>::len), Some(1));
        assert_eq!(covering(&all, 12, 19), None);
        assert_eq!(covering(&all, 25, 20), None);
        assert_eq!(covering(&all, 45, 10), None);
        assert_eq!(covering(&all, 35, 1), None);
        assert_eq!(covering(&all, 12, u64::MAX), None);
    }

    #[test]
    fn own_mappings_cover_a_buffer_on_the_heap() {
        let buffer = vec![1u8; 1 << 20];
        let all = mappings(std::process::id() as i32).expect("maps");
        assert!(covering(&all, buffer.as_ptr() as u64, 1 << 20).is_some());
    }
}
