//! What a page is, where it stands, what identifies its content, and the digest that verifies a migration.

use std::fmt;

use aegis::aegis128x2::Aegis128X2Mac;
use aes::Aes128;
use aes::cipher::{BlockEncrypt, KeyInit};
use serde::{Deserialize, Serialize};

use crate::limits::DIGEST_RANGE_PAGES;

/// Bytes of a target page on x86 (QEMU's `TARGET_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// Where a page stands: the session's number of the VM, the RAM block's place in the VM's block list, and the
/// page's number in that block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageAddr {
    /// The VM, as the session numbers it.
    pub vm: u16,
    /// The RAM block, counted in QEMU's own order.
    pub block: u16,
    /// The page, counted from the block's start.
    pub page: u32,
}

/// The identity of a page's content within one session: a keyed MAC of 128 bits.
///
/// Never shown to a guest; equal MACs count as equal contents (the odds of a forged pair are 2^-128 a try).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Mac(pub [u8; 16]);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The session's key for [`Mac`]s: AEGIS-128X2 as a MAC, 256-bit tag of which the first half is kept.
#[derive(Clone)]
pub struct MacKey {
    state: Aegis128X2Mac<32>,
    zero: Mac,
}

impl MacKey {
    /// A key from 16 secret random bytes.
    pub fn new(key: &[u8; 16]) -> Self {
        let state = Aegis128X2Mac::new(key);
        let mut this = MacKey { state, zero: Mac::default() };
        this.zero = this.mac(&[0; PAGE_SIZE]);
        this
    }

    /// The identity of `page`'s content.
    pub fn mac(&self, page: &[u8]) -> Mac {
        let mut state = self.state.clone();
        state.update(page);
        let tag = state.finalize();
        let mut mac = [0; 16];
        mac.copy_from_slice(&tag[..16]);
        Mac(mac)
    }

    /// The identity of the page that is zero throughout.
    pub fn zero(&self) -> Mac {
        self.zero
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(secret)")
    }
}

/// Whether every byte is zero; reads eight cache lines at a time and stops at the first that is not.
pub fn is_zero(page: &[u8]) -> bool {
    let mut chunks = page.chunks_exact(512);
    chunks.by_ref().all(|chunk| {
        let mut or = [0u64; 8];
        for line in chunk.chunks_exact(64) {
            for (acc, word) in or.iter_mut().zip(line.chunks_exact(8)) {
                *acc |= u64::from_ne_bytes(word.try_into().expect("eight bytes"));
            }
        }
        or.iter().fold(0, |a, b| a | b) == 0
    }) && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// The session's key for digest terms.
#[derive(Clone)]
pub struct DigestKey {
    cipher: Aes128,
}

impl DigestKey {
    /// A key from 16 secret random bytes.
    pub fn new(key: &[u8; 16]) -> Self {
        DigestKey { cipher: Aes128::new(key.into()) }
    }

    /// PRF(key, block, page, MAC): AES-128 CBC-MAC over two blocks of fixed length.
    pub fn term(&self, block: u16, page: u32, mac: Mac) -> u128 {
        let position = (u128::from(block) << 32) | u128::from(page);
        let mut state = position.to_be_bytes().into();
        self.cipher.encrypt_block(&mut state);
        for (byte, other) in state.iter_mut().zip(mac.0) {
            *byte ^= other;
        }
        self.cipher.encrypt_block(&mut state);
        u128::from_be_bytes(state.into())
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(secret)")
    }
}

/// Rule 5's digest of one VM: per block and per [`DIGEST_RANGE_PAGES`] pages the sum mod 2^128 of the terms of all
/// pages in that range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDigest {
    /// Per block, in QEMU's order, the sums of its ranges.
    pub blocks: Vec<Vec<u128>>,
}

impl VmDigest {
    /// The digest of a VM of whose pages none has a record yet.
    pub fn new(block_pages: &[u32]) -> Self {
        let ranges = |pages: &u32| vec![0; pages.div_ceil(DIGEST_RANGE_PAGES) as usize];
        VmDigest { blocks: block_pages.iter().map(ranges).collect() }
    }

    /// Takes note that a page's content is now `new`, and that it was `old` before (`None`: it had no record).
    ///
    /// # Panics
    /// If the block or page lies outside what [`VmDigest::new`] was told; callers have checked both.
    pub fn replace(&mut self, key: &DigestKey, block: u16, page: u32, old: Option<Mac>, new: Mac) {
        if old == Some(new) {
            return;
        }
        let sum = &mut self.blocks[block as usize][(page / DIGEST_RANGE_PAGES) as usize];
        if let Some(old) = old {
            *sum = sum.wrapping_sub(key.term(block, page, old));
        }
        *sum = sum.wrapping_add(key.term(block, page, new));
    }

    /// The first block and range (in pages) in which two digests differ; `None` if they agree.
    pub fn first_difference(&self, other: &VmDigest) -> Option<(usize, std::ops::Range<u64>)> {
        let blocks = self.blocks.len().max(other.blocks.len());
        (0..blocks).find_map(|block| {
            let (ours, theirs) = (self.blocks.get(block), other.blocks.get(block));
            let (ours, theirs) = (ours.map_or(&[][..], |b| b), theirs.map_or(&[][..], |b| b));
            if ours.len() != theirs.len() {
                return Some((block, 0..u64::MAX));
            }
            let range = ours.iter().zip(theirs).position(|(a, b)| a != b)? as u64;
            let pages = u64::from(DIGEST_RANGE_PAGES);
            Some((block, range * pages..(range + 1) * pages))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_test_sees_every_byte() {
        let mut page = [0; PAGE_SIZE];
        assert!(is_zero(&page));
        for at in 0..PAGE_SIZE {
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }

    #[test]
    fn mac_depends_on_key_and_content() {
        let (a, b) = (MacKey::new(&[1; 16]), MacKey::new(&[2; 16]));
        let page = [7; PAGE_SIZE];
        assert_eq!(a.mac(&page), a.mac(&page));
        assert_ne!(a.mac(&page), b.mac(&page));
        assert_eq!(a.zero(), a.mac(&[0; PAGE_SIZE]));
        let mut other = page;
        other[4095] ^= 1;
        assert_ne!(a.mac(&page), a.mac(&other));
    }

    #[test]
    fn digest_is_independent_of_history_and_order() {
        let key = DigestKey::new(&[3; 16]);
        let (a, b) = (Mac([1; 16]), Mac([2; 16]));
        let mut once = VmDigest::new(&[8192, 1]);
        once.replace(&key, 0, 5000, None, b);
        once.replace(&key, 1, 0, None, a);
        let mut twice = VmDigest::new(&[8192, 1]);
        twice.replace(&key, 1, 0, None, b);
        twice.replace(&key, 0, 5000, None, a);
        assert_eq!(once.first_difference(&twice), Some((0, 4096..8192)));
        twice.replace(&key, 1, 0, Some(b), a);
        twice.replace(&key, 0, 5000, Some(a), b);
        assert_eq!(once, twice);
        assert_eq!(once.first_difference(&twice), None);
    }

    #[test]
    fn swapped_pages_change_the_digest() {
        let key = DigestKey::new(&[3; 16]);
        let (a, b) = (Mac([1; 16]), Mac([2; 16]));
        let (mut right, mut swapped) = (VmDigest::new(&[2]), VmDigest::new(&[2]));
        right.replace(&key, 0, 0, None, a);
        right.replace(&key, 0, 1, None, b);
        swapped.replace(&key, 0, 0, None, b);
        swapped.replace(&key, 0, 1, None, a);
        assert_ne!(right, swapped);
    }
}
