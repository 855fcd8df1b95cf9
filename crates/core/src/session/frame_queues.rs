//! Frames that have not been read yet, by target set: which comes next, as the addresses allow.

use std::collections::{HashMap, VecDeque};

use super::Addresses;
use crate::schedule::FramePlan;

/// The frames of all sets.
#[derive(Debug, Default)]
pub struct FrameQueues {
    /// Of sets that an address serves, by their number on the wire.
    served: HashMap<u16, Queue>,
    /// Of sets whose frames go over TCP, in their order.
    rest: VecDeque<(u16, FramePlan)>,
}

#[derive(Debug, Default)]
struct Queue {
    left: VecDeque<FramePlan>,
    /// Frames that were taken and are not given to the sender yet.
    on_the_way: usize,
}

impl FrameQueues {
    /// Adds a set's frames; `is_served` says whether an address serves the set.
    pub fn add(&mut self, set: u16, frames: impl Iterator<Item = FramePlan>, is_served: bool) {
        if is_served {
            self.served.entry(set).or_default().left.extend(frames);
        } else {
            self.rest.extend(frames.map(|frame| (set, frame)));
        }
    }

    /// The next frame and its set: of the most urgent set that may be sent, else of those that go over TCP; `None` where
    /// there is nothing left, or only for sets whose turn has not come. Then call [`FrameQueues::given`].
    pub fn take(&mut self, addresses: &Addresses) -> Option<(u16, FramePlan)> {
        for set in addresses.ready() {
            let Some(queue) = self.served.get_mut(&set) else { continue };
            if let Some(frame) = queue.left.pop_front() {
                queue.on_the_way += 1;
                return Some((set, frame));
            }
        }
        self.rest.pop_front()
    }

    /// A frame that was taken has been given to the sender, or has turned out to hold nothing.
    pub fn given(&mut self, set: u16) {
        if let Some(queue) = self.served.get_mut(&set) {
            queue.on_the_way -= 1;
        }
    }

    /// Tells the addresses which of the sets that are being sent have no more frames.
    pub fn mark_exhausted(&self, addresses: &mut Addresses) {
        let is_over = |set: &u16| {
            self.served.get(set).is_none_or(|queue| queue.left.is_empty() && queue.on_the_way == 0)
        };
        let over: Vec<u16> = addresses.ready().filter(is_over).collect();
        over.into_iter().for_each(|set| addresses.exhausted(set));
    }

    /// Whether every frame has been taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.served.values().all(|queue| queue.left.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::TargetSet;
    use crate::session::{AddressAction, AddressSet};
    use crate::time::Time;
    use crate::transport::{Sender, SenderConfig};

    fn frames(count: usize) -> impl Iterator<Item = FramePlan> {
        let frame = FramePlan { set: TargetSet::EMPTY, parts: Vec::new() };
        std::iter::repeat_n(frame, count)
    }

    fn take(queues: &mut FrameQueues, addresses: &Addresses) -> Option<u16> {
        queues.take(addresses).map(|(set, _)| set)
    }

    #[test]
    fn sets_wait_for_their_turn_and_the_rest_fills_in() {
        let mut queues = FrameQueues::default();
        queues.add(1, frames(2), true);
        queues.add(2, frames(1), true);
        queues.add(3, frames(1), false);
        let mut sender = Sender::new(SenderConfig::default(), Time::ZERO);
        let set = |number| AddressSet { number, members: TargetSet(0b11) };
        (1..3).for_each(|set| sender.add_set(set, &[0, 1], true));
        let mut addresses = Addresses::new([vec![set(1), set(2)]], vec![1472]);
        addresses.advance(Time::ZERO, &mut sender);
        while let Some(AddressAction::Send { target, .. }) = addresses.poll_action() {
            addresses.joined(Time::ZERO, target, 1, None);
            addresses.heard(target, 1);
        }
        addresses.advance(Time::ZERO, &mut sender);
        assert_eq!([take(&mut queues, &addresses), take(&mut queues, &addresses)], [Some(1), Some(1)]);
        assert_eq!(take(&mut queues, &addresses), Some(3), "set 2 has to wait");
        assert_eq!(take(&mut queues, &addresses), None);
        queues.given(3);
        queues.given(1);
        queues.mark_exhausted(&mut addresses);
        addresses.advance(Time::ZERO, &mut sender);
        assert_eq!(take(&mut queues, &addresses), None, "one of set 1 is still on the way");
        queues.given(1);
        queues.mark_exhausted(&mut addresses);
        addresses.advance(Time::ZERO, &mut sender);
        addresses.advance(Time::ZERO, &mut sender);
        assert!(!queues.is_empty());
        assert_eq!(take(&mut queues, &addresses), Some(2), "its members are there already");
        assert!(queues.is_empty());
    }
}
