//! QEMU's precopy migration stream, versions 7.2 to 10.x: bytes in, events out, and back.
//!
//! - [`Parser`] takes the forward stream apart: what the target must get verbatim, and the pages.
//! - [`Composer`] writes a stream for a target QEMU from the verbatim parts and from pages in any order.
//! - [`ReturnParser`] reads the messages that the target QEMU sends back.
//!
//! The stream, all integers big-endian (QEMU's `migration/savevm.c` and `migration/ram.c`):
//!
//! ```text
//! "QEVM" version=3
//! 07 machine name, subsections 05 …         configuration
//! 08 command …                              OPEN_RETURN_PATH, PING
//! 01 START "ram": total, blocks, EOS, 7e    RAM block list
//! 02 PART:  records …, EOS, 7e              any number
//! 08 SWITCHOVER_START                       10.0 on
//! 03 END:   records …, EOS, 7e              guest is stopped
//! device sections, 00, description          opaque to us
//! ```
//!
//! No section carries its length, so what the parser does not know it cannot skip: it refuses it by name, and that
//! VM's migration ends while the guest goes on at the source.

mod composer;
mod error;
mod parser;
mod return_path;
#[cfg(test)]
mod tests;

pub use composer::{ComposeError, Composer};
pub use error::{Name, ParseError, ParseErrorKind};
pub use parser::{Event, Parser};
/// SHUT(0), the return path's last message, as QEMU writes it: the gate of every hand-off.
pub const SHUT_OK: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

pub use return_path::{ReturnError, ReturnErrorKind, ReturnMessage, ReturnParser};

use crate::page::PAGE_SIZE;

/// One RAM block as the stream's START section lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// QEMU's name (`idstr`), e.g. `pc.ram` or `0000:00:02.0/vga.vram`.
    pub name: String,
    /// Bytes in use, a multiple of the page size, at most [`BLOCK_PAGES_MAX`](crate::limits::BLOCK_PAGES_MAX) pages.
    pub bytes: u64,
}

impl RamBlock {
    /// Pages in use.
    pub fn pages(&self) -> u64 {
        self.bytes / PAGE_SIZE as u64
    }
}

/// The stream's first bytes, by which the main channel is told from a multifd channel.
pub const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;

/// Types of sections (`QEMU_VM_*` in `migration/savevm.h`).
mod section {
    pub(super) const EOF: u8 = 0x00;
    pub(super) const START: u8 = 0x01;
    pub(super) const PART: u8 = 0x02;
    pub(super) const END: u8 = 0x03;
    pub(super) const FULL: u8 = 0x04;
    pub(super) const SUBSECTION: u8 = 0x05;
    pub(super) const CONFIGURATION: u8 = 0x07;
    pub(super) const COMMAND: u8 = 0x08;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// Flags in the low bits of a RAM record's header (`RAM_SAVE_FLAG_*` in `migration/ram.c`).
mod flag {
    pub(super) const MASK: u64 = 0xfff;
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const MEM_SIZE: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const EOS: u64 = 0x10;
    pub(super) const CONTINUE: u64 = 0x20;
    pub(super) const MULTIFD_FLUSH: u64 = 0x200;
}

/// The big-endian integers at `at`, `None` where the bytes end before.
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes(b.try_into().expect("two bytes")))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().expect("four bytes")))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).map(|b| u64::from_be_bytes(b.try_into().expect("eight bytes")))
}
