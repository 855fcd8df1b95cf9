use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::limits::{CONTENT_ADDRS_MAX, FRAME_PAGES_MAX};
use crate::page::PAGE_SIZE;

type Contents = Vec<(Vec<PageAddr>, Vec<u8>)>;

fn addr(vm: u16, block: u16, page: u32) -> PageAddr {
    PageAddr { vm, block, page }
}

fn page(seed: u64, random: bool) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut byte = |at: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if random { (state >> 56) as u8 } else { (seed as usize + at / 64) as u8 }
    };
    (0..PAGE_SIZE).map(&mut byte).collect()
}

fn encode(contents: &Contents, compression: Compression) -> Result<Vec<u8>, FrameError> {
    Encoder::new().scatter(contents.iter().map(|(addrs, page)| (&addrs[..], &page[..])), compression)
}

fn decode(body: &[u8]) -> Result<Contents, FrameError> {
    let mut decoder = Decoder::new();
    let frame = decoder.scatter(body)?;
    Ok(frame.contents().map(|(addrs, page)| (addrs.to_vec(), page.to_vec())).collect())
}

fn addrs() -> impl Strategy<Value = Vec<PageAddr>> {
    let page = prop_oneof![0u32..40, any::<u32>()];
    btree_set((0u16..3, 0u16..2, page), 1..12)
        .prop_map(|set| set.into_iter().map(|(vm, block, page)| addr(vm, block, page)).collect())
}

fn contents() -> impl Strategy<Value = Contents> {
    vec((addrs(), any::<(u64, bool)>().prop_map(|(seed, random)| page(seed, random))), 1..6)
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Zstd(1)), Just(Compression::Zstd(-1))]
}

/// What a stream said, for comparison with what comes out.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Raw(Vec<u8>),
    Start(u32),
    Page(u16, u32, u64),
    Zero(u16, u32),
    End,
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        vec(any::<u8>(), 1..50).prop_map(Said::Raw),
        any::<u32>().prop_map(Said::Start),
        (0u16..2, 0u32..9, 0u64..3).prop_map(|(block, at, seed)| Said::Page(block, at, seed)),
        (0u16..2, 0u32..9).prop_map(|(block, at)| Said::Zero(block, at)),
        Just(Said::End),
    ]
}

fn flatten(body: &StreamBody<'_>) -> (Vec<Said>, usize) {
    let (mut out, mut items) = (Vec::<Said>::new(), 0);
    for item in body.items() {
        items += 1;
        match item {
            StreamItem::Raw(bytes) => out.extend(bytes.iter().map(|byte| Said::Raw(vec![*byte]))),
            StreamItem::RamStart { section_id } => out.push(Said::Start(section_id)),
            StreamItem::RamEnd => out.push(Said::End),
            StreamItem::Page { block, page: at, data } => {
                let seed = (0..3).find(|seed| page(*seed, true) == data[..]).expect("one of the pages");
                out.push(Said::Page(block, at, seed));
            }
            StreamItem::Zero { block, first, count } => {
                out.extend((first..first + count).map(|at| Said::Zero(block, at)));
            }
        }
    }
    (out, items)
}

#[test]
fn addresses_that_follow_each_other_take_a_byte_each() {
    let addrs: Vec<_> = (0..100).map(|at| addr(0, 0, 1000 + at)).collect();
    let one = vec![(addrs.clone(), page(1, true)), (vec![addr(0, 0, 999)], page(2, true))];
    let len = encode(&one, Compression::None).unwrap().len();
    assert_eq!(len, HEAD_BYTES + 2 * PAGE_SIZE + 1 + (1 + 2 + 99) + (1 + 1));
    assert_eq!(decode(&encode(&one, Compression::None).unwrap()).unwrap(), one);
}

#[test]
fn compression_is_used_when_it_pays() {
    let form = |random, compression| {
        let one = vec![(vec![addr(1, 2, 3)], page(7, random))];
        let body = encode(&one, compression).unwrap();
        assert_eq!(decode(&body).unwrap(), one);
        (body[0], body.len() < PAGE_SIZE)
    };
    assert_eq!(form(false, Compression::Zstd(1)), (FORM_ZSTD, true));
    assert_eq!(form(true, Compression::Zstd(1)), (FORM_PLAIN, false));
    assert_eq!(form(false, Compression::None), (FORM_PLAIN, false));
}

#[test]
fn encoder_refuses_what_no_decoder_takes() {
    let content = |addrs: Vec<PageAddr>| (addrs, page(1, true));
    let refused = |contents: Contents| encode(&contents, Compression::None).unwrap_err();
    let one = content(vec![addr(0, 0, 0)]);
    assert_eq!(refused(vec![]), FrameError::Refused("no contents"));
    assert_eq!(refused(vec![content(vec![])]), FrameError::Malformed("content without address"));
    let unsorted = content(vec![addr(0, 0, 1), addr(0, 0, 1)]);
    assert_eq!(refused(vec![unsorted]), FrameError::Refused("addresses out of order"));
    assert_eq!(refused(vec![(one.0.clone(), vec![0; 8])]), FrameError::Refused("a page has 4096 bytes"));
    assert_eq!(refused(vec![one; FRAME_PAGES_MAX + 1]), FrameError::Limit("FRAME_PAGES_MAX"));
    let many = |count: usize| content((0..count as u32).map(|at| addr(0, 0, at)).collect());
    assert_eq!(refused(vec![many(CONTENT_ADDRS_MAX + 1)]), FrameError::Limit("CONTENT_ADDRS_MAX"));
    assert_eq!(refused(vec![many(CONTENT_ADDRS_MAX); 5]), FrameError::Limit("FRAME_ADDRS_MAX"));
    assert!(encode(&vec![many(CONTENT_ADDRS_MAX); 4], Compression::None).is_ok());
}

#[test]
fn decoder_checks_lengths_before_it_works() {
    let head = |form: u8, len: u32, rest: &[u8]| {
        let mut body = vec![form];
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(rest);
        decode(&body).unwrap_err()
    };
    assert_eq!(head(FORM_ZSTD, u32::MAX, &[]), FrameError::Limit("FRAME_BODY_BYTES_MAX"));
    assert_eq!(head(FORM_PLAIN, 7, &[0; 6]), FrameError::Short);
    assert_eq!(head(2, 0, &[]), FrameError::Form(2));
    // A bomb: more comes out than is announced, or less.
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert_eq!(head(FORM_ZSTD, FRAME_BODY_BYTES_MAX as u32, &bomb), FrameError::Compressed);
    let less = zstd::bulk::compress(&[0; 100], 1).unwrap();
    assert_eq!(head(FORM_ZSTD, 101, &less), FrameError::Compressed);
    assert_eq!(head(FORM_PLAIN, 1, &[FRAME_PAGES_MAX as u8 + 1]), FrameError::Limit("FRAME_PAGES_MAX"));
    assert_eq!(head(FORM_PLAIN, 1, &[0]), FrameError::Malformed("no contents"));
    assert_eq!(head(FORM_PLAIN, 2, &[0x80, 0]), FrameError::Malformed("padded number"));
}

#[test]
fn stream_frame_says_when_it_is_full() {
    let mut builder = StreamFrameBuilder::new();
    let data: [u8; PAGE_SIZE] = page(1, true).try_into().unwrap();
    for at in 0..FRAME_PAGES_MAX as u32 {
        builder.page(0, 2 * at, &data).unwrap();
    }
    assert_eq!(builder.page(0, 1, &data), Err(FrameFull));
    builder.zero_run(0, 0, STREAM_ZERO_PAGES_MAX as u32).unwrap();
    assert_eq!(builder.zero_run(0, 0, 1), Err(FrameFull));
    let room = builder.raw_room();
    assert_eq!(builder.raw(&vec![7; room + 1]), Err(FrameFull));
    builder.raw(&vec![7; room]).unwrap();
    assert_eq!(builder.ram_end(), Err(FrameFull));
    let body = builder.finish(Compression::None, &mut Encoder::new());
    assert!(body.len() <= super::super::piece::FRAME_SEALED_BODY_BYTES_MAX);
    assert!(builder.is_empty());
    assert_eq!(Decoder::new().stream(&body).unwrap().page_count(), FRAME_PAGES_MAX);
}

#[test]
fn stream_runs_are_bounded() {
    let plain = |items: &[u8]| {
        let mut plain = (items.len() as u32).to_be_bytes().to_vec();
        plain.extend_from_slice(items);
        stream::read_plain(&plain).map(|_| ()).unwrap_err()
    };
    let run = |kind: u8, first: u64, count: u64| {
        let mut items = vec![kind, 0];
        put_varint(&mut items, first);
        put_varint(&mut items, count);
        items
    };
    let zeros = run(5, 0, STREAM_ZERO_PAGES_MAX);
    assert_eq!(plain(&[&zeros[..], &run(5, 0, 1)].concat()), FrameError::Limit("STREAM_ZERO_PAGES_MAX"));
    assert_eq!(plain(&run(5, 0, 0)), FrameError::Malformed("run of pages"));
    assert_eq!(plain(&run(5, u32::MAX.into(), 2)), FrameError::Malformed("run of pages"));
    assert_eq!(plain(&run(4, 0, FRAME_PAGES_MAX as u64 + 1)), FrameError::Limit("FRAME_PAGES_MAX"));
    assert_eq!(plain(&run(4, 0, 1)), FrameError::Malformed("pages and runs differ in number"));
    assert_eq!(plain(&[9]), FrameError::Malformed("unknown item"));
    assert_eq!(plain(&[1, 0, 0, 0, 9, 1]), FrameError::Short);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn scatter_comes_back(contents in contents(), compression in compression()) {
        let body = encode(&contents, compression).unwrap();
        prop_assert_eq!(decode(&body).unwrap(), contents);
    }

    #[test]
    fn stream_comes_back(said in vec(said(), 0..60), compression in compression()) {
        let mut builder = StreamFrameBuilder::new();
        let mut expected = Vec::new();
        for said in said {
            match &said {
                Said::Raw(bytes) => {
                    builder.raw(bytes).unwrap();
                    expected.extend(bytes.iter().map(|byte| Said::Raw(vec![*byte])));
                    continue;
                }
                Said::Start(id) => builder.ram_start(*id).unwrap(),
                Said::Page(block, at, seed) => {
                    builder.page(*block, *at, &page(*seed, true).try_into().unwrap()).unwrap();
                }
                Said::Zero(block, at) => builder.zero_run(*block, *at, 1).unwrap(),
                Said::End => builder.ram_end().unwrap(),
            }
            expected.push(said);
        }
        let bound = builder.len();
        let body = builder.finish(compression, &mut Encoder::new());
        prop_assert!(body.len() <= HEAD_BYTES + bound);
        let mut decoder = Decoder::new();
        let (out, _) = flatten(&decoder.stream(&body).unwrap());
        prop_assert_eq!(out, expected);
    }

    /// No panic, and what is accepted is bounded, whatever a peer sends.
    #[test]
    fn changed_bodies_never_panic(
        contents in contents(),
        compression in compression(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = encode(&contents, compression).unwrap();
        for (at, value) in changes {
            // Most bytes are page data; the front is where the structure stands.
            let len = body.len().min(64);
            body[at.index(len)] = value;
        }
        if let Ok(contents) = decode(&body) {
            prop_assert!(contents.len() <= FRAME_PAGES_MAX);
        }
        let _ = Decoder::new().stream(&body).map(|body| flatten_len(&body));
        body.truncate(cut.index(body.len()));
        prop_assert!(decode(&body).is_err());
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
        let mut plain = vec![FORM_PLAIN];
        plain.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        plain.extend_from_slice(&bytes);
        let _ = decode(&plain);
        let _ = Decoder::new().stream(&plain).map(|body| flatten_len(&body));
        let items = bytes.len().saturating_sub(4) as u32;
        if bytes.len() >= 4 {
            plain[HEAD_BYTES..HEAD_BYTES + 4].copy_from_slice(&items.to_be_bytes());
            let _ = Decoder::new().stream(&plain).map(|body| flatten_len(&body));
        }
    }
}

fn flatten_len(body: &StreamBody<'_>) -> usize {
    body.items().count()
}

#[test]
fn neighbours_become_one_run() {
    let mut builder = StreamFrameBuilder::new();
    for at in 5..500 {
        builder.zero_run(1, at, 1).unwrap();
    }
    let body = builder.finish(Compression::None, &mut Encoder::new());
    let mut decoder = Decoder::new();
    let items: Vec<_> = decoder.stream(&body).unwrap().items().collect();
    assert_eq!(items, [StreamItem::Zero { block: 1, first: 5, count: 495 }]);
}
