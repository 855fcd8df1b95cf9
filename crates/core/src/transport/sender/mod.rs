//! The source's side: what leaves, when, by which path, and what has been acknowledged.

mod feedback;
mod frames;
mod laggard;
mod relay;
mod repair;
mod report;
mod target;
mod transmit;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::feedback::History;
use self::frames::OpenFrame;
use self::laggard::LookOut;
use self::relay::Hops;
use self::repair::MulticastRepair;
use self::target::Target;
pub use self::transmit::{Path, Transmit};
use super::congestion::{CongestionControl, FixedRate, RATE_START, WorstMember};
use super::pace::TokenBucket;
use super::{ANNOUNCE_SPANS_MAX, FRAME_SPAN_MAX, OPEN_FRAMES_MAX, TargetMask, mask_of, targets_of};
use crate::limits::REPAIR_WINDOW_BYTES;
use crate::time::Time;
use crate::wire::control::FrameSpan;
use crate::wire::piece::{FRAME_SEALED_BODY_BYTES_MAX, PIECE_OVERHEAD_BYTES, STRIPS};

/// Multicast is throttled if no more than one in so many of the bytes that it began with, or was to have, get to anybody for so long.
const THROTTLED_RATIO: u64 = 4;
const THROTTLED_SPAN: Duration = Duration::from_secs(1);

/// What a [`Sender`] is told when it is made.
#[derive(Clone, Debug)]
pub struct SenderConfig {
    /// Bytes a second on the link, headers included, over multicast and TCP; `None`: found by congestion control.
    pub bandwidth: Option<u64>,
    /// Bytes of a datagram behind the UDP header: MTU less 28 for IPv4.
    pub datagram_bytes: usize,
    /// Bytes of a sealed piece on TCP, of a frame that goes by TCP from the start.
    pub unicast_piece_bytes: usize,
    /// Bytes of bodies that are open at once.
    pub repair_window_bytes: usize,
    /// Bytes given to TCP for one target, of frames that it has not acknowledged.
    pub unicast_window_bytes: usize,
    /// What the link adds to a datagram: UDP, IP and Ethernet headers.
    pub datagram_overhead_bytes: usize,
}

impl Default for SenderConfig {
    fn default() -> Self {
        SenderConfig {
            bandwidth: None,
            datagram_bytes: 1472,
            unicast_piece_bytes: 64 * 1024,
            repair_window_bytes: REPAIR_WINDOW_BYTES,
            unicast_window_bytes: 4 * 1024 * 1024,
            datagram_overhead_bytes: 42,
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderEvent {
    /// A target has written a frame.
    Acked {
        /// The frame.
        frame: u64,
        /// The target.
        target: u16,
    },
    /// All members that are left have written a frame; its body is forgotten.
    Settled {
        /// The frame.
        frame: u64,
    },
    /// To be sent to the target over control: these frames have left entirely.
    Announce {
        /// The target.
        target: u16,
        /// The frames.
        spans: Vec<FrameSpan>,
    },
    /// A target that multicast has reached gets nothing any more of what is sent to one of its sets; said once. The caller ends
    /// it with [`Sender::give_up_multicast`].
    Unheard {
        /// The target.
        target: u16,
    },
    /// Multicast gets so little to any target, for a second by now, that something on the way must hold it back: TCP may get far more there. Said once;
    /// the caller ends it with [`Sender::give_up_multicast`], or lets it be.
    Throttled {
        /// Bytes a second that get there.
        bytes_per_s: u64,
    },
    /// A target is no longer sent to or waited for: it would hold up the others.
    Expelled {
        /// The target.
        target: u16,
        /// Why.
        why: Expulsion,
    },
}

/// Why a target is no longer waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expulsion {
    /// It has acknowledged nothing for [`SCATTER_SILENCE_MAX`](crate::limits::SCATTER_SILENCE_MAX) with frames open, or one of them not for
    /// [`SCATTER_FRAME_MAX`](crate::limits::SCATTER_FRAME_MAX).
    Silent,
    /// It takes a quarter or less of what each other target takes, or of what they could take if it did not hold them up over TCP: see
    /// [`CongestionControl::laggard`].
    Laggard,
}

/// What a sender has done, for reports and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderCounters {
    /// Pieces multicast for the first time.
    pub multicast_pieces: u64,
    /// Pieces multicast again.
    pub multicast_repairs: u64,
    /// Parity pieces, multicast in place of pieces that some miss and others don't.
    pub parity_pieces: u64,
    /// Pieces of frames that go over TCP from the start, to one target.
    pub unicast_pieces: u64,
    /// The same, to the first of several that pass them on.
    pub relay_pieces: u64,
    /// Pieces repaired over TCP.
    pub unicast_repairs: u64,
    /// Losses that were reported by a target for the first time or anew.
    pub losses: u64,
}

/// Where a set's frames are that go by multicast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MulticastProgress {
    /// Some have not left entirely.
    pub is_leaving: bool,
    /// Members that have not acknowledged all of them, as bits.
    pub waiting: u128,
}

/// A target set.
#[derive(Debug)]
struct Set {
    members: TargetMask,
    /// Members that are not reached by multicast.
    by_unicast: TargetMask,
    /// What is missed of its frames goes over TCP, however many miss it.
    repairs_by_unicast: bool,
    /// Bytes of its datagrams behind the UDP header.
    datagram_bytes: usize,
    /// Packet number of the next datagram.
    next_number: u64,
}

/// Moves frames to target sets.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    sets: HashMap<u16, Set>,
    targets: BTreeMap<u16, Target>,
    frames: BTreeMap<u64, OpenFrame>,
    hops: Hops,
    /// Bytes of their bodies.
    window_bytes: usize,
    newest: Option<u64>,
    /// Frames that have not left entirely by multicast.
    multicast: VecDeque<u64>,
    /// Pieces that are missed, until when the others' reports are waited for.
    pending: BTreeMap<(u64, u16), Time>,
    /// When to look through `pending` next.
    decide_at: Option<Time>,
    /// What is to be multicast again, or parity in its place.
    multicast_repairs: VecDeque<MulticastRepair>,
    history: History,
    look_out: LookOut,
    congestion: Box<dyn CongestionControl>,
    rate: u64,
    /// Since when multicast has got little to all, and whether that was said.
    throttled: (Option<Time>, bool),
    bucket: TokenBucket,
    /// Bytes that TCP may still send before multicast's next turn: as many as multicast had in its last, or repairs would wait where there is
    /// always something to multicast. Targets are asked in turn.
    unicast_turn: usize,
    last_target: u16,
    events: VecDeque<SenderEvent>,
    counters: SenderCounters,
}

impl Sender {
    /// A sender without sets.
    ///
    /// # Panics
    /// If the configuration leaves no room for payload in a datagram or a piece.
    pub fn new(config: SenderConfig, now: Time) -> Self {
        assert!(
            config.datagram_bytes.min(config.unicast_piece_bytes) > PIECE_OVERHEAD_BYTES,
            "no room for payload"
        );
        let mut congestion: Box<dyn CongestionControl> = match config.bandwidth {
            Some(bandwidth) => Box::new(FixedRate::new(bandwidth)),
            None => Box::new(WorstMember::new()),
        };
        let rate = congestion.rate(now);
        Sender {
            config,
            sets: HashMap::new(),
            targets: BTreeMap::new(),
            frames: BTreeMap::new(),
            hops: Hops::default(),
            window_bytes: 0,
            newest: None,
            multicast: VecDeque::new(),
            pending: BTreeMap::new(),
            decide_at: None,
            multicast_repairs: VecDeque::new(),
            history: History::default(),
            look_out: LookOut::default(),
            congestion,
            rate,
            throttled: (None, false),
            bucket: TokenBucket::new(now),
            unicast_turn: 0,
            last_target: 0,
            events: VecDeque::new(),
            counters: SenderCounters::default(),
        }
    }

    /// Adds a set under its wire number. Without `multicast` its frames go over TCP to each member.
    ///
    /// # Panics
    /// If the set is there already or a target's number exceeds the limit.
    pub fn add_set(&mut self, set: u16, members: &[u16], multicast: bool) {
        let mask = members.iter().fold(0, |mask, target| mask | mask_of(*target));
        for target in members {
            self.targets.entry(*target).or_insert_with(|| Target::new(Time::ZERO));
        }
        let by_unicast = if multicast { 0 } else { mask };
        let new = Set {
            members: mask,
            by_unicast,
            repairs_by_unicast: false,
            datagram_bytes: self.config.datagram_bytes,
            next_number: 0,
        };
        let old = self.sets.insert(set, new);
        assert!(old.is_none(), "set {set} is there already");
    }

    /// From the next frame on, this member of a set gets it over TCP (it could not join, or does not keep up).
    pub fn serve_by_unicast(&mut self, set: u16, target: u16) {
        if let Some(set) = self.sets.get_mut(&set) {
            set.by_unicast |= mask_of(target) & set.members;
        }
    }

    /// From the next frame on, datagrams of the set have no more than so many bytes behind the UDP header.
    ///
    /// # Panics
    /// If that leaves no room for payload.
    pub fn limit_datagrams(&mut self, set: u16, bytes: usize) {
        assert!(bytes > PIECE_OVERHEAD_BYTES, "no room for payload");
        if let Some(set) = self.sets.get_mut(&set) {
            set.datagram_bytes = set.datagram_bytes.min(bytes);
        }
    }

    /// This target can use parity pieces. They are sent where all members of a set can.
    pub fn takes_parity(&mut self, target: u16) {
        self.targets.entry(target).or_insert_with(|| Target::new(Time::ZERO)).takes_parity = true;
    }

    /// Nothing of the set goes to its multicast group any more: what is missed of its frames goes over TCP. To be called
    /// when members leave the group; frames of the set must have left entirely by then, see
    /// [`Sender::multicast_progress`].
    pub fn repair_by_unicast(&mut self, set: u16) {
        if let Some(set) = self.sets.get_mut(&set) {
            set.repairs_by_unicast = true;
        }
    }

    /// How far the set's frames have got by multicast.
    pub fn multicast_progress(&self, set: u16) -> MulticastProgress {
        let mut progress = MulticastProgress::default();
        for frame in self.frames.values().filter(|frame| frame.set == set) {
            let waiting = frame.multicast_waiting();
            progress.is_leaving |= waiting != 0 && frame.multicast_next < frame.count;
            progress.waiting |= waiting;
        }
        progress
    }

    /// A target has died or left: nothing goes to it any more and its acknowledgements are not waited for.
    pub fn remove_target(&mut self, target: u16, _now: Time) {
        if self.targets.remove(&target).is_none() {
            return;
        }
        let mask = mask_of(target);
        self.sets.values_mut().for_each(|set| set.members &= !mask);
        let mut settled = Vec::new();
        for (number, frame) in &mut self.frames {
            frame.waiting &= !mask;
            frame.unicast_left &= !mask;
            if frame.waiting == 0 {
                settled.push(*number);
            }
        }
        settled.into_iter().for_each(|frame| self.forget(frame));
        self.remove_from_chains(target);
        self.congestion.remove(target);
    }

    /// Bytes of bodies that may be pushed now. The last frame may exceed it, so that one that is larger than the
    /// whole window still passes.
    pub fn window_free(&self) -> usize {
        let span = match (self.frames.keys().next(), self.newest) {
            (Some(oldest), Some(newest)) => newest - oldest + 1,
            _ => 0,
        };
        if span >= FRAME_SPAN_MAX || self.frames.len() >= OPEN_FRAMES_MAX {
            return 0;
        }
        self.config.repair_window_bytes.saturating_sub(self.window_bytes)
    }

    /// Takes a frame's body to be sent to the members of a set.
    ///
    /// # Panics
    /// If the set is unknown, the number not above the last one's or too far above the oldest open one, or the body
    /// empty or longer than a body can be: all of these are the caller's mistakes.
    pub fn push(&mut self, frame: u64, set: u16, body: Arc<[u8]>) {
        assert!(self.newest.is_none_or(|newest| frame > newest), "frame numbers rise");
        assert!(!body.is_empty() && body.len() <= FRAME_SEALED_BODY_BYTES_MAX, "a frame body's length");
        let oldest = self.frames.keys().next().copied().unwrap_or(frame);
        assert!(frame - oldest <= FRAME_SPAN_MAX, "the oldest open frame is too far behind");
        self.newest = Some(frame);
        let state = self.sets.get(&set).expect("the set was added");
        if state.members == 0 {
            self.events.push_back(SenderEvent::Settled { frame });
            return;
        }
        let piece_bytes = if state.members & !state.by_unicast == 0 {
            self.config.unicast_piece_bytes - PIECE_OVERHEAD_BYTES
        } else {
            let room = state.datagram_bytes - PIECE_OVERHEAD_BYTES;
            if room < STRIPS { room } else { room - room % STRIPS }
        };
        self.window_bytes += body.len();
        let mut open = OpenFrame::new(set, body, piece_bytes, state.members, state.by_unicast);
        open.takes_parity = piece_bytes.is_multiple_of(STRIPS)
            && piece_bytes <= usize::from(u16::MAX)
            && targets_of(state.members).all(|target| self.targets[&target].takes_parity);
        if open.multicast_waiting() != 0 {
            self.multicast.push_back(frame);
        }
        let by_unicast = open.by_unicast;
        self.frames.insert(frame, open);
        self.deliver(frame, by_unicast);
    }

    /// What has happened, in order.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// When to call [`Sender::poll_transmit`] again if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Time> {
        let announce = self.targets.values().filter_map(|target| target.announce_at);
        let silence = self.targets.values().filter_map(Target::given_up_at);
        let to_send =
            !self.multicast.is_empty() || !self.multicast_repairs.is_empty() || self.is_unicast_paced();
        let pace = to_send.then(|| self.bucket.ready_at(self.rate));
        let laggard = self.congestion.laggard().map(|(_, at)| at);
        let laggard = laggard.into_iter().chain(self.look_out.timeout());
        announce.chain(silence).chain(laggard).chain(self.decide_at).chain(pace).min()
    }

    fn is_unicast_paced(&self) -> bool {
        self.config.bandwidth.is_some() && self.targets.values().any(|target| self.may_go_on(target))
    }

    /// Whether no frame is open.
    pub fn is_idle(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes a second at which multicast leaves now.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// What has been done so far.
    pub fn counters(&self) -> SenderCounters {
        self.counters
    }

    fn target(&mut self, target: u16) -> &mut Target {
        self.targets.get_mut(&target).expect("members of sets are known until they are removed")
    }

    /// Nobody waits for the frame any more.
    fn forget(&mut self, number: u64) {
        if let Some(frame) = self.frames.remove(&number) {
            self.window_bytes -= frame.body.len();
            self.events.push_back(SenderEvent::Settled { frame: number });
        }
    }

    /// Whether multicast has got to no target more than a small part of what it began with.
    fn look_for_throttle(&mut self, now: Time) {
        let least = self.config.bandwidth.map_or(RATE_START, |rate| rate.min(RATE_START)) / THROTTLED_RATIO;
        let is_multicast = !self.multicast.is_empty() || !self.multicast_repairs.is_empty();
        let carried = self.congestion.carried().filter(|rate| is_multicast && *rate < least);
        let Some(bytes_per_s) = carried else {
            self.throttled.0 = None;
            return;
        };
        let since = *self.throttled.0.get_or_insert(now);
        if now.since(since) >= THROTTLED_SPAN && !self.throttled.1 {
            self.throttled.1 = true;
            self.events.push_back(SenderEvent::Throttled { bytes_per_s });
        }
    }

    /// What is due by time alone.
    fn tick(&mut self, now: Time) {
        self.rate = self.congestion.rate(now);
        self.look_for_throttle(now);
        let laggard = self.congestion.laggard().filter(|(_, at)| now >= *at).map(|(target, _)| target);
        let laggard = laggard.or_else(|| self.tcp_laggard(now));
        let mut expelled = Vec::new();
        for (number, target) in &mut self.targets {
            if target.announce_at.is_some_and(|at| now >= at) || target.announce.len() >= ANNOUNCE_SPANS_MAX {
                let spans = std::mem::take(&mut target.announce);
                target.announce_at = None;
                self.events.push_back(SenderEvent::Announce { target: *number, spans });
            }
            if laggard == Some(*number) {
                expelled.push((*number, Expulsion::Laggard));
            } else if target.given_up_at().is_some_and(|at| now >= at) {
                expelled.push((*number, Expulsion::Silent));
            }
        }
        for (target, why) in expelled {
            self.remove_target(target, now);
            self.events.push_back(SenderEvent::Expelled { target, why });
        }
        self.decide_repairs(now);
    }
}
