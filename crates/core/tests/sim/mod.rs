//! A world around the real state machines.

// Each test binary uses a part of it.
#![allow(unreachable_pub, dead_code, unused_imports)]

mod plan;
mod qemu;
mod rng;
mod source;
mod world;

pub use plan::Plan;
pub use rng::Rng;
pub use world::{Tally, World};
