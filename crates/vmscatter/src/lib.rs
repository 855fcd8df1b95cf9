//! vmscatter.

pub mod qemu;
