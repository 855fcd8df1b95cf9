//! Seals what core's sender gives out, each piece under its set's key and its path's numbers, and puts it on its path.

use std::collections::HashMap;
use std::net::SocketAddr;

use vmscatter_core::transport::Transmit;
use vmscatter_core::wire::piece::{PieceHeader, seal_piece};
use vmscatter_core::wire::seal::{Channel, KEY_BYTES, SealError, SealKey};

use super::udp::MulticastSender;

/// A set's keys, one for each path.
#[derive(Debug)]
struct SetKeys {
    /// The group and its key; `None` where the set has no group.
    group: Option<(SocketAddr, SealKey)>,
    unicast: HashMap<u16, SealKey>,
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
        let group = group.filter(|_| self.socket.is_some());
        let group = group.map(|group| (group, SealKey::new(key, Channel::MULTICAST)));
        let is_grouped = group.is_some();
        self.sets.insert(set, SetKeys { group, unicast });
        is_grouped
    }

    /// The set's group.
    pub fn group(&self, set: u16) -> Option<SocketAddr> {
        self.sets.get(&set)?.group.as_ref().map(|(group, _)| *group)
    }

    /// Sends one datagram, sealed already, to the set's group. What the kernel does not take is lost like any other.
    pub fn send_datagram(&mut self, set: u16, datagram: &[u8]) {
        let group = self.group(set);
        let Some((group, socket)) = group.zip(self.socket.as_mut()) else { return };
        if let Err(error) = socket.send(group, datagram, datagram.len()) {
            tracing::debug!("multicast: {error}");
        }
    }

    /// Seals and multicasts these pieces; returns how many bytes they have, sealed.
    pub fn multicast(&mut self, transmit: &Transmit) -> usize {
        let set = self.sets.get_mut(&transmit.set).and_then(|set| set.group.as_mut());
        let Some(((group, key), socket)) = set.zip(self.socket.as_mut()) else { return 0 };
        self.sealed.clear();
        let mut segment = 0;
        for (header, payload) in transmit.pieces(self.session_tag) {
            let before = self.sealed.len();
            if seal_piece(key, &header, payload, &mut self.sealed).is_err() {
                tracing::error!("a set's key is used up");
                return 0;
            }
            segment = segment.max(self.sealed.len() - before);
        }
        // What the kernel does not take is lost like any datagram, and repaired.
        if let Err(error) = socket.send(*group, &self.sealed, segment) {
            tracing::debug!("multicast: {error}");
        }
        self.sealed.len()
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
