//! Data connections: sealed pieces over TCP, each behind its length, the urgent before the others.

use std::collections::VecDeque;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
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
/// Pieces are bounded by their senders' own windows, and nobody may wait for one target while others could be served: a
/// connection whose queue grows beyond those windows is lost. Of streams, what its VMs may have in flight together...
const STREAM_BYTES_MAX: usize = 512 * 1024 * 1024;
/// ... and of the scatter its repair window.
const SCATTER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What the kernel keeps unsent: little, so that what is urgent does not wait behind it.
const UNSENT_BYTES: u32 = 128 * 1024;
/// Short pieces are written together up to this, so that repairs one by one don't cost a call and a packet each.
const WRITE_BYTES: usize = 64 * 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// What has been sent and is not acknowledged by the peer's kernel for this long breaks the connection.
const UNACKNOWLEDGED_MS: u32 = 20_000;
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Why a piece can't be sent: the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data connection closed")]
pub struct Closed;

/// What several connections may send together. Pieces of the scatter do not count: its sender keeps the rate itself.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_s: f64,
    /// When the next piece may leave.
    next: Mutex<Instant>,
}

impl RateLimit {
    /// A thread that slept too long may make up for that much.
    const SLACK: Duration = Duration::from_millis(2);

    /// `bytes_per_s` is 1 at least.
    pub fn new(bytes_per_s: u64) -> RateLimit {
        RateLimit { bytes_per_s: bytes_per_s.max(1) as f64, next: Mutex::new(Instant::now()) }
    }

    /// When a piece of `bytes` may leave that is asked for at `now`.
    fn reserve(&self, now: Instant, bytes: usize) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(|e| e.into_inner());
        let at = now.checked_sub(Self::SLACK).map_or(*next, |earliest| earliest.max(*next));
        *next = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
        at
    }

    fn wait(&self, bytes: usize) {
        let now = Instant::now();
        std::thread::sleep(self.reserve(now, bytes).saturating_duration_since(now));
    }
}

#[derive(Debug, Default)]
struct Queues {
    pieces: [VecDeque<Vec<u8>>; PRIORITIES],
    bytes: [usize; PRIORITIES],
    closed: bool,
    /// What broke it.
    fault: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    queues: Mutex<Queues>,
    /// There is something to send, or it is over.
    filled: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn close(&self) {
        let mut queues = self.lock();
        queues.closed = true;
        queues.pieces = Default::default();
        drop(queues);
        self.filled.notify_all();
    }

    /// Closes it, for a reason, unless it is closed already.
    fn fail(&self, reason: String) {
        let mut queues = self.lock();
        if !queues.closed {
            queues.fault = Some(reason);
        }
        drop(queues);
        self.close();
    }

    /// The most urgent piece, with those of the same urgency that are short enough to be written with it, and whether the rate limit is for
    /// them; waits for one. `None` when it is over.
    fn next(&self) -> Option<(Vec<Vec<u8>>, bool)> {
        let mut queues = self.lock();
        loop {
            if queues.closed {
                return None;
            }
            if let Some(at) = queues.pieces.iter().position(|queue| !queue.is_empty()) {
                let ends = queues.pieces[at].iter().scan(0, |end, piece| {
                    *end += piece.len();
                    Some(*end)
                });
                // One at least, however long.
                let count = ends.take_while(|end| *end <= WRITE_BYTES).count().max(1);
                let pieces: Vec<_> = queues.pieces[at].drain(..count).collect();
                queues.bytes[at] -= pieces.iter().map(Vec::len).sum::<usize>();
                return Some((pieces, at != Priority::Scatter as usize));
            }
            queues = self.filled.wait(queues).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// The sending end of a data connection, with its thread. Dropping it closes the connection.
#[derive(Debug)]
pub struct DataSender {
    shared: Arc<Shared>,
    socket: TcpStream,
}

impl DataSender {
    /// Connects, and sends `hello`, a sealed piece. `limit` is shared with other connections.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn connect(addr: SocketAddr, hello: &[u8], limit: Option<Arc<RateLimit>>) -> io::Result<DataSender> {
        let mut socket = TcpStream::connect_timeout(&addr, CONNECT_DEADLINE)?;
        socket.set_nodelay(true)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS)?;
        SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES)?;
        write_pieces(&mut socket, &[hello])?;
        let shared = Arc::new(Shared::default());
        let (work, mut writer) = (shared.clone(), socket.try_clone()?);
        let send_all = move || {
            while let Some((pieces, limited)) = work.next() {
                if let Some(limit) = limit.as_ref().filter(|_| limited) {
                    limit.wait(pieces.iter().map(Vec::len).sum());
                }
                if let Err(error) = write_pieces(&mut writer, &pieces) {
                    work.fail(error.to_string());
                }
            }
        };
        std::thread::Builder::new().name("data-send".into()).spawn(send_all)?;
        Ok(DataSender { shared, socket })
    }

    /// Queues a sealed piece; never waits.
    ///
    /// # Errors
    /// The connection is closed, maybe since this target took less than its senders' windows promise.
    pub fn send(&self, priority: Priority, piece: Vec<u8>) -> Result<(), Closed> {
        let at = priority as usize;
        let mut queues = self.shared.lock();
        if queues.closed {
            return Err(Closed);
        }
        let limit = if priority == Priority::Scatter { SCATTER_BYTES_MAX } else { STREAM_BYTES_MAX };
        if queues.bytes[at] > limit {
            drop(queues);
            self.shared.fail(format!("takes too little: {} MiB wait for it", limit >> 20));
            self.close();
            return Err(Closed);
        }
        queues.bytes[at] += piece.len();
        queues.pieces[at].push_back(piece);
        drop(queues);
        self.shared.filled.notify_one();
        Ok(())
    }

    /// What broke the connection, if something did.
    pub fn fault(&self) -> Option<String> {
        self.shared.lock().fault.clone()
    }

    /// Closes the connection; what waits is lost.
    pub fn close(&self) {
        self.shared.close();
        // Wakes the thread if it waits for the kernel; an error means that the peer was faster.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for DataSender {
    fn drop(&mut self) {
        self.close();
    }
}

fn write_pieces(socket: &mut TcpStream, pieces: &[impl AsRef<[u8]>]) -> io::Result<()> {
    let prefixes: Vec<[u8; 4]> =
        pieces.iter().map(|piece| (piece.as_ref().len() as u32).to_be_bytes()).collect();
    let both = prefixes.iter().zip(pieces);
    let mut slices: Vec<IoSlice<'_>> =
        both.flat_map(|(prefix, piece)| [IoSlice::new(prefix), IoSlice::new(piece.as_ref())]).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match socket.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads pieces off a data connection until it ends, and hands them on; waits (and with it the peer) while `batches`
/// is full.
///
/// # Errors
/// The connection broke, or a length exceeds [`PIECE_BYTES_MAX`]; that it ends between two pieces is none.
pub fn read_pieces(socket: TcpStream, batches: &Sender<PieceBatch>) -> io::Result<()> {
    let mut socket = BufReader::with_capacity(READ_BUFFER_BYTES, socket);
    while let Some(piece) = read_piece(&mut socket)? {
        if batches.send(PieceBatch::one(piece)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn read_piece(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut prefix = [0; 4];
    let mut have = 0;
    while have < prefix.len() {
        match from.read(&mut prefix[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let len = u32::from_be_bytes(prefix) as usize;
    if len == 0 || len > PIECE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a piece of {len} bytes")));
    }
    let mut piece = vec![0; len];
    from.read_exact(&mut piece)?;
    Ok(Some(piece))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use crossbeam_channel::{Receiver, bounded};

    use super::*;

    fn connected() -> (DataSender, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sender = DataSender::connect(listener.local_addr().unwrap(), b"hello", None).unwrap();
        (sender, listener.accept().unwrap().0)
    }

    fn reading(socket: TcpStream, capacity: usize) -> Receiver<PieceBatch> {
        let (to_batches, batches) = bounded(capacity);
        std::thread::spawn(move || read_pieces(socket, &to_batches));
        batches
    }

    fn next(batches: &Receiver<PieceBatch>) -> Vec<u8> {
        let mut batch = batches.recv_timeout(Duration::from_secs(5)).unwrap();
        let pieces: Vec<Vec<u8>> = batch.pieces_mut().map(|piece| piece.to_vec()).collect();
        assert_eq!(pieces.len(), 1);
        pieces.concat()
    }

    #[test]
    fn pieces_arrive_whole_behind_the_hello() {
        let (sender, socket) = connected();
        let batches = reading(socket, 4);
        assert_eq!(next(&batches), b"hello");
        for len in [1, 70_000, PIECE_BYTES_MAX, 3] {
            sender.send(Priority::Stream, vec![len as u8; len]).unwrap();
            assert_eq!(next(&batches), vec![len as u8; len]);
        }
        drop(sender);
        assert!(batches.recv_timeout(Duration::from_secs(5)).is_err(), "the end is an end");
    }

    /// Short pieces leave together, long ones alone, none with those of another urgency; their order stays.
    #[test]
    fn short_pieces_are_written_together() {
        let shared = Shared::default();
        let mut queues = shared.lock();
        for len in [30_000, 30_000, 5_000, 100_000, 1] {
            queues.pieces[Priority::Scatter as usize].push_back(vec![0; len]);
            queues.bytes[Priority::Scatter as usize] += len;
        }
        queues.pieces[Priority::Stream as usize].push_back(vec![0; 10]);
        queues.bytes[Priority::Stream as usize] += 10;
        drop(queues);
        let next = || {
            let (pieces, limited) = shared.next().unwrap();
            (pieces.iter().map(Vec::len).collect::<Vec<_>>(), limited)
        };
        assert_eq!(next(), (vec![10], true));
        assert_eq!(next(), (vec![30_000, 30_000, 5_000], false));
        assert_eq!(next(), (vec![100_000], false));
        assert_eq!(next(), (vec![1], false));
        assert_eq!(shared.lock().bytes, [0; PRIORITIES]);
    }

    /// With a deep queue of scatter before it, an urgent piece waits for what the kernel holds and no more.
    #[test]
    fn urgent_overtakes() {
        let (sender, socket) = connected();
        for _ in 0..400 {
            sender.send(Priority::Scatter, vec![3; 64 * 1024]).unwrap();
        }
        sender.send(Priority::HandOff, vec![1; 10]).unwrap();
        let batches = reading(socket, 1);
        let mut before = 0;
        while next(&batches) != vec![1; 10] {
            before += 1;
        }
        // Both kernels' buffers may hold what they like of what has been sent; the queue is passed.
        assert!(before < 300, "{before} of 400 pieces went before it");
    }

    #[test]
    fn what_nobody_takes_closes_the_connection_instead_of_waiting() {
        for (priority, limit) in
            [(Priority::Scatter, SCATTER_BYTES_MAX), (Priority::Stream, STREAM_BYTES_MAX)]
        {
            let (sender, _socket) = connected();
            let piece = vec![0; 4 * 1024 * 1024];
            let start = Instant::now();
            let sent = (0..1000).take_while(|_| sender.send(priority, piece.clone()).is_ok()).count();
            // Both kernels' buffers hold some besides.
            assert!((limit..limit + (64 << 20)).contains(&(sent * piece.len())), "{sent}");
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
            assert_eq!(sender.send(Priority::HandOff, vec![1]), Err(Closed));
            let fault = sender.fault().unwrap();
            assert_eq!(fault, format!("takes too little: {} MiB wait for it", limit >> 20));
        }
    }

    #[test]
    fn what_broke_a_connection_is_kept() {
        let (sender, socket) = connected();
        assert_eq!(sender.fault(), None);
        drop(socket);
        while sender.send(Priority::Stream, vec![0; 4096]).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(sender.fault().is_some());
        let (sender, _socket) = connected();
        sender.close();
        assert_eq!(sender.fault(), None, "it was closed, and did not break");
    }

    #[test]
    fn lengths_beyond_the_limit_break_the_connection() {
        let (to_batches, batches) = bounded(1);
        for prefix in [0u32, PIECE_BYTES_MAX as u32 + 1, u32::MAX] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stranger.write_all(&prefix.to_be_bytes()).unwrap();
            let error = read_pieces(listener.accept().unwrap().0, &to_batches).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(batches.try_recv().is_err());
    }

    #[test]
    fn connections_share_one_rate() {
        let limit = RateLimit::new(1_000_000);
        let now = Instant::now() + Duration::from_secs(1);
        let first = limit.reserve(now, 500_000);
        assert!(first <= now, "nothing was sent before it");
        assert_eq!(limit.reserve(now, 1_000) - first, Duration::from_millis(500));
        assert_eq!(limit.reserve(now, 1_000) - first, Duration::from_millis(501));
        let later = now + Duration::from_secs(60);
        assert!(later - limit.reserve(later, 1) <= RateLimit::SLACK, "an idle link saves nothing up");
    }
}
