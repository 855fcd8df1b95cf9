//! The envelope of a relayed piece: to which targets each of its receivers in turn passes it on.
//!
//! ```text
//!  0  version 1 │ kind 1 (5) │ hops 2 │ target 2 × hops │ sealed piece …
//! ```
//!
//! All numbers are big-endian. It stands on data connections only, in the place of a piece. Who receives it takes in the piece, which is
//! sealed by the source as any other, and sends it on to the first target named, in an envelope that names the others;
//! to the last it goes without one. The envelope is not sealed: data connections are between members, and what a
//! forged one could do is what a cut connection does.

use super::piece::PIECE_VERSION;
use crate::limits::SESSION_TARGETS_MAX;

/// Stands where a piece has its kind.
const KIND: u8 = 5;
const HEAD_BYTES: usize = 4;

/// What an envelope holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The targets to which the piece goes on, in this order; at least one.
    pub hops: Vec<u16>,
    /// The piece, sealed.
    pub piece: &'a mut [u8],
}

/// The bytes of `piece`, sealed, for the first receiver of a chain; `hops` are those behind it.
pub fn wrap(hops: &[u16], piece: &[u8]) -> Vec<u8> {
    debug_assert!(hops.len() < SESSION_TARGETS_MAX, "a chain passes every target once");
    if hops.is_empty() {
        return piece.to_vec();
    }
    let mut out = Vec::with_capacity(HEAD_BYTES + 2 * hops.len() + piece.len());
    out.extend_from_slice(&[PIECE_VERSION, KIND]);
    out.extend_from_slice(&(hops.len() as u16).to_be_bytes());
    hops.iter().for_each(|hop| out.extend_from_slice(&hop.to_be_bytes()));
    out.extend_from_slice(piece);
    out
}

/// The envelope that `bytes` are; `None` if they are none, or one with no hop or more than a session has targets.
pub fn unwrap(bytes: &mut [u8]) -> Option<Envelope<'_>> {
    let [version, kind, count @ ..] = *bytes.first_chunk::<HEAD_BYTES>()?;
    let count = usize::from(u16::from_be_bytes(count));
    let end = HEAD_BYTES + 2 * count;
    let is_envelope = version == PIECE_VERSION && kind == KIND;
    if !is_envelope || count == 0 || count >= SESSION_TARGETS_MAX || bytes.len() < end {
        return None;
    }
    let (head, piece) = bytes.split_at_mut(end);
    let hops = head[HEAD_BYTES..].chunks_exact(2).map(|hop| u16::from_be_bytes([hop[0], hop[1]]));
    Some(Envelope { hops: hops.collect(), piece })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn envelope_bytes_are_these() {
        assert_eq!(wrap(&[7, 258], b"piece"), b"\x01\x05\x00\x02\x00\x07\x01\x02piece");
        assert_eq!(wrap(&[], b"piece"), b"piece");
    }

    #[test]
    fn what_names_nobody_or_too_many_is_none() {
        assert_eq!(unwrap(&mut [1, 5, 0, 0, 1, 2]), None);
        assert_eq!(unwrap(&mut [1, 5, 0, 2, 0, 1, 0]), None);
        assert_eq!(unwrap(&mut [2, 5, 0, 1, 0, 1]), None);
        assert_eq!(unwrap(&mut [1, 1, 0, 1, 0, 1]), None);
        let mut many = vec![0; 2 * SESSION_TARGETS_MAX + 100];
        many[..4].copy_from_slice(&[1, 5, 0, SESSION_TARGETS_MAX as u8]);
        assert_eq!(unwrap(&mut many), None);
    }

    proptest! {
        #[test]
        fn round_trip(
            hops in proptest::collection::vec(any::<u16>(), 1..SESSION_TARGETS_MAX),
            piece in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = wrap(&hops, &piece);
            let envelope = unwrap(&mut bytes).unwrap();
            prop_assert_eq!(envelope.hops, hops);
            prop_assert_eq!(&*envelope.piece, &piece[..]);
        }

        #[test]
        fn noise_ends_well(mut bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            unwrap(&mut bytes);
        }
    }
}
