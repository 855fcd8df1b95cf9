//! The operator's words, and what must hold when all is over.

use vmscatter_core::journal::{Entry, SourceStep, Step};
use vmscatter_core::session::recovery::{Forced, SourceQemu, TargetQemu, force_at_source, force_at_target};

use super::qemu::Guest;
use super::world::{Event, World, key};

impl Guest {
    pub fn end_source_if_alive(&mut self, vm: usize, forced: bool) {
        if self.source.alive {
            self.end_source(vm, forced);
        }
    }
}

impl World {
    /// While one side is down, the operator decides for the other, having made sure that the guest does not run there.
    pub fn operator_decides(&mut self) {
        for vm in 0..self.plan.vms {
            let (guest, at) = (&self.guests[vm], self.plan.placement[vm]);
            if self.source.session.is_some() || self.targets[at].live.contains(&vm) {
                continue;
            }
            let stopped = matches!(guest.look_source(), SourceQemu::Gone | SourceQemu::Completed);
            let stands = guest.look_target() != TargetQemu::Running && !guest.ran_at_target;
            let dead = guest.look_target() == TargetQemu::Gone;
            let before = self.tally.forced;
            match (self.source.up, self.targets[at].up) {
                (false, true) if stopped && guest.holds_target() => self.force(at + 1, vm, Forced::Target),
                (true, false) if stands && guest.holds_source() => self.force(0, vm, Forced::Source),
                _ => {}
            }
            if self.tally.forced > before {
                // Whose word it was sees to it that the two can talk when the other comes back, and more so where
                // there is a copy that only waits for that.
                self.calm |= !dead;
                self.mend_links();
            }
        }
    }

    fn mend_links(&mut self) {
        self.uncut = true;
        for target in 0..self.plan.targets {
            self.heal(target);
        }
    }

    /// A question that the two sides can't answer; the operator finds out which copy is good.
    pub fn operator_answers(&mut self, host: usize, vm: usize) {
        let guest = &self.guests[vm];
        let forced = match (guest.holds_target(), guest.holds_source()) {
            (true, _) => Forced::Target,
            (false, true) => Forced::Source,
            (false, false) if guest.ran_at_target => Forced::Target,
            (false, false) => Forced::Source,
        };
        self.force(host, vm, forced);
    }

    fn force(&mut self, host: usize, vm: usize, forced: Forced) {
        let step = match self.journal(host).step(&key(vm)) {
            Some(Step::Source(step)) => {
                let qemu = self.guests[vm].look_source();
                force_at_source(step, qemu, forced).ok().map(Step::Source)
            }
            Some(Step::Target(step)) => {
                let qemu = self.guests[vm].look_target();
                force_at_target(step, qemu, forced).ok().map(Step::Target)
            }
            None => None,
        };
        let Some(step) = step else { return };
        self.forced[vm] = Some(forced);
        self.tally.forced += 1;
        match step {
            Step::Source(SourceStep::Done) => self.guests[vm].end_source_if_alive(vm, true),
            Step::Source(SourceStep::Forced) => self.guests[vm].source.changed = false,
            _ => {}
        }
        self.journal_mut(host).append(key(vm), Entry::Step(step));
        let epoch = self.epoch(host);
        self.after(std::time::Duration::ZERO, Event::Recover { host, epoch, vm });
    }

    pub fn check_ends(&mut self) {
        for (vm, guest) in self.guests.iter().enumerate() {
            let twin = guest.target.as_ref().is_some_and(|twin| twin.alive);
            let (here, there) = (guest.holds_source(), guest.holds_target());
            let what = format!("VM {vm}: {guest:?}, operator: {:?}", self.forced[vm]);
            assert!(!guest.source.running || here, "{what}");
            if guest.ran_at_target {
                self.tally.moved += 1;
                assert!(!guest.source.alive, "the source QEMU is left: {what}");
                let runs = guest.target.as_ref().is_some_and(|twin| twin.running);
                assert!(runs || guest.paused || guest.hit, "it runs nowhere: {what}");
            } else if here {
                self.tally.stayed += 1;
                assert!(guest.source.running || guest.paused, "it runs nowhere: {what}");
                assert!(!twin, "its twin is left: {what}");
                assert!(!guest.source.changed, "its parameters are not put back: {what}");
            } else {
                self.tally.lost += 1;
                assert!(guest.hit && !there, "it is lost: {what}");
                assert!(!twin, "its twin is left: {what}");
            }
        }
    }
}
