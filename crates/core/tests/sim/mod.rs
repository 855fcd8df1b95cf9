//! A world around the real state machines.

mod plan;
mod qemu;
mod rng;
mod source;
mod world;

pub use world::{Tally, World};
