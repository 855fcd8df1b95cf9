//! Step 2 of a session: all guests' RAM is read once, on several threads, and what is identical is found.
//!
//! Work is dealt in windows of 16 MiB, in the order of VMs, blocks and pages, so that each thread reads large
//! pieces one after the other. Where a guest's memory can be looked at in place, pages are tested for zero and hashed
//! there; else a chunk is copied out of the guest and stays in the core's cache for both.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use thiserror::Error;
use vmscatter_core::index::{
    Contents, FleetKey, Group, PageSpace, PageSpaceError, Records, Run, RunBuilder, Sampler, VmPages, Window,
};
use vmscatter_core::page::{MacKey, PAGE_SIZE, is_zero};

use super::effort::{Effort, Pace};

#[cfg(test)]
mod tests;

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

    /// Pages of this block that [`PageSource::read`] copies at a time with the least cost, at least one.
    fn chunk_pages(&self, block: u16) -> u32;

    /// Shows populated pages where they are, all at once, and says whether it could. The guest may write meanwhile.
    ///
    /// # Errors
    /// Where the guest is gone or may not be read.
    fn look(&self, _block: u16, _pages: Range<u32>, _show: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        Ok(false)
    }

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
    /// The contents' fingerprints, if they were asked for.
    pub sampler: Option<Sampler>,
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

/// The key of the contents' MACs.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a session")]
pub enum CollectKey {
    /// A session's own.
    Session(MacKey),
    /// The fleet's: fingerprints are taken too.
    Fleet(FleetKey),
}

impl CollectKey {
    fn mac_key(&self) -> &MacKey {
        match self {
            CollectKey::Session(key) => key,
            CollectKey::Fleet(key) => key.mac_key(),
        }
    }
}

/// Reads all of `vms`, with as much of the host's processors as `effort` allows, and finds what is identical. A VM's number
/// in addresses is its place in `vms`. Takes 24 bytes for each page that is not zero, and less than 4 MiB a thread;
/// fingerprints up to 128 MiB besides.
///
/// # Errors
/// [`CollectError`]; that a VM can't be read is not an error, but noted in [`CollectedVm::error`].
pub fn collect(
    vms: &[&dyn PageSource],
    key: &CollectKey,
    effort: Effort,
    progress: &CollectProgress,
) -> Result<Collected, CollectError> {
    let blocks: Vec<_> = vms.iter().map(|vm| vm.blocks()).collect();
    let space = PageSpace::new(&blocks)?;
    let reading = Reading::new(vms, &space, key.mac_key(), progress);
    progress.pages_total.store(reading.vms.iter().map(|vm| vm.pages).sum(), Relaxed);
    let mut records = Records::new(on_threads(effort, |pace| reading.work(pace)));
    let vms = reading.outcome();
    let failed: Vec<u16> = (0..).zip(&vms).filter(|(_, vm)| vm.error.is_some()).map(|(vm, _)| vm).collect();
    if !failed.is_empty() {
        records.exclude(&space, &failed);
    }
    let sampler = match key {
        CollectKey::Session(_) => None,
        CollectKey::Fleet(key) => Some(Mutex::new(Sampler::new(key.clone()))),
    };
    let groups = group(records, &space, effort, sampler.as_ref(), &progress.cancel);
    if progress.cancel.load(Relaxed) {
        return Err(CollectError::Cancelled);
    }
    let sampler = sampler.map(|sampler| sampler.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(Collected { contents: Arc::new(Contents::from_groups(space, groups)), vms, sampler })
}

/// Runs `work` on as many threads as `effort` says and puts the results together.
fn on_threads<T: Send>(effort: Effort, work: impl Fn(Pace) -> Vec<T> + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..effort.threads.get()).map(|_| scope.spawn(|| work(effort.begin()))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    })
}

fn group(
    records: Records,
    space: &PageSpace,
    effort: Effort,
    sampler: Option<&Mutex<Sampler>>,
    cancel: &AtomicBool,
) -> Vec<Group> {
    let records = Mutex::new(records);
    on_threads(effort, |mut pace| {
        let take = || lock(&records).take_shard();
        let shards = std::iter::from_fn(|| if cancel.load(Relaxed) { None } else { take() });
        let groups = shards.map(|shard| {
            pace.rest();
            match sampler {
                None => shard.group(),
                Some(sampler) => {
                    let mut branch = lock(sampler).branch();
                    let group = shard.group_sampled(space, &mut branch);
                    lock(sampler).absorb(branch);
                    group
                }
            }
        });
        groups.collect()
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn work(&self, pace: Pace) -> Vec<Run> {
        let mut reader = Reader {
            builder: RunBuilder::new(),
            runs: Vec::new(),
            chunk: Vec::new(),
            key: self.key,
            nonzero: 0,
            pace,
        };
        while let Some(window) = self.space.windows().get(self.next_window.fetch_add(1, Relaxed)) {
            if self.progress.cancel.load(Relaxed) {
                return Vec::new();
            }
            let vm = &self.vms[usize::from(window.first.vm)];
            if !vm.failed.load(Relaxed) {
                reader.nonzero = 0;
                match self.read_window(window, &mut reader) {
                    Ok(()) => drop(vm.nonzero.fetch_add(reader.nonzero, Relaxed)),
                    Err(error) => vm.fail(error),
                }
            }
            self.progress.pages_done.fetch_add(u64::from(window.pages), Relaxed);
        }
        reader.runs.extend(reader.builder.finish());
        reader.runs
    }

    fn read_window(&self, window: &Window, reader: &mut Reader<'_>) -> io::Result<()> {
        let source = self.sources[usize::from(window.first.vm)];
        let (block, start) = (window.first.block, window.first.page);
        // Within a block numbers ascend as pages do.
        let number = self.space.number(window.first).expect("a window's first page has a number");
        for range in source.populated(block, start, window.pages)? {
            let range = range.start.max(start)..range.end.min(start + window.pages);
            let first_number = number + (range.start - start);
            if self.progress.cancel.load(Relaxed) {
                return Ok(());
            }
            if source.look(block, range.clone(), &mut |bytes| reader.note(bytes, first_number))? {
                self.progress.bytes_read.fetch_add(range.len() as u64 * PAGE_SIZE as u64, Relaxed);
                reader.pace.rest();
            } else {
                self.copy_range(source, block, range, first_number, reader)?;
            }
        }
        Ok(())
    }

    /// `number` is that of the range's first page.
    fn copy_range(
        &self,
        source: &dyn PageSource,
        block: u16,
        range: Range<u32>,
        number: u32,
        reader: &mut Reader<'_>,
    ) -> io::Result<()> {
        let chunk_pages = source.chunk_pages(block);
        for first in range.clone().step_by(chunk_pages as usize) {
            if self.progress.cancel.load(Relaxed) {
                return Ok(());
            }
            let bytes = chunk_pages.min(range.end - first) as usize * PAGE_SIZE;
            let mut chunk = std::mem::take(&mut reader.chunk);
            chunk.resize(bytes, 0);
            source.read(block, first, &mut chunk)?;
            reader.note(&chunk, number + (first - range.start));
            reader.chunk = chunk;
            self.progress.bytes_read.fetch_add(bytes as u64, Relaxed);
            reader.pace.rest();
        }
        Ok(())
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
        lock(&self.error).get_or_insert(error);
    }
}

/// What one thread has for itself.
struct Reader<'a> {
    builder: RunBuilder,
    runs: Vec<Run>,
    chunk: Vec<u8>,
    key: &'a MacKey,
    /// Pages of this window that are not zero.
    nonzero: u64,
    pace: Pace,
}

impl Reader<'_> {
    /// Notes pages, numbered from `first` on.
    fn note(&mut self, pages: &[u8], first: u32) {
        for (page, bytes) in (first..).zip(pages.chunks_exact(PAGE_SIZE)) {
            if !is_zero(bytes) {
                self.runs.extend(self.builder.push(self.key.mac(bytes), page));
                self.nonzero += 1;
            }
        }
    }
}
