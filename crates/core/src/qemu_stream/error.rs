//! Why a stream is refused.

use std::fmt;

use thiserror::Error;

/// A stream that can't be parsed, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("QEMU stream, byte {offset}: {kind}")]
pub struct ParseError {
    /// Bytes from the stream's start to the element that is refused (to the end, if the stream was cut off).
    pub offset: u64,
    /// What is wrong.
    pub kind: ParseErrorKind,
}

/// What is wrong with a stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseErrorKind {
    /// The stream does not start as a migration stream does.
    #[error("starts with {0:#010x}, not with QEMU's magic")]
    Magic(u32),
    /// A multifd channel: pages would come on several connections.
    #[error("multifd channel; switch the capability multifd off")]
    Multifd,
    /// Another version of the format than 3.
    #[error("format version {0}, not 3")]
    Version(u32),
    /// Machine types up to 2.3, which send neither configuration nor footers.
    #[error("no configuration section (machine types up to 2.3 are not supported)")]
    NoConfiguration,
    /// A name that is too long, empty, not UTF-8 or has control characters.
    #[error("malformed name of a {0}")]
    Name(&'static str),
    /// A subsection of the configuration that is not known, so neither is its length.
    #[error("unknown configuration subsection {0}")]
    Subsection(Name),
    /// A subsection with another version than the one that is known.
    #[error("configuration subsection {0} has unknown version {1}")]
    SubsectionVersion(Name, u32),
    /// Target pages of another size than 4 KiB.
    #[error("target page of 2^{0} bytes, not 2^12")]
    PageBits(u32),
    /// More capabilities than QEMU has.
    #[error("{0} capabilities")]
    CapabilityCount(u32),
    /// A capability that changes the format of the RAM section.
    #[error("capability {0} is on, which is not supported; switch it off")]
    Capability(Name),
    /// A command that is not part of precopy.
    #[error("unsupported command {0} ({name})", name = command_name(*.0))]
    Command(u16),
    /// A known command with a wrong length.
    #[error("command {0} ({name}) with {1} bytes of data", name = command_name(*.0))]
    CommandLength(u16, u16),
    /// A section other than RAM before the end of RAM.
    #[error("unsupported section {name} (id {id}) before the end of RAM")]
    Section {
        /// The section's name (`idstr`).
        name: Name,
        /// Its number in this stream.
        id: u32,
    },
    /// A RAM section of another instance or version, or a second one.
    #[error("unsupported RAM section (instance {instance}, version {version})")]
    RamSection {
        /// Instance, 0 in all known versions.
        instance: u32,
        /// Version, 4 in all known versions.
        version: u32,
    },
    /// An unknown type of section.
    #[error("unknown section type {0:#04x}")]
    SectionType(u8),
    /// The stream's end mark before the end of RAM.
    #[error("the stream ends before the end of RAM")]
    EarlyEnd,
    /// PART or END of a section that was not started.
    #[error("continuation of unknown section {0}")]
    SectionId(u32),
    /// The RAM block list is malformed.
    #[error("malformed RAM block list: {0}")]
    BlockList(&'static str),
    /// A block of an unaligned, empty or too large size.
    #[error("RAM block {name} of {bytes} bytes")]
    BlockBytes {
        /// The block's name.
        name: Name,
        /// Its length as sent.
        bytes: u64,
    },
    /// A record for a block that is not in the list.
    #[error("record for unknown RAM block {0}")]
    Block(Name),
    /// CONTINUE without a record before it.
    #[error("the first RAM record names no block")]
    NoBlock,
    /// An offset behind the block's end.
    #[error("offset {offset:#x} lies outside RAM block {name}")]
    Offset {
        /// The block's name.
        name: Name,
        /// The offset in bytes.
        offset: u64,
    },
    /// A record that is not part of plain precopy.
    #[error("unsupported RAM record, flags {0:#x} ({name})", name = flag_name(*.0))]
    Flags(u64),
    /// A record whose other bits should be zero.
    #[error("malformed RAM record {0:#018x}")]
    Record(u64),
    /// A ZERO record that would fill with something else (refused by QEMU 8.2 on).
    #[error("zero page record with fill byte {0:#04x}")]
    Fill(u8),
    /// The section's footer where EOS should be: QEMU does so when a migration fails or is cancelled.
    #[error("RAM section without end mark: the source cancelled or failed")]
    NoEndMark,
    /// Another byte than the footer's mark, or a footer of another section.
    #[error("malformed footer of the RAM section")]
    Footer,
    /// The head has more bytes than [`STREAM_HEAD_BYTES_MAX`](crate::limits::STREAM_HEAD_BYTES_MAX).
    #[error("more than {0} bytes before the first page")]
    HeadBytes(usize),
    /// The input ended in the middle.
    #[error("cut off {0}")]
    Truncated(&'static str),
}

/// A name from the stream, made safe to print: at most 255 bytes came in, control characters are escaped.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Box<str>);

impl Name {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Name(String::from_utf8_lossy(bytes).escape_debug().to_string().into())
    }

    /// The printable name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `MIG_CMD_*` of `migration/savevm.c`.
fn command_name(command: u16) -> &'static str {
    match command {
        1 => "OPEN_RETURN_PATH",
        2 => "PING",
        3 => "POSTCOPY_ADVISE",
        4 => "POSTCOPY_LISTEN",
        5 => "POSTCOPY_RUN",
        6 => "POSTCOPY_RAM_DISCARD",
        7 => "PACKAGED",
        8 => "ENABLE_COLO",
        9 => "POSTCOPY_RESUME",
        10 => "RECV_BITMAP",
        11 => "SWITCHOVER_START",
        _ => "unknown",
    }
}

fn flag_name(flags: u64) -> &'static str {
    const NAMES: [(u64, &str); 6] = [
        (0x01, "FULL"),
        (0x04, "MEM_SIZE"),
        (0x40, "XBZRLE"),
        (0x80, "HOOK"),
        (0x100, "COMPRESS_PAGE"),
        (0, "none"),
    ];
    let named = NAMES.iter().find(|(flag, _)| flags & flag != 0 || flags == 0 && *flag == 0);
    named.map_or("unknown", |(_, name)| name)
}
