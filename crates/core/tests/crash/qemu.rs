//! QEMUs, as far as who runs goes, and what must never come of them.

use vmscatter_core::session::recovery::{SourceQemu, TargetQemu};

/// Where a source QEMU's migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    None,
    Active,
    /// The guest is stopped; waits for SHUT.
    Device,
    Completed,
    Failed,
}

/// A guest's two QEMUs, and what became of the guest.
#[derive(Debug)]
pub struct Guest {
    pub paused: bool,
    pub source: Source,
    pub target: Option<Target>,
    /// It has run at the target: the source's copy is old.
    pub ran_at_target: bool,
    /// A fault has ended one of its QEMUs.
    pub hit: bool,
    /// The source's agent has seen its QEMU end.
    pub gone_seen: bool,
    /// The source took it back or asked for it, or the target gave it up, before it was known that its QEMU had ended.
    pub asked_back: bool,
}

#[derive(Debug)]
pub struct Source {
    pub alive: bool,
    pub running: bool,
    pub migration: Migration,
    pub socket_open: bool,
    /// SHUT(0) lies in its socket.
    pub shut_written: bool,
    /// It has run since it was last stopped for the migration: the target's copy is old.
    pub went_on: bool,
    /// Migration parameters are not as they were.
    pub changed: bool,
}

#[derive(Debug)]
pub struct Target {
    pub alive: bool,
    pub loaded: bool,
    pub running: bool,
}

impl Guest {
    pub fn new(paused: bool) -> Self {
        let source = Source {
            alive: true,
            running: !paused,
            migration: Migration::None,
            socket_open: false,
            shut_written: false,
            went_on: true,
            changed: false,
        };
        Guest {
            paused,
            source,
            target: None,
            ran_at_target: false,
            hit: false,
            gone_seen: false,
            asked_back: false,
        }
    }

    /// As recovery would find it.
    pub fn look_source(&self) -> SourceQemu {
        match (self.source.alive, self.source.migration) {
            (false, _) => SourceQemu::Gone,
            (_, Migration::Active | Migration::Device) => SourceQemu::Busy,
            (_, Migration::Completed) => SourceQemu::Completed,
            (_, Migration::None | Migration::Failed) => SourceQemu::Own,
        }
    }

    /// As recovery would find it.
    pub fn look_target(&self) -> TargetQemu {
        match &self.target {
            None | Some(Target { alive: false, .. }) => TargetQemu::Gone,
            Some(Target { running: true, .. }) => TargetQemu::Running,
            Some(Target { loaded: true, .. }) => TargetQemu::Paused,
            Some(_) => TargetQemu::Loading,
        }
    }

    /// QEMU at the source resumes the guest by itself, or is told to.
    pub fn runs_at_source(&mut self, vm: usize) {
        self.source.migration = Migration::Failed;
        self.source.went_on = true;
        if !self.paused && self.source.alive && !self.source.running {
            assert!(!self.ran_at_target, "VM {vm} runs at the source after it had run at the target");
            self.source.running = true;
        }
        self.check(vm);
    }

    pub fn stops_at_source(&mut self) {
        (self.source.running, self.source.went_on) = (false, false);
        self.source.migration = Migration::Device;
    }

    /// `cont` at the target, or for a paused guest what stands for it.
    pub fn runs_at_target(&mut self, vm: usize) {
        let Some(target) = self.target.as_mut().filter(|target| target.alive) else { return };
        assert!(target.loaded, "VM {vm} runs at the target before it was loaded");
        assert!(!self.source.went_on, "VM {vm} runs an old copy at the target");
        target.running = !self.paused;
        self.ran_at_target = true;
        self.check(vm);
    }

    /// Its twin is ended by vmscatter; `voted`: as its target's journal says; `forced`: by the operator's word.
    pub fn end_target(&mut self, vm: usize, voted: bool, forced: bool) {
        let whole = self.holds_target();
        let last = !self.source.alive && !self.asked_back;
        assert!(forced || !(whole && last && voted), "the last copy of VM {vm} is ended");
        if let Some(target) = &mut self.target {
            assert!(!target.running, "VM {vm} is ended while it runs");
            target.alive = false;
        }
    }

    /// Its source QEMU is ended by vmscatter.
    pub fn end_source(&mut self, vm: usize, forced: bool) {
        assert!(self.ran_at_target || forced, "VM {vm} is ended at the source and never ran at the target");
        (self.source.alive, self.source.running) = (false, false);
    }

    /// A whole copy that may run stands at the target.
    pub fn holds_target(&self) -> bool {
        let loaded = self.target.as_ref().is_some_and(|target| target.alive && target.loaded);
        loaded && !self.source.went_on
    }

    /// A whole copy that may run stands at the source.
    pub fn holds_source(&self) -> bool {
        self.source.alive && !self.ran_at_target
    }

    pub fn check(&self, vm: usize) {
        let there = self.target.as_ref().is_some_and(|target| target.running);
        assert!(!(self.source.running && there), "VM {vm} runs on two hosts");
    }
}
