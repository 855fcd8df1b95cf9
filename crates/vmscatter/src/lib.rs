//! vmscatter.

pub mod source;
