//! One VM at a target: scattered pages and stream frames go in, one stream for the incoming QEMU comes out.
//!
//! ```text
//! scattered pages ─┐
//!                  ├─► composer ─► QEMU's stream ─► incoming QEMU ─► return path ─► SHUT(0) is kept: the gate
//! stream frames ───┘
//! ```

use std::collections::BTreeMap;

use super::pages::{PageTable, TargetEntry, block_pages};
use super::sabotage::{Rule, broken};
use crate::limits::REORDER_BYTES_MAX;
use crate::page::{DigestKey, Mac, MacKey, PAGE_SIZE, VmDigest};
use crate::qemu_stream::{ComposeError, Composer, RamBlock, ReturnError, ReturnMessage, ReturnParser};
use crate::wire::control::BlockSpec;
use crate::wire::frame::{Decoder, FrameError, StreamItem};

/// Why a VM can't be loaded here; its incoming QEMU goes, and the guest goes on at the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetVmError {
    /// A stream frame's body is malformed.
    #[error("stream frame {seq}: {error}")]
    Frame {
        /// The frame.
        seq: u64,
        /// What is wrong.
        error: FrameError,
    },
    /// A stream frame says what can't be composed.
    #[error("stream frame {seq}: {error}")]
    Compose {
        /// The frame.
        seq: u64,
        /// What is wrong.
        error: ComposeError,
    },
    /// Stream frames are too far ahead of one that is missing.
    #[error("more than {REORDER_BYTES_MAX} bytes of stream frames wait for frame {0}")]
    Reorder(u64),
    /// A stream frame with records came before the scatter was closed.
    #[error("stream frame {0} has records, but the scatter is not closed")]
    ScatterOpen(u64),
    /// QEMU's return path is not understood.
    #[error("incoming QEMU's return path: {0}")]
    ReturnPath(#[from] ReturnError),
    /// QEMU could not load the stream.
    #[error("incoming QEMU could not load the stream (SHUT {0})")]
    Load(u32),
    /// The two sides do not agree on the guest's memory.
    #[error("digests differ: block {block}, pages {from} to {to}")]
    Digest {
        /// The block's name.
        block: String,
        /// First page of the first range that differs.
        from: u64,
        /// Last page of it, inclusive.
        to: u64,
    },
}

/// Bytes for the incoming QEMU, and what has been delivered once it has them.
#[derive(Debug, Default)]
pub struct Output {
    /// To be written as they are.
    pub bytes: Vec<u8>,
    /// Scattered frames all of whose pages for this VM are in the stream when `bytes` are written.
    pub frames: Vec<u64>,
    /// Stream frames below this number are in the stream then.
    pub stream_next: u64,
}

/// The state machine; the drawing above shows its stages.
#[derive(Debug)]
pub struct TargetVm {
    blocks: Vec<BlockSpec>,
    composer: Composer,
    mac_key: MacKey,
    digest_key: DigestKey,
    table: PageTable<TargetEntry>,
    digest: VmDigest,
    scatter_closed: bool,
    /// Encoded stream frames that wait for an earlier one.
    waiting: BTreeMap<u64, Vec<u8>>,
    waiting_bytes: usize,
    next_seq: u64,
    output: Output,
    return_parser: ReturnParser,
    /// SHUT(0), kept until the digests agree.
    loaded: bool,
}

impl TargetVm {
    /// A VM whose incoming QEMU waits. `blocks` have passed [`check_blocks`](super::check_blocks).
    pub fn new(blocks: &[BlockSpec], mac_key: &MacKey, digest_key: &DigestKey) -> Self {
        let pages = block_pages(blocks);
        TargetVm {
            blocks: blocks.to_vec(),
            composer: Composer::new(),
            mac_key: mac_key.clone(),
            digest_key: digest_key.clone(),
            table: PageTable::new(&pages, TargetEntry::EMPTY),
            digest: VmDigest::new(&pages),
            scatter_closed: false,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            next_seq: 0,
            output: Output::default(),
            return_parser: ReturnParser::new(),
            loaded: false,
        }
    }

    /// Gives back what grows with the VM's memory: it has failed.
    pub(super) fn forget_pages(&mut self) {
        self.table = PageTable::new(&[], TargetEntry::EMPTY);
        (self.waiting, self.waiting_bytes) = (BTreeMap::new(), 0);
        self.output = Output::default();
    }

    /// Whether the incoming QEMU knows its blocks, so that pages can be written.
    pub fn in_ram(&self) -> bool {
        !self.composer.blocks().is_empty()
    }

    /// A page of scattered frame `frame`. Applied only if no frame of a higher number was applied there and the
    /// scatter is open (rule 3); a place outside the VM's memory is passed over. `false` if it was not applied
    /// because the frame came too late or out of place.
    pub fn scattered(&mut self, frame: u64, block: u16, page: u32, data: &[u8], mac: Mac) -> bool {
        if !self.in_ram() || (self.scatter_closed && !broken(Rule::ApplyLateFrame)) {
            return false;
        }
        let Some(entry) = self.table.get_mut(block, page) else { return false };
        if entry.applied > frame && !broken(Rule::ApplyLateFrame) {
            return false;
        }
        let old = (entry.applied > 0).then_some(entry.mac);
        if self.composer.page(&mut self.output.bytes, block, page, data).is_err() {
            return false;
        }
        *entry = TargetEntry { mac, applied: frame + 1 };
        self.digest.replace(&self.digest_key, block, page, old, mac);
        true
    }

    /// All pages of `frame` for this VM have been given to [`TargetVm::scattered`].
    pub fn scattered_frame_done(&mut self, frame: u64) {
        self.output.frames.push(frame);
    }

    /// Drops whatever is scattered to this VM from now on.
    pub fn close_scatter(&mut self) {
        self.scatter_closed = true;
    }

    /// An encoded stream frame; applied when all before it have been. A number that was seen before is dropped.
    ///
    /// # Errors
    /// Ends the VM's migration.
    pub fn stream_frame(
        &mut self,
        seq: u64,
        body: Vec<u8>,
        decoder: &mut Decoder,
    ) -> Result<(), TargetVmError> {
        if seq < self.next_seq || self.waiting.contains_key(&seq) {
            return Ok(());
        }
        if seq > self.next_seq {
            self.waiting_bytes += body.len();
            if self.waiting_bytes > REORDER_BYTES_MAX {
                return Err(TargetVmError::Reorder(self.next_seq));
            }
            self.waiting.insert(seq, body);
            return Ok(());
        }
        self.apply(&body, decoder)?;
        while let Some(body) = self.waiting.remove(&self.next_seq) {
            self.waiting_bytes -= body.len();
            self.apply(&body, decoder)?;
        }
        Ok(())
    }

    fn apply(&mut self, body: &[u8], decoder: &mut Decoder) -> Result<(), TargetVmError> {
        let seq = self.next_seq;
        let body = decoder.stream(body).map_err(|error| TargetVmError::Frame { seq, error })?;
        for item in body.items() {
            let records = matches!(item, StreamItem::Page { .. } | StreamItem::Zero { .. });
            if records && !self.scatter_closed {
                return Err(TargetVmError::ScatterOpen(seq));
            }
            self.item(item).map_err(|error| TargetVmError::Compose { seq, error })?;
        }
        self.next_seq += 1;
        Ok(())
    }

    fn item(&mut self, item: StreamItem<'_>) -> Result<(), ComposeError> {
        let out = &mut self.output.bytes;
        match item {
            StreamItem::Raw(bytes) => self.composer.raw(out, bytes),
            StreamItem::RamStart { section_id } => {
                let blocks = self.blocks.iter();
                let blocks = blocks.map(|b| RamBlock { name: b.name.clone(), bytes: b.bytes }).collect();
                self.composer.ram_start(section_id, blocks)?;
            }
            StreamItem::Page { page: 3, .. } if broken(Rule::DropRecord) => {}
            StreamItem::Page { block, page, data } => {
                self.composer.page(out, block, page, data)?;
                let mac = self.mac_key.mac(data);
                self.written_to(block, page, mac);
            }
            StreamItem::Zero { block, first, count } => {
                // A frame's runs together are bounded (STREAM_ZERO_PAGES_MAX), and so is what they expand to.
                let mut done = 0;
                while done < count {
                    done += self.composer.zero_run(out, block, first + done, count - done)?;
                }
                let zero = self.mac_key.zero();
                (first..first + count).for_each(|page| self.written_to(block, page, zero));
            }
            StreamItem::RamEnd => self.composer.ram_end(out)?,
        }
        Ok(())
    }

    /// The digest follows what goes into QEMU. The composer has checked the place against the same blocks.
    fn written_to(&mut self, block: u16, page: u32, mac: Mac) {
        if let Some(entry) = self.table.get_mut(block, page) {
            let old = (entry.applied > 0).then_some(entry.mac);
            *entry = TargetEntry { mac, applied: entry.applied.max(1) };
            self.digest.replace(&self.digest_key, block, page, old, mac);
        }
    }

    /// What has gathered for the incoming QEMU, `None` if nothing has.
    pub fn take_output(&mut self) -> Option<Output> {
        self.composer.flush(&mut self.output.bytes);
        self.output.stream_next = self.next_seq;
        let nothing = self.output.bytes.is_empty() && self.output.frames.is_empty();
        (!nothing).then(|| std::mem::take(&mut self.output))
    }

    /// Bytes of the incoming QEMU's return path. Gives back those that go on to the source; SHUT(0) stays here.
    ///
    /// # Errors
    /// QEMU failed to load, or says what this build does not understand.
    pub fn return_path(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, TargetVmError> {
        let mut forward = Vec::new();
        while let Some((message, raw)) = self.return_parser.next_message(&mut bytes)? {
            match message {
                ReturnMessage::Shut { error: 0 } => self.loaded = true,
                ReturnMessage::Shut { error } => return Err(TargetVmError::Load(error)),
                ReturnMessage::Pong(_) | ReturnMessage::SwitchoverAck => forward.extend_from_slice(raw),
            }
        }
        Ok(forward)
    }

    /// QEMU has loaded the whole stream.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Compares what was written here with what QEMU said at the source, before the vote.
    ///
    /// # Errors
    /// [`TargetVmError::Digest`] names the first range that differs.
    pub fn verify(&self, source: &VmDigest) -> Result<(), TargetVmError> {
        match digest_difference(&self.digest, source, &self.blocks) {
            Some(error) if !broken(Rule::ReleaseBeforeDigests) => Err(error),
            _ => Ok(()),
        }
    }

    /// Sums over what was written into this VM's QEMU.
    pub fn digest(&self) -> &VmDigest {
        &self.digest
    }
}

/// The first difference between two digests of a VM, as the error that ends its migration.
pub(crate) fn digest_difference(a: &VmDigest, b: &VmDigest, blocks: &[BlockSpec]) -> Option<TargetVmError> {
    let (block, range) = a.first_difference(b)?;
    let (name, pages) = match blocks.get(block) {
        Some(spec) => (spec.name.clone(), spec.bytes / PAGE_SIZE as u64),
        None => (format!("#{block}"), u64::MAX),
    };
    Some(TargetVmError::Digest { block: name, from: range.start, to: range.end.min(pages).saturating_sub(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_and_range_that_differ_are_named() {
        let block =
            |name: &str, pages: u64| BlockSpec { name: name.to_owned(), bytes: pages * PAGE_SIZE as u64 };
        let blocks = [block("pc.bios", 64), block("pc.ram", 9000)];
        let key = DigestKey::new(&[1; 16]);
        let (ours, mut theirs) = (VmDigest::new(&[64, 9000]), VmDigest::new(&[64, 9000]));
        assert_eq!(digest_difference(&ours, &theirs, &blocks), None);
        theirs.replace(&key, 1, 8999, None, Mac([7; 16]));
        let said =
            |theirs: &VmDigest| digest_difference(&ours, theirs, &blocks).map(|error| error.to_string());
        assert_eq!(said(&theirs).as_deref(), Some("digests differ: block pc.ram, pages 8192 to 8999"));
        theirs.replace(&key, 1, 4100, None, Mac([7; 16]));
        assert_eq!(said(&theirs).as_deref(), Some("digests differ: block pc.ram, pages 4096 to 8191"));
        theirs.replace(&key, 0, 63, None, Mac([7; 16]));
        assert_eq!(said(&theirs).as_deref(), Some("digests differ: block pc.bios, pages 0 to 63"));
    }
}
