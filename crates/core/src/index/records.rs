//! Records of pages: pushed by the threads that read guests' memory, dealt into shards, grouped by content.

use super::{PageSpace, Sampler};
use crate::page::Mac;

/// Shards: one for each first byte of a MAC.
pub const SHARDS: usize = 256;
/// Records of one [`Run`] at most: 1.25 MiB, so that dealing it stays within a core's cache.
pub const RUN_RECORDS: usize = 65_536;
/// After how many shards the runs' memory is given back: rarely enough to be cheap, often enough that what is
/// kept too long is below 2 % of the records.
const SHARDS_PER_RELEASE: usize = 4;
/// Shards beyond this are sorted without a second buffer, which takes longer: 40 MiB. A shard grows beyond it
/// with 2 TiB of guest memory, or when one content fills 8 GiB.
const SHARD_DEAL_MAX: usize = 2 << 20;
/// Buckets within a shard, at most; where each ends must stay within a core's cache.
const BUCKETS_LOG2_MAX: u32 = 14;

/// One non-zero page, in 20 bytes.
#[derive(Clone, Copy, Default)]
struct Record {
    /// The MAC as a number, its least 32 bits first.
    mac: [u32; 4],
    /// The page's number in the [`PageSpace`].
    page: u32,
}

impl Record {
    fn new(mac: Mac, page: u32) -> Self {
        let mac = u128::from_be_bytes(mac.0);
        Record { mac: [0, 32, 64, 96].map(|shift| (mac >> shift) as u32), page }
    }

    fn high(&self) -> u64 {
        (u64::from(self.mac[3]) << 32) | u64::from(self.mac[2])
    }

    fn low(&self) -> u64 {
        (u64::from(self.mac[1]) << 32) | u64::from(self.mac[0])
    }

    fn mac(&self) -> Mac {
        Mac(((u128::from(self.high()) << 64) | u128::from(self.low())).to_be_bytes())
    }

    fn shard(&self) -> usize {
        (self.mac[3] >> 24) as usize
    }

    /// In this order equal contents stand together, each with its pages ascending.
    fn key(&self) -> (u64, u64, u32) {
        (self.high(), self.low(), self.page)
    }
}

/// The records dealt into buckets, in a buffer of exactly their size, and where each bucket ends. Their order
/// within a bucket stays.
fn deal(records: &[Record], buckets: usize, bucket: impl Fn(&Record) -> usize) -> (Vec<Record>, Vec<u32>) {
    let mut ends = vec![0u32; buckets];
    for record in records {
        ends[bucket(record)] += 1;
    }
    let mut start = 0;
    for end in ends.iter_mut() {
        (start, *end) = (start + *end, start);
    }
    let mut dealt = vec![Record::default(); records.len()];
    for record in records {
        let end = &mut ends[bucket(record)];
        dealt[*end as usize] = *record;
        *end += 1;
    }
    (dealt, ends)
}

/// Takes the pages that one thread reads, in any order and of any VM.
pub struct RunBuilder {
    records: Vec<Record>,
}

impl RunBuilder {
    /// An empty builder with room for one run.
    pub fn new() -> Self {
        RunBuilder { records: Vec::with_capacity(RUN_RECORDS) }
    }

    /// Notes a page that is not zero, by its number in the session's [`PageSpace`]. Gives back a run when
    /// [`RUN_RECORDS`] are together.
    pub fn push(&mut self, mac: Mac, page: u32) -> Option<Run> {
        self.records.push(Record::new(mac, page));
        if self.records.len() < RUN_RECORDS { None } else { self.seal() }
    }

    /// The rest, at the end.
    pub fn finish(mut self) -> Option<Run> {
        self.seal()
    }

    /// Deals the records into shards; the builder is empty afterwards.
    fn seal(&mut self) -> Option<Run> {
        if self.records.is_empty() {
            return None;
        }
        let (records, ends) = deal(&self.records, SHARDS, Record::shard);
        self.records.clear();
        Some(Run { records, ends })
    }
}

impl Default for RunBuilder {
    fn default() -> Self {
        RunBuilder::new()
    }
}

/// Up to [`RUN_RECORDS`] records, dealt into shards.
pub struct Run {
    records: Vec<Record>,
    /// Where each shard's records end.
    ends: Vec<u32>,
}

/// The records of all pages of all guests.
pub struct Records {
    runs: Vec<Run>,
    /// Shards not yet taken: these numbers from 0 up.
    left: usize,
}

impl Records {
    /// All runs of all threads.
    pub fn new(runs: Vec<Run>) -> Self {
        Records { runs, left: SHARDS }
    }

    /// Takes out the records of the VMs `failed`: those that could not be read to the end.
    pub fn exclude(&mut self, space: &PageSpace, failed: &[u16]) {
        for run in &mut self.runs {
            run.records.retain(|record| !failed.contains(&space.addr(record.page).vm));
            // The records are still in the order of their shards.
            for (shard, end) in run.ends.iter_mut().enumerate() {
                *end = run.records.partition_point(|record| record.shard() <= shard) as u32;
            }
        }
    }

    /// Moves the next shard out, until `None`. Its memory is given back by the runs.
    pub fn take_shard(&mut self) -> Option<Shard> {
        let number = self.left.checked_sub(1)?;
        self.left = number;
        let start_of = |run: &Run| number.checked_sub(1).map_or(0, |before| run.ends[before] as usize);
        let count = self.runs.iter().map(|run| run.records.len() - start_of(run)).sum();
        let mut records = Vec::with_capacity(count);
        for run in &mut self.runs {
            let start = start_of(run);
            records.extend_from_slice(&run.records[start..]);
            run.records.truncate(start);
            if number % SHARDS_PER_RELEASE == 0 {
                run.records.shrink_to_fit();
            }
        }
        Some(Shard { number: number as u8, records })
    }
}

/// All records whose MACs begin with one byte.
pub struct Shard {
    number: u8,
    records: Vec<Record>,
}

impl Shard {
    /// Sorts the records: deals them once more by the bits that follow the first byte, into buckets of some
    /// eight, then sorts each bucket. MACs are as good as random, so only equal contents make a bucket large.
    fn sort(&mut self) {
        let buckets_log2 = (self.records.len() / 8).checked_ilog2().unwrap_or(0).min(BUCKETS_LOG2_MAX);
        if buckets_log2 == 0 || self.records.len() > SHARD_DEAL_MAX {
            return self.records.sort_unstable_by_key(Record::key);
        }
        let bucket = |record: &Record| ((record.mac[3] << 8) >> (32 - buckets_log2)) as usize;
        let (mut dealt, ends) = deal(&self.records, 1 << buckets_log2, bucket);
        let mut start = 0;
        for end in ends {
            dealt[start..end as usize].sort_unstable_by_key(Record::key);
            start = end as usize;
        }
        self.records = dealt;
    }

    /// Finds the contents that stand more than once.
    pub fn group(self) -> Group {
        self.group_noting(|_| {})
    }

    /// The same, and notes all contents with their copies in each VM, those that stand once included. `space` is the one
    /// by which pages were numbered.
    pub fn group_sampled(self, space: &PageSpace, sampler: &mut Sampler) -> Group {
        self.group_noting(|same| {
            let vm_of = |record: &Record| space.addr(record.page).vm;
            // Pages ascend, and with them their VMs.
            let holders = same.chunk_by(|a, b| vm_of(a) == vm_of(b));
            sampler.note(same[0].mac(), holders.map(|copies| (vm_of(&copies[0]), copies.len() as u32)));
        })
    }

    /// `note` is given all records of each content.
    fn group_noting(mut self, mut note: impl FnMut(&[Record])) -> Group {
        self.sort();
        // First page, and where its content's records begin and how many they are.
        let mut heads: Vec<(u32, u32, u32)> = Vec::new();
        let (mut at, mut page_count) = (0, 0);
        for same in self.records.chunk_by(|a, b| a.mac == b.mac) {
            note(same);
            if same.len() > 1 {
                heads.push((same[0].page, at as u32, same.len() as u32));
                page_count += same.len();
            }
            at += same.len();
        }
        heads.sort_unstable();
        let mut group = Group {
            shard: self.number,
            macs: Vec::with_capacity(heads.len()),
            ends: Vec::with_capacity(heads.len()),
            pages: Vec::with_capacity(page_count),
        };
        for (_, start, count) in heads {
            let same = &self.records[start as usize..][..count as usize];
            group.macs.push(same[0].mac());
            group.pages.extend(same.iter().map(|record| record.page));
            group.ends.push(group.pages.len() as u32);
        }
        group
    }
}

/// The contents of one shard that stand more than once, in the order of their first pages.
pub struct Group {
    /// The MACs' first byte.
    pub(super) shard: u8,
    pub(super) macs: Vec<Mac>,
    /// Where each content's pages end.
    pub(super) ends: Vec<u32>,
    /// Numbers in the [`PageSpace`].
    pub(super) pages: Vec<u32>,
}
