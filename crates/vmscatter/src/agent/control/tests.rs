use std::path::Path;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::Instant;
use vmscatter_core::wire::control::{Envelope, Hello, Report};

use super::stream::{read_envelope, write_message};
use super::*;
use crate::agent::config::TlsConfig;
use crate::agent::keys;
use crate::agent::tls::TlsContext;

const SESSION: Uuid = [9; 16];

fn make_keys(dir: &Path, hosts: &[&str]) {
    let hosts: Vec<String> = hosts.iter().map(|&h| h.to_owned()).collect();
    keys::init(dir, &hosts, 30).unwrap();
}

fn tls(dir: &Path, name: &str, peers: Option<&[&str]>) -> TlsContext {
    let files = TlsConfig {
        ca: dir.join("ca.pem"),
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        peers: peers.map(|p| p.iter().map(|&p| p.to_owned()).collect()),
    };
    TlsContext::load(&files, name).unwrap()
}

/// A source `a` that connects to a target `b`, each with its own certificates.
struct Pair {
    source: TlsContext,
    target: TlsContext,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        make_keys(dir.path(), &["a", "b"]);
        Pair { source: tls(dir.path(), "a", None), target: tls(dir.path(), "b", None) }
    }

    /// What both sides got; the source says its Hello as `ours`, and looks for a host `name`.
    async fn meet(
        &self,
        name: &str,
        ours: Hello,
    ) -> (Result<ControlConnection, PeerError>, Result<ControlConnection, PeerError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let resources = Resources { free_memory_bytes: 7, mtu: 1500, data_port: 42 };
        let accept = async {
            let (tcp, addr) = listener.accept().await.unwrap();
            ControlConnection::accept(tcp, addr, &self.target, hello("b", resources)).await
        };
        tokio::join!(ControlConnection::connect(addr, name, &self.source, ours, SESSION), accept)
    }

    async fn connected(&self) -> (ControlConnection, ControlConnection) {
        let (source, target) = self.meet("b", hello("a", Resources::default())).await;
        (source.unwrap(), target.unwrap())
    }

    /// A target that takes `bytes` in place of messages.
    async fn after_bytes(&self, bytes: &[u8]) -> PeerError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accept = async {
            let (tcp, addr) = listener.accept().await.unwrap();
            ControlConnection::accept(tcp, addr, &self.target, hello("b", Resources::default()))
                .await
                .unwrap()
        };
        let connect = async {
            let tcp = TcpStream::connect(addr).await.unwrap();
            let name = ServerName::try_from("b").unwrap();
            let mut stream = self.source.connector().connect(name, tcp).await.unwrap();
            write_message(&mut stream, SESSION, Message::Hello(hello("a", Resources::default())))
                .await
                .unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.flush().await.unwrap();
            stream
        };
        let (mut target, _stream) = tokio::join!(accept, connect);
        loop {
            match target.receiver.recv().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("taken for an orderly end"),
                Err(error) => return error,
            }
        }
    }
}

#[tokio::test]
async fn both_learn_who_the_other_is_and_talk() {
    let (mut source, mut target) = Pair::new().connected().await;
    assert_eq!((source.peer.name.as_str(), target.peer.name.as_str()), ("b", "a"));
    assert_eq!((source.peer.session, target.peer.session), (SESSION, SESSION));
    assert_eq!(source.peer.resources.data_port, 42);
    source.sender.send(Message::Commit { vm: 3 }).await.unwrap();
    assert_eq!(target.receiver.recv().await.unwrap(), Some(Message::Commit { vm: 3 }));
    target.sender.send(Message::Prepared { vm: 3 }).await.unwrap();
    assert_eq!(source.receiver.recv().await.unwrap(), Some(Message::Prepared { vm: 3 }));
}

#[tokio::test]
async fn what_is_queued_arrives_before_an_orderly_end() {
    let (source, mut target) = Pair::new().connected().await;
    for vm in 0..100 {
        source.sender.send(Message::Commit { vm }).await.unwrap();
    }
    drop(source);
    for vm in 0..100 {
        assert_eq!(target.receiver.recv().await.unwrap(), Some(Message::Commit { vm }));
    }
    assert_eq!(target.receiver.recv().await.unwrap(), None);
}

#[tokio::test]
async fn an_abort_is_a_fault_at_the_peer() {
    let (source, mut target) = Pair::new().connected().await;
    source.sender.abort();
    let error = target.receiver.recv().await.unwrap_err();
    assert!(error.to_string().starts_with("a (127.0.0.1:"), "{error}");
    assert!(matches!(source.sender.failed().await.fault, Fault::Closed));
}

#[tokio::test]
async fn a_slow_session_holds_the_peer_back_and_loses_nothing() {
    let (source, mut target) = Pair::new().connected().await;
    // More than the reader's byte budget, in messages of the longest kind.
    let bytes = vec![5; CONTROL_MESSAGE_BYTES_MAX - 64];
    let send = tokio::spawn(async move {
        for vm in 0..8 {
            source.sender.send(Message::ReturnPath { vm, bytes: bytes.clone() }).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(target.receiver.queue.len() <= 2, "{}", target.receiver.queue.len());
    for expected in 0..8 {
        let Some(Message::ReturnPath { vm, .. }) = target.receiver.recv().await.unwrap() else { panic!() };
        assert_eq!(vm, expected);
    }
    send.await.unwrap();
    assert_eq!(target.receiver.recv().await.unwrap(), None);
}

#[tokio::test]
async fn an_empty_report_needs_room_too() {
    let (mut source, target) = Pair::new().connected().await;
    target.sender.send(Message::Report(Report::default())).await.unwrap();
    target.sender.send(Message::Ping(1)).await.unwrap();
    target.sender.send(Message::Report(Report::default())).await.unwrap();
    for _ in 0..2 {
        assert_eq!(source.receiver.recv().await.unwrap(), Some(Message::Report(Report::default())));
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_by_both_sides() {
    let foreign = tempfile::tempdir().unwrap();
    make_keys(foreign.path(), &["a", "b"]);
    let ours = hello("a", Resources::default());

    let mut pair = Pair::new();
    pair.source = tls(foreign.path(), "a", None);
    let (source, target) = pair.meet("b", ours.clone()).await;
    assert!(source.is_err() && target.is_err());

    // The source trusts the target's CA and shows its own, foreign certificate: the target alone must notice.
    let good = tempfile::tempdir().unwrap();
    make_keys(good.path(), &["b"]);
    let files = TlsConfig {
        ca: foreign.path().join("ca.pem"),
        cert: foreign.path().join("a.pem"),
        key: foreign.path().join("a.key"),
        peers: None,
    };
    let mixed = foreign.path().join("both.pem");
    let both =
        [files.ca.clone(), good.path().join("ca.pem")].map(|p| std::fs::read_to_string(p).unwrap()).concat();
    std::fs::write(&mixed, both).unwrap();
    let source = TlsContext::load(&TlsConfig { ca: mixed, ..files }, "a").unwrap();
    let pair = Pair { source, target: tls(good.path(), "b", None) };
    let (source, target) = pair.meet("b", ours).await;
    let error = target.unwrap_err();
    assert!(matches!(error.fault, Fault::Tls(_)), "{error}");
    assert!(source.is_err());
}

#[tokio::test]
async fn a_server_is_who_the_operator_named() {
    let (source, target) = Pair::new().meet("c", hello("a", Resources::default())).await;
    let error = source.unwrap_err();
    assert!(matches!(error.fault, Fault::Tls(_)) && error.to_string().starts_with("c ("), "{error}");
    assert!(target.is_err());
}

#[tokio::test]
async fn a_peer_is_who_its_certificate_says() {
    let (_, target) = Pair::new().meet("b", hello("b", Resources::default())).await;
    let error = target.unwrap_err();
    assert!(matches!(&error.fault, Fault::Name(name) if name == "b"), "{error}");
}

#[tokio::test]
async fn a_list_of_peers_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    make_keys(dir.path(), &["a", "b"]);
    for (peers, good) in [(&["c"][..], false), (&["c", "a"][..], true)] {
        let pair = Pair { source: tls(dir.path(), "a", None), target: tls(dir.path(), "b", Some(peers)) };
        let (source, target) = pair.meet("b", hello("a", Resources::default())).await;
        match (source, target) {
            (Ok(_), Ok(_)) => assert!(good),
            (Err(source), Err(target)) => {
                assert!(!good && matches!(target.fault, Fault::NotPermitted), "{target}");
                assert!(matches!(source.fault, Fault::Refused), "{source}");
            }
            sides => panic!("{sides:?}"),
        }
    }
}

#[tokio::test]
async fn without_a_common_version_both_say_which_there_are() {
    let mut newer = hello("a", Resources::default());
    (newer.version_min, newer.version_max) = (VERSION_MAX + 1, VERSION_MAX + 1);
    let (source, target) = Pair::new().meet("b", newer).await;
    let error = target.unwrap_err();
    assert!(matches!(error.fault, Fault::Version(..)), "{error}");
    // This build's own range has one in common with the target's Hello, so the source sees the connection end.
    match source {
        Err(_) => {}
        Ok(mut source) => assert!(!matches!(source.receiver.recv().await, Ok(Some(_)))),
    }
}

#[tokio::test]
async fn malformed_and_foreign_messages_end_the_connection_with_the_peers_name() {
    let pair = Pair::new();
    let other = Envelope { session: [1; 16], message: Message::Close }.encode().unwrap();
    let hello = Envelope { session: SESSION, message: Message::Hello(hello("a", Resources::default())) }
        .encode()
        .unwrap();
    type Expected = fn(&Fault) -> bool;
    let cases: [(&[u8], Expected); 4] = [
        (&[0xff; 4], |f| matches!(f, Fault::Malformed(ControlError::TooLong(_)))),
        (&[0, 0, 0, 2, 1, 1], |f| matches!(f, Fault::Malformed(ControlError::Malformed))),
        (&other, |f| matches!(f, Fault::Session)),
        (&hello, |f| matches!(f, Fault::Session)),
    ];
    for (bytes, expected) in cases {
        let error = pair.after_bytes(bytes).await;
        assert!(expected(&error.fault) && error.to_string().starts_with("a ("), "{error}");
    }
}

#[tokio::test]
async fn a_message_cut_short_is_a_fault() {
    let (mut one, mut other) = tokio::io::duplex(64);
    let bytes = Envelope { session: SESSION, message: Message::Close }.encode().unwrap();
    one.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    drop(one);
    assert!(matches!(read_envelope(&mut other).await, Err(Fault::Malformed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_and_a_quiet_one_is_not() {
    let (mut quiet, ours) = tokio::io::duplex(1024);
    let (queue, _messages) = mpsc::channel(1);
    let (pong, mut pongs) = watch::channel(None);
    let reader = tokio::spawn(async move { read_loop(ours, SESSION, &queue, pong).await });
    for number in 0..20 {
        tokio::time::sleep(PING_INTERVAL).await;
        write_message(&mut quiet, SESSION, Message::Ping(number)).await.unwrap();
        pongs.changed().await.unwrap();
        assert_eq!(*pongs.borrow_and_update(), Some(number));
    }
    let before = Instant::now();
    assert!(matches!(reader.await.unwrap(), Err(Fault::Silent)));
    assert_eq!(before.elapsed().as_secs(), SILENCE_MAX.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_writer_pings_answers_pings_and_gives_up_on_a_stalled_peer() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let (queue, mut messages) = mpsc::channel(4);
    let (pong, pongs) = watch::channel(None);
    let writer = tokio::spawn(async move { write_loop(ours, SESSION, &mut messages, pongs).await });
    let (ping, _) = read_envelope(&mut theirs).await.unwrap().unwrap();
    assert_eq!(ping.message, Message::Ping(1));
    pong.send_replace(Some(77));
    let (answer, _) = read_envelope(&mut theirs).await.unwrap().unwrap();
    assert_eq!(answer.message, Message::Pong(77));
    queue.send(Message::ReturnPath { vm: 0, bytes: vec![0; 4096] }).await.unwrap();
    assert!(matches!(writer.await.unwrap(), Err(Fault::Stalled)));
}
