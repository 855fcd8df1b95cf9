//! Breaks each rule on purpose.
