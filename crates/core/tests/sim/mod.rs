//! A world around the real state machines.

#![allow(unreachable_pub, dead_code)]

mod plan;
mod qemu;
mod rng;
mod source;
mod world;

pub use plan::Plan;
pub use rng::Rng;
pub use world::{Tally, World};
