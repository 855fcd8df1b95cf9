//! Writes the first inputs of the corpora: what honest peers, QEMU and people write, so that a fuzzer begins behind the
//! first checks. `cargo run -p fuzz --example seeds` puts them into `fuzz/corpus`.

use std::path::{Path, PathBuf};

use vmscatter_core::index::{FleetKey, Sampler};
use vmscatter_core::journal::{
    Entry, Facts, Peer, ProcessId, Record, Side, SourceStep, Step, TargetStep, VmKey,
};
use vmscatter_core::page::{PAGE_SIZE, PageAddr, VmDigest};
use vmscatter_core::wire::control::{BlockSpec, Envelope, Message, VmSpec};
use vmscatter_core::wire::frame::{Compression, Encoder, StreamFrameBuilder};
use vmscatter_core::wire::hardware::Hardware;

fn put(corpus: &str, name: &str, bytes: &[u8]) {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), bytes).unwrap();
}

fn main() {
    put("qemu_stream", "seed-stream", &[&[7][..], &stream()].concat());
    put("return_path", "seed-answers", &[3, 0, 2, 0, 4, 0, 0, 0, 1, 0, 7, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0]);
    for (at, message) in messages().into_iter().enumerate() {
        let bytes = Envelope { session: [0; 16], message }.encode().unwrap();
        put("control", &format!("seed-{at:02}"), &bytes[4..]);
    }
    frames();
    sessions();
    journal();
    put("guest_file", "seed-guest", GUEST.as_bytes());
    let sampler = Sampler::new(FleetKey::new(&[5; 32]));
    put("fingerprints", "seed-empty", &sampler.finish("host1", 1_700_000_000, Vec::new()).encode().unwrap());
}

const GUEST: &str = "name = 'web1'\nuuid = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'\nqmp = '{run_dir}/{name}.qmp'\n\
command = ['/usr/bin/qemu-system-x86_64', '-m', '512', '-drive', 'file={images}/{{x}}.qcow2', '-S']\n";

/// QEMU 7.2's: header, configuration, RAM's block list, a page and a zero page, the end.
fn stream() -> Vec<u8> {
    let mut out = b"QEVM\0\0\0\x03\x07".to_vec();
    let name = b"pc-i440fx-7.2";
    out.extend_from_slice(&(name.len() as u32).to_be_bytes());
    out.extend_from_slice(name);
    let section = |out: &mut Vec<u8>, kind: u8, full: bool| {
        out.push(kind);
        out.extend_from_slice(&2u32.to_be_bytes());
        if full {
            out.extend_from_slice(b"\x03ram");
            out.extend_from_slice(&0u32.to_be_bytes());
            out.extend_from_slice(&4u32.to_be_bytes());
        }
    };
    let footer = |out: &mut Vec<u8>| out.extend_from_slice(&[0x7e, 0, 0, 0, 2]);
    let number = |out: &mut Vec<u8>, value: u64| out.extend_from_slice(&value.to_be_bytes());
    section(&mut out, 1, true);
    number(&mut out, 0x8000 | 4);
    out.extend_from_slice(b"\x06pc.ram");
    number(&mut out, 0x8000);
    number(&mut out, 0x10);
    footer(&mut out);
    section(&mut out, 2, false);
    number(&mut out, 0x1000 | 0x08);
    out.extend_from_slice(b"\x06pc.ram");
    out.extend_from_slice(&[9; PAGE_SIZE]);
    number(&mut out, 0x2000 | 0x02 | 0x20);
    out.push(0);
    number(&mut out, 0x10);
    footer(&mut out);
    section(&mut out, 3, false);
    number(&mut out, 0x10);
    footer(&mut out);
    out.extend_from_slice(&[4, 0, 0, 0, 3, 5]);
    out
}

fn spec() -> VmSpec {
    VmSpec {
        vm: 1,
        uuid: [1; 16],
        name: "vm1".to_owned(),
        guest_file: GUEST.to_owned(),
        machine: "pc-i440fx-7.2".to_owned(),
        blocks: vec![BlockSpec { name: "pc.ram".to_owned(), bytes: 8 * PAGE_SIZE as u64 }],
        hardware: Hardware::default(),
        paused: false,
    }
}

/// One of each, from the documented vectors.
fn messages() -> Vec<Message> {
    let text = include_str!("../../../docs/wire-vectors.txt");
    let of_control = text.lines().filter_map(|line| line.strip_prefix("control/")?.split_once(' '));
    let digit = |hex: &str, at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes =
        of_control.map(|(_, hex)| (8..hex.len()).step_by(2).map(|at| digit(hex, at)).collect::<Vec<u8>>());
    bytes.map(|body| Envelope::decode(&body).unwrap().message).collect()
}

fn frames() {
    let page = [4; PAGE_SIZE];
    let addrs = [PageAddr { vm: 0, block: 0, page: 1 }, PageAddr { vm: 1, block: 0, page: 3 }];
    for (name, compression) in [("plain", Compression::None), ("zstd", Compression::Zstd(1))] {
        let contents = [(&addrs[..], &page[..])];
        let body = Encoder::new().scatter(contents.into_iter(), compression).unwrap();
        put("frames", &format!("seed-scatter-{name}"), &[&[0][..], &body].concat());
        let mut stream = StreamFrameBuilder::new();
        stream.raw(b"QEVM").unwrap();
        stream.ram_start(2).unwrap();
        stream.page(0, 1, &page).unwrap();
        stream.zero_run(0, 2, 2).unwrap();
        stream.ram_end().unwrap();
        let body = stream.finish(compression, &mut Encoder::new());
        put("frames", &format!("seed-stream-{name}"), &[&[1][..], &body].concat());
        // As a piece of a session: kind, frame, VM, count, index, length, payload, its size as it is.
        let len = (body.len() as u16).to_be_bytes();
        let piece = [&[1, 2, 1, 0, 1, 1, 0][..], &len, &body, &[0]].concat();
        put("pieces", &format!("seed-stream-{name}"), &piece);
    }
    put(
        "pieces",
        "seed-scatter",
        &[1, 0, 0, 3, 0, 2, 0, 0, 4, 1, 2, 3, 4, 0, 2, 1, 0, 1, 0, 2, 3, 0xff, 0xff],
    );
}

/// A message as the bodies of sessions read it.
fn op(first: &[u8], message: &Message) -> Vec<u8> {
    let bytes = Envelope { session: [0; 16], message: message.clone() }.encode().unwrap();
    let body = &bytes[4 + 16..];
    [first, &(body.len() as u16).to_be_bytes(), body].concat()
}

fn sessions() {
    let all = messages();
    put("target_session", "seed-all", &all.iter().flat_map(|message| op(&[0], message)).collect::<Vec<_>>());
    let prepare = op(&[0], &Message::Prepare(spec()));
    put("target_session", "seed-prepare", &prepare);
    for target in 0..3u8 {
        let vm = u16::from(target);
        let of = [
            Message::Prepared { vm },
            Message::ScatterClosed { vm },
            Message::Loaded { vm, digest: VmDigest::new(&[4]) },
            Message::Running { vm, resumed_unix_us: 1, journal_us: 1 },
        ];
        let way: Vec<u8> = of.iter().flat_map(|message| op(&[0, target], message)).collect();
        put("source_session", &format!("seed-{target}"), &way);
    }
    let all: Vec<u8> = all.iter().flat_map(|message| op(&[1, 1], message)).collect();
    put("source_session", "seed-all", &[&[4, 3, 1, 0][..], &all].concat());
    let prepared: Vec<u8> =
        (0..3u8).flat_map(|target| op(&[0, target], &Message::Prepared { vm: target.into() })).collect();
    put("source_session", "seed-prepared", &prepared);
}

fn journal() {
    let key = VmKey { session: [1; 16], vm: [2; 16] };
    let process = ProcessId { pid: 42, start_ticks: 1234, boot: [3; 16] };
    let facts = Facts {
        name: "vm1".into(),
        peer: Peer { name: "host1".into(), addr: "192.0.2.1:7940".parse().unwrap() },
        monitor: "/run/vm1.qmp".into(),
        paused: false,
        side: Side::Source { process: Some(process), parameters: Vec::new(), capabilities: Vec::new() },
    };
    let side =
        Side::Target { program: "/usr/bin/qemu".into(), memory_bytes: 1 << 30, source_journal: [8; 16] };
    let target = Facts { side, ..facts.clone() };
    let ways = [
        ("source", facts, [Step::Source(SourceStep::Stopped), Step::Source(SourceStep::Released)]),
        ("target", target, [Step::Target(TargetStep::Voted), Step::Target(TargetStep::Committed)]),
    ];
    for (name, facts, steps) in ways {
        let entries = std::iter::once(Entry::Begun(Box::new(facts))).chain(steps.map(Entry::Step));
        let (mut file, mut plain) = (vmscatter_core::journal::file::header(&[1; 16], 7).to_vec(), vec![1]);
        for entry in entries {
            let record = Record { key, unix_ms: 1, entry };
            let (body, synced) = (postcard::to_stdvec(&record).unwrap(), file.len() as u64);
            vmscatter_core::journal::file::encode(&record, 7, synced, &mut file);
            plain.extend_from_slice(&(body.len() as u16).to_be_bytes());
            plain.extend_from_slice(&body);
        }
        put("journal", &format!("seed-{name}-file"), &[&[0][..], &file].concat());
        put("journal", &format!("seed-{name}-records"), &plain);
    }
}
