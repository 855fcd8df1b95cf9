//! Writes a stream for a target QEMU.

use thiserror::Error;

use super::{RamBlock, flag, section};
use crate::limits::{PART_BYTES_MAX, ZERO_RUN_PAGES_MAX};
use crate::page::PAGE_SIZE;

/// A page or section that does not fit the stream; it came from a peer, so the stream must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ComposeError {
    /// Before [`Composer::ram_start`] or after [`Composer::ram_end`].
    #[error("a page outside the RAM section")]
    NotInRam,
    /// A second RAM START.
    #[error("the RAM section was started before")]
    Started,
    /// No such place in the block list.
    #[error("no RAM block number {0}")]
    Block(u16),
    /// A page behind its block's end.
    #[error("page {page} lies outside RAM block number {block}")]
    Page {
        /// Place in the block list.
        block: u16,
        /// Number in the block.
        page: u32,
    },
    /// Content of another length than a page.
    #[error("a page of {0} bytes")]
    PageBytes(usize),
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Ram,
    Tail,
}

/// Composes the stream that a target QEMU loads, from verbatim parts and from pages in any order.
///
/// All output is appended to the caller's buffer. RAM PART sections are opened on the first page and closed by
/// themselves before anything that is not a page; a record names its block only where the one before it was of
/// another block, as the loader remembers it over sections (`mis->last_recv_block` in QEMU).
#[derive(Debug)]
pub struct Composer {
    phase: Phase,
    section_id: u32,
    blocks: Vec<RamBlock>,
    last_block: Option<u16>,
    /// Bytes written into the open PART.
    part_bytes: Option<usize>,
}

impl Default for Composer {
    fn default() -> Self {
        Self::new()
    }
}

impl Composer {
    /// A composer at the stream's first byte.
    pub fn new() -> Self {
        Composer { phase: Phase::Head, section_id: 0, blocks: Vec::new(), last_block: None, part_bytes: None }
    }

    /// Appends bytes of [`Event::Raw`](super::Event::Raw), after closing an open PART.
    pub fn raw(&mut self, out: &mut Vec<u8>, bytes: &[u8]) {
        self.flush(out);
        out.extend_from_slice(bytes);
    }

    /// Takes note of the RAM START section, whose bytes were given to [`Composer::raw`] before.
    ///
    /// # Errors
    /// If there was one before.
    pub fn ram_start(&mut self, section_id: u32, blocks: Vec<RamBlock>) -> Result<(), ComposeError> {
        if self.phase != Phase::Head {
            return Err(ComposeError::Started);
        }
        self.phase = Phase::Ram;
        self.section_id = section_id;
        self.blocks = blocks;
        Ok(())
    }

    /// The blocks told at [`Composer::ram_start`].
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Appends a page's content.
    ///
    /// # Errors
    /// If there is no such page, or `data` is not [`PAGE_SIZE`] bytes long; nothing was written then.
    pub fn page(
        &mut self,
        out: &mut Vec<u8>,
        block: u16,
        page: u32,
        data: &[u8],
    ) -> Result<(), ComposeError> {
        if data.len() != PAGE_SIZE {
            return Err(ComposeError::PageBytes(data.len()));
        }
        self.check(block, page, 1)?;
        self.record(out, flag::PAGE, block, page);
        out.extend_from_slice(data);
        self.count(out, PAGE_SIZE);
        Ok(())
    }

    /// Appends a page that is zero throughout.
    ///
    /// # Errors
    /// If there is no such page; nothing was written then.
    pub fn zero(&mut self, out: &mut Vec<u8>, block: u16, page: u32) -> Result<(), ComposeError> {
        self.zero_run(out, block, page, 1).map(|_| ())
    }

    /// Appends up to [`ZERO_RUN_PAGES_MAX`] of `count` zero pages from `first` on, and returns how many: a run of
    /// a few bytes can stand for gigabytes of records, so the caller goes on as its buffer drains.
    ///
    /// # Errors
    /// If the run does not lie within a block; nothing was written then.
    pub fn zero_run(
        &mut self,
        out: &mut Vec<u8>,
        block: u16,
        first: u32,
        count: u32,
    ) -> Result<u32, ComposeError> {
        self.check(block, first, count)?;
        let written = count.min(ZERO_RUN_PAGES_MAX);
        for page in first..first + written {
            self.record(out, flag::ZERO, block, page);
            out.push(0);
            self.count(out, 1);
        }
        Ok(written)
    }

    /// Closes an open PART.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if self.part_bytes.take().is_some() {
            self.close(out);
        }
    }

    /// Appends the RAM END section: no page can follow.
    ///
    /// # Errors
    /// Outside the RAM section.
    pub fn ram_end(&mut self, out: &mut Vec<u8>) -> Result<(), ComposeError> {
        if self.phase != Phase::Ram {
            return Err(ComposeError::NotInRam);
        }
        self.flush(out);
        self.phase = Phase::Tail;
        out.push(section::END);
        out.extend_from_slice(&self.section_id.to_be_bytes());
        self.close(out);
        Ok(())
    }

    fn check(&self, block: u16, first: u32, count: u32) -> Result<(), ComposeError> {
        if self.phase != Phase::Ram {
            return Err(ComposeError::NotInRam);
        }
        let pages = self.blocks.get(usize::from(block)).ok_or(ComposeError::Block(block))?.pages();
        if u64::from(first) + u64::from(count) > pages {
            return Err(ComposeError::Page { block, page: first });
        }
        Ok(())
    }

    /// A record's header, in a PART that is opened for it if need be.
    fn record(&mut self, out: &mut Vec<u8>, flags: u64, block: u16, page: u32) {
        let start = out.len();
        if self.part_bytes.is_none() {
            out.push(section::PART);
            out.extend_from_slice(&self.section_id.to_be_bytes());
        }
        let header = (u64::from(page) * PAGE_SIZE as u64) | flags;
        if self.last_block == Some(block) {
            out.extend_from_slice(&(header | flag::CONTINUE).to_be_bytes());
        } else {
            let name = self.blocks[usize::from(block)].name.as_bytes();
            out.extend_from_slice(&header.to_be_bytes());
            // Block names have at most 255 bytes, or they could not have been received.
            out.push(name.len() as u8);
            out.extend_from_slice(name);
            self.last_block = Some(block);
        }
        self.part_bytes = Some(self.part_bytes.unwrap_or_default() + out.len() - start);
    }

    /// Counts a record's payload and closes a PART that is long enough.
    fn count(&mut self, out: &mut Vec<u8>, payload_bytes: usize) {
        let bytes = self.part_bytes.unwrap_or_default() + payload_bytes;
        self.part_bytes = Some(bytes);
        if bytes >= PART_BYTES_MAX {
            self.flush(out);
        }
    }

    fn close(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&flag::EOS.to_be_bytes());
        out.push(section::FOOTER);
        out.extend_from_slice(&self.section_id.to_be_bytes());
    }
}
