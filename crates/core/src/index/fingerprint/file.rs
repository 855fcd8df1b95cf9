//! [`Fingerprints`] in bytes.
//!
//! ```text
//! file     = magic 8 │ version 1 │ head │ VM* │ SHA-256 of all before it, 32
//! head     = time │ rate │ key check 16 │ host's name │ number of VMs
//! VM       = name │ memory bytes │ pages │ zero pages │ readable │ number of contents │ content*
//! content  = fingerprint less the one before it less 1 (the first as it is) │ copies
//! ```
//!
//! Everything between version and checksum is in postcard's encoding: numbers as LEB128, names behind their length.

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    FINGERPRINTS_MAX, Fingerprints, RATE_LOG2_MAX, SAVED_NAME_BYTES_MAX, VmFingerprints, is_sampled,
};
use crate::index::VmPages;
use crate::limits::SESSION_VMS_MAX;

const MAGIC: &[u8; 8] = b"VMSFPRNT";
const VERSION: u8 = 1;
/// A content takes at most ten bytes for its fingerprint and five for its copies, a VM's head 128.
pub const FILE_BYTES_MAX: usize = 1024 + 15 * FINGERPRINTS_MAX + 128 * SESSION_VMS_MAX;

/// Why bytes are no saved fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FingerprintsError {
    /// They begin otherwise.
    #[error("is no file of fingerprints")]
    Magic,
    /// Written by a later version.
    #[error("has format {0}; this version reads format {VERSION}")]
    Version(u8),
    /// It ends too early, or something was changed.
    #[error("is cut short or damaged (its checksum does not match)")]
    Checksum,
    /// More of something than [`FINGERPRINTS_MAX`], `SESSION_VMS_MAX` or [`FILE_BYTES_MAX`] allow.
    #[error("has more {0} than the limit")]
    Limit(&'static str),
    /// The checksum is right, but no version writes this.
    #[error("is malformed: {0}")]
    Malformed(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    taken_unix_s: u64,
    rate_log2: u8,
    key_check: [u8; 16],
    host: &'a str,
    vms: u16,
}

#[derive(Serialize, Deserialize)]
struct VmHead<'a> {
    name: &'a str,
    memory_bytes: u64,
    pages: u64,
    zero: u64,
    readable: bool,
    contents: u32,
}

#[derive(Serialize, Deserialize)]
struct ContentEntry {
    gap: u64,
    copies: u32,
}

impl Fingerprints {
    /// As a file holds them.
    ///
    /// # Errors
    /// [`FingerprintsError`] where [`Fingerprints::decode`] would refuse the result: too much, or names that are none.
    pub fn encode(&self) -> Result<Vec<u8>, FingerprintsError> {
        check_host(self)?;
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        put(
            &mut out,
            &Head {
                taken_unix_s: self.taken_unix_s,
                rate_log2: self.rate_log2,
                key_check: self.key_check,
                host: &self.host,
                vms: self.vms.len() as u16,
            },
        );
        for vm in &self.vms {
            check_vm(vm)?;
            put(
                &mut out,
                &VmHead {
                    name: &vm.name,
                    memory_bytes: vm.memory_bytes,
                    pages: vm.pages.pages,
                    zero: vm.pages.zero,
                    readable: vm.readable,
                    contents: vm.fingerprints.len() as u32,
                },
            );
            let mut least = 0;
            for (fingerprint, copies) in vm.contents() {
                put(&mut out, &ContentEntry { gap: fingerprint - least, copies });
                // The last of all may be the greatest number; nothing follows it.
                least = fingerprint.wrapping_add(1);
            }
        }
        let checksum = digest(&SHA256, &out);
        out.extend_from_slice(checksum.as_ref());
        Ok(out)
    }

    /// What a file holds. Takes at most 12 bytes a fingerprint, and never more than a few times the file's size.
    ///
    /// # Errors
    /// [`FingerprintsError`].
    pub fn decode(file: &[u8]) -> Result<Self, FingerprintsError> {
        let body = file.strip_prefix(MAGIC).ok_or(FingerprintsError::Magic)?;
        match body.first() {
            Some(&VERSION) => {}
            Some(version) => return Err(FingerprintsError::Version(*version)),
            None => return Err(FingerprintsError::Checksum),
        }
        if file.len() > FILE_BYTES_MAX {
            return Err(FingerprintsError::Limit("bytes"));
        }
        let body_bytes = body.len().checked_sub(1 + SHA256_OUTPUT_LEN).ok_or(FingerprintsError::Checksum)?;
        let (covered, checksum) = file.split_at(file.len() - SHA256_OUTPUT_LEN);
        if digest(&SHA256, covered).as_ref() != checksum {
            return Err(FingerprintsError::Checksum);
        }
        decode_body(&body[1..1 + body_bytes])
    }
}

fn decode_body(mut rest: &[u8]) -> Result<Fingerprints, FingerprintsError> {
    let head: Head<'_> = take(&mut rest)?;
    check_rate(head.rate_log2)?;
    let mut host = Fingerprints {
        host: head.host.to_owned(),
        taken_unix_s: head.taken_unix_s,
        key_check: head.key_check,
        rate_log2: head.rate_log2,
        vms: Vec::new(),
    };
    for _ in 0..head.vms {
        let vm = decode_vm(&mut rest, head.rate_log2)?;
        check_vm(&vm)?;
        host.vms.push(vm);
    }
    if !rest.is_empty() {
        return Err(FingerprintsError::Malformed("something follows the last VM"));
    }
    check_host(&host)?;
    Ok(host)
}

fn decode_vm(rest: &mut &[u8], rate_log2: u8) -> Result<VmFingerprints, FingerprintsError> {
    let head: VmHead<'_> = take(rest)?;
    let pages = VmPages { pages: head.pages, zero: head.zero };
    let mut vm = VmFingerprints::new(head.name, head.memory_bytes, pages, head.readable);
    // An entry has two bytes or more: what is announced and can't be there is not allocated for.
    let count = head.contents as usize;
    if count > rest.len() / 2 {
        return Err(FingerprintsError::Malformed("fewer contents than announced"));
    }
    vm.fingerprints.reserve_exact(count);
    vm.copies.reserve_exact(count);
    let mut least = Some(0u64);
    for _ in 0..count {
        let ContentEntry { gap, copies } = take(rest)?;
        let fingerprint = least.and_then(|least| least.checked_add(gap));
        let fingerprint = fingerprint.filter(|fingerprint| is_sampled(*fingerprint, rate_log2));
        let fingerprint = fingerprint.ok_or(FingerprintsError::Malformed("a fingerprint out of range"))?;
        least = fingerprint.checked_add(1);
        vm.fingerprints.push(fingerprint);
        vm.copies.push(copies);
    }
    Ok(vm)
}

fn check_rate(rate_log2: u8) -> Result<(), FingerprintsError> {
    if rate_log2 > RATE_LOG2_MAX { Err(FingerprintsError::Limit("doublings of the rate")) } else { Ok(()) }
}

/// What every file must fulfil, besides what its VMs must.
fn check_host(host: &Fingerprints) -> Result<(), FingerprintsError> {
    check_rate(host.rate_log2)?;
    if host.vms.len() > SESSION_VMS_MAX {
        return Err(FingerprintsError::Limit("VMs"));
    }
    if host.len() > FINGERPRINTS_MAX && host.rate_log2 < RATE_LOG2_MAX {
        return Err(FingerprintsError::Limit("fingerprints"));
    }
    if !is_name(&host.host) {
        return Err(FingerprintsError::Malformed("the host's name"));
    }
    let mut names: Vec<&str> = host.vms.iter().map(|vm| vm.name.as_str()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(FingerprintsError::Malformed("two VMs of one name"));
    }
    Ok(())
}

fn check_vm(vm: &VmFingerprints) -> Result<(), FingerprintsError> {
    let malformed = |what| Err(FingerprintsError::Malformed(what));
    if !is_name(&vm.name) {
        return malformed("a VM's name");
    }
    let Some(nonzero) = vm.pages.pages.checked_sub(vm.pages.zero) else {
        return malformed("more zero pages than pages");
    };
    if !vm.readable && !vm.fingerprints.is_empty() {
        return malformed("contents of a VM that could not be read");
    }
    if vm.copies.contains(&0) || vm.sampled_pages() > nonzero {
        return malformed("copies that the VM has no pages for");
    }
    Ok(())
}

/// Printable, so that messages may quote it, and without spaces.
fn is_name(name: &str) -> bool {
    (1..=SAVED_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn put<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    let taken = std::mem::take(out);
    *out = postcard::to_extend(value, taken).expect("a Vec takes everything");
}

fn take<'a, T: Deserialize<'a>>(rest: &mut &'a [u8]) -> Result<T, FingerprintsError> {
    let (value, left) = postcard::take_from_bytes(rest)
        .map_err(|_| FingerprintsError::Malformed("a field that can't be read"))?;
    *rest = left;
    Ok(value)
}
