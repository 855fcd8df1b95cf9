//! ns and bytes a page of the index, from (MAC, address) to contents and to a schedule, beside the balanced tree with chains that
//! VMScatter (VEE 2013) keeps: `cargo bench -p vmscatter-core --bench index [-- RECORDS [THREADS]]`.
//!
//! A third of the pages hold a content of their own, the others share theirs with one to eleven others, in twelve VMs. Wall-clock
//! times are medians of [`ROUNDS`]; bytes are the growth of the process's peak resident set.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use vmscatter_core::index::{Contents, Records, RunBuilder};
use vmscatter_core::page::{Mac, PageAddr};
use vmscatter_core::placement::TargetId;
use vmscatter_core::schedule::Schedule;

const ROUNDS: usize = 5;
const VMS: u32 = 12;
const TARGETS: u8 = 3;

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let records = numbers.first().copied().unwrap_or(10_000_000) / VMS * VMS;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = numbers.get(1).map_or(cores, |threads| *threads as usize);
    println!("{records} pages of {VMS} VMs; {ROUNDS} rounds");

    let generate = median(|| drop(black_box(fleet(0..records).fold(0, |sum, (mac, _)| sum ^ mac.0[0]))));
    println!("making the input alone (not counted below): {:6.1} ns/page", per_page(generate, records));
    let line = |name: &str, time: Duration, bytes: u64| {
        let (time, bytes) = (per_page(time, records), bytes as f64 / f64::from(records));
        println!("{name:42} {time:6.1} ns/page {bytes:6.1} bytes/page");
        time
    };
    let index = |threads| measure(|| index(records, threads));
    let (one, bytes) = index(1);
    let one = line("index, 1 thread", one.saturating_sub(generate), bytes);
    if threads > 1 {
        let (several, bytes) = index(threads);
        let several = several.saturating_sub(generate / threads as u32);
        line(&format!("index, {threads} threads"), several, bytes);
    }
    let contents = self::index(records, threads);
    let placement: Vec<_> = (0..VMS).map(|vm| Some(TargetId(vm as u8 % TARGETS))).collect();
    let (schedule, bytes) = measure(|| Schedule::new(&contents, &placement));
    line("schedule, 1 thread", schedule, bytes);
    drop(contents);
    let (tree, bytes) = measure(|| tree(records));
    let tree = line("balanced tree with chains, 1 thread", tree.saturating_sub(generate), bytes);
    println!("tree / index, 1 thread each: {:.1}", tree / one);
}

/// The pages numbered `range`, with their MACs. VMs are read one after the other.
fn fleet(range: std::ops::Range<u32>) -> impl Iterator<Item = (Mac, PageAddr)> {
    let mix = |word: u64| {
        // splitmix64's output function.
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    range.map(move |number| {
        // Page `page` of every VM begins a new content at a random third, and goes on with it in some VMs otherwise.
        let (vm, page) = (number % VMS, number / VMS);
        let dice = mix(u64::from(page) + 1);
        let alone = dice % 3 == 0 || u64::from(vm) > dice / 3 % u64::from(VMS);
        let content = (u64::from(page) << 4) | if alone { u64::from(vm) + 1 } else { 0 };
        let mut mac = [0; 16];
        mac[..8].copy_from_slice(&mix(content.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
        mac[8..].copy_from_slice(&mix(content + (1 << 60)).to_le_bytes());
        (Mac(mac), PageAddr { vm: vm as u16, block: 0, page })
    })
}

fn index(records: u32, threads: usize) -> Contents {
    let part = records / threads as u32;
    let ranges = (0..threads as u32).map(|thread| {
        thread * part..if thread + 1 == threads as u32 { records } else { (thread + 1) * part }
    });
    let runs = thread::scope(|scope| {
        let push = |range| {
            let (mut builder, mut runs) = (RunBuilder::new(), Vec::new());
            for (mac, addr) in fleet(range) {
                runs.extend(builder.push(mac, addr));
            }
            runs.extend(builder.finish());
            runs
        };
        let workers: Vec<_> = ranges.map(|range| scope.spawn(move || push(range))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    let records = Mutex::new(Records::new(runs, Vec::new()));
    let take = || records.lock().expect("no worker panics").take_shard();
    let groups = thread::scope(|scope| {
        let work = || std::iter::from_fn(take).map(|shard| shard.group()).collect::<Vec<_>>();
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    Contents::from_groups(groups)
}

/// The paper's structure, with full MACs as keys: a balanced tree, the pages of one content chained.
fn tree(records: u32) -> (BTreeMap<Mac, u32>, Vec<(PageAddr, u32)>) {
    let mut heads = BTreeMap::new();
    let mut chain = Vec::with_capacity(records as usize);
    for (mac, addr) in fleet(0..records) {
        let next = heads.insert(mac, chain.len() as u32).unwrap_or(u32::MAX);
        chain.push((addr, next));
    }
    (heads, chain)
}

fn per_page(time: Duration, records: u32) -> f64 {
    time.as_nanos() as f64 / f64::from(records)
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

/// Median time, and the most by which the resident set grew; what `work` gives is dropped outside the time.
fn measure<T>(mut work: impl FnMut() -> T) -> (Duration, u64) {
    let mut growth = 0;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        // Sets the peak back to what is resident now (proc(5)).
        fs::write("/proc/self/clear_refs", "5").expect("Linux with /proc");
        let before = status_bytes("VmRSS:");
        let start = Instant::now();
        let result = work();
        times.push(start.elapsed());
        growth = growth.max(status_bytes("VmHWM:").saturating_sub(before));
        drop(black_box(result));
    }
    times.sort();
    (times[ROUNDS / 2], growth)
}

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux with /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of proc(5)");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}
