//! vmscatter core.
