//! What may come from outside, as fuzz targets: each body takes any bytes, and panics where something is wrong.
//!
//! `./check fuzz` lets libFuzzer look for such bytes (`fuzz/` has the binaries that `cargo fuzz` wants); the corpora that it
//! has found so far, in `fuzz/corpus`, are replayed by this crate's test with every `./check`. What a body says beyond "no panic, no
//! hang" stands in its comment.
//!
//! - [`stream`]: QEMU's stream and its return path
//! - [`wire`]: control messages, frames, pieces
//! - [`peers`]: whole sessions, in which the other side sends what it likes
//! - [`files`]: journal, guest files, fingerprints

pub mod files;
mod input;
pub mod peers;
pub mod stream;
pub mod wire;

/// A body.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus.
pub const TARGETS: [(&str, Target); 10] = [
    ("qemu_stream", stream::forward),
    ("return_path", stream::back),
    ("control", wire::control),
    ("frames", wire::frames),
    ("pieces", wire::pieces),
    ("target_session", peers::target_session),
    ("source_session", peers::source_session),
    ("journal", files::journal),
    ("guest_file", files::guest_file),
    ("fingerprints", files::fingerprints),
];
