//! How many targets some VMs need at least.

use std::cmp::Reverse;

use crate::placement::model::Rules;
use crate::placement::{TargetId, TargetSet};

/// What some VMs need.
pub(in crate::placement) struct Needed {
    /// Where some of them are pinned.
    pub(super) pinned: TargetSet,
    /// Targets, these included.
    pub(in crate::placement) targets: usize,
}

/// What targets have left beside all that is pinned to them.
pub(in crate::placement) struct Rooms<'a> {
    rules: &'a Rules,
    room: Vec<Room>,
    /// Equal rooms, with how many there are.
    kinds: Vec<(Room, usize)>,
    /// Memory of all VMs, the smallest first, summed up.
    smallest: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Room {
    vms: u32,
    bytes: u64,
}

impl<'a> Rooms<'a> {
    /// `rules` whose pins can be kept.
    pub(in crate::placement) fn new(rules: &'a Rules) -> Self {
        let room = |(vms, bytes): (&u32, &u64)| Room { vms: *vms, bytes: *bytes };
        let mut rooms: Vec<Room> = rules.vms_max.iter().zip(&rules.free).map(room).collect();
        for (vm, pin) in rules.pinned.iter().enumerate() {
            if let Some(pin) = pin {
                let room = &mut rooms[usize::from(*pin)];
                room.vms = room.vms.saturating_sub(1);
                room.bytes = room.bytes.saturating_sub(rules.memory[vm]);
            }
        }
        let mut sorted = rooms.clone();
        sorted.sort();
        let kinds = sorted.chunk_by(|a, b| a == b).map(|kind| (kind[0], kind.len())).collect();
        Rooms { rules, room: rooms, kinds, smallest: sums(rules.memory.clone()) }
    }

    /// VMs that stand together at most.
    pub(super) fn vms_max(&self) -> usize {
        (0..self.rules.targets()).map(|target| self.vms_at(target, 0)).max().unwrap_or(0).max(1)
    }

    /// VMs that a target takes at most, one of them with so much memory.
    pub(super) fn vms_at(&self, target: usize, bytes: u64) -> usize {
        let left = self.rules.free[target].saturating_sub(bytes);
        let others = self.smallest.partition_point(|sum| *sum <= left);
        let vms = if bytes > 0 { others + 1 } else { others };
        vms.min(self.rules.vms_max[target] as usize).min(self.rules.vms())
    }

    pub(in crate::placement) fn needed(&self, vms: &[u16]) -> Needed {
        let (rules, mut pinned) = (self.rules, TargetSet::EMPTY);
        let mut memory = Vec::new();
        for vm in vms.iter().map(|vm| usize::from(*vm)) {
            match rules.pinned[vm] {
                Some(pin) => pinned.insert(TargetId(pin)),
                None => memory.push(rules.memory[vm]),
            }
        }
        let mut left = memory.len();
        let memory = sums(memory);
        let fits = |room: Room| memory.partition_point(|sum| *sum <= room.bytes).min(room.vms as usize);
        for target in pinned.members() {
            left = left.saturating_sub(fits(self.room[usize::from(target.0)]));
        }
        let by_count = pinned.len() + self.fewest(left, fits, pinned);
        let targets = by_count.max(self.apart(vms)).max(1);
        Needed { pinned, targets: targets.min(rules.targets()) }
    }

    /// Targets beside `pinned` that take `left` VMs at least.
    fn fewest(&self, mut left: usize, fits: impl Fn(Room) -> usize, pinned: TargetSet) -> usize {
        let mut kinds: Vec<(usize, usize)> =
            self.kinds.iter().map(|(room, count)| (fits(*room), *count)).collect();
        for target in pinned.members() {
            let room = self.room[usize::from(target.0)];
            let kind = self.kinds.iter().position(|(kind, _)| *kind == room).expect("each room is of a kind");
            kinds[kind].1 -= 1;
        }
        kinds.sort_unstable_by_key(|(vms, _)| Reverse(*vms));
        let mut targets = 0;
        for (vms, count) in kinds {
            if left == 0 || vms == 0 {
                break;
            }
            let used = left.div_ceil(vms).min(count);
            targets += used;
            left = left.saturating_sub(used * vms);
        }
        targets
    }

    /// The most of these VMs that are all to be kept apart.
    fn apart(&self, vms: &[u16]) -> usize {
        if self.rules.apart == 0 {
            return 0;
        }
        let mut counts = vec![0usize; self.rules.apart];
        for vm in vms {
            self.rules.apart_of[usize::from(*vm)].iter().for_each(|group| counts[*group as usize] += 1);
        }
        counts.into_iter().max().unwrap_or(0)
    }
}

/// Ascending, and summed up.
fn sums(mut bytes: Vec<u64>) -> Vec<u64> {
    bytes.sort_unstable();
    let mut sum = 0u64;
    bytes.iter_mut().for_each(|bytes| {
        sum = sum.saturating_add(*bytes);
        *bytes = sum;
    });
    bytes
}
