//! GB/s of collecting another process's resident private memory with process_vm_readv, from memory to
//! contents:
//! `cargo bench -p vmscatter --bench collect [-- MIB [THREADS]]`.
//!
//! The other process is this program once more. It holds private anonymous memory as QEMU does, with huge
//! pages (QEMU asks for them for its guests' RAM) and without: 40 % zero, 30 % random, 30 % a few contents
//! again and again.

use std::io::{self, BufRead, BufReader, IoSliceMut, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use vmscatter::source::collect::{CollectKey, CollectProgress, PageSource, collect};
use vmscatter::source::effort::Effort;
use vmscatter_core::page::{MacKey, PAGE_SIZE};

const ROUNDS: usize = 5;
/// Of the plain read, as collecting reads.
const CHUNK_BYTES: usize = 256 * 1024;
const HOLD: &str = "hold-memory";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, pages, huge] = &args[..]
        && mode == HOLD
    {
        return hold(pages.parse().expect("pages"), huge == "huge");
    }
    let numbers: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let mib = numbers.first().copied().unwrap_or(1024);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = numbers.get(1).copied().unwrap_or(cores);
    println!("{mib} MiB of another process, 40 % zero, medians of {ROUNDS} rounds");
    println!("{:44} {:>8} {:>16}", "", "GB/s", "GB/s of CPU time");
    for huge in ["huge", "small"] {
        let guest = Guest::start((mib << 20) / PAGE_SIZE, huge);
        let bytes = guest.pages * PAGE_SIZE;
        let line = |what: &str, times: (Duration, Duration)| {
            let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
            println!("{:44} {:8.2} {:16.2}", format!("{huge} pages: {what}"), rate(times.0), rate(times.1));
        };
        line("process_vm_readv alone, 1 thread", median(|| guest.read_all()));
        let key = CollectKey::Session(MacKey::new(&[7; 16]));
        let run = |threads| {
            let collected = collect(&[&guest], &key, Effort::threads(threads), &CollectProgress::default())
                .expect("it is not cancelled");
            let vm = &collected.vms[0];
            assert!(vm.error.is_none(), "{:?}", vm.error);
            assert_eq!(vm.pages.zero as usize, (0..guest.pages).filter(|page| kind(*page) < 4).count());
            assert!(!collected.contents.is_empty());
        };
        line("collect, 1 thread", median(|| run(1)));
        if threads > 1 {
            line(&format!("collect, {threads} threads"), median(|| run(threads)));
        }
    }
}

/// Which tenth of the mix a page belongs to; neighbours are alike in runs of 16, as they are in guests.
fn kind(page: usize) -> u64 {
    mix(page as u64 / 16) % 10
}

/// splitmix64's output function.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The other process's main function: fills its memory, says where it is, and waits until it is told to end.
fn hold(pages: usize, huge: bool) {
    let bytes = NonZeroUsize::new(pages * PAGE_SIZE).expect("some pages");
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let start = unsafe {
        mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
    }
    .expect("memory");
    let advice = if huge { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE };
    // SAFETY: the range is exactly the mapping above; neither advice changes what it holds.
    unsafe { madvise(start, bytes.get(), advice) }.expect("madvise");
    // SAFETY: the mapping is readable and writable, lives as long as the process, and nothing else refers to
    // it.
    let memory = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), bytes.get()) };
    for (page, out) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
        let seed = match kind(page) {
            // Written too, so that it is resident.
            0..4 => {
                out.fill(0);
                continue;
            }
            4..7 => page as u64,
            _ => (1 << 40) + page as u64 % 5_000,
        };
        for (at, word) in (0..).zip(out.chunks_exact_mut(8)) {
            word.copy_from_slice(&mix((seed << 9) + at).to_le_bytes());
        }
    }
    println!("{}", start.as_ptr() as usize);
    io::stdin().lines().next();
}

/// The other process.
struct Guest {
    process: Child,
    start: usize,
    pages: usize,
}

impl Guest {
    fn start(pages: usize, huge: &str) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut process = Command::new(program)
            .args([HOLD, &pages.to_string(), huge])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("it says where");
        Guest { process, start: line.trim().parse().expect("an address"), pages }
    }

    fn read_all(&self) {
        let mut chunk = vec![0; CHUNK_BYTES];
        for first in (0..self.pages).step_by(CHUNK_BYTES / PAGE_SIZE) {
            let bytes = chunk.len().min((self.pages - first) * PAGE_SIZE);
            self.read(0, first as u32, &mut chunk[..bytes]).expect("it is there");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.process.stdin.take().map(|mut stdin| stdin.write_all(b"\n")));
        self.process.wait().expect("it ends");
    }
}

impl PageSource for Guest {
    fn blocks(&self) -> Vec<(u16, u32)> {
        vec![(0, self.pages as u32)]
    }

    fn populated(&self, _: u16, first: u32, count: u32) -> io::Result<Vec<Range<u32>>> {
        let all = first..first + count;
        Ok(vec![all])
    }

    fn chunk_pages(&self, _: u16) -> u32 {
        256
    }

    fn read(&self, _: u16, first: u32, out: &mut [u8]) -> io::Result<()> {
        let remote = RemoteIoVec { base: self.start + first as usize * PAGE_SIZE, len: out.len() };
        let pid = Pid::from_raw(self.process.id() as i32);
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(out)], &[remote])?;
        if read == remote.len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Median wall-clock time and CPU time of this process.
fn median(mut work: impl FnMut()) -> (Duration, Duration) {
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (start, cpu_start) = (Instant::now(), cpu_time());
        work();
        wall.push(start.elapsed());
        cpu.push(cpu_time() - cpu_start);
    }
    wall.sort();
    cpu.sort();
    (wall[ROUNDS / 2], cpu[ROUNDS / 2])
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock").into()
}
