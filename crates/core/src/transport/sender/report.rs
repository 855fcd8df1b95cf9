//! What receivers say: acknowledgements and losses.

use super::{Sender, SenderEvent};
use crate::time::Time;
use crate::transport::{REPAIR_COLLECT, TransportError, mask_of};
use crate::wire::control::{FrameGap, LinkCounters, Report};

impl Sender {
    /// Takes in a target's report.
    ///
    /// # Errors
    /// [`TransportError`]: the report is nonsense, and the caller ends that peer; what stood in it before the
    /// nonsense has been taken in.
    pub fn on_report(&mut self, target: u16, report: &Report, now: Time) -> Result<(), TransportError> {
        if !self.targets.contains_key(&target) {
            return Err(TransportError::UnknownTarget);
        }
        let mask = mask_of(target);
        for (set, below) in &report.seen {
            let known = self.sets.get(set).filter(|set| set.members & mask != 0);
            if known.is_none_or(|set| *below > set.next_number) {
                return Err(TransportError::Seen(*set));
            }
        }
        for (first, last) in &report.written {
            self.acknowledged(target, *first, *last, now)?;
        }
        self.look_for_silence(target, report, now);
        let state = self.targets.get_mut(&target).expect("checked above");
        state.pace.measure(now);
        if let Some(sample) = state.path.on_report(now, report, &self.history) {
            self.congestion.on_sample(now, target, &sample);
        }
        for gap in &report.gaps {
            self.missing(target, gap, now)?;
        }
        // What this report says may complete the picture of what others have reported.
        self.decide_at = (!self.pending.is_empty()).then_some(now);
        Ok(())
    }

    /// Takes in what a target's link has brought.
    pub fn on_link_counters(&mut self, target: u16, counters: &LinkCounters, now: Time) {
        let Some(state) = self.targets.get_mut(&target) else { return };
        if let Some(traffic) = state.path.on_link_counters(counters) {
            self.congestion.on_traffic(now, target, traffic);
        }
    }

    fn acknowledged(&mut self, target: u16, first: u64, last: u64, now: Time) -> Result<(), TransportError> {
        let (mask, error) = (mask_of(target), TransportError::Acknowledges(first, last));
        if first > last {
            return Err(error);
        }
        // Every number of the range must be open at the target, so the range is no longer than the window.
        let open = self.frames.range_mut(first..=last);
        let mut expected = first;
        let mut acked = Vec::new();
        for (number, frame) in open {
            if *number != expected || frame.waiting & frame.told & mask == 0 {
                return Err(error);
            }
            expected = expected.wrapping_add(1);
            acked.push(*number);
        }
        if acked.len() as u64 != (last - first).saturating_add(1) {
            return Err(error);
        }
        for number in acked {
            let frame = self.frames.get_mut(&number).expect("found above");
            frame.waiting &= !mask;
            let (begun, bytes) = (frame.begun.unwrap_or(now), frame.body.len());
            let settled = frame.waiting == 0;
            let state = self.target(target);
            state.heard = now;
            state.settle(number);
            state.pace.took(now, begun, bytes);
            self.events.push_back(SenderEvent::Acked { frame: number, target });
            if settled {
                self.forget(number);
            }
        }
        Ok(())
    }

    /// Takes note of what the target misses of a frame, as far as it can't be under way.
    fn missing(&mut self, target: u16, gap: &FrameGap, now: Time) -> Result<(), TransportError> {
        let mask = mask_of(target);
        let open = self.frames.get_mut(&gap.frame).filter(|open| open.waiting & open.told & mask != 0);
        let Some(open) = open else { return Err(TransportError::Gap(gap.frame)) };
        let state = self.targets.get_mut(&target).expect("the caller has looked");
        let (seen, loss_delay) = (state.path.seen_below(open.set), state.path.loss_delay());
        let mut is_dropped = false;
        let all = [(0, open.count - 1)];
        let ranges = if gap.pieces.is_empty() { &all[..] } else { &gap.pieces[..] };
        let mut next = 0;
        for (first, last) in ranges {
            if *first < next || last < first || *last >= open.count {
                return Err(TransportError::Ranges(gap.frame));
            }
            next = last + 1;
            if open.unicast_left & mask != 0 {
                continue;
            }
            for index in *first..=*last {
                let repair = open.repair.get(&index).copied().unwrap_or_default();
                if (repair.missing | repair.unicast_queued) & mask != 0 || repair.queued {
                    continue;
                }
                let unicast_at = match (repair.unicast & mask, open.by_unicast & mask) {
                    (0, 0) => None,
                    (0, _) => Some(open.unicast_at),
                    _ => Some(repair.unicast_at),
                };
                let lost = if let Some(at) = unicast_at {
                    let lost = state.is_dropped(now, gap.frame, at);
                    is_dropped |= lost;
                    lost
                } else {
                    let sent = open.sent[usize::from(index)];
                    seen > sent.number || now.since(sent.at) >= loss_delay
                };
                if lost {
                    open.repair.entry(index).or_default().missing |= mask;
                    self.pending.entry((gap.frame, index)).or_insert(now + REPAIR_COLLECT);
                    self.counters.losses += 1;
                }
            }
        }
        if is_dropped {
            // It occupies the window no longer.
            state.take_in_flight(gap.frame);
            self.blame_hop(target, gap.frame);
        }
        Ok(())
    }
}
