//! A job's work on the host that the guests leave.
//!
//! ```text
//! migrate ─ connect, collect, place, prepare, schedule ─► actor (core's SourceSession)
//!                                                          │  ▲
//! scatter thread ─ frames ─► multicast, links ─────────────┤  │ events of targets, monitors, streams
//! stream threads ─ frames ─► encoders ─► links ────────────┘──┘
//! ```
//!
//! - [`waves`](run_migrate): a migration, at once or in waves; `migrate`: each one's session; `prepare`: the phases before
//!   it; `actor`: its loop once QEMUs migrate; `events`: what guests' monitors say meanwhile; `follow`: streams under way, and
//!   every deadline; `telling`: what is said of guests; `milestones`: what is measured for later predictions
//! - [`plan`](run_plan): the same phases, and what would follow; `sample`: how well guests' pages compress
//! - [`doctor`](run_doctor): what lies between this host and others; nothing is moved
//! - `guest`: a guest's monitor and memory; [`collect`]: all guests' memory is read once, [`effort`]: with how much
//!   of the processors; `scan`: and what is identical is shown
//! - `groups`: which target sets share a multicast group; `scatter`: shared contents go out; `stream`: a VM's stream; `encode`:
//!   threads that compress; `link`: the connections to a target

mod actor;
pub mod collect;
mod doctor;
pub mod effort;
mod encode;
mod events;
mod follow;
mod groups;
mod guest;
mod link;
mod migrate;
mod milestones;
mod plan;
mod prepare;
mod retry;
mod sample;
mod scan;
mod scatter;
mod stream;
mod telling;
mod waves;

pub use doctor::run_doctor;
pub use plan::run_plan;
pub use scan::run_scan;
pub use waves::run_migrate;
