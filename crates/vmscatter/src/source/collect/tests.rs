use std::collections::{BTreeMap, HashMap};

use vmscatter_core::limits::SESSION_VMS_MAX;

use super::*;

/// What a window of the page space holds.
const WINDOW_PAGES: u32 = 4_096;
const CHUNK_PAGES: u32 = 256;

/// A guest whose pages are filled with one byte each; pages that are missing are holes, which must not be
/// read.
#[derive(Default)]
struct Guest {
    blocks: BTreeMap<u16, u32>,
    pages: HashMap<(u16, u32), u8>,
    /// Reading this page fails.
    broken: Option<(u16, u32)>,
    cancels: Option<&'static CollectProgress>,
}

impl Guest {
    fn new(blocks: &[(u16, u32)], pages: &[(u16, u32, u8)]) -> Self {
        let pages = pages.iter().map(|(block, page, fill)| ((*block, *page), *fill)).collect();
        Guest { blocks: blocks.iter().copied().collect(), pages, ..Guest::default() }
    }
}

impl PageSource for Guest {
    fn blocks(&self) -> Vec<(u16, u32)> {
        self.blocks.iter().map(|(block, pages)| (*block, *pages)).collect()
    }

    fn populated(&self, block: u16, first: u32, count: u32) -> io::Result<Vec<Range<u32>>> {
        assert!(first + count <= self.blocks[&block]);
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for page in (first..first + count).filter(|page| self.pages.contains_key(&(block, *page))) {
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => ranges.push(page..page + 1),
            }
        }
        Ok(ranges)
    }

    fn chunk_pages(&self, _: u16) -> u32 {
        CHUNK_PAGES
    }

    fn read(&self, block: u16, first: u32, out: &mut [u8]) -> io::Result<()> {
        if let Some(progress) = self.cancels {
            progress.cancel.store(true, Relaxed);
        }
        for (page, bytes) in (first..).zip(out.chunks_exact_mut(PAGE_SIZE)) {
            if self.broken == Some((block, page)) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            bytes.fill(*self.pages.get(&(block, page)).expect("holes are not read"));
        }
        Ok(())
    }
}

fn key() -> CollectKey {
    CollectKey::Session(MacKey::new(&[5; 16]))
}

fn run(guests: &[Guest], threads: usize) -> (Collected, CollectProgress) {
    let progress = CollectProgress::default();
    let sources: Vec<&dyn PageSource> = guests.iter().map(|guest| guest as &dyn PageSource).collect();
    let collected = collect(&sources, &key(), Effort::threads(threads), &progress).unwrap();
    (collected, progress)
}

fn found(collected: &Collected) -> Vec<Vec<(u16, u16, u32)>> {
    let addrs = |(_, content): (u32, vmscatter_core::index::Content<'_>)| {
        content.addrs().map(|addr| (addr.vm, addr.block, addr.page)).collect()
    };
    let mut found: Vec<_> = collected.contents.iter().map(addrs).collect();
    found.sort();
    found
}

/// Two guests: pages around the borders of chunks and windows, a second block, holes and zero pages.
fn guests() -> Vec<Guest> {
    let last = WINDOW_PAGES + 10;
    let mut first =
        vec![(0, 0, 1), (0, CHUNK_PAGES, 1), (0, WINDOW_PAGES - 1, 2), (0, WINDOW_PAGES, 0), (3, 1, 9)];
    first.extend((0..CHUNK_PAGES + 3).map(|page| (0, 1_000 + page, if page == CHUNK_PAGES { 3 } else { 0 })));
    let second = [(0, last - 1, 2), (0, 5, 3), (0, 6, 4)];
    vec![Guest::new(&[(0, last), (3, 2)], &first), Guest::new(&[(0, last)], &second)]
}

#[test]
fn identical_pages_are_found_across_windows_blocks_and_vms() {
    for threads in [1, 3] {
        let (collected, progress) = run(&guests(), threads);
        assert_eq!(
            found(&collected),
            [
                vec![(0, 0, 0), (0, 0, CHUNK_PAGES)],
                vec![(0, 0, 1_000 + CHUNK_PAGES), (1, 0, 5)],
                vec![(0, 0, WINDOW_PAGES - 1), (1, 0, WINDOW_PAGES + 9)],
            ]
        );
        let pages = u64::from(WINDOW_PAGES) + 12;
        assert_eq!(
            collected.pages(),
            [VmPages { pages, zero: pages - 5 }, VmPages { pages: pages - 2, zero: pages - 2 - 3 },]
        );
        assert_eq!(progress.pages_total.into_inner(), 2 * pages - 2);
        assert_eq!(progress.pages_done.into_inner(), 2 * pages - 2);
        let populated = 5 + CHUNK_PAGES + 3 + 3;
        assert_eq!(progress.bytes_read.into_inner(), u64::from(populated) * PAGE_SIZE as u64);
    }
}

#[test]
fn a_macs_key_is_the_callers() {
    let (collected, _) = run(&guests(), 1);
    let key = MacKey::new(&[5; 16]);
    let macs: Vec<_> = [1, 2, 3].map(|fill| key.mac(&[fill; PAGE_SIZE])).into();
    assert!(collected.contents.iter().all(|(_, content)| macs.contains(&content.mac)));
}

#[test]
fn a_guest_that_cannot_be_read_harms_only_itself() {
    let mut guests = guests();
    let third = Guest::new(&[(0, 2)], &[(0, 0, 2), (0, 1, 3)]);
    guests.push(third);
    guests[0].broken = Some((3, 1));
    for threads in [1, 3] {
        let (collected, progress) = run(&guests, threads);
        // What the first guest shares, though much of it was read, is not offered.
        assert_eq!(
            found(&collected),
            [vec![(1, 0, 5), (2, 0, 1)], vec![(1, 0, WINDOW_PAGES + 9), (2, 0, 0)]]
        );
        assert_eq!(collected.vms[0].error.as_ref().map(io::Error::kind), Some(io::ErrorKind::NotConnected));
        assert_eq!(collected.vms[0].pages, VmPages { pages: u64::from(WINDOW_PAGES) + 12, zero: 0 });
        assert!(collected.vms[1].error.is_none() && collected.vms[2].error.is_none());
        assert_eq!(progress.pages_done.into_inner(), progress.pages_total.into_inner());
    }
}

#[test]
fn cancel_ends_it() {
    let progress: &'static CollectProgress = Box::leak(Box::default());
    let mut guests = guests();
    guests.iter_mut().for_each(|guest| guest.cancels = Some(progress));
    let sources: Vec<&dyn PageSource> = guests.iter().map(|guest| guest as &dyn PageSource).collect();
    let result = collect(&sources, &key(), Effort::threads(2), progress);
    assert_eq!(result.err(), Some(CollectError::Cancelled));
    assert!(progress.bytes_read.load(Relaxed) <= 2 * u64::from(CHUNK_PAGES) * PAGE_SIZE as u64);
}

#[test]
fn a_session_has_a_limit_of_vms() {
    let guest = Guest::default();
    let sources: Vec<&dyn PageSource> = vec![&guest; SESSION_VMS_MAX + 1];
    let result = collect(&sources, &key(), Effort::threads(1), &CollectProgress::default());
    assert_eq!(result.err(), Some(CollectError::Limit(PageSpaceError::TooManyVms(SESSION_VMS_MAX + 1))));
}
