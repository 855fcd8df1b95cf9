//! Streams of tiny guests, recorded by `scripts/record-streams` from QEMU 7.2 and 10.0.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::qemu_stream::{ReturnMessage, ReturnParser};

const NAMES: [&str; 6] = [
    "7.2-pc-idle",
    "7.2-pc-vga-dirty",
    "7.2-q35-memfd-dirty",
    "10.0-pc-idle",
    "10.0-pc-vga-dirty",
    "10.0-q35-memfd-dirty",
];

fn recorded(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/streams").join(format!("{name}.zst"));
    let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&packed[..]).expect("zstd")
}

#[test]
fn blocks_and_coverage_are_as_qemu_has_them() {
    for name in NAMES {
        let stream = recorded(name);
        let seen = events(&stream, &[usize::MAX]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let Some(Seen::RamStart(_, blocks)) = seen.iter().find(|event| matches!(event, Seen::RamStart(..)))
        else {
            panic!("{name}: no RAM");
        };
        let (ram, bytes) = if name.contains("memfd") { ("m0", 16 << 20) } else { ("pc.ram", 8 << 20) };
        assert_eq!((blocks[0].name.as_str(), blocks[0].bytes), (ram, bytes), "{name}");
        let vga = blocks.iter().find(|block| block.name.ends_with("vga.vram"));
        assert_eq!(vga.map(|block| block.bytes), name.contains("vga").then_some(1 << 20), "{name}");
        // QEMU sends every page at least once: what the digest's coverage rule builds upon.
        let pages: u64 = blocks.iter().map(RamBlock::pages).sum();
        assert_eq!(meaning(&seen).1.len() as u64, pages, "{name}");
        // A guest that dirties has pages sent twice, and the END section has records.
        let records =
            seen.iter().filter(|event| matches!(event, Seen::Page(..) | Seen::Zero(..))).count() as u64;
        assert!(!name.contains("dirty") || records > pages, "{name}: {records} records, {pages} pages");
    }
}

#[test]
fn machine_type_is_read() {
    for name in NAMES {
        let mut parser = Parser::new();
        parser.feed(&recorded(name), |_| Ok::<_, ParseError>(())).expect("valid");
        let machine = parser.machine().expect("configuration");
        let kind = if name.contains("q35") { "pc-q35-" } else { "pc-i440fx-" };
        let version = name.split('-').next().expect("version");
        assert_eq!(machine, format!("{kind}{version}"), "{name}");
    }
}

#[test]
fn composed_stream_means_the_same() {
    for name in NAMES {
        let stream = recorded(name);
        let seen = events(&stream, &[usize::MAX]).expect("valid");
        let again = events(&compose(&seen), &[usize::MAX]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(meaning(&again), meaning(&seen), "{name}");
    }
}

/// In the verbatim parts nothing is lost: with the records put back in QEMU's order, the very bytes come out, except
/// where sections are cut.
#[test]
fn tail_is_the_recorded_one() {
    for name in NAMES {
        let stream = recorded(name);
        let seen = events(&stream, &[usize::MAX]).expect("valid");
        let Some([Seen::RamEnd, Seen::Raw(tail)]) = seen.last_chunk::<2>() else { panic!("{name}: no tail") };
        assert!(stream.ends_with(tail) && tail.len() > 1024, "{name}: {} bytes", tail.len());
        let Some(Seen::Raw(head)) = seen.first() else { panic!("{name}: no head") };
        assert!(stream.starts_with(head), "{name}");
    }
}

#[test]
fn return_path_ends_in_shut() {
    for name in NAMES {
        let bytes = recorded(&format!("{name}.return"));
        let (mut parser, mut input, mut seen) = (ReturnParser::new(), &bytes[..], Vec::new());
        while let Some((message, raw)) = parser.next_message(&mut input).expect("valid") {
            seen.push((message, raw.len()));
        }
        let expected = [(ReturnMessage::Pong(1), 8), (ReturnMessage::Shut { error: 0 }, 8)];
        assert_eq!(seen, expected, "{name}");
        assert!(parser.is_shut());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_chunking_gives_the_same_events(
        name in prop::sample::select(&NAMES[..]),
        pieces in prop::collection::vec(1usize..20_000, 1..200),
    ) {
        let stream = recorded(name);
        prop_assert!(events(&stream, &pieces)? == events(&stream, &[usize::MAX])?);
    }
}
