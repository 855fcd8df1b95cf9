//! Seals what core's sender gives out, each piece under its set's key and its path's numbers, and puts it on its path.

use std::collections::HashMap;
use std::net::SocketAddr;

use vmscatter_core::session::Burst;
use vmscatter_core::transport::Transmit;
use vmscatter_core::wire::piece::{PIECE_OVERHEAD_BYTES, PROBE_OF_TRAIN, PieceHeader, PieceKind, seal_piece};
use vmscatter_core::wire::relay;
use vmscatter_core::wire::seal::{Channel, KEY_BYTES, SealError, SealKey};

use super::udp::MulticastSender;

/// A probe as short as it gets, sealed.
pub const PROBE_BYTES_MIN: usize = PIECE_OVERHEAD_BYTES + 1;

/// A set's keys, one for each path.
#[derive(Debug)]
struct SetKeys {
    group: Option<Group>,
    relay: SealKey,
    unicast: HashMap<u16, SealKey>,
}

/// The group of a set that has one, with the keys of what is multicast to it.
#[derive(Debug)]
struct Group {
    addr: SocketAddr,
    data: SealKey,
    probes: SealKey,
}

/// What became of pieces that were multicast.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes of all of them, sealed.
    pub bytes: usize,
    /// They had to wait until the socket had room; [`Sender`](vmscatter_core::transport::Sender) is to be told.
    pub waited: bool,
}

/// The source's end of all sets. There is one for a session, since two would use the same packet numbers.
#[derive(Debug)]
pub struct Outlet {
    session_tag: u64,
    socket: Option<MulticastSender>,
    sets: HashMap<u16, SetKeys>,
    sealed: Vec<u8>,
}

impl Outlet {
    /// Without sets. `socket` is `None` where nothing goes by multicast.
    pub fn new(session_tag: u64, socket: Option<MulticastSender>) -> Outlet {
        Outlet { session_tag, socket, sets: HashMap::new(), sealed: Vec::new() }
    }

    /// Adds a set with its key; says whether it goes by multicast.
    pub fn add_set(
        &mut self,
        set: u16,
        key: &[u8; KEY_BYTES],
        members: &[u16],
        group: Option<SocketAddr>,
    ) -> bool {
        let unicast = members.iter().map(|to| (*to, SealKey::new(key, Channel::unicast(*to)))).collect();
        let group = group.filter(|_| self.socket.is_some()).map(|addr| Group {
            addr,
            data: SealKey::new(key, Channel::MULTICAST),
            probes: SealKey::new(key, Channel::PROBE),
        });
        let is_grouped = group.is_some();
        let relay = SealKey::new(key, Channel::RELAY);
        self.sets.insert(set, SetKeys { group, relay, unicast });
        is_grouped
    }

    /// Sends a probe of `bytes` bytes, sealed, to the set's group, from which members see that multicast of that length reaches
    /// them; whether it has left.
    pub fn probe(&mut self, set: u16, bytes: usize) -> bool {
        self.probes(set, bytes, 0, 1)
    }

    /// Sends these datagrams of a train to the set's group, where members count them.
    pub fn train(&mut self, burst: &Burst) {
        self.probes(burst.set, burst.bytes, PROBE_OF_TRAIN, burst.datagrams);
    }

    fn probes(&mut self, set: u16, bytes: usize, number: u64, count: u32) -> bool {
        let group = self.sets.get_mut(&set).and_then(|set| set.group.as_mut());
        let Some((group, socket)) = group.zip(self.socket.as_mut()) else { return false };
        let payload = vec![0; bytes.max(PROBE_BYTES_MIN) - PIECE_OVERHEAD_BYTES];
        let header = PieceHeader::whole(PieceKind::Probe, set, self.session_tag, number, payload.len());
        self.sealed.clear();
        for _ in 0..count {
            if seal_piece(&mut group.probes, &header, &payload, &mut self.sealed).is_err() {
                tracing::error!("a set's key is used up");
                return false;
            }
        }
        // What the kernel does not take is lost like any datagram; another will follow.
        let sent = socket.send(group.addr, &self.sealed, payload.len() + PIECE_OVERHEAD_BYTES);
        sent.inspect_err(|error| tracing::debug!("probe: {error}")).is_ok()
    }

    /// Seals and multicasts these pieces.
    pub fn multicast(&mut self, transmit: &Transmit) -> Sent {
        let group = self.sets.get_mut(&transmit.set).and_then(|set| set.group.as_mut());
        let Some((group, socket)) = group.zip(self.socket.as_mut()) else { return Sent::default() };
        self.sealed.clear();
        let mut segment = 0;
        for (header, payload) in transmit.pieces(self.session_tag) {
            let before = self.sealed.len();
            if seal_piece(&mut group.data, &header, payload, &mut self.sealed).is_err() {
                tracing::error!("a set's key is used up");
                return Sent::default();
            }
            segment = segment.max(self.sealed.len() - before);
        }
        // What the kernel does not take is lost like any datagram, and repaired.
        let sent = socket.send(group.addr, &self.sealed, segment);
        let waited = sent.inspect_err(|error| tracing::debug!("multicast: {error}")).unwrap_or(false);
        Sent { bytes: self.sealed.len(), waited }
    }

    /// Seals these pieces for all members of their set, in envelopes for the target from which they go on over `hops`.
    ///
    /// # Errors
    /// [`SealError`]: the key is used up.
    pub fn seal_relay(&mut self, transmit: &Transmit, hops: &[u16]) -> Result<Vec<Vec<u8>>, SealError> {
        let Some(set) = self.sets.get_mut(&transmit.set) else { return Ok(Vec::new()) };
        let mut sealed = Vec::new();
        let seal = |(header, payload): (PieceHeader, &[u8])| {
            sealed.clear();
            seal_piece(&mut set.relay, &header, payload, &mut sealed)?;
            Ok(relay::wrap(hops, &sealed))
        };
        transmit.pieces(self.session_tag).map(seal).collect()
    }

    /// Seals these pieces for a target's data connection; `own` seals those of a set that was not added here.
    ///
    /// # Errors
    /// [`SealError`]: the key is used up.
    pub fn seal_unicast(
        &mut self,
        transmit: &Transmit,
        target: u16,
        own: impl Fn(&PieceHeader, &[u8], &mut Vec<u8>) -> Result<(), SealError>,
    ) -> Result<Vec<Vec<u8>>, SealError> {
        let mut key = self.sets.get_mut(&transmit.set).and_then(|set| set.unicast.get_mut(&target));
        let seal = |(header, payload): (PieceHeader, &[u8])| {
            let mut sealed = Vec::new();
            match &mut key {
                Some(key) => seal_piece(key, &header, payload, &mut sealed).map(drop)?,
                None => own(&header, payload, &mut sealed)?,
            }
            Ok(sealed)
        };
        transmit.pieces(self.session_tag).map(seal).collect()
    }
}
