//! Shared guest memory, mapped here for a moment, so that it can be looked at without a copy.
//!
//! Three dangers, and what is done about them:
//! - Behind the end of a file that was cut short there is SIGBUS. Only files that are sealed against shrinking are mapped
//!   (`F_SEAL_SHRINK`, fcntl(2)), as QEMU seals its memfds unless it is told not to.
//! - A page that can't be had (broken memory, a failed swap-in) is SIGBUS too. All are asked for before they are touched, and
//!   then it is an error (`MADV_POPULATE_READ`, madvise(2)).
//! - To touch a hole fills it, and the guest grows. Callers touch what holds data already; in a file system that does not
//!   tell holes (hugetlbfs) nothing is mapped.
//!
//! A view is short-lived and small, so that guests' memory does not count as ours for long.

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// Whether parts of the file may be mapped.
pub(super) fn is_mappable(file: &File) -> bool {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_truncate);
    let in_memory = fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC);
    seals.contains(SealFlag::F_SEAL_SHRINK) && in_memory
}

/// A part of a file, mapped for reading.
pub(super) struct View {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

impl View {
    /// Maps `bytes` from `offset` on, whole pages of a file that [`is_mappable`]; `None` if that fails, so that they have to
    /// be read another way.
    pub(super) fn new(file: &File, offset: u64, bytes: usize) -> Option<View> {
        let bytes = NonZeroUsize::new(bytes)?;
        let offset = i64::try_from(offset).ok()?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file.as_fd(), offset) };
        let view = View { start: start.ok()?, bytes };
        // SAFETY: the range is exactly the mapping above, and what it holds does not change.
        unsafe { madvise(view.start, bytes.get(), MmapAdvise::MADV_POPULATE_READ) }.ok()?;
        Some(view)
    }

    /// The bytes. The guest may write meanwhile: whoever reads them twice may see two things.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, as large, and lives as long as `self`; its file can't shrink. That another
        // process writes to it is outside of what Rust knows. Bytes have no invalid values, and those who get this slice
        // only test it for zero and pass it on to the MAC, whose code is C: nothing is decided by reading a byte again.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>().as_ptr(), self.bytes.get()) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and slices of it have ended with `self`.
        if let Err(error) = unsafe { munmap(self.start, self.bytes.get()) } {
            tracing::warn!("a view of guest memory can't be unmapped: {error}");
        }
    }
}
