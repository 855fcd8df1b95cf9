//! How much of the host's processors collecting takes from the guests that run on them.
//!
//! Two means, both of each thread that reads or indexes memory. Its weight is low ([`NICE`]): where a vCPU wants the
//! processor, the vCPU gets most of it. That counts only within one group of processes that the kernel shares a processor
//! between (a cgroup with a weight of its own, or, outside of any, an autogroup: one for each login session), and no weight
//! helps against what is taken of caches and memory. So there is a limit besides, which always holds: of the processor
//! time that passes a thread takes no more than its share, and sleeps in between.

use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Added to the threads' nice value, from 0 to 10: a tenth of the weight of any other thread (`sched_prio_to_weight` in
/// the kernel's `kernel/sched/core.c`: 110 to 1024). On a host whose guests take all they get, collecting then still
/// goes on, with a tenth of each processor; nice 19 would leave it one in seventy.
pub const NICE: i32 = 10;
/// A thread works so long before it sleeps: short, so that a guest waits no longer than it would for another guest.
const SLICE: Duration = Duration::from_millis(2);
/// Time in which the processor was denied to a thread may be made up for by this much at once.
const CREDIT_MAX: Duration = Duration::from_millis(10);

/// How many threads work, and which part of the time each of them may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Threads, at least one.
    pub threads: NonZeroUsize,
    /// The part of a processor that each may take, above 0 and up to 1.
    pub duty: f64,
    /// Added to the nice value of each.
    pub nice: i32,
}

impl Effort {
    /// Of all processors that this process may use, at most `percent` (1 to 100; beyond is cut off), with little weight: 50 on
    /// four processors are two threads without a pause, 10 are one that works two fifths of the time.
    pub fn percent(percent: u8) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Effort::percent_of(percent, processors)
    }

    fn percent_of(percent: u8, processors: usize) -> Self {
        let share = processors as f64 * f64::from(percent.clamp(1, 100)) / 100.0;
        let threads = NonZeroUsize::new(share.ceil() as usize).unwrap_or(NonZeroUsize::MIN);
        Effort { threads, duty: share / threads.get() as f64, nice: NICE }
    }

    /// So many threads without a pause, of the same weight as their caller: where nobody else is to be spared.
    pub fn threads(threads: usize) -> Self {
        Effort { threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN), duty: 1.0, nice: 0 }
    }

    /// For a thread that begins to work: lowers its weight for as long as it lives.
    pub(super) fn begin(&self) -> Pace {
        // SAFETY: no pointers. On Linux this is the calling thread's value, not the process's (nice(2), "C library/kernel
        // differences"). Should it fail, the thread keeps its weight.
        unsafe { nix::libc::nice(self.nice) };
        let now = Clocks::now();
        Pace { duty: self.duty, last: now, credit_s: 0.0 }
    }
}

/// Keeps one thread to its part of the time.
pub(super) struct Pace {
    duty: f64,
    last: Clocks,
    /// Seconds of processor time that may still be taken; negative: that were taken too much.
    credit_s: f64,
}

#[derive(Clone, Copy)]
struct Clocks {
    wall: Instant,
    /// The thread's processor time.
    cpu: Duration,
}

impl Clocks {
    fn now() -> Self {
        let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
        Clocks { wall: Instant::now(), cpu }
    }
}

impl Pace {
    /// To be called between pieces of work that take a few milliseconds at most: sleeps where that is due.
    pub(super) fn rest(&mut self) {
        if self.duty >= 1.0 {
            return;
        }
        if let Some(sleep) = self.due(Clocks::now()) {
            thread::sleep(sleep);
        }
    }

    fn due(&mut self, now: Clocks) -> Option<Duration> {
        let wall = now.wall.saturating_duration_since(self.last.wall).as_secs_f64();
        let cpu = now.cpu.saturating_sub(self.last.cpu).as_secs_f64();
        self.last = now;
        self.credit_s = (self.credit_s + wall * self.duty - cpu).min(CREDIT_MAX.as_secs_f64());
        let worked_too_much = -self.credit_s >= SLICE.as_secs_f64() * (1.0 - self.duty);
        worked_too_much.then(|| Duration::from_secs_f64(-self.credit_s / self.duty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_are_of_all_processors() {
        let cases = [(100, 2, 2, 1.0), (50, 2, 1, 1.0), (25, 2, 1, 0.5), (60, 2, 2, 0.6), (50, 4, 2, 1.0)];
        for (percent, processors, threads, duty) in cases {
            let effort = Effort::percent_of(percent, processors);
            assert_eq!((effort.threads.get(), effort.duty), (threads, duty), "{percent} of {processors}");
        }
        let least = Effort::percent_of(0, 1);
        assert_eq!((least.threads.get(), least.duty), (1, 0.01));
        let most = Effort::percent_of(255, 3);
        assert_eq!((most.threads.get(), most.duty), (3, 1.0));
    }

    /// A thread that works a millisecond at a time on a processor of its own, for ten seconds that never pass.
    fn share_of(duty: f64, mut steal: impl FnMut(u32) -> Duration) -> (f64, Duration) {
        let start = Instant::now();
        let mut now = Clocks { wall: start, cpu: Duration::ZERO };
        let mut pace = Pace { duty, last: now, credit_s: 0.0 };
        let mut longest = Duration::ZERO;
        let mut step = 0;
        while now.wall - start < Duration::from_secs(10) {
            now.cpu += Duration::from_millis(1);
            now.wall += Duration::from_millis(1) + steal(step);
            step += 1;
            if let Some(sleep) = pace.due(now) {
                longest = longest.max(sleep);
                now.wall += sleep;
            }
        }
        (now.cpu.as_secs_f64() / (now.wall - start).as_secs_f64(), longest)
    }

    #[test]
    fn a_thread_keeps_to_its_part_of_the_time() {
        for duty in [0.05, 0.25, 0.5, 0.9] {
            let (share, longest) = share_of(duty, |_| Duration::ZERO);
            assert!((share - duty).abs() < 0.01, "{share} for {duty}");
            assert!(longest < Duration::from_millis(61), "slept {longest:?} for {duty}");
        }
    }

    #[test]
    fn who_gets_less_anyway_does_not_sleep() {
        // Three quarters of the processor go to others.
        let (share, longest) = share_of(0.5, |_| Duration::from_millis(3));
        assert!((share - 0.25).abs() < 0.01 && longest == Duration::ZERO, "{share}, slept {longest:?}");
        // Denied for a second now and then: what was missed is not made up for beyond a little.
        let (share, _) = share_of(0.5, |step| Duration::from_millis(if step % 500 == 0 { 1_000 } else { 0 }));
        assert!(share < 0.51, "{share}");
    }

    #[test]
    fn a_thread_that_begins_has_less_weight() {
        let nice = || {
            // SAFETY: no pointers; 0 is the calling thread.
            unsafe { nix::libc::getpriority(nix::libc::PRIO_PROCESS, 0) }
        };
        let before = nice();
        let inside = thread::spawn(move || {
            Effort::percent(1).begin();
            nice()
        });
        assert_eq!(inside.join().unwrap(), (before + NICE).min(19));
        assert_eq!(nice(), before, "another thread's weight has changed");
    }
}
