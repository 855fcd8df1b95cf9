//! What a job says: events while it runs, an outcome when it has ended, and how both are shown.

pub mod doctor;
pub mod event;
pub mod outcome;
pub mod plan;
pub mod progress;
pub mod summary;
