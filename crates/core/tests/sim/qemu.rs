//! Models of a source and a target QEMU: memory, dirty log, stream, return path, and who runs.

use vmscatter_core::page::{PAGE_SIZE, is_zero};
use vmscatter_core::qemu_stream::{Composer, Event, Parser, RamBlock};
use vmscatter_core::wire::control::BlockSpec;

use super::rng::Rng;

/// What stands behind the end of RAM: the devices, as far as the model has any.
const TAIL: &[u8] =
    b"\x04\x00\x00\x00\x09\x06serial\x00\x00\x00\x00\x00\x00\x00\x01devices\x7e\x00\x00\x00\x09\x00vmdesc";
const RAM_SECTION: u32 = 2;
const SHUT_OK: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// The guest's memory, block by block.
pub type Memory = Vec<Vec<u8>>;

/// Whose turn it is in a source QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    None,
    Active,
    /// Everything is written; waits for SHUT.
    Device,
    Completed,
    Failed,
}

/// A QEMU that runs a guest and may migrate it away.
pub struct SourceQemu {
    pub memory: Memory,
    pub blocks: Vec<BlockSpec>,
    pub running: bool,
    pub migration: Migration,
    pub held: bool,
    /// Memory at the moment of stopping.
    pub stopped_memory: Option<Memory>,
    was_running: bool,
    dirty: Vec<(u16, u32)>,
    is_dirty: Vec<Vec<bool>>,
    composer: Composer,
    out: Vec<u8>,
    socket_open: bool,
    /// Pages that the guest dirties a tick.
    dirty_rate: usize,
    pub gone: bool,
    /// Ticks that the stream has flowed.
    patience: usize,
}

impl SourceQemu {
    pub fn new(memory: Memory, dirty_rate: usize, running: bool) -> Self {
        let spec = |(at, block): (usize, &Vec<u8>)| BlockSpec {
            name: format!("block{at}"),
            bytes: block.len() as u64,
        };
        SourceQemu {
            blocks: memory.iter().enumerate().map(spec).collect(),
            is_dirty: memory.iter().map(|block| vec![false; block.len() / PAGE_SIZE]).collect(),
            memory,
            running,
            was_running: running,
            migration: Migration::None,
            held: true,
            stopped_memory: None,
            dirty: Vec::new(),
            composer: Composer::new(),
            out: Vec::new(),
            socket_open: false,
            dirty_rate,
            gone: false,
            patience: 0,
        }
    }

    pub fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    pub fn migrate(&mut self) {
        self.migration = Migration::Active;
        self.held = true;
        self.socket_open = true;
        self.composer = Composer::new();
        let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
        head.extend_from_slice(&[8, 0, 1, 0, 0, 8, 0, 2, 0, 4, 0, 0, 0, 1]);
        head.extend_from_slice(&[1, 0, 0, 0, RAM_SECTION as u8, 3]);
        head.extend_from_slice(b"ram\0\0\0\0\0\0\0\x04");
        let total: u64 = self.blocks.iter().map(|block| block.bytes).sum();
        head.extend_from_slice(&(total | 4).to_be_bytes());
        for block in &self.blocks {
            head.push(block.name.len() as u8);
            head.extend_from_slice(block.name.as_bytes());
            head.extend_from_slice(&block.bytes.to_be_bytes());
        }
        head.extend_from_slice(&0x10u64.to_be_bytes());
        head.extend_from_slice(&[0x7e, 0, 0, 0, RAM_SECTION as u8]);
        self.composer.raw(&mut self.out, &head);
        let blocks = self.blocks.iter().map(|b| RamBlock { name: b.name.clone(), bytes: b.bytes }).collect();
        self.composer.ram_start(RAM_SECTION, blocks).unwrap();
        for (block, pages) in self.is_dirty.iter_mut().enumerate() {
            for (page, dirty) in pages.iter_mut().enumerate() {
                *dirty = true;
                self.dirty.push((block as u16, page as u32));
            }
        }
        self.dirty.reverse();
    }

    /// The guest works for a tick; the migration thread fills the socket up to `room` bytes.
    pub fn tick(&mut self, rng: &mut Rng, room: usize) {
        if self.gone {
            return;
        }
        if self.running {
            for _ in 0..rng.below(self.dirty_rate as u64 + 1) {
                self.guest_writes(rng);
            }
        }
        if self.migration != Migration::Active || self.out.len() >= room {
            return;
        }
        let pages = if self.held { 1 } else { 32 };
        for _ in 0..pages {
            let Some(place) = self.dirty.pop() else { break };
            self.record(place);
        }
        self.composer.flush(&mut self.out);
        // The hand-off accepts a longer stop the longer a guest does not converge.
        self.patience += usize::from(!self.held);
        if !self.held && self.dirty.len() <= self.dirty_rate * 2 + self.patience / 40 {
            self.complete();
        }
    }

    fn guest_writes(&mut self, rng: &mut Rng) {
        let block = rng.below(self.memory.len() as u64) as usize;
        let pages = self.memory[block].len() / PAGE_SIZE;
        let page = rng.below(pages as u64) as usize;
        let bytes = &mut self.memory[block][page * PAGE_SIZE..(page + 1) * PAGE_SIZE];
        match rng.below(6) {
            0 => bytes.fill(0),
            // The content that many others hold, or one that stood here before.
            1 => bytes.fill(rng.below(4) as u8 + 1),
            // Written, but the same as before.
            2 => {}
            _ => bytes[rng.below(PAGE_SIZE as u64) as usize] = rng.below(256) as u8,
        }
        if self.migration == Migration::Active && !std::mem::replace(&mut self.is_dirty[block][page], true) {
            self.dirty.insert(0, (block as u16, page as u32));
        }
    }

    fn record(&mut self, (block, page): (u16, u32)) {
        self.is_dirty[block as usize][page as usize] = false;
        let start = page as usize * PAGE_SIZE;
        let bytes = &self.memory[block as usize][start..start + PAGE_SIZE];
        if is_zero(bytes) {
            self.composer.zero(&mut self.out, block, page).unwrap();
        } else {
            self.composer.page(&mut self.out, block, page, bytes).unwrap();
        }
    }

    fn complete(&mut self) {
        self.running = false;
        self.stopped_memory = Some(self.memory.clone());
        while let Some(place) = self.dirty.pop() {
            self.record(place);
        }
        self.composer.ram_end(&mut self.out).unwrap();
        self.out.extend_from_slice(TAIL);
        self.migration = Migration::Device;
    }

    /// What the reader of the socket gets.
    pub fn read(&mut self, max: usize) -> Vec<u8> {
        if !self.socket_open {
            return Vec::new();
        }
        let len = self.out.len().min(max);
        self.out.drain(..len).collect()
    }

    /// SHUT(0) arrives on the return path; `true` if it completes the migration.
    pub fn shut(&mut self) -> bool {
        if self.socket_open && self.migration == Migration::Device {
            self.migration = Migration::Completed;
            return true;
        }
        false
    }

    pub fn close_socket(&mut self) {
        self.socket_open = false;
        self.out.clear();
        self.dirty.clear();
        if matches!(self.migration, Migration::Active | Migration::Device) {
            self.migration = Migration::Failed;
            self.running = self.was_running;
        }
    }

    pub fn cont(&mut self) {
        assert!(!self.gone, "cont given to a QEMU that has been ended");
        self.running = self.was_running;
    }

    pub fn quit(&mut self) {
        self.running = false;
        self.gone = true;
    }
}

/// A QEMU with `-incoming` and `-S`.
pub struct TargetQemu {
    pub memory: Memory,
    pub running: bool,
    pub loaded: bool,
    pub gone: bool,
    parser: Parser,
    /// RAM has ended; what follows is the devices'.
    ram_ended: bool,
    tail: Vec<u8>,
}

impl TargetQemu {
    pub fn new(blocks: &[BlockSpec], rng: &mut Rng) -> Self {
        // What stands in an incoming QEMU's memory is not always zero: ROMs are loaded before.
        let fill = |block: &BlockSpec| {
            let mut bytes = vec![0; block.bytes as usize];
            if rng.below(4) == 0 {
                bytes[..PAGE_SIZE].fill(0xe9);
            }
            bytes
        };
        TargetQemu {
            memory: blocks.iter().map(fill).collect(),
            running: false,
            loaded: false,
            gone: false,
            parser: Parser::new(),
            ram_ended: false,
            tail: Vec::new(),
        }
    }

    /// Bytes on its migration socket; gives back what it says on the return path.
    pub fn write(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (memory, tail) = (&mut self.memory, &mut self.tail);
        let ended = &mut self.ram_ended;
        let mut input = bytes;
        while let Some(event) =
            self.parser.next_event(&mut input).expect("vmscatter composed what QEMU can't load")
        {
            match event {
                Event::Page { block, page, data } => {
                    let start = page as usize * PAGE_SIZE;
                    memory[block as usize][start..start + PAGE_SIZE].copy_from_slice(data);
                }
                Event::Zero { block, page } => {
                    let start = page as usize * PAGE_SIZE;
                    memory[block as usize][start..start + PAGE_SIZE].fill(0);
                }
                Event::RamEnd => *ended = true,
                Event::Raw(raw) if *ended => tail.extend_from_slice(raw),
                _ => {}
            }
        }
        if *tail == TAIL && !self.loaded {
            self.loaded = true;
            return SHUT_OK.to_vec();
        }
        Vec::new()
    }

    pub fn kill(&mut self) {
        self.running = false;
        self.gone = true;
    }
}
