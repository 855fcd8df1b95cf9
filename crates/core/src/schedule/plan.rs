//! Contents by target set.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::classes::Reach;
use super::frames::Frames;
use crate::index::Contents;
use crate::limits::{SCHEDULE_SETS_MAX, SCHEDULE_SETS_SEEN_MAX, SET_CONTENTS_MAX};
use crate::page::PAGE_SIZE;
use crate::placement::{Placement, TargetSet};
use crate::wire::seal::SEAL_PACKETS_MAX;

/// A datagram's payload at the least MTU; keys are to last for twice a set's contents, so that repairs have room too.
const DATAGRAM_PAYLOAD_MIN: usize = 1_196;
const _: () = assert!((2 * SET_CONTENTS_MAX * PAGE_SIZE / DATAGRAM_PAYLOAD_MIN) as u64 <= SEAL_PACKETS_MAX);

/// All that is sent before the streams flow, 4 bytes a content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Sets of several targets, the one with the most contents first, then sets of one target, likewise. One with more than
    /// [`SET_CONTENTS_MAX`] stands several times: a set's keys do not last for ever.
    pub sets: Vec<SetPlan>,
}

/// What goes to one set of targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPlan {
    /// The targets.
    pub set: TargetSet,
    /// Numbers of contents, in the order of their first addresses, so that guests' memory is read from its
    /// start to its end.
    pub contents: Vec<u32>,
}

impl Schedule {
    /// Schedules each content that goes to its targets more than once.
    ///
    /// Sets beyond [`SCHEDULE_SETS_MAX`], which guests could bring about on purpose, are left out, the
    /// smallest first: their contents go by the streams, as unique pages do.
    pub fn new(contents: &Contents, placement: &Placement) -> Self {
        Self::split(contents, placement, SET_CONTENTS_MAX)
    }

    /// The same, with so many contents of a set of several targets at most (one or more).
    pub fn split(contents: &Contents, placement: &Placement, contents_max: usize) -> Self {
        let mut sets = sets_in_use(contents, placement);
        sets.sort_unstable_by_key(|(set, count)| (Reverse(*count), *set));
        sets.truncate(SCHEDULE_SETS_MAX);
        sets.sort_by_key(|(set, _)| set.len() == 1);
        let place_of: HashMap<TargetSet, usize> = sets.iter().map(|(set, _)| *set).zip(0..).collect();
        let empty = |(set, count)| SetPlan { set, contents: Vec::with_capacity(count as usize) };
        let mut plans: Vec<SetPlan> = sets.into_iter().map(empty).collect();
        for id in contents.in_address_order() {
            let reach = Reach::of(contents.get(id), placement);
            if let Some(place) = place_of.get(&reach.targets).filter(|_| reach.pages > 1) {
                plans[*place].contents.push(id);
            }
        }
        // A target's own set is not one of the schedule's, and is as long as it is.
        let parts = |plan: SetPlan| -> Vec<SetPlan> {
            if plan.set.len() == 1 || plan.contents.len() <= contents_max {
                return vec![plan];
            }
            let part = |contents: &[u32]| SetPlan { set: plan.set, contents: contents.to_vec() };
            plan.contents.chunks(contents_max).map(part).collect()
        };
        Schedule { sets: plans.into_iter().flat_map(parts).collect() }
    }

    /// The sets of several targets: what is sent by multicast.
    pub fn multicast(&self) -> &[SetPlan] {
        &self.sets[..self.singles_start()]
    }

    /// The sets of one target: ISVST and IMVST.
    pub fn singles(&self) -> &[SetPlan] {
        &self.sets[self.singles_start()..]
    }

    /// Contents in all sets.
    pub fn contents(&self) -> u64 {
        self.sets.iter().map(|plan| plan.contents.len() as u64).sum()
    }

    fn singles_start(&self) -> usize {
        self.sets.partition_point(|plan| plan.set.len() > 1)
    }
}

impl SetPlan {
    /// Cuts the contents into frames; `contents` is what the schedule was made from.
    pub fn frames<'a>(&'a self, contents: &'a Contents) -> Frames<'a> {
        Frames::new(self.set, &self.contents, contents)
    }
}

/// The target sets of all contents that are sent, with how many contents each has.
fn sets_in_use(contents: &Contents, placement: &Placement) -> Vec<(TargetSet, u32)> {
    let mut counts: HashMap<TargetSet, u32> = HashMap::new();
    for (_, content) in contents.iter() {
        let reach = Reach::of(content, placement);
        if reach.pages > 1 && (counts.len() < SCHEDULE_SETS_SEEN_MAX || counts.contains_key(&reach.targets)) {
            *counts.entry(reach.targets).or_default() += 1;
        }
    }
    counts.into_iter().collect()
}
