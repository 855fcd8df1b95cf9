//! Recovery as an agent does it: looks, asks, acts, until something has to be waited for.

use std::time::Duration;

use vmscatter_core::journal::{Entry, SourceStep, Step, TargetStep};
use vmscatter_core::session::recovery::{
    Forced, Heard, Note, SourceNext, SourceQemu, SourceWord, TargetNext, TargetQemu, TargetWord, Word,
    source, source_word, target, target_word,
};

use super::world::{Event, World, journal_id, key};

/// A peer that does not answer is given up after this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where recovery of a guest has come to.
pub enum Stand {
    Ask,
    Wait(Note),
    Over,
}

impl World {
    pub fn recover_all(&mut self, host: usize) {
        for vm in 0..self.plan.vms {
            if self.journal(host).step(&key(vm)).is_some() && !self.is_live(host, vm) {
                self.tally.recovered += u32::from(host == 0);
                let (span, epoch) = (self.delay(), self.epoch(host));
                self.after(span, Event::Recover { host, epoch, vm });
            }
        }
    }

    fn is_live(&self, host: usize, vm: usize) -> bool {
        if host == 0 { self.source.session.is_some() } else { self.targets[host - 1].live.contains(&vm) }
    }

    pub fn recover(&mut self, host: usize, vm: usize) {
        self.proceed(host, vm, Heard::Nothing);
    }

    pub fn answered(&mut self, host: usize, vm: usize, heard: Heard<Word>) {
        self.proceed(host, vm, heard);
    }

    fn proceed(&mut self, host: usize, vm: usize, heard: Heard<Word>) {
        let epoch = self.epoch(host);
        let stand = self.conclude(host, vm, heard, true);
        if self.epoch(host) != epoch {
            return;
        }
        match stand {
            Stand::Over => {}
            Stand::Ask => {
                let word = self.word(host, vm);
                let to = if host == 0 { self.plan.placement[vm] + 1 } else { 0 };
                let span = self.delay();
                self.after(span, Event::Inquiry { from: host, epoch, to, vm, word });
            }
            Stand::Wait(note) => {
                self.notes.insert((host, vm), note);
                let lost = self.guests[vm].hit || self.forced[vm].is_some();
                assert!(
                    lost || !note.is_question(),
                    "VM {vm} is put to the operator, and no QEMU was lost: {note:?}"
                );
                let again = Duration::from_micros(1_000_000 + self.rng.below(4_000_000));
                self.after(again, Event::Recover { host, epoch, vm });
                if self.mended && note.is_question() && self.rng.one_in(3) {
                    self.operator_answers(host, vm);
                }
            }
        }
    }

    pub fn inquired(&mut self, from: usize, epoch: u64, to: usize, vm: usize, word: Word) {
        let reachable = |world: &World| {
            let link = &world.links[from.max(to) - 1];
            !link.cut_to_source && !link.cut_to_target
        };
        let unreachable = Event::Answer { to: from, epoch, vm, heard: Heard::Unreachable };
        if !reachable(self) {
            return self.after(PATIENCE, unreachable);
        }
        if !self.is_up(to) {
            return self.after(Duration::from_millis(1), unreachable);
        }
        let incarnation = self.epoch(to);
        if !self.is_live(to, vm) {
            self.conclude(to, vm, Heard::Word(word), false);
        }
        // It may have ended over the answer, or the network with it.
        if self.epoch(to) != incarnation || !reachable(self) || (!self.mended && self.rng.one_in(20)) {
            return self.after(PATIENCE, unreachable);
        }
        let (word, span) = (self.word(to, vm), self.delay());
        self.after(span, Event::Answer { to: from, epoch, vm, heard: Heard::Word(word) });
    }

    /// What a host says of a guest.
    fn word(&mut self, host: usize, vm: usize) -> Word {
        let live = self.is_live(host, vm);
        match self.journal(host).step(&key(vm)) {
            _ if live && host == 0 => Word::Source(SourceWord::Busy),
            _ if live => Word::Target(TargetWord::Busy),
            None if host == 0 => Word::Source(SourceWord::Unknown { journal: journal_id(0) }),
            None => Word::Target(TargetWord::Unknown),
            Some(Step::Source(step)) => Word::Source(source_word(step, self.guests[vm].look_source())),
            Some(Step::Target(step)) => Word::Target(target_word(step, self.guests[vm].look_target())),
        }
    }

    /// Acts until something has to be asked or waited for. `asking`: what was heard is old once something was done.
    fn conclude(&mut self, host: usize, vm: usize, mut heard: Heard<Word>, asking: bool) -> Stand {
        let epoch = self.epoch(host);
        loop {
            if !self.is_up(host) || self.epoch(host) != epoch || self.is_live(host, vm) {
                return Stand::Over;
            }
            let hidden = self.plan.busy_monitors && !self.mended && self.rng.one_in(8);
            let stand = match self.journal(host).step(&key(vm)) {
                None => Some(Stand::Over),
                Some(Step::Source(step)) => {
                    let qemu = if hidden { SourceQemu::Unknown } else { self.guests[vm].look_source() };
                    let next = source(step, self.guests[vm].paused, qemu, at_source(heard));
                    self.do_source(vm, step, next)
                }
                Some(Step::Target(step)) => {
                    let alive = self.guests[vm].look_target() != TargetQemu::Gone;
                    let qemu =
                        if hidden && alive { TargetQemu::Unknown } else { self.guests[vm].look_target() };
                    let next = target(step, qemu, at_target(heard), &journal_id(0));
                    self.do_target(host, vm, step, next)
                }
            };
            if let Some(stand) = stand {
                return stand;
            }
            if asking {
                heard = Heard::Nothing;
            }
        }
    }

    /// `None`: something was done, so look again.
    fn do_source(&mut self, vm: usize, step: SourceStep, next: SourceNext) -> Option<Stand> {
        match next {
            SourceNext::Ask => return Some(Stand::Ask),
            SourceNext::Wait(note) => return Some(Stand::Wait(note)),
            SourceNext::Cancel => return Some(Stand::Wait(Note::QemuBusy)),
            _ if self.act(0) => return None,
            SourceNext::Stay { cont } => {
                self.guests[vm].source.changed = false;
                if self.act(0) {
                    return None;
                }
                if cont {
                    self.guests[vm].runs_at_source(vm);
                }
                if step != SourceStep::Forced && !self.act(0) {
                    self.source_step(vm, SourceStep::Aborted);
                }
            }
            SourceNext::Commit => self.source_step(vm, SourceStep::Committed),
            SourceNext::Leave => {
                self.guests[vm].end_source_if_alive(vm, self.forced[vm].is_some());
                if !self.act(0) {
                    self.source_step(vm, SourceStep::Done);
                }
            }
            SourceNext::Yield => {
                self.guests[vm].source.running = false;
                self.source_step(vm, SourceStep::Done);
            }
            SourceNext::Close => self.source.journal.append(key(vm), Entry::Closed),
        }
        None
    }

    fn source_step(&mut self, vm: usize, step: SourceStep) {
        self.source.journal.append(key(vm), Entry::Step(Step::Source(step)));
        self.act(0);
    }

    fn do_target(&mut self, host: usize, vm: usize, step: TargetStep, next: TargetNext) -> Option<Stand> {
        let forced = self.forced[vm] == Some(Forced::Source);
        match next {
            TargetNext::Ask => return Some(Stand::Ask),
            TargetNext::Wait(note) => return Some(Stand::Wait(note)),
            _ if self.act(host) => return None,
            TargetNext::Abort => {
                if step != TargetStep::Aborted {
                    self.target_step(host, vm, TargetStep::Aborted);
                }
                if self.is_up(host) {
                    self.guests[vm].end_target(vm, true, forced);
                }
            }
            TargetNext::Commit => self.target_step(host, vm, TargetStep::Committed),
            TargetNext::Cont => {
                let refused = !self.mended && step == TargetStep::Committed && self.rng.one_in(20);
                if refused && self.guests[vm].source.alive && !self.guests[vm].paused {
                    self.guests[vm].asked_back = true;
                    self.target_step(host, vm, TargetStep::Aborted);
                    return None;
                }
                self.guests[vm].runs_at_target(vm);
                if self.act(host) {
                    return None;
                }
                // A paused guest looks the same before and after: the journal tells.
                if step != TargetStep::Forced || self.guests[vm].paused {
                    self.target_step(host, vm, TargetStep::Running);
                }
            }
            TargetNext::Ran => self.target_step(host, vm, TargetStep::Running),
            TargetNext::Yield => {
                if let Some(twin) = &mut self.guests[vm].target {
                    twin.running = false;
                }
                self.targets[host - 1].journal.append(key(vm), Entry::Closed);
            }
            TargetNext::Discard => {
                self.guests[vm].end_target(vm, false, forced);
                self.targets[host - 1].journal.append(key(vm), Entry::Closed);
            }
            TargetNext::Close => self.targets[host - 1].journal.append(key(vm), Entry::Closed),
        }
        None
    }

    fn target_step(&mut self, host: usize, vm: usize, step: TargetStep) {
        if self.is_up(host) {
            self.targets[host - 1].journal.append(key(vm), Entry::Step(Step::Target(step)));
            self.act(host);
        }
    }
}

fn at_source(heard: Heard<Word>) -> Heard<TargetWord> {
    match heard {
        Heard::Word(Word::Target(word)) => Heard::Word(word),
        Heard::Word(Word::Source(_)) => panic!("a source heard a source"),
        Heard::Nothing => Heard::Nothing,
        Heard::Unreachable => Heard::Unreachable,
    }
}

fn at_target(heard: Heard<Word>) -> Heard<SourceWord> {
    match heard {
        Heard::Word(Word::Source(word)) => Heard::Word(word),
        Heard::Word(Word::Target(_)) => panic!("a target heard a target"),
        Heard::Nothing => Heard::Nothing,
        Heard::Unreachable => Heard::Unreachable,
    }
}
