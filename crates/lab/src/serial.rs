//! A guest's serial line across its migration: the ticks with the time of their arrival, and what else it says.
//!
//! One thread reads the sockets of all QEMUs that have run the guest, an older one always before a newer one, as if they
//! were one line: a tick that the migration cuts in two is still one tick.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How soon the thread notices a new socket.
const POLL_MS: u8 = 20;
/// What is kept of lines that are not ticks: the boot messages of a guest that fails.
const KEPT_LINES: usize = 400;

/// One tick of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Its number, from 0 without a gap.
    pub sequence: u64,
    /// When it arrived (monotonic clock).
    pub at: Instant,
    /// Which QEMU it came from: 0 for the source.
    pub line: usize,
}

/// A serial line.
#[derive(Debug)]
pub struct Serial {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Those of all QEMUs so far; None once a QEMU has ended.
    sockets: Vec<Option<Arc<UnixStream>>>,
    ticks: Vec<Tick>,
    lines: Vec<String>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }
}

impl Default for Serial {
    fn default() -> Self {
        let shared = Arc::new(Shared::default());
        let reading = shared.clone();
        thread::spawn(move || read(&reading));
        Self { shared }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
    }
}

impl Serial {
    /// Follows the line to another QEMU, whose socket may have yet to be opened. To be done before the guest runs there:
    /// what a QEMU prints while nobody listens is lost.
    pub fn attach(&self, path: &Path, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) if Instant::now() > until => {
                    return Err(error).context(path.display().to_string());
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        socket.set_nonblocking(true)?;
        self.shared.lock().sockets.push(Some(Arc::new(socket)));
        Ok(())
    }

    /// All ticks so far.
    pub fn ticks(&self) -> Vec<Tick> {
        self.shared.lock().ticks.clone()
    }

    /// The last lines, without the ticks.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let state = self.shared.lock();
        state.lines[state.lines.len().saturating_sub(count)..].to_vec()
    }

    /// Waits for `count` ticks from QEMU number `line`.
    pub fn wait_ticks(&self, line: usize, count: usize, timeout: Duration) -> bool {
        self.wait(timeout, |state| {
            (state.ticks.iter().rev().take_while(|tick| tick.line == line).count() >= count).then_some(())
        })
        .is_some()
    }

    /// Waits for a line that begins with `prefix` and returns the rest of it. A guest's `E` line and a
    /// kernel's panic are errors.
    pub fn wait_line(&self, prefix: &str, timeout: Duration) -> Result<String> {
        let found = self.wait(timeout, |state| {
            state.lines.iter().find_map(|line| {
                let error = line.strip_prefix("E ").or(line.contains("Kernel panic").then_some(line));
                error
                    .map(|reason| Err(reason.to_owned()))
                    .or_else(|| Some(Ok(line.strip_prefix(prefix)?.to_owned())))
            })
        });
        match found {
            Some(Ok(rest)) => Ok(rest),
            Some(Err(reason)) => bail!("the guest says: {reason}"),
            None => bail!("no line \"{prefix}…\" within {timeout:?}; last: {:?}", self.last_lines(5)),
        }
    }

    /// Writes a line to the newest QEMU that has not ended and waits for the answer, a line that begins with `prefix`.
    pub fn ask(&self, question: &str, prefix: &str, timeout: Duration) -> Result<String> {
        let socket = {
            let mut state = self.shared.lock();
            state.lines.retain(|line| !line.starts_with(prefix));
            state.sockets.iter().flatten().next_back().context("no QEMU is attached")?.clone()
        };
        (&*socket).write_all(format!("{question}\n").as_bytes())?;
        self.wait_line(prefix, timeout)
    }

    /// Writes a line to the QEMU of this number, 0 for the source; no answer is waited for.
    pub fn tell(&self, line: usize, text: &str) -> Result<()> {
        let socket =
            self.shared.lock().sockets.get(line).cloned().flatten().context("no such QEMU is attached")?;
        Ok((&*socket).write_all(format!("{text}\n").as_bytes())?)
    }

    fn wait<T>(&self, timeout: Duration, ready: impl Fn(&State) -> Option<T>) -> Option<T> {
        let until = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = ready(&state) {
                return Some(value);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).expect("no thread panics with the state").0;
        }
    }
}

fn read(shared: &Shared) {
    let mut partial = Vec::new();
    let mut open: Vec<(usize, Arc<UnixStream>)> = Vec::new();
    let mut known = 0;
    loop {
        {
            let state = shared.lock();
            if state.stop {
                return;
            }
            let new = state.sockets.iter().enumerate().skip(known);
            open.extend(new.filter_map(|(line, socket)| Some((line, socket.clone()?))));
            known = state.sockets.len();
        }
        let mut wanted: Vec<PollFd<'_>> =
            open.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        if !matches!(poll(&mut wanted, PollTimeout::from(POLL_MS)), Ok(1..)) {
            continue;
        }
        open.retain(|(line, socket)| {
            let is_open = drain(socket, *line, &mut partial, shared);
            if !is_open {
                shared.lock().sockets[*line] = None;
            }
            is_open
        });
        shared.changed.notify_all();
    }
}

/// Reads what is there; false once the socket has ended.
fn drain(mut socket: &UnixStream, line: usize, partial: &mut Vec<u8>, shared: &Shared) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => take(&buffer[..length], line, partial, &mut shared.lock()),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn take(bytes: &[u8], line: usize, partial: &mut Vec<u8>, state: &mut State) {
    let at = Instant::now();
    for &byte in bytes {
        if byte != b'\n' {
            partial.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(partial).trim_end().to_owned();
        partial.clear();
        match text.strip_prefix("T ").and_then(|number| number.parse().ok()) {
            Some(sequence) => state.ticks.push(Tick { sequence, at, line }),
            None => {
                if state.lines.len() == KEPT_LINES {
                    state.lines.remove(0);
                }
                state.lines.push(text);
            }
        }
    }
}

/// Whether every tick from 0 on arrived once and in its place.
pub fn is_gapless(ticks: &[Tick]) -> bool {
    ticks.first().is_none_or(|tick| tick.sequence == 0) && is_gapless_from_first(ticks)
}

/// The same from the first tick that was seen, whichever that is.
pub fn is_gapless_from_first(ticks: &[Tick]) -> bool {
    ticks.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1)
}

/// The time from the source's last tick to the target's first; None before the guest has ticked there.
pub fn handover_gap(ticks: &[Tick]) -> Option<Duration> {
    ticks.windows(2).find(|pair| pair[0].line != pair[1].line).map(|pair| pair[1].at - pair[0].at)
}

/// The longest time without a tick between `from` and `to`.
pub fn longest_gap(ticks: &[Tick], from: Instant, to: Instant) -> Duration {
    let pairs = ticks.windows(2).filter(|pair| pair[1].at >= from && pair[0].at <= to);
    pairs.map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parts: &[(&[u8], usize)]) -> State {
        let (mut partial, mut state) = (Vec::new(), State::default());
        for (bytes, line) in parts {
            take(bytes, *line, &mut partial, &mut state);
        }
        state
    }

    #[test]
    fn a_tick_cut_by_the_migration_is_one_tick() {
        let state = feed(&[(b"T 0\r\nT 1\nT", 0), (b" 2\nC ok\nT 3\n", 1)]);
        let ticks: Vec<_> = state.ticks.iter().map(|tick| (tick.sequence, tick.line)).collect();
        assert_eq!(ticks, [(0, 0), (1, 0), (2, 1), (3, 1)]);
        assert_eq!(state.lines, ["C ok"]);
        assert!(is_gapless(&state.ticks));
        assert_eq!(handover_gap(&state.ticks), Some(state.ticks[2].at - state.ticks[1].at));
    }

    #[test]
    fn lost_and_repeated_ticks_are_seen() {
        assert!(!is_gapless(&feed(&[(b"T 0\nT 2\n", 0)]).ticks));
        assert!(!is_gapless(&feed(&[(b"T 0\nT 1\n", 0), (b"T 1\nT 2\n", 1)]).ticks));
        let late = feed(&[(b"T 7\nT 8\n", 0)]).ticks;
        assert!(!is_gapless(&late) && is_gapless_from_first(&late));
    }

    #[test]
    fn the_gap_counts_only_within_the_window() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ticks: Vec<_> = [0, 500, 520, 700, 720, 2000]
            .iter()
            .zip(0..)
            .map(|(&ms, sequence)| Tick { sequence, at: at(ms), line: 0 })
            .collect();
        assert_eq!(longest_gap(&ticks, at(510), at(715)), Duration::from_millis(180));
    }
}
