//! Contents that stand more than once, with all their addresses.

use super::records::{Group, Records, pack};
use crate::page::{Mac, PageAddr};

/// Address space that [`Contents::in_address_order`] sorts at a time: 2^16 pages, 256 MiB of a guest.
const WINDOW_PAGES_LOG2: u32 = 16;

/// All contents that stand more than once, numbered from 0.
///
/// 20 bytes a content and 8 bytes an address, so at most 18 bytes a page.
#[derive(Default)]
pub struct Contents {
    groups: Vec<Group>,
    /// The first content's number in each group.
    bases: Vec<u32>,
    len: u32,
}

/// One content and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content<'a> {
    /// What it was when it was read.
    pub mac: Mac,
    /// All its addresses, ascending, two or more.
    pub addrs: &'a [PageAddr],
}

impl Contents {
    /// Puts the groups of all shards together, in whatever order they come; the numbering depends on the
    /// contents alone.
    ///
    /// # Panics
    /// Beyond 2^32 - 1 contents, that is 32 TiB of shared guest memory.
    pub fn from_groups(mut groups: Vec<Group>) -> Self {
        groups.retain(|group| !group.macs.is_empty());
        groups.sort_unstable_by_key(|group| group.shard);
        let mut len = 0u32;
        let mut bases = Vec::with_capacity(groups.len());
        for group in &groups {
            bases.push(len);
            let count = u32::try_from(group.macs.len()).ok();
            len = count.and_then(|count| len.checked_add(count)).expect("fewer than 2^32 contents");
        }
        Contents { groups, bases, len }
    }

    /// Groups all shards on the caller's thread.
    pub fn from_records(mut records: Records) -> Self {
        Contents::from_groups(
            std::iter::from_fn(|| records.take_shard()).map(|shard| shard.group()).collect(),
        )
    }

    /// How many contents.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no content stands more than once.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pages that hold one of the contents.
    pub fn pages(&self) -> u64 {
        self.groups.iter().map(|group| group.addrs.len() as u64).sum()
    }

    /// The content of this number.
    ///
    /// # Panics
    /// If `id` is not below [`Contents::len`].
    pub fn get(&self, id: u32) -> Content<'_> {
        assert!(id < self.len, "content {id} of {}", self.len);
        let group = self.bases.partition_point(|base| *base <= id) - 1;
        self.groups[group].get((id - self.bases[group]) as usize)
    }

    /// All contents with their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Content<'_>)> {
        let contents = self.groups.iter().flat_map(|group| (0..group.macs.len()).map(|at| group.get(at)));
        (0..).zip(contents)
    }

    /// The numbers of all contents, in the order of their first addresses: whoever reads the first of each
    /// reads guests' memory from its start to its end.
    pub fn in_address_order(&self) -> impl Iterator<Item = u32> {
        let mut walk =
            AddressWalk { contents: self, cursors: vec![0; self.groups.len()], window: Vec::new() };
        std::iter::from_fn(move || walk.next_window()).flatten()
    }
}

impl Group {
    fn get(&self, at: usize) -> Content<'_> {
        Content { mac: self.macs[at], addrs: &self.addrs[self.start(at)..self.ends[at] as usize] }
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    fn first_addr(&self, at: usize) -> Option<u64> {
        (at < self.macs.len()).then(|| pack(self.addrs[self.start(at)]))
    }
}

/// Merges the groups, each of them in address order, window by window.
struct AddressWalk<'a> {
    contents: &'a Contents,
    /// In each group, the first content that was not yet given.
    cursors: Vec<usize>,
    /// (page within the window, content), sorted as one number.
    window: Vec<u64>,
}

impl AddressWalk<'_> {
    fn next_window(&mut self) -> Option<Vec<u32>> {
        let groups = &self.contents.groups;
        let firsts = groups.iter().zip(&self.cursors).filter_map(|(group, at)| group.first_addr(*at));
        let window = firsts.min()? >> WINDOW_PAGES_LOG2;
        self.window.clear();
        for ((group, base), cursor) in groups.iter().zip(&self.contents.bases).zip(&mut self.cursors) {
            while let Some(addr) =
                group.first_addr(*cursor).filter(|addr| addr >> WINDOW_PAGES_LOG2 == window)
            {
                let page = addr & ((1 << WINDOW_PAGES_LOG2) - 1);
                self.window.push((page << 32) | u64::from(base + *cursor as u32));
                *cursor += 1;
            }
        }
        self.window.sort_unstable();
        Some(self.window.iter().map(|entry| *entry as u32).collect())
    }
}
