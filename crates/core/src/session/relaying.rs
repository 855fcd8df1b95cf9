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

    /// A piece in an envelope that was genuine: it goes on, if the hop is open. Only what was sealed to be passed on is, so that
    /// nobody can have a datagram sent about.
    pub(super) fn pass_on(&self, hops: &[u16], piece: &[u8]) -> Option<TargetAction> {
        let (target, rest) = hops.split_first()?;
        let is_open = self.hops.get(target) == Some(&Hop::Open);
        let is_relayed = PieceHeader::decode(piece).is_ok_and(|header| header.channel == Channel::RELAY);
        let bytes = (is_open && is_relayed).then(|| relay::wrap(rest, piece))?;
        Some(TargetAction::PassOn { target: *target, bytes })
    }
}
