//! Random bytes of the system: keys, session numbers, groups.

use vmscatter_core::wire::control::Uuid;

/// `N` random bytes, fit for keys.
///
/// # Panics
/// If the system has none: nothing can be sealed then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

/// A random UUID (version 4, RFC 9562).
pub fn random_uuid() -> Uuid {
    let mut uuid: Uuid = random();
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}
