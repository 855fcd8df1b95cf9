//! The return path.

use proptest::prelude::*;

use crate::qemu_stream::{ReturnError, ReturnErrorKind, ReturnMessage, ReturnParser};

const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
const ACK: [u8; 4] = [0, 7, 0, 0];
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 5];

fn messages(bytes: &[u8], piece: usize) -> Result<Vec<(ReturnMessage, Vec<u8>)>, ReturnError> {
    let (mut parser, mut seen) = (ReturnParser::new(), Vec::new());
    for mut input in bytes.chunks(piece) {
        while let Some((message, raw)) = parser.next_message(&mut input)? {
            seen.push((message, raw.to_vec()));
        }
        assert!(input.is_empty());
    }
    Ok(seen)
}

#[test]
fn messages_come_with_their_bytes_however_they_are_cut() {
    let bytes = [&PONG[..], &ACK, &SHUT].concat();
    let expected = vec![
        (ReturnMessage::Pong(1), PONG.to_vec()),
        (ReturnMessage::SwitchoverAck, ACK.to_vec()),
        (ReturnMessage::Shut { error: 5 }, SHUT.to_vec()),
    ];
    for piece in 1..=bytes.len() {
        assert_eq!(messages(&bytes, piece), Ok(expected.clone()), "pieces of {piece}");
    }
}

#[test]
fn postcopy_messages_and_unknown_ones_are_refused() {
    for kind in [0, 3, 4, 5, 6, 8, 0xffff] {
        let bytes = [&PONG[..], &u16::to_be_bytes(kind), &[0, 4]].concat();
        let error = ReturnError { offset: 8, kind: ReturnErrorKind::Type(kind) };
        assert_eq!(messages(&bytes, 3), Err(error));
    }
    assert_eq!(messages(&[0, 7, 255, 255], 4).map_err(|e| e.kind), Err(ReturnErrorKind::Length(7, 65535)));
    assert_eq!(messages(&[0, 1, 0, 0], 4).map_err(|e| e.kind), Err(ReturnErrorKind::Length(1, 0)));
}

#[test]
fn nothing_follows_shut() {
    let bytes = [&SHUT[..], &PONG].concat();
    assert_eq!(messages(&bytes, 5), Err(ReturnError { offset: 8, kind: ReturnErrorKind::AfterShut }));
}

proptest! {
    #[test]
    fn any_bytes_are_safe(bytes in prop::collection::vec(0u8..8, 0..200), piece in 1usize..20) {
        prop_assert_eq!(messages(&bytes, piece).is_ok(), messages(&bytes, bytes.len().max(1)).is_ok());
    }
}
