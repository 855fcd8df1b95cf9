//! What a target passes on to others: hops that the source has had it open, and pieces in envelopes.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::TargetAction;
use crate::limits::SESSION_TARGETS_MAX;
use crate::wire::control::Message;
use crate::wire::piece::{PIECE_OVERHEAD_BYTES, PieceHeader, PieceKind};
use crate::wire::relay;
use crate::wire::seal::Channel;

/// Hops from here, by the target at their other end.
#[derive(Debug, Default)]
pub(super) struct Relaying {
    hops: HashMap<u16, Hop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    Opening,
    Open,
    Lost,
}

impl Relaying {
    /// The source wants a hop. `hello` is what the other end takes for the source's word; nothing else is sent to a host that
    /// may not be a target at all.
    pub(super) fn open(
        &mut self,
        target: u16,
        addr: SocketAddr,
        hello: Vec<u8>,
    ) -> Result<TargetAction, &'static str> {
        let is_hello = hello.len() == PIECE_OVERHEAD_BYTES + 1
            && PieceHeader::decode(&hello).is_ok_and(|header| header.kind == PieceKind::DataHello);
        if !is_hello {
            return Err("a hop that would not begin with a hello");
        }
        if self.hops.len() >= SESSION_TARGETS_MAX || self.hops.contains_key(&target) {
            return Err("a hop twice, or too many");
        }
        self.hops.insert(target, Hop::Opening);
        Ok(TargetAction::Connect { target, addr, hello })
    }

    /// The driver has connected, or can't.
    pub(super) fn opened(&mut self, target: u16, error: Option<String>) -> Option<TargetAction> {
        let hop = self.hops.get_mut(&target).filter(|hop| **hop == Hop::Opening)?;
        *hop = if error.is_none() { Hop::Open } else { Hop::Lost };
        Some(TargetAction::Send(Message::Hopped { target, error }))
    }

    /// The connection has broken: the source is told once.
    pub(super) fn lost(&mut self, target: u16, error: String) -> Option<TargetAction> {
        let hop = self.hops.get_mut(&target).filter(|hop| **hop == Hop::Open)?;
        *hop = Hop::Lost;
        Some(TargetAction::Send(Message::Hopped { target, error: Some(error) }))
    }

    /// How a piece in an envelope goes on if it turns out to be genuine, and the hop is open. Only what was sealed to be passed on
    /// is, so that nobody can have a datagram sent about.
    pub(super) fn pass_on(&self, hops: &[u16], piece: &[u8]) -> Option<TargetAction> {
        let (target, rest) = hops.split_first()?;
        let is_open = self.hops.get(target) == Some(&Hop::Open);
        let is_relayed = PieceHeader::decode(piece).is_ok_and(|header| header.channel == Channel::RELAY);
        let bytes = (is_open && is_relayed).then(|| relay::wrap(rest, piece))?;
        Some(TargetAction::PassOn { target: *target, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{DigestKey, MacKey};
    use crate::session::{SessionKeys, TargetSession};
    use crate::time::Time;
    use crate::transport::{Receiver, ReceiverConfig};
    use crate::wire::control::SetGrant;
    use crate::wire::piece::seal_piece;
    use crate::wire::seal::SealKey;

    const KEY: [u8; 32] = [7; 32];

    fn sealed(key: &mut SealKey, kind: PieceKind) -> Vec<u8> {
        let mut piece = Vec::new();
        seal_piece(key, &PieceHeader::whole(kind, 3, 0, 9, 1), &[1], &mut piece).unwrap();
        piece
    }

    fn hello() -> Vec<u8> {
        sealed(&mut SealKey::new(&[8; 32], Channel::unicast(5)), PieceKind::DataHello)
    }

    fn hop(target: u16, hello: Vec<u8>) -> Message {
        Message::Hop { target, addr: SocketAddr::from(([192, 0, 2, 1], 7941)), hello }
    }

    fn session() -> TargetSession {
        let keys = SessionKeys { mac: MacKey::new(&[1; 16]), digest: DigestKey::new(&[2; 16]) };
        let mut session = TargetSession::new(keys, 0, Receiver::new(ReceiverConfig::default(), Time::ZERO));
        let grant = SetGrant { set: 3, key: KEY, group: None };
        session.message(Time::ZERO, Message::Grant(vec![grant])).unwrap();
        session
    }

    fn actions(session: &mut TargetSession) -> Vec<TargetAction> {
        std::iter::from_fn(|| session.poll_action()).collect()
    }

    #[test]
    fn only_what_the_source_sealed_for_it_is_passed_on_and_once() {
        let mut session = session();
        session.message(Time::ZERO, hop(5, hello())).unwrap();
        assert!(matches!(actions(&mut session)[1], TargetAction::Connect { target: 5, .. }));
        session.hop_opened(5, None);
        let told = actions(&mut session);
        assert!(
            matches!(&told[..], [TargetAction::Send(Message::Hopped { target: 5, error: None })]),
            "{told:?}"
        );
        let passed_on = |session: &mut TargetSession, mut bytes: Vec<u8>| -> Vec<(u16, Vec<u8>)> {
            session.piece(Time::ZERO, &mut bytes);
            let passed = |action| match action {
                TargetAction::PassOn { target, bytes } => Some((target, bytes)),
                _ => None,
            };
            actions(session).into_iter().filter_map(passed).collect()
        };
        let mut relayed = SealKey::new(&KEY, Channel::RELAY);
        let piece = sealed(&mut relayed, PieceKind::Scatter);
        let (last, more) = (relay::wrap(&[5], &piece), relay::wrap(&[5, 1, 2], &piece));
        assert_eq!(passed_on(&mut session, last.clone()), [(5, piece)]);
        assert_eq!(passed_on(&mut session, last), [], "played again");
        assert_eq!(passed_on(&mut session, more), [], "the same in another envelope");
        let piece = sealed(&mut relayed, PieceKind::Scatter);
        let expected = relay::wrap(&[1, 2], &piece);
        assert_eq!(passed_on(&mut session, relay::wrap(&[5, 1, 2], &piece)), [(5, expected)]);
        let piece = sealed(&mut relayed, PieceKind::Scatter);
        assert_eq!(passed_on(&mut session, relay::wrap(&[6], &piece)), [], "no such hop");
        let mut forged = sealed(&mut relayed, PieceKind::Scatter);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(passed_on(&mut session, relay::wrap(&[5], &forged)), []);
        let datagram = sealed(&mut SealKey::new(&KEY, Channel::MULTICAST), PieceKind::Scatter);
        assert_eq!(passed_on(&mut session, relay::wrap(&[5], &datagram)), [], "sealed for a group");
        let piece = sealed(&mut relayed, PieceKind::Scatter);
        let nested = relay::wrap(&[5], &relay::wrap(&[5], &piece));
        assert_eq!(passed_on(&mut session, nested), [], "an envelope in an envelope");
        session.hop_lost(5, "reset".to_owned());
        assert_eq!(actions(&mut session).len(), 1);
        session.hop_lost(5, "reset".to_owned());
        assert_eq!(actions(&mut session).len(), 0, "it is told once");
        let piece = sealed(&mut relayed, PieceKind::Scatter);
        assert_eq!(passed_on(&mut session, relay::wrap(&[5], &piece)), []);
    }

    #[test]
    fn hops_begin_with_a_hello_and_are_bounded() {
        let mut session = session();
        let mut open = |target, hello| session.message(Time::ZERO, hop(target, hello));
        assert!(open(1, b"GET / HTTP/1.1\r\n\r\n".to_vec()).is_err(), "to a host that is no target");
        assert!(open(1, [hello(), vec![0]].concat()).is_err());
        let piece = sealed(&mut SealKey::new(&KEY, Channel::RELAY), PieceKind::Scatter);
        assert!(open(1, piece).is_err());
        for target in 0..SESSION_TARGETS_MAX as u16 {
            open(target, hello()).unwrap();
        }
        assert!(open(1, hello()).is_err() && open(SESSION_TARGETS_MAX as u16, hello()).is_err());
    }
}
