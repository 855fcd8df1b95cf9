//! Step 2 of a session: all guests' RAM is read once, on several threads, and what is identical is found.
//!
//! Work is dealt in windows of 16 MiB, in the order of VMs, blocks and pages, so that each thread reads large
//! pieces one after the other. A chunk is copied out of the guest, stays in the core's cache, and is tested
//! for zero and hashed there.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use thiserror::Error;
use vmscatter_core::index::{
    Contents, Group, PageSpace, PageSpaceError, Records, Run, RunBuilder, VmPages, Window,
};
use vmscatter_core::page::{MacKey, PAGE_SIZE, is_zero};

#[cfg(test)]
mod tests;

/// Pages that are read at a time: 1 MiB. Larger calls are cheaper where the guest has huge pages, as long as
/// the chunk stays in the core's second-level cache until it is hashed.
const CHUNK_PAGES: u32 = 256;

/// A guest's RAM, as far as collecting needs it.
pub trait PageSource: Send + Sync {
    /// The RAM blocks that migrate: each one's number and its size in pages.
    fn blocks(&self) -> Vec<(u16, u32)>;

    /// The pages among `count` from `first` that are populated, ascending, in ranges; all others are zero.
    /// Must not populate any.
    ///
    /// # Errors
    /// Where the guest is gone or may not be looked at.
    fn populated(&self, block: u16, first: u32, count: u32) -> io::Result<Vec<Range<u32>>>;

    /// Copies the pages from `first` on into `out`, whose length is a multiple of the page size. The guest
    /// may write meanwhile.
    ///
    /// # Errors
    /// Where the guest is gone or may not be read.
    fn read(&self, block: u16, first: u32, out: &mut [u8]) -> io::Result<()>;
}

/// How far collecting is, for whoever watches; and the way to end it early.
#[derive(Debug, Default)]
pub struct CollectProgress {
    /// Pages of all guests, known once collecting has begun.
    pub pages_total: AtomicU64,
    /// Pages that are done, holes included.
    pub pages_done: AtomicU64,
    /// Bytes that were read.
    pub bytes_read: AtomicU64,
    /// Set by anyone: collecting ends within a chunk's time, with [`CollectError::Cancelled`].
    pub cancel: AtomicBool,
}

/// What was found.
pub struct Collected {
    /// Contents that stand more than once.
    pub contents: Arc<Contents>,
    /// Each VM, in the order given.
    pub vms: Vec<CollectedVm>,
}

/// What was found of one VM.
#[derive(Debug, Default)]
pub struct CollectedVm {
    /// Its pages. Of a VM that could not be read none counts as zero or shared.
    pub pages: VmPages,
    /// Why it could not be read to the end. It can still migrate: all of it goes by its own stream.
    pub error: Option<io::Error>,
}

impl Collected {
    /// What was counted of each VM, as the core's functions take it.
    pub fn pages(&self) -> Vec<VmPages> {
        self.vms.iter().map(|vm| vm.pages).collect()
    }
}

/// Why nothing was collected.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CollectError {
    /// [`CollectProgress::cancel`] was set.
    #[error("collecting was cancelled")]
    Cancelled,
    /// A limit of a session is exceeded.
    #[error(transparent)]
    Limit(#[from] PageSpaceError),
}

/// Reads all of `vms` on `threads` threads (at least one) and finds what is identical. A VM's number in
/// addresses is its place in `vms`. Takes 24 bytes for each page that is not zero, and less than 4 MiB a
/// thread.
///
/// # Errors
/// [`CollectError`]; that a VM can't be read is not an error, but noted in [`CollectedVm::error`].
pub fn collect(
    vms: &[&dyn PageSource],
    key: &MacKey,
    threads: usize,
    progress: &CollectProgress,
) -> Result<Collected, CollectError> {
    let blocks: Vec<_> = vms.iter().map(|vm| vm.blocks()).collect();
    let space = PageSpace::new(&blocks)?;
    let reading = Reading::new(vms, &space, key, progress);
    progress.pages_total.store(reading.vms.iter().map(|vm| vm.pages).sum(), Relaxed);
    let mut records = Records::new(on_threads(threads, || reading.work()));
    let vms = reading.outcome();
    let failed: Vec<u16> = (0..).zip(&vms).filter(|(_, vm)| vm.error.is_some()).map(|(vm, _)| vm).collect();
    if !failed.is_empty() {
        records.exclude(&space, &failed);
    }
    let groups = group(records, threads, &progress.cancel);
    if progress.cancel.load(Relaxed) {
        return Err(CollectError::Cancelled);
    }
    Ok(Collected { contents: Arc::new(Contents::from_groups(space, groups)), vms })
}

/// Runs `work` on each of so many threads and puts the results together.
fn on_threads<T: Send>(threads: usize, work: impl Fn() -> Vec<T> + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    })
}

fn group(records: Records, threads: usize, cancel: &AtomicBool) -> Vec<Group> {
    let records = Mutex::new(records);
    on_threads(threads, || {
        let take = || records.lock().unwrap_or_else(PoisonError::into_inner).take_shard();
        let shards = std::iter::from_fn(|| if cancel.load(Relaxed) { None } else { take() });
        shards.map(|shard| shard.group()).collect()
    })
}

/// What the threads share while they read.
struct Reading<'a> {
    sources: &'a [&'a dyn PageSource],
    vms: Vec<VmReading>,
    space: &'a PageSpace,
    next_window: AtomicUsize,
    key: &'a MacKey,
    progress: &'a CollectProgress,
}

#[derive(Default)]
struct VmReading {
    pages: u64,
    nonzero: AtomicU64,
    failed: AtomicBool,
    error: Mutex<Option<io::Error>>,
}

impl<'a> Reading<'a> {
    fn new(
        sources: &'a [&'a dyn PageSource],
        space: &'a PageSpace,
        key: &'a MacKey,
        progress: &'a CollectProgress,
    ) -> Self {
        let mut vms: Vec<VmReading> = sources.iter().map(|_| VmReading::default()).collect();
        for window in space.windows() {
            vms[usize::from(window.first.vm)].pages += u64::from(window.pages);
        }
        Reading { sources, vms, space, next_window: AtomicUsize::new(0), key, progress }
    }

    /// One thread's work: window after window, until none is left.
    fn work(&self) -> Vec<Run> {
        let mut reader = Reader { builder: RunBuilder::new(), runs: Vec::new(), chunk: Vec::new() };
        while let Some(window) = self.space.windows().get(self.next_window.fetch_add(1, Relaxed)) {
            if self.progress.cancel.load(Relaxed) {
                return Vec::new();
            }
            let vm = &self.vms[usize::from(window.first.vm)];
            if !vm.failed.load(Relaxed) {
                match self.read_window(window, &mut reader) {
                    Ok(nonzero) => {
                        vm.nonzero.fetch_add(nonzero, Relaxed);
                    }
                    Err(error) => vm.fail(error),
                }
            }
            self.progress.pages_done.fetch_add(u64::from(window.pages), Relaxed);
        }
        reader.runs.extend(reader.builder.finish());
        reader.runs
    }

    /// Gives the number of pages that are not zero.
    fn read_window(&self, window: &Window, reader: &mut Reader) -> io::Result<u64> {
        let source = self.sources[usize::from(window.first.vm)];
        let (block, start) = (window.first.block, window.first.page);
        // Within a block numbers ascend as pages do.
        let number = self.space.number(window.first).expect("a window's first page has a number");
        let mut nonzero = 0;
        for range in source.populated(block, start, window.pages)? {
            let range = range.start.max(start)..range.end.min(start + window.pages);
            for first in range.clone().step_by(CHUNK_PAGES as usize) {
                if self.progress.cancel.load(Relaxed) {
                    return Ok(nonzero);
                }
                let bytes = CHUNK_PAGES.min(range.end - first) as usize * PAGE_SIZE;
                reader.chunk.resize(bytes, 0);
                source.read(block, first, &mut reader.chunk)?;
                nonzero += reader.note(self.key, number + (first - start));
                self.progress.bytes_read.fetch_add(bytes as u64, Relaxed);
            }
        }
        Ok(nonzero)
    }

    fn outcome(self) -> Vec<CollectedVm> {
        let outcome = |vm: VmReading| match vm.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => {
                let zero = vm.pages.saturating_sub(vm.nonzero.into_inner());
                CollectedVm { pages: VmPages { pages: vm.pages, zero }, error: None }
            }
            error => CollectedVm { pages: VmPages { pages: vm.pages, zero: 0 }, error },
        };
        self.vms.into_iter().map(outcome).collect()
    }
}

impl VmReading {
    /// Keeps the first error.
    fn fail(&self, error: io::Error) {
        self.failed.store(true, Relaxed);
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// What one thread has for itself.
struct Reader {
    builder: RunBuilder,
    runs: Vec<Run>,
    chunk: Vec<u8>,
}

impl Reader {
    /// Notes the pages of the chunk, numbered from `first` on; gives the number of those that are not zero.
    fn note(&mut self, key: &MacKey, first: u32) -> u64 {
        let mut nonzero = 0;
        for (page, bytes) in (first..).zip(self.chunk.chunks_exact(PAGE_SIZE)) {
            if !is_zero(bytes) {
                self.runs.extend(self.builder.push(key.mac(bytes), page));
                nonzero += 1;
            }
        }
        nonzero
    }
}
