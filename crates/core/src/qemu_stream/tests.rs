//! Streams recorded from real QEMU, crafted ones, and damaged ones.

mod compose;
mod golden;
mod refused;
mod return_path;

use std::collections::BTreeMap;

use super::{Composer, Event, ParseError, ParseErrorKind, Parser, RamBlock};
use crate::page::PAGE_SIZE;

/// An [`Event`] that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Raw(Vec<u8>),
    RamStart(u32, Vec<RamBlock>),
    Page(u16, u32, Vec<u8>),
    Zero(u16, u32),
    PartEnd,
    MultifdFlush,
    RamEnd,
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Raw(bytes) => Seen::Raw(bytes.to_vec()),
            Event::RamStart { section_id, blocks } => Seen::RamStart(section_id, blocks.to_vec()),
            Event::Page { block, page, data } => Seen::Page(block, page, data.to_vec()),
            Event::Zero { block, page } => Seen::Zero(block, page),
            Event::PartEnd => Seen::PartEnd,
            Event::MultifdFlush => Seen::MultifdFlush,
            Event::RamEnd => Seen::RamEnd,
        }
    }
}

/// All events of a stream that comes in pieces of the given lengths (the last one repeats). Raw pieces that follow
/// each other are joined, since their borders mean nothing.
fn events(stream: &[u8], pieces: &[usize]) -> Result<Vec<Seen>, ParseError> {
    let (mut parser, mut seen, mut rest, mut turn) = (Parser::new(), Vec::new(), stream, 0);
    while !rest.is_empty() {
        let piece = pieces[turn.min(pieces.len() - 1)].clamp(1, rest.len());
        let (input, after) = rest.split_at(piece);
        parser.feed(input, |event| {
            match (seen.last_mut(), event) {
                (Some(Seen::Raw(before)), Event::Raw(bytes)) => before.extend_from_slice(bytes),
                _ => seen.push(Seen::from(event)),
            }
            Ok::<_, ParseError>(())
        })?;
        (rest, turn) = (after, turn + 1);
    }
    parser.finish()?;
    Ok(seen)
}

fn error_of(stream: &[u8]) -> ParseErrorKind {
    events(stream, &[usize::MAX]).expect_err("the stream must be refused").kind
}

/// What a stream does to its target: verbatim bytes, and each page's last content (empty for zero).
type Meaning = (Vec<u8>, BTreeMap<(u16, u32), Vec<u8>>);

fn meaning(seen: &[Seen]) -> Meaning {
    let mut meaning = Meaning::default();
    for event in seen {
        match event {
            Seen::Raw(bytes) => meaning.0.extend_from_slice(bytes),
            Seen::Page(block, page, data) => drop(meaning.1.insert((*block, *page), data.clone())),
            Seen::Zero(block, page) => drop(meaning.1.insert((*block, *page), Vec::new())),
            _ => {}
        }
    }
    meaning
}

fn compose(seen: &[Seen]) -> Vec<u8> {
    let (mut composer, mut out) = (Composer::new(), Vec::new());
    for event in seen {
        match event {
            Seen::Raw(bytes) => composer.raw(&mut out, bytes),
            Seen::RamStart(id, blocks) => composer.ram_start(*id, blocks.clone()).expect("first START"),
            Seen::Page(block, page, data) => composer.page(&mut out, *block, *page, data).expect("in range"),
            Seen::Zero(block, page) => composer.zero(&mut out, *block, *page).expect("in range"),
            Seen::PartEnd | Seen::MultifdFlush => {}
            Seen::RamEnd => composer.ram_end(&mut out).expect("in RAM"),
        }
    }
    out
}

/// Pieces of a small valid stream with two blocks, `pc.ram` of 4 pages and `rom` of 1, RAM section 2.
struct Craft(Vec<u8>);

impl Craft {
    const ID: u32 = 2;

    fn header() -> Self {
        Craft(Vec::new()).be32(super::MAGIC).be32(3)
    }

    /// Up to and with the machine's name.
    fn configured() -> Self {
        Craft::header().bytes(b"\x07").be32(2).bytes(b"pc")
    }

    /// Up to and with the RAM START section.
    fn started() -> Self {
        let pages = |count: u64| count * PAGE_SIZE as u64;
        Craft::configured()
            .command(1, b"")
            .command(2, &[0, 0, 0, 1])
            .ram_section(1)
            .be64(pages(5) | 4)
            .block("pc.ram", pages(4))
            .block("rom", pages(1))
            .be64(0x10)
            .footer()
    }

    /// Whole: PART with named page, CONTINUE zero and page; command; END with a page of the other block; tail.
    fn whole() -> Self {
        Craft::part_filled().command(11, b"").end().bytes(b"\x04device state\x00\x06description")
    }

    fn part_filled() -> Self {
        Craft::started()
            .part()
            .named(0x08, 1, "pc.ram")
            .page(0xa1)
            .record(0x22, 2)
            .bytes(b"\0")
            .record(0x28, 1)
            .page(0xa2)
            .record(0x200, 0)
            .record(0x10, 0)
            .footer()
    }

    fn part(self) -> Self {
        self.bytes(&[2]).be32(Self::ID)
    }

    fn end(self) -> Self {
        self.bytes(&[3]).be32(Self::ID).named(0x08, 0, "rom").page(0xb1).record(0x10, 0).footer()
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn be32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn be64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn name(self, name: &str) -> Self {
        self.bytes(&[name.len() as u8]).bytes(name.as_bytes())
    }

    fn command(self, command: u16, data: &[u8]) -> Self {
        let length = (data.len() as u16).to_be_bytes();
        self.bytes(&[8]).bytes(&command.to_be_bytes()).bytes(&length).bytes(data)
    }

    fn subsection(self, name: &str, payload: &[u8]) -> Self {
        self.bytes(&[5]).name(name).be32(1).bytes(payload)
    }

    fn section(self, kind: u8, name: &str, id: u32, version: u32) -> Self {
        self.bytes(&[kind]).be32(id).name(name).be32(0).be32(version)
    }

    fn ram_section(self, kind: u8) -> Self {
        self.section(kind, "ram", Self::ID, 4)
    }

    fn block(self, name: &str, bytes: u64) -> Self {
        self.name(name).be64(bytes)
    }

    fn footer(self) -> Self {
        self.bytes(&[0x7e]).be32(Self::ID)
    }

    fn record(self, flags: u64, page: u64) -> Self {
        self.be64((page * PAGE_SIZE as u64) | flags)
    }

    fn named(self, flags: u64, page: u64, name: &str) -> Self {
        self.record(flags, page).name(name)
    }

    fn page(self, fill: u8) -> Self {
        self.bytes(&[fill; PAGE_SIZE])
    }
}
