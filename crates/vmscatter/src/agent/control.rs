//! A control connection: envelopes over mutual TLS, read and written by a task each, with bounded queues to the session.
//!
//! Every wait has a deadline, and every deadline closes the socket. Pings keep a quiet connection apart from a
//! dead one; they are sent and answered here and never reach the session. The first fault of either half ends both, and
//! stays readable as the connection's [`PeerError`], which names the peer.

mod handshake;
mod stream;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsStream;
use vmscatter_core::limits::CONTROL_MESSAGE_BYTES_MAX;
use vmscatter_core::wire::control::{ControlError, Message, Resources, Uuid, VERSION_MAX, VERSION_MIN};

use super::cancel::CancelToken;
use super::config::os_text;
pub use handshake::hello;
use stream::{read_loop, write_loop};

/// From TCP's connect to both Hellos.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A peer that says nothing for this long, not even a ping, is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A message that the peer's socket does not take within this time ends the connection.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(15);
/// A connection on which nothing was written for this long gets a ping.
pub const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Messages that wait for the writer, or for the session.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Bytes that have been read and wait for the session; twice the longest message.
pub const QUEUE_BYTES_MAX: usize = 2 * CONTROL_MESSAGE_BYTES_MAX;

/// Why a control connection ended, and with whom.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{peer}: {fault}")]
pub struct PeerError {
    /// The peer's name where it is known, else its address.
    pub peer: String,
    /// What happened.
    pub fault: Fault,
}

/// What ended a control connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// TCP did not connect.
    #[error("cannot connect: {}", os_text(.0))]
    Connect(Arc<std::io::Error>),
    /// TLS did not agree: a foreign CA, another name, an expired certificate.
    #[error("TLS: {}", os_text(.0))]
    Tls(Arc<std::io::Error>),
    /// The peer's Hello has another name than its certificate.
    #[error("calls itself '{0}', which its certificate does not say")]
    Name(String),
    /// The configuration's list of peers lacks it.
    #[error("is not in this host's [tls] peers")]
    NotPermitted,
    /// The first message was no Hello.
    #[error("did not begin with Hello")]
    NoHello,
    /// The peer closed the connection in place of its Hello.
    #[error("refused the connection; its log says why")]
    Refused,
    /// No version in common.
    #[error("speaks protocol versions {0} to {1}, this build {VERSION_MIN} to {VERSION_MAX}")]
    Version(u16, u16),
    /// A message of another session, or a second Hello.
    #[error("sent a message that does not belong to this session")]
    Session,
    /// No control message.
    #[error("sent a {0}")]
    Malformed(ControlError),
    /// Ours was too long to send.
    #[error("not sent: {0}")]
    TooLong(ControlError),
    /// Both Hellos were not exchanged in time.
    #[error("no handshake within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Handshake,
    /// [`SILENCE_MAX`] passed.
    #[error("silent for {} s", SILENCE_MAX.as_secs())]
    Silent,
    /// [`WRITE_DEADLINE`] passed.
    #[error("takes no data for {} s", WRITE_DEADLINE.as_secs())]
    Stalled,
    /// The socket failed, or ended without TLS's farewell.
    #[error("connection lost: {}", os_text(.0))]
    Lost(Arc<std::io::Error>),
    /// The connection is closed, or [`ControlSender::abort`] was called.
    #[error("connection closed")]
    Closed,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its name, in its Hello and in its certificate.
    pub name: String,
    /// Its address.
    pub addr: SocketAddr,
    /// Our address on this connection, which tells the interface.
    pub local_addr: SocketAddr,
    /// The session, as the connecting side named it.
    pub session: Uuid,
    /// The protocol version that both speak.
    pub version: u16,
    /// The peer's feature bits.
    pub features: u64,
    /// What the peer can take.
    pub resources: Resources,
}

/// A control connection after both Hellos.
#[derive(Debug)]
pub struct ControlConnection {
    /// Messages to the peer.
    pub sender: ControlSender,
    /// Messages of the peer.
    pub receiver: ControlReceiver,
    /// Who the peer is.
    pub peer: PeerInfo,
}

/// The writing half. When all clones are dropped, what is queued is written and TLS's farewell sent.
#[derive(Clone, Debug)]
pub struct ControlSender {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// The reading half.
#[derive(Debug)]
pub struct ControlReceiver {
    queue: mpsc::Receiver<Incoming>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Incoming {
    message: Message,
    /// Room in the reader's byte budget; given back when the session takes the message.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Shared {
    peer: String,
    fault: OnceLock<Fault>,
    abort: CancelToken,
}

impl Shared {
    /// The first fault stays, and both halves stop.
    fn fail(&self, fault: Fault) {
        let _ = self.fault.set(fault);
        self.abort.cancel();
    }

    fn error(&self) -> PeerError {
        PeerError { peer: self.peer.clone(), fault: self.fault.get().cloned().unwrap_or(Fault::Closed) }
    }
}

impl ControlSender {
    /// Queues a message, and waits while the queue is full.
    ///
    /// # Errors
    /// What ended the connection.
    pub async fn send(&self, message: Message) -> Result<(), PeerError> {
        self.queue.send(message).await.map_err(|_| self.shared.error())
    }

    /// The same from a thread. Not to be called from a task.
    ///
    /// # Errors
    /// As [`ControlSender::send`].
    pub fn blocking_send(&self, message: Message) -> Result<(), PeerError> {
        self.queue.blocking_send(message).map_err(|_| self.shared.error())
    }

    /// Queues a message if there is room, and gives it back if there is none.
    ///
    /// # Errors
    /// What ended the connection.
    pub fn try_send(&self, message: Message) -> Result<Option<Message>, PeerError> {
        match self.queue.try_send(message) {
            Ok(()) => Ok(None),
            Err(mpsc::error::TrySendError::Full(message)) => Ok(Some(message)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.shared.error()),
        }
    }

    /// Closes the socket at once; what is queued is lost, and the peer sees the connection fail.
    pub fn abort(&self) {
        self.shared.fail(Fault::Closed);
    }

    /// Returns once the connection has failed or was aborted.
    pub async fn failed(&self) -> PeerError {
        self.shared.abort.cancelled().await;
        self.shared.error()
    }
}

impl ControlReceiver {
    /// The next message; `None` once the peer has closed in order.
    ///
    /// # Errors
    /// What ended the connection, after the messages that came before it.
    pub async fn recv(&mut self) -> Result<Option<Message>, PeerError> {
        let incoming = self.queue.recv().await;
        self.taken(incoming)
    }

    /// The same from a thread. Not to be called from a task.
    ///
    /// # Errors
    /// As [`ControlReceiver::recv`].
    pub fn blocking_recv(&mut self) -> Result<Option<Message>, PeerError> {
        let incoming = self.queue.blocking_recv();
        self.taken(incoming)
    }

    /// Hands the peer's messages to `sink`, each with one of `places`, which is free again once it has been dropped; until then
    /// nothing more is read. Ends when `sink` says `false`, or with what ended the connection: `None` if the peer closed it in order.
    pub async fn forward(
        mut self,
        places: usize,
        mut sink: impl FnMut(Result<(Message, OwnedSemaphorePermit), Option<PeerError>>) -> bool,
    ) {
        let places = Arc::new(Semaphore::new(places));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let next = match self.recv().await {
                Ok(Some(message)) => Ok((message, place)),
                Ok(None) => Err(None),
                Err(error) => Err(Some(error)),
            };
            let over = next.is_err();
            if !sink(next) || over {
                return;
            }
        }
    }

    fn taken(&self, incoming: Option<Incoming>) -> Result<Option<Message>, PeerError> {
        match incoming {
            Some(incoming) => Ok(Some(incoming.message)),
            None if self.shared.fault.get().is_some() => Err(self.shared.error()),
            None => Ok(None),
        }
    }
}

/// Starts the two halves.
fn start(stream: TlsStream<TcpStream>, peer: PeerInfo) -> ControlConnection {
    let shared = Arc::new(Shared {
        peer: format!("{} ({})", peer.name, peer.addr),
        fault: OnceLock::new(),
        abort: CancelToken::new(),
    });
    let (read_half, write_half) = tokio::io::split(stream);
    let (out_queue, out) = mpsc::channel(QUEUE_MESSAGES_MAX);
    let (in_queue, incoming) = mpsc::channel(QUEUE_MESSAGES_MAX);
    // Only the last ping needs its answer, so pings of a peer can't fill anything.
    let (pong, pongs) = watch::channel(None);
    tokio::spawn({
        let (shared, session) = (shared.clone(), peer.session);
        async move {
            // The queue outlives the loop: its end must not be seen before the fault is.
            let in_queue = in_queue;
            tokio::select! {
                () = shared.abort.cancelled() => {}
                result = read_loop(read_half, session, &in_queue, pong) => {
                    if let Err(fault) = result {
                        shared.fail(fault);
                    }
                }
            }
        }
    });
    tokio::spawn({
        let (shared, session) = (shared.clone(), peer.session);
        async move {
            let mut out = out;
            tokio::select! {
                () = shared.abort.cancelled() => {}
                result = write_loop(write_half, session, &mut out, pongs) => {
                    if let Err(fault) = result {
                        shared.fail(fault);
                    }
                }
            }
        }
    });
    ControlConnection {
        sender: ControlSender { queue: out_queue, shared: shared.clone() },
        receiver: ControlReceiver { queue: incoming, shared },
        peer,
    }
}

#[cfg(test)]
mod tests;
