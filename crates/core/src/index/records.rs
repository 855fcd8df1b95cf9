//! Records of pages: pushed by the threads that read guests' memory, dealt into shards, grouped by content.

use crate::page::{Mac, PageAddr};

/// Shards: one for each first byte of a MAC.
pub const SHARDS: usize = 256;
/// Records of one [`Run`] at most: 1.5 MiB, so that dealing it stays within a core's cache.
pub const RUN_RECORDS: usize = 65_536;
/// After how many shards the runs' memory is given back: rarely enough to be cheap, often enough that what is
/// kept too long is below 2 % of the records.
const SHARDS_PER_RELEASE: usize = 4;
/// Shards beyond this are sorted without a second buffer, which takes longer: 48 MiB. A shard grows beyond it
/// with 2 TiB of guest memory, or when one content fills 8 GiB.
const SHARD_DEAL_MAX: usize = 2 << 20;
/// Buckets within a shard, at most; where each ends must stay within a core's cache.
const BUCKETS_LOG2_MAX: u32 = 14;

/// One non-zero page. In this order: equal contents stand together, each with its addresses ascending.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    mac_high: u64,
    mac_low: u64,
    addr: u64,
}

impl Record {
    fn new(mac: Mac, addr: PageAddr) -> Self {
        let mac = u128::from_be_bytes(mac.0);
        Record { mac_high: (mac >> 64) as u64, mac_low: mac as u64, addr: pack(addr) }
    }

    fn mac(&self) -> Mac {
        Mac(((u128::from(self.mac_high) << 64) | u128::from(self.mac_low)).to_be_bytes())
    }

    fn shard(&self) -> usize {
        (self.mac_high >> 56) as usize
    }

    fn same_content(&self, other: &Record) -> bool {
        (self.mac_high, self.mac_low) == (other.mac_high, other.mac_low)
    }
}

/// An address in 64 bits that sort as the address does.
pub(super) fn pack(addr: PageAddr) -> u64 {
    (u64::from(addr.vm) << 48) | (u64::from(addr.block) << 32) | u64::from(addr.page)
}

fn unpack(addr: u64) -> PageAddr {
    PageAddr { vm: (addr >> 48) as u16, block: (addr >> 32) as u16, page: addr as u32 }
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

    /// Notes a page that is not zero. Gives back a run when [`RUN_RECORDS`] are together.
    pub fn push(&mut self, mac: Mac, addr: PageAddr) -> Option<Run> {
        self.records.push(Record::new(mac, addr));
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
    /// VMs whose records don't count, ascending.
    excluded: Vec<u16>,
}

impl Records {
    /// All runs of all threads, without the records of the VMs `excluded` (those that could not be read to
    /// the end).
    pub fn new(runs: Vec<Run>, mut excluded: Vec<u16>) -> Self {
        excluded.sort_unstable();
        Records { runs, left: SHARDS, excluded }
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
        if !self.excluded.is_empty() {
            records.retain(|record| self.excluded.binary_search(&unpack(record.addr).vm).is_err());
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
            return self.records.sort_unstable();
        }
        let bucket = |record: &Record| ((record.mac_high << 8) >> (64 - buckets_log2)) as usize;
        let (mut dealt, ends) = deal(&self.records, 1 << buckets_log2, bucket);
        let mut start = 0;
        for end in ends {
            dealt[start..end as usize].sort_unstable();
            start = end as usize;
        }
        self.records = dealt;
    }

    /// Finds the contents that stand more than once.
    pub fn group(mut self) -> Group {
        self.sort();
        // First address, and where its content's records begin.
        let mut heads: Vec<(u64, u32, u32)> = Vec::new();
        let (mut at, mut addr_count) = (0, 0);
        for same in self.records.chunk_by(Record::same_content) {
            if same.len() > 1 {
                heads.push((same[0].addr, at as u32, same.len() as u32));
                addr_count += same.len();
            }
            at += same.len();
        }
        heads.sort_unstable();
        let mut group = Group {
            shard: self.number,
            macs: Vec::with_capacity(heads.len()),
            ends: Vec::with_capacity(heads.len()),
            addrs: Vec::with_capacity(addr_count),
        };
        for (_, start, count) in heads {
            let same = &self.records[start as usize..][..count as usize];
            group.macs.push(same[0].mac());
            group.addrs.extend(same.iter().map(|record| unpack(record.addr)));
            group.ends.push(group.addrs.len() as u32);
        }
        group
    }
}

/// The contents of one shard that stand more than once, in the order of their first addresses.
pub struct Group {
    /// The MACs' first byte.
    pub(super) shard: u8,
    pub(super) macs: Vec<Mac>,
    /// Where each content's addresses end.
    pub(super) ends: Vec<u32>,
    pub(super) addrs: Vec<PageAddr>,
}
