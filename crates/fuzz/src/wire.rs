//! Control messages, frames and pieces.

use std::collections::HashSet;
use std::time::Duration;

use vmscatter_core::limits::{
    CONTROL_MESSAGE_BYTES_MAX, FRAME_ADDRS_MAX, FRAME_BODY_BYTES_MAX, FRAME_PAGES_MAX, RECEIVER_BYTES_MAX,
};
use vmscatter_core::page::PageAddr;
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Outcome, Receiver, ReceiverConfig};
use vmscatter_core::wire::control::{Envelope, FrameSpan, Message};
use vmscatter_core::wire::frame::{Compression, Decoder, Encoder, StreamFrameBuilder, StreamItem};
use vmscatter_core::wire::piece::{PieceHeader, PieceKind, seal_piece};
use vmscatter_core::wire::seal::{Channel, OpenKey, SealKey};

use crate::input::Input;

/// What is a message is written as a message that says the same.
pub fn control(data: &[u8]) {
    let Ok(envelope) = Envelope::decode(data) else { return };
    let Ok(bytes) = envelope.encode() else {
        assert!(data.len() + 64 > CONTROL_MESSAGE_BYTES_MAX, "a message that was read can't be written");
        return;
    };
    let len = Envelope::body_len([bytes[0], bytes[1], bytes[2], bytes[3]]).expect("it was encoded");
    assert_eq!(len, bytes.len() - 4);
    assert_eq!(Envelope::decode(&bytes[4..]).as_ref(), Ok(&envelope));
}

/// A body that is taken keeps the limits, and what it says can be said again. The first byte says which kind it is.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let mut decoder = Decoder::new();
    match input.byte() & 1 {
        0 => scatter_frame(&mut decoder, input.0),
        _ => stream_frame(&mut decoder, input.0),
    }
}

fn scatter_frame(decoder: &mut Decoder, body: &[u8]) {
    let Ok(contents) = decoder.scatter(body) else { return };
    let contents: Vec<(Vec<PageAddr>, Vec<u8>)> =
        contents.contents().map(|(addrs, page)| (addrs.to_vec(), page.to_vec())).collect();
    assert!(!contents.is_empty() && contents.len() <= FRAME_PAGES_MAX);
    assert!(contents.iter().map(|(addrs, _)| addrs.len()).sum::<usize>() <= FRAME_ADDRS_MAX);
    let borrowed = contents.iter().map(|(addrs, page)| (&addrs[..], &page[..]));
    let again = Encoder::new().scatter(borrowed, Compression::None).expect("it was decoded");
    assert!(again.len() <= FRAME_BODY_BYTES_MAX + 64);
    let mut decoder = Decoder::new();
    let again = decoder.scatter(&again).expect("it was encoded");
    assert!(
        again.contents().eq(contents
            .iter()
            .map(|(addrs, page)| (&addrs[..], <&[u8; 4096]>::try_from(&page[..]).expect("a page"))))
    );
}

fn stream_frame(decoder: &mut Decoder, body: &[u8]) {
    let Ok(stream) = decoder.stream(body) else { return };
    let mut again = StreamFrameBuilder::new();
    let mut pages = 0;
    for item in stream.items() {
        let fits = match item {
            StreamItem::Raw(bytes) => again.raw(bytes),
            StreamItem::RamStart { section_id } => again.ram_start(section_id),
            StreamItem::RamEnd => again.ram_end(),
            StreamItem::Page { block, page, data } => {
                pages += 1;
                again.page(block, page, data)
            }
            StreamItem::Zero { block, first, count } => again.zero_run(block, first, count),
        };
        if fits.is_err() {
            // Another way to cut what is raw can make a body that is as long, and no builder's.
            again.finish(Compression::None, &mut Encoder::new());
        }
    }
    assert_eq!(pages, stream.page_count());
    let again = again.finish(Compression::Zstd(1), &mut Encoder::new());
    assert!(Decoder::new().stream(&again).is_ok(), "what a builder writes is read");
}

const SESSION: u64 = 5;
const KEY: [u8; 32] = [9; 32];

/// Target 2, a member of set 1, and the keys under which each path's pieces for it are sealed.
pub(crate) fn member() -> (Receiver, [SealKey; 3]) {
    let config = ReceiverConfig { session: SESSION, target: 2, ..ReceiverConfig::default() };
    let mut receiver = Receiver::new(config, Time::ZERO);
    let channels = [Channel::MULTICAST, Channel::PROBE, Channel::unicast(2)];
    receiver.add_set(1, OpenKey::new(&KEY, &channels));
    (receiver, channels.map(|channel| SealKey::new(&KEY, channel)))
}

/// A receiver to whom a member, or a stranger, sends what it likes: it keeps no more than it may, gives no frame twice, and
/// its reports are never too long to be sent.
pub fn pieces(data: &[u8]) {
    let mut input = Input(data);
    let (mut receiver, mut keys) = member();
    let (mut now, mut given) = (Time::ZERO, HashSet::new());
    while !input.is_empty() {
        match input.byte() % 5 {
            0 => {
                let len = usize::from(input.short());
                give(&mut receiver, now, input.take(len));
            }
            1 => {
                let key = &mut keys[usize::from(input.byte() % 3)];
                let sealed = sealed(key, &mut input);
                give(&mut receiver, now, &sealed);
            }
            2 => {
                let (set, first) = (u16::from(input.byte() % 3), u64::from(input.short()));
                // Few at once, or all that there are: each that is new costs time.
                let last = match input.byte() {
                    u8::MAX => u64::MAX,
                    count => first + u64::from(count),
                };
                receiver.on_sent(now, &[FrameSpan { set, first, last }]);
            }
            3 => now = now + Duration::from_micros(u64::from(input.short())),
            _ => {
                while let Some((frame, _, body)) = receiver.poll_frame() {
                    assert!(given.insert(frame), "frame {frame} is given twice");
                    assert!(!body.is_empty());
                    receiver.written(frame);
                }
            }
        }
        while let Some(report) = receiver.poll_report(now) {
            let message = Envelope { session: [0; 16], message: Message::Report(report) };
            assert!(message.encode().is_ok(), "a report that can't be sent");
        }
        assert!(receiver.held_bytes() <= RECEIVER_BYTES_MAX);
        while receiver.poll_probe().is_some() {}
    }
}

fn give(receiver: &mut Receiver, now: Time, piece: &[u8]) {
    let mut piece = piece.to_vec();
    if let Outcome::Stream { payload, .. } = receiver.on_piece(now, &mut piece) {
        assert!(!payload.is_empty());
    }
}

/// A piece that is sealed in order, whatever it says.
pub(crate) fn sealed(key: &mut SealKey, input: &mut Input<'_>) -> Vec<u8> {
    let kind =
        [PieceKind::Scatter, PieceKind::Stream, PieceKind::Probe, PieceKind::DataHello, PieceKind::Parity];
    let kind = kind[usize::from(input.byte() % 5)];
    let (frame, vm) = (u64::from(input.byte()), u16::from(input.byte() % 4));
    let (count, index) = (u16::from(input.byte()), u16::from(input.byte()));
    let len = usize::from(input.short());
    let payload = input.take(len);
    let piece_bytes = if input.byte() & 1 == 0 { payload.len() as u32 } else { u32::from(input.short()) };
    let whole = PieceHeader::whole(kind, 1, SESSION, frame, payload.len());
    let parted = PieceHeader { count, index, piece_bytes, ..whole };
    let mut out = Vec::new();
    for header in [PieceHeader { vm, ..parted }, PieceHeader { vm, ..whole }] {
        if !payload.is_empty() && header.fits(payload.len()) {
            seal_piece(key, &header, payload, &mut out).expect("few pieces");
            break;
        }
    }
    out
}
