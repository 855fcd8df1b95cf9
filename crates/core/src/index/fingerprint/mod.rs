//! What placement needs to know of a host's contents, in a form that can be saved and compared with other hosts'.
//!
//! A [`Fingerprint`](FleetKey::fingerprint) is 64 bits of a content's identity under the fleet's key: equal contents have
//! equal fingerprints on all hosts of a fleet, and whoever has no key learns from them which pages are equal, but nothing
//! of what they hold. A [`Sampler`] takes them while shards are grouped; [`Fingerprints`] is what is left of one host, and
//! has a form in bytes.
//!
//! Where there are more than [`FINGERPRINTS_MAX`], one in 2, 4, 8 … is kept: those whose first bits are zero. As the choice
//! depends on the fingerprint alone, a content is kept on all hosts or on none, and what was sampled at different
//! rates can be brought to one ([`Fingerprints::thin`]).

mod file;
#[cfg(test)]
mod tests;

use std::fmt;

use aes::Aes128;
use aes::cipher::{BlockEncrypt, KeyInit};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

use super::VmPages;
use crate::page::{Mac, MacKey};

pub use file::{FILE_BYTES_MAX, FingerprintsError};

/// Fingerprints of one host that are kept, one for each content and VM that holds it: those of 16 GiB that nobody shares.
/// 12 bytes each, and some 8 in a file. Beyond it a sample is kept, at least half as many.
pub const FINGERPRINTS_MAX: usize = 4 << 20;
/// No sample is thinner than one in 2^32: so many pages a session can number.
pub const RATE_LOG2_MAX: u8 = 32;
/// Bytes of a host's or a VM's name.
pub const SAVED_NAME_BYTES_MAX: usize = 64;

/// What the hosts of a fleet share, so that their fingerprints can be compared.
///
/// Three values are derived from it (HKDF-SHA256, RFC 5869): the key of the contents' MACs, the key under which MACs become
/// fingerprints, and a value that tells whether two files have the same key.
#[derive(Clone)]
pub struct FleetKey {
    mac_key: MacKey,
    prf: Aes128,
    check: [u8; 16],
}

impl FleetKey {
    /// A key from 32 secret random bytes.
    pub fn new(key: &[u8; 32]) -> Self {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut derived = [0; 48];
        let extracted = Salt::new(HKDF_SHA256, b"vmscatter fingerprints 1").extract(key);
        let expanded = extracted.expand(&[b"mac, prf, check"], Length(derived.len()));
        expanded.and_then(|okm| okm.fill(&mut derived)).expect("HKDF-SHA256 gives up to 8160 bytes");
        let part = |at: usize| <[u8; 16]>::try_from(&derived[at..at + 16]).expect("16 of 48 bytes");
        FleetKey { mac_key: MacKey::new(&part(0)), prf: Aes128::new(&part(16).into()), check: part(32) }
    }

    /// The key with which contents are collected that are to be saved.
    pub fn mac_key(&self) -> &MacKey {
        &self.mac_key
    }

    /// The content's fingerprint: the first 8 bytes of AES-128 of its MAC.
    pub fn fingerprint(&self, mac: Mac) -> u64 {
        let mut block = mac.0.into();
        self.prf.encrypt_block(&mut block);
        u64::from_be_bytes(block[..8].try_into().expect("8 of 16 bytes"))
    }

    /// The same for equal keys, and tells nothing of the key.
    pub fn check(&self) -> [u8; 16] {
        self.check
    }
}

impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKey(secret)")
    }
}

/// Whether a sample of one in 2^`rate_log2` has this fingerprint.
fn is_sampled(fingerprint: u64, rate_log2: u8) -> bool {
    rate_log2 == 0 || fingerprint >> (64 - u32::from(rate_log2)) == 0
}

/// A content of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sampled {
    vm: u16,
    fingerprint: u64,
    copies: u32,
}

/// Takes the contents of a host's VMs, and keeps as many as are allowed.
///
/// What it ends with depends on the contents only, neither on their order nor on how they were spread over samplers that
/// were [absorbed](Sampler::absorb).
#[derive(Clone, Debug)]
pub struct Sampler {
    key: FleetKey,
    contents: Vec<Sampled>,
    contents_max: usize,
    rate_log2: u8,
}

impl Sampler {
    /// Keeps up to [`FINGERPRINTS_MAX`], in 16 bytes each.
    pub fn new(key: FleetKey) -> Self {
        Sampler::with_limit(key, FINGERPRINTS_MAX)
    }

    /// Keeps up to `contents_max`, but no fewer than what one in 2^[`RATE_LOG2_MAX`] leaves.
    pub fn with_limit(key: FleetKey, contents_max: usize) -> Self {
        Sampler { key, contents: Vec::new(), contents_max, rate_log2: 0 }
    }

    /// An empty one for another thread, which begins with the rate that this one has reached.
    pub fn branch(&self) -> Self {
        Sampler { key: self.key.clone(), contents: Vec::new(), ..*self }
    }

    /// Notes a content, and in turn the VMs that hold it with the number of copies there. Each content may be noted once.
    pub fn note(&mut self, mac: Mac, holders: impl Iterator<Item = (u16, u32)>) {
        let fingerprint = self.key.fingerprint(mac);
        if is_sampled(fingerprint, self.rate_log2) {
            self.contents.extend(holders.map(|(vm, copies)| Sampled { vm, fingerprint, copies }));
            self.thin_to_limit();
        }
    }

    /// Takes over what another one has noted, of other contents and under the same key.
    pub fn absorb(&mut self, other: Sampler) {
        if other.rate_log2 > self.rate_log2 {
            self.thin(other.rate_log2);
        }
        let rate_log2 = self.rate_log2;
        self.contents.extend(other.contents.iter().filter(|c| is_sampled(c.fingerprint, rate_log2)));
        self.thin_to_limit();
    }

    fn thin_to_limit(&mut self) {
        while self.contents.len() > self.contents_max && self.rate_log2 < RATE_LOG2_MAX {
            self.thin(self.rate_log2 + 1);
        }
    }

    fn thin(&mut self, rate_log2: u8) {
        self.rate_log2 = rate_log2;
        self.contents.retain(|content| is_sampled(content.fingerprint, rate_log2));
    }

    /// Everything that was noted, of the host with this name; `vms` are its VMs in the order of their numbers, without
    /// contents. `taken_unix_s` is when its memory was read.
    ///
    /// # Panics
    /// If a VM was noted that is not in `vms`.
    pub fn finish(mut self, host: &str, taken_unix_s: u64, vms: Vec<VmFingerprints>) -> Fingerprints {
        self.contents.sort_unstable();
        let mut saved = Fingerprints {
            host: host.to_owned(),
            taken_unix_s,
            key_check: self.key.check(),
            rate_log2: self.rate_log2,
            vms,
        };
        for contents in self.contents.chunk_by(|a, b| a.vm == b.vm) {
            let vm = &mut saved.vms[usize::from(contents[0].vm)];
            vm.fingerprints = contents.iter().map(|content| content.fingerprint).collect();
            vm.copies = contents.iter().map(|content| content.copies).collect();
        }
        saved
    }
}

/// The contents of one host's VMs, as they are saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    /// The host's name.
    pub host: String,
    /// When its memory was read, in seconds since 1970.
    pub taken_unix_s: u64,
    key_check: [u8; 16],
    rate_log2: u8,
    vms: Vec<VmFingerprints>,
}

/// One VM in [`Fingerprints`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmFingerprints {
    /// Its name, unique on its host.
    pub name: String,
    /// Bytes of all its RAM blocks: what a target must have free for it.
    pub memory_bytes: u64,
    /// The pages that could be read, and how many of them are zero.
    pub pages: VmPages,
    /// Whether it could be read to the end. If not, it has no fingerprints, and each of its pages is taken for a content
    /// of its own.
    pub readable: bool,
    /// Ascending.
    fingerprints: Vec<u64>,
    copies: Vec<u32>,
}

impl VmFingerprints {
    /// A VM of whose contents nothing is known yet.
    pub fn new(name: &str, memory_bytes: u64, pages: VmPages, readable: bool) -> Self {
        VmFingerprints { name: name.to_owned(), memory_bytes, pages, readable, ..VmFingerprints::default() }
    }

    /// The fingerprints of its sampled contents, ascending, each with the number of copies in this VM. Zero pages are no
    /// content here.
    pub fn contents(&self) -> impl ExactSizeIterator<Item = (u64, u32)> + Clone {
        self.fingerprints.iter().copied().zip(self.copies.iter().copied())
    }

    /// Copies of all its sampled contents.
    pub fn sampled_pages(&self) -> u64 {
        self.copies.iter().copied().map(u64::from).sum()
    }

    /// Those of its contents whose fingerprints are below `limit`, from the place `from` on, which is moved behind them.
    pub(crate) fn contents_below(
        &self,
        limit: Option<u64>,
        from: &mut usize,
    ) -> impl Iterator<Item = (u64, u32)> + '_ {
        let rest = &self.fingerprints[*from..];
        let count = limit.map_or(rest.len(), |limit| rest.partition_point(|fp| *fp < limit));
        let range = *from..*from + count;
        *from = range.end;
        self.fingerprints[range.clone()].iter().copied().zip(self.copies[range].iter().copied())
    }

    fn thin(&mut self, rate_log2: u8) {
        // Ascending, so that the sample is the beginning.
        let count = self.fingerprints.partition_point(|fingerprint| is_sampled(*fingerprint, rate_log2));
        self.fingerprints.truncate(count);
        self.copies.truncate(count);
        self.fingerprints.shrink_to_fit();
        self.copies.shrink_to_fit();
    }
}

impl Fingerprints {
    /// The VMs, in the order in which they were given to `scan`.
    pub fn vms(&self) -> &[VmFingerprints] {
        &self.vms
    }

    /// One content in 2^this is there; a count of contents times 2^this is an estimate of their number.
    pub fn rate_log2(&self) -> u8 {
        self.rate_log2
    }

    /// Whether fingerprints of both can be compared: they were made with the same fleet key.
    pub fn has_key_of(&self, other: &Fingerprints) -> bool {
        self.key_check == other.key_check
    }

    /// Whether they were made with this key.
    pub fn has_key(&self, key: &FleetKey) -> bool {
        self.key_check == key.check()
    }

    /// Fingerprints of all VMs together.
    pub fn len(&self) -> usize {
        self.vms.iter().map(|vm| vm.fingerprints.len()).sum()
    }

    /// Whether there is no fingerprint.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps one content in 2^`rate_log2` (at most [`RATE_LOG2_MAX`]) of all that there were; nothing changes if that is
    /// more than there are.
    pub fn thin(&mut self, rate_log2: u8) {
        let rate_log2 = rate_log2.min(RATE_LOG2_MAX);
        if rate_log2 > self.rate_log2 {
            self.rate_log2 = rate_log2;
            self.vms.iter_mut().for_each(|vm| vm.thin(rate_log2));
        }
    }
}

/// Brings the files of several hosts to one rate, at which they have at most `contents_max` fingerprints together, where
/// [`RATE_LOG2_MAX`] allows that.
pub fn thin_together(hosts: &mut [Fingerprints], contents_max: usize) {
    let mut rate_log2 = hosts.iter().map(Fingerprints::rate_log2).max().unwrap_or(0);
    loop {
        hosts.iter_mut().for_each(|host| host.thin(rate_log2));
        if hosts.iter().map(Fingerprints::len).sum::<usize>() <= contents_max || rate_log2 == RATE_LOG2_MAX {
            return;
        }
        rate_log2 += 1;
    }
}
