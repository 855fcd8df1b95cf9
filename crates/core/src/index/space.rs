//! All pages of all guests, numbered in 32 bits.

use thiserror::Error;

use crate::limits::SESSION_VMS_MAX;
use crate::page::PageAddr;

/// Pages of one [`Window`] at most: 2^12, which is 16 MiB.
const WINDOW_PAGES_LOG2: u32 = 12;
/// So that numbers fit 32 bits: 16 TiB of guests, a block's last window counted in full.
const WINDOWS_MAX: usize = 1 << (32 - WINDOW_PAGES_LOG2);

/// A number for each page of a session's guests, so that an address takes 4 bytes instead of 8. Numbers sort
/// as addresses do. 12 bytes for each 16 MiB of guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSpace {
    /// Ascending.
    windows: Vec<Window>,
}

/// Neighbouring pages of one block: what a thread reads at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first of them.
    pub first: PageAddr,
    /// How many, at least one.
    pub pages: u32,
}

/// Why the guests' pages can't be numbered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PageSpaceError {
    /// The limit of a session is exceeded.
    #[error("{0} VMs; a session has at most {SESSION_VMS_MAX}")]
    TooManyVms(usize),
    /// The guests have more memory together than 32 bits can number the pages of.
    #[error("the VMs have more than 16 TiB of memory together")]
    TooManyPages,
}

impl PageSpace {
    /// `vms` gives for each VM its RAM blocks, that is the number and the size in pages of each.
    ///
    /// # Errors
    /// If a limit is exceeded.
    pub fn new(vms: &[Vec<(u16, u32)>]) -> Result<Self, PageSpaceError> {
        if vms.len() > SESSION_VMS_MAX {
            return Err(PageSpaceError::TooManyVms(vms.len()));
        }
        let mut windows = Vec::new();
        for (vm, blocks) in (0..).zip(vms) {
            let mut blocks = blocks.clone();
            blocks.sort_unstable();
            for (block, size) in blocks {
                let count = size.div_ceil(1 << WINDOW_PAGES_LOG2) as usize;
                if windows.len() + count > WINDOWS_MAX {
                    return Err(PageSpaceError::TooManyPages);
                }
                windows.extend((0..size).step_by(1 << WINDOW_PAGES_LOG2).map(|page| Window {
                    first: PageAddr { vm, block, page },
                    pages: (size - page).min(1 << WINDOW_PAGES_LOG2),
                }));
            }
        }
        Ok(PageSpace { windows })
    }

    /// All pages, in windows, ascending.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The number of the page at `addr`, if there is one. Takes log n time in the windows; within a window
    /// the numbers ascend by one.
    pub fn number(&self, addr: PageAddr) -> Option<u32> {
        let at = self.windows.partition_point(|window| window.first <= addr).checked_sub(1)?;
        let window = &self.windows[at];
        let same = (window.first.vm, window.first.block) == (addr.vm, addr.block);
        let offset =
            addr.page.checked_sub(window.first.page).filter(|offset| same && *offset < window.pages)?;
        Some(((at as u32) << WINDOW_PAGES_LOG2) | offset)
    }

    /// The address of the page with this number.
    ///
    /// # Panics
    /// If [`PageSpace::number`] gave no such number.
    pub fn addr(&self, number: u32) -> PageAddr {
        let first = self.windows[(number >> WINDOW_PAGES_LOG2) as usize].first;
        PageAddr { page: first.page + (number & ((1 << WINDOW_PAGES_LOG2) - 1)), ..first }
    }
}
