//! A world of hosts that crash: the real sessions, journals and recovery, with disks, QEMUs and a network that are models.
//!
//! What pages do is `sim`'s business; here a guest is a QEMU that stops, loads, runs and ends.

// Each test binary uses a part of it.
#![allow(unreachable_pub, dead_code, unused_imports)]

mod disk;
mod ends;
mod plan;
mod qemu;
mod recovery;
mod source;
mod target;
mod world;

pub use world::{Tally, World};
