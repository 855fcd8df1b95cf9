//! What a stranger, a member gone bad or a broken peer may send.

use proptest::prelude::*;

use super::world::{Rng, SESSION, set_key};
use crate::limits::SCATTER_SILENCE_MAX;
use crate::time::Time;
use crate::transport::{
    DropReason, Expulsion, Outcome, Receiver, ReceiverConfig, Sender, SenderConfig, SenderEvent, Transmit,
    TransportError,
};
use crate::wire::control::{FrameGap, FrameSpan, Report};
use crate::wire::piece::{PieceHeader, PieceKind, seal_piece};
use crate::wire::seal::{Channel, OpenKey, SealKey};

fn receiver() -> Receiver {
    let mut receiver =
        Receiver::new(ReceiverConfig { session: SESSION, target: 2, ..Default::default() }, Time::ZERO);
    receiver
        .add_set(1, OpenKey::new(&set_key(1), &[Channel::MULTICAST, Channel::PROBE, Channel::unicast(2)]));
    receiver
}

fn header(index: u16, count: u16) -> PieceHeader {
    PieceHeader { index, count, ..PieceHeader::whole(PieceKind::Scatter, 1, SESSION, 9, 100) }
}

fn sealed(key: &mut SealKey, header: &PieceHeader, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    seal_piece(key, header, payload, &mut out).unwrap();
    out
}

fn source() -> SealKey {
    SealKey::new(&set_key(1), Channel::MULTICAST)
}

#[test]
fn strangers_are_counted_and_change_nothing() {
    let (mut receiver, mut source) = (receiver(), source());
    let mut give = |piece: &[u8]| match receiver.on_piece(Time::ZERO, &mut piece.to_vec()) {
        Outcome::Dropped(reason) => Some(reason),
        _ => None,
    };
    let genuine = sealed(&mut source, &header(0, 2), &[1; 100]);
    for at in 0..genuine.len() {
        let mut changed = genuine.clone();
        changed[at] ^= 0x40;
        assert!(give(&changed).is_some(), "byte {at}");
    }
    let mut stranger = SealKey::new(&[0; 32], Channel::MULTICAST);
    assert_eq!(give(&sealed(&mut stranger, &header(0, 2), &[1; 100])), Some(DropReason::Forged));
    let other = PieceHeader { set: 5, ..header(0, 2) };
    assert_eq!(give(&sealed(&mut source, &other, &[1; 100])), Some(DropReason::UnknownSet));
    let other = PieceHeader { session: 1, ..header(0, 2) };
    assert_eq!(give(&sealed(&mut source, &other, &[1; 100])), Some(DropReason::UnknownSession));
    assert_eq!(give(&[]), Some(DropReason::Malformed));
    assert_eq!(give(&genuine), None);
    assert_eq!(give(&genuine), Some(DropReason::Replayed));
    assert_eq!(give(&sealed(&mut source, &header(1, 3), &[1; 100])), Some(DropReason::Inconsistent));
    assert_eq!(give(&sealed(&mut source, &header(1, 2), &[2; 7])), None);
    let body = [&[1; 100][..], &[2; 7]].concat();
    assert_eq!(receiver.poll_frame(), Some((9, 1, body)));
    assert_eq!(receiver.poll_frame(), None);
    let counters = receiver.counters();
    assert_eq!((counters.opened, counters.replayed, counters.inconsistent), (3, 1, 1));
    assert_eq!((counters.unknown_set, counters.unknown_session), (1 + 2, 1 + 8));
    assert_eq!(counters.malformed + counters.forged, 2 + genuine.len() as u64 - 2 - 8);
}

#[test]
fn streams_come_by_the_data_connection_only_and_probes_are_told() {
    let mut receiver = receiver();
    let stream = PieceHeader { vm: 4, ..PieceHeader::whole(PieceKind::Stream, 1, SESSION, 6, 3) };
    let mut by_multicast = sealed(&mut source(), &stream, b"abc");
    assert_eq!(receiver.on_piece(Time::ZERO, &mut by_multicast), Outcome::Dropped(DropReason::Malformed));
    let mut by_tcp = sealed(&mut SealKey::new(&set_key(1), Channel::unicast(2)), &stream, b"abc");
    let payload = &mut b"abc".to_vec()[..];
    assert_eq!(receiver.on_piece(Time::ZERO, &mut by_tcp), Outcome::Stream { vm: 4, seq: 6, payload });
    let probe = PieceHeader::whole(PieceKind::Probe, 1, SESSION, 77, 1000);
    let mut probe = sealed(&mut SealKey::new(&set_key(1), Channel::PROBE), &probe, &[0; 1000]);
    assert_eq!(receiver.on_piece(Time::ZERO, &mut probe), Outcome::Taken);
    assert_eq!(receiver.poll_probe(), Some((1, 77)));
    assert_eq!(receiver.poll_report(Time(1_000_000)), None, "neither is news for a report");
}

#[test]
fn data_connection_is_the_source_s_once() {
    let mut receiver = receiver();
    let hello = PieceHeader::whole(PieceKind::DataHello, 1, SESSION, 0, 1);
    let piece = sealed(&mut SealKey::new(&set_key(1), Channel::unicast(2)), &hello, &[0]);
    let by_multicast = sealed(&mut source(), &hello, &[0]);
    let forged = sealed(&mut SealKey::new(&[0; 32], Channel::unicast(2)), &hello, &[0]);
    assert!(!receiver.is_hello(&mut by_multicast.clone(), 1));
    assert!(!receiver.is_hello(&mut forged.clone(), 1));
    assert!(receiver.is_hello(&mut piece.clone(), 1));
    assert!(!receiver.is_hello(&mut piece.clone(), 1), "replayed");
    assert_eq!((receiver.counters().forged, receiver.counters().replayed), (1, 1));
}

#[test]
fn receiver_is_bounded() {
    let config = ReceiverConfig { session: SESSION, target: 2, bytes_max: 10_000, ..Default::default() };
    let mut receiver = Receiver::new(config, Time::ZERO);
    receiver.add_set(1, OpenKey::new(&set_key(1), &[Channel::MULTICAST]));
    let mut source = source();
    let mut give = |receiver: &mut Receiver, frame| {
        let mut piece = sealed(&mut source, &PieceHeader { frame, ..header(0, 40) }, &[1; 100]);
        matches!(receiver.on_piece(Time::ZERO, &mut piece), Outcome::Taken)
    };
    assert!(give(&mut receiver, 1) && give(&mut receiver, 2) && !give(&mut receiver, 3));
    assert_eq!((receiver.held_bytes(), receiver.counters().over_limit), (8_000, 1));
    let span = |set, first, last| FrameSpan { set, first, last };
    receiver.on_sent(
        Time::ZERO,
        &[span(1, 0, u64::MAX), span(1, 5, 4), span(9, 0, 3), span(1, u64::MAX, u64::MAX)],
    );
    let report = receiver.poll_report(Time(100_000)).unwrap();
    assert!(report.gaps.len() <= super::super::REPORT_GAPS_MAX);
    assert_eq!(report.gaps[0], FrameGap { frame: 0, pieces: vec![] });
    assert_eq!(report.gaps[1], FrameGap { frame: 1, pieces: vec![(1, 39)] });
    receiver.remove_set(1);
    assert_eq!(receiver.held_bytes(), 0);
}

/// As many spans as a message holds, each of which names all numbers: minutes of work if each were gone through.
#[test]
fn a_message_of_spans_is_soon_gone_through() {
    let mut receiver = receiver();
    let everything = FrameSpan { set: 1, first: 0, last: u64::MAX };
    let begun = std::time::Instant::now();
    receiver.on_sent(Time::ZERO, &vec![everything; 300_000]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(receiver.poll_report(Time(100_000)).is_some());
}

/// A sender of one frame of three pieces to targets 0 and 1, sent entirely.
fn sent() -> (Sender, Vec<Transmit>) {
    sent_by(Sender::new(SenderConfig::default(), Time::ZERO))
}

/// The same, to members that can use parity.
fn sent_with_parity() -> (Sender, Vec<Transmit>) {
    let mut sender = Sender::new(SenderConfig::default(), Time::ZERO);
    [0, 1].into_iter().for_each(|target| sender.takes_parity(target));
    sent_by(sender)
}

fn sent_by(mut sender: Sender) -> (Sender, Vec<Transmit>) {
    sender.add_set(1, &[0, 1], true);
    sender.add_set(2, &[1], false);
    sender.push(5, 1, vec![1; 4000].into());
    let transmits =
        std::iter::successors(sender.poll_transmit(Time::ZERO), |_| sender.poll_transmit(Time(5000)));
    let transmits: Vec<_> = transmits.collect();
    (sender, transmits)
}

#[test]
fn nonsense_in_reports_is_an_error() {
    let (mut sender, transmits) = sent();
    assert_eq!(transmits.iter().map(|transmit| transmit.indices().len()).sum::<usize>(), 3);
    let now = Time(10_000);
    let mut refused = |report: Report| sender.on_report(0, &report, now).unwrap_err();
    for (first, last) in [(4, 5), (5, 6), (6, 5), (0, u64::MAX), (u64::MAX, u64::MAX), (9, 9)] {
        let report = Report { written: vec![(first, last)], ..Default::default() };
        assert_eq!(refused(report), TransportError::Acknowledges(first, last));
    }
    let gap = |frame, pieces| Report { gaps: vec![FrameGap { frame, pieces }], ..Default::default() };
    assert_eq!(refused(gap(6, vec![])), TransportError::Gap(6));
    for pieces in
        [vec![(0, 3)], vec![(1, 0)], vec![(0, 1), (1, 2)], vec![(2, 2), (0, 0)], vec![(0, u16::MAX)]]
    {
        assert_eq!(refused(gap(5, pieces)), TransportError::Ranges(5));
    }
    let seen = |set, below| Report { seen: vec![(set, below)], ..Default::default() };
    assert_eq!(refused(seen(1, 4)), TransportError::Seen(1));
    assert_eq!(refused(seen(2, 0)), TransportError::Seen(2));
    assert_eq!(refused(seen(3, 0)), TransportError::Seen(3));
    assert_eq!(sender.on_report(3, &Report::default(), now), Err(TransportError::UnknownTarget));
    let written = Report { written: vec![(5, 5)], ..Default::default() };
    assert_eq!(sender.on_report(0, &written, now), Ok(()));
    assert_eq!(sender.on_report(0, &written, now), Err(TransportError::Acknowledges(5, 5)), "twice");
}

#[test]
fn frame_that_is_not_sent_yet_is_not_open_at_a_target() {
    let mut sender = Sender::new(SenderConfig { bandwidth: Some(1000), ..Default::default() }, Time::ZERO);
    sender.add_set(1, &[0, 1], true);
    sender.push(5, 1, vec![1; 4000].into());
    assert_eq!(sender.poll_transmit(Time::ZERO).unwrap().indices(), 0..1);
    let written = Report { written: vec![(5, 5)], ..Default::default() };
    assert_eq!(sender.on_report(0, &written, Time(1)), Err(TransportError::Acknowledges(5, 5)));
}

/// A report that was under way when the repair left brings no second one.
#[test]
fn loss_is_answered_once() {
    let (mut sender, _) = sent();
    let gaps = vec![FrameGap { frame: 5, pieces: vec![(1, 1)] }];
    let report = Report { seen: vec![(1, 3)], gaps: gaps.clone(), ..Default::default() };
    sender.on_report(0, &report, Time(10_000)).unwrap();
    assert!(sender.poll_transmit(Time(10_000)).is_none(), "the other member is waited for");
    sender.on_report(1, &report, Time(12_000)).unwrap();
    let repair = sender.poll_transmit(Time(12_000)).unwrap();
    assert_eq!((repair.indices(), repair.number), (1..2, Some(3)));
    for at in [13_000, 20_000, 30_000] {
        let report = Report { seen: vec![(1, 3)], gaps: gaps.clone(), ..Default::default() };
        sender.on_report(0, &report, Time(at)).unwrap();
        sender.on_report(1, &report, Time(at)).unwrap();
        assert!(sender.poll_transmit(Time(at + 500)).is_none());
    }
    // Only one has missed the repair too: that goes over TCP, once.
    let report = Report { seen: vec![(1, 4)], gaps, ..Default::default() };
    sender.on_report(0, &report, Time(40_000)).unwrap();
    sender.on_report(1, &Report { seen: vec![(1, 4)], ..Default::default() }, Time(40_000)).unwrap();
    let repair = sender.poll_transmit(Time(40_000)).unwrap();
    assert_eq!((repair.indices(), repair.path), (1..2, crate::transport::Path::Unicast { target: 0 }));
    sender.on_report(0, &report, Time(50_000)).unwrap();
    assert!(sender.poll_transmit(Time(70_000)).is_none());
    assert_eq!(sender.counters().losses, 3);
}

fn gap_report(below: u64, piece: u16) -> Report {
    let gaps = vec![FrameGap { frame: 5, pieces: vec![(piece, piece)] }];
    Report { seen: vec![(1, below)], gaps, ..Default::default() }
}

/// Two who miss different pieces get one of parity, once they have had the time to say so, and no second one until they have seen it.
#[test]
fn different_losses_are_answered_at_once() {
    let (mut sender, _) = sent_with_parity();
    sender.on_report(0, &gap_report(3, 0), Time(10_000)).unwrap();
    sender.on_report(1, &gap_report(3, 2), Time(12_000)).unwrap();
    assert!(sender.poll_transmit(Time(12_000)).is_none());
    let parity = sender.poll_transmit(Time(26_000)).unwrap();
    assert!(parity.is_parity());
    assert_eq!((parity.indices(), parity.number), (0..1, Some(3)));
    for at in [27_000, 40_000] {
        sender.on_report(0, &gap_report(3, 0), Time(at)).unwrap();
        assert!(sender.poll_transmit(Time(at + 500)).is_none());
    }
    // One has lost the parity too.
    sender.on_report(0, &gap_report(4, 0), Time(50_000)).unwrap();
    let repair = sender.poll_transmit(Time(66_000)).unwrap();
    assert_eq!((repair.indices(), repair.path), (0..1, crate::transport::Path::Unicast { target: 0 }));
    assert_eq!(sender.counters().parity_pieces, 1);
}

#[test]
fn who_has_it_after_all_gets_no_parity() {
    let (mut sender, _) = sent_with_parity();
    sender.on_report(0, &gap_report(3, 0), Time(10_000)).unwrap();
    sender.on_report(0, &Report { written: vec![(5, 5)], ..Default::default() }, Time(12_000)).unwrap();
    assert!(sender.poll_transmit(Time(26_000)).is_none());
}

/// A repair that waits for the pace is not queued again by the next report.
#[test]
fn loss_is_queued_once() {
    // A datagram takes some 15 ms.
    let mut sender = Sender::new(SenderConfig { bandwidth: Some(100_000), ..Default::default() }, Time::ZERO);
    sender.add_set(1, &[0, 1], true);
    sender.push(5, 1, vec![1; 4000].into());
    let mut sent = Vec::new();
    for at in 0..200 {
        let now = Time(at * 1000);
        sent.extend(sender.poll_transmit(now).map(|transmit| (at, transmit.indices())));
        if sent.len() == 3 {
            let gaps = vec![FrameGap { frame: 5, pieces: vec![(0, 2)] }];
            let report = Report { seen: vec![(1, 3)], gaps, ..Default::default() };
            sender.on_report(0, &report, now).unwrap();
            sender.on_report(1, &report, now).unwrap();
        }
    }
    assert_eq!(sent.len(), 6, "{sent:?}");
    assert_eq!(sender.counters().multicast_repairs, 3);
}

#[test]
fn silence_is_measured_from_what_was_open() {
    let (mut sender, _) = sent();
    let almost = Time(SCATTER_SILENCE_MAX.as_micros() as u64 - 1);
    assert!(sender.poll_transmit(almost).is_none());
    sender.on_report(1, &Report { written: vec![(5, 5)], ..Default::default() }, almost).unwrap();
    sender.poll_transmit(almost + std::time::Duration::from_millis(20));
    let events: Vec<_> = std::iter::from_fn(|| sender.poll_event()).collect();
    assert!(events.contains(&SenderEvent::Expelled { target: 0, why: Expulsion::Silent }));
    assert!(!events.contains(&SenderEvent::Expelled { target: 1, why: Expulsion::Silent }));
    assert!(sender.is_idle());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a target reports, the sender neither panics nor grows, and the other target is served.
    #[test]
    fn wild_reports_harm_only_their_sender(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let mut sender = Sender::new(SenderConfig { repair_window_bytes: 100_000, ..Default::default() }, Time::ZERO);
        sender.add_set(1, &[0, 1], true);
        let mut now = Time::ZERO;
        for frame in 0..40 {
            while sender.window_free() == 0 {
                sender.remove_target(0, now);
                let open: Vec<_> = (0..frame).map(|frame| (frame, frame)).collect();
                for written in open {
                    let report = Report { written: vec![written], ..Default::default() };
                    let _ = sender.on_report(1, &report, now);
                }
            }
            sender.push(frame, 1, vec![1; 9_000].into());
            for _ in 0..3 {
                now = now + std::time::Duration::from_millis(2);
                while sender.poll_transmit(now).is_some() {}
                let range = |rng: &mut Rng| (rng.below(12) as u16, rng.below(12) as u16);
                let report = Report {
                    received_bytes: rng.next(),
                    received_datagrams: rng.next() >> rng.below(64),
                    seen: vec![(1, rng.below(300))],
                    clock_us: rng.next() >> rng.below(64),
                    written: (0..rng.below(2)).map(|_| (rng.below(frame + 2), rng.below(frame + 2))).collect(),
                    gaps: (0..rng.below(4))
                        .map(|_| FrameGap {
                            frame: rng.below(frame + 2),
                            pieces: (0..rng.below(3)).map(|_| range(&mut rng)).collect(),
                        })
                        .collect(),
                };
                let _ = sender.on_report(0, &report, now);
            }
        }
    }
}
