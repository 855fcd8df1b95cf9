//! The part of vmscatter that can be run without Linux: bytes, events and time in; bytes and actions out.
//!
//! Nothing here opens a socket, starts a thread, reads a clock or touches a file, so that the simulation and the
//! fuzzers run exactly what production runs. In reading order:
//!
//! - [`page`]: what a page, its address and its identity are; the digest that verifies a migration
//! - [`qemu_stream`]: QEMU's migration stream, parsed and composed
//! - [`index`]: from the identities of all pages to the contents that stand more than once
//! - [`placement`]: which VM goes to which target
//! - [`topology`]: the network between source and targets, and what a placement puts on its links
//! - [`schedule`]: what is sent to whom, in which order
//! - [`wire`]: what crosses the network: control messages, sealed pieces, bodies of frames
//! - [`transport`]: moves numbered frames to target sets, with repair and pace
//! - [`session`]: the state machines of source and target, which hold the seven rules
//! - [`journal`]: what an agent keeps on disk about guests on their way
//! - [`predict`]: what a migration will carry and how long it will take
//! - [`limits`]: the bounds that modules share, by name
//! - [`time`]: the clock that callers pass in

#![forbid(unsafe_code)]

pub mod index;
pub mod journal;
pub mod limits;
pub mod page;
pub mod placement;
pub mod predict;
pub mod qemu_stream;
pub mod schedule;
pub mod session;
pub mod time;
pub mod topology;
pub mod transport;
pub mod wire;
