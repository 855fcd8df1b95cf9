//! Hands data connections to their sessions: the first piece's header names the session, the session opens it.
//!
//! What the header says is no proof. A connection is offered to every session of that tag, and belongs to the one
//! that can open its first piece: a stranger, or a peer that gives its session the name of another's, gets nothing
//! and keeps nobody else's connection away.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use vmscatter_core::limits::PIECE_BYTES_MAX;
use vmscatter_core::wire::piece::PieceHeader;

/// A data connection says who it is within this time, and its session looks at it.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that have not said yet who they are; the oldest makes room for the next.
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
    /// By tag, those that have registered under it.
    sessions: Arc<Mutex<HashMap<u64, Vec<Waiting>>>>,
    strangers: Arc<Mutex<VecDeque<(u64, TcpStream)>>>,
    next: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
struct Waiting {
    number: u64,
    connections: Sender<DataConnection>,
}

/// A session's place at the router, until it is dropped.
#[derive(Debug)]
pub struct Registration {
    router: DataRouter,
    session: u64,
    number: u64,
    /// Connections for the session.
    pub connections: Receiver<DataConnection>,
}

impl DataRouter {
    /// Lets connections for `session` (its tag) through.
    pub fn register(&self, session: u64) -> Registration {
        let (sender, connections) = bounded(1);
        let number = self.number();
        self.sessions().entry(session).or_default().push(Waiting { number, connections: sender });
        Registration { router: self.clone(), session, number, connections }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Vec<Waiting>>> {
        self.sessions.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn strangers(&self) -> MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.strangers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes connections in until the listener breaks; to be run on a thread of its own.
    pub fn run(&self, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((socket, addr)) => {
                    let (router, number) = (self.clone(), self.number());
                    if let Err(error) = self.watch(number, &socket) {
                        tracing::warn!(%addr, "data connection turned away: {error}");
                        continue;
                    }
                    let route = move || {
                        if let Err(error) = router.route(socket) {
                            tracing::warn!(%addr, "data connection turned away: {error}");
                        }
                        router.forget(number);
                    };
                    if std::thread::Builder::new().name("data-hello".into()).spawn(route).is_err() {
                        self.forget(number);
                    }
                }
                Err(error) => {
                    tracing::warn!("data connections: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Counts the connection among the strangers, and closes the one that has been among them for longest if there are too
    /// many.
    fn watch(&self, number: u64, socket: &TcpStream) -> io::Result<()> {
        let socket = socket.try_clone()?;
        let mut strangers = self.strangers();
        if strangers.len() >= STRANGERS_MAX
            && let Some((_, oldest)) = strangers.pop_front()
        {
            // Wakes its thread; that it is closed already is no reason to keep it.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        strangers.push_back((number, socket));
        Ok(())
    }

    fn forget(&self, number: u64) {
        self.strangers().retain(|(other, _)| *other != number);
    }

    fn route(&self, mut socket: TcpStream) -> Result<(), String> {
        let deadline = Instant::now() + HELLO_DEADLINE;
        let mut prefix = [0; 4];
        read_until(&mut socket, &mut prefix, deadline).map_err(|e| e.to_string())?;
        let len = u32::from_be_bytes(prefix) as usize;
        if len > HELLO_BYTES_MAX.min(PIECE_BYTES_MAX) {
            return Err(format!("first piece of {len} bytes"));
        }
        let mut hello = vec![0; len];
        read_until(&mut socket, &mut hello, deadline).map_err(|e| e.to_string())?;
        socket.set_read_timeout(None).map_err(|e| e.to_string())?;
        let header = PieceHeader::decode(&hello).map_err(|e| e.to_string())?;
        let waiting = self.sessions().get(&header.session).cloned().unwrap_or_default();
        let mut offered = Err("it names no session here".to_owned());
        for session in waiting {
            let socket = socket.try_clone().map_err(|e| e.to_string())?;
            let connection = DataConnection { socket, hello: hello.clone() };
            match session.connections.send_deadline(connection, deadline) {
                Ok(()) => offered = Ok(()),
                Err(_) if offered.is_ok() => {}
                Err(_) => offered = Err("its session looks at none".to_owned()),
            }
        }
        offered
    }
}

/// Fills `buffer` before `deadline`, however small the bytes are cut.
fn read_until(socket: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut have = 0;
    while have < buffer.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "says too slowly who it is"));
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer[have..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.router.sessions();
        if let Some(waiting) = sessions.get_mut(&self.session) {
            waiting.retain(|other| other.number != self.number);
            if waiting.is_empty() {
                sessions.remove(&self.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::SocketAddr;

    use vmscatter_core::wire::piece::PieceKind;
    use vmscatter_core::wire::seal::TAG_BYTES;

    use super::*;

    fn listening() -> (DataRouter, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (router, addr) = (DataRouter::default(), listener.local_addr().unwrap());
        let work = router.clone();
        std::thread::spawn(move || work.run(&listener));
        (router, addr)
    }

    /// A connection that names `session`; what else its first piece says is the session's business.
    fn naming(addr: SocketAddr, session: u64) -> TcpStream {
        let header = PieceHeader::whole(PieceKind::DataHello, 1, session, 0, 8);
        let piece = [&header.encode()[..], &[0; 8 + TAG_BYTES]].concat();
        let mut socket = TcpStream::connect(addr).unwrap();
        socket.write_all(&(piece.len() as u32).to_be_bytes()).unwrap();
        socket.write_all(&piece).unwrap();
        socket
    }

    const SOON: Duration = Duration::from_secs(3);

    #[test]
    fn strangers_that_say_nothing_keep_nobody_away() {
        let (router, addr) = listening();
        let place = router.register(7);
        let silent: Vec<TcpStream> =
            (0..2 * STRANGERS_MAX).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let _ours = naming(addr, 7);
        place.connections.recv_timeout(SOON).expect("the connection is let through");
        assert!(router.strangers().len() <= STRANGERS_MAX);
        drop(silent);
    }

    #[test]
    fn who_says_it_byte_by_byte_has_no_longer_than_others() {
        let (router, addr) = listening();
        let mut slow = TcpStream::connect(addr).unwrap();
        slow.write_all(&[0, 0, 4, 0]).unwrap();
        let begun = Instant::now();
        while slow.write_all(&[0]).is_ok() && begun.elapsed() < 2 * HELLO_DEADLINE {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(begun.elapsed() < HELLO_DEADLINE + SOON, "{:?}", begun.elapsed());
        assert!(router.strangers().is_empty());
    }

    #[test]
    fn sessions_of_the_same_name_are_all_offered_the_connection() {
        let (router, addr) = listening();
        let (first, second) = (router.register(7), router.register(7));
        let _ours = naming(addr, 7);
        first.connections.recv_timeout(SOON).unwrap();
        second.connections.recv_timeout(SOON).unwrap();
        // The end of one leaves the other its place.
        drop(second);
        let _ours = naming(addr, 7);
        first.connections.recv_timeout(SOON).unwrap();
        drop(first);
        assert!(router.sessions().is_empty());
    }
}
