//! A session at the source, from the incoming QEMUs' waiting to the last guest's running: control messages and
//! QEMU's words go in, actions come out.
//!
//! ```text
//! per VM:  Waiting ─► Prepared ─► Opening ─► Held ─► Closing ─► Queued ─► Streaming ─► RamEnded ─► Releasing ─► Deciding
//!             └───────────┴────────┴────────┴──────────┴─────────┴───────────┘              │          │
//!                         any failure: Failed, the guest goes on at the source          Completed ◄────┘
//!                                                                                          │
//!                         target's journaled abort: Failed, the guest is resumed ◄─── Committed ─► Leaving ─► Done
//! ```
//!
//! A source QEMU that ends after RAM has ended, and had not let the guest go on, is as good as one that has completed: what it
//! held is at the target.

use std::collections::{BTreeMap, VecDeque};

use super::pace::streams_free;
use super::sabotage::{Rule, broken};
use super::target_vm::digest_difference;
use crate::journal::SourceStep;
use crate::page::VmDigest;
use crate::wire::control::{BlockSpec, Message};

/// What the driver at the source has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceAction {
    /// Say this to a target.
    Send {
        /// The target.
        target: u16,
        /// What.
        message: Message,
    },
    /// Tell the VM's QEMU to migrate, held; its head is to be relayed.
    Migrate {
        /// The VM.
        vm: u16,
    },
    /// The VM is late: leave it out of the scatter, before that begins. Its pages go by its stream.
    LeaveScatter {
        /// The VM.
        vm: u16,
    },
    /// All VMs that can be are held: send what they share, then call [`SourceSession::scattered`].
    Scatter,
    /// The VM's scatter is closed: settle what it holds ([`SourceVm::scatter_closed`](super::SourceVm::scatter_closed)).
    Settle {
        /// The VM.
        vm: u16,
    },
    /// Release the VM's stream, and let QEMU migrate at full speed.
    Stream {
        /// The VM.
        vm: u16,
    },
    /// Put the step into the journal, durably where [`Step::is_durable`](crate::journal::Step::is_durable) says so, then
    /// call [`SourceSession::journaled`], or [`SourceSession::not_journaled`].
    Journal {
        /// The VM.
        vm: u16,
        /// What.
        step: SourceStep,
    },
    /// Write SHUT(0) to the VM's source QEMU.
    ReleaseShut {
        /// The VM.
        vm: u16,
    },
    /// Close the VM's migration socket, both directions; QEMU lets the guest go on by itself.
    CloseSocket {
        /// The VM.
        vm: u16,
    },
    /// Let the guest run again at the source: its migration had completed, but the target has given it up.
    ResumeSource {
        /// The VM.
        vm: u16,
    },
    /// The guest runs at its target: end the source QEMU, then call [`SourceSession::quitted`].
    Quit {
        /// The VM.
        vm: u16,
    },
    /// Every VM has found its end.
    Finished,
}

/// Where a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum VmStage {
    /// Its turn has not come, or its incoming QEMU is not ready.
    Waiting,
    /// Its incoming QEMU waits, those of others are not ready yet.
    Prepared,
    /// QEMU has been told to migrate; the head is on its way.
    Opening,
    /// The target's QEMU knows its blocks; the stream is held.
    Held,
    /// The target is closing the scatter for it.
    Closing,
    /// Waits for its turn to stream.
    Queued,
    /// The stream flows.
    Streaming,
    /// The stream's RAM has ended; the target loads.
    RamEnded,
    /// The target has voted; the release goes to disk.
    Releasing,
    /// SHUT(0) is released; QEMU has not said `completed` yet.
    Released,
    /// QEMU has completed; the decision goes to disk.
    Deciding,
    /// The guest is the target's.
    Committed,
    /// It runs there; the QEMU here is being ended.
    Leaving,
    /// It runs there, and the QEMU here is gone.
    Done,
    /// It stays at the source.
    Failed,
    /// The target was lost after the release, or does not say what has become of the guest: it is paused here until the two have
    /// talked of it.
    InDoubt,
}

#[derive(Debug)]
struct Vm {
    target: u16,
    blocks: Vec<BlockSpec>,
    stage: VmStage,
    digest: Option<VmDigest>,
    vote: Option<VmDigest>,
    failure: Option<String>,
    resumed_unix_us: u64,
    target_journal_us: u64,
    /// The source QEMU has let the guest go on by itself.
    resumed: bool,
    /// The source QEMU has ended.
    gone: bool,
    /// The target has said that it has given the VM up.
    given_up: bool,
    /// The target has been told that the VM is its own.
    committed: bool,
    /// Its target takes too little: others may stream in its place.
    slow: bool,
    /// Its incoming QEMU, or its stream's begin, was not waited for: the scatter is not for it.
    late: bool,
}

impl Vm {
    /// Nothing is left of the guest but what the target has.
    fn is_left(&self) -> bool {
        self.gone && !self.resumed && matches!(self.stage, VmStage::RamEnded | VmStage::Releasing)
    }
}

/// The state machine; the drawing above shows its stages.
#[derive(Debug)]
pub struct SourceSession {
    vms: BTreeMap<u16, Vm>,
    /// Streams that may flow at once.
    streams_max: usize,
    scatter: Scatter,
    actions: VecDeque<SourceAction>,
    finished: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scatter {
    NotYet,
    Running,
    Over,
}

impl SourceSession {
    /// A session of VMs with their targets and block lists; the incoming QEMUs have been asked for. `streams_max`
    /// streams flow at once (one or more).
    pub fn new(vms: impl IntoIterator<Item = (u16, u16, Vec<BlockSpec>)>, streams_max: usize) -> Self {
        let vm = |(vm, target, blocks)| {
            let state = Vm {
                target,
                blocks,
                stage: VmStage::Waiting,
                digest: None,
                vote: None,
                failure: None,
                resumed_unix_us: 0,
                target_journal_us: 0,
                resumed: false,
                gone: false,
                given_up: false,
                committed: false,
                slow: false,
                late: false,
            };
            (vm, state)
        };
        SourceSession {
            vms: vms.into_iter().map(vm).collect(),
            streams_max: streams_max.max(1),
            scatter: Scatter::NotYet,
            actions: VecDeque::new(),
            finished: false,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<SourceAction> {
        self.actions.pop_front()
    }

    /// Where a VM is.
    pub fn stage(&self, vm: u16) -> Option<VmStage> {
        self.vms.get(&vm).map(|state| state.stage)
    }

    /// Why a VM stays at the source, or is in doubt.
    pub fn failure(&self, vm: u16) -> Option<&str> {
        self.vms.get(&vm)?.failure.as_deref()
    }

    /// The target's RESUME in microseconds since the Unix epoch, and its journal's share of the blackout in
    /// microseconds; zero until the VM is [`VmStage::Done`].
    pub fn resumed(&self, vm: u16) -> (u64, u64) {
        self.vms.get(&vm).map_or((0, 0), |state| (state.resumed_unix_us, state.target_journal_us))
    }

    /// Whether a VM that stays may have been voted for by a target that has not said that it has given it up.
    pub fn may_be_voted(&self, vm: u16) -> bool {
        self.vms.get(&vm).is_some_and(|state| state.digest.is_some() && !state.given_up)
    }

    /// A VM's target.
    pub fn target(&self, vm: u16) -> Option<u16> {
        self.vms.get(&vm).map(|state| state.target)
    }

    fn at(&mut self, vm: u16, stage: VmStage) -> Option<&mut Vm> {
        self.vms.get_mut(&vm).filter(|state| state.stage == stage)
    }

    fn send(&mut self, target: u16, message: Message) {
        self.actions.push_back(SourceAction::Send { target, message });
    }

    /// A message of a target, about a VM of its own; the driver has dealt with those about transport.
    ///
    /// # Errors
    /// A message that no honest target sends; the target's session must end.
    pub fn message(&mut self, target: u16, message: Message) -> Result<(), &'static str> {
        let vm = match &message {
            Message::Prepared { vm } | Message::ScatterClosed { vm } | Message::Loaded { vm, .. } => *vm,
            Message::Running { vm, .. } | Message::Failed { vm, .. } => *vm,
            _ => return Err("a message that only a source sends, or none about a VM"),
        };
        if self.target(vm) != Some(target) {
            return Err("a message about a VM of another target");
        }
        match message {
            Message::Prepared { .. } => self.prepared(vm),
            Message::ScatterClosed { .. } => self.scatter_closed(vm),
            Message::Loaded { digest, .. } => self.loaded(vm, digest),
            Message::Running { resumed_unix_us, journal_us, .. } => {
                self.running(vm, resumed_unix_us, journal_us)?;
            }
            Message::Failed { reason, .. } => self.target_failed(vm, reason),
            _ => {}
        }
        Ok(())
    }

    fn prepared(&mut self, vm: u16) {
        if let Some(state) = self.at(vm, VmStage::Waiting) {
            state.stage = VmStage::Prepared;
            self.advance();
        }
    }

    /// The target's QEMU has been given the VM's head, and its stream is held.
    pub fn held(&mut self, vm: u16) {
        if let Some(state) = self.at(vm, VmStage::Opening) {
            state.stage = VmStage::Held;
            self.advance();
        }
    }

    /// All shared contents have been sent and settled, as far as they can be.
    pub fn scattered(&mut self) {
        if self.scatter == Scatter::Running {
            self.scatter = Scatter::Over;
            self.advance();
        }
    }

    fn scatter_closed(&mut self, vm: u16) {
        if let Some(state) = self.at(vm, VmStage::Closing) {
            state.stage = VmStage::Queued;
            self.actions.push_back(SourceAction::Settle { vm });
            self.advance();
        }
    }

    /// RAM has ended in QEMU's stream; `digest` is over its last record for each page.
    pub fn ram_ended(&mut self, vm: u16, digest: VmDigest) {
        if let Some(state) = self.at(vm, VmStage::Streaming) {
            state.stage = VmStage::RamEnded;
            state.digest = Some(digest.clone());
            let target = state.target;
            self.actions.push_back(SourceAction::Journal { vm, step: SourceStep::Stopped });
            self.send(target, Message::Digest { vm, digest });
            self.release_if_agreed(vm);
            self.advance();
        }
    }

    fn loaded(&mut self, vm: u16, digest: VmDigest) {
        let early = broken(Rule::ReleaseBeforeDigests);
        if let Some(state) = self.vms.get_mut(&vm)
            && (matches!(state.stage, VmStage::Streaming | VmStage::RamEnded) || early)
        {
            state.vote = Some(digest);
            self.release_if_agreed(vm);
        }
    }

    /// The vote and what QEMU said are compared here once more, whatever the target says of it.
    fn release_if_agreed(&mut self, vm: u16) {
        let Some(state) = self.at(vm, VmStage::RamEnded) else { return };
        let (Some(ours), Some(theirs)) = (&state.digest, &state.vote) else { return };
        let difference = digest_difference(ours, theirs, &state.blocks);
        match difference {
            Some(error) if !broken(Rule::ReleaseBeforeDigests) => self.give_up(vm, error.to_string()),
            _ => {
                state.stage = VmStage::Releasing;
                self.actions.push_back(SourceAction::Journal { vm, step: SourceStep::Released });
            }
        }
    }

    /// Whether a VM still waits for this step to be in the journal; steps that nothing waits for are always due.
    pub fn awaits(&self, vm: u16, step: SourceStep) -> bool {
        let stage = self.stage(vm);
        match step {
            SourceStep::Released => stage == Some(VmStage::Releasing),
            SourceStep::Committed => matches!(stage, Some(VmStage::Deciding | VmStage::InDoubt)),
            SourceStep::Done => stage == Some(VmStage::Leaving),
            _ => true,
        }
    }

    /// A step is in the journal.
    pub fn journaled(&mut self, vm: u16, step: SourceStep) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        match (step, state.stage) {
            (SourceStep::Released, VmStage::Releasing) => {
                state.stage = VmStage::Released;
                if state.gone {
                    return self.source_gone(vm);
                }
                self.actions.push_back(SourceAction::ReleaseShut { vm });
                if broken(Rule::CommitBeforeCompleted) {
                    self.completed(vm);
                }
            }
            (SourceStep::Committed, VmStage::Deciding) => {
                state.stage = VmStage::Committed;
                state.committed = true;
                let target = state.target;
                self.send(target, Message::Commit { vm });
            }
            (SourceStep::Done, VmStage::Leaving) => self.leave(vm),
            _ => {}
        }
    }

    /// A step can't be put into the journal. It may be there all the same: what follows from it is not done, and what
    /// contradicts it is not done without the target's word.
    pub fn not_journaled(&mut self, vm: u16, step: SourceStep, reason: &str) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        match (step, state.stage) {
            (SourceStep::Committed, VmStage::Deciding) => {
                state.stage = VmStage::Released;
                self.failed(vm, format!("the source's journal can't be written: {reason}"));
            }
            (SourceStep::Released, VmStage::Releasing) => {
                self.failed(vm, format!("the source's journal can't be written: {reason}"));
            }
            (SourceStep::Done, VmStage::Leaving) => self.leave(vm),
            _ => {}
        }
    }

    /// VMs that others wait for before the scatter can begin, and how many wait for them: (waiting, missing).
    pub fn twins(&self) -> (usize, usize) {
        if self.scatter != Scatter::NotYet {
            return (0, 0);
        }
        let count = |stages: &[VmStage]| {
            self.vms.values().filter(|state| !state.late && stages.contains(&state.stage)).count()
        };
        match count(&[VmStage::Waiting]) {
            0 => (count(&[VmStage::Held]), count(&[VmStage::Prepared, VmStage::Opening])),
            missing => (count(&[VmStage::Prepared]), missing),
        }
    }

    /// Those that others wait for before the scatter can begin are late: the others go on. Gives back whom it concerns.
    /// They come after, with all of their pages in their streams.
    pub fn wait_no_longer(&mut self) -> Vec<u16> {
        if self.scatter != Scatter::NotYet {
            return Vec::new();
        }
        let waiting = self.vms.values().any(|state| !state.late && state.stage == VmStage::Waiting);
        let is_missing = |state: &Vm| match waiting {
            true => state.stage == VmStage::Waiting,
            false => matches!(state.stage, VmStage::Prepared | VmStage::Opening),
        };
        let missing = self.vms.iter_mut().filter(|(_, state)| !state.late && is_missing(state));
        let late: Vec<u16> = missing
            .map(|(vm, state)| {
                state.late = true;
                *vm
            })
            .collect();
        self.actions.extend(late.iter().map(|vm| SourceAction::LeaveScatter { vm: *vm }));
        self.advance();
        late
    }

    /// Whether the VM's target takes so little of its stream that another VM may stream in its place
    /// ([`Pace`](super::pace::Pace)).
    pub fn slow(&mut self, vm: u16, slow: bool) {
        if let Some(state) = self.vms.get_mut(&vm)
            && std::mem::replace(&mut state.slow, slow) != slow
        {
            self.advance();
        }
    }

    /// The source QEMU says `completed`: it has seen SHUT(0), and the guest is stopped there for good.
    pub fn completed(&mut self, vm: u16) {
        if let Some(state) = self.at(vm, VmStage::Released) {
            state.stage = VmStage::Deciding;
            self.actions.push_back(SourceAction::Journal { vm, step: SourceStep::Committed });
        }
    }

    /// The source QEMU has stopped the guest, for the migration as far as it knows.
    pub fn source_stopped(&mut self, vm: u16) {
        if let Some(state) = self.vms.get_mut(&vm) {
            state.resumed = false;
        }
    }

    /// The source QEMU has let the guest go on: its migration has failed. Why is said with [`SourceSession::failed`].
    pub fn source_resumed(&mut self, vm: u16) {
        if let Some(state) = self.vms.get_mut(&vm) {
            state.resumed = true;
        }
    }

    /// The source QEMU has ended, for certain, and after all that it had said was heard.
    pub fn source_gone(&mut self, vm: u16) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.gone = true;
        let went_on = (state.resumed || state.failure.is_some()) && !broken(Rule::CommitResumed);
        match state.stage {
            // All that it held is on its way, or there; the target's vote tells.
            VmStage::RamEnded | VmStage::Releasing if !went_on => {}
            VmStage::Released if !went_on => {
                state.stage = VmStage::Deciding;
                self.actions.push_back(SourceAction::Journal { vm, step: SourceStep::Committed });
            }
            _ => self.failed(vm, "the source QEMU has ended".to_owned()),
        }
    }

    fn running(&mut self, vm: u16, resumed_unix_us: u64, journal_us: u64) -> Result<(), &'static str> {
        // The session may have ceased to wait for it.
        let may_run =
            |state: &&mut Vm| state.committed && matches!(state.stage, VmStage::Committed | VmStage::InDoubt);
        let Some(state) = self.vms.get_mut(&vm).filter(may_run) else {
            return Err("running without a commit");
        };
        state.stage = VmStage::Leaving;
        state.failure = None;
        state.resumed_unix_us = resumed_unix_us;
        state.target_journal_us = journal_us;
        self.actions.push_back(SourceAction::Quit { vm });
        Ok(())
    }

    /// The source QEMU of a guest that runs at its target is gone; if not, recovery will see to it.
    pub fn quitted(&mut self, vm: u16, gone: bool) {
        match self.at(vm, VmStage::Leaving) {
            Some(_) if gone => self.actions.push_back(SourceAction::Journal { vm, step: SourceStep::Done }),
            Some(_) => self.leave(vm),
            None => {}
        }
    }

    fn leave(&mut self, vm: u16) {
        if let Some(state) = self.at(vm, VmStage::Leaving) {
            state.stage = VmStage::Done;
            self.advance();
        }
    }

    /// The VM can't be migrated: its stream, its QEMU or its memory said so at the source.
    ///
    /// Once SHUT(0) is on its way this is not ours to say alone; the target is asked for its abort, and its
    /// answer decides.
    pub fn failed(&mut self, vm: u16, reason: String) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        let target = state.target;
        match state.stage {
            VmStage::Done | VmStage::Leaving | VmStage::Failed | VmStage::InDoubt => {}
            VmStage::Committed | VmStage::Deciding => {}
            VmStage::Released => {
                // QEMU may have taken SHUT(0) or not: only the target's word makes it safe to go on here.
                state.failure.get_or_insert(reason.clone());
                self.send(target, Message::Abort { vm, reason });
            }
            _ if state.is_left() => self.leave_to_target(vm, &reason),
            _ => self.give_up(vm, reason),
        }
        self.advance();
    }

    /// The VM has been for too long where it is ([`stage_limit`](super::deadlines::stage_limit)); `reason` is what did not happen. To be
    /// said again after as long.
    pub fn outstayed(&mut self, vm: u16, reason: String) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        let asked = state.stage == VmStage::Released && state.failure.is_some();
        if !asked && state.stage != VmStage::Committed {
            return self.failed(vm, reason);
        }
        // It speaks of others, or of nothing that matters here: no reason to wait for its word for ever.
        state.stage = VmStage::InDoubt;
        let asked = state.failure.take().map_or(String::new(), |why| format!("{why}; "));
        state.failure = Some(format!(
            "{asked}{reason}; it finds its end when the two hosts have talked of it ('vmscatter status', 'vmscatter recover')"
        ));
        self.advance();
    }

    /// The guest stays at the source, and the target is told.
    fn give_up(&mut self, vm: u16, reason: String) {
        let Some(target) = self.target(vm) else { return };
        self.stay(vm, reason.clone());
        self.send(target, Message::Abort { vm, reason });
        self.advance();
    }

    /// What there is of the guest is at the target: its QEMU here has ended after RAM had. So it is the target's,
    /// whatever keeps this session from seeing it through.
    fn leave_to_target(&mut self, vm: u16, reason: &str) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.stage = VmStage::InDoubt;
        let text = format!("the source QEMU has ended after the guest was stopped, and {reason}");
        state.failure.get_or_insert(text);
        self.actions.push_back(SourceAction::Journal { vm, step: SourceStep::Committed });
    }

    /// The guest stays at the source: closing the socket is all that QEMU needs to go on.
    fn stay(&mut self, vm: u16, reason: String) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        if state.stage > VmStage::Prepared {
            self.actions.push_back(SourceAction::CloseSocket { vm });
        }
        state.stage = VmStage::Failed;
        state.failure.get_or_insert(reason);
    }

    /// The target has given the VM up. After the release that is its journaled abort: the guest may run here again.
    fn target_failed(&mut self, vm: u16, reason: String) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.given_up = true;
        match state.stage {
            VmStage::Done | VmStage::Leaving | VmStage::Failed => {}
            VmStage::Released | VmStage::Deciding | VmStage::Committed | VmStage::InDoubt => {
                self.stay(vm, reason);
                self.actions.push_back(SourceAction::ResumeSource { vm });
            }
            _ => self.stay(vm, reason),
        }
        self.advance();
    }

    /// A target can't be reached any more.
    pub fn target_lost(&mut self, target: u16, reason: &str) {
        let vms: Vec<u16> = self.vms.iter().filter(|(_, s)| s.target == target).map(|(vm, _)| *vm).collect();
        for vm in vms {
            let Some(state) = self.vms.get_mut(&vm) else { continue };
            match state.stage {
                VmStage::Done | VmStage::Leaving | VmStage::Failed | VmStage::InDoubt => {}
                VmStage::Released | VmStage::Deciding | VmStage::Committed => {
                    state.stage = VmStage::InDoubt;
                    state.failure.get_or_insert_with(|| {
                        format!(
                            "{reason}, after it had voted for the guest; it finds its end when the two hosts can \
                             talk again ('vmscatter status', 'vmscatter recover')"
                        )
                    });
                }
                _ if state.is_left() => self.leave_to_target(vm, reason),
                _ => self.stay(vm, reason.to_owned()),
            }
        }
        self.advance();
    }

    /// Gives up every VM whose fate is still ours to choose.
    pub fn cancel(&mut self) {
        let vms: Vec<u16> = self.vms.keys().copied().collect();
        for vm in vms {
            if self.vms[&vm].stage < VmStage::Releasing {
                self.failed(vm, "cancelled".to_owned());
            }
        }
    }

    /// Starts whatever has become possible.
    fn advance(&mut self) {
        self.open_prepared();
        self.start_scatter();
        if self.scatter == Scatter::Over {
            self.close_held();
        }
        self.start_streams();
        let ended = |state: &Vm| matches!(state.stage, VmStage::Done | VmStage::Failed | VmStage::InDoubt);
        if !self.finished && self.vms.values().all(ended) {
            self.finished = true;
            self.actions.push_back(SourceAction::Finished);
        }
    }

    /// No source QEMU is told to migrate before each target has said what it can't take, unless it is late.
    fn open_prepared(&mut self) {
        if self.vms.values().any(|state| state.stage == VmStage::Waiting && !state.late) {
            return;
        }
        for (vm, state) in self.vms.iter_mut().filter(|(_, state)| state.stage == VmStage::Prepared) {
            state.stage = VmStage::Opening;
            self.actions.push_back(SourceAction::Migrate { vm: *vm });
        }
    }

    fn start_scatter(&mut self) {
        let opening = |state: &Vm| {
            !state.late && matches!(state.stage, VmStage::Waiting | VmStage::Prepared | VmStage::Opening)
        };
        let any_held = self.vms.values().any(|state| state.stage == VmStage::Held);
        if self.scatter == Scatter::NotYet && any_held && !self.vms.values().any(opening) {
            self.scatter = Scatter::Running;
            self.actions.push_back(SourceAction::Scatter);
        }
    }

    fn close_held(&mut self) {
        let mut closing = Vec::new();
        for (vm, state) in self.vms.iter_mut().filter(|(_, state)| state.stage == VmStage::Held) {
            state.stage = VmStage::Closing;
            closing.push((*vm, state.target));
        }
        for (vm, target) in closing {
            self.send(target, Message::CloseScatter { vm });
        }
    }

    /// Few streams flow at a time, so that each is short and little is dirtied meanwhile; a VM whose RAM has ended
    /// no longer needs the link.
    fn start_streams(&mut self) {
        let flowing = || self.vms.values().filter(|state| state.stage == VmStage::Streaming);
        let free =
            streams_free(self.streams_max, flowing().count(), flowing().filter(|state| state.slow).count());
        let queued = self.vms.iter_mut().filter(|(_, state)| state.stage == VmStage::Queued);
        for (vm, state) in queued.take(free) {
            state.stage = VmStage::Streaming;
            self.actions.push_back(SourceAction::Journal { vm: *vm, step: SourceStep::Streaming });
            self.actions.push_back(SourceAction::Stream { vm: *vm });
        }
    }
}
