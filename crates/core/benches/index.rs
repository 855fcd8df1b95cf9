//! ns and bytes a page of the index, from (MAC, address) to contents and to a schedule, beside the balanced
//! tree with chains that VMScatter (VEE 2013) keeps: `cargo bench -p vmscatter-core --bench index [-- RECORDS
//! [THREADS]]`.
//!
//! Three page numbers of four hold one content in the first five to twelve VMs, so that about half of all
//! pages are unique. Bytes are the growth of the process's peak resident set.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vmscatter_core::index::{Contents, FleetKey, PageSpace, Records, RunBuilder, Sampler, Shard};
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
    println!("{records} pages of {VMS} VMs, medians of {ROUNDS} rounds");
    println!("{:38} {:>9} {:>9} {:>10}", "", "ns/page", "CPU ns", "bytes/page");
    let print = |name: &str, cost: &Cost| {
        let per_page = |time: Duration| time.as_nanos() as f64 / f64::from(records);
        let bytes = cost.bytes as f64 / f64::from(records);
        println!("{name:38} {:9.1} {:9.1} {bytes:10.1}", per_page(cost.wall), per_page(cost.cpu));
    };

    let input = measure(|| fleet(0..records, records).fold(0, |sum, (mac, _)| sum ^ mac.0[0]));
    print("making the input, included below", &input);
    let one = measure(|| index(records, 1, None));
    print("index, 1 thread", &one);
    if threads > 1 {
        print(&format!("index, {threads} threads"), &measure(|| index(records, threads, None)));
    }
    let sampled = measure(|| {
        let sampler = Mutex::new(Sampler::new(FleetKey::new(&[7; 32])));
        (index(records, 1, Some(&sampler)), sampler)
    });
    print("the same with fingerprints, 1 thread", &sampled);
    let contents = index(records, threads, None);
    let placement: Vec<_> = (0..VMS).map(|vm| Some(TargetId(vm as u8 % TARGETS))).collect();
    print("schedule, 1 thread", &measure(|| Schedule::new(&contents, &placement)));
    drop(contents);
    let tree = measure(|| tree(records));
    print("balanced tree with chains, 1 thread", &tree);
    let own = |cost: &Cost| cost.cpu.saturating_sub(input.cpu).as_secs_f64();
    println!("CPU time of tree / index, 1 thread each, without the input: {:.1}", own(&tree) / own(&one));
}

/// The pages numbered `range` of `records`, with their MACs; VMs are read one after the other.
fn fleet(range: Range<u32>, records: u32) -> impl Iterator<Item = (Mac, PageAddr)> {
    let mix = |word: u64| {
        // splitmix64's output function.
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    range.map(move |number| {
        // A page number stands for one content in all VMs, in the first few, or in none.
        let (vm, page) = (number / (records / VMS), number % (records / VMS));
        let dice = mix(u64::from(page) + 1);
        let alone = dice % 4 == 0 || u64::from(vm) > 4 + dice / 4 % 8;
        let content = (u64::from(page) << 4) | if alone { u64::from(vm) + 1 } else { 0 };
        let mut mac = [0; 16];
        mac[..8].copy_from_slice(&mix(content.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
        mac[8..].copy_from_slice(&mix(content + (1 << 60)).to_le_bytes());
        (Mac(mac), PageAddr { vm: vm as u16, block: 0, page })
    })
}

fn index(records: u32, threads: usize, sampler: Option<&Mutex<Sampler>>) -> Contents {
    let space = PageSpace::new(&vec![vec![(0, records / VMS)]; VMS as usize]).expect("within the limits");
    let first_page = |vm| space.number(PageAddr { vm, block: 0, page: 0 }).expect("it is in the space");
    let first_pages: Vec<u32> = (0..VMS as u16).map(first_page).collect();
    let first_pages = &first_pages;
    let part = records / threads as u32;
    let ranges = (0..threads as u32).map(|thread| {
        thread * part..if thread + 1 == threads as u32 { records } else { (thread + 1) * part }
    });
    let runs = thread::scope(|scope| {
        let push = |range| {
            let (mut builder, mut runs) = (RunBuilder::new(), Vec::new());
            for (mac, addr) in fleet(range, records) {
                runs.extend(builder.push(mac, first_pages[usize::from(addr.vm)] + addr.page));
            }
            runs.extend(builder.finish());
            runs
        };
        let workers: Vec<_> = ranges.map(|range| scope.spawn(move || push(range))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    let records = Mutex::new(Records::new(runs));
    let take = || records.lock().expect("no worker panics").take_shard();
    let group = |shard: Shard| match sampler {
        None => shard.group(),
        Some(sampler) => {
            let mut branch = sampler.lock().expect("no worker panics").branch();
            let group = shard.group_sampled(&space, &mut branch);
            sampler.lock().expect("no worker panics").absorb(branch);
            group
        }
    };
    let groups = thread::scope(|scope| {
        let work = || std::iter::from_fn(take).map(&group).collect::<Vec<_>>();
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    Contents::from_groups(space, groups)
}

/// The paper's structure, with full MACs as keys: a balanced tree, the pages of one content chained.
fn tree(records: u32) -> (BTreeMap<Mac, u32>, Vec<(PageAddr, u32)>) {
    let mut heads = BTreeMap::new();
    let mut chain = Vec::with_capacity(records as usize);
    for (mac, addr) in fleet(0..records, records) {
        let next = heads.insert(mac, chain.len() as u32).unwrap_or(u32::MAX);
        chain.push((addr, next));
    }
    (heads, chain)
}

/// What a piece of work takes.
struct Cost {
    wall: Duration,
    /// Of all threads together.
    cpu: Duration,
    /// The most by which the resident set grew.
    bytes: u64,
}

/// Medians of all rounds, but for bytes, which are the most of any; what `work` gives is dropped outside the
/// time.
fn measure<T>(mut work: impl FnMut() -> T) -> Cost {
    let (mut wall, mut cpu, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        // Sets the peak back to what is resident now (proc(5)).
        fs::write("/proc/self/clear_refs", "5").expect("Linux with /proc");
        let before = status_bytes("VmRSS:");
        let (start, cpu_start) = (Instant::now(), cpu_time());
        let result = work();
        wall.push(start.elapsed());
        cpu.push(cpu_time() - cpu_start);
        bytes = bytes.max(status_bytes("VmHWM:").saturating_sub(before));
        drop(black_box(result));
    }
    wall.sort();
    cpu.sort();
    Cost { wall: wall[ROUNDS / 2], cpu: cpu[ROUNDS / 2], bytes }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock").into()
}

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux with /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of proc(5)");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}
