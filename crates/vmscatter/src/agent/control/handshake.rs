//! From a TCP connection to two peers that know each other: TLS, Hello, Hello.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use vmscatter_core::wire::control::{
    Envelope, FEATURE_EXAMINE, FEATURE_LINK_COUNTERS, FEATURE_PARITY, FEATURE_RELAY, FEATURE_TRAINS,
    HELLO_MAGIC, Hello, Message, Resources, Uuid, VERSION_MAX, VERSION_MIN, common_version,
};

use super::stream::{read_envelope, write_message};
use super::{ControlConnection, Fault, HANDSHAKE_DEADLINE, PeerError, PeerInfo, start};
use crate::agent::input::one_line;
use crate::agent::tls::{TlsContext, dns_names};

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
            let (answered, hello) = read_hello(&mut stream).await.map_err(refused)?;
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
            let admitted = admit(&stream, theirs, addr, local_addr, session);
            let admitted = admitted.and_then(|peer| match tls.permits(&peer.name) {
                true => Ok(peer),
                false => Err(Fault::NotPermitted),
            });
            // A peer that is only too old or too new is told which versions there are.
            if matches!(admitted, Ok(_) | Err(Fault::Version(..))) {
                write_message(&mut stream, session, Message::Hello(hello)).await?;
            }
            Ok((stream, admitted?))
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
        features: FEATURE_RELAY | FEATURE_EXAMINE | FEATURE_LINK_COUNTERS | FEATURE_PARITY | FEATURE_TRAINS,
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

/// An end in place of the peer's Hello is its refusal; where TLS has said why, that stays.
fn refused(fault: Fault) -> Fault {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match fault {
        Fault::Lost(error) if !matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
            Fault::Lost(error)
        }
        Fault::Lost(_) | Fault::Closed => Fault::Refused,
        other => other,
    }
}

async fn read_hello<R: AsyncRead + Unpin>(stream: &mut R) -> Result<(Uuid, Hello), Fault> {
    match read_envelope(stream).await? {
        Some((Envelope { session, message: Message::Hello(hello) }, _)) => Ok((session, hello)),
        Some(_) => Err(Fault::NoHello),
        None => Err(Fault::Closed),
    }
}
