//! vmscatter.
