//! Hands data connections to their sessions: the first piece's header names the session, the session opens it.

use std::collections::HashMap;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use vmscatter_core::limits::PIECE_BYTES_MAX;
use vmscatter_core::wire::piece::PieceHeader;

/// A data connection says who it is within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that have not said yet who they are.
const STRANGERS_MAX: usize = 32;
/// The first piece has no payload to speak of.
const HELLO_BYTES_MAX: usize = 1024;

/// A connection whose first piece names a session; whether it may is for that session to find out.
#[derive(Debug)]
pub struct DataConnection {
    /// The socket, behind the first piece.
    pub socket: TcpStream,
    /// The first piece, sealed.
    pub hello: Vec<u8>,
}

/// Which session waits for which connection.
#[derive(Clone, Debug, Default)]
pub struct DataRouter {
    sessions: Arc<Mutex<HashMap<u64, Sender<DataConnection>>>>,
    strangers: Arc<AtomicUsize>,
}

/// A session's place at the router, until it is dropped.
#[derive(Debug)]
pub struct Registration {
    router: DataRouter,
    session: u64,
    /// Connections for the session.
    pub connections: Receiver<DataConnection>,
}

impl DataRouter {
    /// Lets connections for `session` (its tag) through.
    pub fn register(&self, session: u64) -> Registration {
        let (sender, connections) = bounded(1);
        self.sessions.lock().unwrap_or_else(|e| e.into_inner()).insert(session, sender);
        Registration { router: self.clone(), session, connections }
    }

    /// Takes connections in until the listener breaks; to be run on a thread of its own.
    pub fn run(&self, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((socket, addr)) => {
                    if self.strangers.fetch_add(1, Ordering::Relaxed) >= STRANGERS_MAX {
                        self.strangers.fetch_sub(1, Ordering::Relaxed);
                        tracing::warn!(%addr, "data connection turned away: {STRANGERS_MAX} wait already");
                        continue;
                    }
                    let router = self.clone();
                    let route = move || {
                        if let Err(error) = router.route(socket) {
                            tracing::warn!(%addr, "data connection turned away: {error}");
                        }
                        router.strangers.fetch_sub(1, Ordering::Relaxed);
                    };
                    if std::thread::Builder::new().name("data-hello".into()).spawn(route).is_err() {
                        self.strangers.fetch_sub(1, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    tracing::warn!("data connections: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn route(&self, mut socket: TcpStream) -> Result<(), String> {
        socket.set_read_timeout(Some(HELLO_DEADLINE)).map_err(|e| e.to_string())?;
        let mut prefix = [0; 4];
        socket.read_exact(&mut prefix).map_err(|e| e.to_string())?;
        let len = u32::from_be_bytes(prefix) as usize;
        if len > HELLO_BYTES_MAX.min(PIECE_BYTES_MAX) {
            return Err(format!("first piece of {len} bytes"));
        }
        let mut hello = vec![0; len];
        socket.read_exact(&mut hello).map_err(|e| e.to_string())?;
        socket.set_read_timeout(None).map_err(|e| e.to_string())?;
        let header = PieceHeader::decode(&hello).map_err(|e| e.to_string())?;
        let sessions = self.sessions.lock().unwrap_or_else(|e| e.into_inner());
        let waiting = sessions.get(&header.session).ok_or("it names no session here")?;
        waiting.try_send(DataConnection { socket, hello }).map_err(|_| "its session has one".to_owned())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.router.sessions.lock().unwrap_or_else(|e| e.into_inner()).remove(&self.session);
    }
}
