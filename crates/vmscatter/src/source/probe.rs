//! Finding out which members of a set multicast reaches, before anything is sent by it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use vmscatter_core::wire::piece::{PieceHeader, PieceKind, seal_piece};
use vmscatter_core::wire::seal::{Channel, SealKey};

use super::scatter::SetLink;

/// A member that has heard no probe by then is served over TCP: joins take switches a moment, and no more.
const DEADLINE: Duration = Duration::from_millis(1500);
const INTERVAL: Duration = Duration::from_millis(20);
const PROBE_BYTES: usize = 16;

/// Probes on the groups of all sets, until every member has heard one or time is up.
#[derive(Debug)]
pub(super) struct Probing {
    deadline: Instant,
    next: Instant,
    /// Sets and members that have heard nothing yet.
    waiting: HashSet<(u16, u16)>,
    keys: HashMap<u16, SealKey>,
}

impl Probing {
    /// For these sets, each of which has a group.
    pub(super) fn new<'a>(sets: impl Iterator<Item = &'a SetLink>, now: Instant) -> Probing {
        let (mut waiting, mut keys) = (HashSet::new(), HashMap::new());
        for link in sets {
            waiting.extend(link.set.members().map(|target| (link.number, u16::from(target.0))));
            keys.insert(link.number, SealKey::new(&link.key, Channel::PROBE));
        }
        Probing { deadline: now + DEADLINE, next: now, waiting, keys }
    }

    /// A probe on this set's group has reached this member.
    pub(super) fn heard(&mut self, set: u16, target: u16) {
        self.waiting.remove(&(set, target));
    }

    /// Every member has heard one.
    pub(super) fn is_over(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The sets and members that were not reached, once time is up.
    pub(super) fn unreached(&mut self, now: Instant) -> Option<HashSet<(u16, u16)>> {
        (now >= self.deadline).then(|| std::mem::take(&mut self.waiting))
    }

    /// The probes that are due: a sealed piece for each set that has somebody waiting.
    pub(super) fn due(&mut self, now: Instant, session: u64) -> Vec<(u16, Vec<u8>)> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + INTERVAL;
        let sets: HashSet<u16> = self.waiting.iter().map(|(set, _)| *set).collect();
        let probe = |set: u16| {
            let key = self.keys.get_mut(&set)?;
            let header = PieceHeader::whole(PieceKind::Probe, set, session, 0, PROBE_BYTES);
            let mut piece = Vec::new();
            seal_piece(key, &header, &[0; PROBE_BYTES], &mut piece).ok()?;
            Some((set, piece))
        };
        sets.into_iter().filter_map(probe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmscatter_core::placement::TargetSet;

    #[test]
    fn probes_go_on_until_all_have_heard_or_time_is_up() {
        let set = SetLink { number: 7, set: TargetSet(0b101), key: [1; 32], group: None };
        let start = Instant::now();
        let mut probing = Probing::new([&set].into_iter(), start);
        assert_eq!(probing.due(start, 1).len(), 1);
        assert!(probing.due(start, 1).is_empty(), "not before the interval is over");
        probing.heard(7, 0);
        assert!(!probing.is_over());
        assert_eq!(probing.due(start + INTERVAL, 1).len(), 1);
        assert!(probing.unreached(start + INTERVAL).is_none());
        assert_eq!(probing.unreached(start + DEADLINE), Some(HashSet::from([(7, 2)])));
        let mut probing = Probing::new([&set].into_iter(), start);
        probing.heard(7, 0);
        probing.heard(7, 2);
        assert!(probing.is_over());
        assert!(probing.due(start + INTERVAL, 1).is_empty());
    }
}
