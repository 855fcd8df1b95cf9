//! How well guests' pages compress: a sample of the frames that would be sent, encoded as they would be.

use std::collections::HashMap;
use std::sync::Arc;

use vmscatter_core::index::Contents;
use vmscatter_core::limits::FRAME_PAGES_MAX;
use vmscatter_core::page::{PAGE_SIZE, PageAddr, is_zero};
use vmscatter_core::placement::TargetId;
use vmscatter_core::predict::Compressed;
use vmscatter_core::schedule::Schedule;
use vmscatter_core::wire::frame::{Compression, Encoder, StreamFrameBuilder};

use crate::qemu::memory::GuestMemory;

/// Frames of shared contents that are tried: 32 MiB at most.
const FRAMES_MAX: usize = 128;
/// Places in all guests' memory where unique pages are looked for, 256 KiB each: many, since what compresses well and what
/// does not lies in large pieces.
const REGIONS_MAX: usize = 1024;
const REGION_PAGES: u32 = 64;

/// Pages of a region that stand more than once: a bit each.
type Shared = [u64; REGION_PAGES as usize / 64];

/// What compression would leave of shared contents and of unique pages. Takes a fraction of a second; what has changed since
/// it was collected makes no difference that matters.
pub(super) fn sample(
    memories: &[Arc<GuestMemory>],
    contents: &Contents,
    compression: Compression,
) -> Compressed {
    let mut encoder = Encoder::new();
    let shared = sample_shared(memories, contents, compression, &mut encoder);
    let unique = sample_unique(memories, contents, compression, &mut encoder);
    Compressed { shared: shared.share(), unique: unique.share() }
}

/// Plain bytes, and what is left of them.
#[derive(Default)]
struct Tally {
    plain: usize,
    packed: usize,
}

impl Tally {
    fn share(&self) -> f64 {
        if self.plain == 0 { 1.0 } else { self.packed as f64 / self.plain as f64 }
    }
}

fn sample_shared(
    memories: &[Arc<GuestMemory>],
    contents: &Contents,
    compression: Compression,
    encoder: &mut Encoder,
) -> Tally {
    // Where they go makes little difference to how they compress: it is one set of frames here.
    let placement = vec![Some(TargetId(0)); memories.len()];
    let schedule = Schedule::new(contents, &placement);
    let frames = contents.len() as usize / FRAME_PAGES_MAX;
    let step = frames.div_ceil(FRAMES_MAX).max(1);
    let mut tally = Tally::default();
    for plan in schedule.sets.iter().flat_map(|set| set.frames(contents)).step_by(step) {
        let mut pages: Vec<(Vec<PageAddr>, Vec<u8>)> = Vec::with_capacity(plan.parts.len());
        for part in &plan.parts {
            let addrs: Vec<PageAddr> = part.addresses(contents, &placement).collect();
            let mut page = vec![0; PAGE_SIZE];
            let read = addrs.first().is_some_and(|addr| {
                memories[usize::from(addr.vm)].read(usize::from(addr.block), addr.page, &mut page).is_ok()
            });
            if read {
                pages.push((addrs, page));
            }
        }
        let mut body = |compression| {
            let contents = pages.iter().map(|(addrs, page)| (addrs.as_slice(), page.as_slice()));
            encoder.scatter(contents, compression).map_or(0, |body| body.len())
        };
        tally.plain += body(Compression::None);
        tally.packed += body(compression);
    }
    tally
}

fn sample_unique(
    memories: &[Arc<GuestMemory>],
    contents: &Contents,
    compression: Compression,
    encoder: &mut Encoder,
) -> Tally {
    let regions = regions(memories);
    let shared = shared_in(&regions, contents);
    let mut tally = Tally::default();
    let mut frame = StreamFrameBuilder::new();
    let mut bytes = vec![0; REGION_PAGES as usize * PAGE_SIZE];
    for (region, pages) in &regions {
        let bytes = &mut bytes[..*pages as usize * PAGE_SIZE];
        if memories[usize::from(region.vm)].read(usize::from(region.block), region.page, bytes).is_err() {
            continue;
        }
        let shared = shared.get(region).copied().unwrap_or_default();
        for (at, page) in bytes.as_chunks::<PAGE_SIZE>().0.iter().enumerate() {
            let is_shared = shared[at / 64] & (1 << (at % 64)) != 0;
            if is_shared || is_zero(page) {
                continue;
            }
            if frame.page(region.block, region.page + at as u32, page).is_err() {
                finish(&mut frame, compression, encoder, &mut tally);
                let _ = frame.page(region.block, region.page + at as u32, page);
            }
        }
    }
    finish(&mut frame, compression, encoder, &mut tally);
    tally
}

fn finish(
    frame: &mut StreamFrameBuilder,
    compression: Compression,
    encoder: &mut Encoder,
    tally: &mut Tally,
) {
    if !frame.is_empty() {
        tally.plain += frame.page_count() * PAGE_SIZE;
        tally.packed += frame.finish(compression, encoder).len();
    }
}

/// Regions with populated pages, evenly over all memory, with their lengths in pages.
fn regions(memories: &[Arc<GuestMemory>]) -> Vec<(PageAddr, u32)> {
    let mut all = Vec::new();
    for (vm, memory) in (0..).zip(memories) {
        for (block, about) in (0..).zip(memory.blocks()).filter(|(_, block)| block.readable) {
            let pages = (about.bytes / PAGE_SIZE as u64) as u32;
            let starts = (0..pages).step_by(REGION_PAGES as usize);
            all.extend(starts.map(|page| (PageAddr { vm, block, page }, REGION_PAGES.min(pages - page))));
        }
    }
    let is_populated = |(region, pages): &(PageAddr, u32)| {
        let memory = &memories[usize::from(region.vm)];
        memory
            .populated(usize::from(region.block), region.page, *pages)
            .is_ok_and(|ranges| !ranges.is_empty())
    };
    // Holes are left out before regions are picked, as they may be most of the memory.
    let populated: Vec<_> = all.into_iter().filter(is_populated).collect();
    let step = populated.len().div_ceil(REGIONS_MAX).max(1);
    populated.into_iter().step_by(step).collect()
}

/// Which pages of the regions stand more than once.
fn shared_in(regions: &[(PageAddr, u32)], contents: &Contents) -> HashMap<PageAddr, Shared> {
    let mut shared: HashMap<PageAddr, Shared> =
        regions.iter().map(|(region, _)| (*region, Shared::default())).collect();
    for (_, content) in contents.iter() {
        for addr in content.addrs() {
            let at = addr.page % REGION_PAGES;
            if let Some(bits) = shared.get_mut(&PageAddr { page: addr.page - at, ..addr }) {
                bits[at as usize / 64] |= 1 << (at % 64);
            }
        }
    }
    shared
}
