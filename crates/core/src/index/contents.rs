//! Contents that stand more than once, with all their addresses.

use std::fmt;
use std::ops::Range;

use super::PageSpace;
use super::records::{Group, Records};
use crate::page::{Mac, PageAddr};

/// Pages that [`Contents::in_address_order`] sorts at a time: 2^16.
const SORTED_PAGES_LOG2: u32 = 16;

/// All contents that stand more than once, numbered from 0.
///
/// 20 bytes a content and 4 bytes an address, so at most 14 bytes a page.
#[derive(Default)]
pub struct Contents {
    space: PageSpace,
    groups: Vec<Group>,
    /// The first content's number in each group.
    bases: Vec<u32>,
    len: u32,
}

impl Contents {
    /// Puts the groups of all shards together, in whatever order they come; the numbering depends on the
    /// contents alone. `space` is the one by which pages were numbered.
    pub fn from_groups(space: PageSpace, mut groups: Vec<Group>) -> Self {
        groups.retain(|group| !group.macs.is_empty());
        groups.sort_unstable_by_key(|group| group.shard);
        // Each content has two or more of at most 2^32 pages, so the sum fits.
        let mut len = 0;
        let mut bases = Vec::with_capacity(groups.len());
        for group in &groups {
            bases.push(len);
            len += group.macs.len() as u32;
        }
        Contents { space, groups, bases, len }
    }

    /// Groups all shards on the caller's thread.
    pub fn from_records(space: PageSpace, mut records: Records) -> Self {
        let shards = std::iter::from_fn(|| records.take_shard());
        Contents::from_groups(space, shards.map(|shard| shard.group()).collect())
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
        self.groups.iter().map(|group| group.pages.len() as u64).sum()
    }

    /// The content of this number.
    ///
    /// # Panics
    /// If `id` is not below [`Contents::len`].
    pub fn get(&self, id: u32) -> Content<'_> {
        assert!(id < self.len, "content {id} of {}", self.len);
        let group = self.bases.partition_point(|base| *base <= id) - 1;
        self.groups[group].get(&self.space, (id - self.bases[group]) as usize)
    }

    /// All contents with their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Content<'_>)> {
        let contents =
            self.groups.iter().flat_map(|group| (0..group.macs.len()).map(|at| group.get(&self.space, at)));
        (0..).zip(contents)
    }

    /// The numbers of all contents, in the order of their first addresses: whoever reads the first of each
    /// reads guests' memory from its start to its end.
    pub fn in_address_order(&self) -> impl Iterator<Item = u32> {
        let mut walk =
            AddressWalk { contents: self, cursors: vec![0; self.groups.len()], sorted: Vec::new() };
        std::iter::from_fn(move || walk.next_part()).flatten()
    }
}

/// One content and where it stands: two addresses or more, unless it was narrowed.
#[derive(Clone, Copy)]
pub struct Content<'a> {
    /// What it was when it was read.
    pub mac: Mac,
    space: &'a PageSpace,
    pages: &'a [u32],
}

impl<'a> Content<'a> {
    /// How many addresses.
    #[expect(clippy::len_without_is_empty, reason = "a content stands somewhere")]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// All addresses, ascending.
    pub fn addrs(&self) -> impl ExactSizeIterator<Item = PageAddr> + DoubleEndedIterator + Clone + use<'a> {
        let space = self.space;
        self.pages.iter().map(|page| space.addr(*page))
    }

    /// The lowest address.
    pub fn first(&self) -> PageAddr {
        self.space.addr(self.pages[0])
    }

    /// The highest address.
    pub fn last(&self) -> PageAddr {
        self.space.addr(self.pages[self.pages.len() - 1])
    }

    /// The same content with some of its addresses only, counted from the lowest.
    ///
    /// # Panics
    /// If the range reaches beyond [`Content::len`].
    pub fn narrowed(self, addrs: Range<usize>) -> Self {
        Content { pages: &self.pages[addrs], ..self }
    }
}

impl PartialEq for Content<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.mac == other.mac && self.addrs().eq(other.addrs())
    }
}

impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("mac", &self.mac)
            .field("addrs", &self.addrs().collect::<Vec<_>>())
            .finish()
    }
}

impl Group {
    fn get<'a>(&'a self, space: &'a PageSpace, at: usize) -> Content<'a> {
        Content { mac: self.macs[at], space, pages: &self.pages[self.start(at)..self.ends[at] as usize] }
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    /// The first page of a content, if there are so many.
    fn first_page(&self, at: usize) -> Option<u32> {
        (at < self.macs.len()).then(|| self.pages[self.start(at)])
    }
}

/// Merges the groups, each of them in address order, some pages at a time.
struct AddressWalk<'a> {
    contents: &'a Contents,
    /// In each group, the first content that was not yet given.
    cursors: Vec<usize>,
    /// (first page, content), sorted as one number.
    sorted: Vec<u64>,
}

impl AddressWalk<'_> {
    fn next_part(&mut self) -> Option<Vec<u32>> {
        let groups = &self.contents.groups;
        let firsts = groups.iter().zip(&self.cursors).filter_map(|(group, at)| group.first_page(*at));
        let part = firsts.min()? >> SORTED_PAGES_LOG2;
        self.sorted.clear();
        for ((group, base), cursor) in groups.iter().zip(&self.contents.bases).zip(&mut self.cursors) {
            while let Some(page) = group.first_page(*cursor).filter(|page| page >> SORTED_PAGES_LOG2 == part)
            {
                self.sorted.push((u64::from(page) << 32) | u64::from(base + *cursor as u32));
                *cursor += 1;
            }
        }
        self.sorted.sort_unstable();
        Some(self.sorted.iter().map(|entry| *entry as u32).collect())
    }
}
