//! A target's part in target sets: their keys, the groups that serve them, and which of those it has joined.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::TargetAction;
use crate::limits::{GROUPS_MAX, OWN_SETS_MAX, SCHEDULE_SETS_MAX, SESSION_TARGETS_MAX, SETS_SPLIT_MAX};
use crate::transport::Receiver;
use crate::wire::control::{Message, SetGrant};
use crate::wire::seal::{Channel, OpenKey};

/// Every set that a schedule may have, every target's own, and those that follow a worn one's.
const SETS_MAX: usize = SCHEDULE_SETS_MAX + SETS_SPLIT_MAX + SESSION_TARGETS_MAX + OWN_SETS_MAX;
const _: () = assert!(SETS_MAX <= u16::MAX as usize);

/// What the source has granted, and what has come of it.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    /// The groups of the granted sets; a set that comes over TCP only has none.
    groups: HashMap<u16, Option<SocketAddr>>,
    /// Groups that are joined, or are being joined.
    joined: HashSet<SocketAddr>,
    /// Sets on whose groups a probe has arrived since they were joined.
    heard: HashSet<u16>,
}

impl Memberships {
    /// Takes the keys of sets into use.
    pub(super) fn grant(
        &mut self,
        grants: &[SetGrant],
        receiver: &mut Receiver,
    ) -> Result<TargetAction, &'static str> {
        if self.groups.len() + grants.len() > SETS_MAX {
            return Err("too many sets");
        }
        let own = Channel::unicast(receiver.target());
        for grant in grants {
            let key = OpenKey::new(&grant.key, &[Channel::MULTICAST, Channel::PROBE, Channel::RELAY, own]);
            receiver.add_set(grant.set, key);
            self.groups.insert(grant.set, grant.group);
        }
        Ok(TargetAction::Send(Message::Granted))
    }

    fn group_of(&self, set: u16) -> Result<SocketAddr, &'static str> {
        self.groups.get(&set).copied().flatten().ok_or("a set that has no group, or was not granted")
    }

    pub(super) fn join(&mut self, set: u16) -> Result<TargetAction, &'static str> {
        let group = self.group_of(set)?;
        if self.joined.contains(&group) {
            return Ok(self.joined(set, None));
        }
        if self.joined.len() >= GROUPS_MAX {
            let error = Some(format!("this host is in {GROUPS_MAX} groups of the session already"));
            return Ok(TargetAction::Send(Message::Joined { set, error }));
        }
        self.joined.insert(group);
        Ok(TargetAction::Join { set, group })
    }

    /// The driver has joined the set's group, or can't.
    pub(super) fn joined(&mut self, set: u16, error: Option<String>) -> TargetAction {
        if let (Some(_), Ok(group)) = (&error, self.group_of(set)) {
            self.joined.remove(&group);
        }
        // What was heard before may have come by a membership that has ended.
        self.heard.remove(&set);
        TargetAction::Send(Message::Joined { set, error })
    }

    pub(super) fn leave(&mut self, set: u16) -> Result<Option<TargetAction>, &'static str> {
        let group = self.group_of(set)?;
        Ok(self.joined.remove(&group).then_some(TargetAction::Leave { group }))
    }

    /// A probe has arrived on the set's group; the source is told of the first.
    pub(super) fn heard(&mut self, set: u16) -> Option<TargetAction> {
        self.heard.insert(set).then_some(TargetAction::Send(Message::Heard { set }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;
    use crate::transport::ReceiverConfig;

    fn grant(set: u16, group: Option<u8>) -> SetGrant {
        let group = group.map(|last| SocketAddr::from(([239, 0, 0, last], 4000)));
        SetGrant { set, key: [set as u8; 32], group }
    }

    fn text(action: Result<TargetAction, &'static str>) -> String {
        action.map_or_else(str::to_owned, |action| format!("{action:?}"))
    }

    #[test]
    fn sets_share_a_group_one_after_the_other() {
        let mut receiver = Receiver::new(ReceiverConfig::default(), Time::ZERO);
        let mut memberships = Memberships::default();
        let grants = [grant(1, Some(7)), grant(2, Some(7)), grant(3, None)];
        assert!(text(memberships.grant(&grants, &mut receiver)).contains("Granted"));
        assert_eq!(text(memberships.join(1)), "Join { set: 1, group: 239.0.0.7:4000 }");
        // There is nothing to join for the second, and one leave ends both.
        assert_eq!(text(memberships.join(2)), "Send(Joined { set: 2, error: None })");
        assert!(matches!(memberships.leave(2), Ok(Some(TargetAction::Leave { .. }))));
        assert!(matches!(memberships.leave(1), Ok(None)));
        assert!(matches!(memberships.join(1), Ok(TargetAction::Join { .. })), "it can be joined again");
        for set in [3, 4] {
            assert!(memberships.join(set).is_err() && memberships.leave(set).is_err());
        }
        assert!(memberships.heard(1).is_some() && memberships.heard(1).is_none());
        memberships.joined(1, None);
        assert!(memberships.heard(1).is_some(), "it is told anew once the group has been joined");
    }

    #[test]
    fn what_could_not_be_joined_can_be_tried_again() {
        let mut receiver = Receiver::new(ReceiverConfig::default(), Time::ZERO);
        let mut memberships = Memberships::default();
        memberships.grant(&[grant(1, Some(7))], &mut receiver).unwrap();
        memberships.join(1).unwrap();
        memberships.joined(1, Some("no such interface".to_owned()));
        assert!(matches!(memberships.leave(1), Ok(None)));
        assert!(matches!(memberships.join(1), Ok(TargetAction::Join { .. })));
    }

    #[test]
    fn groups_and_sets_are_bounded() {
        let mut receiver = Receiver::new(ReceiverConfig::default(), Time::ZERO);
        let mut memberships = Memberships::default();
        let grants: Vec<SetGrant> = (0..=GROUPS_MAX as u8).map(|at| grant(at.into(), Some(at))).collect();
        memberships.grant(&grants, &mut receiver).unwrap();
        for set in 0..GROUPS_MAX as u16 {
            assert!(matches!(memberships.join(set), Ok(TargetAction::Join { .. })));
        }
        assert!(text(memberships.join(GROUPS_MAX as u16)).contains("already"));
        let many: Vec<SetGrant> = (0..SETS_MAX as u16).map(|set| grant(set, None)).collect();
        assert!(memberships.grant(&many, &mut receiver).is_err());
    }
}
