//! The bounds that several modules share, by name, with their unit last. What bounds one module alone stands at its head,
//! by name too.
//!
//! Rule 6: what a peer or a guest can make grow has a limit here, and what exceeds it ends that peer's session or
//! that guest's migration, never the process.

use std::time::Duration;

/// Guests in one session.
pub const SESSION_VMS_MAX: usize = 4_096;
/// Targets in one session; a target set is a bit set of this width.
pub const SESSION_TARGETS_MAX: usize = 128;
/// RAM blocks of one guest (QEMU names each ROM and each device RAM; a large guest has a few dozen).
pub const VM_BLOCKS_MAX: usize = 1_024;
/// Length of a RAM block's or a section's name: QEMU sends it behind one length byte.
pub const NAME_BYTES_MAX: usize = 255;
/// Pages of one RAM block: 16 TiB of 4 KiB pages.
pub const BLOCK_PAGES_MAX: u64 = 1 << 32;
/// Contents in one frame.
pub const FRAME_PAGES_MAX: usize = 64;
/// Addresses of one content within one frame; a content that stands more often is sent in several frames.
pub const CONTENT_ADDRS_MAX: usize = 4_096;
/// Addresses in one frame.
pub const FRAME_ADDRS_MAX: usize = 16_384;
/// Plain bytes of one frame's body, pages, addresses and headers together.
pub const FRAME_BODY_BYTES_MAX: usize = 640 * 1024;
/// One sealed piece on a TCP data connection, header and tag included.
pub const PIECE_BYTES_MAX: usize = 704 * 1024;
/// Scatter payload that is kept at the source for repair, over all target sets.
pub const REPAIR_WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// Multicast repair rounds of one piece, after which it goes to those who miss it by unicast.
pub const MULTICAST_REPAIR_ROUNDS_MAX: u32 = 3;
/// A target that acknowledges nothing for this long, with frames open, leaves the scatter.
pub const SCATTER_SILENCE_MAX: Duration = Duration::from_secs(10);
/// A target to which a frame has been sent entirely for this long, and that has not acknowledged it, leaves the scatter: the
/// others wait for it once the repair window is full of what it is slow with.
pub const SCATTER_FRAME_MAX: Duration = Duration::from_secs(60);
/// Frames that a receiver holds incomplete, in plain bytes.
pub const RECEIVER_BYTES_MAX: usize = 48 * 1024 * 1024;
/// What a source QEMU trickles while it is held, per VM, before its socket is no longer read.
pub const TRICKLE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of all VMs together between the source QEMUs' writes and the target QEMUs' reads: what the link
/// carries in this span.
pub const IN_FLIGHT_SPAN: Duration = Duration::from_millis(20);
/// Floor of the same, so that slow links still fill a frame.
pub const IN_FLIGHT_BYTES_MIN: usize = 1024 * 1024;
/// Streams of one session whose targets take too little, and that go on beside those that flow. Each has its own bytes in
/// flight.
pub const YIELDING_STREAMS_MAX: usize = 8;
/// One control message, encoded.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// QEMU's header, configuration and RAM block list, before the first page.
pub const STREAM_HEAD_BYTES_MAX: usize = 1024 * 1024;
/// Pages covered by one partial sum of the digest.
pub const DIGEST_RANGE_PAGES: u32 = 4_096;
/// Bytes outside RAM that a stream frame takes at once.
pub const STREAM_RAW_BYTES_MAX: usize = 128 * 1024;
/// Plain bytes of stream frames of one VM that a target keeps while an earlier one is missing.
pub const REORDER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Members of a content that are read again when it is sent, until one is found that has not changed.
pub const CONTENT_READS_MAX: usize = 4;
/// Target sets in a schedule; guests that conspire could bring about 2^targets of them.
pub const SCHEDULE_SETS_MAX: usize = 4_096;
/// Contents that go under one set's keys, 64 GiB of them: more are sent as several sets with the same members.
pub const SET_CONTENTS_MAX: usize = 1 << 24;
/// Sets that come of that beyond [`SCHEDULE_SETS_MAX`]: contents are counted with 32 bits.
pub const SETS_SPLIT_MAX: usize = (1 << 32) / SET_CONTENTS_MAX;
/// Sets that a target is granted for itself, one after the other, as keys wear out under its streams: 32 TiB.
pub const OWN_SETS_MAX: usize = 64;
/// Multicast group addresses of a session; a target has a socket and a thread for each that it has joined.
pub const GROUPS_MAX: usize = 64;
/// Target sets that are counted to find the largest.
pub const SCHEDULE_SETS_SEEN_MAX: usize = 65_536;
/// Capabilities named in the stream's configuration section (QEMU knows some two dozen).
pub const STREAM_CAPABILITIES_MAX: u32 = 64;
/// Records' bytes in one RAM PART that we compose, after which it is closed: what a raw section may have to wait for.
pub const PART_BYTES_MAX: usize = 1024 * 1024;
/// Zero pages that one call expands from a run; 9 bytes of the target's stream each.
pub const ZERO_RUN_PAGES_MAX: u32 = 4_096;
/// One line of QMP (the longest answer, `query-qmp-schema`, has a few hundred kilobytes).
pub const QMP_LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// QMP events that wait for their reader; what comes beyond is dropped and counted.
pub const QMP_EVENTS_MAX: usize = 1_024;
/// Copied out of a guest's memory with one system call.
pub const MEMORY_READ_BYTES: usize = 256 * 1024;
