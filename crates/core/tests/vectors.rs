//! Golden vectors: the bytes of `docs/wire-vectors.txt`, which another implementation can be held against, are what this
//! one writes, and it reads them. A change here is a change of the wire, and needs a new version.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use vmscatter_core::page::{DigestKey, Mac, MacKey, PAGE_SIZE, PageAddr, VmDigest};
use vmscatter_core::transport::encode_parity;
use vmscatter_core::wire::control::{
    BlockSpec, Contact, Envelope, FrameGap, FrameSpan, HELLO_MAGIC, Hello, HostReport, LinkCounters, Message,
    QemuProgram, Report, Resources, SetGrant, VmSpec,
};
use vmscatter_core::wire::frame::{Compression, Decoder, Encoder, StreamFrameBuilder, StreamItem};
use vmscatter_core::wire::hardware::{CpuidWord, Device, Hardware};
use vmscatter_core::wire::piece::{PieceHeader, PieceKind, open_piece, seal_piece, session_tag};
use vmscatter_core::wire::relay;
use vmscatter_core::wire::seal::{Channel, OpenKey, SealKey};

const SESSION: [u8; 16] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 9, 10, 11, 12, 13, 14, 15, 16];
const KEY: [u8; 32] = [0x42; 32];

/// A page whose bytes count: byte `i` is `i` mod 251.
fn page() -> [u8; PAGE_SIZE] {
    std::array::from_fn(|at| (at % 251) as u8)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

fn messages() -> Vec<(&'static str, Message)> {
    let hello = Hello {
        magic: HELLO_MAGIC,
        version_min: 2,
        version_max: 2,
        features: 0,
        name: "host1".to_owned(),
        resources: Resources { free_memory_bytes: 1 << 33, mtu: 1500, data_port: 7941 },
    };
    let contact = Contact { addr: "192.0.2.1:7940".parse().unwrap(), journal: [3; 16] };
    let grant = SetGrant { set: 300, key: KEY, group: Some("239.1.2.3:4000".parse().unwrap()) };
    let hardware = Hardware {
        cpus: 2,
        cpu_model: "qemu64-x86_64-cpu".to_owned(),
        cpu_features: vec![CpuidWord { leaf: (7, Some(0)), register: "EBX".to_owned(), bits: 0x80 }],
        devices: vec![Device { id: String::new(), kind: "virtio-blk-pci".to_owned() }],
    };
    let spec = VmSpec {
        vm: 1,
        uuid: [7; 16],
        name: "vm1".to_owned(),
        guest_file: "name = 'vm1'".to_owned(),
        machine: "pc-q35-7.2".to_owned(),
        blocks: vec![BlockSpec { name: "pc.ram".to_owned(), bytes: 1 << 28 }],
        hardware,
        paused: false,
    };
    let report = Report {
        received_bytes: 147_200,
        received_datagrams: 100,
        seen: vec![(300, 101)],
        clock_us: 123_456,
        written: vec![(0, 9)],
        gaps: vec![FrameGap { frame: 10, pieces: vec![(3, 3), (7, 200)] }],
    };
    let digest = VmDigest { blocks: vec![vec![1, 1 << 100]] };
    vec![
        ("hello", Message::Hello(hello)),
        ("open", Message::Open { mac_key: [1; 16], digest_key: [2; 16], target: 1, own_set: 1, contact }),
        ("grant", Message::Grant(vec![grant])),
        ("join", Message::Join { set: 300 }),
        ("leave", Message::Leave { set: 300 }),
        ("prepare", Message::Prepare(spec)),
        ("sent", Message::Sent(vec![FrameSpan { set: 300, first: 0, last: 40 }])),
        ("close-scatter", Message::CloseScatter { vm: 1 }),
        ("digest", Message::Digest { vm: 1, digest: digest.clone() }),
        ("commit", Message::Commit { vm: 1 }),
        ("abort", Message::Abort { vm: 1, reason: "cancelled".to_owned() }),
        ("close", Message::Close),
        ("granted", Message::Granted),
        ("joined", Message::Joined { set: 300, error: None }),
        ("heard", Message::Heard { set: 300 }),
        (
            "hop",
            Message::Hop {
                target: 2,
                addr: SocketAddr::from(([192, 0, 2, 7], 7941)),
                hello: vec![1, 4, 255],
            },
        ),
        ("hopped", Message::Hopped { target: 2, error: None }),
        ("count_train", Message::CountTrain { set: 300 }),
        ("train_counted", Message::TrainCounted { set: 300, datagrams: 680 }),
        ("examine", Message::Examine { group: SocketAddr::from(([239, 1, 2, 3], 4000)), key: KEY }),
        (
            "examined",
            Message::Examined(HostReport {
                clock_unix_us: 1_800_000_000_000_000,
                igmp_max_memberships: 20,
                receive_buffer_bytes: 25_165_824,
                qemus: vec![
                    QemuProgram { path: "/usr/bin/qemu".into(), version: Ok("7.2.22".into()) },
                    QemuProgram { path: "/opt/qemu".into(), version: Err("no such file".into()) },
                ],
                probes: 20,
            }),
        ),
        (
            "link-counters",
            Message::LinkCounters(LinkCounters {
                clock_us: 2_500_000,
                link_bytes: 9_000_000_000,
                session_bytes: 250_000_000,
            }),
        ),
        ("hop-lost", Message::Hopped { target: 2, error: Some("connection reset".into()) }),
        ("prepared", Message::Prepared { vm: 1 }),
        ("report", Message::Report(report)),
        ("written", Message::Written { vm: 1, next: 12 }),
        ("scatter-closed", Message::ScatterClosed { vm: 1 }),
        ("return-path", Message::ReturnPath { vm: 1, bytes: vec![0, 2, 0, 4, 0, 0, 0, 1] }),
        ("loaded", Message::Loaded { vm: 1, digest }),
        ("running", Message::Running { vm: 1, resumed_unix_us: 1_700_000_000_000_000, journal_us: 900 }),
        ("failed", Message::Failed { vm: 1, reason: "no room".to_owned() }),
        ("ping", Message::Ping(5)),
        ("pong", Message::Pong(5)),
    ]
}

fn addrs() -> [Vec<PageAddr>; 2] {
    let at = |vm, page| PageAddr { vm, block: 0, page };
    [vec![at(0, 5), at(0, 9), at(2, 70_000)], vec![at(0, 3)]]
}

fn scatter_body() -> Vec<u8> {
    let [first, second] = addrs();
    let (counting, ones) = (page(), [1; PAGE_SIZE]);
    let contents = [(&first[..], &counting[..]), (&second[..], &ones[..])];
    Encoder::new().scatter(contents.into_iter(), Compression::None).unwrap()
}

fn stream_body() -> Vec<u8> {
    let mut frame = StreamFrameBuilder::new();
    frame.raw(b"QEVM").unwrap();
    frame.ram_start(2).unwrap();
    frame.page(0, 300, &page()).unwrap();
    frame.zero_run(1, 0, 1000).unwrap();
    frame.ram_end().unwrap();
    frame.finish(Compression::None, &mut Encoder::new())
}

fn piece(kind: PieceKind, channel: Channel, vm: u16, count: u16) -> Vec<u8> {
    let whole = PieceHeader::whole(kind, 300, session_tag(&SESSION), 77, 16);
    let mut out = Vec::new();
    let header = PieceHeader { vm, count, ..whole };
    seal_piece(&mut SealKey::new(&KEY, channel), &header, b"sixteen bytes ok", &mut out).unwrap();
    out
}

/// All of it, by name.
fn written() -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (name, message) in messages() {
        all.insert(format!("control/{name}"), Envelope { session: SESSION, message }.encode().unwrap());
    }
    all.insert("frame/scatter".to_owned(), scatter_body());
    all.insert("frame/stream".to_owned(), stream_body());
    all.insert("piece/scatter".to_owned(), piece(PieceKind::Scatter, Channel::MULTICAST, 0, 3));
    all.insert("piece/stream".to_owned(), piece(PieceKind::Stream, Channel::unicast(1), 4, 1));
    all.insert("piece/probe".to_owned(), piece(PieceKind::Probe, Channel::PROBE, 0, 1));
    all.insert("piece/data-hello".to_owned(), piece(PieceKind::DataHello, Channel::unicast(1), 0, 1));
    all.insert(
        "piece/relay".to_owned(),
        relay::wrap(&[2, 300], &piece(PieceKind::Scatter, Channel::RELAY, 0, 3)),
    );
    // The last piece of two has a byte; its strips are filled up.
    let header = PieceHeader {
        vm: 1,
        index: 3,
        count: 2,
        ..PieceHeader::whole(PieceKind::Parity, 300, session_tag(&SESSION), 77, 16)
    };
    let mut parity = Vec::new();
    encode_parity(b"sixteen bytes ok!", 16, 3, &mut parity);
    all.insert("parity/row-3".to_owned(), parity.clone());
    let mut piece = Vec::new();
    seal_piece(&mut SealKey::new(&KEY, Channel::MULTICAST), &header, &parity, &mut piece).unwrap();
    all.insert("piece/parity".to_owned(), piece);
    let mac = MacKey::new(&[1; 16]).mac(&page());
    all.insert("mac/counting-page".to_owned(), mac.0.to_vec());
    let term = DigestKey::new(&[2; 16]).term(3, 70_000, Mac(mac.0));
    all.insert("digest/term".to_owned(), term.to_be_bytes().to_vec());
    all
}

#[test]
fn bytes_are_those_of_the_documented_vectors() {
    let text = include_str!("../../../docs/wire-vectors.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let documented: BTreeMap<&str, &str> = lines.map(|line| line.split_once(' ').unwrap()).collect();
    let written = written();
    let missing: Vec<String> = written
        .iter()
        .filter(|(name, bytes)| documented.get(name.as_str()) != Some(&&*hex(bytes)))
        .map(|(name, bytes)| format!("{name} {}", hex(bytes)))
        .collect();
    assert!(missing.is_empty(), "this build writes:\n{}", missing.join("\n"));
    assert_eq!(documented.len(), written.len(), "vectors of which this build knows nothing");

    for (name, message) in messages() {
        let bytes = unhex(documented[&*format!("control/{name}")]);
        let envelope = Envelope { session: SESSION, message };
        assert_eq!(Envelope::decode(&bytes[4..]), Ok(envelope), "{name}");
    }
    let mut decoder = Decoder::new();
    let body = unhex(documented["frame/scatter"]);
    let contents = decoder.scatter(&body).unwrap();
    let read: Vec<Vec<PageAddr>> = contents.contents().map(|(addrs, _)| addrs.to_vec()).collect();
    assert_eq!(read, addrs());
    let body = unhex(documented["frame/stream"]);
    let items: Vec<StreamItem<'_>> = decoder.stream(&body).unwrap().items().collect();
    assert_eq!(items.len(), 5);
    assert_eq!(items[2], StreamItem::Page { block: 0, page: 300, data: &page() });
    for (name, channel) in [
        ("scatter", Channel::MULTICAST),
        ("stream", Channel::unicast(1)),
        ("probe", Channel::PROBE),
        ("relay", Channel::RELAY),
        ("data-hello", Channel::unicast(1)),
    ] {
        let mut bytes = unhex(documented[&*format!("piece/{name}")]);
        let piece = match relay::unwrap(&mut bytes) {
            Some(envelope) => {
                assert_eq!((name, &*envelope.hops), ("relay", &[2, 300][..]));
                envelope.piece.to_vec()
            }
            None => bytes,
        };
        let mut piece = piece;
        let (header, payload) = open_piece(&mut OpenKey::new(&KEY, &[channel]), &mut piece).unwrap();
        assert_eq!(
            (header.frame, header.set, header.number, &*payload),
            (77, 300, 0, &b"sixteen bytes ok"[..])
        );
    }
}
