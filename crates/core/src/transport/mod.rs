//! Moves numbered frames to target sets, repairs what is lost and finds the pace. Knows nothing of VMs.
//!
//! ```text
//! push ─► Sender ─ poll_transmit ─► seal ─► multicast ──┐
//!           ▲  │                      └───► TCP ────────┤
//!           │  └─ Announce ─────────► control ────────► Receiver ─ poll_frame ─► its user
//!           └─ on_report ◄─────────── control ◄─────────┘ ◄────────── written ──────┘
//! ```
//!
//! The [`Sender`] keeps each frame until every member of its set has acknowledged it, which a member does once its
//! user has *written* the frame. The [`Receiver`] reports what is missing of frames that were announced as sent, and
//! per set the highest packet number that it has seen. A piece counts as lost at a member only once a later packet
//! of the set has been seen there, so that a repair under way is not sent again, however long the queues are. A
//! loss is answered once for all: again by multicast if two or more miss the piece, else over TCP.
//!
//! Shape: quinn-proto's. Nothing here knows a clock or a socket; `now` comes in, and `poll_*` give out what is to be
//! done and until when nothing is.

mod congestion;
mod pace;
mod parity;
mod parts;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use congestion::{CongestionControl, FixedRate, Sample, Traffic, WorstMember};
pub use parity::encode as encode_parity;
pub use receiver::{DropReason, Outcome, Receiver, ReceiverConfig, ReceiverCounters};
pub use sender::{
    Expulsion, MulticastProgress, Path, Sender, SenderConfig, SenderCounters, SenderEvent, Transmit,
};

/// Frames that are open at a sender at once.
pub const OPEN_FRAMES_MAX: usize = 16_384;
/// From the oldest open frame's number to the newest; a receiver remembers twice as many numbers as complete.
pub const FRAME_SPAN_MAX: u64 = 65_536;
/// Bytes that one [`Transmit`] puts on the network: what UDP segmentation offload takes at once.
pub const TRANSMIT_BYTES_MAX: usize = 64_000;
/// Pieces of one [`Transmit`], for the same reason (`UDP_MAX_SEGMENTS` of kernels before 6.9).
pub const TRANSMIT_PIECES_MAX: usize = 64;
/// Transmissions in a row after which a sender's driver looks at what has come meanwhile, so that neither reports nor new frames wait
/// while many repairs go over TCP.
pub const TRANSMITS_MAX: usize = 16;
/// How often a receiver reports while frames are open.
pub const REPORT_INTERVAL: Duration = Duration::from_millis(10);
/// How often a receiver looks at what its link brings, while frames arrive.
pub const LINK_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes written since the last report that bring the next one at once.
pub const REPORT_WRITTEN_BYTES: usize = 1024 * 1024;
/// Frames with gaps in one report.
pub const REPORT_GAPS_MAX: usize = 1_024;
/// Ranges of missing pieces in one report.
pub const REPORT_RANGES_MAX: usize = 16_384;
/// Sets with a packet number in one report.
pub const REPORT_SETS_MAX: usize = 1_024;
/// How long after its announcement a frame's missing pieces count as lost rather than late.
pub const REORDER_DELAY: Duration = Duration::from_millis(3);
/// How long finished frames wait to be announced together.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(5);
/// Spans in one announcement.
pub const ANNOUNCE_SPANS_MAX: usize = 256;
/// How long a piece's repair waits for the other members' reports.
pub const REPAIR_COLLECT: Duration = Duration::from_millis(15);
/// A piece that went over TCP counts as dropped (by a receiver without room) if nothing is acknowledged for so long.
pub const UNICAST_RETRY: Duration = Duration::from_secs(2);
/// A target that takes no more than one in so many of the bytes that the next slowest takes, or could take, holds the others up.
const LAGGARD_RATIO: u64 = 4;
/// Before a round trip has been measured, a piece that nothing follows counts as lost after this.
pub const LOSS_DELAY_DEFAULT: Duration = Duration::from_millis(200);

/// What ends a peer's part in the scatter: no honest receiver says this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The target is not, or no longer, known.
    #[error("report of a target that is not in the session")]
    UnknownTarget,
    /// An acknowledgement of a frame that was never sent to it, or twice.
    #[error("acknowledges frames {0} to {1}, which are not open at it")]
    Acknowledges(u64, u64),
    /// A gap in a frame that was never sent to it or that it has acknowledged.
    #[error("reports a gap in frame {0}, which is not open at it")]
    Gap(u64),
    /// Ranges that are out of order or beyond the frame's pieces.
    #[error("reports malformed ranges in frame {0}")]
    Ranges(u64),
    /// A packet number that was never used, or a set that it is no member of.
    #[error("reports an impossible packet number in set {0}")]
    Seen(u16),
}

/// Targets by number, as bits.
type TargetMask = u128;

const _: () = assert!(crate::limits::SESSION_TARGETS_MAX <= TargetMask::BITS as usize);

fn mask_of(target: u16) -> TargetMask {
    assert!(
        (target as usize) < crate::limits::SESSION_TARGETS_MAX,
        "target number beyond SESSION_TARGETS_MAX"
    );
    1 << target
}

fn targets_of(mut mask: TargetMask) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let target = mask.trailing_zeros();
        (mask != 0).then(|| {
            mask &= mask - 1;
            target as u16
        })
    })
}
