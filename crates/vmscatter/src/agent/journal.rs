//! The journal on disk: core's [`Book`] and the file that it comes from.
//!
//! Read once, when the agent starts, and written anew then, so that it stays small; appended to from then on. A step
//! that others build upon is on disk when [`Journal::step`] returns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmscatter_core::journal::file::{FILE_BYTES_MAX, encode, image, replay};
use vmscatter_core::journal::{Book, Entry, Facts, ProcessId, Record, Step, VmKey, VmRecord};
use vmscatter_core::wire::control::Uuid;

use super::config::os_text;
use super::input::BadInput;
use crate::clock::since_epoch;
use crate::random::{random, random_uuid};

/// A journal that has grown beyond this is written anew when a guest is closed.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// An agent's journal; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Journal {
    id: Uuid,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    end: u64,
    /// So much is known to be on disk.
    synced: u64,
    generation: u64,
    book: Book,
    /// A sync has failed: what is on disk is not known any more.
    broken: bool,
}

impl Journal {
    /// Opens the journal in `dir`, or makes it.
    ///
    /// # Errors
    /// One line: the file system's error, or where the file is damaged and what to do.
    pub fn open(dir: &Path) -> Result<Journal, BadInput> {
        let path = dir.join("journal");
        let bad = |e: io::Error| BadInput::file(&path, os_text(&e));
        let book = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::new(random_uuid()),
            Err(error) => return Err(bad(error)),
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(bad)?;
                read(&path, &bytes)?
            }
        };
        let generation = u64::from_be_bytes(random());
        let (file, end) = rewrite(&path, &book, generation).map_err(bad)?;
        let id = book.id;
        let inner = Inner { path, file, end, synced: end, generation, book, broken: false };
        Ok(Journal { id, inner: Arc::new(Mutex::new(inner)) })
    }

    /// [`Book::id`].
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Begins guests, all with one write; they are on disk when this returns.
    ///
    /// # Errors
    /// Those of the file system: then none may be touched.
    pub fn begin(&self, guests: impl IntoIterator<Item = (VmKey, Facts)>) -> io::Result<()> {
        let entries = guests.into_iter().map(|(key, facts)| (key, Entry::Begun(Box::new(facts))));
        self.lock().append(entries.collect(), true)
    }

    /// Notes which process a guest's incoming QEMU is.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn spawned(&self, key: VmKey, process: ProcessId) -> io::Result<()> {
        self.lock().append(vec![(key, Entry::Spawned(process))], false)
    }

    /// Notes a step, on disk where [`Step::is_durable`] says so; how long that took.
    ///
    /// # Errors
    /// Those of the file system: then nothing may be built upon the step, nor upon its absence.
    pub fn step(&self, key: VmKey, step: Step) -> io::Result<Duration> {
        let start = Instant::now();
        self.lock().append(vec![(key, Entry::Step(step))], step.is_durable())?;
        Ok(start.elapsed())
    }

    /// Notes that nothing more is to be found out about a guest. Does nothing for one that is not in the journal.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn close(&self, key: VmKey) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.book.get(&key).is_none() {
            return Ok(());
        }
        inner.append(vec![(key, Entry::Closed)], false)?;
        if inner.end > COMPACT_BYTES && !inner.broken {
            inner.compact()?;
        }
        Ok(())
    }

    /// Where a guest stands.
    pub fn get(&self, key: &VmKey) -> Option<VmRecord> {
        self.lock().book.get(key).cloned()
    }

    /// All guests that have not found their ends.
    pub fn vms(&self) -> Vec<VmRecord> {
        self.lock().book.vms().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    fn append(&mut self, entries: Vec<(VmKey, Entry)>, durable: bool) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other(
                "the journal's disk has failed; restart the agent once it is mended",
            ));
        }
        let unix_ms = since_epoch().as_millis() as u64;
        let mut book = None;
        let mut bytes = Vec::new();
        let mut records = Vec::new();
        for (key, entry) in entries {
            let record = Record { key, unix_ms, entry };
            encode(&record, self.generation, self.synced, &mut bytes);
            records.push(record);
        }
        // Several records are applied to a copy first: all of them follow, or none is written.
        if let [record] = &records[..] {
            self.book.check(record).map_err(io::Error::other)?;
        } else {
            let copy = book.insert(self.book.clone());
            records.iter().try_for_each(|record| copy.apply(record)).map_err(io::Error::other)?;
        }
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            // Half a record is overwritten by the next one; cut off it looks better.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        if durable && let Err(error) = self.file.sync_data() {
            self.broken = true;
            return Err(error);
        }
        self.end += bytes.len() as u64;
        if durable {
            self.synced = self.end;
        }
        match book {
            Some(book) => self.book = book,
            None => {
                records.iter().try_for_each(|record| self.book.apply(record)).map_err(io::Error::other)?
            }
        }
        Ok(())
    }

    fn compact(&mut self) -> io::Result<()> {
        let generation = u64::from_be_bytes(random());
        let (file, end) = rewrite(&self.path, &self.book, generation)?;
        (self.file, self.end, self.synced, self.generation) = (file, end, end, generation);
        Ok(())
    }
}

fn read(path: &Path, bytes: &[u8]) -> Result<Book, BadInput> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(BadInput::file(path, format!("longer than {FILE_BYTES_MAX} bytes: no journal")));
    }
    let replayed = replay(bytes).map_err(|error| {
        let advice = "find out where the guests of unfinished migrations run, end their other copies, \
                      then move this file away and start again";
        BadInput::file(path, format!("{error}; {advice}"))
    })?;
    if let Some(torn) = replayed.torn {
        tracing::warn!(
            path = %path.display(),
            "the journal's last {} bytes, from {} on, were being written when the host or the agent went down; \
             nothing was built upon them, and they are cut off",
            torn.bytes,
            torn.offset
        );
    }
    Ok(replayed.book)
}

/// Puts a whole new file in the place of the old one: after a crash there is the one or the other.
fn rewrite(path: &Path, book: &Book, generation: u64) -> io::Result<(File, u64)> {
    let new = path.with_extension("new");
    let bytes = image(book, generation);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok((file, bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmscatter_core::journal::{Peer, Side, SourceStep};

    fn key(number: u8) -> VmKey {
        VmKey { session: [1; 16], vm: [number; 16] }
    }

    fn facts() -> Facts {
        Facts {
            name: "vm1".into(),
            peer: Peer { name: "host1".into(), addr: "10.0.0.1:7940".parse().unwrap() },
            monitor: "/run/vm1.qmp".into(),
            paused: false,
            side: Side::Source { process: None, parameters: Vec::new(), capabilities: Vec::new() },
        }
    }

    #[test]
    fn steps_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let id = journal.id();
        journal.begin([(key(1), facts()), (key(2), facts())]).unwrap();
        journal.step(key(1), Step::Source(SourceStep::Released)).unwrap();
        journal.close(key(2)).unwrap();
        journal.close(key(2)).unwrap();
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.id(), id);
        let vms = journal.vms();
        assert_eq!(vms.len(), 1);
        assert_eq!((vms[0].key, vms[0].step), (key(1), Step::Source(SourceStep::Released)));
        journal.step(key(1), Step::Source(SourceStep::Committed)).unwrap();
        let step = Journal::open(dir.path()).unwrap().get(&key(1)).unwrap().step;
        assert_eq!(step, Step::Source(SourceStep::Committed));
    }

    #[test]
    fn what_does_not_follow_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert!(journal.step(key(1), Step::Source(SourceStep::Done)).is_err());
        assert!(journal.begin([(key(1), facts()), (key(1), facts())]).is_err());
        journal.begin([(key(1), facts())]).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().vms().len(), 1);
    }

    #[test]
    fn a_torn_end_is_cut_off_and_damage_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.begin([(key(1), facts())]).unwrap();
        let before = fs::read(dir.path().join("journal")).unwrap();
        journal.step(key(1), Step::Source(SourceStep::Released)).unwrap();
        journal.step(key(1), Step::Source(SourceStep::Committed)).unwrap();
        let whole = fs::read(dir.path().join("journal")).unwrap();

        fs::write(dir.path().join("journal"), &whole[..whole.len() - 3]).unwrap();
        let step = Journal::open(dir.path()).unwrap().get(&key(1)).unwrap().step;
        assert_eq!(step, Step::Source(SourceStep::Released));

        let mut damaged = whole;
        damaged[before.len() + 21] ^= 1;
        fs::write(dir.path().join("journal"), damaged).unwrap();
        let line = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(line.contains(&format!("damaged at byte {}: ", before.len())), "{line}");
        assert!(line.contains("move this file away") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_long_journal_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.begin([(key(1), facts())]).unwrap();
        // As much as some thousand guests leave behind.
        for _ in 0..6000 {
            journal.lock().append(vec![(key(2), Entry::Begun(Box::new(facts())))], false).unwrap();
            journal.close(key(2)).unwrap();
        }
        assert!(fs::metadata(dir.path().join("journal")).unwrap().len() < COMPACT_BYTES + 1024);
        assert_eq!(Journal::open(dir.path()).unwrap().vms().len(), 1);
    }
}
