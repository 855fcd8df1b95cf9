//! Control messages between the agents of a source and a target host, over mutual TLS.
//!
//! Each message is [`Envelope`] in postcard behind a big-endian `u32` length of at most
//! [`CONTROL_MESSAGE_BYTES_MAX`]. The first message of either side is
//! [`Hello`]; the highest version that both name is spoken, and there is no session without one in common.
//!
//! ```text
//! source                                    target
//!   Hello ─────────────────────────────────►
//!   ◄───────────────────────────────── Hello
//!   Open, Grant ───────────────────────────►          keys of the session, keys and groups of its sets
//!   ◄─────────────────────────────── Granted
//!   Join(set) ─────────────────────────────►          the set's group serves it next
//!   ◄─────────────────────────── Joined(set)
//!   … probes on the set's group …
//!   ◄──────────────────────────── Heard(set)
//!   Hop(target) ───────────────────────────►          where multicast does not reach: pass pieces on to it
//!   ◄────────────────────────── Hopped(target)
//!   Prepare(vm) ───────────────────────────►          incoming QEMU started, paused
//!   ◄──────────────────────────── Prepared(vm)
//!   … frames on the data paths …
//!   Sent ──────────────────────────────────►
//!   ◄────────────────────── Report, Written(vm)
//!   Leave(set) ────────────────────────────►          the set's group has nothing more for the target, for now
//!   CloseScatter(vm) ──────────────────────►
//!   ◄────────────────────── ScatterClosed(vm)
//!   … the VM's stream …
//!   Digest(vm) ────────────────────────────►
//!   ◄──────────────────────────── Loaded(vm)          the target's vote: SHUT(0) may be released
//!   Commit(vm) ────────────────────────────►          the source's decision
//!   ◄─────────────────────────── Running(vm)
//! ```
//!
//! A guest whose session ended before its end was found is asked about on a connection of its own, which either side
//! opens: Hello, Hello, then Inquire and Answer as often as there is something new to say. So is a host that is examined: Hello,
//! Hello, Examine, Examined.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::limits::CONTROL_MESSAGE_BYTES_MAX;
use crate::page::VmDigest;
use crate::session::recovery::Word;
use crate::wire::hardware::Hardware;

/// First bytes of a [`Hello`], so that a stranger is told apart from an old peer.
pub const HELLO_MAGIC: [u8; 8] = *b"vmscattr";
/// The lowest version of this protocol that this build speaks.
pub const VERSION_MIN: u16 = 2;
/// The highest.
pub const VERSION_MAX: u16 = 2;

/// Bit of [`Hello::features`]: passes pieces on to other targets where the source asks for it with [`Message::Hop`].
pub const FEATURE_RELAY: u64 = 1;
/// Bit of [`Hello::features`]: answers [`Message::Examine`].
pub const FEATURE_EXAMINE: u64 = 2;
/// Bit of [`Hello::features`]: takes [`Message::LinkCounters`].
pub const FEATURE_LINK_COUNTERS: u64 = 4;
/// Bit of [`Hello::features`]: uses parity pieces ([`PieceKind::Parity`](super::piece::PieceKind::Parity)).
pub const FEATURE_PARITY: u64 = 8;

/// Bit of [`Hello::features`]: counts trains of probes, and answers [`Message::CountTrain`].
pub const FEATURE_TRAINS: u64 = 16;

/// A session or a VM, as 16 bytes of a UUID in network order.
pub type Uuid = [u8; 16];

/// A message and the session that it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The session; [`Hello`] sets it for the connection, and a message with another one ends the connection.
    pub session: Uuid,
    /// What is said.
    pub message: Message,
}

/// The first message of either side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`HELLO_MAGIC`].
    pub magic: [u8; 8],
    /// Lowest version that the sender speaks.
    pub version_min: u16,
    /// Highest.
    pub version_max: u16,
    /// Optional abilities, a bit each: [`FEATURE_RELAY`], [`FEATURE_EXAMINE`], [`FEATURE_LINK_COUNTERS`],
    /// [`FEATURE_PARITY`], [`FEATURE_TRAINS`]; unknown bits are ignored.
    pub features: u64,
    /// The sender's name, as its certificate has it.
    pub name: String,
    /// What the sender can take in; a source leaves it at its default.
    pub resources: Resources,
}

/// What a target host can take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory that guests may take there, in bytes.
    pub free_memory_bytes: u64,
    /// MTU of the interface on which multicast arrives, in bytes.
    pub mtu: u32,
    /// The port of the data connection, on the control connection's address.
    pub data_port: u16,
}

/// What a host says of itself when it is examined. Numbers are zero where it can't tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Its clock, in microseconds since the Unix epoch.
    pub clock_unix_us: u64,
    /// Groups that one socket may join (`net.ipv4.igmp_max_memberships`).
    pub igmp_max_memberships: u64,
    /// What a receiver's socket holds at most, in bytes.
    pub receive_buffer_bytes: u64,
    /// The QEMUs that it may start.
    pub qemus: Vec<QemuProgram>,
    /// Probes that it has sent to the group.
    pub probes: u32,
}

/// A QEMU of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuProgram {
    /// Its path.
    pub path: String,
    /// Its version as it says it, or one line why it doesn't.
    pub version: Result<String, String>,
}

/// Where the source's agent is to be found when a session is over, and by what its journal is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Where it listens for control connections; an unspecified address stands for that of the session's connection.
    pub addr: SocketAddr,
    /// [`Book::id`](crate::journal::Book::id) of its journal.
    pub journal: Uuid,
}

/// One target set's key and group, given to its members. Several sets may share a group, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetGrant {
    /// The set's number in this session. Each target's own set (the target alone) is granted too: its frames come over TCP.
    pub set: u16,
    /// AES-256-GCM key of the set.
    pub key: [u8; 32],
    /// The multicast group; `None` where the set's frames come over TCP only.
    pub group: Option<SocketAddr>,
}

/// A RAM block as QEMU's stream names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// QEMU's `idstr`.
    pub name: String,
    /// Used length in bytes, a multiple of the page size.
    pub bytes: u64,
}

/// What a target needs to start a VM's incoming twin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The session's number of the VM.
    pub vm: u16,
    /// QEMU's UUID of the VM, or one that the source drew.
    pub uuid: Uuid,
    /// The VM's name.
    pub name: String,
    /// The guest file, placeholders not yet replaced.
    pub guest_file: String,
    /// The machine type that the source QEMU runs, alias resolved.
    pub machine: String,
    /// RAM blocks in the stream's order.
    pub blocks: Vec<BlockSpec>,
    /// Processors and devices, which the twin must have too.
    pub hardware: Hardware,
    /// The guest was paused and stays so.
    pub paused: bool,
}

impl VmSpec {
    /// RAM of the VM in bytes; what no 64 bits hold counts as the most that they do.
    pub fn memory_bytes(&self) -> u64 {
        self.blocks.iter().fold(0, |sum, block| block.bytes.saturating_add(sum))
    }
}

/// Frames with numbers from `first` to `last`, all of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameSpan {
    /// The target set.
    pub set: u16,
    /// First frame number.
    pub first: u64,
    /// Last frame number, inclusive.
    pub last: u64,
}

/// What is missing of a frame at a receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameGap {
    /// The frame.
    pub frame: u64,
    /// Ranges of missing pieces, first and last inclusive; empty: nothing of it has arrived.
    pub pieces: Vec<(u16, u16)>,
}

/// A receiver's state, sent every few milliseconds while frames are open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Datagram bytes received since the session began, as the sender counts them (sealed, without IP and UDP headers).
    pub received_bytes: u64,
    /// Datagrams that were received since the session began.
    pub received_datagrams: u64,
    /// Of each set whose datagrams have arrived since the last report: one more than the highest packet number. What
    /// is missing below has been lost or overtaken; what is missing above may still be under way.
    pub seen: Vec<(u16, u64)>,
    /// Receiver's clock at this report, in microseconds since its session began (for rates, never for order).
    pub clock_us: u64,
    /// Frames written into all VMs' streams that they concern here since the last report: acknowledged.
    pub written: Vec<(u64, u64)>,
    /// Announced frames of which pieces are missing.
    pub gaps: Vec<FrameGap>,
}

/// What the link of a receiver has brought, sent now and then while frames arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// As in [`Report::clock_us`].
    pub clock_us: u64,
    /// Bytes that its interface has received, with headers; since when does not matter.
    pub link_bytes: u64,
    /// Bytes of pieces that have come of this session since it began: sealed, without headers.
    pub session_bytes: u64,
}

/// Everything that agents say to each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Both: who speaks, and which versions.
    Hello(Hello),

    /// Source: the session's keys and the target's place in it.
    Open {
        /// Key of page identities.
        mac_key: [u8; 16],
        /// Key of digest terms.
        digest_key: [u8; 16],
        /// The target's number in the session.
        target: u16,
        /// Set number of the target alone, under whose key its streams are sealed.
        own_set: u16,
        /// What the target needs to find an end for the guests if the session does not.
        contact: Contact,
    },
    /// Source: sets that the target is a member of.
    Grant(Vec<SetGrant>),
    /// Source: a granted set's frames come to its group next; the target is to join it.
    Join {
        /// The set.
        set: u16,
    },
    /// Source: nothing more comes to the set's group that is for the target, unless it is told to join again.
    Leave {
        /// The set.
        set: u16,
    },
    /// Source: start a VM's incoming twin.
    Prepare(VmSpec),
    /// Source: these frames have left entirely; what is missing of them is lost.
    Sent(Vec<FrameSpan>),
    /// Source: no scattered frame is valid for this VM any more.
    CloseScatter {
        /// The VM.
        vm: u16,
    },
    /// Source: what QEMU said, page by page; sent when RAM SECTION_END has been parsed.
    Digest {
        /// The VM.
        vm: u16,
        /// Sums over QEMU's last record for each page.
        digest: VmDigest,
    },
    /// Source: the VM is the target's. Never taken back.
    Commit {
        /// The VM.
        vm: u16,
    },
    /// Source: the VM stays at the source; the incoming twin goes.
    Abort {
        /// The VM.
        vm: u16,
        /// Why, for the target's log.
        reason: String,
    },
    /// Source: the session is over for this target.
    Close,

    /// Target: the keys of a grant are in use.
    Granted,
    /// Target: the set's group is joined, or why it can't be.
    Joined {
        /// The set.
        set: u16,
        /// One line; its frames have to come over TCP then.
        error: Option<String>,
    },
    /// Target: a probe has arrived on the set's group: multicast from the source reaches this host.
    Heard {
        /// The set.
        set: u16,
    },
    /// Target: the incoming twin waits.
    Prepared {
        /// The VM.
        vm: u16,
    },
    /// Target: state of the scatter.
    Report(Report),
    /// Target: stream frames up to this number are written into the VM's QEMU.
    Written {
        /// The VM.
        vm: u16,
        /// Stream frames below this number.
        next: u64,
    },
    /// Target: nothing scattered will be applied to this VM any more, and every acknowledgement for it has been sent.
    ScatterClosed {
        /// The VM.
        vm: u16,
    },
    /// Target: bytes of the return path other than SHUT.
    ReturnPath {
        /// The VM.
        vm: u16,
        /// Whole messages, as QEMU wrote them.
        bytes: Vec<u8>,
    },
    /// Target: QEMU has loaded the VM and the digests agree; the vote is on the target's disk, and SHUT(0) may be released.
    Loaded {
        /// The VM.
        vm: u16,
        /// Sums over what was written into the target QEMU; the source compares them once more.
        digest: VmDigest,
    },
    /// Target: the VM runs here (or stands here, paused, if it was paused).
    Running {
        /// The VM.
        vm: u16,
        /// QEMU's RESUME event by the target's clock, in microseconds since the Unix epoch; zero for a paused VM.
        resumed_unix_us: u64,
        /// Time that the target's journal took of the blackout, in microseconds.
        journal_us: u64,
    },
    /// Target: the VM can't come here and will never run from this load; after the vote, that is on its disk.
    Failed {
        /// The VM.
        vm: u16,
        /// One line: what and where.
        reason: String,
    },

    /// Both: answered by Pong with the same number.
    Ping(u64),
    /// Both.
    Pong(u64),

    /// Both, on a connection of its own whose session is that of the guest: where recovery stands here, and where is it there?
    Inquire {
        /// The VM's UUID.
        vm: Uuid,
        /// What the sender says of it.
        word: Word,
    },
    /// Both: the answer, after the other side has drawn its conclusions from the inquiry.
    Answer {
        /// The VM's UUID.
        vm: Uuid,
        /// What the sender says of it.
        word: Word,
    },

    /// Source: connect to another target's data port, to pass pieces on to it.
    Hop {
        /// The other target's number.
        target: u16,
        /// Where it listens for data connections.
        addr: SocketAddr,
        /// The first piece of the connection, sealed by the source for the other target.
        hello: Vec<u8>,
    },
    /// Target: pieces can be passed on to another target, or why they can't, or not any more.
    Hopped {
        /// The other target's number.
        target: u16,
        /// One line.
        error: Option<String>,
    },

    /// Source, in place of Open: say what this host is like, and send probes to a group that the source has joined.
    Examine {
        /// The group.
        group: SocketAddr,
        /// Under which they are sealed, in the channel of probes.
        key: [u8; 32],
    },
    /// Target: the answer, once the probes have left.
    Examined(HostReport),

    /// Target: how much of what its link brings is of this session.
    LinkCounters(LinkCounters),

    /// Source, to a target with [`FEATURE_TRAINS`]: a train of probes has left; how much of it has come?
    CountTrain {
        /// The set to whose group it was sent.
        set: u16,
    },
    /// Target: the answer.
    TrainCounted {
        /// The set.
        set: u16,
        /// Probes of trains that have come on its group since it was granted.
        datagrams: u64,
    },
}

/// Why bytes are no control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The length in front exceeds the limit.
    #[error("control message of {0} bytes exceeds the limit of {CONTROL_MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The body is not what its tag says, or has bytes behind it.
    #[error("malformed control message")]
    Malformed,
}

impl Envelope {
    /// The message with its length in front.
    ///
    /// # Errors
    /// [`ControlError::TooLong`] if it exceeds the limit; nothing is sent then.
    pub fn encode(&self) -> Result<Vec<u8>, ControlError> {
        let body = postcard::to_stdvec(self).map_err(|_| ControlError::Malformed)?;
        if body.len() > CONTROL_MESSAGE_BYTES_MAX {
            return Err(ControlError::TooLong(body.len()));
        }
        let mut out = Vec::with_capacity(4 + body.len());
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// The message in `body`, whose length has been read and checked with [`Envelope::body_len`].
    ///
    /// # Errors
    /// [`ControlError::Malformed`], also when bytes are left over.
    pub fn decode(body: &[u8]) -> Result<Envelope, ControlError> {
        match postcard::take_from_bytes(body) {
            Ok((envelope, [])) => Ok(envelope),
            _ => Err(ControlError::Malformed),
        }
    }

    /// Length of the body, from the four bytes in front of it.
    ///
    /// # Errors
    /// [`ControlError::TooLong`] before anything is allocated.
    pub fn body_len(prefix: [u8; 4]) -> Result<usize, ControlError> {
        let len = u32::from_be_bytes(prefix) as usize;
        if len > CONTROL_MESSAGE_BYTES_MAX { Err(ControlError::TooLong(len)) } else { Ok(len) }
    }
}

/// The version to speak with a peer that sent `hello`, if there is one in common.
pub fn common_version(hello: &Hello) -> Option<u16> {
    let version = hello.version_max.min(VERSION_MAX);
    (hello.magic == HELLO_MAGIC && version >= hello.version_min.max(VERSION_MIN)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trip_and_trailing_bytes() {
        let envelope = Envelope {
            session: [7; 16],
            message: Message::Failed { vm: 3, reason: "no such machine type".into() },
        };
        let bytes = envelope.encode().unwrap();
        let len = Envelope::body_len(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(len, bytes.len() - 4);
        assert_eq!(Envelope::decode(&bytes[4..]).unwrap(), envelope);
        let mut longer = bytes[4..].to_vec();
        longer.push(0);
        assert_eq!(Envelope::decode(&longer), Err(ControlError::Malformed));
        assert!(Envelope::body_len([0xff; 4]).is_err());
    }

    #[test]
    fn versions() {
        let mut hello = Hello {
            magic: HELLO_MAGIC,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX + 5,
            features: 0,
            name: String::new(),
            resources: Resources::default(),
        };
        assert_eq!(common_version(&hello), Some(VERSION_MAX));
        hello.version_min = VERSION_MAX + 1;
        assert_eq!(common_version(&hello), None);
    }

    proptest! {
        #[test]
        fn noise_is_an_error_or_a_message(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Envelope::decode(&bytes);
        }
    }
}
