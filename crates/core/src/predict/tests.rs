use super::*;
use crate::index::{PageSpace, Records, RunBuilder, Sharing, VmPages};
use crate::page::{Mac, PAGE_SIZE, PageAddr};
use crate::placement::{HolderGroup, HolderGroups, TargetId, TargetSet};
use crate::schedule::{Classes, Schedule};
use crate::transport::SenderConfig;
use crate::wire::frame::{Compression, Encoder, StreamFrameBuilder};
use crate::wire::piece::PIECE_OVERHEAD_BYTES;

/// Contents by number, from 1 on; 0 is a zero page.
fn collected(vms: &[&[u8]]) -> (crate::index::Contents, Sharing) {
    let blocks: Vec<Vec<(u16, u32)>> = vms.iter().map(|pages| vec![(0, pages.len() as u32)]).collect();
    let space = PageSpace::new(&blocks).unwrap();
    let mut builder = RunBuilder::new();
    let mut runs = Vec::new();
    for (vm, pages) in (0..).zip(vms) {
        for (page, content) in (0..).zip(*pages).filter(|(_, content)| **content > 0) {
            let number = space.number(PageAddr { vm, block: 0, page }).unwrap();
            runs.extend(builder.push(Mac([*content; 16]), number));
        }
    }
    runs.extend(builder.finish());
    let contents = crate::index::Contents::from_records(space, Records::new(runs));
    let pages: Vec<VmPages> = vms
        .iter()
        .map(|pages| VmPages {
            pages: pages.len() as u64,
            zero: pages.iter().filter(|content| **content == 0).count() as u64,
        })
        .collect();
    let sharing = Sharing::of(&contents, &pages);
    (contents, sharing)
}

fn to(targets: &[u8]) -> Vec<Option<TargetId>> {
    targets.iter().map(|target| Some(TargetId(*target))).collect()
}

/// 9 stands in all VMs, 5 twice in the first, 7 in the first two; the others are unique.
const VMS: [&[u8]; 3] = [&[9, 5, 5, 7, 1, 0], &[9, 9, 7, 2, 0, 0], &[9, 3, 4, 0, 0, 0]];

#[test]
fn an_inventory_counts_as_the_index_does() {
    let (contents, sharing) = collected(&VMS);
    let inventory = Inventory::of(&contents, &sharing, &[6, 6, 10]);
    for targets in [[0, 0, 0], [0, 0, 1], [0, 1, 2]] {
        let placement = to(&targets);
        let pages = |vm: &[u8]| VmPages {
            pages: vm.len() as u64,
            zero: vm.iter().filter(|content| **content == 0).count() as u64,
        };
        let expected = Classes::of(&contents, &VMS.map(pages), &placement);
        let classes = inventory.classes(&placement);
        assert_eq!(classes.isvst, expected.isvst);
        assert_eq!(classes.imvst, expected.imvst);
        assert_eq!(classes.imvmt, expected.imvmt);
        assert_eq!(classes.zero_pages, expected.zero_pages);
        // Four pages of the last VM could not be read.
        assert_eq!(classes.unique_pages, expected.unique_pages + 4);
        let volume = inventory.volume(&placement);
        let schedule = Schedule::new(&contents, &placement);
        let scheduled: u64 = schedule.sets.iter().map(|set| set.contents.len() as u64).sum();
        assert_eq!(volume.sets.iter().map(|set| set.contents).sum::<u64>(), scheduled);
        assert_eq!(volume.multicast().count(), schedule.multicast().len());
        assert_eq!(volume.scatter_pages(), contents.pages());
        assert_eq!(volume.record_pages(), 5 + 4 + 3 + 4);
    }
}

#[test]
fn vms_without_a_target_stay_out() {
    let (contents, sharing) = collected(&VMS);
    let inventory = Inventory::of(&contents, &sharing, &[6, 6, 6]);
    let volume = inventory.volume(&[None, None, Some(TargetId(1))]);
    assert_eq!(volume.vms.len(), 1);
    assert_eq!(volume.vms[0].unique, 2);
    assert!(volume.multicast().next().is_none());
}

#[test]
fn saved_groups_share_the_pages_evenly() {
    let (_, sharing) = collected(&VMS);
    let groups = HolderGroups {
        alone: vec![2, 1, 2],
        shared: vec![
            HolderGroup { vms: vec![0, 1], contents: 1 },
            HolderGroup { vms: vec![0, 1, 2], contents: 1 },
        ],
    };
    let inventory = Inventory::of_groups(groups, &sharing, &[6, 6, 6]);
    // Six pages for five (content, VM) pairs.
    assert_eq!(inventory.group_pages, [2, 3]);
    assert_eq!(inventory.total().unique, 4);
    assert_eq!(inventory.total().within_contents, 1);
}

fn page(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    (0..PAGE_SIZE / 8).flat_map(word).collect()
}

/// What the encoder and the sender's cutting make of a set, and what was predicted for it.
#[test]
fn a_multicast_set_is_predicted_from_its_format() {
    let (contents, copies) = (640u64, 3u64);
    let set = SetVolume { targets: TargetSet(0b11), contents, pages: contents * copies };
    let volume = Volume { vms: Vec::new(), sets: vec![set] };
    let wire = Wire { mtu: 1500, multicast_sets_max: 1, compressed: Compressed::NONE };
    let predicted = wire.bytes(&volume, 2);
    let (mut encoder, mut real) = (Encoder::new(), 0);
    let datagram = SenderConfig::default().datagram_bytes;
    for frame in 0..contents / 64 {
        let pages: Vec<(Vec<PageAddr>, Vec<u8>)> = (frame * 64..(frame + 1) * 64)
            .map(|at| {
                let addrs = (0..copies as u16).map(|vm| PageAddr { vm, block: 0, page: 70_000 + at as u32 });
                (addrs.collect(), page(at))
            })
            .collect();
        let contents = pages.iter().map(|(addrs, page)| (addrs.as_slice(), page.as_slice()));
        let body = encoder.scatter(contents, Compression::None).unwrap().len();
        let pieces = body.div_ceil(datagram - PIECE_OVERHEAD_BYTES);
        real += body + pieces * (PIECE_OVERHEAD_BYTES + SenderConfig::default().datagram_overhead_bytes);
    }
    let error = predicted.scatter as f64 / real as f64 - 1.0;
    assert!(error.abs() < 0.005, "{} for {real}", predicted.scatter);
    assert_eq!(predicted.received, [predicted.scatter; 2]);
    // Without a group each member gets its own.
    let unicast = wire.unicast_bytes(&volume, 2);
    assert_eq!(unicast.scatter, unicast.received.iter().sum::<u64>());
    assert!(unicast.scatter > predicted.scatter * 19 / 10);
}

#[test]
fn a_stream_is_predicted_from_its_format() {
    let (unique, zero) = (6_400u64, 3_000u64);
    let vm = VmVolume { target: TargetId(0), unique, zero, record_pages: unique };
    let wire = Wire { mtu: 1500, multicast_sets_max: 1, compressed: Compressed::NONE };
    let predicted = wire.bytes(&Volume { vms: vec![vm], sets: Vec::new() }, 1).streams;
    let (mut frame, mut encoder, mut sealed) = (StreamFrameBuilder::new(), Encoder::new(), 0);
    for at in 0..unique as u32 {
        if at < zero as u32 {
            frame.zero_run(0, 3 * at, 1).unwrap();
        }
        let bytes = page(u64::from(at)).try_into().unwrap();
        if frame.page(0, 3 * at + 1, &bytes).is_err() {
            sealed += frame.finish(Compression::None, &mut encoder).len() + PIECE_OVERHEAD_BYTES + 4;
            frame.page(0, 3 * at + 1, &bytes).unwrap();
        }
    }
    sealed += frame.finish(Compression::None, &mut encoder).len() + PIECE_OVERHEAD_BYTES + 4;
    let real = tcp_wire_bytes(sealed as u64 + DEVICE_STATE_BYTES, 1500);
    let error = predicted as f64 / real as f64 - 1.0;
    assert!(error.abs() < 0.005, "{predicted} for {real}");
}

#[test]
fn off_the_shelf_every_page_that_is_not_zero_goes_once_for_each_vm() {
    let vm =
        |target| VmVolume { target: TargetId(target), unique: 10, zero: 1_000_000, record_pages: 100_000 };
    let volume = Volume { vms: vec![vm(0), vm(1), vm(1)], sets: Vec::new() };
    let received = off_the_shelf_bytes(&volume, 3, 1500);
    assert_eq!((received[1], received[2]), (received[0] * 2, 0));
    let plain = 100_000.0 * 4104.0 + 9e6;
    assert!((received[0] as f64 / plain - 1.046).abs() < 0.002, "{received:?}");
}

fn volume() -> Volume {
    let vm = |target| VmVolume { target: TargetId(target), unique: 1000, zero: 0, record_pages: 20_000 };
    let set = SetVolume { targets: TargetSet(0b11), contents: 1000, pages: 50_000 };
    Volume { vms: vec![vm(0), vm(0), vm(1)], sets: vec![set] }
}

#[test]
fn time_is_the_links_until_hosts_were_seen_to_be_slower() {
    let bytes = Bytes { scatter: 100, streams: 300, received: vec![200, 200] };
    let times = PhaseTimes { connect_s: 1.0, ..PhaseTimes::default() };
    let link = Pace { link_bytes_per_s: 100.0, measured: None };
    let first = link.complete(times, &volume(), &bytes);
    assert_eq!((first.connect_s, first.scatter_s, first.streams_s), (1.0, 1.0, 3.0));
    assert!(first.prepare_s > 0.0 && first.open_s > 0.0 && first.hand_off_s > 0.0);
    assert!((first.total_s() - first.plus(&first).total_s() / 2.0).abs() < 1e-9);

    // 10,000 pages a second used a tenth of the link: the hosts'. The streams used all of it.
    let measured = Measured {
        link_bytes_per_s: 100.0,
        vms_a_target: 1,
        prepare_s: 0.25,
        open_s: 0.5,
        scatter: PhaseMeasured { bytes: 10, pages: 10_000, seconds: 1.0 },
        streams: PhaseMeasured { bytes: 100, pages: 10, seconds: 1.0 },
        hand_off_s: 0.125,
        ..Measured::default()
    };
    let after = Pace { measured: Some(measured), ..link }.complete(times, &volume(), &bytes);
    assert_eq!((after.scatter_s, after.streams_s), (5.0, 3.0));
    assert_eq!((after.prepare_s, after.open_s, after.hand_off_s), (0.5, 0.5, 0.125));
    // A link that is slower than the hosts limits again, a faster one does not help the scatter.
    let slow = Pace { link_bytes_per_s: 10.0, measured: Some(measured) };
    assert_eq!(slow.complete(times, &volume(), &bytes).scatter_s, 10.0);
    let fast = Pace { link_bytes_per_s: 1e9, measured: Some(measured) };
    assert_eq!(fast.complete(times, &volume(), &bytes).scatter_s, 5.0);

    let before = Pace { measured: Some(measured), ..link }.off_the_shelf(times, &volume(), 1000);
    assert_eq!((before.collect_s, before.scatter_s, before.streams_s), (0.0, 0.0, 10.0));
}
