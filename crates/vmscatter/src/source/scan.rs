//! `scan`: all guests' memory is read once, and what is identical is counted, per guest and across.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use vmscatter_core::index::{Sharing, VmPages, VmSharing};
use vmscatter_core::page::{MacKey, PAGE_SIZE};

use super::collect::{CollectError, CollectProgress, Collected, CollectedVm, PageSource, collect};
use super::guest::SourceGuest;
use crate::agent::AgentContext;
use crate::agent::cancel::CancelToken;
use crate::agent::jobs::EventSink;
use crate::agent::protocol::{GuestText, ScanRequest};
use crate::qemu::memory::GuestMemory;
use crate::random::random;
use crate::report::event::{JobEvent, Phase};
use crate::report::outcome::{Exit, ScanGuest, ScanOutcome};

/// What was collected, and what that took.
pub(super) struct Collection {
    pub(super) collected: Collected,
    pub(super) bytes_read: u64,
    pub(super) time: Duration,
}

/// Reads guests' memory on all cores, beside the async tasks.
///
/// # Errors
/// Cancelled, or more guests than a session takes.
pub(super) async fn collect_guests(
    memories: Vec<Arc<GuestMemory>>,
    key: MacKey,
    cancel: &CancelToken,
) -> Result<Collection, CollectError> {
    let progress = Arc::new(CollectProgress::default());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let work = {
        let progress = progress.clone();
        tokio::task::spawn_blocking(move || {
            let sources: Vec<&dyn PageSource> =
                memories.iter().map(|memory| &**memory as &dyn PageSource).collect();
            let start = Instant::now();
            let collected = collect(&sources, &key, threads, &progress)?;
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

    fn read(&self, block: u16, first: u32, out: &mut [u8]) -> io::Result<()> {
        GuestMemory::read(self, block.into(), first, out).map_err(io::Error::other)
    }
}

/// Counts what is identical in the request's guests; nothing of them is changed.
pub async fn run_scan(
    ctx: Arc<AgentContext>,
    request: ScanRequest,
    sink: EventSink,
    cancel: CancelToken,
) -> ScanOutcome {
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Connect });
    let mut guests = Vec::new();
    for GuestText { origin, text } in &request.guests {
        match SourceGuest::open(&ctx, origin, text).await {
            Ok(guest) => guests.push(guest),
            Err(error) => return ScanOutcome::bad_input(error),
        }
    }
    sink.emit(JobEvent::Phase { guest: None, phase: Phase::Collect });
    let memories = guests.iter().map(|guest| guest.memory.clone()).collect();
    match collect_guests(memories, MacKey::new(&random()), &cancel).await {
        Ok(collection) => outcome(&guests, &collection, &sink),
        Err(CollectError::Cancelled) => ScanOutcome::cancelled(),
        Err(error) => ScanOutcome::bad_input(error.to_string()),
    }
}

fn outcome(guests: &[SourceGuest], collection: &Collection, sink: &EventSink) -> ScanOutcome {
    let Collection { collected, bytes_read, time } = collection;
    let read = |vm: &CollectedVm| if vm.error.is_none() { vm.pages } else { VmPages::default() };
    let sharing = Sharing::of(&collected.contents, &collected.vms.iter().map(read).collect::<Vec<_>>());
    let mut error = None;
    for (guest, vm) in guests.iter().zip(&collected.vms) {
        if let Some(why) = &vm.error {
            let text = format!("its memory can't be read: {why}");
            error = Some(format!("{}: {text}", guest.name));
            sink.emit(JobEvent::Warning { guest: Some(guest.name.clone()), text });
        }
    }
    let counts = |name: &str, sharing: &VmSharing| ScanGuest {
        name: name.to_owned(),
        pages: sharing.pages,
        zero_pages: sharing.zero,
        unique_pages: sharing.unique,
        within_pages: sharing.within,
        across_pages: sharing.across,
    };
    ScanOutcome {
        exit: if error.is_none() { Exit::Success } else { Exit::Partial },
        error,
        collect_time_s: time.as_secs_f64(),
        read_bytes: *bytes_read,
        distinct_nonzero_bytes: sharing.distinct_nonzero_bytes(),
        guests: guests.iter().zip(&sharing.vms).map(|(guest, vm)| counts(&guest.name, vm)).collect(),
        total: counts("", &sharing.total()),
    }
}
