//! Which RAM blocks a guest has, and where QEMU mapped them in its own address space.
//!
//! QEMU 8.0 on prints each block's host address. Before, it is asked where a guest-physical address that shows the
//! block is mapped (`info mtree -f`, `gpa2hva`), which finds all RAM and most ROMs but no unmapped device memory. These
//! texts are for people and change between versions: a line that is not understood is skipped, and what is found is
//! checked against the process's mappings before it is used ([`super::memory`]).

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::qmp::{Qmp, QmpError, QmpErrorKind};

/// A RAM block of a running guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlockInfo {
    /// QEMU's name (`idstr`), the same as in the migration stream.
    pub name: String,
    /// Bytes in use.
    pub bytes: u64,
    /// Where it starts in QEMU's address space, if that could be found out.
    pub host_address: Option<u64>,
}

/// A guest's blocks, in QEMU's order, which is the stream's (where some may be missing: those that do not migrate).
///
/// # Errors
/// If the monitor fails, or lists no block in a form that we know.
pub async fn ram_blocks(qmp: &Qmp) -> Result<Vec<RamBlockInfo>, QmpError> {
    let (command, text) = list(qmp).await?;
    let mut blocks = parse_blocks(&text);
    if blocks.is_empty() {
        return Err(qmp.error(command, QmpErrorKind::Answer("no RAM block in a known format".into())));
    }
    if blocks.iter().any(|block| block.host_address.is_none()) {
        let views = parse_flat_view(&qmp.human("info mtree -f").await?);
        locate(qmp, &mut blocks, &views).await?;
    }
    Ok(blocks)
}

async fn list(qmp: &Qmp) -> Result<(&'static str, String), QmpError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Human {
        human_readable_text: String,
    }
    match qmp.ask("x-query-ramblock", json!({})).await {
        Err(error) if error.is_unknown_command() => Ok(("info ramblock", qmp.human("info ramblock").await?)),
        result => result.map(|answer: Human| ("x-query-ramblock", answer.human_readable_text)),
    }
}

/// `NAME PSIZE UNIT OFFSET USED TOTAL [HVA RO]` (`ram_block_format` in QEMU's `softmmu/physmem.c`).
pub(super) fn parse_blocks(text: &str) -> Vec<RamBlockInfo> {
    let block = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let offset = fields.iter().position(|field| field.starts_with("0x"))?;
        let name = fields.get(..offset.checked_sub(2)?)?.join(" ");
        let bytes = hex(fields.get(offset + 1)?)?;
        hex(fields.get(offset + 2)?)?;
        let host_address = fields.get(offset + 3).and_then(|field| hex(field));
        (!name.is_empty() && bytes > 0).then_some(RamBlockInfo { name, bytes, host_address })
    };
    text.lines().filter_map(block).collect()
}

/// A range of guest-physical memory that is backed by a RAM block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlatRange {
    pub(super) guest_address: u64,
    /// The memory region's name: the block's, without the device's path.
    pub(super) region: String,
    /// Where in the block the range starts.
    pub(super) offset: u64,
}

/// `START-END (prio N, ram|rom|romd): REGION[ @OFFSET][ KVM]` below the view of the address space `memory`.
pub(super) fn parse_flat_view(text: &str) -> Vec<FlatRange> {
    let (mut ranges, mut ours) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("FlatView") {
            ours = false;
        } else if line.starts_with("AS \"memory\"") {
            ours = true;
        } else if ours {
            ranges.extend(flat_range(line));
        }
    }
    ranges
}

fn flat_range(line: &str) -> Option<FlatRange> {
    let (range, rest) = line.split_once(" (prio ")?;
    let (kind, region) = rest.split_once("): ")?;
    if !matches!(kind.split_once(", ")?.1, "ram" | "rom" | "romd") {
        return None;
    }
    let guest_address = u64::from_str_radix(range.split_once('-')?.0, 16).ok()?;
    let region = region.strip_suffix(" KVM").unwrap_or(region);
    let (region, offset) = match region.rsplit_once(" @") {
        Some((region, offset)) => (region, u64::from_str_radix(offset, 16).ok()?),
        None => (region, 0),
    };
    Some(FlatRange { guest_address, region: region.to_owned(), offset })
}

/// Asks for the host address of one guest address in each block.
async fn locate(qmp: &Qmp, blocks: &mut [RamBlockInfo], ranges: &[FlatRange]) -> Result<(), QmpError> {
    let mut first_range = HashMap::new();
    for range in ranges {
        if let Some(block) = block_of(blocks, &range.region) {
            first_range.entry(block).or_insert(range);
        }
    }
    for (block, range) in first_range {
        let answer = qmp.human(&format!("gpa2hva {:#x}", range.guest_address)).await?;
        let Some((region, address)) = parse_gpa2hva(&answer) else { continue };
        // The guest may have remapped the range between the two commands.
        if region == range.region {
            let base = address.checked_sub(range.offset);
            blocks[block].host_address = blocks[block].host_address.or(base);
        }
    }
    Ok(())
}

/// The one block of that memory region: of the same name, or with a device's path before it.
fn block_of(blocks: &[RamBlockInfo], region: &str) -> Option<usize> {
    let is_same =
        |name: &str| name.strip_suffix(region).is_some_and(|path| path.is_empty() || path.ends_with('/'));
    let mut found = blocks.iter().enumerate().filter(|(_, block)| is_same(&block.name));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    }
}

/// `Host virtual address for 0x0 (pc.ram) is 0x7f757c400000`.
pub(super) fn parse_gpa2hva(text: &str) -> Option<(&str, u64)> {
    let (_, rest) = text.trim().split_once(" (")?;
    let (region, address) = rest.rsplit_once(") is ")?;
    Some((region, hex(address)?))
}

fn hex(field: &str) -> Option<u64> {
    u64::from_str_radix(field.strip_prefix("0x")?, 16).ok()
}
