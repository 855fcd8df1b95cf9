//! Bodies of frames: page data as it stands in the pieces' payloads, compressed as one piece when that pays.
//!
//! ```text
//! body   = form 1 │ plain length 4 │ plain bytes, or one zstd frame that holds them
//! ```
//!
//! The plain bytes of a scatter frame ([`Encoder::scatter`], [`ScatterBody`]) and of a VM's stream frame
//! ([`StreamFrameBuilder`], [`StreamBody`]) keep what describes the pages apart from the pages, so that each
//! compresses among its like. Numbers in the descriptions are LEB128, in their shortest form only.
//!
//! A decoder checks a body as a whole before it shows anything of it, so that what it shows needs no further check
//! but whether VM, block and page exist.

mod scatter;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;

use zstd::bulk::{Compressor, Decompressor};

pub use scatter::ScatterBody;
pub use stream::{FrameFull, StreamBody, StreamFrameBuilder, StreamItem};

use crate::limits::FRAME_BODY_BYTES_MAX;
use crate::page::PageAddr;

/// Pages that the zero runs of one stream frame cover together: 4 GiB.
pub const STREAM_ZERO_PAGES_MAX: u64 = 1 << 20;

const FORM_PLAIN: u8 = 0;
const FORM_ZSTD: u8 = 1;
const HEAD_BYTES: usize = 5;

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As one zstd frame of this level, where that is at least a sixteenth shorter.
    Zstd(i32),
}

/// Why bytes are no frame body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends before what it announces.
    #[error("frame body is cut short")]
    Short,
    /// More bytes, pages or addresses than the named limit allows.
    #[error("frame body exceeds {0}")]
    Limit(&'static str),
    /// A form of body that this version does not know.
    #[error("frame body of form {0}")]
    Form(u8),
    /// The compressed bytes don't decompress to what is announced.
    #[error("frame body does not decompress")]
    Compressed,
    /// A description that no encoder writes.
    #[error("malformed frame body: {0}")]
    Malformed(&'static str),
    /// What is to be encoded breaks a rule that decoders enforce.
    #[error("frame can't be encoded: {0}")]
    Refused(&'static str),
}

/// Encodes bodies, one after another, with contexts and buffers that are kept. One per thread.
#[derive(Default)]
pub struct Encoder {
    zstd: Option<(i32, Compressor<'static>)>,
    plain: Vec<u8>,
}

impl Encoder {
    /// An encoder; its zstd context is made on first use.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes a scatter frame: contents, each with the addresses that hold it (sorted, none twice) and its 4096
    /// bytes.
    ///
    /// # Errors
    /// [`FrameError::Limit`] or [`FrameError::Refused`] where a decoder would not take it.
    pub fn scatter<'a>(
        &mut self,
        contents: impl Iterator<Item = (&'a [PageAddr], &'a [u8])>,
        compression: Compression,
    ) -> Result<Vec<u8>, FrameError> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let body = scatter::write_plain(contents, &mut plain).map(|()| self.pack(&plain, compression));
        self.plain = plain;
        body
    }

    /// The body for these plain bytes, at most `FRAME_BODY_BYTES_MAX` of them.
    fn pack(&mut self, plain: &[u8], compression: Compression) -> Vec<u8> {
        debug_assert!(plain.len() <= FRAME_BODY_BYTES_MAX);
        let mut body = vec![0; HEAD_BYTES + plain.len()];
        body[1..HEAD_BYTES].copy_from_slice(&(plain.len() as u32).to_be_bytes());
        if let Compression::Zstd(level) = compression {
            // The buffer ends where compression stops to pay, so that zstd gives up there.
            let worth = HEAD_BYTES + plain.len() - plain.len() / 16;
            if let Ok(len) = self.compressor(level).compress_to_buffer(plain, &mut body[HEAD_BYTES..worth]) {
                body[0] = FORM_ZSTD;
                body.truncate(HEAD_BYTES + len);
                body.shrink_to_fit();
                return body;
            }
        }
        body[0] = FORM_PLAIN;
        body[HEAD_BYTES..].copy_from_slice(plain);
        body
    }

    fn compressor(&mut self, level: i32) -> &mut Compressor<'static> {
        if self.zstd.as_ref().is_none_or(|(of, _)| *of != level) {
            self.zstd = Some((level, Compressor::new(level).expect("zstd has memory for a context")));
        }
        &mut self.zstd.as_mut().expect("made above").1
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

/// Decodes bodies, one after another, with contexts and buffers that are kept. One per thread.
pub struct Decoder {
    zstd: Decompressor<'static>,
    plain: Vec<u8>,
    addrs: Vec<PageAddr>,
    ends: Vec<u32>,
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Self {
        let zstd = Decompressor::new().expect("zstd has memory for a context");
        Decoder { zstd, plain: Vec::new(), addrs: Vec::new(), ends: Vec::new() }
    }

    /// Decodes and checks a scatter frame's body.
    ///
    /// # Errors
    /// [`FrameError`]; VM, block and page numbers are the caller's to check.
    pub fn scatter<'a>(&'a mut self, body: &'a [u8]) -> Result<ScatterBody<'a>, FrameError> {
        let plain = unpack(&mut self.zstd, &mut self.plain, body)?;
        scatter::read_plain(plain, &mut self.addrs, &mut self.ends)
    }

    /// Decodes and checks a stream frame's body.
    ///
    /// # Errors
    /// [`FrameError`]; block and page numbers are the caller's to check.
    pub fn stream<'a>(&'a mut self, body: &'a [u8]) -> Result<StreamBody<'a>, FrameError> {
        stream::read_plain(unpack(&mut self.zstd, &mut self.plain, body)?)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

fn unpack<'a>(
    zstd: &mut Decompressor<'_>,
    scratch: &'a mut Vec<u8>,
    body: &'a [u8],
) -> Result<&'a [u8], FrameError> {
    let (head, rest) = body.split_at_checked(HEAD_BYTES).ok_or(FrameError::Short)?;
    let plain_bytes = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
    if plain_bytes > FRAME_BODY_BYTES_MAX {
        return Err(FrameError::Limit("FRAME_BODY_BYTES_MAX"));
    }
    match head[0] {
        FORM_PLAIN if rest.len() == plain_bytes => Ok(rest),
        FORM_PLAIN => Err(FrameError::Short),
        FORM_ZSTD => {
            if scratch.len() < plain_bytes {
                scratch.resize(plain_bytes, 0);
            }
            let plain = &mut scratch[..plain_bytes];
            // What does not fit into `plain` is an error, so no more is ever decompressed.
            let len = zstd.decompress_to_buffer(rest, plain).map_err(|_| FrameError::Compressed)?;
            if len == plain_bytes { Ok(plain) } else { Err(FrameError::Compressed) }
        }
        form => Err(FrameError::Form(form)),
    }
}

/// Appends `value` as LEB128.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What is left to read of a description.
#[derive(Clone, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(FrameError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.bytes(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, FrameError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(value) } else { Err(FrameError::Malformed("padded number")) };
            }
        }
        Err(FrameError::Malformed("number beyond 64 bits"))
    }

    fn varint_as<T: TryFrom<u64>>(&mut self) -> Result<T, FrameError> {
        T::try_from(self.varint()?).map_err(|_| FrameError::Malformed("number out of range"))
    }
}
