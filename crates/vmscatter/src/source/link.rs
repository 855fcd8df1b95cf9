//! The source's connections to one target: control messages, and sealed pieces over the data connection.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use vmscatter_core::wire::control::{FEATURE_RELAY, Message, SetGrant, Uuid};
use vmscatter_core::wire::piece::{PieceHeader, PieceKind, seal_piece, session_tag};
use vmscatter_core::wire::seal::{Channel, SealError, SealKey};

use crate::agent::control::{ControlSender, PeerInfo};
use crate::net::data::{DataSender, Priority, RateLimit};
use crate::net::udp;
use crate::plan::MTU_DEFAULT;

/// Bytes of a datagram behind the UDP header that reaches each of these targets whole, as far as interfaces tell.
pub(super) fn datagram_bytes(links: &[Arc<TargetLink>]) -> usize {
    let mtu = links.iter().map(|link| link.mtu).min().unwrap_or(MTU_DEFAULT);
    let local = links.first().map_or(Ipv4Addr::UNSPECIFIED.into(), |link| link.local_addr.ip());
    udp::datagram_bytes(mtu, local)
}

fn seal_hello(key: &mut SealKey, own_set: u16, session_tag: u64) -> Result<Vec<u8>, SealError> {
    let mut hello = Vec::new();
    let header = PieceHeader::whole(PieceKind::DataHello, own_set, session_tag, 0, 1);
    seal_piece(key, &header, &[0], &mut hello)?;
    Ok(hello)
}

/// A target, as the source reaches it.
#[derive(Debug)]
pub(super) struct TargetLink {
    name: String,
    local_addr: SocketAddr,
    data_addr: SocketAddr,
    can_relay: bool,
    mtu: u32,
    own_set: u16,
    session_tag: u64,
    control: tokio::sync::mpsc::UnboundedSender<Message>,
    abort: ControlSender,
    data: DataSender,
    /// Seals everything that goes to this target alone: its streams, and frames of its own set.
    key: Mutex<SealKey>,
    sent_bytes: AtomicU64,
    vm_bytes: Mutex<HashMap<u16, u64>>,
}

impl TargetLink {
    /// Opens the data connection and says whose it is; `limit` is for all streams of the session together.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) async fn connect(
        number: u16,
        peer: &PeerInfo,
        control: ControlSender,
        session: Uuid,
        own: &SetGrant,
        limit: Option<Arc<RateLimit>>,
    ) -> std::io::Result<Arc<TargetLink>> {
        let addr = SocketAddr::new(peer.addr.ip(), peer.resources.data_port);
        let tag = session_tag(&session);
        let mut key = SealKey::new(&own.key, Channel::unicast(number));
        let first = seal_hello(&mut key, own.set, tag).map_err(std::io::Error::other)?;
        let data = tokio::task::spawn_blocking(move || DataSender::connect(addr, &first, limit)).await??;
        let (messages, mut queue) = tokio::sync::mpsc::unbounded_channel();
        let sender = control.clone();
        // The session's loop never waits for a target; what it says to one is bounded by what that one does.
        tokio::spawn(async move {
            while let Some(message) = queue.recv().await {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Arc::new(TargetLink {
            name: peer.name.clone(),
            local_addr: peer.local_addr,
            data_addr: addr,
            can_relay: peer.features & FEATURE_RELAY != 0,
            mtu: peer.resources.mtu,
            own_set: own.set,
            session_tag: tag,
            control: messages,
            abort: control,
            data,
            key: Mutex::new(key),
            sent_bytes: AtomicU64::new(0),
            vm_bytes: Mutex::default(),
        }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Our address towards it.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// MTU of the interface on which it receives.
    pub(super) fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Where it takes data connections.
    pub(super) fn data_addr(&self) -> SocketAddr {
        self.data_addr
    }

    /// Whether it can pass pieces on to other targets.
    pub(super) fn can_relay(&self) -> bool {
        self.can_relay
    }

    /// The first piece of a data connection to it.
    ///
    /// # Errors
    /// [`SealError`]: the key is used up.
    pub(super) fn hello(&self) -> Result<Vec<u8>, SealError> {
        let mut key = self.key.lock().unwrap_or_else(|e| e.into_inner());
        seal_hello(&mut key, self.own_set, self.session_tag)
    }

    /// Says something on the control connection, in order.
    pub(super) fn send(&self, message: Message) {
        let _ = self.control.send(message);
    }

    /// Seals a piece that only this target can open.
    pub(super) fn seal(
        &self,
        header: &PieceHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        let mut key = self.key.lock().unwrap_or_else(|e| e.into_inner());
        seal_piece(&mut key, header, payload, out).map(drop)
    }

    /// Sends a stream frame's body; never waits, so that encoders serve whichever target takes something.
    pub(super) fn send_stream(&self, vm: u16, seq: u64, body: &[u8], priority: Priority) {
        let mut header =
            PieceHeader::whole(PieceKind::Stream, self.own_set, self.session_tag, seq, body.len());
        header.vm = vm;
        let mut sealed = Vec::new();
        if self.seal(&header, body, &mut sealed).is_err() {
            tracing::error!(target = self.name, "its key is used up");
            return self.close();
        }
        *self.vm_bytes.lock().unwrap_or_else(|e| e.into_inner()).entry(vm).or_default() +=
            sealed.len() as u64;
        self.sent_bytes.fetch_add(sealed.len() as u64, Relaxed);
        // A connection that has broken ends the control connection too, which the session is told of.
        if self.data.send(priority, sealed).is_err() {
            self.close();
        }
    }

    /// Sends a sealed piece of the scatter.
    pub(super) fn send_scatter(&self, sealed: Vec<u8>) {
        self.sent_bytes.fetch_add(sealed.len() as u64, Relaxed);
        if self.data.send(Priority::Scatter, sealed).is_err() {
            self.close();
        }
    }

    /// Bytes by TCP so far, as sealed.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    /// Bytes of one VM's stream so far, as sealed.
    pub(super) fn vm_bytes(&self, vm: u16) -> u64 {
        self.vm_bytes.lock().unwrap_or_else(|e| e.into_inner()).get(&vm).copied().unwrap_or(0)
    }

    /// What broke the data connection, if something did: the control connection is ended for it.
    pub(super) fn fault(&self) -> Option<String> {
        self.data.fault().map(|fault| format!("data connection: {fault}"))
    }

    /// Ends the connections without taking leave: the target is to remember what it knows.
    pub(super) fn hang_up(&self) {
        self.close();
    }

    /// Breaks both connections.
    pub(super) fn close(&self) {
        self.data.close();
        self.abort.abort();
    }
}
