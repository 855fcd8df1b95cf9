//! Three ways from the same real guests' memory to classes of pages, in ns a page:
//! `cargo bench -p lab --bench ways [-- GUESTS [MIB]]` (as root; `./demo` once before, for the guests' kernel).
//!
//! - The paper's (VMScatter, VEE 2013): a hash of some bytes of each page, a balanced tree of candidates by that hash, and a
//!   comparison of all bytes with those that have the same.
//! - A hash of all bytes, and the same tree.
//! - Ours: [`collect`], on one thread and on as many as there are processors.
//!
//! Guests are booted and stopped, their RAM is copied here once, and they are ended; all ways read that copy where it is, so
//! that none pays for its way into another process. What that costs is measured first, by ours out of the running QEMUs. All
//! ways must come to the same classes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use lab::assets::Assets;
use lab::progress::Progress;
use lab::session::{Programs, Session, Settings};
use lab::{GuestOptions, state};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use vmscatter::qemu::{GuestMemory, Qmp};
use vmscatter::source::collect::{CollectKey, CollectProgress, PageSource, collect};
use vmscatter::source::effort::Effort;
use vmscatter_core::page::{MacKey, PAGE_SIZE, PageAddr, is_zero};
use vmscatter_core::placement::{Placement, TargetId};
use vmscatter_core::schedule::Classes;

const ROUNDS: usize = 5;
const TARGETS: u8 = 3;

fn main() -> anyhow::Result<()> {
    state::clean_up_on_signals()?;
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let guests = numbers.first().copied().unwrap_or(6) as usize;
    let memory_mib = numbers.get(1).copied().unwrap_or(256);
    let key = MacKey::new(&[7; 16]);
    let ours = |sources: &[&dyn PageSource], threads, placement: &Placement| {
        let key = CollectKey::Session(key.clone());
        let progress = CollectProgress::default();
        let found = collect(sources, &key, Effort::threads(threads), &progress).expect("it is not cancelled");
        assert!(found.vms.iter().all(|vm| vm.error.is_none()), "all memory was read");
        Classes::of(&found.contents, &found.pages(), placement)
    };

    let memories = boot(guests, memory_mib)?;
    let placement: Vec<Option<TargetId>> = (0..guests).map(|vm| Some(TargetId(vm as u8 % TARGETS))).collect();
    let sources: Vec<&dyn PageSource> =
        memories.memories.iter().map(|memory| memory as &dyn PageSource).collect();
    let from_qemu = median(|| ours(&sources, 1, &placement));
    let copies: Vec<Copied> = memories.memories.iter().map(Copied::of).collect::<io::Result<_>>()?;
    drop(sources);
    drop(memories);

    let sources: Vec<&dyn PageSource> = copies.iter().map(|copy| copy as &dyn PageSource).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let paper = median(|| chains_by_sample(&copies).classes(&placement));
    let tree = median(|| chains_by_mac(&copies, &key).classes(&placement));
    let one = median(|| ours(&sources, 1, &placement));
    let all = median(|| ours(&sources, threads, &placement));
    let classes = paper.classes;
    for other in [&tree, &one, &all, &from_qemu] {
        assert_eq!(other.classes, classes, "all ways find the same");
    }

    let shared = classes.isvst.pages + classes.imvst.pages + classes.imvmt.pages;
    let pages = classes.zero_pages + classes.unique_pages + shared;
    println!(
        "{guests} guests of {memory_mib} MiB, {pages} pages: {:.1} % zero, {:.1} % unique, {:.1} % identical; medians of {ROUNDS} rounds",
        percent(classes.zero_pages, pages),
        percent(classes.unique_pages, pages),
        percent(shared, pages)
    );
    println!("{:52} {:>8} {:>8} {:>14}", "from memory to classes", "ns/page", "CPU ns", "CPU, paper's/");
    let line = |what: &str, taken: &Taken| {
        let per_page = |time: Duration| time.as_nanos() as f64 / pages as f64;
        let ratio = paper.cpu.as_secs_f64() / taken.cpu.as_secs_f64();
        println!("{what:52} {:8.1} {:8.1} {ratio:14.2}", per_page(taken.wall), per_page(taken.cpu));
    };
    line("paper's: sampled hash, tree, full compare, 1 thread", &paper);
    line("full hash, tree, 1 thread", &tree);
    line("ours, 1 thread", &one);
    line(&format!("ours, {threads} threads"), &all);
    line("ours out of the running QEMUs, 1 thread", &from_qemu);
    Ok(())
}

fn percent(part: u64, all: u64) -> f64 {
    100.0 * part as f64 / all as f64
}

/// The memory of guests that are stopped, and what keeps them alive.
struct Stopped {
    memories: Vec<GuestMemory>,
    _session: Session,
}

fn boot(guests: usize, memory_mib: u32) -> anyhow::Result<Stopped> {
    let progress = Progress::default();
    let settings = Settings {
        guests,
        hosts: 1,
        rate: "1gbit".to_owned(),
        guest: GuestOptions { memory_mib, ..GuestOptions::default() },
        compare_ram: false,
        damage: None,
        programs: Programs::default(),
        vmscatter: PathBuf::new(),
        target_vmscatter: None,
        rekey_mib: None,
        igmp_version: 2,
    };
    let session = Session::boot(&settings, &Assets::prepare()?, &progress)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut memories = Vec::new();
    for guest in &session.guests {
        guest.source.qmp.execute("stop", json!({}))?;
        let path = session.lab.source.run_dir.join(format!("{}.qmp", guest.file.name));
        memories.push(runtime.block_on(async {
            let (qmp, _events) = Qmp::connect(&path, Duration::from_secs(20)).await?;
            anyhow::Ok(GuestMemory::locate(&qmp).await?)
        })?);
    }
    progress.finish();
    Ok(Stopped { memories, _session: session })
}

/// A guest's RAM, copied here. What was not populated there is zero.
struct Copied {
    blocks: Vec<(u16, Vec<u8>)>,
}

impl Copied {
    fn of(memory: &GuestMemory) -> io::Result<Self> {
        let mut blocks = Vec::new();
        for (block, pages) in PageSource::blocks(memory) {
            let mut bytes = vec![0; pages as usize * PAGE_SIZE];
            for range in PageSource::populated(memory, block, 0, pages)? {
                let range_bytes = range.start as usize * PAGE_SIZE..range.end as usize * PAGE_SIZE;
                PageSource::read(memory, block, range.start, &mut bytes[range_bytes])?;
            }
            // Resident throughout, as the copy's zero pages were never written.
            bytes.chunks_exact_mut(PAGE_SIZE).filter(|page| is_zero(page)).for_each(|page| page.fill(0));
            blocks.push((block, bytes));
        }
        Ok(Copied { blocks })
    }

    fn block(&self, number: u16) -> &[u8] {
        &self.blocks.iter().find(|(block, _)| *block == number).expect("a block that was asked for").1
    }
}

impl PageSource for Copied {
    fn blocks(&self) -> Vec<(u16, u32)> {
        self.blocks.iter().map(|(number, bytes)| (*number, (bytes.len() / PAGE_SIZE) as u32)).collect()
    }

    fn populated(&self, _: u16, first: u32, count: u32) -> io::Result<Vec<Range<u32>>> {
        let all = first..first + count;
        Ok(vec![all])
    }

    fn chunk_pages(&self, _: u16) -> u32 {
        256
    }

    fn look(&self, block: u16, pages: Range<u32>, show: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        show(&self.block(block)[pages.start as usize * PAGE_SIZE..pages.end as usize * PAGE_SIZE]);
        Ok(true)
    }

    fn read(&self, _: u16, _: u32, _: &mut [u8]) -> io::Result<()> {
        unreachable!("everything can be looked at")
    }
}

/// All pages in the order of their addresses.
fn pages(copies: &[Copied]) -> impl Iterator<Item = (PageAddr, &[u8])> {
    (0..).zip(copies).flat_map(|(vm, copy)| {
        copy.blocks.iter().flat_map(move |(block, bytes)| {
            let addr = move |page| PageAddr { vm, block: *block, page };
            (0..).map(addr).zip(bytes.chunks_exact(PAGE_SIZE))
        })
    })
}

/// Contents as the paper keeps them: the pages of each in a chain.
#[derive(Default)]
struct Chains {
    /// The latest page of each content.
    heads: Vec<u32>,
    /// Each page that is not zero, and the page before it in its chain.
    pages: Vec<(PageAddr, u32)>,
    zero: u64,
}

/// The end of a chain.
const NONE: u32 = u32::MAX;

impl Chains {
    fn append(&mut self, content: usize, addr: PageAddr) {
        let number = self.pages.len() as u32;
        self.pages.push((addr, std::mem::replace(&mut self.heads[content], number)));
    }

    fn start(&mut self, addr: PageAddr) -> usize {
        self.heads.push(NONE);
        self.append(self.heads.len() - 1, addr);
        self.heads.len() - 1
    }

    fn classes(&self, placement: &Placement) -> Classes {
        let mut classes = Classes { zero_pages: self.zero, ..Classes::default() };
        for head in &self.heads {
            let (first, mut at) = self.pages[*head as usize];
            let (mut count, mut vms, mut targets) = (1, false, false);
            while at != NONE {
                let (addr, next) = self.pages[at as usize];
                count += 1;
                vms |= addr.vm != first.vm;
                targets |= placement[usize::from(addr.vm)] != placement[usize::from(first.vm)];
                at = next;
            }
            let class = match (count, vms, targets) {
                (1, ..) => {
                    classes.unique_pages += 1;
                    continue;
                }
                (_, false, _) => &mut classes.isvst,
                (_, true, false) => &mut classes.imvst,
                (_, true, true) => &mut classes.imvmt,
            };
            class.contents += 1;
            class.pages += count;
        }
        classes
    }
}

/// The paper's way. Eight bytes from each 512.
fn chains_by_sample(copies: &[Copied]) -> Chains {
    let mut chains = Chains::default();
    // By sampled hash, the contents that have it: a page of each, and its number.
    let mut tree: BTreeMap<u64, Vec<(&[u8], usize)>> = BTreeMap::new();
    for (addr, page) in pages(copies) {
        if is_zero(page) {
            chains.zero += 1;
            continue;
        }
        let candidates = tree.entry(sampled_hash(page)).or_default();
        match candidates.iter().find(|(other, _)| *other == page) {
            Some((_, content)) => chains.append(*content, addr),
            None => candidates.push((page, chains.start(addr))),
        }
    }
    chains
}

fn sampled_hash(page: &[u8]) -> u64 {
    page.chunks_exact(512).fold(0, |hash: u64, part| {
        let word = u64::from_le_bytes(part[256..264].try_into().expect("eight bytes"));
        (hash.rotate_left(5) ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25)
    })
}

/// A hash of all bytes, and the tree.
fn chains_by_mac(copies: &[Copied], key: &MacKey) -> Chains {
    let mut chains = Chains::default();
    let mut tree = BTreeMap::new();
    for (addr, page) in pages(copies) {
        if is_zero(page) {
            chains.zero += 1;
            continue;
        }
        match tree.entry(key.mac(page)) {
            Entry::Occupied(content) => chains.append(*content.get(), addr),
            Entry::Vacant(entry) => drop(entry.insert(chains.start(addr))),
        }
    }
    chains
}

/// What a way takes, and comes to.
struct Taken {
    wall: Duration,
    /// Of all threads together.
    cpu: Duration,
    classes: Classes,
}

fn median(mut work: impl FnMut() -> Classes) -> Taken {
    let (mut wall, mut cpu, mut classes) = (Vec::new(), Vec::new(), Classes::default());
    for _ in 0..ROUNDS {
        let (start, cpu_start) = (Instant::now(), cpu_time());
        classes = black_box(work());
        wall.push(start.elapsed());
        cpu.push(cpu_time() - cpu_start);
    }
    wall.sort();
    cpu.sort();
    Taken { wall: wall[ROUNDS / 2], cpu: cpu[ROUNDS / 2], classes }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has this clock").into()
}
