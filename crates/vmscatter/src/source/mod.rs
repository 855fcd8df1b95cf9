//! A job's work on the host that the guests leave.
//!
//! ```text
//! migrate ─ connect, collect, place, prepare, schedule ─► actor (core's SourceSession)
//!                                                          │  ▲
//! scatter thread ─ frames ─► multicast, links ─────────────┤  │ events of targets, monitors, streams
//! stream threads ─ frames ─► encoders ─► links ────────────┘──┘
//! ```
//!
//! - [`migrate`](run_migrate): a session; `prepare`: the phases before it; `actor`: its loop once QEMUs migrate;
//!   `milestones`: what it measures for later predictions
//! - [`plan`](run_plan): the same phases, and what would follow; `sample`: how well guests' pages compress
//! - `guest`: a guest's monitor and memory; [`collect`]: all guests' memory is read once, [`effort`]: with how much
//!   of the processors; `scan`: and what is identical is shown
//! - `scatter`: shared contents go out, after `probe` has told whom multicast reaches; `stream`: a VM's stream; `encode`: threads that compress; `link`: the
//!   connections to a target

mod actor;
pub mod collect;
pub mod effort;
mod encode;
mod guest;
mod link;
mod migrate;
mod milestones;
mod plan;
mod prepare;
mod probe;
mod sample;
mod scan;
mod scatter;
mod stream;

pub use migrate::run_migrate;
pub use plan::run_plan;
pub use scan::run_scan;
