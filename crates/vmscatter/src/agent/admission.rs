//! Who may have a control connection: neither strangers nor one peer can keep the others out.
//!
//! A stranger costs nothing but a place among the handshakes, and the one who has been at it for longest makes room for
//! the next. A peer is known by its certificate, and has a number of connections of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::cancel::CancelToken;

/// Connections that are in their handshake at once.
pub const HANDSHAKES_MAX: usize = 64;
/// Connections of one peer at once: its jobs have one each, recovery some more.
pub const PEER_CONNECTIONS_MAX: usize = 32;
/// Connections of all peers at once; each has a thread or will have one.
pub const CONTROL_CONNECTIONS_MAX: usize = 256;

/// The places; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    places: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    /// The oldest first.
    handshakes: VecDeque<(u64, CancelToken)>,
    next: u64,
    peers: HashMap<String, usize>,
}

/// A place among the handshakes, until it is dropped.
#[derive(Debug)]
pub struct Handshake {
    admission: Admission,
    number: u64,
    ousted: CancelToken,
}

/// A peer's place, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Admission,
    peer: String,
}

/// Why a peer gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// It has too many already.
    #[error("it has {PEER_CONNECTIONS_MAX} control connections already")]
    Peer,
    /// There are too many of all.
    #[error("{CONTROL_CONNECTIONS_MAX} control connections are open")]
    All,
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A place for a connection of which nothing is known.
    pub fn handshake(&self) -> Handshake {
        let mut places = self.lock();
        if places.handshakes.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = places.handshakes.pop_front()
        {
            oldest.cancel();
        }
        let (number, ousted) = (places.next, CancelToken::new());
        places.next += 1;
        places.handshakes.push_back((number, ousted.clone()));
        Handshake { admission: self.clone(), number, ousted }
    }
}

impl Handshake {
    /// Returns once the place is needed for another.
    pub async fn ousted(&self) {
        self.ousted.cancelled().await;
    }

    /// The handshake has shown who it is.
    ///
    /// # Errors
    /// [`Full`].
    pub fn admit(self, peer: &str) -> Result<Admitted, Full> {
        let mut places = self.admission.lock();
        if places.peers.values().sum::<usize>() >= CONTROL_CONNECTIONS_MAX {
            return Err(Full::All);
        }
        let has = places.peers.entry(peer.to_owned()).or_default();
        if *has >= PEER_CONNECTIONS_MAX {
            return Err(Full::Peer);
        }
        *has += 1;
        Ok(Admitted { admission: self.admission.clone(), peer: peer.to_owned() })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.admission.lock().handshakes.retain(|(number, _)| *number != self.number);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut places = self.admission.lock();
        if let Some(has) = places.peers.get_mut(&self.peer) {
            *has -= 1;
            if *has == 0 {
                places.peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_handshake_makes_room() {
        let admission = Admission::default();
        let mut waiting: Vec<Handshake> = (0..HANDSHAKES_MAX).map(|_| admission.handshake()).collect();
        assert!(waiting.iter().all(|handshake| !handshake.ousted.is_cancelled()));
        waiting.push(admission.handshake());
        assert!(waiting[0].ousted.is_cancelled() && !waiting[1].ousted.is_cancelled());
        drop(waiting.remove(5));
        waiting.push(admission.handshake());
        assert!(!waiting[1].ousted.is_cancelled(), "there was a place");
        drop(waiting);
        assert!(admission.lock().handshakes.is_empty());
    }

    #[test]
    fn a_peer_has_places_of_its_own() {
        let admission = Admission::default();
        let admit = |peer: &str| admission.handshake().admit(peer);
        let mut of_a: Vec<Admitted> = (0..PEER_CONNECTIONS_MAX).map(|_| admit("a").unwrap()).collect();
        assert_eq!(admit("a").unwrap_err(), Full::Peer);
        let of_b = admit("b").unwrap();
        of_a.pop();
        of_a.push(admit("a").unwrap());
        let others = CONTROL_CONNECTIONS_MAX - of_a.len() - 1;
        let of_others: Vec<Admitted> = (0..others).map(|peer| admit(&peer.to_string()).unwrap()).collect();
        assert_eq!(admit("c").unwrap_err(), Full::All);
        drop((of_a, of_b, of_others));
        assert!(admission.lock().peers.is_empty());
    }
}
