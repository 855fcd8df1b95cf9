//! A target with a valid certificate that lies: it takes its guest in as it should, by way of an honest agent behind it, and on the
//! way back messages are lost, come twice, are damaged, or are quite others. The guest of another target in the same session must not feel it.

use std::fs::DirEntry;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpListener;
use vmscatter::agent::control::{ControlConnection, hello};
use vmscatter::agent::tls::TlsContext;
use vmscatter_core::wire::control::{Envelope, Message, Resources};

use crate::harness::{DEADLINE, Lab, vmscatter, wait_until};
use crate::hostile::{MEMORY_MAX, Numbers, messages, resident};
use crate::real::{Guest, Monitor, PLAIN, agent, monitor_path};

/// One message in so many of what the target says is not what it should be.
const LIES_ONE_IN: usize = 6;
/// How many, where HOSTILE_SESSIONS does not say.
const SESSIONS: u64 = 8;

/// What stands between the source and the agent that it does not know of.
#[derive(Clone)]
struct Impostor {
    /// To be `evil` for the source, and the source for the agent.
    as_target: TlsContext,
    as_source: TlsContext,
    behind: SocketAddr,
    resources: Resources,
    numbers: Arc<Mutex<Numbers>>,
}

impl Impostor {
    /// Listens; where.
    async fn start(lab: &Lab, behind: SocketAddr, seed: u64) -> SocketAddr {
        let (as_target, as_source) = (lab.tls("evil"), lab.tls("node1"));
        let resources = connect(behind, &as_source, [9; 16]).await.peer.resources;
        let numbers = Arc::new(Mutex::new(Numbers(seed)));
        let impostor = Impostor { as_target, as_source, behind, resources, numbers };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((tcp, from)) = listener.accept().await {
                let (impostor, hello) = (impostor.clone(), hello("evil", impostor.resources.clone()));
                tokio::spawn(async move {
                    let accepted = ControlConnection::accept(tcp, from, &impostor.as_target, hello).await;
                    impostor.stand_between(accepted.unwrap()).await;
                });
            }
        });
        addr
    }

    async fn stand_between(self, source: ControlConnection) {
        let behind = connect(self.behind, &self.as_source, source.peer.session).await;
        let (mut from_source, mut from_target) = (source.receiver, behind.receiver);
        let (to_source, to_target) = (source.sender, behind.sender);
        let there = async move {
            while let Ok(Some(message)) = from_source.recv().await {
                if to_target.send(message).await.is_err() {
                    break;
                }
            }
        };
        let back = async move {
            while let Ok(Some(message)) = from_target.recv().await {
                for said in self.instead_of(message) {
                    if to_source.send(said).await.is_err() {
                        return;
                    }
                }
            }
        };
        tokio::join!(there, back);
    }

    /// What is said in place of a message.
    fn instead_of(&self, message: Message) -> Vec<Message> {
        let mut numbers = self.numbers.lock().unwrap();
        if numbers.below(LIES_ONE_IN) != 0 {
            return vec![message];
        }
        let lies = messages(self.behind);
        let lie = lies[numbers.below(lies.len())].clone();
        match numbers.below(8) {
            0 => vec![],
            1 => vec![message.clone(), message],
            2 => vec![lie],
            3 => vec![lie, message],
            4 => vec![message, lie],
            _ => vec![damaged(&message, &mut numbers).unwrap_or(message)],
        }
    }
}

/// The message with a bit or two of it turned, if that is one.
fn damaged(message: &Message, numbers: &mut Numbers) -> Option<Message> {
    let mut bytes = Envelope { session: [0; 16], message: message.clone() }.encode().unwrap();
    for _ in 0..1 + numbers.below(2) {
        // Behind its length, the session, and what kind it is of.
        let at = 21 + numbers.below(bytes.len() - 21);
        *bytes.get_mut(at)? ^= 1 << numbers.below(8);
    }
    Envelope::decode(&bytes[4..]).ok().map(|envelope| envelope.message)
}

/// The QEMU behind a monitor, which is ended with the value.
struct Ended(PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(mut stream) = UnixStream::connect(&self.0) {
            let _ = stream.set_read_timeout(Some(DEADLINE));
            let _ = stream.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}\n");
            // It drops what it has not read if it is left alone.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}

/// Processes with something of the lab's directory on their command line.
fn processes_of(lab: &Lab) -> usize {
    let is_of = |entry: &DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&lab.path(""))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(is_of).count()
}

async fn connect(addr: SocketAddr, tls: &TlsContext, session: [u8; 16]) -> ControlConnection {
    let hello = hello("node1", Resources::default());
    ControlConnection::connect(addr, "t1", tls, hello, session).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_lies_harms_no_guest_of_another() {
    let lab = Lab::new("node1,evil,t1,t2");
    let [source, t1, t2] = ["node1", "t1", "t2"].map(|name| agent(&lab, name, PLAIN));
    let memory = resident(&source);
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let first = number("HOSTILE_FIRST", 0);
    for seed in first..first + number("HOSTILE_SESSIONS", SESSIONS) {
        let impostor = Impostor::start(&lab, t1.control, seed).await;
        let names = [format!("a{seed}"), format!("b{seed}")];
        let twins = [("t1", &names[0]), ("t2", &names[1])].map(|(host, name)| monitor_path(&lab, host, name));
        let _ended = twins.clone().map(Ended);
        let [mut theirs, mut ours] = names.each_ref().map(|name| Guest::start(&lab, "node1", name, PLAIN));
        theirs.monitor.execute("cont", json!({}));
        ours.monitor.execute("cont", json!({}));
        let to = [format!("evil={impostor}"), format!("t2={}", t2.control)];
        let args = ["migrate", "--agent", source.socket(), "--guest", &theirs.file, "--guest", &ours.file];
        let places = [format!("{}=evil", names[0]), format!("{}=t2", names[1])];
        let more = ["--to", &to[0], "--to", &to[1], "--vm", &places[0], "--vm", &places[1]];
        let output = tokio::task::block_in_place(|| vmscatter(&[&args[..], &more].concat()));
        let told = String::from_utf8_lossy(&output.stderr);
        println!("seed {seed}: {told}");
        if told.lines().last().is_some_and(|line| line.starts_with("vmscatter: evil: ")) {
            // Found out before anything was begun: nothing is.
            assert_eq!(output.status.code(), Some(1), "seed {seed}: {told}");
            assert_eq!(ours.monitor.execute("query-status", json!({}))["status"], "running", "seed {seed}");
            continue;
        }
        let line = told.lines().find(|line| line.contains(&format!("{}: running at t2", names[1])));
        assert!(line.is_some_and(|line| line.ends_with(", verified")), "seed {seed}: {told}");
        wait_until("the QEMU at the source has ended", || matches!(ours.qemu.try_wait(), Ok(Some(_))));
        let mut twin = Monitor::connect(&twins[1]);
        assert_eq!(twin.execute("query-status", json!({}))["status"], "running", "seed {seed}");
        assert!(told.contains(&format!("{}: ", names[0])), "seed {seed}: {told}");
        assert_eq!(source.status()["name"], "node1", "seed {seed}");
        let grown = resident(&source).saturating_sub(memory);
        assert!(grown < MEMORY_MAX, "seed {seed}: the source's agent takes {} MiB more", grown >> 20);
    }
    for agent in [source, t1, t2] {
        let log = tokio::task::block_in_place(|| agent.stop(Signal::SIGTERM));
        for word in ["panicked", "broke"] {
            assert!(!log.contains(word), "{log}");
        }
    }
    wait_until("all that was started has ended", || processes_of(&lab) == 0);
}
