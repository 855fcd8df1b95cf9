//! What a receiver has of a frame that is not complete: pieces, and parity that will replace some of the others.

use std::collections::BTreeMap;

use super::parity::{block_of, block_pieces, decode};
use crate::wire::piece::{BLOCK_PARITY, PieceHeader, blocks};

/// Pieces of a frame.
#[derive(Debug)]
pub(super) struct Parts {
    count: u16,
    piece_bytes: usize,
    have: Box<[u64]>,
    left: u16,
    last_bytes: usize,
    /// All pieces; zero where none has come.
    buffer: Vec<u8>,
    /// Parity pieces by index, of blocks that are not complete.
    parity: BTreeMap<u16, Vec<u8>>,
}

impl Parts {
    /// Of the frame that a piece of it, or a parity piece, speaks of.
    pub(super) fn new(header: &PieceHeader) -> Self {
        let piece_bytes = header.piece_bytes as usize;
        Parts {
            count: header.count,
            piece_bytes,
            have: vec![0; usize::from(header.count).div_ceil(64)].into(),
            left: header.count,
            last_bytes: 0,
            buffer: vec![0; Self::bytes_of(header)],
            parity: BTreeMap::new(),
        }
    }

    /// What a frame's pieces take.
    pub(super) fn bytes_of(header: &PieceHeader) -> usize {
        usize::from(header.count) * header.piece_bytes as usize
    }

    /// Whether the piece is of the same frame as those before it.
    pub(super) fn agrees(&self, header: &PieceHeader) -> bool {
        (self.count, self.piece_bytes) == (header.count, header.piece_bytes as usize)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Bytes that it takes.
    pub(super) fn held_bytes(&self) -> usize {
        self.buffer.len() + self.parity.len() * self.piece_bytes
    }

    fn has(&self, index: u16) -> bool {
        self.have[usize::from(index / 64)] & (1 << (index % 64)) != 0
    }

    /// Takes in a piece that agrees; `false` if it was there.
    pub(super) fn put(&mut self, index: u16, payload: &[u8]) -> bool {
        if self.has(index) {
            return false;
        }
        let start = usize::from(index) * self.piece_bytes;
        self.buffer[start..start + payload.len()].copy_from_slice(payload);
        if index == self.count - 1 {
            self.last_bytes = payload.len();
        }
        self.mark(index);
        self.restore(block_of(index, self.count));
        true
    }

    fn mark(&mut self, index: u16) {
        self.have[usize::from(index / 64)] |= 1 << (index % 64);
        self.left -= 1;
    }

    /// Whether the parity piece would replace one that is missed: it is not there, and its block lacks more than it has parity.
    pub(super) fn needs_parity(&self, index: u16) -> bool {
        !self.parity.contains_key(&index) && self.needed(index / BLOCK_PARITY) > 0
    }

    /// Takes in a parity piece that agrees and is needed. `last_bytes` are those of the frame's last piece.
    pub(super) fn put_parity(&mut self, index: u16, last_bytes: usize, payload: &[u8]) {
        self.parity.insert(index, payload.to_vec());
        if !self.has(self.count - 1) {
            self.last_bytes = last_bytes;
        }
        self.restore(index / BLOCK_PARITY);
    }

    fn missing(&self, block: u16) -> impl Iterator<Item = u16> {
        block_pieces(block, self.count).filter(|index| !self.has(*index))
    }

    fn rows(&self, block: u16) -> impl Iterator<Item = u16> {
        let first = block * BLOCK_PARITY;
        self.parity.range(first..first + BLOCK_PARITY).map(|(index, _)| *index)
    }

    /// Pieces that the block lacks and has no parity for: more parity than that is never taken in.
    fn needed(&self, block: u16) -> usize {
        self.missing(block).count() - self.rows(block).count()
    }

    /// Replaces what the block lacks by parity, if there is enough of it.
    fn restore(&mut self, block: u16) {
        let rows: Vec<u16> = self.rows(block).collect();
        if rows.is_empty() {
            return;
        }
        let missing: Vec<u16> = self.missing(block).collect();
        if missing.len() > rows.len() {
            return;
        }
        let parity = rows.into_iter().map(|index| {
            let payload = self.parity.remove(&index).expect("it was found above");
            (index % BLOCK_PARITY, payload)
        });
        decode(&mut self.buffer, self.piece_bytes, block, &missing, parity.collect());
        missing.iter().for_each(|index| self.mark(*index));
    }

    /// Ranges of pieces that are missing and that no parity replaces, as long as `room` lasts. Which of those that a block lacks are
    /// replaced is open: the last ones are taken for it.
    pub(super) fn gaps(&self, room: usize) -> Vec<(u16, u16)> {
        let mut needed: Vec<usize> = (0..blocks(self.count)).map(|block| self.needed(block)).collect();
        let mut gaps: Vec<(u16, u16)> = Vec::new();
        for index in (0..self.count).filter(|index| !self.has(*index)) {
            let needed = &mut needed[usize::from(block_of(index, self.count))];
            if *needed == 0 {
                continue;
            }
            *needed -= 1;
            match gaps.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => gaps.push((index, index)),
            }
            if gaps.len() > room {
                gaps.pop();
                break;
            }
        }
        gaps
    }

    /// The frame's body, once it is complete.
    pub(super) fn into_body(self) -> Vec<u8> {
        let mut body = self.buffer;
        body.truncate(usize::from(self.count - 1) * self.piece_bytes + self.last_bytes);
        body
    }
}
