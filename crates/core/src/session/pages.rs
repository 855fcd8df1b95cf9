//! What each side knows of every page of one VM, in 24 bytes a page.

use crate::page::Mac;
use crate::wire::control::BlockSpec;

/// Pages of each block, in the stream's order.
///
/// Callers have checked that a block's length is a multiple of the page size and below
/// [`BLOCK_PAGES_MAX`](crate::limits::BLOCK_PAGES_MAX); see [`check_blocks`](super::check_blocks).
pub(crate) fn block_pages(blocks: &[BlockSpec]) -> Vec<u32> {
    blocks.iter().map(|block| (block.bytes / crate::page::PAGE_SIZE as u64) as u32).collect()
}

/// A table with one entry for each page of a VM, addressed by block and page.
#[derive(Debug)]
pub(crate) struct PageTable<T> {
    entries: Vec<T>,
    starts: Vec<usize>,
}

impl<T: Clone> PageTable<T> {
    pub(crate) fn new(block_pages: &[u32], fill: T) -> Self {
        let mut starts = Vec::with_capacity(block_pages.len() + 1);
        let mut total = 0;
        for pages in block_pages {
            starts.push(total);
            total += *pages as usize;
        }
        starts.push(total);
        PageTable { entries: vec![fill; total], starts }
    }

    /// The entry of a page, `None` where the VM has no such page.
    pub(crate) fn get_mut(&mut self, block: u16, page: u32) -> Option<&mut T> {
        let start = *self.starts.get(block as usize)?;
        let end = *self.starts.get(block as usize + 1)?;
        let at = start + page as usize;
        if at < end { self.entries.get_mut(at) } else { None }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// How the target came, or will come, to hold a page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// Nothing was sent yet.
    Nothing,
    /// The scattered frame of this number is the highest that names the page.
    Scatter(u64),
    /// That frame was acknowledged, and nothing scattered is open any more.
    Held,
    /// The stream frame of this number has it.
    Stream(u64),
}

/// The source's entry for a page: the identity of what was sent last, how, and whether QEMU has said a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceEntry {
    /// Of the bytes that were sent last; meaningless with [`Via::Nothing`].
    pub(crate) mac: Mac,
    /// Tag in the top three bits, number below: 24 bytes an entry in all.
    bits: u64,
}

const SAID: u64 = 1 << 63;
const TAG: u64 = 3 << 61;
const NUMBER: u64 = (1 << 61) - 1;

impl SourceEntry {
    pub(crate) const EMPTY: SourceEntry = SourceEntry { mac: Mac([0; 16]), bits: 0 };

    pub(crate) fn via(&self) -> Via {
        match (self.bits & TAG) >> 61 {
            0 => Via::Nothing,
            1 => Via::Scatter(self.bits & NUMBER),
            2 => Via::Held,
            _ => Via::Stream(self.bits & NUMBER),
        }
    }

    pub(crate) fn set_via(&mut self, via: Via) {
        let (tag, number) = match via {
            Via::Nothing => (0, 0),
            Via::Scatter(number) => (1, number),
            Via::Held => (2, 0),
            Via::Stream(number) => (3, number),
        };
        self.bits = (self.bits & SAID) | (tag << 61) | (number & NUMBER);
    }

    /// Whether QEMU's stream has had a record for the page; from then on `mac` is that record's.
    pub(crate) fn said(&self) -> bool {
        self.bits & SAID != 0
    }

    pub(crate) fn set_said(&mut self) {
        self.bits |= SAID;
    }
}

/// The target's entry for a page: what was written into its QEMU last, and by which scattered frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetEntry {
    pub(crate) mac: Mac,
    /// Number of the last frame applied, plus one; zero where the page has not been written.
    pub(crate) applied: u64,
}

impl TargetEntry {
    pub(crate) const EMPTY: TargetEntry = TargetEntry { mac: Mac([0; 16]), applied: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_take_24_bytes() {
        assert_eq!(size_of::<SourceEntry>(), 24);
        assert_eq!(size_of::<TargetEntry>(), 24);
    }

    #[test]
    fn via_and_said_do_not_disturb_each_other() {
        let mut entry = SourceEntry::EMPTY;
        for via in [Via::Scatter(NUMBER), Via::Held, Via::Stream(0), Via::Nothing, Via::Stream(7)] {
            entry.set_via(via);
            assert_eq!(entry.via(), via);
            assert!(!entry.said());
        }
        entry.set_said();
        entry.set_via(Via::Scatter(3));
        assert!(entry.said());
        assert_eq!(entry.via(), Via::Scatter(3));
    }

    #[test]
    fn table_is_bounded_per_block() {
        let mut table = PageTable::new(&[2, 0, 3], 0);
        *table.get_mut(0, 1).unwrap() = 1;
        *table.get_mut(2, 0).unwrap() = 2;
        assert!(table.get_mut(0, 2).is_none());
        assert!(table.get_mut(1, 0).is_none());
        assert!(table.get_mut(2, 3).is_none());
        assert!(table.get_mut(3, 0).is_none());
        assert_eq!(table.iter_mut().map(|x| *x).collect::<Vec<_>>(), [0, 1, 2, 0, 0]);
        assert_eq!(table.len(), 5);
    }
}
