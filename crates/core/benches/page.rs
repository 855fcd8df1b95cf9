//! GB/s of the zero test and of the page MAC on one core, from cache and from DRAM:
//! `cargo bench -p vmscatter-core --bench page`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmscatter_core::page::{MacKey, PAGE_SIZE, is_zero};

/// Fits the second-level cache of any current server core.
const WARM_BYTES: usize = 256 * 1024;
/// Far beyond any last-level cache.
const DRAM_BYTES: usize = 1024 * 1024 * 1024;

fn bench_page(criterion: &mut Criterion) {
    let key = MacKey::new(&[7; 16]);
    for (place, bytes) in [("warm", WARM_BYTES), ("dram", DRAM_BYTES)] {
        let mut group = criterion.benchmark_group(place);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.sample_size(if bytes == DRAM_BYTES { 10 } else { 100 });
        // Written, so that no two virtual pages share the kernel's zero page; all zero but the last byte of
        // each page, which is the zero test's longest way.
        let mut memory = vec![0u8; bytes];
        for page in memory.chunks_exact_mut(PAGE_SIZE) {
            page[PAGE_SIZE - 1] = 1;
        }
        group.bench_function(BenchmarkId::from_parameter("zero test"), |bencher| {
            bencher.iter(|| black_box(&memory).chunks_exact(PAGE_SIZE).filter(|page| is_zero(page)).count())
        });
        group.bench_function(BenchmarkId::from_parameter("MAC"), |bencher| {
            bencher.iter(|| {
                let pages = black_box(&memory).chunks_exact(PAGE_SIZE);
                pages.fold(0u8, |sum, page| sum ^ key.mac(page).0[0])
            })
        });
        group.bench_function(BenchmarkId::from_parameter("zero test, then MAC"), |bencher| {
            bencher.iter(|| {
                let pages = black_box(&memory).chunks_exact(PAGE_SIZE).filter(|page| !is_zero(page));
                pages.fold(0u8, |sum, page| sum ^ key.mac(page).0[0])
            })
        });
        group.bench_function(BenchmarkId::from_parameter("plain copy"), |bencher| {
            let mut copy = vec![0u8; 64 * PAGE_SIZE];
            bencher.iter(|| {
                for chunk in black_box(&memory).chunks_exact(copy.len()) {
                    black_box(&mut copy).copy_from_slice(chunk);
                }
            })
        });
        group.finish();
    }
}

criterion_group!(benches, bench_page);
criterion_main!(benches);
