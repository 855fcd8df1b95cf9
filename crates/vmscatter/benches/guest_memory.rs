//! How fast memory is read out of a process, alone and with the MAC of each page: what collecting costs a core.
//!
//! The process is this one, which the kernel's copy does not tell from another; 512 MiB, far beyond any cache.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vmscatter::qemu::GuestMemory;
use vmscatter::qemu::ramblock::RamBlockInfo;
use vmscatter_core::limits::MEMORY_READ_BYTES;
use vmscatter_core::page::{MacKey, PAGE_SIZE};

const BYTES: usize = 512 << 20;

fn open(address: *const u8) -> GuestMemory {
    let block = RamBlockInfo {
        name: "ram".into(),
        bytes: BYTES as u64,
        host_address: Some((address as u64).next_multiple_of(PAGE_SIZE as u64)),
    };
    GuestMemory::open(std::process::id() as i32, &[block]).expect("own memory")
}

fn read_all(memory: &GuestMemory, mut page: impl FnMut(&[u8])) {
    let mut buffer = vec![0; MEMORY_READ_BYTES];
    let pages = (BYTES / PAGE_SIZE) as u32;
    for range in memory.populated(0, 0, pages).expect("populated") {
        for first in range.clone().step_by(MEMORY_READ_BYTES / PAGE_SIZE) {
            let count = ((range.end - first) as usize).min(MEMORY_READ_BYTES / PAGE_SIZE);
            let out = &mut buffer[..count * PAGE_SIZE];
            memory.read(0, first, out).expect("read");
            out.chunks_exact(PAGE_SIZE).for_each(&mut page);
        }
    }
}

fn bench(c: &mut Criterion) {
    let key = MacKey::new(&[7; 16]);
    let ram: Vec<u8> = (0..(BYTES + PAGE_SIZE) / 8).flat_map(|word| (word as u64).to_le_bytes()).collect();
    let memory = open(ram.as_ptr());
    let mut group = c.benchmark_group("guest_memory");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
    group.bench_function("private", |b| b.iter(|| read_all(&memory, |page| _ = black_box(page))));
    group.bench_function("private_and_mac", |b| {
        b.iter(|| read_all(&memory, |page| _ = black_box(key.mac(page))))
    });
    group.bench_function("page_map", |b| b.iter(|| memory.populated(0, 0, (BYTES / PAGE_SIZE) as u32)));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
