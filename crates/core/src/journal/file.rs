//! How records lie in the file.
//!
//! ```text
//! header:  magic (8)  id (16)  generation (8)  CRC-32 of these (4)
//! record:  mark (4)   length of the body (4)   synced (8)   CRC-32 of generation, length, synced, body (4)   body (postcard)
//! ```
//!
//! Integers are big-endian. `synced` is how much of the file was known to be on disk when the record was made. So
//! what a crash leaves behind can be judged: bytes that make no record are *torn* if no later record says that
//! they had been on disk; nobody has relied on them or on what follows, and the file is cut off there. If one does,
//! the disk has lost what it had promised, and no guess is made. The generation is new with each rewriting, so that old
//! blocks which show up behind a crash are no records.
//!
//! What can't be told from a torn end is damage to the very last synced record.

use super::{Book, Record, RecordError};
use crate::wire::control::Uuid;

/// A journal begins with this.
pub const MAGIC: [u8; 8] = *b"vmscjnl1";
/// Length of the header, in bytes.
pub const HEADER_BYTES: usize = 36;
/// Longest body of a record, in bytes.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Longest journal that is read, in bytes: compaction keeps it far below.
pub const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

const MARK: [u8; 4] = *b"\xa5vR1";
const RECORD_HEADER_BYTES: usize = 20;

/// Why a journal can't be read, and where; nothing can be concluded from it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged at byte {offset}: {fault}")]
pub struct FileError {
    /// Where, in bytes from the beginning.
    pub offset: u64,
    /// What.
    pub fault: FileFault,
}

/// What is wrong with a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// The header is cut off, or its sum is wrong.
    #[error("no journal of this version begins here")]
    Header,
    /// No record, though a later one says that it was on disk.
    #[error("a record that had been on disk is gone")]
    Lost,
    /// The record does not follow from those before it.
    #[error("{0}")]
    Record(RecordError),
}

/// Bytes at the end of a file that make no record; they are to be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// What a file says.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Where every guest stands.
    pub book: Book,
    /// The file's generation.
    pub generation: u64,
    /// How many bytes are good.
    pub end: u64,
    /// What is to be cut off behind them.
    pub torn: Option<Torn>,
}

/// The header of a new file.
pub fn header(id: &Uuid, generation: u64) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..24].copy_from_slice(id);
    out[24..32].copy_from_slice(&generation.to_be_bytes());
    let crc = crc32(&[&out[..32]]);
    out[32..].copy_from_slice(&crc.to_be_bytes());
    out
}

/// Appends a record to `out`; `synced` bytes of the file are on disk.
///
/// # Panics
/// If the body exceeds [`RECORD_BYTES_MAX`]: names, paths and lists in it are bounded far below by those who make them.
pub fn encode(record: &Record, generation: u64, synced: u64, out: &mut Vec<u8>) {
    let body = postcard::to_stdvec(record).unwrap_or_default();
    assert!(!body.is_empty() && body.len() <= RECORD_BYTES_MAX, "a record of {} bytes", body.len());
    let len = (body.len() as u32).to_be_bytes();
    let synced = synced.to_be_bytes();
    out.extend_from_slice(&MARK);
    out.extend_from_slice(&len);
    out.extend_from_slice(&synced);
    let crc = crc32(&[&generation.to_be_bytes(), &len, &synced, &body]);
    out.extend_from_slice(&crc.to_be_bytes());
    out.extend_from_slice(&body);
}

/// A whole file for a book: what compaction writes.
pub fn image(book: &Book, generation: u64) -> Vec<u8> {
    let mut out = header(&book.id, generation).to_vec();
    for record in book.vms().flat_map(super::VmRecord::records) {
        encode(&record, generation, 0, &mut out);
    }
    out
}

/// Reads a file.
///
/// # Errors
/// [`FileError`]: the file is no journal, or has lost what was on disk.
pub fn replay(file: &[u8]) -> Result<Replay, FileError> {
    let (id, generation) = read_header(file).ok_or(FileError { offset: 0, fault: FileFault::Header })?;
    let mut book = Book::new(id);
    let mut at = HEADER_BYTES;
    while let Some(found) = record_at(file, at, generation) {
        book.apply(&found.record)
            .map_err(|error| FileError { offset: at as u64, fault: FileFault::Record(error) })?;
        at = found.end;
    }
    let rest = (file.len() - at) as u64;
    let torn = (rest > 0).then_some(Torn { offset: at as u64, bytes: rest });
    if torn.is_some() && synced_behind(file, at, generation) > at as u64 {
        return Err(FileError { offset: at as u64, fault: FileFault::Lost });
    }
    Ok(Replay { book, generation, end: at as u64, torn })
}

fn read_header(file: &[u8]) -> Option<(Uuid, u64)> {
    let head = file.get(..HEADER_BYTES)?;
    let crc = u32::from_be_bytes(head[32..].try_into().ok()?);
    let good = head[..8] == MAGIC && crc == crc32(&[&head[..32]]);
    good.then_some((head[8..24].try_into().ok()?, u64::from_be_bytes(head[24..32].try_into().ok()?)))
}

struct Found {
    record: Record,
    synced: u64,
    end: usize,
}

fn record_at(file: &[u8], at: usize, generation: u64) -> Option<Found> {
    let head = file.get(at..at.checked_add(RECORD_HEADER_BYTES)?)?;
    let len: [u8; 4] = head[4..8].try_into().ok()?;
    let synced: [u8; 8] = head[8..16].try_into().ok()?;
    let crc = u32::from_be_bytes(head[16..20].try_into().ok()?);
    let bytes = u32::from_be_bytes(len) as usize;
    if head[..4] != MARK || bytes > RECORD_BYTES_MAX {
        return None;
    }
    let end = at + RECORD_HEADER_BYTES + bytes;
    let body = file.get(at + RECORD_HEADER_BYTES..end)?;
    if crc != crc32(&[&generation.to_be_bytes(), &len, &synced, body]) {
        return None;
    }
    match postcard::take_from_bytes(body) {
        Ok((record, [])) => Some(Found { record, synced: u64::from_be_bytes(synced), end }),
        _ => None,
    }
}

/// The most that any whole record from `at` on says to have been on disk.
fn synced_behind(file: &[u8], at: usize, generation: u64) -> u64 {
    let mut most = 0;
    let mut from = at;
    while let Some(step) = file[from..].windows(MARK.len()).position(|window| window == MARK) {
        from += step;
        match record_at(file, from, generation) {
            Some(found) => (most, from) = (found.synced.max(most), found.end),
            None => from += 1,
        }
    }
    most
}

/// CRC-32 (IEEE 802.3) of all parts, one after another.
fn crc32(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(u32::MAX, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let (mut crc, mut bit) = (at as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_known_one() {
        assert_eq!(crc32(&[b"1234", b"", b"56789"]), 0xcbf4_3926);
    }
}
