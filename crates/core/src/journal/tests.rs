use super::file::{FileFault, HEADER_BYTES, Torn, encode, header, image, replay};
use super::*;
use proptest::prelude::*;

const ID: Uuid = [9; 16];
const GENERATION: u64 = 77;

fn key(number: u8) -> VmKey {
    VmKey { session: [1; 16], vm: [number; 16] }
}

fn facts(source: bool) -> Entry {
    let process = ProcessId { pid: 42, start_ticks: 1234, boot: [3; 16] };
    let side = match source {
        true => Side::Source {
            process: Some(process),
            parameters: vec![("max-bandwidth".into(), 134_217_728), ("downtime-limit".into(), 300)],
            capabilities: vec![("return-path".into(), false)],
        },
        false => Side::Target {
            program: "/usr/bin/qemu-system-x86_64".into(),
            memory_bytes: 1 << 30,
            source_journal: [8; 16],
        },
    };
    Entry::Begun(Box::new(Facts {
        name: "vm1".into(),
        peer: Peer { name: "host1".into(), addr: "10.0.0.1:7940".parse().unwrap() },
        monitor: "/run/vm1.qmp".into(),
        paused: false,
        side,
    }))
}

fn record(number: u8, entry: Entry) -> Record {
    Record { key: key(number), unix_ms: 1_700_000_000_000 + u64::from(number), entry }
}

fn source(number: u8, step: SourceStep) -> Record {
    record(number, Entry::Step(Step::Source(step)))
}

/// A file of these records, synced after each for which `sync` says so; and where each begins.
fn file(records: &[Record], sync: impl Fn(usize) -> bool) -> (Vec<u8>, Vec<usize>) {
    let mut out = header(&ID, GENERATION).to_vec();
    let (mut synced, mut starts) = (out.len(), Vec::new());
    for (at, record) in records.iter().enumerate() {
        starts.push(out.len());
        encode(record, GENERATION, synced as u64, &mut out);
        if sync(at) {
            synced = out.len();
        }
    }
    (out, starts)
}

fn way() -> Vec<Record> {
    vec![
        record(1, facts(true)),
        record(2, facts(false)),
        source(1, SourceStep::Streaming),
        record(2, Entry::Spawned(ProcessId { pid: 7, start_ticks: 8, boot: [3; 16] })),
        source(1, SourceStep::Released),
        record(2, Entry::Step(Step::Target(TargetStep::Voted))),
        source(1, SourceStep::Committed),
    ]
}

#[test]
fn what_was_written_is_read_back() {
    let (bytes, _) = file(&way(), |_| true);
    let replayed = replay(&bytes).unwrap();
    assert_eq!((replayed.end, replayed.torn), (bytes.len() as u64, None));
    let vm = replayed.book.get(&key(1)).unwrap();
    assert_eq!((vm.step, vm.process.unwrap().pid), (Step::Source(SourceStep::Committed), 42));
    let vm = replayed.book.get(&key(2)).unwrap();
    assert_eq!((vm.step, vm.process.unwrap().pid), (Step::Target(TargetStep::Voted), 7));
    assert_eq!((replayed.book.id, replayed.generation), (ID, GENERATION));
}

#[test]
fn compaction_keeps_what_is_open_and_drops_what_is_closed() {
    let mut records = way();
    records.push(record(1, Entry::Closed));
    let (bytes, _) = file(&records, |_| true);
    let book = replay(&bytes).unwrap().book;
    assert_eq!(book.vms().count(), 1);
    let compacted = image(&book, GENERATION + 1);
    assert!(compacted.len() < bytes.len());
    assert_eq!(replay(&compacted).unwrap().book, book);
    // A block of the old file behind the new one's end is no record of it.
    let mut stale = compacted.clone();
    stale.extend_from_slice(&bytes[HEADER_BYTES..]);
    let replayed = replay(&stale).unwrap();
    assert_eq!((replayed.book, replayed.end), (book, compacted.len() as u64));
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_was_cut() {
    let (bytes, starts) = file(&way(), |_| true);
    let last = *starts.last().unwrap();
    for len in last + 1..bytes.len() {
        let replayed = replay(&bytes[..len]).unwrap();
        assert_eq!(replayed.torn, Some(Torn { offset: last as u64, bytes: (len - last) as u64 }));
        assert_eq!(replayed.book.get(&key(1)).unwrap().step, Step::Source(SourceStep::Released));
        // The same with the rest as zeros: the file had grown, its blocks were never written.
        let mut zeros = bytes[..len].to_vec();
        zeros.resize(bytes.len() + 4096, 0);
        assert_eq!(replay(&zeros).unwrap().end, last as u64);
    }
}

#[test]
fn unsynced_records_may_be_lost_in_any_order() {
    // Synced up to and with the fifth; the sixth is lost, the seventh has made it to the disk.
    let (mut bytes, starts) = file(&way(), |at| at < 5);
    bytes[starts[5]..starts[6]].fill(0);
    let replayed = replay(&bytes).unwrap();
    assert_eq!(replayed.end, starts[5] as u64);
    assert_eq!(replayed.book.get(&key(1)).unwrap().step, Step::Source(SourceStep::Released));
}

#[test]
fn a_lost_record_that_was_synced_is_damage_and_is_located() {
    let (bytes, starts) = file(&way(), |_| true);
    for (at, start) in starts.iter().enumerate().take(starts.len() - 1) {
        for offset in [*start, start + 5, start + 17, start + 25] {
            let mut damaged = bytes.clone();
            damaged[offset] ^= 0x40;
            let error = replay(&damaged).unwrap_err();
            assert_eq!((error.offset, error.fault), (*start as u64, FileFault::Lost), "record {at}");
        }
    }
    let mut damaged = bytes.clone();
    damaged[30] ^= 1;
    assert_eq!(replay(&damaged).unwrap_err().fault, FileFault::Header);
    assert_eq!(replay(b"").unwrap_err().offset, 0);
}

#[test]
fn records_that_do_not_follow_are_refused() {
    let mut book = Book::new(ID);
    assert_eq!(book.apply(&source(1, SourceStep::Done)), Err(RecordError::Unknown));
    book.apply(&record(1, facts(true))).unwrap();
    assert_eq!(book.apply(&record(1, facts(true))), Err(RecordError::Twice));
    let voted = record(1, Entry::Step(Step::Target(TargetStep::Voted)));
    assert_eq!(book.apply(&voted), Err(RecordError::Side));
    book.apply(&record(1, Entry::Closed)).unwrap();
    assert_eq!(book.apply(&record(1, Entry::Closed)), Err(RecordError::Unknown));
    let (bytes, starts) = file(&[record(1, facts(true)), record(1, facts(false))], |_| true);
    let error = replay(&bytes).unwrap_err();
    assert_eq!((error.offset, error.fault), (starts[1] as u64, FileFault::Record(RecordError::Twice)));
}

/// What others rely on is synced: the promises, the decision, and the ends.
#[test]
fn promises_and_decisions_are_durable() {
    use SourceStep as S;
    use TargetStep as T;
    let durable = [S::Released, S::Committed, S::Aborted, S::Forced, S::Done].map(Step::Source);
    let others = [T::Voted, T::Committed, T::Running, T::Aborted, T::Forced].map(Step::Target);
    assert!(durable.into_iter().chain(others).all(Step::is_durable));
    let not = [Step::Source(S::Streaming), Step::Source(S::Stopped), Step::Target(T::Prepared)];
    assert!(!not.into_iter().any(Step::is_durable));
}

proptest! {
    /// Whatever a crash leaves of what was not synced: all that was synced is there, and nothing is taken for damage.
    #[test]
    fn a_crash_never_costs_what_was_synced(
        syncs in proptest::collection::vec(any::<bool>(), 7),
        len in any::<proptest::sample::Index>(),
        lost in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        fill in any::<u8>(),
    ) {
        let (mut bytes, starts) = file(&way(), |at| syncs[at]);
        let synced_records = syncs.iter().rposition(|sync| *sync).map_or(0, |at| at + 1);
        let synced = starts.get(synced_records).copied().unwrap_or(bytes.len());
        bytes.truncate(synced + len.index(bytes.len() - synced + 1));
        for at in lost {
            let sector = (synced + at.index(bytes.len() - synced + 1)) / 16 * 16;
            let range = sector.max(synced)..(sector + 16).min(bytes.len());
            if range.start < range.end {
                bytes[range].fill(fill);
            }
        }
        let replayed = replay(&bytes).unwrap();
        prop_assert!(replayed.end as usize >= synced);
        let mut book = Book::new(ID);
        for record in &way()[..synced_records] {
            book.apply(record).unwrap();
        }
        for vm in book.vms() {
            let now = replayed.book.get(&vm.key).unwrap();
            prop_assert_eq!(&now.facts, &vm.facts);
        }
    }

    #[test]
    fn noise_is_an_error_or_a_journal(bytes in proptest::collection::vec(any::<u8>(), 0..600), headed in any::<bool>()) {
        let mut file = if headed { header(&ID, GENERATION).to_vec() } else { Vec::new() };
        file.extend_from_slice(&bytes);
        prop_assert_eq!(replay(&file).is_ok(), headed);
    }
}
