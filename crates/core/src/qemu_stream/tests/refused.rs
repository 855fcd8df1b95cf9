//! What the parser refuses, and that no input makes it panic.

use proptest::prelude::*;

use super::*;
use crate::limits::STREAM_HEAD_BYTES_MAX;
use crate::qemu_stream::error::Name;

fn name(name: &str) -> Name {
    Name::new(name.as_bytes())
}

#[test]
fn whole_stream_is_accepted() {
    let seen = events(&Craft::whole().0, &[usize::MAX]).expect("valid");
    let kinds: Vec<_> =
        seen.iter().filter(|event| !matches!(event, Seen::Raw(_) | Seen::RamStart(..))).collect();
    let page = |fill: u8| vec![fill; PAGE_SIZE];
    let expected = [
        Seen::Page(0, 1, page(0xa1)),
        Seen::Zero(0, 2),
        Seen::Page(0, 1, page(0xa2)),
        Seen::MultifdFlush,
        Seen::PartEnd,
        Seen::Page(1, 0, page(0xb1)),
        Seen::RamEnd,
    ];
    assert_eq!(kinds, expected.iter().collect::<Vec<_>>());
    assert_eq!(seen.last(), Some(&Seen::Raw(b"\x04device state\x00\x06description".to_vec())));
}

#[test]
fn byte_by_byte_gives_the_same_events() {
    let stream = Craft::whole().0;
    assert_eq!(events(&stream, &[1]), events(&stream, &[usize::MAX]));
}

#[test]
fn truncation_anywhere_before_the_end_of_ram_is_told() {
    let stream = Craft::whole().0;
    let ram_end = stream.len() - b"\x04device state\x00\x06description".len();
    for length in 0..ram_end {
        let error = events(&stream[..length], &[usize::MAX]).expect_err("cut off");
        assert!(matches!(error.kind, ParseErrorKind::Truncated(_)), "{length}: {error}");
        assert_eq!(error.offset, length as u64);
        assert_eq!(events(&stream[..length], &[7]), Err(error), "{length} in pieces");
    }
    assert!(events(&stream[..ram_end], &[usize::MAX]).is_ok());
}

#[test]
fn heads_that_are_refused() {
    let header = |magic: u32, version: u32| error_of(&Craft(Vec::new()).be32(magic).be32(version).0);
    assert_eq!(header(0x1122_3344, 1), ParseErrorKind::Multifd);
    assert_eq!(header(0x4745_5420, 3), ParseErrorKind::Magic(0x4745_5420));
    assert_eq!(header(super::super::MAGIC, 2), ParseErrorKind::Version(2));
    let config = |craft: Craft| error_of(&craft.0);
    assert_eq!(config(Craft::header().bytes(&[1])), ParseErrorKind::NoConfiguration);
    assert_eq!(config(Craft::header().bytes(&[7]).be32(u32::MAX)), ParseErrorKind::Name("machine type"));
    assert_eq!(config(Craft::header().bytes(&[7]).be32(0)), ParseErrorKind::Name("machine type"));
    let sub = |sub: &str, payload: &[u8]| error_of(&Craft::configured().subsection(sub, payload).0);
    assert_eq!(sub("configuration/new", &[]), ParseErrorKind::Subsection(name("configuration/new")));
    assert_eq!(sub("configuration/target-page-bits", &[0, 0, 0, 14]), ParseErrorKind::PageBits(14));
    assert_eq!(sub("configuration/capabilities", &[255; 4]), ParseErrorKind::CapabilityCount(u32::MAX));
    for capability in ["x-ignore-shared", "mapped-ram"] {
        let list = Craft::configured().subsection("configuration/capabilities", &[0, 0, 0, 2]);
        let error = error_of(&list.name("xbzrle").name(capability).0);
        assert_eq!(error, ParseErrorKind::Capability(name(capability)));
    }
    let version = Craft::configured().bytes(&[5]).name("configuration/uuid").be32(2);
    assert_eq!(config(version), ParseErrorKind::SubsectionVersion(name("configuration/uuid"), 2));
}

#[test]
fn known_subsections_are_accepted() {
    let mut parser = Parser::new();
    let craft = Craft::configured()
        .subsection("configuration/target-page-bits", &[0, 0, 0, 12])
        .subsection("configuration/capabilities", &[0, 0, 0, 2])
        .name("return-path")
        .name("events")
        .subsection("configuration/uuid", &[7; 16])
        .command(1, b"");
    parser.feed(&craft.0, |_| Ok::<_, ParseError>(())).expect("valid");
    assert_eq!((parser.machine(), parser.uuid()), (Some("pc"), Some([7; 16])));
    assert_eq!(parser.offset(), craft.0.len() as u64);
}

#[test]
fn commands_that_are_refused() {
    for command in [3, 4, 5, 6, 7, 8, 9, 10, 12, 0xffff] {
        let stream = Craft::configured().command(command, &[]).0;
        assert_eq!(error_of(&stream), ParseErrorKind::Command(command));
        let stream = Craft::part_filled().command(command, &[0; 4]).0;
        assert_eq!(error_of(&stream), ParseErrorKind::Command(command));
    }
    assert_eq!(error_of(&Craft::configured().command(2, &[0; 5]).0), ParseErrorKind::CommandLength(2, 5));
    assert_eq!(error_of(&Craft::configured().command(11, &[0]).0), ParseErrorKind::CommandLength(11, 1));
}

#[test]
fn foreign_sections_are_named() {
    for (kind, section) in
        [(1, "block"), (1, "dirty-bitmap"), (1, "0000:00:05.0/vfio"), (4, "virtio-mem-device-early")]
    {
        for craft in [Craft::configured(), Craft::started(), Craft::part_filled()] {
            let error = error_of(&craft.section(kind, section, 9, 1).0);
            assert_eq!(error, ParseErrorKind::Section { name: name(section), id: 9 });
            assert!(error.to_string().contains(section), "{error}");
        }
    }
    let again = Craft::started().ram_section(1).0;
    assert_eq!(error_of(&again), ParseErrorKind::RamSection { instance: 0, version: 4 });
    let old = Craft::configured().section(1, "ram", 2, 3).0;
    assert_eq!(error_of(&old), ParseErrorKind::RamSection { instance: 0, version: 3 });
    assert_eq!(error_of(&Craft::started().bytes(&[2]).be32(9).0), ParseErrorKind::SectionId(9));
    assert_eq!(error_of(&Craft::configured().part().0), ParseErrorKind::SectionId(2));
    assert_eq!(error_of(&Craft::started().bytes(&[0]).0), ParseErrorKind::EarlyEnd);
    assert_eq!(error_of(&Craft::started().bytes(&[0x66]).0), ParseErrorKind::SectionType(0x66));
    let escaped = error_of(&Craft::configured().section(4, "a\x1b[31m\n", 9, 1).0).to_string();
    assert!(!escaped.contains(char::is_control), "{escaped}");
}

#[test]
fn block_lists_that_are_refused() {
    let list = |total: u64| Craft::configured().ram_section(1).be64(total);
    assert_eq!(error_of(&list(4096).0), ParseErrorKind::BlockList("no total"));
    assert_eq!(error_of(&list(4).0), ParseErrorKind::BlockList("no block"));
    assert_eq!(error_of(&list(0x1004).block("", 0x1000).0), ParseErrorKind::Name("RAM block"));
    assert_eq!(
        error_of(&list(0x1004).block("a", 0x2000).0),
        ParseErrorKind::BlockList("the blocks exceed the total")
    );
    for bytes in [0, 0x1001, (1 << 44) + 4096, u64::MAX] {
        let error = error_of(&list(!0xfff | 4).block("a", bytes).0);
        assert_eq!(error, ParseErrorKind::BlockBytes { name: name("a"), bytes });
    }
    let twice = list(0x3004).block("a", 0x1000).block("a", 0x1000).0;
    assert_eq!(error_of(&twice), ParseErrorKind::BlockList("a name stands twice"));
    // As with postcopy-ram and huge pages: a page size behind the length.
    let extra = list(0x1004).block("a", 0x1000).be64(0x20_0000).0;
    assert_eq!(error_of(&extra), ParseErrorKind::BlockList("no end mark behind the blocks"));
    let many = (0..=1024).fold(list(0x40_0000_0004), |craft, i| craft.block(&i.to_string(), 0x1000));
    assert_eq!(error_of(&many.0), ParseErrorKind::BlockList("too many blocks"));
}

#[test]
fn records_that_are_refused() {
    let part = || Craft::started().part();
    assert_eq!(error_of(&part().record(0x28, 0).0), ParseErrorKind::NoBlock);
    assert_eq!(error_of(&part().named(0x08, 0, "pc.rom").0), ParseErrorKind::Block(name("pc.rom")));
    for (block, page) in [("pc.ram", 4), ("rom", 1), ("pc.ram", 1 << 32), ("rom", (1 << 52) - 1)] {
        // The footer's mark is told apart first.
        if page << 4 >> 56 != 0x7e {
            let error = error_of(&part().named(0x08, page, block).0);
            assert_eq!(error, ParseErrorKind::Offset { name: name(block), offset: page << 12 });
        }
    }
    assert_eq!(error_of(&part().named(0x02, 0, "rom").bytes(&[1]).0), ParseErrorKind::Fill(1));
    assert_eq!(error_of(&part().record(0x10, 1).0), ParseErrorKind::Record(0x1010));
    assert_eq!(error_of(&part().record(0x30, 0).0), ParseErrorKind::Record(0x30));
    assert_eq!(error_of(&part().footer().0), ParseErrorKind::NoEndMark);
    let other = part().record(0x10, 0).bytes(&[0x7e]).be32(3).0;
    assert_eq!(error_of(&other), ParseErrorKind::Footer);
    assert_eq!(error_of(&part().record(0x10, 0).bytes(&[8]).0), ParseErrorKind::Footer);
    let flags =
        [(0x01, "FULL"), (0x04, "MEM_SIZE"), (0x40, "XBZRLE"), (0x80, "HOOK"), (0x100, "COMPRESS_PAGE")];
    for (flag, label) in
        flags.into_iter().chain([(0x400, "unknown"), (0x800, "unknown"), (0, "none"), (0x0a, "")])
    {
        let error = error_of(&part().record(flag, 0).0);
        assert_eq!(error, ParseErrorKind::Flags(flag));
        assert!(error.to_string().contains(label), "{error}");
    }
}

#[test]
fn continue_refers_to_the_last_record_over_sections() {
    let craft = Craft::part_filled().part().record(0x22, 3).bytes(&[0]).record(0x10, 0).footer().end();
    let seen = events(&craft.0, &[usize::MAX]).expect("valid");
    assert!(seen.contains(&Seen::Zero(0, 3)));
}

#[test]
fn head_is_bounded() {
    let mut craft = Craft::configured();
    while craft.0.len() <= STREAM_HEAD_BYTES_MAX {
        craft = craft.command(2, &[0; 4]);
    }
    assert_eq!(error_of(&craft.0), ParseErrorKind::HeadBytes(STREAM_HEAD_BYTES_MAX));
}

#[test]
fn failed_parser_stays_failed() {
    let mut parser = Parser::new();
    let bad = Craft::started().part().footer().0;
    let error = parser.feed(&bad, |_| Ok::<_, ParseError>(())).expect_err("no end mark");
    assert_eq!(error.offset, (bad.len() - 5) as u64);
    let good = Craft::whole().0;
    assert_eq!(parser.next_event(&mut &good[..]), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048), piece in 1usize..512) {
        let _ = events(&bytes, &[piece]);
        let _ = events(&[&Craft::started().part().0[..], &bytes].concat(), &[piece]);
    }

    #[test]
    fn mutated_stream_is_the_same_however_it_is_cut(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        pieces in prop::collection::vec(1usize..3000, 1..20),
    ) {
        let mut stream = Craft::whole().0;
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        let (cut, whole) = (events(&stream, &pieces), events(&stream, &[usize::MAX]));
        match (cut, whole) {
            (Ok(cut), Ok(whole)) => prop_assert_eq!(cut, whole),
            (Err(cut), Err(whole)) => prop_assert_eq!(cut, whole),
            (cut, whole) => prop_assert!(false, "{:?} against {:?}", cut.err(), whole.err()),
        }
    }

    /// Damage in the elements rather than in page contents, where most bytes are.
    #[test]
    fn damaged_elements_never_panic(at in 0usize..400, value in any::<u8>(), piece in 1usize..64) {
        let mut stream = Craft::whole().0;
        stream[at] = value;
        let _ = events(&stream, &[piece]);
    }
}
