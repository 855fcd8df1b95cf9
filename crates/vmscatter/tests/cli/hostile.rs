//! A peer with a valid certificate that keeps to no rule ends its own sessions, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use vmscatter::agent::admission::PEER_CONNECTIONS_MAX;
use vmscatter::agent::control::{ControlConnection, hello};
use vmscatter::agent::tls::TlsContext;
use vmscatter_core::limits::{CONTROL_MESSAGE_BYTES_MAX, SESSION_VMS_MAX};
use vmscatter_core::page::VmDigest;
use vmscatter_core::session::recovery::{SourceWord, TargetWord, Word};
use vmscatter_core::wire::control::{
    BlockSpec, Contact, Envelope, FrameGap, FrameSpan, Message, Report, Resources, SetGrant, VmSpec,
};
use vmscatter_core::wire::hardware::Hardware;

use crate::harness::{Agent, Lab};

const EVIL: [u8; 16] = [0xee; 16];
/// An honest peer waits no longer than this, whatever another one does.
const SOON: Duration = Duration::from_secs(5);
/// What an agent may take beyond what it had before, for a peer that sends all it can.
pub(crate) const MEMORY_MAX: u64 = 256 << 20;

/// An agent, a peer that has a session there, and one that wants to do harm.
struct Scene {
    agent: Agent,
    evil: TlsContext,
    honest: ControlConnection,
    memory: u64,
    lab: Lab,
}

impl Scene {
    async fn new() -> Scene {
        let lab = Lab::new("node1,honest,evil");
        let agent = lab.agent("node1");
        let hello = hello("honest", Resources::default());
        let tls = lab.tls("honest");
        let honest = ControlConnection::connect(agent.control, "node1", &tls, hello, [1; 16]).await.unwrap();
        honest.sender.send(open(agent.control)).await.unwrap();
        let memory = resident(&agent);
        let mut scene = Scene { evil: lab.tls("evil"), agent, honest, memory, lab };
        scene.is_well("at first").await;
        scene
    }

    /// The honest session is answered, and so is the command line.
    async fn is_well(&mut self, after: &str) {
        let begun = Instant::now();
        self.honest.sender.send(Message::Grant(Vec::new())).await.unwrap();
        let answer = timeout(SOON, self.honest.receiver.recv()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{after}: no answer within {SOON:?}"));
        assert_eq!(answer.unwrap_or_else(|e| panic!("{after}: {e}")), Some(Message::Granted), "{after}");
        let status = self.agent.status();
        assert_eq!(status["name"], "node1", "{after}");
        assert!(begun.elapsed() < SOON, "{after}: {:?}", begun.elapsed());
        let grown = resident(&self.agent).saturating_sub(self.memory);
        assert!(grown < MEMORY_MAX, "{after}: the agent takes {} MiB more", grown >> 20);
    }

    /// A connection of the hostile peer, behind its Hello.
    async fn connect(&self) -> TlsStream<TcpStream> {
        // It takes as little as it can, so that who answers it has to wait soon.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let tcp = socket.connect(self.agent.control).await.unwrap();
        let name = ServerName::try_from("node1").unwrap();
        let mut stream = self.evil.connector().connect(name, tcp).await.unwrap();
        let _ = stream.write_all(&bytes(Message::Hello(hello("evil", Resources::default())))).await;
        stream
    }

    /// The same with a session.
    async fn opened(&self) -> TlsStream<TcpStream> {
        let mut stream = self.connect().await;
        let _ = stream.write_all(&bytes(open(self.agent.control))).await;
        stream
    }

    /// Ends the agent, and looks at what it has logged.
    async fn end(self) {
        drop(self.honest);
        let log = tokio::task::spawn_blocking(move || self.agent.stop(Signal::SIGTERM)).await.unwrap();
        for word in ["panicked", "broke"] {
            assert!(!log.contains(word), "{log}");
        }
    }
}

fn open(addr: SocketAddr) -> Message {
    let contact = Contact { addr, journal: [3; 16] };
    Message::Open { mac_key: [1; 16], digest_key: [2; 16], target: 0, own_set: 0, contact }
}

fn bytes(message: Message) -> Vec<u8> {
    Envelope { session: EVIL, message }.encode().unwrap()
}

pub(crate) fn resident(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn spec(vm: u16, blocks: Vec<BlockSpec>) -> VmSpec {
    VmSpec {
        vm,
        uuid: [vm as u8; 16],
        name: format!("vm{vm}"),
        guest_file: "name = 'x'\nqmp = '/x'\ncommand = ['/bin/false']\n".to_owned(),
        machine: "none".to_owned(),
        blocks,
        hardware: Hardware::default(),
        paused: false,
    }
}

fn block(bytes: u64) -> BlockSpec {
    BlockSpec { name: "pc.ram".to_owned(), bytes }
}

/// One of each message, and some of what no honest peer would say.
pub(crate) fn messages(addr: SocketAddr) -> Vec<Message> {
    let everything = FrameSpan { set: 0, first: 0, last: u64::MAX };
    let grant = |set| SetGrant { set, key: [7; 32], group: Some(SocketAddr::from(([239, 1, 2, 3], 4000))) };
    let gap = FrameGap { frame: u64::MAX, pieces: vec![(u16::MAX, 0); 100] };
    let report = Report { written: vec![(0, u64::MAX); 100], gaps: vec![gap; 10], ..Report::default() };
    vec![
        open(addr),
        Message::Grant((0..50).map(grant).collect()),
        Message::Join { set: 3 },
        Message::Join { set: u16::MAX },
        Message::Leave { set: 3 },
        Message::Prepare(spec(1, vec![block(4096)])),
        Message::Prepare(spec(1, vec![block(!4095)])),
        Message::Prepare(spec(2, vec![block(1 << 43); 1000])),
        Message::Prepare(spec(3, vec![block(1 << 36); 10])),
        Message::Sent(vec![everything; 1000]),
        Message::CloseScatter { vm: 9 },
        Message::Digest { vm: 1, digest: VmDigest::new(&[1]) },
        Message::Commit { vm: 1 },
        Message::Commit { vm: 77 },
        Message::Abort { vm: 1, reason: "\u{1b}[2J\n".repeat(1000) },
        Message::Granted,
        Message::Joined { set: 0, error: Some("x".repeat(100_000)) },
        Message::Heard { set: 1 },
        Message::Prepared { vm: 1 },
        Message::Report(report),
        Message::Written { vm: 1, next: u64::MAX },
        Message::ScatterClosed { vm: 1 },
        Message::ReturnPath { vm: 1, bytes: vec![0xff; 100_000] },
        Message::Loaded { vm: 1, digest: VmDigest::new(&[1]) },
        Message::Running { vm: 1, resumed_unix_us: u64::MAX, journal_us: u64::MAX },
        Message::Failed { vm: 1, reason: String::new() },
        Message::Ping(1),
        Message::Pong(2),
        Message::Inquire { vm: [1; 16], word: Word::Source(SourceWord::Committed) },
        Message::Inquire { vm: [1; 16], word: Word::Target(TargetWord::Aborted) },
        Message::Answer { vm: [1; 16], word: Word::Target(TargetWord::Voted) },
        Message::Close,
    ]
}

/// A small generator of its own: what failed comes again.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_noise_end_only_their_own_session() {
    let mut scene = Scene::new().await;
    let messages = messages(scene.agent.control);
    for seed in 0..250 {
        let mut numbers = Numbers(seed);
        let mut stream = if seed % 5 == 0 { scene.connect().await } else { scene.opened().await };
        for _ in 0..1 + numbers.below(6) {
            let mut bytes = bytes(messages[numbers.below(messages.len())].clone());
            match numbers.below(4) {
                0 => {}
                1 => (0..1 + numbers.below(4)).for_each(|_| {
                    let at = numbers.below(bytes.len());
                    bytes[at] ^= 1 << numbers.below(8);
                }),
                2 => bytes.truncate(numbers.below(bytes.len())),
                _ => {
                    let at = numbers.below(bytes.len());
                    bytes[at..].iter_mut().for_each(|byte| *byte = 0xff);
                }
            }
            if stream.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = stream.flush().await;
        if seed % 25 == 0 {
            scene.is_well(&format!("after seed {seed}")).await;
        }
    }
    scene.is_well("after noise").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_not_kept_and_holds_up_nobody() {
    let mut scene = Scene::new().await;
    let spans = FrameSpan { set: u16::MAX, first: 0, last: 0 };
    // As long as a message may be, and answered, so that who does not read stops the session's thread.
    let long = bytes(Message::Sent(vec![spans; CONTROL_MESSAGE_BYTES_MAX / 8]));
    let questions = bytes(Message::Grant(Vec::new())).repeat(20_000);
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(scene.opened().await);
    }
    let writers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let (questions, long) = (questions.clone(), long.clone());
            tokio::spawn(async move {
                let _ = stream.write_all(&questions).await;
                while stream.write_all(&long).await.is_ok() {}
            })
        })
        .collect();
    for second in 0..4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.is_well(&format!("after {second} s of flood")).await;
    }
    writers.iter().for_each(|writer| writer.abort());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stand_still_keep_no_other_away() {
    let mut scene = Scene::new().await;
    let mut held = Vec::new();
    for number in 0..PEER_CONNECTIONS_MAX + 20 {
        let mut stream = scene.opened().await;
        // A message that does not end, one half of the connection closed, or nothing at all.
        let _ = match number % 3 {
            0 => stream.write_all(&bytes(Message::Grant(Vec::new()))[..5]).await,
            1 => stream.get_mut().0.shutdown().await,
            _ => Ok(()),
        };
        held.push(stream);
    }
    let strangers: Vec<TcpStream> = strangers(200, scene.agent.control).await;
    scene.is_well("with connections that stand still").await;
    let (tls, ours) = (scene.lab.tls("honest"), hello("honest", Resources::default()));
    let again = ControlConnection::connect(scene.agent.control, "node1", &tls, ours, [2; 16]);
    let begun = Instant::now();
    let connection = again.await.expect("another peer is let in");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let incoming = scene.agent.status()["incoming"].as_array().unwrap().clone();
    let of = |name: &str| incoming.iter().filter(|session| session["source"] == name).count();
    assert!(of("evil") <= PEER_CONNECTIONS_MAX && of("honest") == 2, "{incoming:?}");
    drop((held, strangers, connection));
    scene.end().await;
}

async fn strangers(count: usize, addr: SocketAddr) -> Vec<TcpStream> {
    let mut strangers = Vec::new();
    for _ in 0..count {
        strangers.push(TcpStream::connect(addr).await.unwrap());
    }
    strangers
}

/// Sessions of the same name do not know each other, and nobody says of another's guest what has become of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_anothers_name_is_another_session() {
    let mut scene = Scene::new().await;
    let hello = hello("evil", Resources::default());
    let evil = ControlConnection::connect(scene.agent.control, "node1", &scene.evil, hello, [1; 16]);
    let mut evil = evil.await.unwrap();
    evil.sender.send(open(scene.agent.control)).await.unwrap();
    evil.sender.send(Message::Commit { vm: 0 }).await.unwrap();
    let ended = timeout(SOON, evil.receiver.recv()).await.unwrap();
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    scene.is_well("after a session of the same name").await;
    // More VMs than a session may have.
    let mut stream = scene.opened().await;
    for vm in 0..=SESSION_VMS_MAX as u16 {
        if stream.write_all(&bytes(Message::Prepare(spec(vm, vec![block(1 << 40)])))).await.is_err() {
            break;
        }
    }
    scene.is_well("after more VMs than a session may have").await;
    assert_eq!(scene.agent.status()["unfinished"], serde_json::json!([]));
    scene.end().await;
}
