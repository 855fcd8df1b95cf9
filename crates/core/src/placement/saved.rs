//! Holders and sharing of VMs whose fingerprints were saved, on one host or several.

use std::collections::HashMap;

use thiserror::Error;

use super::{HolderGroup, HolderGroups};
use crate::index::fingerprint::{Fingerprints, VmFingerprints};
use crate::index::{Sharing, VmSharing};
use crate::page::PAGE_SIZE;

/// Fingerprints are looked at in parts of this many bits, so that little is sorted at a time.
const PART_BITS: u32 = 8;

/// What the VMs of several hosts hold, from saved fingerprints; a VM's number is its place when the hosts' VMs are put one
/// behind the other. Counts are exact where all was saved, else estimates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedSharing {
    /// By the VMs that hold them. Each host sends its own contents, so no group has VMs of two hosts.
    pub groups: HolderGroups,
    /// What is identical, each host for itself.
    pub sharing: Sharing,
    /// For each VM the number of its host.
    pub host_of: Vec<u16>,
    /// Distinct contents that stand on two hosts or more.
    pub contents_between_hosts: u64,
    /// Pages that would have to leave no host if hosts knew what others have: for each content that stands on several, one
    /// for each host but the first.
    pub pages_repeated_between_hosts: u64,
}

/// Why files can't be looked at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SavedSharingError {
    /// Fingerprints under different keys are never equal.
    #[error("files {0} and {1} were made with different fleet keys")]
    OtherKey(usize, usize),
    /// Two files of one host: its VMs would be counted twice.
    #[error("files {0} and {1} are of the same host")]
    SameHost(usize, usize),
    /// Placement numbers VMs in 16 bits.
    #[error("{0} VMs together; {max} are the limit", max = u16::MAX)]
    TooManyVms(usize),
}

impl SavedSharingError {
    /// The same in one line that calls the files by name.
    ///
    /// # Panics
    /// If there are fewer names than files.
    pub fn describe(&self, names: &[&str]) -> String {
        match self {
            SavedSharingError::OtherKey(a, b) => {
                format!("{} and {} were made with different fleet keys", names[*a], names[*b])
            }
            SavedSharingError::SameHost(a, b) => {
                format!("{} and {} are of the same host", names[*a], names[*b])
            }
            SavedSharingError::TooManyVms(_) => self.to_string(),
        }
    }
}

/// A sampled content of a VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    fingerprint: u64,
    host: u16,
    vm: u16,
    copies: u32,
}

impl SavedSharing {
    /// Counts. Hosts whose samples differ in their rate are brought to the thinnest.
    ///
    /// # Errors
    /// [`SavedSharingError`], with the places of two hosts that do not go together.
    pub fn of(hosts: &[Fingerprints]) -> Result<Self, SavedSharingError> {
        check(hosts)?;
        let rate_log2 = hosts.iter().map(Fingerprints::rate_log2).max().unwrap_or(0);
        let vms: Vec<&VmFingerprints> = hosts.iter().flat_map(Fingerprints::vms).collect();
        let mut counting = Counting::new(vms.len());
        let numbers = (0..).zip(hosts).flat_map(|(host, saved)| saved.vms().iter().map(move |_| host));
        let host_of: Vec<u16> = numbers.collect();
        let mut cursors = vec![0; vms.len()];
        let mut part = Vec::new();
        for limit in limits(rate_log2) {
            part.clear();
            for (number, vm) in vms.iter().enumerate() {
                let below = vm.contents_below(limit, &mut cursors[number]);
                let held = |(fingerprint, copies)| Held {
                    fingerprint,
                    host: host_of[number],
                    vm: number as u16,
                    copies,
                };
                part.extend(below.map(held));
            }
            part.sort_unstable();
            part.chunk_by(|a, b| a.fingerprint == b.fingerprint).for_each(|same| counting.note(same));
        }
        Ok(counting.finish(&vms, host_of, rate_log2))
    }

    /// Bytes of distinct contents that have to leave their hosts at least, uncompressed.
    pub fn distinct_nonzero_bytes(&self) -> u64 {
        self.groups.contents() * PAGE_SIZE as u64
    }
}

fn check(hosts: &[Fingerprints]) -> Result<(), SavedSharingError> {
    for (at, host) in hosts.iter().enumerate() {
        if !host.has_key_of(&hosts[0]) {
            return Err(SavedSharingError::OtherKey(0, at));
        }
        if let Some(same) = hosts[..at].iter().position(|other| other.host == host.host) {
            return Err(SavedSharingError::SameHost(same, at));
        }
    }
    let vms = hosts.iter().map(|host| host.vms().len()).sum();
    if vms > usize::from(u16::MAX) { Err(SavedSharingError::TooManyVms(vms)) } else { Ok(()) }
}

/// Where each part of the fingerprints of such a sample ends; `None` is the end of all numbers.
fn limits(rate_log2: u8) -> impl Iterator<Item = Option<u64>> {
    let width = 1u128 << (64 - u32::from(rate_log2) - PART_BITS);
    (1..=1u128 << PART_BITS).map(move |part| u64::try_from(part * width).ok())
}

/// Counts of sampled contents and pages.
struct Counting {
    /// Sampled pages of each VM.
    pages: Vec<u64>,
    alone: Vec<u64>,
    shared: HashMap<Vec<u16>, u64>,
    within: Vec<u64>,
    across: Vec<u64>,
    contents_within: u64,
    contents_across: u64,
    contents_between_hosts: u64,
    pages_repeated_between_hosts: u64,
    holders: Vec<u16>,
}

impl Counting {
    fn new(vms: usize) -> Self {
        Counting {
            pages: vec![0; vms],
            alone: vec![0; vms],
            shared: HashMap::new(),
            within: vec![0; vms],
            across: vec![0; vms],
            contents_within: 0,
            contents_across: 0,
            contents_between_hosts: 0,
            pages_repeated_between_hosts: 0,
            holders: Vec::new(),
        }
    }

    /// One content with all its holders, by host and VM.
    fn note(&mut self, same: &[Held]) {
        let mut hosts = 0;
        for on_host in same.chunk_by(|a, b| a.host == b.host) {
            hosts += 1;
            self.note_on_host(on_host);
        }
        if hosts > 1 {
            self.contents_between_hosts += 1;
            self.pages_repeated_between_hosts += hosts - 1;
        }
    }

    fn note_on_host(&mut self, held: &[Held]) {
        for holder in held {
            self.pages[usize::from(holder.vm)] += u64::from(holder.copies);
        }
        if let [only] = held {
            let vm = usize::from(only.vm);
            self.alone[vm] += 1;
            if only.copies > 1 {
                self.contents_within += 1;
                self.within[vm] += u64::from(only.copies);
            }
            return;
        }
        self.contents_across += 1;
        self.holders.clear();
        for holder in held {
            self.across[usize::from(holder.vm)] += u64::from(holder.copies);
            self.holders.push(holder.vm);
        }
        match self.shared.get_mut(&self.holders) {
            Some(count) => *count += 1,
            None => drop(self.shared.insert(self.holders.clone(), 1)),
        }
    }

    fn finish(self, vms: &[&VmFingerprints], host_of: Vec<u16>, rate_log2: u8) -> SavedSharing {
        let scale = |count: u64| count << rate_log2;
        let mut alone: Vec<u64> = self.alone.into_iter().map(scale).collect();
        let mut sharing = Sharing {
            vms: Vec::with_capacity(vms.len()),
            contents_within: scale(self.contents_within),
            contents_across: scale(self.contents_across),
        };
        for (number, vm) in vms.iter().enumerate() {
            let nonzero = vm.pages.pages - vm.pages.zero;
            if !vm.readable {
                alone[number] = nonzero;
            }
            // How many pages are not zero is known; the sample tells how they divide.
            let sampled = u128::from(self.pages[number].max(1));
            let share = |pages: u64| (u128::from(nonzero) * u128::from(pages) / sampled) as u64;
            let (within, across) = (share(self.within[number]), share(self.across[number]));
            sharing.vms.push(VmSharing {
                pages: vm.pages.pages,
                zero: vm.pages.zero,
                unique: nonzero.saturating_sub(within + across),
                within,
                across,
            });
        }
        let mut shared: Vec<HolderGroup> = (self.shared.into_iter())
            .map(|(vms, contents)| HolderGroup { vms, contents: scale(contents) })
            .collect();
        shared.sort_unstable_by(|a, b| a.vms.cmp(&b.vms));
        SavedSharing {
            groups: HolderGroups { alone, shared },
            sharing,
            host_of,
            contents_between_hosts: scale(self.contents_between_hosts),
            pages_repeated_between_hosts: scale(self.pages_repeated_between_hosts),
        }
    }
}

#[cfg(test)]
mod tests;
