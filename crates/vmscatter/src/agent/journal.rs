//! What an agent has promised and decided, on disk before it acts: one line an entry, checksummed, appended and synced.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The session's UUID.
    pub session: String,
    /// The VM's UUID.
    pub uuid: String,
    /// The VM's name.
    pub name: String,
    /// The agent at the other end.
    pub peer: String,
    /// What: `vote`, `committed` or `aborted` at a target; `release`, `commit` or `done` at a source.
    pub entry: String,
}

#[derive(Serialize)]
struct Line<'a> {
    unix_ms: u64,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// An agent's journal; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Journal {
    file: Arc<Mutex<File>>,
}

impl Journal {
    /// Opens the journal in `dir`, or makes it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path) -> std::io::Result<Journal> {
        let file = OpenOptions::new().create(true).append(true).open(dir.join("journal"))?;
        File::open(dir)?.sync_all()?;
        Ok(Journal { file: Arc::new(Mutex::new(file)) })
    }

    /// Appends an entry; it is on disk when this returns.
    ///
    /// # Errors
    /// Those of the file system: then nothing may rely on the entry.
    pub fn append(&self, entry: &Entry) -> std::io::Result<()> {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
        let text = serde_json::to_string(&Line { unix_ms, entry })?;
        let line = format!("{:08x} {text}\n", crc32(text.as_bytes()));
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.write_all(line.as_bytes())?;
        file.sync_data()
    }
}

/// CRC-32 (IEEE 802.3), bit by bit: a few hundred bytes an entry.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn entries_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let entry = |what: &str| Entry {
            session: "s".into(),
            uuid: "u".into(),
            name: "vm1".into(),
            peer: "host1".into(),
            entry: what.into(),
        };
        Journal::open(dir.path()).unwrap().append(&entry("vote")).unwrap();
        Journal::open(dir.path()).unwrap().append(&entry("committed")).unwrap();
        let text = std::fs::read_to_string(dir.path().join("journal")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        for (line, what) in lines.iter().zip(["vote", "committed"]) {
            let (crc, json) = line.split_once(' ').unwrap();
            assert_eq!(crc, format!("{:08x}", crc32(json.as_bytes())));
            assert_eq!(serde_json::from_str::<serde_json::Value>(json).unwrap()["entry"], what);
        }
    }
}
