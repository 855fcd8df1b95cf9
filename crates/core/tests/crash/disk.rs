//! A disk that loses what was not synced, in any order and with any remains, and the journal on it.

use vmscatter_core::journal::file::{encode, image, replay};
use vmscatter_core::journal::{Book, Entry, Record, Step, VmKey};
use vmscatter_core::wire::control::Uuid;

use crate::sim::Rng;

/// Sectors are small, so that records are torn within.
const SECTOR: usize = 16;

/// A journal as an agent keeps it: the file as written, how much of it is synced, and what it says.
pub struct Journal {
    written: Vec<u8>,
    synced: usize,
    generation: u64,
    pub book: Book,
    down: bool,
}

impl Journal {
    pub fn new(id: Uuid) -> Self {
        let book = Book::new(id);
        let written = image(&book, 1);
        Journal { synced: written.len(), written, generation: 1, book, down: false }
    }

    /// Appends, and syncs where the step is to be durable.
    pub fn append(&mut self, key: VmKey, entry: Entry) {
        assert!(!self.down, "who has crashed writes nothing");
        let durable = match &entry {
            Entry::Step(step) => step.is_durable(),
            Entry::Begun(_) => true,
            Entry::Spawned(_) | Entry::Closed => false,
        };
        let record = Record { key, unix_ms: 0, entry };
        self.book.apply(&record).expect("a record that follows");
        encode(&record, self.generation, self.synced as u64, &mut self.written);
        if durable {
            self.synced = self.written.len();
        }
    }

    pub fn step(&self, key: &VmKey) -> Option<Step> {
        self.book.get(key).map(|vm| vm.step)
    }

    /// What a crash leaves on the disk.
    pub fn crash(&mut self, rng: &mut Rng, lossy: bool) {
        self.down = true;
        if !lossy {
            return;
        }
        let unsynced = self.written.len() - self.synced;
        self.written.truncate(self.synced + rng.below(unsynced as u64 + 1) as usize);
        let mut at = self.synced;
        while at < self.written.len() {
            let end = ((at / SECTOR + 1) * SECTOR).min(self.written.len());
            if rng.one_in(4) {
                let fill = if rng.one_in(2) { 0 } else { rng.below(256) as u8 };
                self.written[at..end].fill(fill);
            }
            at = end;
        }
    }

    /// What the agent does when it starts: reads the file, and writes it anew. Says whether its end was torn.
    pub fn restart(&mut self) -> bool {
        self.down = false;
        let replayed = replay(&self.written).expect("a crash is no damage");
        assert!(replayed.end as usize >= self.synced, "what was synced is lost");
        self.book = replayed.book;
        self.generation += 1;
        self.written = image(&self.book, self.generation);
        self.synced = self.written.len();
        replayed.torn.is_some()
    }
}
