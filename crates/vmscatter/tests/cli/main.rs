//! The built binary from outside, as one test binary.

mod agents;
mod doctor;
mod harness;
mod hostile;
mod hostile_target;
mod input;
mod jobs;
mod plan;
mod real;
mod scan;
