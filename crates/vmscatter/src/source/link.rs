//! The source's connections to one target: control messages, and sealed pieces over the data connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use vmscatter_core::session::OwnKeys;
use vmscatter_core::wire::control::{FEATURE_PARITY, FEATURE_RELAY, FEATURE_TRAINS, Message, SetGrant, Uuid};
use vmscatter_core::wire::piece::{PieceHeader, PieceKind, session_tag};
use vmscatter_core::wire::seal::SealError;

use crate::agent::control::{ControlSender, PeerInfo};
use crate::net::data::{DataSender, Priority, RateLimit};
use crate::net::udp;
use crate::plan::MTU_DEFAULT;
use crate::random::random;

/// Our address towards the first of these targets, from which multicast leaves for all.
pub(super) fn local_addr(links: &[Arc<TargetLink>]) -> IpAddr {
    links.first().map_or(Ipv4Addr::UNSPECIFIED.into(), |link| link.local_addr.ip().to_canonical())
}

/// Bytes of a datagram behind the UDP header that reaches each of these targets whole, as far as interfaces tell.
pub(super) fn datagram_bytes(links: &[Arc<TargetLink>]) -> usize {
    let mtu = links.iter().map(|link| link.mtu).min().unwrap_or(MTU_DEFAULT);
    udp::datagram_bytes(mtu, local_addr(links))
}

fn seal_hello(keys: &mut OwnKeys, session_tag: u64) -> Result<Vec<u8>, SealError> {
    let mut hello = Vec::new();
    let header = PieceHeader::whole(PieceKind::DataHello, keys.set(), session_tag, 0, 1);
    keys.seal(&header, &[0], &mut hello)?;
    Ok(hello)
}

/// A target, as the source reaches it.
#[derive(Debug)]
pub(super) struct TargetLink {
    name: String,
    local_addr: SocketAddr,
    data_addr: SocketAddr,
    can_relay: bool,
    takes_parity: bool,
    counts_trains: bool,
    mtu: u32,
    session_tag: u64,
    control: tokio::sync::mpsc::UnboundedSender<Message>,
    abort: ControlSender,
    data: DataSender,
    /// Seal everything that goes to this target alone: its streams, and frames of its own set.
    keys: Mutex<OwnKeys>,
    sent_bytes: AtomicU64,
    vm_bytes: Mutex<HashMap<u16, u64>>,
}

impl TargetLink {
    /// Opens the data connection and says whose it is; `limit` is for all streams of the session together.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) async fn connect(
        peer: &PeerInfo,
        control: ControlSender,
        session: Uuid,
        mut keys: OwnKeys,
        limit: Option<Arc<RateLimit>>,
    ) -> std::io::Result<Arc<TargetLink>> {
        let addr = SocketAddr::new(peer.addr.ip(), peer.resources.data_port);
        let tag = session_tag(&session);
        let first = seal_hello(&mut keys, tag).map_err(std::io::Error::other)?;
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
            takes_parity: peer.features & FEATURE_PARITY != 0,
            counts_trains: peer.features & FEATURE_TRAINS != 0,
            mtu: peer.resources.mtu,
            session_tag: tag,
            control: messages,
            abort: control,
            data,
            keys: Mutex::new(keys),
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

    /// Whether it can use parity pieces.
    pub(super) fn takes_parity(&self) -> bool {
        self.takes_parity
    }

    /// Whether it counts trains of probes.
    pub(super) fn counts_trains(&self) -> bool {
        self.counts_trains
    }

    /// The first piece of a data connection to it.
    ///
    /// # Errors
    /// [`SealError`]: the key is used up.
    pub(super) fn hello(&self) -> Result<Vec<u8>, SealError> {
        seal_hello(&mut self.keys(), self.session_tag)
    }

    fn keys(&self) -> MutexGuard<'_, OwnKeys> {
        self.keys.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Grants sets that the target shares with others.
    pub(super) fn grant(&self, grants: Vec<SetGrant>) {
        let mut keys = self.keys();
        keys.others_granted();
        self.send(Message::Grant(grants));
    }

    /// The target has confirmed a grant.
    pub(super) fn granted(&self) {
        self.keys().confirmed();
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
        self.keys().seal(header, payload, out)
    }

    /// The same of a stream, under the newest key; asks the target to take a new one where it is time for that.
    fn seal_stream(&self, header: &PieceHeader, body: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let mut keys = self.keys();
        keys.seal_stream(header, body, out)?;
        if keys.is_rekey_due() {
            let grant = keys.rekey(random());
            tracing::info!(target = self.name, set = grant.set, "its streams get a new key");
            self.send(Message::Grant(vec![grant]));
        }
        Ok(())
    }

    /// Sends a stream frame's body; never waits, so that encoders serve whichever target takes something.
    pub(super) fn send_stream(&self, vm: u16, seq: u64, body: &[u8], priority: Priority) {
        let header =
            PieceHeader { vm, ..PieceHeader::whole(PieceKind::Stream, 0, self.session_tag, seq, body.len()) };
        let mut sealed = Vec::new();
        if self.seal_stream(&header, body, &mut sealed).is_err() {
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
