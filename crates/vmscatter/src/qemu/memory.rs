//! A guest's memory, read from outside while the guest runs.
//!
//! What is read is a hint: the guest writes meanwhile, and the migration stream decides (rule 1). Every byte is copied
//! once, by the kernel, into the caller's buffer, and hash and payload come from that copy (rule 2): out of shared memory
//! with `pread`, by which a hole is not populated, and a QEMU that truncates its file gets us a short read and not a
//! SIGBUS; out of private memory with `process_vm_readv`. Where only a hash is wanted, and no payload, shared memory can
//! be [looked at](GuestMemory::look) in place, if it is such that neither can happen.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Whence, lseek64};
use thiserror::Error;
use vmscatter_core::limits::{BLOCK_PAGES_MAX, MEMORY_READ_BYTES};
use vmscatter_core::page::PAGE_SIZE;

use super::process::{Mapping, candidates, covering, mappings};
use super::qmp::{Qmp, QmpError};
use super::ramblock::{RamBlockInfo, ram_blocks};
use super::view::{View, is_mappable};

/// Copied at once out of shared memory: 64 KiB.
const SHARED_CHUNK_PAGES: u32 = 16;
/// Copied at once out of private memory: 1 MiB. Larger calls are cheaper where the guest has huge pages.
const PRIVATE_CHUNK_PAGES: u32 = 256;

/// Why a guest's memory can't be read.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The monitor did not tell the blocks.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// No process behind the monitor has the guest's largest block mapped where QEMU says.
    #[error("{path}: no process has RAM block {block} mapped at {address:#x}; is this QEMU on this host?", path = .path.display())]
    NoProcess {
        /// The monitor's socket.
        path: std::path::PathBuf,
        /// The guest's largest block.
        block: String,
        /// Where QEMU says it is, 0 if it does not.
        address: u64,
    },
    /// The process may not be read, or has ended.
    #[error("memory of process {pid}: {source}")]
    Process {
        /// QEMU's process.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A block that could not be found in the process.
    #[error("RAM block {0} can't be read from outside")]
    Unreadable(String),
    /// No such block, or pages behind its end.
    #[error("pages {first}.. of block number {block} do not exist")]
    Range {
        /// Place in [`GuestMemory::blocks`].
        block: usize,
        /// The first page asked for.
        first: u32,
    },
}

/// A RAM block and whether it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMapping {
    /// QEMU's name, as in the stream.
    pub name: String,
    /// Bytes in use.
    pub bytes: u64,
    /// Whether [`GuestMemory::read`] works on it. Device memory that QEMU before 8.0 does not locate is not; the
    /// stream carries it anyway.
    pub readable: bool,
}

/// Where a block's bytes are read.
#[derive(Debug)]
enum Backing {
    Unknown,
    /// In a file that the guest's memory is a shared mapping of.
    Shared {
        file: File,
        offset: u64,
        /// Where QEMU has it mapped.
        address: u64,
        /// Whether parts of it may be mapped here.
        mappable: bool,
    },
    /// In the process. Private and anonymous: a page that was never touched is zero.
    Private {
        address: u64,
        anonymous: bool,
    },
}

/// The memory of one running guest; see the [module](self).
///
/// The block list is that of the moment of opening. It is only read, never written.
#[derive(Debug)]
pub struct GuestMemory {
    pid: i32,
    /// Bound to the process's memory, not to its number: reads nothing once the process has ended.
    pagemap: File,
    blocks: Vec<BlockMapping>,
    backing: Vec<Backing>,
}

impl GuestMemory {
    /// Finds the guest behind a monitor.
    ///
    /// # Errors
    /// If its blocks or its process can't be found, or we may not read that process (root, or `CAP_SYS_PTRACE`).
    pub async fn locate(qmp: &Qmp) -> Result<GuestMemory, MemoryError> {
        let blocks = ram_blocks(qmp).await?;
        let Some(largest) = blocks.iter().max_by_key(|block| block.bytes) else {
            return Err(MemoryError::NoProcess {
                path: qmp.path().to_owned(),
                block: String::new(),
                address: 0,
            });
        };
        let mut refused = None;
        for pid in candidates(qmp) {
            match mappings(pid) {
                Ok(mappings) if largest.find(&mappings).is_some() => return GuestMemory::open(pid, &blocks),
                Ok(_) => {}
                Err(source) => refused = Some(MemoryError::Process { pid, source }),
            }
        }
        Err(refused.unwrap_or_else(|| MemoryError::NoProcess {
            path: qmp.path().to_owned(),
            block: largest.name.clone(),
            address: largest.host_address.unwrap_or_default(),
        }))
    }

    /// The blocks of the QEMU with process number `pid`. Those whose address is unknown or not mapped are unreadable.
    ///
    /// # Errors
    /// If the process may not be read or has ended.
    pub fn open(pid: i32, blocks: &[RamBlockInfo]) -> Result<GuestMemory, MemoryError> {
        let failed = |source| MemoryError::Process { pid, source };
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(failed)?;
        let mappings = mappings(pid).map_err(failed)?;
        let backing: Vec<_> = blocks.iter().map(|block| Backing::of(pid, block, &mappings)).collect();
        let blocks = blocks.iter().zip(&backing).map(|(block, backing)| BlockMapping {
            name: block.name.clone(),
            bytes: block.bytes,
            readable: !matches!(backing, Backing::Unknown),
        });
        Ok(GuestMemory { pid, pagemap, blocks: blocks.collect(), backing })
    }

    /// The guest's blocks, in QEMU's order.
    pub fn blocks(&self) -> &[BlockMapping] {
        &self.blocks
    }

    /// The place of the block with that name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.blocks.iter().position(|block| block.name == name)
    }

    /// QEMU's process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Pages that [`GuestMemory::read`] best copies at once out of a block: what its way out of the kernel costs is one
    /// part, what then remains in the core's second-level cache the other (docs/collect.md).
    pub fn chunk_pages(&self, block: usize) -> u32 {
        match self.backing.get(block) {
            Some(Backing::Shared { .. }) => SHARED_CHUNK_PAGES,
            _ => PRIVATE_CHUNK_PAGES,
        }
    }

    /// Shows pages of a block where they are, all at once, if that is possible without danger; false if not, and then they
    /// must be [read](GuestMemory::read). The guest may write meanwhile, so what is shown is good for a hash and no more.
    /// At most some 16 MiB should be asked for at once, all of them [populated](GuestMemory::populated).
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    pub fn look(
        &self,
        block: usize,
        pages: Range<u32>,
        show: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, MemoryError> {
        let start = self.check(block, pages.start, pages.len() as u64)?;
        let Backing::Shared { file, offset, mappable: true, .. } = &self.backing[block] else {
            return Ok(false);
        };
        let Some(view) = View::new(file, offset + start, pages.len() * PAGE_SIZE) else { return Ok(false) };
        show(view.bytes());
        Ok(true)
    }

    /// Copies pages of a block from page `first` on into `out`, which must be whole pages, best
    /// [`GuestMemory::chunk_pages`] of them.
    ///
    /// # Errors
    /// If the pages don't exist, the block is not readable, or the process has ended.
    ///
    /// # Panics
    /// If `out` is not a whole number of pages.
    pub fn read(&self, block: usize, first: u32, out: &mut [u8]) -> Result<(), MemoryError> {
        assert_eq!(out.len() % PAGE_SIZE, 0, "whole pages");
        let start = self.check(block, first, (out.len() / PAGE_SIZE) as u64)?;
        match &self.backing[block] {
            Backing::Unknown => Err(MemoryError::Unreadable(self.blocks[block].name.clone())),
            Backing::Shared { file, offset, .. } => {
                file.read_exact_at(out, offset + start).map_err(|source| self.failed(source))
            }
            Backing::Private { address, .. } => {
                self.read_process(address + start, out).map_err(|source| self.failed(source))
            }
        }
    }

    /// The ranges of `count` pages from `first` on that may hold data; all others were never touched and are zero.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    pub fn populated(&self, block: usize, first: u32, count: u32) -> Result<Vec<Range<u32>>, MemoryError> {
        let start = self.check(block, first, count.into())?;
        let pages = first..first + count;
        match &self.backing[block] {
            Backing::Unknown => Err(MemoryError::Unreadable(self.blocks[block].name.clone())),
            Backing::Shared { file, offset, address, .. } => {
                let touched =
                    self.touched(address + start, pages.clone()).map_err(|source| self.failed(source))?;
                shared_data(file, *offset, pages, &touched).map_err(|source| self.failed(source))
            }
            Backing::Private { anonymous: false, .. } => {
                Ok(if count == 0 { Vec::new() } else { vec![pages] })
            }
            Backing::Private { address, .. } => {
                self.touched(address + start, pages).map_err(|source| self.failed(source))
            }
        }
    }

    /// The byte at which page `first` of the block starts, if `count` pages from there on exist.
    fn check(&self, block: usize, first: u32, count: u64) -> Result<u64, MemoryError> {
        let bytes = self.blocks.get(block).map_or(0, |block| block.bytes);
        let end = u64::from(first) + count;
        if end > bytes / PAGE_SIZE as u64 || end >= BLOCK_PAGES_MAX {
            return Err(MemoryError::Range { block, first });
        }
        Ok(u64::from(first) * PAGE_SIZE as u64)
    }

    fn failed(&self, source: io::Error) -> MemoryError {
        MemoryError::Process { pid: self.pid, source }
    }

    fn read_process(&self, address: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = address as usize;
        for chunk in out.chunks_mut(MEMORY_READ_BYTES) {
            let len = chunk.len();
            let remote = [RemoteIoVec { base: at, len }];
            let read = process_vm_readv(Pid::from_raw(self.pid), &mut [IoSliceMut::new(chunk)], &remote)?;
            if read != len {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "part of the guest's memory is gone",
                ));
            }
            at += len;
        }
        // The number might be another process's by now, whose memory is nobody's business.
        self.read_pagemap(address, &mut [0; 8])
    }

    fn read_pagemap(&self, address: u64, entries: &mut [u8]) -> io::Result<()> {
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::NotFound, "the process has ended"),
            _ => error,
        };
        self.pagemap.read_exact_at(entries, address / PAGE_SIZE as u64 * 8).map_err(gone)
    }

    /// Pages that the process has touched, from the page map (Linux `Documentation/admin-guide/mm/pagemap.rst`).
    fn touched(&self, address: u64, pages: Range<u32>) -> io::Result<Vec<Range<u32>>> {
        /// Present, or swapped out.
        const TOUCHED: u64 = 0b11 << 62;
        let (mut ranges, mut entries) = (Vec::new(), [0; 8 * 1024]);
        let mut page = pages.start;
        while page < pages.end {
            let count = ((pages.end - page) as usize).min(entries.len() / 8);
            let entries = &mut entries[..count * 8];
            self.read_pagemap(address + u64::from(page - pages.start) * PAGE_SIZE as u64, entries)?;
            for entry in entries.chunks_exact(8) {
                let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
                if entry & TOUCHED != 0 {
                    push(&mut ranges, page..page + 1);
                }
                page += 1;
            }
        }
        Ok(ranges)
    }
}

impl RamBlockInfo {
    /// The mappings that hold the block, if its address is known and they cover it all.
    fn find<'a>(&self, mappings: &'a [Mapping]) -> Option<&'a [Mapping]> {
        covering(mappings, self.host_address?, self.bytes)
    }
}

impl Backing {
    fn of(pid: i32, block: &RamBlockInfo, mappings: &[Mapping]) -> Backing {
        let (Some(address), Some(found)) = (block.host_address, block.find(mappings)) else {
            return Backing::Unknown;
        };
        if let Some((file, offset)) = shared_file(pid, address, found) {
            let mappable = offset % PAGE_SIZE as u64 == 0 && is_mappable(&file);
            return Backing::Shared { file, offset, address, mappable };
        }
        let anonymous = found.iter().all(|mapping| mapping.inode == 0 && !mapping.shared);
        Backing::Private { address, anonymous }
    }
}

/// The file that all these mappings share, and where in it `address` lies.
fn shared_file(pid: i32, address: u64, mappings: &[Mapping]) -> Option<(File, u64)> {
    let first = mappings.first()?;
    let is_next = |pair: &[Mapping]| {
        let (a, b) = (&pair[0], &pair[1]);
        (a.inode, &a.device) == (b.inode, &b.device) && a.offset + (a.end - a.start) == b.offset
    };
    if first.inode == 0 || !mappings.iter().all(|mapping| mapping.shared) || !mappings.windows(2).all(is_next)
    {
        return None;
    }
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", first.start, first.end);
    let file = File::open(path).ok().or_else(|| open_descriptor(pid, first))?;
    let metadata = file.metadata().ok()?;
    // A device's memory (vfio, DAX) is not a file that can be read.
    (metadata.is_file() && metadata.ino() == first.inode)
        .then_some((file, first.offset + (address - first.start)))
}

/// The mapping's file through a descriptor that the process still has: `map_files` needs `CAP_CHECKPOINT_RESTORE`.
fn open_descriptor(pid: i32, mapping: &Mapping) -> Option<File> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    descriptors.filter_map(|entry| Some(entry.ok()?.path())).find_map(|path| {
        let metadata = fs::metadata(&path).ok()?;
        let device = format!("{:02x}:{:02x}", major(metadata.dev()), minor(metadata.dev()));
        let same = metadata.is_file() && metadata.ino() == mapping.inode && device == mapping.device;
        if same { File::open(path).ok() } else { None }
    })
}

/// The pages of `pages` (those of a block whose first byte is at `base`) that are not holes of the file. Those that QEMU has
/// touched are known not to be. Only the others are looked for in the file, where others may have written: the kernel looks
/// for a hole's beginning page by page, and would do so through all that follows a window in a guest that is full.
fn shared_data(
    file: &File,
    base: u64,
    pages: Range<u32>,
    touched: &[Range<u32>],
) -> io::Result<Vec<Range<u32>>> {
    let mut ranges = Vec::new();
    let mut at = pages.start;
    for known in touched {
        for found in data_ranges(file, base, at..known.start)? {
            push(&mut ranges, found);
        }
        push(&mut ranges, known.clone());
        at = known.end;
    }
    for found in data_ranges(file, base, at..pages.end)? {
        push(&mut ranges, found);
    }
    Ok(ranges)
}

/// The pages of `pages` that are not holes of the file.
fn data_ranges(file: &File, base: u64, pages: Range<u32>) -> io::Result<Vec<Range<u32>>> {
    let page = PAGE_SIZE as u64;
    let end = base + u64::from(pages.end) * page;
    let (mut ranges, mut at) = (Vec::new(), base + u64::from(pages.start) * page);
    while at < end {
        let data = match lseek64(file, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => break,
            // A file system that can't tell holes.
            Err(Errno::EINVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        if data >= end {
            break;
        }
        let hole = match lseek64(file, data as i64, Whence::SeekHole) {
            Ok(hole) => (hole as u64).min(end),
            Err(_) => end,
        };
        let (first, last) = ((data - base) / page, (hole - base).div_ceil(page));
        push(&mut ranges, first as u32..last as u32);
        at = hole.max(data + 1);
    }
    Ok(ranges)
}

/// Appends a range, joined to the last one where they touch.
fn push(ranges: &mut Vec<Range<u32>>, next: Range<u32>) {
    match ranges.last_mut() {
        Some(last) if last.end >= next.start => last.end = last.end.max(next.end),
        _ => ranges.push(next),
    }
}
