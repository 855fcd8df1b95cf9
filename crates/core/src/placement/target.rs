//! Targets and sets of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::SESSION_TARGETS_MAX;

/// A target, as the session numbers it: below [`SESSION_TARGETS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetId(pub u8);

/// Each VM's target, in the session's order of VMs. `None`, or beyond the end: the VM stays where it is.
pub type Placement = [Option<TargetId>];

/// A set of targets. Ordered as the 128-bit number whose bit `n` is target `n`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetSet(pub u128);

const _: () = assert!(SESSION_TARGETS_MAX == u128::BITS as usize);

impl TargetSet {
    /// The set without members.
    pub const EMPTY: TargetSet = TargetSet(0);

    /// The set of one target.
    ///
    /// # Panics
    /// If the target's number is not below [`SESSION_TARGETS_MAX`].
    pub fn single(target: TargetId) -> Self {
        TargetSet(1u128.checked_shl(u32::from(target.0)).expect("a target's number is below the limit"))
    }

    /// Adds a target; panics as [`TargetSet::single`] does.
    pub fn insert(&mut self, target: TargetId) {
        self.0 |= TargetSet::single(target).0;
    }

    /// How many members.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it has no members.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `target` is a member.
    pub fn contains(self, target: TargetId) -> bool {
        1u128.checked_shl(u32::from(target.0)).is_some_and(|bit| self.0 & bit != 0)
    }

    /// The members, ascending.
    pub fn members(self) -> impl Iterator<Item = TargetId> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let lowest = (left != 0).then(|| left.trailing_zeros() as u8)?;
            left &= left - 1;
            Some(TargetId(lowest))
        })
    }
}

impl FromIterator<TargetId> for TargetSet {
    fn from_iter<I: IntoIterator<Item = TargetId>>(targets: I) -> Self {
        let mut set = TargetSet::EMPTY;
        targets.into_iter().for_each(|target| set.insert(target));
        set
    }
}

impl fmt::Display for TargetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, target) in self.members().enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { "," }, target.0)?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for TargetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_ascending() {
        let set: TargetSet = [127, 0, 64, 3, 64].map(TargetId).into_iter().collect();
        assert_eq!(set.members().map(|target| target.0).collect::<Vec<_>>(), [0, 3, 64, 127]);
        assert_eq!(set.len(), 4);
        assert_eq!(set.to_string(), "{0,3,64,127}");
        assert!(set.contains(TargetId(127)) && !set.contains(TargetId(1)) && !set.contains(TargetId(128)));
        assert!(TargetSet::EMPTY.is_empty() && TargetSet::EMPTY.to_string() == "{}");
    }
}
