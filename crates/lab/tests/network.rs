//! The lab's network does what the figures rely on. Needs root, iproute2 and nftables.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Host, Lab};
use nix::sys::socket::{setsockopt, sockopt};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 1, 2);
const PORT: u16 = 7000;
/// Of a datagram without IP and UDP headers; with them and Ethernet's 14 bytes it is a full frame of 1514.
const DATAGRAM: usize = 1472;

fn receiver(host: &Host) -> UdpSocket {
    let socket = host.inside(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    socket
}

/// Datagrams that arrive until none has come for half a second.
fn count_datagrams(socket: &UdpSocket) -> usize {
    let mut buffer = [0; DATAGRAM];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
}

#[test]
fn tcp_fills_the_link_and_every_byte_is_counted() {
    let lab = Lab::new(1, "1gbit").unwrap();
    let host = &lab.targets[0];
    let listener = host.inside(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    let sink = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut stream = listener.accept().unwrap().0;
        let mut received = 0u64;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            received += length as u64;
        }
        received
    });
    let mut stream = lab.source.inside(|| TcpStream::connect((host.link.address, PORT))).unwrap().unwrap();
    let started = Instant::now();
    let data = vec![1; 1 << 18];
    while started.elapsed() < Duration::from_secs(2) {
        stream.write_all(&data).unwrap();
    }
    drop(stream);
    let payload = sink.join().unwrap() as f64;
    let gbit_per_s = payload * 8.0 / started.elapsed().as_secs_f64() / 1e9;
    println!("TCP: {gbit_per_s:.3} Gbit/s, dropped {:?}", lab.network.dropped_packets(&host.link).unwrap());
    // 1448 of 1514 bytes are payload. The lower bound leaves room for a machine with other work.
    assert!((0.75..0.96).contains(&gbit_per_s), "{gbit_per_s} Gbit/s");
    for bytes in [lab.network.sent_bytes(&lab.source.link), lab.network.received_bytes(&host.link)] {
        let overhead = bytes.unwrap() as f64 / payload;
        assert!(
            (1514.0 / 1448.0 * 0.999..1.08).contains(&overhead),
            "{overhead} bytes counted for each of payload"
        );
    }
}

#[test]
fn multicast_super_packets_reach_all_members_and_nobody_else() {
    let lab = Lab::new(3, "1gbit").unwrap();
    let members: Vec<UdpSocket> = lab.targets[..2].iter().map(receiver).collect();
    for member in &members {
        member.join_multicast_v4(&GROUP, &Ipv4Addr::UNSPECIFIED).unwrap();
    }
    let sender = lab.source.inside(|| UdpSocket::bind((lab.source.link.address, 0))).unwrap().unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &(DATAGRAM as i32)).unwrap();
    thread::sleep(Duration::from_millis(300));
    let before = lab.network.received_bytes(&lab.targets[2].link).unwrap();
    const PACKETS: usize = 200;
    const SEGMENTS: usize = 44;
    let counts: Vec<usize> = thread::scope(|scope| {
        let counting: Vec<_> = members.iter().map(|member| scope.spawn(|| count_datagrams(member))).collect();
        for _ in 0..PACKETS {
            sender.send_to(&vec![7; SEGMENTS * DATAGRAM], (GROUP, PORT)).unwrap();
            // 44 full frames take 0.53 ms at 1 Gbit/s.
            thread::sleep(Duration::from_millis(1));
        }
        counting.into_iter().map(|count| count.join().unwrap()).collect()
    });
    assert_eq!(counts, [PACKETS * SEGMENTS; 2]);
    let stray = lab.network.received_bytes(&lab.targets[2].link).unwrap() - before;
    assert!(stray < 10_000, "{stray} bytes went to a host outside the group");
    let sent = lab.network.sent_bytes(&lab.source.link).unwrap() as usize;
    let frames = PACKETS * SEGMENTS * (DATAGRAM + 42);
    assert!((frames..frames + frames / 100).contains(&sent), "{sent} bytes counted for {frames}");
}

#[test]
fn loss_is_as_set() {
    let lab = Lab::new(1, "1gbit").unwrap();
    let host = &lab.targets[0];
    let socket = receiver(host);
    let sender = lab.source.inside(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &100).unwrap();
    // Super-packets of ten, so that one which is lost as a whole would show.
    let arrived = |per_mille| {
        lab.network.set_loss(&host.link, per_mille).unwrap();
        for _ in 0..200 {
            sender.send_to(&[0; 1000], (host.link.address, PORT)).unwrap();
        }
        count_datagrams(&socket)
    };
    // The first may wait for ARP, which may be lost as well; a loss of 0 comes first for that.
    assert_eq!(arrived(0), 2000);
    // 200 expected; the standard deviation is 13, of whole super-packets it would be 42.
    let lost = 2000 - arrived(100);
    assert!((130..270).contains(&lost), "{lost} of 2000 lost");
    assert_eq!(arrived(0), 2000);
}

#[test]
fn nothing_is_left_after_a_lab() {
    let lab = Lab::new(2, "100mbit").unwrap();
    // The lab of another test may take over the names at once, so what is looked for is this lab's alone.
    let mark = lab.directory().join("mark");
    std::fs::write(&mark, "").unwrap();
    let namespace = Path::new("/run/netns").join(lab.source.name());
    let identity = || std::fs::metadata(&namespace).ok().map(|metadata| metadata.ino());
    let before = identity();
    let mut child = lab.source.spawn(Command::new("sleep").arg("1000")).unwrap();
    // Keeps the namespace's number from being given out again.
    let held = std::fs::File::open(&namespace).unwrap();
    assert!(mark.exists() && before.is_some());
    drop(lab);
    assert!(!mark.exists());
    assert_ne!(identity(), before);
    assert!(!child.wait().unwrap().success());
    drop(held);
}
