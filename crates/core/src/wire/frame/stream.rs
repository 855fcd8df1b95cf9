//! Plain bytes of a VM's stream frame.
//!
//! ```text
//! plain  = bytes of items 4 │ items │ pages of 4096 bytes, in the items' order
//! item   = 1, length 4, bytes           raw bytes of QEMU's stream
//!        | 2, section id                a RAM section begins
//!        | 3                            it ends
//!        | 4, block, first, count       consecutive pages; their bytes follow behind the items
//!        | 5, block, first, count       consecutive pages that are zero
//! ```
//!
//! A RAM section may go on from one frame into the next; that begin and end alternate is the reader's to check.

use super::{Compression, Encoder, FrameError, Reader, STREAM_ZERO_PAGES_MAX, put_varint};
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_PAGES_MAX};
use crate::page::PAGE_SIZE;

const RAW: u8 = 1;
const RAM_START: u8 = 2;
const RAM_END: u8 = 3;
const PAGES: u8 = 4;
const ZERO: u8 = 5;

/// The length of an item other than its raw bytes is at most this.
const ITEM_BYTES_MAX: usize = 16;

/// What stands in a stream frame, in QEMU's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamItem<'a> {
    /// Bytes outside RAM sections, as QEMU wrote them; a frame may cut them anywhere.
    Raw(&'a [u8]),
    /// A RAM section begins.
    RamStart {
        /// QEMU's section id.
        section_id: u32,
    },
    /// A page within a RAM section.
    Page {
        /// The block, in QEMU's order.
        block: u16,
        /// The page, from the block's start.
        page: u32,
        /// Its content.
        data: &'a [u8; PAGE_SIZE],
    },
    /// Pages within a RAM section that are zero.
    Zero {
        /// The block, in QEMU's order.
        block: u16,
        /// The first page, from the block's start.
        first: u32,
        /// How many, at least one; `first + count` is at most 2^32.
        count: u32,
    },
    /// The RAM section ends.
    RamEnd,
}

/// The frame has no room for this: finish it and put this into the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream frame is full")]
pub struct FrameFull;

/// Collects what one VM's stream says, in its order, until a frame is full.
#[derive(Debug, Default)]
pub struct StreamFrameBuilder {
    items: Vec<u8>,
    pages: Vec<u8>,
    zero_pages: u64,
    open: Open,
}

/// The last item, while it may grow.
#[derive(Clone, Copy, Debug, Default)]
enum Open {
    #[default]
    Nothing,
    /// Where its length stands.
    Raw(usize),
    Pages(Run),
    Zero(Run),
}

#[derive(Clone, Copy, Debug)]
struct Run {
    block: u16,
    first: u32,
    count: u32,
}

impl Run {
    fn goes_on_with(&self, block: u16, first: u32) -> bool {
        self.block == block && u64::from(self.first) + u64::from(self.count) == u64::from(first)
    }
}

impl StreamFrameBuilder {
    /// An empty frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds raw bytes; next to others they become one item.
    ///
    /// # Errors
    /// [`FrameFull`] if they are more than [`StreamFrameBuilder::raw_room`]; nothing is added then.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), FrameFull> {
        if bytes.len() > self.raw_room() {
            return Err(FrameFull);
        }
        let Open::Raw(at) = self.open else {
            self.close_item();
            self.items.push(RAW);
            self.open = Open::Raw(self.items.len());
            self.items.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            self.items.extend_from_slice(bytes);
            return Ok(());
        };
        self.items.extend_from_slice(bytes);
        let len = (self.items.len() - at - 4) as u32;
        self.items[at..at + 4].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }

    /// How many raw bytes the frame still takes.
    pub fn raw_room(&self) -> usize {
        FRAME_BODY_BYTES_MAX.saturating_sub(self.len() + ITEM_BYTES_MAX)
    }

    /// Adds a page.
    ///
    /// # Errors
    /// [`FrameFull`]; nothing is added then.
    pub fn page(&mut self, block: u16, page: u32, data: &[u8; PAGE_SIZE]) -> Result<(), FrameFull> {
        if self.page_count() == FRAME_PAGES_MAX || self.raw_room() < PAGE_SIZE {
            return Err(FrameFull);
        }
        match &mut self.open {
            Open::Pages(run) if run.goes_on_with(block, page) => run.count += 1,
            _ => {
                self.close_item();
                self.open = Open::Pages(Run { block, first: page, count: 1 });
            }
        }
        self.pages.extend_from_slice(data);
        Ok(())
    }

    /// Adds pages that are zero; next to their neighbours they become one run.
    ///
    /// # Errors
    /// [`FrameFull`]; nothing is added then. `count` is from 1 to [`STREAM_ZERO_PAGES_MAX`], else no frame takes it.
    pub fn zero_run(&mut self, block: u16, first: u32, count: u32) -> Result<(), FrameFull> {
        let total = self.zero_pages + u64::from(count);
        if count == 0 || total > STREAM_ZERO_PAGES_MAX || self.raw_room() == 0 {
            return Err(FrameFull);
        }
        match &mut self.open {
            Open::Zero(run) if run.goes_on_with(block, first) => run.count += count,
            _ => {
                self.close_item();
                self.open = Open::Zero(Run { block, first, count });
            }
        }
        self.zero_pages = total;
        Ok(())
    }

    /// A RAM section begins.
    ///
    /// # Errors
    /// [`FrameFull`]; nothing is added then.
    pub fn ram_start(&mut self, section_id: u32) -> Result<(), FrameFull> {
        self.mark(RAM_START)?;
        put_varint(&mut self.items, section_id.into());
        Ok(())
    }

    /// The RAM section ends.
    ///
    /// # Errors
    /// [`FrameFull`]; nothing is added then.
    pub fn ram_end(&mut self) -> Result<(), FrameFull> {
        self.mark(RAM_END)
    }

    fn mark(&mut self, item: u8) -> Result<(), FrameFull> {
        if self.raw_room() == 0 {
            return Err(FrameFull);
        }
        self.close_item();
        self.items.push(item);
        Ok(())
    }

    /// Plain bytes so far; an upper bound.
    pub fn len(&self) -> usize {
        4 + self.items.len()
            + self.pages.len()
            + if let Open::Nothing = self.open { 0 } else { ITEM_BYTES_MAX }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && matches!(self.open, Open::Nothing)
    }

    /// Pages added with their bytes.
    pub fn page_count(&self) -> usize {
        self.pages.len() / PAGE_SIZE
    }

    /// Pages added as zero.
    pub fn zero_pages(&self) -> u64 {
        self.zero_pages
    }

    /// The frame's body; the builder is empty afterwards.
    pub fn finish(&mut self, compression: Compression, encoder: &mut Encoder) -> Vec<u8> {
        self.close_item();
        let mut plain = std::mem::take(&mut encoder.plain);
        plain.clear();
        plain.extend_from_slice(&(self.items.len() as u32).to_be_bytes());
        plain.extend_from_slice(&self.items);
        plain.extend_from_slice(&self.pages);
        self.items.clear();
        self.pages.clear();
        self.zero_pages = 0;
        let body = encoder.pack(&plain, compression);
        encoder.plain = plain;
        body
    }

    fn close_item(&mut self) {
        let (item, run) = match std::mem::take(&mut self.open) {
            Open::Nothing | Open::Raw(_) => return,
            Open::Pages(run) => (PAGES, run),
            Open::Zero(run) => (ZERO, run),
        };
        self.items.push(item);
        put_varint(&mut self.items, run.block.into());
        put_varint(&mut self.items, run.first.into());
        put_varint(&mut self.items, run.count.into());
    }
}

/// The checked contents of a stream frame.
#[derive(Clone, Copy, Debug)]
pub struct StreamBody<'a> {
    items: &'a [u8],
    pages: &'a [u8],
}

impl<'a> StreamBody<'a> {
    /// What the frame says, in QEMU's order.
    pub fn items(&self) -> StreamItems<'a> {
        StreamItems { reader: Reader(self.items), pages: self.pages, run: None }
    }

    /// Pages that stand in the frame with their bytes.
    pub fn page_count(&self) -> usize {
        self.pages.len() / PAGE_SIZE
    }
}

/// An item with runs of pages still in one.
enum Item<'a> {
    Raw(&'a [u8]),
    RamStart(u32),
    RamEnd,
    Pages(Run),
    Zero(Run),
}

fn read_item<'a>(reader: &mut Reader<'a>) -> Result<Item<'a>, FrameError> {
    Ok(match reader.byte()? {
        RAW => {
            let len = u32::from_be_bytes(reader.bytes(4)?.try_into().expect("four bytes"));
            Item::Raw(reader.bytes(len as usize)?)
        }
        RAM_START => Item::RamStart(reader.varint_as()?),
        RAM_END => Item::RamEnd,
        PAGES => Item::Pages(read_run(reader)?),
        ZERO => Item::Zero(read_run(reader)?),
        _ => return Err(FrameError::Malformed("unknown item")),
    })
}

fn read_run(reader: &mut Reader<'_>) -> Result<Run, FrameError> {
    let run = Run { block: reader.varint_as()?, first: reader.varint_as()?, count: reader.varint_as()? };
    if run.count == 0 || u64::from(run.first) + u64::from(run.count) > 1 << 32 {
        return Err(FrameError::Malformed("run of pages"));
    }
    Ok(run)
}

pub(super) fn read_plain(plain: &[u8]) -> Result<StreamBody<'_>, FrameError> {
    let mut reader = Reader(plain);
    let len = u32::from_be_bytes(reader.bytes(4)?.try_into().expect("four bytes"));
    let items = reader.bytes(len as usize)?;
    let pages = reader.0;
    let (mut reader, mut page_count, mut zero_pages) = (Reader(items), 0u64, 0u64);
    while !reader.0.is_empty() {
        match read_item(&mut reader)? {
            Item::Pages(run) => page_count += u64::from(run.count),
            Item::Zero(run) => zero_pages += u64::from(run.count),
            Item::Raw(_) | Item::RamStart(_) | Item::RamEnd => {}
        }
    }
    if page_count > FRAME_PAGES_MAX as u64 {
        return Err(FrameError::Limit("FRAME_PAGES_MAX"));
    }
    if zero_pages > STREAM_ZERO_PAGES_MAX {
        return Err(FrameError::Limit("STREAM_ZERO_PAGES_MAX"));
    }
    if pages.len() as u64 != page_count * PAGE_SIZE as u64 {
        return Err(FrameError::Malformed("pages and runs differ in number"));
    }
    Ok(StreamBody { items, pages })
}

/// Iterates over a [`StreamBody`].
#[derive(Clone, Debug)]
pub struct StreamItems<'a> {
    reader: Reader<'a>,
    pages: &'a [u8],
    run: Option<Run>,
}

impl<'a> Iterator for StreamItems<'a> {
    type Item = StreamItem<'a>;

    fn next(&mut self) -> Option<StreamItem<'a>> {
        if self.run.is_none() {
            if self.reader.0.is_empty() {
                return None;
            }
            match read_item(&mut self.reader).expect("the body was checked as a whole") {
                Item::Raw(bytes) => return Some(StreamItem::Raw(bytes)),
                Item::RamStart(section_id) => return Some(StreamItem::RamStart { section_id }),
                Item::RamEnd => return Some(StreamItem::RamEnd),
                Item::Zero(Run { block, first, count }) => {
                    return Some(StreamItem::Zero { block, first, count });
                }
                Item::Pages(run) => self.run = Some(run),
            }
        }
        let Run { block, first: page, count } = self.run?;
        self.run = (count > 1).then(|| Run { block, first: page + 1, count: count - 1 });
        let (data, rest) = self.pages.split_first_chunk().expect("the pages were counted");
        self.pages = rest;
        Some(StreamItem::Page { block, page, data })
    }
}
