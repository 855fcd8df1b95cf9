//! The composer by itself.

use proptest::prelude::*;

use super::*;
use crate::limits::{PART_BYTES_MAX, ZERO_RUN_PAGES_MAX};
use crate::qemu_stream::ComposeError;

fn blocks(lengths: &[(&str, u64)]) -> Vec<RamBlock> {
    let block =
        |(name, pages): &(&str, u64)| RamBlock { name: (*name).into(), bytes: pages * PAGE_SIZE as u64 };
    lengths.iter().map(block).collect()
}

/// A composer behind the START section of [`Craft::started`], and that head.
fn started() -> (Composer, Vec<u8>) {
    let (mut composer, mut out) = (Composer::new(), Vec::new());
    composer.raw(&mut out, &Craft::started().0);
    composer.ram_start(Craft::ID, blocks(&[("pc.ram", 4), ("rom", 1)])).expect("first");
    (composer, out)
}

#[test]
fn bytes_are_qemus() {
    let (mut composer, mut out) = started();
    composer.page(&mut out, 0, 1, &[0xa1; PAGE_SIZE]).expect("in range");
    composer.zero(&mut out, 0, 2).expect("in range");
    composer.raw(&mut out, b"\x08\x00\x0b\x00\x00");
    composer.page(&mut out, 0, 3, &[0xa2; PAGE_SIZE]).expect("in range");
    composer.zero(&mut out, 1, 0).expect("in range");
    composer.ram_end(&mut out).expect("in RAM");
    composer.raw(&mut out, b"tail");
    let expected = Craft::started()
        .part()
        .named(0x08, 1, "pc.ram")
        .page(0xa1)
        .record(0x22, 2)
        .bytes(&[0])
        .record(0x10, 0)
        .footer()
        .command(11, b"")
        .part()
        .record(0x28, 3)
        .page(0xa2)
        .named(0x02, 0, "rom")
        .bytes(&[0])
        .record(0x10, 0)
        .footer()
        .bytes(&[3])
        .be32(Craft::ID)
        .record(0x10, 0)
        .footer()
        .bytes(b"tail");
    assert!(out == expected.0);
}

#[test]
fn what_does_not_fit_is_refused_and_writes_nothing() {
    let page = [1; PAGE_SIZE];
    let mut out = Vec::new();
    assert_eq!(Composer::new().page(&mut out, 0, 0, &page), Err(ComposeError::NotInRam));
    assert_eq!(Composer::new().ram_end(&mut out), Err(ComposeError::NotInRam));
    let (mut composer, mut out) = started();
    let before = out.len();
    assert_eq!(composer.page(&mut out, 2, 0, &page), Err(ComposeError::Block(2)));
    assert_eq!(composer.page(&mut out, 0, 4, &page), Err(ComposeError::Page { block: 0, page: 4 }));
    assert_eq!(composer.page(&mut out, 0, 0, &page[1..]), Err(ComposeError::PageBytes(4095)));
    assert_eq!(composer.zero(&mut out, 1, u32::MAX), Err(ComposeError::Page { block: 1, page: u32::MAX }));
    let run = composer.zero_run(&mut out, 0, 1, u32::MAX);
    assert_eq!(run, Err(ComposeError::Page { block: 0, page: 1 }));
    assert_eq!(composer.ram_start(1, Vec::new()), Err(ComposeError::Started));
    assert_eq!(out.len(), before);
    composer.ram_end(&mut out).expect("in RAM");
    assert_eq!(composer.zero(&mut out, 0, 0), Err(ComposeError::NotInRam));
}

#[test]
fn long_runs_come_in_bounded_pieces() {
    let (mut composer, mut out) = (Composer::new(), Vec::new());
    composer.ram_start(1, blocks(&[("big", 1 << 32)])).expect("first");
    let written = composer.zero_run(&mut out, 0, 0, u32::MAX).expect("in range");
    assert_eq!(written, ZERO_RUN_PAGES_MAX);
    assert!(out.len() < 64 * 1024);
}

#[test]
fn parts_are_bounded() {
    let (mut composer, mut out) = started();
    let count = 3 * PART_BYTES_MAX / PAGE_SIZE;
    for i in 0..count {
        composer.page(&mut out, 0, (i % 4) as u32, &[i as u8; PAGE_SIZE]).expect("in range");
    }
    composer.ram_end(&mut out).expect("in RAM");
    let seen = events(&out, &[usize::MAX]).expect("valid");
    let parts = seen.iter().filter(|event| **event == Seen::PartEnd).count();
    assert!((3..=4).contains(&parts), "{parts} parts");
}

#[derive(Clone, Debug)]
enum Act {
    Page(u16, u32, u8),
    Zero(u16, u32),
    Flush,
    Command,
}

fn act() -> impl Strategy<Value = Act> {
    let place = prop_oneof![(Just(0u16), 0u32..4), Just((1u16, 0u32))];
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|((block, page), fill)| Act::Page(block, page, fill)),
        place.prop_map(|(block, page)| Act::Zero(block, page)),
        Just(Act::Flush),
        Just(Act::Command),
    ]
}

proptest! {
    #[test]
    fn parser_reads_back_what_was_composed(acts in prop::collection::vec(act(), 0..60)) {
        let (mut composer, mut out) = started();
        let mut expected = Vec::new();
        for act in &acts {
            match *act {
                Act::Page(block, page, fill) => {
                    composer.page(&mut out, block, page, &[fill; PAGE_SIZE])?;
                    expected.push(Seen::Page(block, page, vec![fill; PAGE_SIZE]));
                }
                Act::Zero(block, page) => {
                    composer.zero(&mut out, block, page)?;
                    expected.push(Seen::Zero(block, page));
                }
                Act::Flush => composer.flush(&mut out),
                Act::Command => composer.raw(&mut out, b"\x08\x00\x02\x00\x04ping"),
            }
        }
        composer.ram_end(&mut out)?;
        let seen = events(&out, &[usize::MAX])?;
        let pages: Vec<_> =
            seen.into_iter().filter(|event| matches!(event, Seen::Page(..) | Seen::Zero(..))).collect();
        prop_assert!(pages == expected);
    }
}
