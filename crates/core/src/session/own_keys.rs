//! What only one target can open: the source's keys for it.
//!
//! All of the scatter that goes to the target alone is sealed under the key of its own set, and so are its streams, until that key has
//! served for half of what it may. Then a further set is granted, with the target as its only member, and once the target has
//! confirmed it streams go under its key; and so on. Schedules keep sets from outliving their keys
//! ([`SET_CONTENTS_MAX`](crate::limits::SET_CONTENTS_MAX)); streams have no end that is known before.

use std::collections::VecDeque;

use crate::limits::OWN_SETS_MAX;
use crate::wire::control::SetGrant;
use crate::wire::piece::{PieceHeader, seal_piece};
use crate::wire::seal::{Channel, KEY_BYTES, SEAL_BYTES_MAX, SealError, SealKey};

/// The keys for one target.
#[derive(Debug)]
pub struct OwnKeys {
    channel: Channel,
    set: u16,
    own: SealKey,
    /// The newest set that the target has confirmed, and its key.
    later: Option<(u16, SealKey)>,
    /// Grants that the target has yet to confirm; it does so in their order. Those of sets that it shares have nothing here.
    unconfirmed: VecDeque<Option<SetGrant>>,
    /// Sets that were granted for streams so far.
    further: u16,
    rekey_bytes: u64,
}

impl OwnKeys {
    /// With the target's own set, which it has confirmed.
    pub fn new(target: u16, own: &SetGrant) -> Self {
        let channel = Channel::unicast(target);
        OwnKeys {
            channel,
            set: own.set,
            own: SealKey::new(&own.key, channel),
            later: None,
            unconfirmed: VecDeque::new(),
            further: 0,
            rekey_bytes: SEAL_BYTES_MAX / 2,
        }
    }

    /// A new key is due when one has sealed so many bytes, where that is less than half of what it may.
    #[must_use]
    pub fn rekey_after(self, bytes: u64) -> Self {
        OwnKeys { rekey_bytes: bytes.min(SEAL_BYTES_MAX / 2), ..self }
    }

    /// The target's own set.
    pub fn set(&self) -> u16 {
        self.set
    }

    /// Appends a sealed piece of the own set to `out`.
    ///
    /// # Errors
    /// [`SealError`]: the key is used up; `out` is as it was.
    pub fn seal(&mut self, header: &PieceHeader, payload: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        seal_piece(&mut self.own, &PieceHeader { set: self.set, ..*header }, payload, out).map(drop)
    }

    /// Appends a sealed piece of a stream to `out`; its set is filled in here.
    ///
    /// # Errors
    /// [`SealError`]: the target has not confirmed a new key in all the time that the old one had left; `out` is as it was.
    pub fn seal_stream(
        &mut self,
        header: &PieceHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        match &mut self.later {
            Some((set, key)) => {
                seal_piece(key, &PieceHeader { set: *set, ..*header }, payload, out).map(drop)
            }
            None => self.seal(header, payload, out),
        }
    }

    /// Whether a new key is to be drawn, for [`OwnKeys::rekey`].
    pub fn is_rekey_due(&self) -> bool {
        let newest = self.later.as_ref().map_or(&self.own, |(_, key)| key);
        newest.is_worn(self.rekey_bytes)
            && self.further < OWN_SETS_MAX as u16
            && self.unconfirmed.iter().all(Option::is_none)
    }

    /// Takes a new key, which is never used for anything else; the grant is to be sent to the target.
    pub fn rekey(&mut self, key: [u8; KEY_BYTES]) -> SetGrant {
        // Schedules number theirs from below.
        let grant = SetGrant { set: u16::MAX - self.further, key, group: None };
        self.further += 1;
        self.unconfirmed.push_back(Some(grant.clone()));
        grant
    }

    /// Other sets are granted to the target, which it is to confirm too.
    pub fn others_granted(&mut self) {
        self.unconfirmed.push_back(None);
    }

    /// The target has confirmed the oldest grant that it had not.
    pub fn confirmed(&mut self) {
        if let Some(Some(grant)) = self.unconfirmed.pop_front() {
            self.later = Some((grant.set, SealKey::new(&grant.key, self.channel)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;
    use crate::transport::{Outcome, Receiver, ReceiverConfig};
    use crate::wire::piece::PieceKind;
    use crate::wire::seal::OpenKey;

    const SESSION: u64 = 7;
    const TARGET: u16 = 2;

    fn take(receiver: &mut Receiver, grant: &SetGrant) {
        receiver.add_set(grant.set, OpenKey::new(&grant.key, &[Channel::unicast(TARGET)]));
    }

    #[test]
    fn streams_go_on_under_new_keys_and_nothing_else_does() {
        let own = SetGrant { set: TARGET, key: [1; KEY_BYTES], group: None };
        let mut keys = OwnKeys::new(TARGET, &own).rekey_after(3_000);
        let config = ReceiverConfig { session: SESSION, target: TARGET, ..ReceiverConfig::default() };
        let mut receiver = Receiver::new(config, Time::ZERO);
        take(&mut receiver, &own);
        keys.others_granted();
        let mut others = true;
        let mut sets = Vec::new();
        let (mut waits, mut granted) = (None, 0u8);
        for seq in 0..200 {
            let header = PieceHeader::whole(PieceKind::Stream, 0, SESSION, seq, 1_000);
            let mut piece = Vec::new();
            keys.seal_stream(&header, &[5; 1_000], &mut piece).unwrap();
            sets.push(PieceHeader::decode(&piece).unwrap().set);
            match receiver.on_piece(Time::ZERO, &mut piece) {
                Outcome::Stream { seq: at, payload, .. } => assert!(at == seq && payload == [5; 1_000]),
                other => panic!("frame {seq}: {other:?}"),
            }
            if keys.is_rekey_due() {
                granted += 1;
                let grant = keys.rekey([10 + granted; KEY_BYTES]);
                take(&mut receiver, &grant);
                assert!(!keys.is_rekey_due(), "one at a time");
                waits = Some(seq + 4);
            }
            if waits == Some(seq) {
                keys.confirmed();
                // What is confirmed first is what was granted first.
                waits = std::mem::take(&mut others).then_some(seq + 4);
            }
            let mut hello = Vec::new();
            let header = PieceHeader::whole(PieceKind::DataHello, TARGET, SESSION, 0, 1);
            keys.seal(&header, &[0], &mut hello).unwrap();
            assert!(receiver.is_hello(&mut hello, TARGET), "of the own set for ever");
        }
        sets.dedup();
        assert_eq!(sets[..3], [TARGET, u16::MAX, u16::MAX - 1]);
        assert!(sets.len() > 10 && granted as usize >= sets.len() - 1);
        keys.confirmed();
        keys.confirmed();
        keys.confirmed();
        assert!(keys.unconfirmed.is_empty(), "what was not asked changes nothing");
    }
}
