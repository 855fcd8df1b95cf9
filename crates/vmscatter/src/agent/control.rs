//! A control connection: [`Envelope`]s over mutual TLS, read and written by a task each, with bounded queues to the session.
//!
//! Every wait has a deadline, and every deadline closes the socket. Pings keep a quiet connection apart from a
//! dead one; they are sent and answered here and never reach the session. The first fault of either half ends both, and
//! stays readable as the connection's [`PeerError`], which names the peer.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsStream;
use vmscatter_core::limits::CONTROL_MESSAGE_BYTES_MAX;
use vmscatter_core::wire::control::{
    ControlError, Envelope, HELLO_MAGIC, Hello, Message, Resources, Uuid, VERSION_MAX, VERSION_MIN,
    common_version,
};

use super::cancel::CancelToken;
use super::config::os_text;
use super::input::one_line;
use super::tls::{TlsContext, dns_names};

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

    fn taken(&self, incoming: Option<Incoming>) -> Result<Option<Message>, PeerError> {
        match incoming {
            Some(incoming) => Ok(Some(incoming.message)),
            None if self.shared.fault.get().is_some() => Err(self.shared.error()),
            None => Ok(None),
        }
    }
}

impl ControlConnection {
    /// Connects to the host `name` at `addr`, and opens `session` there.
    ///
    /// # Errors
    /// Within [`HANDSHAKE_DEADLINE`]: why there is no connection; the error names the host.
    pub async fn connect(
        addr: SocketAddr,
        name: &str,
        tls: &TlsContext,
        hello: Hello,
        session: Uuid,
    ) -> Result<ControlConnection, PeerError> {
        let label = format!("{name} ({addr})");
        let handshake = async {
            let tcp = TcpStream::connect(addr).await.map_err(|e| Fault::Connect(Arc::new(e)))?;
            let server = ServerName::try_from(name.to_owned()).map_err(|_| Fault::Name(one_line(name)))?;
            let (local_addr, tcp) = prepare(tcp)?;
            let tls = tls.connector().connect(server, tcp).await.map_err(|e| Fault::Tls(Arc::new(e)))?;
            let mut stream = TlsStream::Client(tls);
            write_message(&mut stream, session, Message::Hello(hello)).await?;
            let (answered, hello) = read_hello(&mut stream).await?;
            if answered != session {
                return Err(Fault::Session);
            }
            let peer = admit(&stream, hello, addr, local_addr, session)?;
            if !peer.name.eq_ignore_ascii_case(name) {
                return Err(Fault::Name(peer.name));
            }
            Ok((stream, peer))
        };
        finish_handshake(label, handshake).await
    }

    /// Takes a connection in and answers its Hello.
    ///
    /// # Errors
    /// Within [`HANDSHAKE_DEADLINE`]: why the peer was turned away; the error names its address.
    pub async fn accept(
        tcp: TcpStream,
        addr: SocketAddr,
        tls: &TlsContext,
        hello: Hello,
    ) -> Result<ControlConnection, PeerError> {
        let handshake = async {
            let (local_addr, tcp) = prepare(tcp)?;
            let accepted = tls.acceptor().accept(tcp).await.map_err(|e| Fault::Tls(Arc::new(e)))?;
            let mut stream = TlsStream::Server(accepted);
            let (session, theirs) = read_hello(&mut stream).await?;
            // Before any judgement, so that the peer too can tell which versions there are.
            write_message(&mut stream, session, Message::Hello(hello)).await?;
            let peer = admit(&stream, theirs, addr, local_addr, session)?;
            if !tls.permits(&peer.name) {
                return Err(Fault::NotPermitted);
            }
            Ok((stream, peer))
        };
        finish_handshake(addr.to_string(), handshake).await
    }
}

/// Our Hello; a source leaves `resources` at its default.
pub fn hello(name: &str, resources: Resources) -> Hello {
    Hello {
        magic: HELLO_MAGIC,
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        features: 0,
        name: name.to_owned(),
        resources,
    }
}

async fn finish_handshake(
    label: String,
    handshake: impl Future<Output = Result<(TlsStream<TcpStream>, PeerInfo), Fault>>,
) -> Result<ControlConnection, PeerError> {
    match timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok((stream, peer))) => Ok(start(stream, peer)),
        Ok(Err(fault)) => Err(PeerError { peer: label, fault }),
        Err(_) => Err(PeerError { peer: label, fault: Fault::Handshake }),
    }
}

fn prepare(tcp: TcpStream) -> Result<(SocketAddr, TcpStream), Fault> {
    let lost = |e| Fault::Lost(Arc::new(e));
    tcp.set_nodelay(true).map_err(lost)?;
    Ok((tcp.local_addr().map_err(lost)?, tcp))
}

/// Checks a Hello against the certificate that came with the connection.
fn admit(
    stream: &TlsStream<TcpStream>,
    hello: Hello,
    addr: SocketAddr,
    local_addr: SocketAddr,
    session: Uuid,
) -> Result<PeerInfo, Fault> {
    let certificates: &[CertificateDer<'_>] = stream.get_ref().1.peer_certificates().unwrap_or(&[]);
    let names = certificates.first().map(dns_names).unwrap_or_default();
    if hello.magic != HELLO_MAGIC {
        return Err(Fault::NoHello);
    }
    if !names.iter().any(|n| n.eq_ignore_ascii_case(&hello.name)) {
        return Err(Fault::Name(one_line(&hello.name)));
    }
    let version = common_version(&hello).ok_or(Fault::Version(hello.version_min, hello.version_max))?;
    Ok(PeerInfo {
        name: hello.name.to_ascii_lowercase(),
        addr,
        local_addr,
        session,
        version,
        features: hello.features,
        resources: hello.resources,
    })
}

async fn read_hello<R: AsyncRead + Unpin>(stream: &mut R) -> Result<(Uuid, Hello), Fault> {
    match read_envelope(stream).await? {
        Some((Envelope { session, message: Message::Hello(hello) }, _)) => Ok((session, hello)),
        Some(_) => Err(Fault::NoHello),
        None => Err(Fault::Closed),
    }
}

/// The next envelope and the length of its body; `None` at the end of the stream, between messages.
async fn read_envelope<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<(Envelope, usize)>, Fault> {
    let lost = |e| Fault::Lost(Arc::new(e));
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1]).await.map_err(lost)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await.map_err(lost)?;
    let len = Envelope::body_len(prefix).map_err(Fault::Malformed)?;
    // Grows as bytes arrive, never by what the prefix says.
    let mut body = Vec::new();
    stream.take(len as u64).read_to_end(&mut body).await.map_err(lost)?;
    if body.len() < len {
        return Err(Fault::Malformed(ControlError::Malformed));
    }
    let envelope = Envelope::decode(&body).map_err(Fault::Malformed)?;
    Ok(Some((envelope, len)))
}

async fn write_message<W: AsyncWrite + Unpin>(
    stream: &mut W,
    session: Uuid,
    message: Message,
) -> Result<(), Fault> {
    let bytes = Envelope { session, message }.encode().map_err(Fault::TooLong)?;
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    match timeout(WRITE_DEADLINE, write).await {
        Ok(result) => result.map_err(|e| Fault::Lost(Arc::new(e))),
        Err(_) => Err(Fault::Stalled),
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

/// Reads until the peer closes in order (`Ok`), or until the session has dropped its receiver (`Ok`).
async fn read_loop<R: AsyncRead + Unpin>(
    mut stream: R,
    session: Uuid,
    queue: &mpsc::Sender<Incoming>,
    pong: watch::Sender<Option<u64>>,
) -> Result<(), Fault> {
    let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
    loop {
        let read = timeout(SILENCE_MAX, read_envelope(&mut stream));
        let next = tokio::select! {
            next = read => next.map_err(|_| Fault::Silent)??,
            () = queue.closed() => return Ok(()),
        };
        let Some((envelope, len)) = next else { return Ok(()) };
        if envelope.session != session {
            return Err(Fault::Session);
        }
        match envelope.message {
            Message::Hello(_) => return Err(Fault::Session),
            Message::Ping(number) => {
                pong.send_replace(Some(number));
            }
            Message::Pong(_) => {}
            message => {
                // While the session is slow nothing is read; its own deadlines decide how long that may last.
                let permits = u32::try_from(len).unwrap_or(u32::MAX);
                let Ok(room) = room.clone().acquire_many_owned(permits).await else { return Ok(()) };
                if queue.send(Incoming { message, _room: room }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Writes until the session has dropped its senders and all is written.
async fn write_loop<W: AsyncWrite + Unpin>(
    mut stream: W,
    session: Uuid,
    queue: &mut mpsc::Receiver<Message>,
    mut pongs: watch::Receiver<Option<u64>>,
) -> Result<(), Fault> {
    let mut pings = 0;
    let mut reader_lives = true;
    loop {
        let quiet_until = Instant::now() + PING_INTERVAL;
        let message = tokio::select! {
            changed = pongs.changed(), if reader_lives => match changed {
                Ok(()) => pongs.borrow_and_update().map(Message::Pong),
                Err(_) => {
                    reader_lives = false;
                    None
                }
            },
            next = timeout_at(quiet_until, queue.recv()) => match next {
                Ok(Some(message)) => Some(message),
                Ok(None) => break,
                Err(_) => {
                    pings += 1;
                    Some(Message::Ping(pings))
                }
            },
        };
        if let Some(message) = message {
            write_message(&mut stream, session, message).await?;
        }
    }
    match timeout(WRITE_DEADLINE, stream.shutdown()).await {
        Ok(result) => result.map_err(|e| Fault::Lost(Arc::new(e))),
        Err(_) => Err(Fault::Stalled),
    }
}

#[cfg(test)]
mod tests;
