//! Speed of the wire formats on one thread: sealing, opening, encoding and decoding, in page bytes per second.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmscatter_core::page::{PAGE_SIZE, PageAddr};
use vmscatter_core::wire::frame::{Compression, Decoder, Encoder, StreamFrameBuilder};
use vmscatter_core::wire::piece::{PIECE_OVERHEAD_BYTES, PieceHeader, PieceKind, open_piece, seal_piece};
use vmscatter_core::wire::seal::{Channel, OpenKey, SealKey};

const PAGES: usize = 16;

/// Pages of which half a line in each is noise: they compress to about a third, like guests' memory.
fn pages() -> Vec<u8> {
    let mut state = 1u64;
    let mut pages = vec![0; PAGES * PAGE_SIZE];
    for line in pages.chunks_mut(64) {
        for byte in &mut line[..18] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    }
    pages
}

fn seal_and_open(c: &mut Criterion) {
    for (name, bytes) in [("datagram", 1400), ("jumbo", 8900), ("tcp", 64 * 1024)] {
        let payload = vec![7; bytes - PIECE_OVERHEAD_BYTES];
        let header = PieceHeader::whole(PieceKind::Scatter, 1, 2, 3, payload.len());
        let mut group = c.benchmark_group("piece");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        let mut out = Vec::with_capacity(bytes);
        let mut seal = SealKey::new(&[1; 32], Channel::MULTICAST);
        group.bench_function(BenchmarkId::new("seal", name), |b| {
            b.iter(|| {
                if seal.next_number() >= 1 << 27 {
                    seal = SealKey::new(&[1; 32], Channel::MULTICAST);
                }
                out.clear();
                seal_piece(&mut seal, &header, black_box(&payload), &mut out)
            });
        });
        // Opening is timed with the copy that restores what it has opened in place.
        let mut seal = SealKey::new(&[1; 32], Channel::MULTICAST);
        let sealed: Vec<Vec<u8>> = (0..64)
            .map(|_| {
                let mut out = Vec::new();
                seal_piece(&mut seal, &header, &payload, &mut out).expect("a fresh key");
                out
            })
            .collect();
        let mut buffer = sealed[0].clone();
        let mut open = OpenKey::new(&[1; 32], &[Channel::MULTICAST]);
        let mut at = 0;
        group.bench_function(BenchmarkId::new("open", name), |b| {
            b.iter(|| {
                if at == sealed.len() {
                    open = OpenKey::new(&[1; 32], &[Channel::MULTICAST]);
                    at = 0;
                }
                buffer.copy_from_slice(&sealed[at]);
                at += 1;
                open_piece(&mut open, black_box(&mut buffer)).expect("genuine").1.len()
            });
        });
        group.finish();
    }
}

fn frames(c: &mut Criterion) {
    let pages = pages();
    let addrs: Vec<[PageAddr; 3]> = (0..PAGES as u32)
        .map(|at| [0, 1, 2].map(|vm| PageAddr { vm, block: 0, page: 1000 * u32::from(vm) + at }))
        .collect();
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Bytes(pages.len() as u64));
    for (name, compression) in
        [("plain", Compression::None), ("zstd-1", Compression::Zstd(1)), ("zstd-neg1", Compression::Zstd(-1))]
    {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let mut encode = || {
            let contents = addrs.iter().map(|addrs| &addrs[..]).zip(pages.chunks(PAGE_SIZE));
            encoder.scatter(contents, compression).expect("within the limits")
        };
        let body = encode();
        group.bench_function(BenchmarkId::new("encode", name), |b| b.iter(&mut encode));
        group.bench_function(BenchmarkId::new("decode", name), |b| {
            b.iter(|| decoder.scatter(black_box(&body)).expect("genuine").contents().count());
        });
        let mut builder = StreamFrameBuilder::new();
        group.bench_function(BenchmarkId::new("stream", name), |b| {
            b.iter(|| {
                for (at, page) in pages.chunks(PAGE_SIZE).enumerate() {
                    let page = page.try_into().expect("a page's length");
                    builder.page(0, at as u32, page).expect("room for sixteen pages");
                }
                builder.finish(compression, &mut encoder)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, seal_and_open, frames);
criterion_main!(benches);
