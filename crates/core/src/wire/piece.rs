//! Pieces: what one datagram, or one length-prefixed unit of a data connection, carries.
//!
//! Both paths carry the same bytes, 40 bytes of header in the clear but authenticated, the payload encrypted, and
//! the tag; all numbers big-endian:
//!
//! ```text
//!  0  version 1 │ kind 1 │ set 2 │ channel 2 │ vm 2
//!  8  session tag 8
//! 16  packet number 8
//! 24  frame number 8
//! 32  piece index 2 │ piece count 2 │ piece bytes 4
//! 40  payload … │ tag 16
//! ```
//!
//! A frame's body is cut into `count` pieces of `piece bytes` each, of which the last may be shorter. On TCP a
//! big-endian `u32` length stands in front of each piece.

use super::seal::{Channel, OpenError, OpenKey, SealError, SealKey, TAG_BYTES};
use crate::limits::{FRAME_BODY_BYTES_MAX, PIECE_BYTES_MAX};

/// Version of the piece's format.
pub const PIECE_VERSION: u8 = 1;
/// Bytes of the header.
pub const PIECE_HEADER_BYTES: usize = 40;
/// What a piece adds to its payload.
pub const PIECE_OVERHEAD_BYTES: usize = PIECE_HEADER_BYTES + TAG_BYTES;
/// Bytes of one frame's body as it is sent: the plain bound and what the compression's frame adds.
pub const FRAME_SEALED_BODY_BYTES_MAX: usize = FRAME_BODY_BYTES_MAX + 64;

/// About how many pieces make a block of parity, see [`blocks`]: more of them need less parity, and each byte of a block is read once for each
/// piece that is missed of it.
pub const BLOCK_PIECES: u16 = 64;
/// Parity pieces of a block at most.
pub const BLOCK_PARITY: u16 = 64;
/// Where there is parity, a piece's nominal length is a multiple of this.
pub const STRIPS: usize = 8;

const _: () = assert!(FRAME_SEALED_BODY_BYTES_MAX + PIECE_OVERHEAD_BYTES <= PIECE_BYTES_MAX);

/// Frame number of a probe that is one of a train: it is counted, and not answered by itself.
pub const PROBE_OF_TRAIN: u64 = 1;

/// What a piece is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PieceKind {
    /// A scatter frame: contents with their addresses in several VMs.
    Scatter = 1,
    /// A stream frame of the VM in the header; the frame number counts per VM.
    Stream = 2,
    /// Nothing but the question whether it arrives; the frame number tells probes apart.
    Probe = 3,
    /// The first piece on a data connection: who is calling.
    DataHello = 4,
    /// What replaces any piece of a scatter frame: `index` counts the parity pieces, [`BLOCK_PARITY`] of each block, and `vm` is the
    /// length of the frame's last piece.
    Parity = 6,
}

impl PieceKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Scatter, Self::Stream, Self::Probe, Self::DataHello, Self::Parity]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A piece's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHeader {
    /// What it is part of.
    pub kind: PieceKind,
    /// The target set under whose key it is sealed.
    pub set: u16,
    /// The path whose numbers it uses; filled in by [`seal_piece`].
    pub channel: Channel,
    /// The VM of a stream frame; the last piece's length for parity; else zero.
    pub vm: u16,
    /// First eight bytes of the session's UUID.
    pub session: u64,
    /// Packet number; filled in by [`seal_piece`].
    pub number: u64,
    /// Frame number: of the session for scatter frames, of the VM for stream frames.
    pub frame: u64,
    /// Which piece of the frame.
    pub index: u16,
    /// How many pieces the frame has, at least one.
    pub count: u16,
    /// Payload bytes of each piece but the last.
    pub piece_bytes: u32,
}

/// Why bytes are no piece, or not one for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// Shorter than a header, a tag and a byte of payload, or longer than the limit.
    #[error("piece of {0} bytes")]
    Length(usize),
    /// A version of which this build knows nothing.
    #[error("piece of version {0}")]
    Version(u8),
    /// A kind of which this version knows nothing.
    #[error("piece of kind {0}")]
    Kind(u8),
    /// Index, count and sizes contradict each other or a limit.
    #[error("piece whose counts and sizes contradict each other")]
    Shape,
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Blocks of parity of a frame of `count` pieces, of [`BLOCK_PIECES`] pieces each as nearly as can be: piece *i* is in block *i* mod this.
pub fn blocks(count: u16) -> u16 {
    (count.saturating_add(BLOCK_PIECES / 2) / BLOCK_PIECES).max(1)
}

/// Where the set's number stands in a piece, for those who need the key before anything else.
pub fn peek_set(piece: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(piece.get(2..4)?.try_into().ok()?))
}

/// The session tag: first eight bytes of the session's UUID.
pub fn session_tag(session: &super::control::Uuid) -> u64 {
    u64::from_be_bytes(session[..8].try_into().expect("eight of sixteen bytes"))
}

impl PieceHeader {
    /// A header for a body that travels as one piece of `bytes` bytes.
    pub fn whole(kind: PieceKind, set: u16, session: u64, frame: u64, bytes: usize) -> Self {
        let piece_bytes = bytes as u32;
        let (channel, vm, number) = (Channel::MULTICAST, 0, 0);
        PieceHeader { kind, set, channel, vm, session, number, frame, index: 0, count: 1, piece_bytes }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; PIECE_HEADER_BYTES] {
        let mut out = [0; PIECE_HEADER_BYTES];
        out[0] = PIECE_VERSION;
        out[1] = self.kind as u8;
        out[2..4].copy_from_slice(&self.set.to_be_bytes());
        out[4..6].copy_from_slice(&self.channel.0.to_be_bytes());
        out[6..8].copy_from_slice(&self.vm.to_be_bytes());
        out[8..16].copy_from_slice(&self.session.to_be_bytes());
        out[16..24].copy_from_slice(&self.number.to_be_bytes());
        out[24..32].copy_from_slice(&self.frame.to_be_bytes());
        out[32..34].copy_from_slice(&self.index.to_be_bytes());
        out[34..36].copy_from_slice(&self.count.to_be_bytes());
        out[36..40].copy_from_slice(&self.piece_bytes.to_be_bytes());
        out
    }

    /// The header of `piece`, a whole sealed piece; nothing in it is trusted before it has been opened.
    ///
    /// # Errors
    /// [`PieceError`], never `Open`: what holds afterwards is that index, count, sizes and the payload's length fit
    /// each other and the limits.
    pub fn decode(piece: &[u8]) -> Result<Self, PieceError> {
        if piece.len() <= PIECE_OVERHEAD_BYTES || piece.len() > PIECE_BYTES_MAX {
            return Err(PieceError::Length(piece.len()));
        }
        let u16_at = |at: usize| u16::from_be_bytes([piece[at], piece[at + 1]]);
        let u64_at = |at: usize| u64::from_be_bytes(piece[at..at + 8].try_into().expect("eight bytes"));
        if piece[0] != PIECE_VERSION {
            return Err(PieceError::Version(piece[0]));
        }
        let header = PieceHeader {
            kind: PieceKind::from_byte(piece[1]).ok_or(PieceError::Kind(piece[1]))?,
            set: u16_at(2),
            channel: Channel(u16_at(4)),
            vm: u16_at(6),
            session: u64_at(8),
            number: u64_at(16),
            frame: u64_at(24),
            index: u16_at(32),
            count: u16_at(34),
            piece_bytes: u32::from_be_bytes(piece[36..40].try_into().expect("four bytes")),
        };
        if header.fits(piece.len() - PIECE_OVERHEAD_BYTES) { Ok(header) } else { Err(PieceError::Shape) }
    }

    /// Whether a payload of `payload` bytes agrees with index, count and nominal size.
    pub fn fits(&self, payload: usize) -> bool {
        let nominal = self.piece_bytes as usize;
        let last = self.count.checked_sub(1);
        let full = last.map(|last| usize::from(last).saturating_mul(nominal));
        let is_frame = nominal > 0
            && nominal <= PIECE_BYTES_MAX
            && full.is_some_and(|full| full < FRAME_SEALED_BODY_BYTES_MAX);
        let fits = match self.kind {
            PieceKind::Parity => {
                let last_bytes = usize::from(self.vm);
                payload == nominal
                    && nominal.is_multiple_of(STRIPS)
                    && (1..=nominal).contains(&last_bytes)
                    && self.index / BLOCK_PARITY < blocks(self.count)
            }
            _ if Some(self.index) == last => payload <= nominal,
            _ => self.index < self.count && payload == nominal,
        };
        is_frame && fits
    }
}

/// Appends one sealed piece to `out`; returns its packet number. Number and channel in `header` are not looked at.
///
/// # Errors
/// [`SealError::KeyUsedUp`]; `out` is as it was.
///
/// # Panics
/// If the payload is empty or does not fit the header's counts and sizes: that is the caller's mistake.
pub fn seal_piece(
    key: &mut SealKey,
    header: &PieceHeader,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<u64, SealError> {
    assert!(!payload.is_empty() && header.fits(payload.len()), "a piece's payload contradicts its header");
    let number = key.next_number();
    let header = PieceHeader { channel: key.channel(), number, ..*header }.encode();
    let start = out.len();
    out.reserve(payload.len() + PIECE_OVERHEAD_BYTES);
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    match key.seal(&header, &mut out[start + PIECE_HEADER_BYTES..]) {
        Ok(tag) => {
            out.extend_from_slice(&tag);
            Ok(number)
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Opens a sealed piece in place; returns its header and its payload, not empty.
///
/// # Errors
/// [`PieceError`]; what `piece` holds then is of no use.
pub fn open_piece<'a>(
    key: &mut OpenKey,
    piece: &'a mut [u8],
) -> Result<(PieceHeader, &'a mut [u8]), PieceError> {
    let header = PieceHeader::decode(piece)?;
    let (clear, sealed) = piece.split_at_mut(PIECE_HEADER_BYTES);
    let payload = key.open(header.channel, header.number, clear, sealed)?;
    Ok((header, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> PieceHeader {
        PieceHeader {
            kind: PieceKind::Scatter,
            set: 3,
            channel: Channel::MULTICAST,
            vm: 0,
            session: 0x0102_0304_0506_0708,
            number: 0,
            frame: 77,
            index: 1,
            count: 3,
            piece_bytes: 100,
        }
    }

    fn keys() -> (SealKey, OpenKey) {
        (SealKey::new(&[9; 32], Channel::MULTICAST), OpenKey::new(&[9; 32], &[Channel::MULTICAST]))
    }

    #[test]
    fn header_bytes_are_these() {
        let mut out = Vec::new();
        seal_piece(&mut keys().0, &header(), &[1; 100], &mut out).unwrap();
        let expected = [
            1, 1, 0, 3, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 77,
            0, 1, 0, 3, 0, 0, 0, 100,
        ];
        assert_eq!(out[..PIECE_HEADER_BYTES], expected);
        assert_eq!(out.len(), 100 + PIECE_OVERHEAD_BYTES);
        assert_eq!(peek_set(&out), Some(3));
    }

    #[test]
    fn round_trip_and_numbers() {
        let (mut seal, mut open) = keys();
        let mut out = Vec::new();
        assert_eq!(seal_piece(&mut seal, &header(), &[1; 100], &mut out), Ok(0));
        let second = out.len();
        let last = PieceHeader { index: 2, ..header() };
        assert_eq!(seal_piece(&mut seal, &last, &[2; 7], &mut out), Ok(1));
        let (first, second) = out.split_at_mut(second);
        let (read, payload) = open_piece(&mut open, second).unwrap();
        assert_eq!((read, &*payload), (PieceHeader { number: 1, ..last }, &[2; 7][..]));
        let mut again = first.to_vec();
        let (read, payload) = open_piece(&mut open, first).unwrap();
        assert_eq!((read, &*payload), (header(), &[1; 100][..]));
        assert_eq!(open_piece(&mut open, &mut again), Err(PieceError::Open(OpenError::Replayed)));
    }

    #[test]
    fn shapes_that_contradict_are_refused() {
        let shape = |index, count, piece_bytes, payload: usize| {
            let mut bytes = PieceHeader { index, count, piece_bytes, ..header() }.encode().to_vec();
            bytes.resize(PIECE_OVERHEAD_BYTES + payload, 0);
            PieceHeader::decode(&bytes).map(|_| ())
        };
        assert_eq!(shape(0, 1, 100, 100), Ok(()));
        assert_eq!(shape(0, 1, 100, 1), Ok(()));
        assert_eq!(shape(0, 1, 100, 0), Err(PieceError::Length(PIECE_OVERHEAD_BYTES)));
        for (index, count, piece_bytes, payload) in [
            (0, 0, 100, 100),
            (1, 1, 100, 100),
            (0, 2, 100, 99),
            (0, 1, 100, 101),
            (0, 1, 0, 1),
            (0, u16::MAX, 100, 100),
        ] {
            assert_eq!(shape(index, count, piece_bytes, payload), Err(PieceError::Shape));
        }
        let mut bytes = header().encode().to_vec();
        bytes.resize(PIECE_OVERHEAD_BYTES + 100, 0);
        bytes[0] = 2;
        assert_eq!(PieceHeader::decode(&bytes), Err(PieceError::Version(2)));
        (bytes[0], bytes[1]) = (1, 9);
        assert_eq!(PieceHeader::decode(&bytes), Err(PieceError::Kind(9)));
    }

    proptest! {
        #[test]
        fn any_changed_bit_is_refused(at in 0usize..100 + PIECE_OVERHEAD_BYTES, bit in 0u8..8) {
            let (mut seal, mut open) = keys();
            let mut out = Vec::new();
            seal_piece(&mut seal, &header(), &[1; 100], &mut out).unwrap();
            out[at] ^= 1 << bit;
            prop_assert!(open_piece(&mut open, &mut out).is_err());
        }

        #[test]
        fn noise_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open_piece(&mut keys().1, &mut bytes).is_err());
        }
    }
}
