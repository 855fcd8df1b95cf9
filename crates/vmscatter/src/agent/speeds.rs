//! What this agent's last migrations have measured, in the state directory: plans predict time from it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use vmscatter_core::predict::Measured;

use crate::clock::since_epoch;

const FILE: &str = "speeds.json";
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The file in the state directory. It is a help, no more: what can't be read counts as never measured.
#[derive(Debug)]
pub struct Speeds {
    path: PathBuf,
    writing: Mutex<()>,
}

/// A migration's measures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it ended, in seconds since the Unix epoch.
    pub unix_s: u64,
    /// What it has measured.
    pub measured: Measured,
}

/// What is known for the next migration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// The last migration of its kind, else of the other.
    pub last: Entry,
    /// What the link was seen to carry, by the last migration of either kind, in bytes a second; `None` where an operator's
    /// limit kept both below what it could. One that compresses may never fill the link.
    pub link_bytes_per_s: Option<f64>,
}

/// The last migration of each kind: what compresses has other speeds than what does not.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    plain: Option<Entry>,
    compressed: Option<Entry>,
}

impl Speeds {
    /// Of this state directory.
    pub fn in_dir(dir: &Path) -> Speeds {
        Speeds { path: dir.join(FILE), writing: Mutex::default() }
    }

    /// What is known for a migration that compresses, or does not.
    pub fn known(&self, compressed: bool) -> Option<Known> {
        let kept = self.read();
        let last = if compressed { kept.compressed.or(kept.plain) } else { kept.plain.or(kept.compressed) };
        let entries = [kept.plain, kept.compressed].into_iter().flatten();
        let links = entries.map(|entry| entry.measured).filter(|measured| !measured.link_was_given);
        let link = links.map(|measured| measured.link_bytes_per_s).fold(0.0, f64::max);
        last.map(|last| Known { last, link_bytes_per_s: (link > 0.0).then_some(link) })
    }

    /// Keeps what a migration has measured. What it has not, as nobody had to wait for the incoming QEMUs, stays as it was.
    pub fn keep(&self, compressed: bool, measured: &Measured) {
        let unix_s = since_epoch().as_secs();
        let _writing = self.writing.lock().unwrap_or_else(|e| e.into_inner());
        let mut kept = self.read();
        let mut measured = *measured;
        if measured.prepare_a_vm_s == 0.0 {
            let (same, other) =
                if compressed { (kept.compressed, kept.plain) } else { (kept.plain, kept.compressed) };
            let known = [same, other].into_iter().flatten().map(|entry| entry.measured.prepare_a_vm_s);
            measured.prepare_a_vm_s = known.into_iter().find(|seconds| *seconds > 0.0).unwrap_or(0.0);
        }
        let entry = Some(Entry { unix_s, measured });
        if compressed {
            kept.compressed = entry
        } else {
            kept.plain = entry
        }
        if let Err(error) = self.write(&kept) {
            tracing::warn!("{}: {error}", self.path.display());
        }
    }

    fn read(&self) -> Kept {
        let mut text = String::new();
        let file = std::fs::File::open(&self.path);
        let read = file.and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Readers see the old file or the new one.
    fn write(&self, kept: &Kept) -> std::io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(kept)?)?;
        std::fs::rename(new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_kind_is_kept_and_noise_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let speeds = Speeds::in_dir(dir.path());
        assert_eq!(speeds.known(false), None);
        let measured = |link_bytes_per_s| Measured { link_bytes_per_s, ..Measured::default() };
        speeds.keep(false, &measured(1.0));
        assert_eq!(speeds.known(true).unwrap().last.measured, measured(1.0));
        speeds.keep(true, &measured(2.0));
        speeds.keep(false, &measured(3.0));
        let again = Speeds::in_dir(dir.path());
        assert_eq!(again.known(true).unwrap().last.measured, measured(2.0));
        assert_eq!(again.known(false).unwrap().last.measured, measured(3.0));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(again.known(false), None);
    }

    #[test]
    fn the_link_is_what_either_kind_has_seen_without_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let speeds = Speeds::in_dir(dir.path());
        let link = || speeds.known(true).unwrap().link_bytes_per_s;
        let limited =
            |link_bytes_per_s| Measured { link_bytes_per_s, link_was_given: true, ..Measured::default() };
        speeds.keep(false, &limited(9.0));
        assert_eq!(link(), None);
        speeds.keep(true, &Measured { link_bytes_per_s: 2.0, ..Measured::default() });
        assert_eq!(link(), Some(2.0));
        speeds.keep(false, &Measured { link_bytes_per_s: 5.0, ..Measured::default() });
        assert_eq!(link(), Some(5.0));
    }

    #[test]
    fn what_a_migration_did_not_measure_stays() {
        let dir = tempfile::tempdir().unwrap();
        let speeds = Speeds::in_dir(dir.path());
        speeds.keep(false, &Measured { prepare_a_vm_s: 0.5, ..Measured::default() });
        speeds.keep(true, &Measured { open_s: 2.0, ..Measured::default() });
        let last = speeds.known(true).unwrap().last.measured;
        assert_eq!((last.prepare_a_vm_s, last.open_s), (0.5, 2.0));
    }
}
