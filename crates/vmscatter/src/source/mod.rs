//! A job's work on the host that the guests leave.
//!
//! ```text
//! migrate ─ connect, place, prepare, collect, schedule ─► actor (core's SourceSession)
//!                                                          │  ▲
//! scatter thread ─ frames ─► multicast, links ─────────────┤  │ events of targets, monitors, streams
//! stream threads ─ frames ─► encoders ─► links ────────────┘──┘
//! ```
//!
//! - [`migrate`](run_migrate): the phases of a session; `actor`: its loop once QEMUs migrate
//! - `guest`: a guest's monitor and memory; [`collect`]: all guests' memory is read once; `scan`: and what is identical is shown
//! - `groups`: which target sets share a multicast group; `scatter`: shared contents go out; `stream`: a VM's stream; `encode`:
//!   threads that compress; `link`: the connections to a target

mod actor;
pub mod collect;
mod encode;
mod groups;
mod guest;
mod link;
mod migrate;
mod scan;
mod scatter;
mod stream;

pub use migrate::run_migrate;
pub use scan::run_scan;
