//! What leaves: sealed under the keys of its set, by multicast or over a target's data connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use vmscatter_core::transport::{Path, Transmit};
use vmscatter_core::wire::piece::{PieceHeader, PieceKind, seal_piece, session_tag};
use vmscatter_core::wire::seal::{Channel, SealKey};

use super::{Setup, Shared};
use crate::net::udp::MulticastSender;
use crate::source::groups::SetLink;
use crate::source::link::TargetLink;

const PROBE_BYTES: usize = 16;

/// A set of several members: its group, and its key on each path.
struct Set {
    group: SocketAddr,
    multicast: SealKey,
    probe: SealKey,
    unicast: HashMap<u16, SealKey>,
}

impl Set {
    fn new(link: &SetLink) -> Set {
        let key = |channel| SealKey::new(&link.key, channel);
        let members = link.set.members().map(|target| u16::from(target.0));
        Set {
            group: link.group,
            multicast: key(Channel::MULTICAST),
            probe: key(Channel::PROBE),
            unicast: members.map(|to| (to, key(Channel::unicast(to)))).collect(),
        }
    }
}

/// Keys, and the way out.
pub(super) struct Output {
    /// By number on the wire. Targets' own sets are not among them: their links have those keys.
    sets: HashMap<u16, Set>,
    /// `None` where nothing is multicast.
    socket: Option<MulticastSender>,
    links: Vec<Arc<TargetLink>>,
    session_tag: u64,
    shared: Arc<Shared>,
    sealed: Vec<u8>,
    datagram_bytes: usize,
}

impl Output {
    /// # Errors
    /// Those of the multicast socket, if there are sets of several members.
    pub(super) fn new(setup: &Setup, shared: Arc<Shared>) -> std::io::Result<Output> {
        let mtu = setup.links.iter().map(|link| link.mtu()).min().unwrap_or(1500).max(1280);
        let local = setup.links.first().map(|link| link.local_addr().ip());
        let socket = match local.filter(|_| !setup.groups.sets.is_empty()) {
            Some(local) => Some(MulticastSender::bind(local)?),
            None => None,
        };
        let ip_udp_bytes = if local.is_some_and(|ip| ip.is_ipv6()) { 48 } else { 28 };
        Ok(Output {
            sets: setup.groups.sets.iter().map(|link| (link.number, Set::new(link))).collect(),
            socket,
            links: setup.links.clone(),
            session_tag: session_tag(&setup.session),
            shared,
            sealed: Vec::new(),
            datagram_bytes: mtu as usize - ip_udp_bytes,
        })
    }

    /// Bytes of a datagram behind the UDP header.
    pub(super) fn datagram_bytes(&self) -> usize {
        self.datagram_bytes
    }

    pub(super) fn send(&mut self, transmit: &Transmit) {
        match transmit.path {
            Path::Multicast { .. } => self.multicast(transmit),
            Path::Unicast { target } => self.unicast(transmit, target),
        }
    }

    fn multicast(&mut self, transmit: &Transmit) {
        let Some(set) = self.sets.get_mut(&transmit.set) else { return };
        self.sealed.clear();
        let mut segment = 0;
        for (header, payload) in transmit.pieces(self.session_tag) {
            let before = self.sealed.len();
            if seal_piece(&mut set.multicast, &header, payload, &mut self.sealed).is_err() {
                return tracing::error!("a set's key is used up");
            }
            segment = segment.max(self.sealed.len() - before);
        }
        // What the kernel does not take is lost like any datagram, and repaired.
        if let Some(Err(error)) =
            self.socket.as_mut().map(|socket| socket.send(set.group, &self.sealed, segment))
        {
            tracing::debug!("multicast: {error}");
        }
        self.shared.outcome().multicast_bytes += self.sealed.len() as u64;
    }

    fn unicast(&mut self, transmit: &Transmit, target: u16) {
        let link = &self.links[usize::from(target)];
        for (header, payload) in transmit.pieces(self.session_tag) {
            let mut sealed = Vec::new();
            let key = self.sets.get_mut(&transmit.set).and_then(|set| set.unicast.get_mut(&target));
            let result = match key {
                Some(key) => seal_piece(key, &header, payload, &mut sealed).map(drop),
                // A target's own set is sealed by its link, which does so for streams too.
                None => link.seal(&header, payload, &mut sealed),
            };
            if result.is_err() {
                return tracing::error!("a set's key is used up");
            }
            self.shared.outcome().unicast_bytes += sealed.len() as u64;
            link.send_scatter(sealed);
        }
    }

    /// Sends a probe to the set's group.
    pub(super) fn probe(&mut self, number: u16) {
        let Some((set, socket)) = self.sets.get_mut(&number).zip(self.socket.as_mut()) else { return };
        let header = PieceHeader::whole(PieceKind::Probe, number, self.session_tag, 0, PROBE_BYTES);
        let mut piece = Vec::new();
        let sealed = seal_piece(&mut set.probe, &header, &[0; PROBE_BYTES], &mut piece);
        if sealed.is_ok()
            && let Err(error) = socket.send(set.group, &piece, piece.len())
        {
            tracing::debug!("probe: {error}");
        }
    }
}
