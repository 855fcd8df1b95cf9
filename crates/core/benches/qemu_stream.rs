//! How fast a stream is parsed, alone and with the MAC of each page, from a buffer of 64 MiB.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vmscatter_core::page::{MacKey, PAGE_SIZE};
use vmscatter_core::qemu_stream::{Composer, Event, ParseError, Parser, RamBlock};

const PAGES: u32 = 16 * 1024;
/// How much a driver reads from the socket at once.
const READ_BYTES: usize = 1024 * 1024;

/// A stream of [`PAGES`] distinct pages.
fn stream() -> Vec<u8> {
    let bytes = u64::from(PAGES) * PAGE_SIZE as u64;
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    head.extend_from_slice(&(bytes | 4).to_be_bytes());
    head.extend_from_slice(b"\x06pc.ram");
    head.extend_from_slice(&bytes.to_be_bytes());
    head.extend_from_slice(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    let (mut composer, mut out, mut page) = (Composer::new(), Vec::new(), [0x5a; PAGE_SIZE]);
    composer.raw(&mut out, &head);
    composer.ram_start(2, vec![RamBlock { name: "pc.ram".into(), bytes }]).expect("first START");
    for number in 0..PAGES {
        page[..4].copy_from_slice(&number.to_le_bytes());
        composer.page(&mut out, 0, number, &page).expect("in range");
    }
    composer.ram_end(&mut out).expect("in RAM");
    out
}

fn parse(stream: &[u8], mut page: impl FnMut(&[u8])) {
    let mut parser = Parser::new();
    for input in stream.chunks(READ_BYTES) {
        let sink = |event: Event<'_>| {
            if let Event::Page { data, .. } = event {
                page(data);
            }
            Ok::<_, ParseError>(())
        };
        parser.feed(input, sink).expect("valid");
    }
    parser.finish().expect("whole");
}

fn bench(c: &mut Criterion) {
    let stream = stream();
    let key = MacKey::new(&[7; 16]);
    let mut group = c.benchmark_group("qemu_stream");
    group.throughput(Throughput::Bytes(stream.len() as u64)).sample_size(20);
    group.bench_function("parse", |b| b.iter(|| parse(&stream, |data| _ = black_box(data))));
    group.bench_function("parse_and_mac", |b| b.iter(|| parse(&stream, |data| _ = black_box(key.mac(data)))));
    group.bench_function("mac", |b| {
        b.iter(|| stream.chunks_exact(PAGE_SIZE).for_each(|page| _ = black_box(key.mac(page))))
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
