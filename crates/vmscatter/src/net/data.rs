//! Data connections: sealed pieces over TCP, each behind its length, the urgent before the others.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crossbeam_channel::Sender;
use vmscatter_core::limits::PIECE_BYTES_MAX;

use super::udp::PieceBatch;

/// What leaves first when several pieces wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Of a VM that is stopped.
    HandOff,
    /// Of a VM's stream.
    Stream,
    /// Frames and repairs of the scatter.
    Scatter,
}

const PRIORITIES: usize = 3;
/// Bytes that wait in each queue; beyond that whoever sends waits.
const QUEUE_BYTES_MAX: usize = 512 * 1024;
/// Scatter pieces are bounded by their sender's own window, and its thread must not wait.
const SCATTER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What the kernel keeps unsent: little, so that what is urgent does not wait behind it.
const UNSENT_BYTES: libc_int = 128 * 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Pieces of one batch, in bytes.
const BATCH_BYTES: usize = 256 * 1024;

#[allow(non_camel_case_types)]
type libc_int = i32;

/// Why a piece can't be sent: the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("data connection closed")]
pub struct Closed;

#[derive(Debug, Default)]
struct Queues {
    pieces: [VecDeque<Vec<u8>>; PRIORITIES],
    bytes: [usize; PRIORITIES],
    closed: bool,
}

/// The sending end of a data connection, with its thread.
#[derive(Debug)]
pub struct DataSender {
    shared: Arc<(Mutex<Queues>, Condvar)>,
    socket: TcpStream,
}

impl DataSender {
    /// Connects, and sends `hello`, a sealed piece.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn connect(addr: SocketAddr, hello: &[u8]) -> std::io::Result<DataSender> {
        let mut socket = TcpStream::connect_timeout(&addr, CONNECT_DEADLINE)?;
        socket.set_nodelay(true)?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpUserTimeout, &20_000)?;
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES as u32)?;
        write_piece(&mut socket, hello)?;
        let shared = Arc::new((Mutex::new(Queues::default()), Condvar::new()));
        let (work, writer) = (shared.clone(), socket.try_clone()?);
        std::thread::Builder::new().name("data-send".into()).spawn(move || send_all(&work, writer))?;
        Ok(DataSender { shared, socket })
    }

    /// Queues a sealed piece; waits while its queue is full.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn send(&self, priority: Priority, piece: Vec<u8>) -> Result<(), Closed> {
        let at = priority as usize;
        let limit = if priority == Priority::Scatter { SCATTER_BYTES_MAX } else { QUEUE_BYTES_MAX };
        let (queues, changed) = &*self.shared;
        let mut queues = queues.lock().unwrap_or_else(|e| e.into_inner());
        while queues.bytes[at] > limit && !queues.closed {
            queues = changed.wait(queues).unwrap_or_else(|e| e.into_inner());
        }
        if queues.closed {
            return Err(Closed);
        }
        queues.bytes[at] += piece.len();
        queues.pieces[at].push_back(piece);
        drop(queues);
        changed.notify_all();
        Ok(())
    }

    /// Closes the connection; what waits is lost.
    pub fn close(&self) {
        close(&self.shared);
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for DataSender {
    fn drop(&mut self) {
        self.close();
    }
}

fn close(shared: &(Mutex<Queues>, Condvar)) {
    shared.0.lock().unwrap_or_else(|e| e.into_inner()).closed = true;
    shared.1.notify_all();
}

fn send_all(shared: &(Mutex<Queues>, Condvar), mut socket: TcpStream) {
    while let Some(piece) = next_piece(shared) {
        if write_piece(&mut socket, &piece).is_err() {
            break;
        }
    }
    close(shared);
}

fn next_piece(shared: &(Mutex<Queues>, Condvar)) -> Option<Vec<u8>> {
    let (queues, changed) = shared;
    let mut queues = queues.lock().unwrap_or_else(|e| e.into_inner());
    loop {
        if queues.closed {
            return None;
        }
        if let Some(at) = (0..PRIORITIES).find(|at| !queues.pieces[*at].is_empty()) {
            let piece = queues.pieces[at].pop_front()?;
            queues.bytes[at] -= piece.len();
            drop(queues);
            changed.notify_all();
            return Some(piece);
        }
        queues = changed.wait(queues).unwrap_or_else(|e| e.into_inner());
    }
}

fn write_piece(socket: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    let prefix = (piece.len() as u32).to_be_bytes();
    let mut slices = [std::io::IoSlice::new(&prefix), std::io::IoSlice::new(piece)];
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        let written = socket.write_vectored(slices)?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        std::io::IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

/// Reads pieces off a data connection until it ends, and hands them on in batches.
///
/// # Errors
/// The connection broke, or a length exceeds [`PIECE_BYTES_MAX`].
pub fn read_pieces(socket: TcpStream, batches: &Sender<PieceBatch>) -> std::io::Result<()> {
    let mut socket = std::io::BufReader::with_capacity(BATCH_BYTES, socket);
    let mut prefix = [0; 4];
    loop {
        socket.read_exact(&mut prefix)?;
        let len = u32::from_be_bytes(prefix) as usize;
        if len > PIECE_BYTES_MAX {
            return Err(std::io::Error::other(format!("a piece of {len} bytes")));
        }
        let mut piece = vec![0; len];
        socket.read_exact(&mut piece)?;
        if batches.send(PieceBatch::one(piece)).is_err() {
            return Ok(());
        }
    }
}
