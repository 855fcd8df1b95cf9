//! Compares all RAM of a stopped source QEMU with that of its loaded target, page by page, through `/proc/PID/mem`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};

use crate::guest::Accel;
use crate::qmp::Qmp;

const PAGE_SIZE: usize = 4096;
const CHUNK: usize = 1 << 20;
/// The page that differs in a direct QEMU-to-QEMU migration as well, under KVM: the kvmvapic option ROM.
const KVM_VAPIC_PAGE: u64 = 0xe8;

/// What a comparison found.
#[derive(Debug, Default, Clone)]
pub struct Comparison {
    /// Pages that were compared.
    pub pages: u64,
    /// Block and page number of pages that differ and should not.
    pub differing: Vec<(String, u64)>,
    /// Blocks whose address this QEMU does not tell.
    pub skipped: Vec<String>,
}

/// Name and bytes of a RAM block, and its address in the QEMU process if that is known.
struct Block {
    name: String,
    bytes: u64,
    address: Option<u64>,
}

/// Compares two QEMUs. Both must be stopped, else pages differ that need not.
pub fn compare(source: &Qmp, target: &Qmp, accel: Accel) -> Result<Comparison> {
    let (source_blocks, target_blocks) = (blocks(source)?, blocks(target)?);
    let (source_memory, target_memory) = (memory(source)?, memory(target)?);
    let mut comparison = Comparison::default();
    for block in source_blocks {
        let twin = target_blocks.iter().find(|twin| twin.name == block.name);
        let twin = twin.with_context(|| format!("the target has no RAM block {}", block.name))?;
        if twin.bytes != block.bytes {
            bail!("RAM block {} has {} bytes, {} at the target", block.name, block.bytes, twin.bytes);
        }
        let (Some(left), Some(right)) = (block.address, twin.address) else {
            comparison.skipped.push(block.name);
            continue;
        };
        let (mut left_chunk, mut right_chunk) = (vec![0; CHUNK], vec![0; CHUNK]);
        for offset in (0..block.bytes).step_by(CHUNK) {
            let length = CHUNK.min((block.bytes - offset) as usize);
            source_memory.read_exact_at(&mut left_chunk[..length], left + offset)?;
            target_memory.read_exact_at(&mut right_chunk[..length], right + offset)?;
            let pages = left_chunk[..length].chunks(PAGE_SIZE).zip(right_chunk[..length].chunks(PAGE_SIZE));
            for (page, (left, right)) in (offset / PAGE_SIZE as u64..).zip(pages) {
                comparison.pages += 1;
                let allowed = accel == Accel::Kvm && block.name == "pc.ram" && page == KVM_VAPIC_PAGE;
                if left != right && !allowed {
                    comparison.differing.push((block.name.clone(), page));
                }
            }
        }
    }
    Ok(comparison)
}

/// Flips one bit in each page of pc.ram that holds exactly `content`; returns how many there were. QEMU must be stopped.
/// For tests that damage must not go unnoticed.
pub fn flip_bit_of(qmp: &Qmp, content: &[u8]) -> Result<usize> {
    let blocks = blocks(qmp)?;
    let ram = blocks.iter().find(|block| block.name == "pc.ram").context("no pc.ram")?;
    let address = ram.address.context("the address of pc.ram is not known")?;
    let path = format!("/proc/{}/mem", qmp.pid());
    let memory = File::options().read(true).write(true).open(&path).context(path)?;
    let mut page = vec![0; PAGE_SIZE];
    let mut flipped = 0;
    for offset in (0..ram.bytes).step_by(PAGE_SIZE) {
        memory.read_exact_at(&mut page, address + offset)?;
        if page == content {
            memory.write_all_at(&[page[PAGE_SIZE / 2] ^ 1], address + offset + PAGE_SIZE as u64 / 2)?;
            flipped += 1;
        }
    }
    Ok(flipped)
}

/// Interim.
pub(crate) fn known_blocks(qmp: &Qmp) -> Result<Vec<(u64, u64)>> {
    Ok(blocks(qmp)?.into_iter().filter_map(|block| Some((block.address?, block.bytes))).collect())
}

fn memory(qmp: &Qmp) -> Result<File> {
    let path = format!("/proc/{}/mem", qmp.pid());
    File::open(&path).context(path)
}

/// The rows of `info ramblock`: name, page size and unit, then hexadecimal offset, used and total length, and from
/// QEMU 8.0 on the address. Before that, `gpa2hva` tells the address of the blocks that lie at a known place.
fn blocks(qmp: &Qmp) -> Result<Vec<Block>> {
    let table = qmp.human("info ramblock")?;
    let mut blocks = Vec::new();
    for row in table.lines().skip(1) {
        let words: Vec<&str> = row.split_ascii_whitespace().collect();
        let hex: Vec<u64> =
            words.iter().filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect();
        let (Some(name), Some(&bytes)) = (words.first(), hex.get(1)) else { continue };
        let address = match hex.get(3) {
            Some(&address) => Some(address),
            None => known_place(name, bytes).and_then(|place| address_of(qmp, name, place)),
        };
        blocks.push(Block { name: name.to_string(), bytes, address });
    }
    if !blocks.iter().any(|block| block.address.is_some()) {
        bail!("`info ramblock` names no RAM block whose address can be found:\n{table}");
    }
    Ok(blocks)
}

/// The guest-physical address of a block's first byte on a PC. All of pc.ram, also what lies above 4 GiB, is one block.
fn known_place(name: &str, bytes: u64) -> Option<u64> {
    match name {
        "pc.ram" => Some(0),
        "pc.bios" => Some((1 << 32) - bytes),
        "pc.rom" => Some(0xc0000),
        _ => None,
    }
}

/// `gpa2hva` answers `Host virtual address for 0x0 (pc.ram) is 0x7f...`; None if another block is there.
fn address_of(qmp: &Qmp, name: &str, place: u64) -> Option<u64> {
    let answer = qmp.human(&format!("gpa2hva {place:#x}")).ok()?;
    if !answer.contains(&format!("({name})")) {
        return None;
    }
    u64::from_str_radix(answer.trim().rsplit_once("is 0x")?.1, 16).ok()
}

impl Comparison {
    /// Says on stderr what differs; true if nothing does.
    pub fn report(&self, guest: &str) -> bool {
        if !self.differing.is_empty() {
            let first: Vec<String> =
                self.differing.iter().take(8).map(|(block, page)| format!("{block}:{page:#x}")).collect();
            eprintln!(
                "lab: {guest}: {} of {} pages differ, first {}",
                self.differing.len(),
                self.pages,
                first.join(" ")
            );
        }
        self.differing.is_empty()
    }
}
