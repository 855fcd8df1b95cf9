//! The source's side of a session.

pub mod collect;
pub mod scan;
