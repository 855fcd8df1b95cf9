//! A target's side: puts frames together, and says what has been written and what is missing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::parts::Parts;
use super::{
    FRAME_SPAN_MAX, LINK_INTERVAL, REORDER_DELAY, REPORT_GAPS_MAX, REPORT_INTERVAL, REPORT_RANGES_MAX,
    REPORT_SETS_MAX, REPORT_WRITTEN_BYTES,
};
use crate::limits::RECEIVER_BYTES_MAX;
use crate::time::Time;
use crate::wire::NumberWindow;
use crate::wire::control::{FrameGap, FrameSpan, LinkCounters, Report};
use crate::wire::piece::{PROBE_OF_TRAIN, PieceError, PieceHeader, PieceKind, open_piece, peek_set};
use crate::wire::seal::{Channel, OpenError, OpenKey};

/// What a [`Receiver`] is told when it is made.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// First eight bytes of the session's UUID.
    pub session: u64,
    /// The target's own number.
    pub target: u16,
    /// Bytes of frames that are incomplete, complete, or given out and not yet written.
    pub bytes_max: usize,
    /// How often to report.
    pub report_interval: Duration,
    /// The source wants to know what the link brings.
    pub counts_link: bool,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        let (bytes_max, report_interval) = (RECEIVER_BYTES_MAX, REPORT_INTERVAL);
        ReceiverConfig { session: 0, target: 0, bytes_max, report_interval, counts_link: true }
    }
}

/// Why a piece was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// No piece of this version, or one of a kind that does not belong on its path.
    Malformed,
    /// Of another session.
    UnknownSession,
    /// Of a set of which this target is no member.
    UnknownSet,
    /// Not sealed by one who has the set's key, or changed since.
    Forged,
    /// Seen before, or too old to know.
    Replayed,
    /// Says of its frame what another piece contradicts.
    Inconsistent,
    /// No room; it will be missed and sent again.
    OverLimit,
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// It was taken in, or is of no use any more.
    Taken,
    /// A VM's stream frame, for the session.
    Stream {
        /// The VM.
        vm: u16,
        /// The frame's number in the VM's stream.
        seq: u64,
        /// The frame's body.
        payload: &'a mut [u8],
    },
    /// It was dropped and counted.
    Dropped(DropReason),
}

/// Pieces since the session began, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // As in `DropReason`.
pub struct ReceiverCounters {
    /// Pieces that were opened.
    pub opened: u64,
    /// Of these, pieces that were there already or of frames that were complete.
    pub duplicate: u64,
    pub malformed: u64,
    pub unknown_session: u64,
    pub unknown_set: u64,
    pub forged: u64,
    pub replayed: u64,
    pub inconsistent: u64,
    pub over_limit: u64,
}

#[derive(Debug)]
struct Set {
    key: OpenKey,
    /// What the last report said of it.
    reported_below: u64,
    /// Probes of trains that have come.
    train: u64,
}

/// A frame that is not complete.
#[derive(Debug)]
struct Incoming {
    set: u16,
    announced: Option<Time>,
    parts: Option<Parts>,
}

/// Puts together the frames of the sets that this target is a member of.
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    began: Time,
    sets: HashMap<u16, Set>,
    frames: BTreeMap<u64, Incoming>,
    /// Frames that were complete.
    complete: NumberWindow,
    ready: VecDeque<(u64, u16, Vec<u8>)>,
    /// Complete frames that are not written, and their bytes.
    unwritten: HashMap<u64, usize>,
    /// Bytes of all frames that are held or given out.
    bytes: usize,
    /// Frames to be acknowledged with the next report, and their bytes.
    written: BTreeSet<u64>,
    written_bytes: usize,
    probes: VecDeque<(u16, u64)>,
    datagrams: u64,
    datagram_bytes: u64,
    /// Something has arrived since the last report.
    is_news: bool,
    reported: Option<Time>,
    /// Bytes of all pieces that have come, whatever became of them.
    session_bytes: u64,
    /// The same when the link was looked at, and when that was.
    link_counted: (u64, Time),
    counters: ReceiverCounters,
}

/// Probes that wait to be asked for.
const PROBES_MAX: usize = 64;

impl Receiver {
    /// A receiver that is a member of no set.
    pub fn new(config: ReceiverConfig, now: Time) -> Self {
        Receiver {
            config,
            began: now,
            sets: HashMap::new(),
            frames: BTreeMap::new(),
            complete: NumberWindow::new(2 * FRAME_SPAN_MAX),
            ready: VecDeque::new(),
            unwritten: HashMap::new(),
            bytes: 0,
            written: BTreeSet::new(),
            written_bytes: 0,
            probes: VecDeque::new(),
            datagrams: 0,
            datagram_bytes: 0,
            is_news: false,
            reported: None,
            session_bytes: 0,
            link_counted: (0, now),
            counters: ReceiverCounters::default(),
        }
    }

    /// The target's own number.
    pub fn target(&self) -> u16 {
        self.config.target
    }

    /// Makes the target a member of a set. The key should open [`Channel::MULTICAST`], [`Channel::PROBE`] where probes
    /// are expected, [`Channel::RELAY`], and the target's own [`Channel::unicast`]. A set that is there already stays as it is.
    pub fn add_set(&mut self, set: u16, key: OpenKey) {
        self.sets.entry(set).or_insert(Set { key, reported_below: 0, train: 0 });
    }

    /// Ends the membership; what is incomplete of the set's frames is dropped.
    pub fn remove_set(&mut self, set: u16) {
        self.sets.remove(&set);
        let freed =
            self.frames.values().filter(|frame| frame.set == set).filter_map(|frame| frame.parts.as_ref());
        self.bytes -= freed.map(Parts::held_bytes).sum::<usize>();
        self.frames.retain(|_, frame| frame.set != set);
    }

    /// Takes in a datagram, or a piece of the data connection without its length; opens it in place.
    pub fn on_piece<'a>(&mut self, _now: Time, piece: &'a mut [u8]) -> Outcome<'a> {
        let bytes = piece.len();
        self.session_bytes += bytes as u64;
        let outcome = match self.open(piece) {
            Err(reason) => Outcome::Dropped(reason),
            Ok((header, payload)) if header.kind == PieceKind::Stream => {
                if header.channel != Channel::unicast(self.config.target) || header.count != 1 {
                    Outcome::Dropped(DropReason::Malformed)
                } else {
                    Outcome::Stream { vm: header.vm, seq: header.frame, payload }
                }
            }
            Ok((header, payload)) => match self.on_opened(&header, payload, bytes) {
                Ok(()) => Outcome::Taken,
                Err(reason) => Outcome::Dropped(reason),
            },
        };
        if let Outcome::Dropped(reason) = outcome {
            self.count(reason);
        }
        outcome
    }

    /// Whether `piece`, the first of a data connection, comes from the source: a [`PieceKind::DataHello`] that is sealed
    /// for this target under `set`, and seen for the first time. Opens it in place; what it is not is counted.
    pub fn is_hello(&mut self, piece: &mut [u8], set: u16) -> bool {
        let own = Channel::unicast(self.config.target);
        match self.open(piece) {
            Ok((header, _)) => {
                header.kind == PieceKind::DataHello && header.set == set && header.channel == own
            }
            Err(reason) => {
                self.count(reason);
                false
            }
        }
    }

    fn open<'a>(&mut self, piece: &'a mut [u8]) -> Result<(PieceHeader, &'a mut [u8]), DropReason> {
        let header = PieceHeader::decode(piece).map_err(|_| DropReason::Malformed)?;
        if header.session != self.config.session {
            return Err(DropReason::UnknownSession);
        }
        let set = peek_set(piece).and_then(|set| self.sets.get_mut(&set)).ok_or(DropReason::UnknownSet)?;
        let opened = open_piece(&mut set.key, piece).map_err(|error| match error {
            PieceError::Open(OpenError::Replayed) => DropReason::Replayed,
            PieceError::Open(OpenError::Forged) => DropReason::Forged,
            _ => DropReason::Malformed,
        })?;
        self.counters.opened += 1;
        Ok(opened)
    }

    /// Takes in what a genuine piece of scatter or a probe carries.
    fn on_opened(
        &mut self,
        header: &PieceHeader,
        payload: &[u8],
        sealed_bytes: usize,
    ) -> Result<(), DropReason> {
        if header.channel == Channel::MULTICAST {
            self.datagrams += 1;
            self.datagram_bytes += sealed_bytes as u64;
            self.is_news = true;
        }
        match header.kind {
            PieceKind::Scatter => self.on_scatter(header, payload),
            PieceKind::Parity if header.channel == Channel::MULTICAST => self.on_scatter(header, payload),
            PieceKind::Probe if header.frame == PROBE_OF_TRAIN => {
                if let Some(set) = self.sets.get_mut(&header.set) {
                    set.train += 1;
                }
                Ok(())
            }
            PieceKind::Probe => {
                if self.probes.len() < PROBES_MAX {
                    self.probes.push_back((header.set, header.frame));
                }
                Ok(())
            }
            PieceKind::Stream | PieceKind::DataHello | PieceKind::Parity => Err(DropReason::Malformed),
        }
    }

    /// A piece of a frame, or one of parity.
    fn on_scatter(&mut self, header: &PieceHeader, payload: &[u8]) -> Result<(), DropReason> {
        let number = header.frame;
        if self.complete.is_seen(number) {
            self.counters.duplicate += 1;
            return Ok(());
        }
        if self.frames.len() >= FRAME_SPAN_MAX as usize && !self.frames.contains_key(&number) {
            return Err(DropReason::OverLimit);
        }
        let set = header.set;
        let known = self.frames.get(&number);
        if known.is_some_and(|frame| frame.set != set) {
            return Err(DropReason::Inconsistent);
        }
        if known.is_none_or(|frame| frame.parts.is_none()) {
            let bytes = Parts::bytes_of(header);
            if self.bytes + bytes > self.config.bytes_max {
                return Err(DropReason::OverLimit);
            }
            self.bytes += bytes;
            let frame = self.frames.entry(number).or_insert(Incoming { set, announced: None, parts: None });
            frame.parts = Some(Parts::new(header));
        }
        let frame = self.frames.get_mut(&number).expect("inserted above");
        let parts = frame.parts.as_mut().expect("made above");
        if !parts.agrees(header) {
            return Err(DropReason::Inconsistent);
        }
        let before = parts.held_bytes();
        if header.kind == PieceKind::Parity {
            if !parts.needs_parity(header.index) {
                self.counters.duplicate += 1;
            } else if self.bytes + payload.len() > self.config.bytes_max {
                return Err(DropReason::OverLimit);
            } else {
                parts.put_parity(header.index, usize::from(header.vm), payload);
            }
        } else if !parts.put(header.index, payload) {
            self.counters.duplicate += 1;
        }
        self.bytes = self.bytes - before + parts.held_bytes();
        if parts.is_complete() {
            self.complete_frame(number, set);
        }
        Ok(())
    }

    fn complete_frame(&mut self, number: u64, set: u16) {
        let Some(parts) = self.frames.remove(&number).and_then(|frame| frame.parts) else { return };
        self.bytes -= parts.held_bytes();
        let body = parts.into_body();
        self.bytes += body.len();
        self.complete.mark(number);
        self.unwritten.insert(number, body.len());
        self.ready.push_back((number, set, body));
    }

    /// The source says that these frames have left entirely. Frames of sets that this target is no member of, and
    /// more than a source has open, are ignored.
    pub fn on_sent(&mut self, now: Time, spans: &[FrameSpan]) {
        // Over all spans together: a message holds half a million of them, each of which could name all numbers.
        let mut left = FRAME_SPAN_MAX;
        for span in spans {
            if !self.sets.contains_key(&span.set) || span.first > span.last {
                continue;
            }
            let count = (span.last - span.first).saturating_add(1).min(left);
            left -= count;
            for number in span.first..span.first.saturating_add(count) {
                self.announced(now, span.set, number);
            }
        }
    }

    fn announced(&mut self, now: Time, set: u16, number: u64) {
        if self.complete.is_seen(number) {
            return;
        }
        if let Some(frame) = self.frames.get_mut(&number) {
            frame.announced.get_or_insert(now);
        } else if self.frames.len() < FRAME_SPAN_MAX as usize {
            self.frames.insert(number, Incoming { set, announced: Some(now), parts: None });
        }
    }

    /// The next complete frame: its number, its set and its body. They come in the order of their completion.
    pub fn poll_frame(&mut self) -> Option<(u64, u16, Vec<u8>)> {
        self.ready.pop_front()
    }

    /// How many probes of trains have arrived of a set; `None` if the target is no member.
    pub fn train_datagrams(&self, set: u16) -> Option<u64> {
        self.sets.get(&set).map(|set| set.train)
    }

    /// The next probe that has arrived, but for those of trains: its set and its number.
    pub fn poll_probe(&mut self) -> Option<(u16, u64)> {
        self.probes.pop_front()
    }

    /// The frame has been written wherever it belongs here: it is acknowledged with the next report. To be called
    /// once for each frame that was given out; a frame that was not, or was written before, is ignored.
    pub fn written(&mut self, frame: u64) {
        if let Some(bytes) = self.unwritten.remove(&frame) {
            self.bytes -= bytes;
            self.written_bytes += bytes;
            self.written.insert(frame);
        }
    }

    /// The next report, if it is due.
    pub fn poll_report(&mut self, now: Time) -> Option<Report> {
        (self.report_at()? <= now).then(|| self.make_report(now))
    }

    /// What a report would say now, if it says anything, whether it is due or not.
    pub fn report_now(&mut self, now: Time) -> Option<Report> {
        self.report_at().is_some().then(|| self.make_report(now))
    }

    /// Whether it is time for [`Receiver::count_link`]: something has come, and the last time is [`LINK_INTERVAL`] ago.
    pub fn is_link_due(&self, now: Time) -> bool {
        let (bytes, at) = self.link_counted;
        self.config.counts_link && self.session_bytes > bytes && now.since(at) >= LINK_INTERVAL
    }

    /// What to tell the source, if the interface on which multicast arrives has received `link_bytes` by now.
    pub fn count_link(&mut self, now: Time, link_bytes: u64) -> LinkCounters {
        self.link_counted = (self.session_bytes, now);
        let clock_us = now.since(self.began).as_micros() as u64;
        LinkCounters { clock_us, link_bytes, session_bytes: self.session_bytes }
    }

    /// When [`Receiver::poll_report`] has something to say; `None` while nothing is open.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.report_at()
    }

    /// What became of the pieces.
    pub fn counters(&self) -> ReceiverCounters {
        self.counters
    }

    /// Bytes of frames that are incomplete, complete, or given out and not yet written.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    fn report_at(&self) -> Option<Time> {
        if self.frames.is_empty() && self.written.is_empty() && !self.is_news {
            return None;
        }
        match self.reported {
            Some(at) if self.written_bytes < REPORT_WRITTEN_BYTES => Some(at + self.config.report_interval),
            _ => Some(Time::ZERO),
        }
    }

    fn make_report(&mut self, now: Time) -> Report {
        self.reported = Some(now);
        self.is_news = false;
        self.written_bytes = 0;
        let mut written: Vec<(u64, u64)> = Vec::new();
        for number in std::mem::take(&mut self.written) {
            match written.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => written.push((number, number)),
            }
        }
        Report {
            received_bytes: self.datagram_bytes,
            received_datagrams: self.datagrams,
            seen: self.seen(),
            clock_us: now.since(self.began).as_micros() as u64,
            written,
            gaps: self.gaps(now),
        }
    }

    fn seen(&mut self) -> Vec<(u16, u64)> {
        let mut seen = Vec::new();
        for (number, set) in &mut self.sets {
            let below = set.key.seen_below(Channel::MULTICAST);
            if below != set.reported_below && seen.len() < REPORT_SETS_MAX {
                set.reported_below = below;
                seen.push((*number, below));
            }
        }
        seen.sort_unstable();
        seen
    }

    fn gaps(&self, now: Time) -> Vec<FrameGap> {
        let due = |frame: &Incoming| frame.announced.is_some_and(|at| at + REORDER_DELAY <= now);
        let mut room = REPORT_RANGES_MAX;
        let mut gaps = Vec::new();
        for (number, frame) in self.frames.iter().filter(|(_, frame)| due(frame)).take(REPORT_GAPS_MAX) {
            let pieces = frame.parts.as_ref().map_or(Vec::new(), |parts| parts.gaps(room));
            if room <= pieces.len() {
                break;
            }
            room -= pieces.len().max(1);
            gaps.push(FrameGap { frame: *number, pieces });
        }
        gaps
    }

    fn count(&mut self, reason: DropReason) {
        let counter = match reason {
            DropReason::Malformed => &mut self.counters.malformed,
            DropReason::UnknownSession => &mut self.counters.unknown_session,
            DropReason::UnknownSet => &mut self.counters.unknown_set,
            DropReason::Forged => &mut self.counters.forged,
            DropReason::Replayed => &mut self.counters.replayed,
            DropReason::Inconsistent => &mut self.counters.inconsistent,
            DropReason::OverLimit => &mut self.counters.over_limit,
        };
        *counter += 1;
    }
}
