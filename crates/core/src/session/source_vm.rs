//! One VM at the source: its QEMU's stream goes in, numbered stream frames come out, and what the target holds
//! already is withheld.
//!
//! ```text
//! Head ── RAM START seen, first frame cut ──► Held ── release() ──► Streaming ── RAM END ──► Tail
//! ```

use std::collections::VecDeque;

use super::pages::{PageTable, SourceEntry, Via, block_pages};
use super::sabotage::{Rule, broken};
use crate::limits::{STREAM_RAW_BYTES_MAX, TRICKLE_BYTES_MAX};
use crate::page::{DigestKey, Mac, MacKey, PAGE_SIZE, VmDigest};
use crate::qemu_stream::{Event, ParseError, Parser, RamBlock, ReturnError, ReturnMessage, ReturnParser};
use crate::wire::control::BlockSpec;
use crate::wire::frame::{FrameFull, StreamFrameBuilder};

/// A piece of a VM's stream, to be encoded (by any worker), sealed and sent; the target puts them in order.
#[derive(Debug)]
pub struct StreamFrame {
    /// The VM.
    pub vm: u16,
    /// The frame's number within the VM's stream, from zero.
    pub seq: u64,
    /// What is in it.
    pub body: StreamFrameBuilder,
}

/// Why a VM's stream can't be carried; the guest goes on at the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceVmError {
    /// The stream is not what this build understands.
    #[error("QEMU's stream: {0}")]
    Parse(#[from] ParseError),
    /// The stream's block list differs from what QEMU had told before.
    #[error("RAM blocks in QEMU's stream differ from its block list (block {0})")]
    Blocks(usize),
    /// More flowed while held than [`TRICKLE_BYTES_MAX`] although the socket was not to be read.
    #[error("more than {TRICKLE_BYTES_MAX} bytes flowed while the stream was held")]
    Trickle,
    /// QEMU ended RAM without ever naming this many pages.
    #[error("QEMU ended RAM but sent no record for {0} pages (free-page hinting, or an ignored block?)")]
    Unsaid(u64),
    /// What the target passes on is no return path of QEMU's.
    #[error("the target passes on what is no answer of QEMU's: {0}")]
    ReturnPath(#[from] ReturnError),
    /// A target gives its vote, and keeps SHUT to itself.
    #[error("the target passes on SHUT, which is the source's to give")]
    Shut,
    /// The target says that it wrote frames that were never sent.
    #[error("target acknowledges stream frame {0}, which was never sent")]
    NeverSent(u64),
}

/// What became of a VM's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// PAGE records withheld because the target held the bytes.
    pub withheld: u64,
    /// PAGE records sent.
    pub sent: u64,
    /// ZERO records sent (as runs).
    pub zero: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    Head,
    Held,
    Streaming,
    Tail,
}

/// The state machine; the drawing above shows its stages.
#[derive(Debug)]
pub struct SourceVm {
    stage: Stage,
    parser: Parser,
    /// What flowed while held, not parsed yet.
    trickle: Vec<u8>,
    blocks: Vec<BlockSpec>,
    records: Records,
    outbox: Outbox,
    ram_ended: bool,
    return_parser: ReturnParser,
}

/// What QEMU said of each page, and what the target holds.
#[derive(Debug)]
struct Records {
    mac_key: MacKey,
    digest_key: DigestKey,
    table: PageTable<SourceEntry>,
    digest: VmDigest,
    said_pages: u64,
    counts: RecordCounts,
}

/// The frame being filled, those that are ready, and those that the target has not written yet.
#[derive(Debug)]
struct Outbox {
    vm: u16,
    building: StreamFrameBuilder,
    next_seq: u64,
    ready: VecDeque<StreamFrame>,
    /// Stream frames below this number are in the target's QEMU.
    written_next: u64,
    /// Plain sizes of those that are not, oldest first.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    /// Plain bytes that the target has written.
    written_bytes: u64,
}

impl SourceVm {
    /// A VM whose migration has not begun. `blocks` have passed [`check_blocks`](super::check_blocks).
    pub fn new(vm: u16, blocks: &[BlockSpec], mac_key: &MacKey, digest_key: &DigestKey) -> Self {
        let pages = block_pages(blocks);
        SourceVm {
            stage: Stage::Head,
            parser: Parser::new(),
            trickle: Vec::new(),
            blocks: blocks.to_vec(),
            records: Records {
                mac_key: mac_key.clone(),
                digest_key: digest_key.clone(),
                table: PageTable::new(&pages, SourceEntry::EMPTY),
                digest: VmDigest::new(&pages),
                said_pages: 0,
                counts: RecordCounts::default(),
            },
            outbox: Outbox {
                vm,
                building: StreamFrameBuilder::new(),
                next_seq: 0,
                ready: VecDeque::new(),
                written_next: 0,
                in_flight: VecDeque::new(),
                in_flight_bytes: 0,
                written_bytes: 0,
            },
            ram_ended: false,
            return_parser: ReturnParser::new(),
        }
    }

    /// Takes note that scattered frame `frame` names a page with bytes of identity `mac`. A page that lies outside
    /// the VM, or whose stream has begun, is none that a schedule could name; it is passed over.
    pub fn scattered(&mut self, block: u16, page: u32, mac: Mac, frame: u64) {
        if self.stage > Stage::Held {
            return;
        }
        if let Some(entry) = self.records.table.get_mut(block, page) {
            entry.mac = mac;
            entry.set_via(Via::Scatter(frame));
        }
    }

    /// The target has confirmed that the scatter is closed for this VM: a page is held if `acked` says that
    /// the highest frame that named it was acknowledged by this VM's target, and not held otherwise (rules 1 and 3).
    pub fn scatter_closed(&mut self, mut acked: impl FnMut(u64) -> bool) {
        for entry in self.records.table.iter_mut() {
            if let Via::Scatter(frame) = entry.via() {
                let held = acked(frame) || broken(Rule::WithholdUnacknowledged);
                entry.set_via(if held { Via::Held } else { Via::Nothing });
            }
        }
    }

    /// Lets the stream flow: what was kept back is parsed, and all that follows.
    ///
    /// # Errors
    /// As for [`SourceVm::input`].
    pub fn release(&mut self) -> Result<(), SourceVmError> {
        if self.stage != Stage::Held {
            return Ok(());
        }
        self.stage = Stage::Streaming;
        let trickle = std::mem::take(&mut self.trickle);
        self.input(&trickle)?;
        // It counts as in flight, and may be all that is allowed to be.
        self.flush();
        Ok(())
    }

    /// Bytes that the source QEMU wrote.
    ///
    /// # Errors
    /// The VM's migration is over then: its socket must be closed, and QEMU lets the guest go on.
    pub fn input(&mut self, mut bytes: &[u8]) -> Result<(), SourceVmError> {
        if self.stage == Stage::Head {
            self.head(&mut bytes)?;
        }
        match self.stage {
            Stage::Head => {}
            Stage::Held => {
                if self.trickle.len() + bytes.len() > TRICKLE_BYTES_MAX {
                    return Err(SourceVmError::Trickle);
                }
                self.trickle.extend_from_slice(bytes);
            }
            Stage::Streaming | Stage::Tail => self.stream(bytes)?,
        }
        Ok(())
    }

    /// Header and RAM START, up to and not beyond it.
    fn head(&mut self, bytes: &mut &[u8]) -> Result<(), SourceVmError> {
        while let Some(event) = self.parser.next_event(bytes)? {
            match event {
                Event::Raw(raw) => self.outbox.raw(raw),
                Event::RamStart { section_id, blocks } => {
                    if let Some(at) = first_block_difference(blocks, &self.blocks) {
                        return Err(SourceVmError::Blocks(at));
                    }
                    self.outbox.put(|body| body.ram_start(section_id));
                    self.outbox.cut();
                    self.stage = Stage::Held;
                    return Ok(());
                }
                // Before RAM START the parser knows no block and thus no record.
                _ => {}
            }
        }
        Ok(())
    }

    fn stream(&mut self, mut bytes: &[u8]) -> Result<(), SourceVmError> {
        while let Some(event) = self.parser.next_event(&mut bytes)? {
            match event {
                Event::Page { block, page, data } => {
                    if let Ok(data) = data.try_into() {
                        self.records.page(&mut self.outbox, block, page, data);
                    }
                }
                Event::Zero { block, page } => self.records.zero(&mut self.outbox, block, page),
                Event::Raw(raw) => self.outbox.raw(raw),
                Event::RamEnd => {
                    let unsaid = self.records.table.len() as u64 - self.records.said_pages;
                    if unsaid > 0 {
                        return Err(SourceVmError::Unsaid(unsaid));
                    }
                    self.outbox.put(|body| body.ram_end());
                    self.stage = Stage::Tail;
                    self.ram_ended = true;
                }
                Event::RamStart { .. } | Event::PartEnd | Event::MultifdFlush => {}
            }
        }
        Ok(())
    }

    /// Nothing more can be read for now: what has gathered becomes a frame.
    pub fn flush(&mut self) {
        if self.stage != Stage::Head {
            self.outbox.cut();
        }
    }

    /// The next frame to be sent.
    pub fn poll_frame(&mut self) -> Option<StreamFrame> {
        self.outbox.ready.pop_front()
    }

    /// The target has written all stream frames below `next`.
    ///
    /// # Errors
    /// [`SourceVmError::NeverSent`]: no honest target says so.
    pub fn written(&mut self, next: u64) -> Result<(), SourceVmError> {
        let outbox = &mut self.outbox;
        if next > outbox.next_seq {
            return Err(SourceVmError::NeverSent(next));
        }
        while outbox.written_next < next {
            let bytes = outbox.in_flight.pop_front().unwrap_or(0);
            outbox.in_flight_bytes -= bytes;
            outbox.written_bytes += bytes as u64;
            outbox.written_next += 1;
        }
        Ok(())
    }

    /// What the target has passed on of its QEMU's return path; gives back what the source QEMU is to be told.
    ///
    /// # Errors
    /// Anything but whole messages of a kind that a target passes on: above all SHUT, with which QEMU would give its
    /// guest away before the digests agree. The target is not to be trusted.
    pub fn return_path(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, SourceVmError> {
        let mut forward = Vec::new();
        while let Some((message, raw)) = self.return_parser.next_message(&mut bytes)? {
            match message {
                ReturnMessage::Shut { .. } => return Err(SourceVmError::Shut),
                ReturnMessage::Pong(_) | ReturnMessage::SwitchoverAck => forward.extend_from_slice(raw),
            }
        }
        Ok(forward)
    }

    /// Plain bytes read from the source QEMU that the target QEMU has not been given yet.
    pub fn in_flight_bytes(&self) -> usize {
        self.outbox.in_flight_bytes + self.outbox.building.len()
    }

    /// Plain bytes that the target QEMU has been given.
    pub fn written_bytes(&self) -> u64 {
        self.outbox.written_bytes
    }

    /// The target holds the header and the block list, so that frames can be scattered to this VM.
    pub fn head_written(&self) -> bool {
        self.outbox.written_next > 0
    }

    /// The block list has been seen, and records are kept back.
    pub fn is_held(&self) -> bool {
        self.stage == Stage::Held
    }

    /// Whether more may be read from QEMU while held; beyond this its socket is left alone.
    pub fn trickle_room(&self) -> usize {
        TRICKLE_BYTES_MAX - self.trickle.len()
    }

    /// RAM has ended: the digest of what QEMU said, complete.
    pub fn final_digest(&self) -> Option<&VmDigest> {
        self.ram_ended.then_some(&self.records.digest)
    }

    /// What became of the records so far.
    pub fn counts(&self) -> RecordCounts {
        self.records.counts
    }
}

impl Outbox {
    /// Adds to the frame that is being filled, or to the next one if it is full.
    fn put(&mut self, add: impl Fn(&mut StreamFrameBuilder) -> Result<(), FrameFull>) {
        if add(&mut self.building).is_err() {
            self.cut();
            add(&mut self.building).expect("an empty frame takes one item");
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        bytes.chunks(STREAM_RAW_BYTES_MAX).for_each(|chunk| self.put(|body| body.raw(chunk)));
    }

    fn cut(&mut self) {
        if self.building.is_empty() {
            return;
        }
        let body = std::mem::take(&mut self.building);
        self.in_flight.push_back(body.len());
        self.in_flight_bytes += body.len();
        self.ready.push_back(StreamFrame { vm: self.vm, seq: self.next_seq, body });
        self.next_seq += 1;
    }
}

impl Records {
    /// A PAGE record. The parser has checked the place against a block list equal to the table's.
    fn page(&mut self, outbox: &mut Outbox, block: u16, page: u32, data: &[u8; PAGE_SIZE]) {
        let mac = self.mac_key.mac(data);
        let Some(entry) = self.said(block, page, mac) else { return };
        let acknowledged = match entry.via() {
            Via::Held => true,
            Via::Stream(seq) => seq < outbox.written_next,
            Via::Nothing | Via::Scatter(_) => false,
        };
        if acknowledged && entry.mac == mac {
            self.counts.withheld += 1;
            return;
        }
        outbox.put(|body| body.page(block, page, data));
        entry.mac = mac;
        entry.set_via(Via::Stream(outbox.next_seq));
        self.counts.sent += 1;
    }

    /// A ZERO record is never withheld: what an incoming QEMU's fresh memory holds is not always zero.
    fn zero(&mut self, outbox: &mut Outbox, block: u16, page: u32) {
        let mac = self.mac_key.zero();
        let Some(entry) = self.said(block, page, mac) else { return };
        outbox.put(|body| body.zero_run(block, page, 1));
        entry.mac = mac;
        entry.set_via(Via::Stream(outbox.next_seq));
        self.counts.zero += 1;
    }

    /// Enters what QEMU says of a page into the digest; gives back its entry, `mac` still that of what was sent.
    fn said(&mut self, block: u16, page: u32, mac: Mac) -> Option<&mut SourceEntry> {
        let entry = self.table.get_mut(block, page)?;
        // The identity that QEMU said last is that of what was sent or withheld last: the two are one once it has said any.
        let old = entry.said().then_some(entry.mac);
        self.digest.replace(&self.digest_key, block, page, old, mac);
        if old.is_none() {
            entry.set_said();
            self.said_pages += 1;
        }
        Some(entry)
    }
}

fn first_block_difference(stream: &[RamBlock], spec: &[BlockSpec]) -> Option<usize> {
    let differs = |(a, b): (&RamBlock, &BlockSpec)| a.name != b.name || a.bytes != b.bytes;
    let at = stream.iter().zip(spec).position(differs);
    at.or_else(|| (stream.len() != spec.len()).then(|| stream.len().min(spec.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu_stream::SHUT_OK;

    fn source() -> SourceVm {
        let blocks = [BlockSpec { name: "pc.ram".to_owned(), bytes: 8 * PAGE_SIZE as u64 }];
        SourceVm::new(0, &blocks, &MacKey::new(&[1; 16]), &DigestKey::new(&[2; 16]))
    }

    #[test]
    fn a_target_passes_answers_on_and_nothing_else() {
        const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
        let mut vm = source();
        assert_eq!(vm.return_path(&PONG[..3]), Ok(Vec::new()), "half a message is not QEMU's yet");
        assert_eq!(vm.return_path(&PONG[3..]), Ok(PONG.to_vec()));
        // With SHUT a target that has voted for nothing would have the source QEMU complete.
        assert_eq!(vm.return_path(&SHUT_OK), Err(SourceVmError::Shut));
        let postcopy = source().return_path(&[0, 4, 0, 12]);
        assert!(matches!(postcopy, Err(SourceVmError::ReturnPath(_))), "{postcopy:?}");
    }
}
