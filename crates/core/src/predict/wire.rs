//! From pages and contents to bytes on links.

use super::{SetVolume, VmVolume, Volume};
use crate::limits::FRAME_PAGES_MAX;
use crate::page::PAGE_SIZE;
use crate::placement::TargetId;
use crate::transport::SenderConfig;
use crate::wire::piece::PIECE_OVERHEAD_BYTES;

/// IPv4, UDP.
const IP_UDP_BYTES: u64 = 28;
/// IPv4, TCP with its timestamps.
const IP_TCP_BYTES: u64 = 52;
/// Ethernet, without what only the wire has (preamble, checksum, gap), as interfaces count.
const ETHERNET_BYTES: u64 = 14;
/// The length before a piece on TCP.
const PIECE_LENGTH_BYTES: u64 = 4;
/// Form and plain length before a frame's body.
const BODY_HEAD_BYTES: u64 = 5;
/// An address in a scatter frame: mostly one in another VM than the one before it, which takes a mark, the VM and the
/// block in a byte each, and the page in three.
const ADDRESS_BYTES: u64 = 6;
/// An item of a stream frame: its kind, the block and the count in a byte each, the first page in three.
const ITEM_BYTES: u64 = 6;
/// QEMU's own stream: what stands before a page, and before and in a zero page (`save_page_header`, `save_zero_page`).
const QEMU_PAGE_HEAD_BYTES: u64 = 8;
const QEMU_ZERO_PAGE_BYTES: u64 = 9;
/// What a VM's stream has besides pages: header, block list, device state and its description in JSON. Measured: 158 KB
/// for QEMU 7.2 and a `pc` guest with one disk and a serial line.
pub const DEVICE_STATE_BYTES: u64 = 160 * 1024;

/// Compressed size as a share of the plain one, 1 where nothing is compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compressed {
    /// Of frames of shared contents.
    pub shared: f64,
    /// Of frames of unique pages.
    pub unique: f64,
}

impl Compressed {
    /// Not at all.
    pub const NONE: Compressed = Compressed { shared: 1.0, unique: 1.0 };
}

/// How pages travel.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Bytes of an IP packet at most.
    pub mtu: u32,
    /// Target sets that are reached by multicast; the contents of those beyond go to each member.
    pub multicast_sets_max: usize,
    /// What compression leaves.
    pub compressed: Compressed,
}

/// Bytes on links, headers of all layers included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// What leaves the source before the streams flow.
    pub scatter: u64,
    /// What leaves it in VMs' streams.
    pub streams: u64,
    /// What each target receives.
    pub received: Vec<u64>,
}

impl Bytes {
    /// What leaves the source.
    pub fn transferred(&self) -> u64 {
        self.scatter + self.streams
    }

    /// What all targets receive together.
    pub fn traffic(&self) -> u64 {
        self.received.iter().sum()
    }
}

impl Wire {
    /// Bytes for `volume`, to `targets` targets.
    ///
    /// # Panics
    /// If the volume names a target beyond.
    pub fn bytes(&self, volume: &Volume, targets: usize) -> Bytes {
        let mut bytes = Bytes { received: vec![0; targets], ..Bytes::default() };
        let mut groups_left = self.multicast_sets_max;
        for set in &volume.sets {
            let by_multicast = set.targets.len() > 1 && groups_left > 0;
            let each = if by_multicast { self.multicast(set) } else { self.unicast(set) };
            groups_left -= usize::from(by_multicast);
            bytes.scatter += if by_multicast { each } else { each * set.targets.len() as u64 };
            for TargetId(target) in set.targets.members() {
                bytes.received[usize::from(target)] += each;
            }
        }
        for vm in &volume.vms {
            let stream = self.stream(vm);
            bytes.streams += stream;
            bytes.received[usize::from(vm.target.0)] += stream;
        }
        bytes
    }

    /// As if nothing were multicast: each target gets the contents that it needs for itself.
    pub fn unicast_bytes(&self, volume: &Volume, targets: usize) -> Bytes {
        Wire { multicast_sets_max: 0, ..*self }.bytes(volume, targets)
    }

    /// A set's frames in datagrams, each sealed by itself.
    fn multicast(&self, set: &SetVolume) -> u64 {
        let (frames, body) = self.bodies(set);
        let overhead = PIECE_OVERHEAD_BYTES as u64;
        let payload = (u64::from(self.mtu).saturating_sub(IP_UDP_BYTES + overhead)).max(1);
        let datagrams = frames * body.div_ceil(frames.max(1)).div_ceil(payload);
        body + datagrams * (overhead + IP_UDP_BYTES + ETHERNET_BYTES)
    }

    /// The same over TCP, in larger pieces.
    fn unicast(&self, set: &SetVolume) -> u64 {
        let (frames, body) = self.bodies(set);
        let overhead = PIECE_OVERHEAD_BYTES as u64;
        let payload = SenderConfig::default().unicast_piece_bytes as u64 - overhead;
        let pieces = frames * body.div_ceil(frames.max(1)).div_ceil(payload);
        self.tcp(body + pieces * (overhead + PIECE_LENGTH_BYTES))
    }

    /// Frames of a set, and the bytes of their bodies.
    fn bodies(&self, set: &SetVolume) -> (u64, u64) {
        let frames = set.contents.div_ceil(FRAME_PAGES_MAX as u64);
        // Per content the count of its addresses takes a byte, per frame that of its contents.
        let plain = frames + set.contents * (1 + PAGE_SIZE as u64) + set.pages * ADDRESS_BYTES;
        (frames, scaled(plain, self.compressed.shared) + frames * BODY_HEAD_BYTES)
    }

    /// A VM's stream: one piece a frame.
    fn stream(&self, vm: &VmVolume) -> u64 {
        let frames = vm.unique.div_ceil(FRAME_PAGES_MAX as u64);
        // A run of zero pages ends where another page comes, so there are no more runs than of either; how long runs of
        // unique pages are is not known, at worst one.
        let items = vm.unique + vm.zero.min(vm.record_pages + 1);
        let plain = vm.unique * PAGE_SIZE as u64 + items * ITEM_BYTES + frames * 4;
        let pieces = frames * (BODY_HEAD_BYTES + PIECE_OVERHEAD_BYTES as u64 + PIECE_LENGTH_BYTES);
        self.tcp(scaled(plain, self.compressed.unique) + pieces + DEVICE_STATE_BYTES)
    }

    fn tcp(&self, bytes: u64) -> u64 {
        tcp_wire_bytes(bytes, self.mtu)
    }
}

/// What `bytes` over TCP are on a link, in full segments.
pub fn tcp_wire_bytes(bytes: u64, mtu: u32) -> u64 {
    let segment = u64::from(mtu).saturating_sub(IP_TCP_BYTES).max(1);
    bytes + bytes.div_ceil(segment) * (IP_TCP_BYTES + ETHERNET_BYTES)
}

/// What `bytes` over UDP are on a link, in full datagrams.
pub fn udp_wire_bytes(bytes: u64, mtu: u32) -> u64 {
    let datagram = u64::from(mtu).saturating_sub(IP_UDP_BYTES).max(1);
    bytes + bytes.div_ceil(datagram) * (IP_UDP_BYTES + ETHERNET_BYTES)
}

fn scaled(bytes: u64, by: f64) -> u64 {
    (bytes as f64 * by) as u64
}

/// What each target receives if QEMU migrates each VM by itself over TCP: every page that is not zero, once.
///
/// # Panics
/// If the volume names a target beyond.
pub fn off_the_shelf_bytes(volume: &Volume, targets: usize, mtu: u32) -> Vec<u64> {
    let mut received = vec![0; targets];
    for vm in &volume.vms {
        let pages = vm.record_pages * (PAGE_SIZE as u64 + QEMU_PAGE_HEAD_BYTES);
        received[usize::from(vm.target.0)] +=
            tcp_wire_bytes(pages + vm.zero * QEMU_ZERO_PAGE_BYTES + DEVICE_STATE_BYTES, mtu);
    }
    received
}
