//! `scan`: all guests' memory is read once, and what is identical is counted, per guest and across.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vmscatter_core::index::fingerprint::{FingerprintsError, VmFingerprints};
use vmscatter_core::index::{Fingerprints, Sampler, Sharing, VmPages, VmSharing};
use vmscatter_core::page::{MacKey, PAGE_SIZE};

use super::collect::{
    CollectError, CollectKey, CollectProgress, Collected, CollectedVm, PageSource, collect,
};
use super::effort::Effort;
use super::guest::SourceGuest;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{GuestText, ScanRequest};
use crate::clock::since_epoch;
use crate::qemu::memory::GuestMemory;
use crate::random::random;
use crate::report::event::{JobEvent, Phase};
use crate::report::outcome::{Exit, SavedFingerprints, ScanGuest, ScanOutcome};

/// What was collected, and what that took.
pub(super) struct Collection {
    pub(super) collected: Collected,
    pub(super) bytes_read: u64,
    pub(super) time: Duration,
}

/// Reads guests' memory beside the async tasks, with at most `cpu_percent` of all processors.
///
/// # Errors
/// Cancelled, or more guests than a session takes.
pub(super) async fn collect_guests(
    memories: Vec<Arc<GuestMemory>>,
    key: CollectKey,
    cpu_percent: u8,
    cancel: &CancelToken,
) -> Result<Collection, CollectError> {
    let progress = Arc::new(CollectProgress::default());
    let work = {
        let progress = progress.clone();
        tokio::task::spawn_blocking(move || {
            let sources: Vec<&dyn PageSource> =
                memories.iter().map(|memory| &**memory as &dyn PageSource).collect();
            let start = Instant::now();
            let collected = collect(&sources, &key, Effort::percent(cpu_percent), &progress)?;
            Ok(Collection { collected, bytes_read: progress.bytes_read.load(Relaxed), time: start.elapsed() })
        })
    };
    tokio::select! {
        done = work => done.unwrap_or(Err(CollectError::Cancelled)),
        () = cancel.cancelled() => {
            progress.cancel.store(true, Relaxed);
            Err(CollectError::Cancelled)
        }
    }
}

impl PageSource for GuestMemory {
    fn blocks(&self) -> Vec<(u16, u32)> {
        let pages = |bytes: u64| (bytes / PAGE_SIZE as u64) as u32;
        let blocks = (0..).zip(GuestMemory::blocks(self));
        // Blocks that can't be read from outside come by the stream.
        blocks
            .filter(|(_, block)| block.readable)
            .map(|(number, block)| (number, pages(block.bytes)))
            .collect()
    }

    fn populated(&self, block: u16, first: u32, count: u32) -> io::Result<Vec<Range<u32>>> {
        GuestMemory::populated(self, block.into(), first, count).map_err(io::Error::other)
    }

    fn chunk_pages(&self, block: u16) -> u32 {
        GuestMemory::chunk_pages(self, block.into())
    }

    fn look(&self, block: u16, pages: Range<u32>, show: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        GuestMemory::look(self, block.into(), pages, show).map_err(io::Error::other)
    }

    fn read(&self, block: u16, first: u32, out: &mut [u8]) -> io::Result<()> {
        GuestMemory::read(self, block.into(), first, out).map_err(io::Error::other)
    }
}

/// Counts what is identical in the request's guests; nothing of them is changed. Fingerprints, if they are asked for, go
/// to `file`.
pub async fn run_scan(
    ctx: Arc<AgentContext>,
    request: ScanRequest,
    sink: EventSink,
    cancel: CancelToken,
    file: oneshot::Sender<Vec<u8>>,
) -> ScanOutcome {
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Connect });
    let mut guests = Vec::new();
    for GuestText { origin, text } in &request.guests {
        match SourceGuest::open(&ctx, origin, text).await {
            Ok(guest) => {
                if let Some(text) = guest.refused() {
                    sink.emit(JobEvent::Warning { guest: Some(guest.name.clone()), text });
                }
                guests.push(guest);
            }
            Err(error) => return ScanOutcome::bad_input(error),
        }
    }
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Collect });
    let memories = guests.iter().map(|guest| guest.memory.clone()).collect();
    let key = match &ctx.fleet_key {
        Some(key) if request.fingerprints => CollectKey::Fleet(key.clone()),
        _ => CollectKey::Session(MacKey::new(&random())),
    };
    let mut collection = match collect_guests(memories, key, request.collect_cpu_percent, &cancel).await {
        Ok(collection) => collection,
        Err(CollectError::Cancelled) => return ScanOutcome::cancelled(),
        Err(error) => return ScanOutcome::bad_input(error.to_string()),
    };
    for (guest, vm) in guests.iter().zip(&collection.collected.vms) {
        if let Some(why) = &vm.error {
            let text = format!("its memory can't be read: {why}");
            sink.emit(JobEvent::Warning { guest: Some(guest.name.clone()), text });
        }
    }
    let guests: Vec<(String, u64)> = guests.iter().map(|guest| (guest.name.clone(), guest.bytes())).collect();
    let counting = tokio::task::spawn_blocking(move || {
        let sampler = collection.collected.sampler.take();
        let saved = sampler.map(|sampler| save(&ctx.config.name, &guests, &collection.collected, sampler));
        outcome(&guests, &collection, saved, file)
    });
    counting.await.unwrap_or_else(|error| ScanOutcome::failed(format!("internal error: {error}")))
}

fn save(host: &str, guests: &[(String, u64)], collected: &Collected, sampler: Sampler) -> Fingerprints {
    let now = since_epoch().as_secs();
    let vm = |((name, bytes), vm): (&(String, u64), &CollectedVm)| {
        VmFingerprints::new(name, *bytes, vm.pages, vm.error.is_none())
    };
    sampler.finish(host, now, guests.iter().zip(&collected.vms).map(vm).collect())
}

fn outcome(
    guests: &[(String, u64)],
    collection: &Collection,
    saved: Option<Fingerprints>,
    file: oneshot::Sender<Vec<u8>>,
) -> ScanOutcome {
    let Collection { collected, bytes_read, time } = collection;
    let read = |vm: &CollectedVm| if vm.error.is_none() { vm.pages } else { VmPages::default() };
    let sharing = Sharing::of(&collected.contents, &collected.vms.iter().map(read).collect::<Vec<_>>());
    let unread = |((name, _), vm): (&(String, u64), &CollectedVm)| {
        vm.error.as_ref().map(|why| format!("{name}: its memory can't be read: {why}"))
    };
    let error = guests.iter().zip(&collected.vms).filter_map(unread).next_back();
    let counts = |name: &str, sharing: &VmSharing| ScanGuest {
        name: name.to_owned(),
        pages: sharing.pages,
        zero_pages: sharing.zero,
        unique_pages: sharing.unique,
        within_pages: sharing.within,
        across_pages: sharing.across,
    };
    let fingerprints = match saved.map(|saved| send(&saved, file)).transpose() {
        Ok(fingerprints) => fingerprints,
        Err(error) => return ScanOutcome::failed(format!("fingerprints can't be saved: {error}")),
    };
    ScanOutcome {
        exit: if error.is_none() { Exit::Success } else { Exit::Partial },
        error,
        collect_time_s: time.as_secs_f64(),
        read_bytes: *bytes_read,
        distinct_nonzero_bytes: sharing.distinct_nonzero_bytes(),
        guests: guests.iter().zip(&sharing.vms).map(|((name, _), vm)| counts(name, vm)).collect(),
        total: counts("", &sharing.total()),
        fingerprints,
    }
}

fn send(
    saved: &Fingerprints,
    file: oneshot::Sender<Vec<u8>>,
) -> Result<SavedFingerprints, FingerprintsError> {
    let bytes = saved.encode()?;
    let summary = SavedFingerprints {
        contents: saved.len() as u64,
        one_in: 1 << saved.rate_log2(),
        bytes: bytes.len() as u64,
    };
    // A client that has gone wants nothing.
    let _ = file.send(bytes);
    Ok(summary)
}
