//! A session at one target: control messages, pieces and QEMU's words go in; actions come out.
//!
//! ```text
//! per VM:  Starting ─► Open ─► Voting ─► Voted ─► Committing ─► Resuming ─► Running
//!             └──────────┴────────┴──► Failed             (before the vote is on disk: incoming QEMU goes)
//!                                   Voted ─► InDoubt      (source lost after the vote: waits for its decision)
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;

use super::memberships::Memberships;
use super::relaying::Relaying;
use super::sabotage::{Rule, broken};
use super::target_vm::{Output, TargetVm};
use super::{SessionKeys, check_blocks};
use crate::journal::TargetStep;
use crate::limits::SESSION_VMS_MAX;
use crate::page::VmDigest;
use crate::time::Time;
use crate::transport::{DropReason, Outcome, Receiver};
use crate::wire::control::{Message, VmSpec};
use crate::wire::frame::Decoder;
use crate::wire::relay::{self, Envelope};

/// What the driver at a target has to do.
#[derive(Debug)]
pub enum TargetAction {
    /// Say this to the source.
    Send(Message),
    /// Join this group, then call [`TargetSession::joined`] for the set.
    Join {
        /// The set that is told of.
        set: u16,
        /// The group.
        group: SocketAddr,
    },
    /// Leave this group.
    Leave {
        /// The group.
        group: SocketAddr,
    },
    /// Connect to another target's data port, send it this sealed piece, then call [`TargetSession::hop_opened`].
    Connect {
        /// The other target.
        target: u16,
        /// Where.
        addr: SocketAddr,
        /// The first piece.
        hello: Vec<u8>,
    },
    /// Send this over the connection to another target; if it is broken, call [`TargetSession::hop_lost`]. Never waits: what is
    /// under way to one target is bounded by its source.
    PassOn {
        /// The other target.
        target: u16,
        /// A sealed piece, maybe in an envelope.
        bytes: Vec<u8>,
    },
    /// Start the VM's incoming QEMU, paused, then call [`TargetSession::prepared`] or [`TargetSession::failed`].
    Start(VmSpec),
    /// Write to the VM's incoming QEMU, then call [`TargetSession::written`] with the same output's marks.
    Write {
        /// The VM.
        vm: u16,
        /// Bytes and marks.
        output: Output,
    },
    /// Put the step into the journal, durably where [`Step::is_durable`](crate::journal::Step::is_durable) says so, then
    /// call [`TargetSession::journaled`].
    Journal {
        /// The VM.
        vm: u16,
        /// What.
        step: TargetStep,
    },
    /// The source knows all that it needs of this VM's end, so the journal need not keep it.
    Forget {
        /// The VM.
        vm: u16,
    },
    /// Let the VM run (unless it was paused before), then call [`TargetSession::running`].
    Resume {
        /// The VM.
        vm: u16,
        /// Whether to give `cont`.
        cont: bool,
    },
    /// End the VM's incoming QEMU: the guest is not ours.
    Kill {
        /// The VM.
        vm: u16,
    },
    /// The session is over here.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Open,
    Voting,
    Voted,
    Committing,
    Resuming,
    Running,
    Failed,
}

#[derive(Debug)]
struct Vm {
    spec: VmSpec,
    stage: Stage,
    state: TargetVm,
    /// What QEMU said at the source, once RAM has ended there.
    source_digest: Option<VmDigest>,
    /// Bytes handed to the driver that it has not written yet.
    writing_bytes: usize,
    /// Scattered frames that its QEMU has not been given whole yet.
    unwritten: HashSet<u64>,
    journal_from: Option<Time>,
    journal_us: u64,
    close_pending: bool,
    /// The journal keeps nothing about it any more.
    forgotten: bool,
}

/// The state machine; the drawing above shows its stages.
#[derive(Debug)]
pub struct TargetSession {
    keys: SessionKeys,
    /// What guests may take here, in bytes, as the source was told. What this side itself keeps of a guest is in proportion.
    memory_bytes: u64,
    receiver: Receiver,
    vms: BTreeMap<u16, Vm>,
    /// Scattered frames that some VM's QEMU has not been given yet: how many VMs are left.
    unwritten: HashMap<u64, usize>,
    decoder: Decoder,
    actions: VecDeque<TargetAction>,
    memberships: Memberships,
    relaying: Relaying,
    finished: bool,
}

impl TargetSession {
    /// A session whose source has sent [`Message::Open`]. `memory_bytes` are what guests may take here together.
    pub fn new(keys: SessionKeys, memory_bytes: u64, receiver: Receiver) -> Self {
        TargetSession {
            keys,
            memory_bytes,
            receiver,
            vms: BTreeMap::new(),
            unwritten: HashMap::new(),
            decoder: Decoder::new(),
            actions: VecDeque::new(),
            memberships: Memberships::default(),
            relaying: Relaying::default(),
            finished: false,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<TargetAction> {
        self.actions.pop_front()
    }

    /// When [`TargetSession::timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.receiver.poll_timeout()
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Time) {
        self.report(now);
    }

    /// Whether [`TargetSession::link_bytes`] is to be called.
    pub fn is_link_due(&self, now: Time) -> bool {
        self.receiver.is_link_due(now)
    }

    /// The interface on which multicast arrives has received so many bytes by now.
    pub fn link_bytes(&mut self, now: Time, bytes: u64) {
        let counters = self.receiver.count_link(now, bytes);
        self.actions.push_back(TargetAction::Send(Message::LinkCounters(counters)));
    }

    fn report(&mut self, now: Time) {
        while let Some(report) = self.receiver.poll_report(now) {
            self.actions.push_back(TargetAction::Send(Message::Report(report)));
        }
    }

    /// A control message of the source.
    ///
    /// # Errors
    /// A message that no honest source sends ends the session.
    pub fn message(&mut self, now: Time, message: Message) -> Result<(), &'static str> {
        match message {
            Message::Grant(grants) => {
                self.actions.push_back(self.memberships.grant(&grants, &mut self.receiver)?);
            }
            Message::Join { set } => self.actions.push_back(self.memberships.join(set)?),
            Message::Leave { set } => self.actions.extend(self.memberships.leave(set)?),
            Message::CountTrain { set } => {
                let datagrams = self.receiver.train_datagrams(set).ok_or("a set that was not granted")?;
                self.actions.push_back(TargetAction::Send(Message::TrainCounted { set, datagrams }));
            }
            Message::Hop { target, addr, hello } => {
                self.actions.push_back(self.relaying.open(target, addr, hello)?);
            }
            Message::Prepare(spec) => self.prepare(spec)?,
            Message::Sent(spans) => self.receiver.on_sent(now, &spans),
            Message::CloseScatter { vm } => self.close_scatter(now, vm),
            Message::Digest { vm, digest } => {
                if let Some(state) = self.vms.get_mut(&vm) {
                    state.source_digest = Some(digest);
                }
                self.vote(now, vm);
            }
            Message::Commit { vm } => self.commit(now, vm)?,
            Message::Abort { vm, reason } => self.abort(vm, reason),
            Message::Close => self.close(),
            Message::Ping(number) => self.actions.push_back(TargetAction::Send(Message::Pong(number))),
            Message::Pong(_) => {}
            _ => return Err("a message that only a target sends"),
        }
        Ok(())
    }

    fn prepare(&mut self, spec: VmSpec) -> Result<(), &'static str> {
        check_blocks(&spec.blocks).map_err(|_| "a VM with impossible RAM blocks")?;
        if self.vms.len() >= SESSION_VMS_MAX || self.vms.contains_key(&spec.vm) {
            return Err("a VM twice, or too many");
        }
        // Before anything is made that grows with the blocks: they are what the peer says.
        let taken = self.vms.values().filter(|state| state.stage != Stage::Failed);
        let taken: u64 = taken.map(|state| state.spec.memory_bytes()).sum();
        let (needed, free) = (spec.memory_bytes(), self.memory_bytes.saturating_sub(taken));
        if needed > free {
            let reason = format!("not enough memory: {} MiB needed, {} MiB free", needed >> 20, free >> 20);
            self.actions.push_back(TargetAction::Send(Message::Failed { vm: spec.vm, reason }));
            return Ok(());
        }
        let state = TargetVm::new(&spec.blocks, &self.keys.mac, &self.keys.digest);
        let vm = Vm {
            spec: spec.clone(),
            stage: Stage::Starting,
            state,
            source_digest: None,
            writing_bytes: 0,
            unwritten: HashSet::new(),
            journal_from: None,
            journal_us: 0,
            close_pending: false,
            forgotten: false,
        };
        self.vms.insert(spec.vm, vm);
        self.actions.push_back(TargetAction::Start(spec));
        Ok(())
    }

    /// The driver has joined the set's group, or can't.
    pub fn joined(&mut self, set: u16, error: Option<String>) {
        self.actions.push_back(self.memberships.joined(set, error));
    }

    /// The driver has connected to another target, or can't.
    pub fn hop_opened(&mut self, target: u16, error: Option<String>) {
        self.actions.extend(self.relaying.opened(target, error));
    }

    /// The connection to another target has broken.
    pub fn hop_lost(&mut self, target: u16, error: String) {
        self.actions.extend(self.relaying.lost(target, error));
    }

    /// The receiver, for what the driver asks of it.
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// The VM's incoming QEMU waits for its stream.
    pub fn prepared(&mut self, vm: u16) {
        if let Some(state) = self.vms.get_mut(&vm).filter(|state| state.stage == Stage::Starting) {
            state.stage = Stage::Open;
            self.actions.push_back(TargetAction::Send(Message::Prepared { vm }));
        }
    }

    /// The VM can't be loaded here, or its QEMU died. After the vote this is for the source to decide; it is
    /// told all the same.
    pub fn failed(&mut self, vm: u16, reason: String) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        // Once it runs here there is no way back. Before that the source still has the guest, paused: when it
        // hears of the abort, which is on our disk by then, it lets it run again.
        if matches!(state.stage, Stage::Failed | Stage::Running) {
            return;
        }
        // Before the vote was given, nobody builds upon what becomes of it here.
        let unknown = !matches!(state.stage, Stage::Voted | Stage::Committing | Stage::Resuming);
        state.stage = Stage::Failed;
        state.state.forget_pages();
        // First on disk: that a QEMU has ended would not tell that it had never run.
        self.actions.push_back(TargetAction::Journal { vm, step: TargetStep::Aborted });
        self.actions.push_back(TargetAction::Kill { vm });
        self.actions.push_back(TargetAction::Send(Message::Failed { vm, reason }));
        if unknown || broken(Rule::ForgetAbort) {
            state.forgotten = true;
            self.actions.push_back(TargetAction::Forget { vm });
        }
        self.forget_frames_of(vm);
    }

    /// The source wants the VM back. Unless it has decided otherwise before, it gets our abort, journaled.
    fn abort(&mut self, vm: u16, reason: String) {
        let Some(state) = self.vms.get(&vm) else { return };
        if !matches!(state.stage, Stage::Committing | Stage::Resuming | Stage::Running) {
            self.failed(vm, reason);
        }
    }

    /// A VM that has failed holds up no acknowledgement that others wait for.
    fn forget_frames_of(&mut self, vm: u16) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        for frame in std::mem::take(&mut state.unwritten) {
            self.frame_written(frame);
        }
    }

    /// A datagram, or a piece from a data connection, maybe in an envelope.
    pub fn piece(&mut self, now: Time, piece: &mut [u8]) {
        match relay::unwrap(piece) {
            Some(Envelope { hops, piece }) => {
                // It is opened in place, and goes on as it came.
                let passed_on = self.relaying.pass_on(&hops, piece);
                if self.open_piece(now, piece) {
                    self.actions.extend(passed_on);
                }
            }
            None => drop(self.open_piece(now, piece)),
        }
        while let Some((set, _)) = self.receiver.poll_probe() {
            self.actions.extend(self.memberships.heard(set));
        }
        while let Some((frame, _set, body)) = self.receiver.poll_frame() {
            self.scattered(frame, &body);
        }
        self.collect_output();
        self.report(now);
    }

    /// Takes in what it holds; whether it was genuine, and new.
    fn open_piece(&mut self, now: Time, piece: &mut [u8]) -> bool {
        match self.receiver.on_piece(now, piece) {
            Outcome::Stream { vm, seq, payload } => {
                let body = payload.to_vec();
                self.stream_frame(vm, seq, body);
                true
            }
            Outcome::Taken | Outcome::Dropped(DropReason::Inconsistent | DropReason::OverLimit) => true,
            Outcome::Dropped(_) => false,
        }
    }

    fn stream_frame(&mut self, vm: u16, seq: u64, body: Vec<u8>) {
        let Some(state) = self.vms.get_mut(&vm).filter(|state| state.stage == Stage::Open) else {
            return;
        };
        if let Err(error) = state.state.stream_frame(seq, body, &mut self.decoder) {
            self.failed(vm, error.to_string());
        }
    }

    /// Applies a scattered frame to the VMs here that it names.
    fn scattered(&mut self, frame: u64, body: &[u8]) {
        // A body that does not decode came sealed from the source; it is never acknowledged, so nothing is lost.
        let Ok(contents) = self.decoder.scatter(body) else { return };
        let mut touched: Vec<u16> = Vec::new();
        let swap = broken(Rule::SwapPages);
        for (addrs, page) in contents.contents() {
            let mut data = Cow::Borrowed(page.as_slice());
            if broken(Rule::FlipBit) {
                data.to_mut()[1234] ^= 0x10;
            }
            let mac = self.keys.mac.mac(&data);
            for addr in addrs {
                let Some(state) = self.vms.get_mut(&addr.vm).filter(|state| state.stage == Stage::Open)
                else {
                    continue;
                };
                let page = if swap { addr.page ^ 1 } else { addr.page };
                state.state.scattered(frame, addr.block, page, &data, mac);
                if !touched.contains(&addr.vm) {
                    touched.push(addr.vm);
                }
            }
        }
        for vm in &touched {
            if let Some(state) = self.vms.get_mut(vm) {
                state.state.scattered_frame_done(frame);
                state.unwritten.insert(frame);
            }
        }
        if touched.is_empty() {
            self.receiver.written(frame);
        } else {
            self.unwritten.insert(frame, touched.len());
        }
    }

    fn collect_output(&mut self) {
        for (vm, state) in &mut self.vms {
            if !matches!(state.stage, Stage::Open) {
                continue;
            }
            if let Some(output) = state.state.take_output() {
                state.writing_bytes += output.bytes.len();
                self.actions.push_back(TargetAction::Write { vm: *vm, output });
            }
        }
    }

    /// The driver has written an output into the VM's QEMU: only now is it acknowledged (rule 1).
    pub fn written(&mut self, now: Time, vm: u16, bytes: usize, frames: &[u64], stream_next: u64) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        state.writing_bytes = state.writing_bytes.saturating_sub(bytes);
        if stream_next > 0 {
            self.actions.push_back(TargetAction::Send(Message::Written { vm, next: stream_next }));
        }
        let done: Vec<u64> = frames.iter().copied().filter(|frame| state.unwritten.remove(frame)).collect();
        done.into_iter().for_each(|frame| self.frame_written(frame));
        self.confirm_close(now, vm);
        self.report(now);
    }

    /// One VM fewer waits for this frame; the last one makes it acknowledged.
    fn frame_written(&mut self, frame: u64) {
        if let Some(left) = self.unwritten.get_mut(&frame) {
            *left -= 1;
            if *left == 0 {
                self.unwritten.remove(&frame);
                self.receiver.written(frame);
            }
        }
    }

    /// Nothing scattered is applied to the VM from here on. Confirmed when all that was applied has been written,
    /// so that every acknowledgement for the VM goes out before the confirmation.
    fn close_scatter(&mut self, now: Time, vm: u16) {
        if let Some(state) = self.vms.get_mut(&vm) {
            state.state.close_scatter();
            state.close_pending = true;
        }
        self.confirm_close(now, vm);
    }

    fn confirm_close(&mut self, now: Time, vm: u16) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        if state.close_pending && state.writing_bytes == 0 {
            state.close_pending = false;
            if let Some(report) = self.receiver.report_now(now) {
                self.actions.push_back(TargetAction::Send(Message::Report(report)));
            }
            self.actions.push_back(TargetAction::Send(Message::ScatterClosed { vm }));
        }
    }

    /// Bytes of the return path of the VM's incoming QEMU.
    pub fn return_path(&mut self, now: Time, vm: u16, bytes: &[u8]) {
        let Some(state) = self.vms.get_mut(&vm).filter(|state| state.stage == Stage::Open) else { return };
        match state.state.return_path(bytes) {
            Ok(forward) if forward.is_empty() => {}
            Ok(bytes) => self.actions.push_back(TargetAction::Send(Message::ReturnPath { vm, bytes })),
            Err(error) => return self.failed(vm, error.to_string()),
        }
        self.vote(now, vm);
    }

    /// Loaded, and the digests agree: the vote goes to disk, and then to the source.
    fn vote(&mut self, now: Time, vm: u16) {
        let Some(state) = self.vms.get_mut(&vm).filter(|state| state.stage == Stage::Open) else { return };
        if !state.state.is_loaded() {
            return;
        }
        let verdict = match &state.source_digest {
            Some(digest) => state.state.verify(digest),
            None if broken(Rule::ReleaseBeforeDigests) => Ok(()),
            None => return,
        };
        match verdict {
            Ok(()) => {
                state.stage = Stage::Voting;
                state.journal_from = Some(now);
                self.actions.push_back(TargetAction::Journal { vm, step: TargetStep::Voted });
            }
            Err(error) => self.failed(vm, error.to_string()),
        }
    }

    /// Whether a VM still waits for this step to be in the journal; steps that nothing waits for are always due.
    pub fn awaits(&self, vm: u16, step: TargetStep) -> bool {
        let stage = self.vms.get(&vm).map(|state| state.stage);
        match step {
            TargetStep::Voted => stage == Some(Stage::Voting),
            TargetStep::Committed => stage == Some(Stage::Committing),
            _ => true,
        }
    }

    /// A step is in the journal.
    pub fn journaled(&mut self, now: Time, vm: u16, step: TargetStep) {
        let Some(state) = self.vms.get_mut(&vm) else { return };
        if let Some(from) = state.journal_from.take() {
            state.journal_us += now.since(from).as_micros() as u64;
        }
        match (step, state.stage) {
            (TargetStep::Voted, Stage::Voting) => {
                state.stage = Stage::Voted;
                let digest = state.state.digest().clone();
                self.actions.push_back(TargetAction::Send(Message::Loaded { vm, digest }));
            }
            (TargetStep::Committed, Stage::Committing) => {
                state.stage = Stage::Resuming;
                let cont = !state.spec.paused;
                self.actions.push_back(TargetAction::Resume { vm, cont });
            }
            _ => {}
        }
    }

    /// The source's decision.
    fn commit(&mut self, now: Time, vm: u16) -> Result<(), &'static str> {
        let Some(state) = self.vms.get_mut(&vm) else { return Err("a commit for an unknown VM") };
        match state.stage {
            Stage::Voted => {
                state.stage = Stage::Committing;
                state.journal_from = Some(now);
                self.actions.push_back(TargetAction::Journal { vm, step: TargetStep::Committed });
                Ok(())
            }
            // Said again, or the QEMU died after the vote: the source was told.
            Stage::Committing | Stage::Resuming | Stage::Running | Stage::Failed => Ok(()),
            Stage::Starting | Stage::Open | Stage::Voting => Err("a commit before the vote"),
        }
    }

    /// The VM runs here, or stands here paused as it was before.
    pub fn running(&mut self, vm: u16, resumed_unix_us: u64) {
        let Some(state) = self.vms.get_mut(&vm).filter(|state| state.stage == Stage::Resuming) else {
            return;
        };
        state.stage = Stage::Running;
        let journal_us = state.journal_us;
        self.actions.push_back(TargetAction::Journal { vm, step: TargetStep::Running });
        self.actions.push_back(TargetAction::Send(Message::Running { vm, resumed_unix_us, journal_us }));
    }

    fn close(&mut self) {
        self.give_up("the source closed the session");
        // It has put the ends of its guests on disk before it closed.
        for (vm, state) in &mut self.vms {
            if matches!(state.stage, Stage::Running | Stage::Failed)
                && !std::mem::replace(&mut state.forgotten, true)
            {
                self.actions.push_back(TargetAction::Forget { vm: *vm });
            }
        }
        self.finish();
    }

    /// The connection to the source is gone: what is not voted for goes; what is waits for the source's decision.
    pub fn source_lost(&mut self) {
        self.give_up("the connection to the source was lost");
        self.finish();
    }

    fn give_up(&mut self, reason: &str) {
        let open = |state: &&mut Vm| matches!(state.stage, Stage::Starting | Stage::Open | Stage::Voting);
        let vms: Vec<u16> = self.vms.values_mut().filter(open).map(|state| state.spec.vm).collect();
        for vm in vms {
            self.failed(vm, reason.to_owned());
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            self.actions.push_back(TargetAction::Finished);
        }
    }

    /// Whether the VM's QEMU has loaded its whole stream.
    pub fn is_loaded(&self, vm: u16) -> bool {
        self.vms.get(&vm).is_some_and(|state| state.state.is_loaded())
    }

    /// Whether the VM's incoming QEMU is still wanted.
    pub fn wants(&self, vm: u16) -> bool {
        self.vms.get(&vm).is_some_and(|state| state.stage != Stage::Failed)
    }

    /// Whether nothing is under way that must be seen through: no VM between the source's commit and its running here.
    pub fn is_settled(&self) -> bool {
        !self.vms.values().any(|state| matches!(state.stage, Stage::Committing | Stage::Resuming))
    }

    /// VMs that were voted for and of which the source's decision is not known: they stay paused.
    pub fn in_doubt(&self) -> impl Iterator<Item = &VmSpec> {
        self.vms.values().filter(|state| state.stage == Stage::Voted).map(|state| &state.spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{DigestKey, MacKey};
    use crate::transport::ReceiverConfig;
    use crate::wire::control::BlockSpec;
    use crate::wire::hardware::Hardware;

    fn spec(vm: u16, bytes: u64) -> VmSpec {
        VmSpec {
            vm,
            uuid: [vm as u8; 16],
            name: format!("vm{vm}"),
            guest_file: String::new(),
            machine: String::new(),
            blocks: vec![BlockSpec { name: "pc.ram".to_owned(), bytes }],
            hardware: Hardware::default(),
            paused: false,
        }
    }

    /// A peer's word alone makes nothing grow: the tables of a guest of 8 TiB would take 48 GiB.
    #[test]
    fn guests_that_do_not_fit_are_refused_before_anything_is_kept_for_them() {
        let keys = SessionKeys { mac: MacKey::new(&[1; 16]), digest: DigestKey::new(&[2; 16]) };
        let receiver = Receiver::new(ReceiverConfig::default(), Time::ZERO);
        let mut session = TargetSession::new(keys, 3 << 20, receiver);
        let prepare = |session: &mut TargetSession, vm, bytes| {
            session.message(Time::ZERO, Message::Prepare(spec(vm, bytes))).unwrap();
            match session.poll_action() {
                Some(TargetAction::Start(_)) => String::new(),
                Some(TargetAction::Send(Message::Failed { reason, .. })) => reason,
                action => panic!("{action:?}"),
            }
        };
        let huge = prepare(&mut session, 1, 8 << 40);
        assert_eq!(huge, "not enough memory: 8388608 MiB needed, 3 MiB free");
        assert_eq!(prepare(&mut session, 2, 2 << 20), "");
        assert_eq!(prepare(&mut session, 3, 2 << 20), "not enough memory: 2 MiB needed, 1 MiB free");
        session.failed(2, "it is gone".to_owned());
        while session.poll_action().is_some() {}
        assert_eq!(prepare(&mut session, 4, 3 << 20), "", "what has failed takes nothing any more");
    }
}
