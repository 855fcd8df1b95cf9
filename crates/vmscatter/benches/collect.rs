//! GB/s of collecting another process's memory, from memory to contents, beside what the machine can do:
//! `cargo bench -p vmscatter --bench collect [-- MIB [THREADS] [KIND...]]`.
//!
//! The other process is this program once more. Its memory is 40 % zero, 30 % random, 30 % a few contents again and again,
//! all of it resident. Kinds:
//! - `huge`: private and anonymous, in huge pages, as QEMU asks for them;
//! - `small`: the same in pages of 4 KiB;
//! - `shared`: a memfd that is sealed against shrinking, as QEMU's memory-backend-memfd with share=on. Huge pages are asked
//!   for too; the kernel gives them where `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says advise or always.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::ftruncate;
use vmscatter::qemu::GuestMemory;
use vmscatter::qemu::ramblock::RamBlockInfo;
use vmscatter::source::collect::{CollectKey, CollectProgress, collect};
use vmscatter::source::effort::Effort;
use vmscatter_core::page::{MacKey, PAGE_SIZE};

const ROUNDS: usize = 5;
const HOLD: &str = "hold-memory";
const KINDS: [&str; 3] = ["huge", "small", "shared"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, pages, kind] = &args[..]
        && mode == HOLD
    {
        return hold(pages.parse().expect("pages"), kind);
    }
    let numbers: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let mib = numbers.first().copied().unwrap_or(1024);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = numbers.get(1).copied().unwrap_or(cores);
    let asked: Vec<&str> = KINDS.into_iter().filter(|kind| args.iter().any(|arg| arg == kind)).collect();
    println!("{mib} MiB of another process, 40 % zero, medians of {ROUNDS} rounds");
    println!("{:52} {:>8} {:>16}", "", "GB/s", "GB/s of CPU time");
    for kind in if asked.is_empty() { &KINDS[..] } else { &asked } {
        measure(kind, (mib << 20) / PAGE_SIZE, threads);
    }
}

fn measure(kind: &str, pages: usize, threads: usize) {
    let guest = Guest::start(pages, kind);
    let line = |what: &str, work: &mut dyn FnMut()| {
        let times = median(work);
        let rate = |time: Duration| (pages * PAGE_SIZE) as f64 / time.as_secs_f64() / 1e9;
        println!("{:52} {:8.2} {:16.2}", format!("{kind}: {what}"), rate(times.0), rate(times.1));
        rate(times.1)
    };
    let own = match &guest.file {
        None => line("process_vm_readv alone, 1 thread", &mut || guest.copy_all()),
        Some(file) => {
            println!("shared: {} % of it in huge pages", guest.huge_percent());
            let mapped = Mapped::new(file, pages * PAGE_SIZE);
            read_all(mapped.bytes());
            let own = line("plain read, mapped before, 1 thread", &mut || read_all(mapped.bytes()));
            line("plain read, mapped anew, 1 thread", &mut || {
                read_all(Mapped::new(file, pages * PAGE_SIZE).bytes())
            });
            line("pread of 64 KiB alone, 1 thread", &mut || guest.copy_all());
            own
        }
    };
    let key = CollectKey::Session(MacKey::new(&[7; 16]));
    let run = |threads| {
        let progress = CollectProgress::default();
        let collected = collect(&[&guest.memory], &key, Effort::threads(threads), &progress);
        let collected = collected.expect("it is not cancelled");
        let vm = &collected.vms[0];
        assert!(vm.error.is_none(), "{:?}", vm.error);
        assert_eq!(vm.pages.zero as usize, (0..pages).filter(|page| kind_of(*page) < 4).count());
        assert!(!collected.contents.is_empty());
    };
    let rate = line("collect, 1 thread", &mut || run(1));
    if threads > 1 {
        line(&format!("collect, {threads} threads"), &mut || run(threads));
    }
    println!("{kind}: collect / first line, CPU time of 1 thread: {:.0} %", 100.0 * rate / own);
}

/// Reads everything once.
fn read_all(memory: &[u8]) {
    let mut or = [0u64; 8];
    for line in memory.chunks_exact(64) {
        for (acc, word) in or.iter_mut().zip(line.chunks_exact(8)) {
            *acc |= u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        }
    }
    black_box(or);
}

/// Which tenth of the mix a page belongs to; neighbours are alike in runs of 16, as they are in guests.
fn kind_of(page: usize) -> u64 {
    mix(page as u64 / 16) % 10
}

/// splitmix64's output function.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The other process's main function: fills its memory, says where it is, and waits until it is told to end.
fn hold(pages: usize, kind: &str) {
    let bytes = NonZeroUsize::new(pages * PAGE_SIZE).expect("some pages");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let file = (kind == "shared").then(|| {
        let file = memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
        ftruncate(&file, bytes.get() as i64).expect("ftruncate");
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("seal");
        file
    });
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let start = unsafe {
        match &file {
            Some(file) => mmap(None, bytes, access, MapFlags::MAP_SHARED, file, 0),
            None => mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE),
        }
    }
    .expect("memory");
    let advice = if kind == "small" { MmapAdvise::MADV_NOHUGEPAGE } else { MmapAdvise::MADV_HUGEPAGE };
    // SAFETY: the range is exactly the mapping above; neither advice changes what it holds.
    unsafe { madvise(start, bytes.get(), advice) }.expect("madvise");
    // SAFETY: the mapping is readable and writable, lives as long as the process, and nothing else writes to it.
    let memory = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), bytes.get()) };
    for (page, out) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
        let seed = match kind_of(page) {
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
    memory: GuestMemory,
    /// What its memory is a mapping of, where it is shared.
    file: Option<File>,
    start: u64,
    pages: usize,
}

impl Guest {
    fn start(pages: usize, kind: &str) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut process = Command::new(program)
            .args([HOLD, &pages.to_string(), kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("it says where");
        let start: u64 = line.trim().parse().expect("an address");
        let pid = process.id();
        let bytes = (pages * PAGE_SIZE) as u64;
        let block = RamBlockInfo { name: "ram".into(), bytes, host_address: Some(start) };
        let memory = GuestMemory::open(pid as i32, &[block]).expect("another process's memory");
        let path = format!("/proc/{pid}/map_files/{start:x}-{:x}", start + bytes);
        let file = (kind == "shared").then(|| File::open(path).expect("the memfd"));
        Guest { process, memory, file, start, pages }
    }

    fn copy_all(&self) {
        let chunk_pages = self.memory.chunk_pages(0) as usize;
        let mut chunk = vec![0; chunk_pages * PAGE_SIZE];
        for first in (0..self.pages).step_by(chunk_pages) {
            let bytes = chunk.len().min((self.pages - first) * PAGE_SIZE);
            self.memory.read(0, first as u32, &mut chunk[..bytes]).expect("it is there");
        }
    }

    fn huge_percent(&self) -> usize {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.process.id())).expect("smaps");
        let start = format!("{:x}-", self.start);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let field = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:")).expect("a field of smaps");
        let kib: usize = field.trim().trim_end_matches(" kB").parse().expect("a number");
        100 * kib * 1024 / (self.pages * PAGE_SIZE)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.process.stdin.take().map(|mut stdin| stdin.write_all(b"\n")));
        self.process.wait().expect("it ends");
    }
}

/// The other process's memory, mapped here as a whole.
struct Mapped(NonNull<u8>, NonZeroUsize);

impl Mapped {
    fn new(file: &File, bytes: usize) -> Self {
        let bytes = NonZeroUsize::new(bytes).expect("some pages");
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) };
        Mapped(start.expect("a mapping").cast(), bytes)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, lives as long as `self`, and nobody writes to it any more.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.1.get()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and slices of it have ended with `self`.
        unsafe { munmap(self.0.cast(), self.1.get()) }.expect("munmap");
    }
}

/// Median wall-clock time and CPU time of this process.
fn median(work: &mut dyn FnMut()) -> (Duration, Duration) {
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
