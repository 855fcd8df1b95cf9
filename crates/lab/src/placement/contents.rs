//! Which contents stand in which guests.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use vmscatter_core::page::{MacKey, PAGE_SIZE, is_zero};
use vmscatter_core::placement::{HolderGroup, HolderGroups};

use crate::ram;
use crate::session::{Session, Settings};

/// Interim: read here.
pub(super) fn read(session: &Session, _settings: &Settings) -> Result<HolderGroups> {
    let key = MacKey::new(&[7; 16]);
    let mut holders: HashMap<[u8; 16], u64> = HashMap::new();
    for (number, guest) in session.guests.iter().enumerate() {
        let memory = File::open(format!("/proc/{}/mem", guest.source.qmp.pid()))?;
        for (address, bytes) in ram::known_blocks(&guest.source.qmp)? {
            let mut chunk = vec![0; 1 << 20];
            for offset in (0..bytes).step_by(chunk.len()) {
                let length = chunk.len().min((bytes - offset) as usize);
                memory.read_exact_at(&mut chunk[..length], address + offset)?;
                for page in chunk[..length].chunks_exact(PAGE_SIZE).filter(|page| !is_zero(page)) {
                    *holders.entry(key.mac(page).0).or_default() |= 1 << number;
                }
            }
        }
    }
    let mut groups = HolderGroups { alone: vec![0; session.guests.len()], shared: Vec::new() };
    let mut counts: HashMap<u64, u64> = HashMap::new();
    holders.values().for_each(|set| *counts.entry(*set).or_default() += 1);
    for (set, contents) in counts {
        let vms: Vec<u16> = (0..64).filter(|vm| set >> vm & 1 == 1).collect();
        match vms[..] {
            [vm] => groups.alone[usize::from(vm)] = contents,
            _ => groups.shared.push(HolderGroup { vms, contents }),
        }
    }
    groups.shared.sort_by(|a, b| a.vms.cmp(&b.vms));
    Ok(groups)
}
