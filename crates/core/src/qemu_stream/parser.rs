//! The strict, incremental parser of the forward stream: how input is cut into elements, and the RAM records.

mod head;

use std::collections::HashMap;

use super::error::Name;
use super::{ParseError, ParseErrorKind, RamBlock, be32, be64, flag, section};
use crate::limits::{NAME_BYTES_MAX, STREAM_HEAD_BYTES_MAX};
use crate::page::PAGE_SIZE;

/// What the stream says next. Slices lie in the caller's input, or in the parser where a buffer's end cut an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes that the target must get verbatim and in this order: header, configuration, commands, the RAM START
    /// section, SWITCHOVER_START and, after [`Event::RamEnd`], everything.
    Raw(&'a [u8]),
    /// The RAM START section is complete (its bytes came as [`Event::Raw`] before).
    RamStart {
        /// The RAM section's number in this stream.
        section_id: u32,
        /// All blocks, in QEMU's order; records name them by their place here.
        blocks: &'a [RamBlock],
    },
    /// A page's content.
    Page {
        /// Place in the block list.
        block: u16,
        /// Number in the block, checked against its length.
        page: u32,
        /// [`PAGE_SIZE`] bytes.
        data: &'a [u8],
    },
    /// A page that is zero throughout.
    Zero {
        /// Place in the block list.
        block: u16,
        /// Number in the block, checked against its length.
        page: u32,
    },
    /// A RAM PART ended (footer included).
    PartEnd,
    /// MULTIFD_FLUSH: without multifd channels it has no meaning for the target.
    MultifdFlush,
    /// The RAM END section is complete: no page follows, and all that follows is [`Event::Raw`].
    RamEnd,
}

/// The largest element that must be seen whole: a PAGE record that names its block.
const ELEMENT_BYTES_MAX: usize = 8 + 1 + NAME_BYTES_MAX + PAGE_SIZE;

/// Which element comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Configuration,
    Subsection,
    Capability { left: u32 },
    Section,
    RamTotal,
    RamBlock { bytes_left: u64 },
    RamListEnd,
    Record,
    Footer,
    Tail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RamSection {
    Start,
    Part,
    End,
}

/// What an element was; `used` bytes of it.
#[derive(Clone, Copy)]
enum Step {
    /// The element is longer than what is there: this many bytes in all, or more.
    Need(usize),
    Raw(usize),
    Nothing(usize),
    Page {
        used: usize,
        block: u16,
        page: u32,
    },
    Zero {
        used: usize,
        block: u16,
        page: u32,
    },
    Flush(usize),
    /// A footer; which event it is follows from the section.
    Footer(usize),
}

/// An element, and the input in which it lies (`None`: in `carry`).
type Found<'a> = (Step, Option<&'a [u8]>);

/// The parser; see the [module](super) for the format.
///
/// No input makes it panic, and it holds no more than one record, the block list
/// ([`VM_BLOCKS_MAX`](crate::limits::VM_BLOCKS_MAX)) and the machine's name, whatever the peer sends.
#[derive(Debug)]
pub struct Parser {
    state: State,
    ram_section: RamSection,
    ram_id: Option<u32>,
    blocks: Vec<RamBlock>,
    block_by_name: HashMap<String, u16>,
    /// What CONTINUE refers to; QEMU keeps it over sections.
    last_block: Option<u16>,
    machine: Option<String>,
    uuid: Option<[u8; 16]>,
    head_bytes: usize,
    /// The start of an element that an input's end cut off.
    carry: Vec<u8>,
    /// The element in `carry` has been handed out.
    carry_spent: bool,
    start_due: bool,
    offset: u64,
    failed: Option<ParseError>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the stream's first byte.
    pub fn new() -> Self {
        Parser {
            state: State::Header,
            ram_section: RamSection::Start,
            ram_id: None,
            blocks: Vec::new(),
            block_by_name: HashMap::new(),
            last_block: None,
            machine: None,
            uuid: None,
            head_bytes: 0,
            carry: Vec::with_capacity(ELEMENT_BYTES_MAX),
            carry_spent: false,
            start_due: false,
            offset: 0,
            failed: None,
        }
    }

    /// The next event; moves `input` past what was read. `None`: all of `input` was read, and more is needed.
    ///
    /// # Errors
    /// Names the section, record or command that is refused. The parser stays failed: there is no way to
    /// find the stream's next element.
    pub fn next_event<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'s>>, ParseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.carry_spent {
            self.carry.clear();
            self.carry_spent = false;
        }
        let (step, element) = loop {
            if std::mem::take(&mut self.start_due) {
                let section_id = self.ram_id.unwrap_or_default();
                return Ok(Some(Event::RamStart { section_id, blocks: &self.blocks }));
            }
            let found =
                if self.carry.is_empty() { self.take_from_input(input) } else { self.take_from_carry(input) };
            match found.map_err(|kind| self.fail(kind))? {
                None => return Ok(None),
                Some((Step::Nothing(_), _)) => {}
                Some(found) => break found,
            }
        };
        let element = element.unwrap_or(&self.carry);
        Ok(Some(match step {
            Step::Raw(used) => Event::Raw(&element[..used]),
            Step::Page { used, block, page } => {
                Event::Page { block, page, data: &element[used - PAGE_SIZE..used] }
            }
            Step::Zero { block, page, .. } => Event::Zero { block, page },
            Step::Flush(_) => Event::MultifdFlush,
            Step::Footer(_) if self.ram_section == RamSection::End => Event::RamEnd,
            Step::Footer(_) => Event::PartEnd,
            Step::Need(_) | Step::Nothing(_) => unreachable!("the loop above goes on for these"),
        }))
    }

    /// Feeds all of `input` and hands each event to `sink`.
    ///
    /// # Errors
    /// Those of [`Parser::next_event`], and what `sink` returns (after which the rest of `input` is lost).
    pub fn feed<E: From<ParseError>>(
        &mut self,
        mut input: &[u8],
        mut sink: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(event) = self.next_event(&mut input)? {
            sink(event)?;
        }
        Ok(())
    }

    /// To be called when the input has ended.
    ///
    /// # Errors
    /// If it ended before the end of RAM, or the parser failed before. What follows RAM is opaque: whether that is
    /// whole only the target QEMU can tell.
    pub fn finish(&self) -> Result<(), ParseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let place = match self.state {
            State::Tail => return Ok(()),
            State::Header => "in the header",
            State::Configuration | State::Subsection | State::Capability { .. } => "in the configuration",
            State::Section => "between sections",
            State::RamTotal | State::RamBlock { .. } | State::RamListEnd => "in the RAM block list",
            State::Record => "in the RAM section's records",
            State::Footer => "in the RAM section's footer",
        };
        let held = if self.carry_spent { 0 } else { self.carry.len() as u64 };
        Err(ParseError { offset: self.offset + held, kind: ParseErrorKind::Truncated(place) })
    }

    /// The machine type's full name (`pc-i440fx-7.2`), once the configuration was read.
    pub fn machine(&self) -> Option<&str> {
        self.machine.as_deref()
    }

    /// The guest's UUID, if the stream carries it (capability `validate-uuid`).
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.uuid
    }

    /// The RAM blocks read so far; complete after [`Event::RamStart`].
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Bytes of the stream in events so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn fail(&mut self, kind: ParseErrorKind) -> ParseError {
        let error = ParseError { offset: self.offset, kind };
        self.failed = Some(error.clone());
        error
    }

    /// The element at the input's start; kept in `carry` where the input ends within it.
    #[inline]
    fn take_from_input<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Found<'a>>, ParseErrorKind> {
        let bytes = *input;
        let step = self.step(bytes)?;
        let Some(used) = self.account(step)? else {
            self.carry.extend_from_slice(bytes);
            *input = &[];
            return Ok(None);
        };
        *input = &bytes[used..];
        Ok(Some((step, Some(bytes))))
    }

    /// The element of which `carry` holds the start, completed from the input.
    fn take_from_carry<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Found<'a>>, ParseErrorKind> {
        let mut carry = std::mem::take(&mut self.carry);
        let found = loop {
            match self.step(&carry) {
                Err(kind) => break Err(kind),
                Ok(Step::Need(total)) => {
                    let (more, rest) = input.split_at((total - carry.len()).min(input.len()));
                    carry.extend_from_slice(more);
                    *input = rest;
                    if carry.len() < total {
                        break Ok(None);
                    }
                }
                Ok(step) => break Ok(Some(step)),
            }
        };
        self.carry = carry;
        let Some(step) = found? else { return Ok(None) };
        let used = self.account(step)?.unwrap_or_default();
        if used == self.carry.len() {
            // `Nothing` is followed by another element, which must not see these bytes.
            match step {
                Step::Nothing(_) => self.carry.clear(),
                _ => self.carry_spent = true,
            }
        } else {
            // An element that was recognised by its first byte as the next one's.
            self.carry.drain(..used);
        }
        Ok(Some((step, None)))
    }

    /// Bytes of a complete element, counted; `None` if it is not complete.
    #[inline]
    fn account(&mut self, step: Step) -> Result<Option<usize>, ParseErrorKind> {
        let used = match step {
            Step::Need(_) => return Ok(None),
            Step::Page { used, .. } | Step::Zero { used, .. } => used,
            Step::Raw(used) => {
                if self.ram_section == RamSection::Start {
                    self.head_bytes += used;
                    if self.head_bytes > STREAM_HEAD_BYTES_MAX {
                        return Err(ParseErrorKind::HeadBytes(STREAM_HEAD_BYTES_MAX));
                    }
                }
                if self.start_due {
                    self.ram_section = RamSection::Part;
                }
                used
            }
            Step::Nothing(used) | Step::Flush(used) | Step::Footer(used) => used,
        };
        self.offset += used as u64;
        Ok(Some(used))
    }

    /// Reads the element at the start of `bytes`. State changes only where it is complete.
    #[inline]
    fn step(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        match self.state {
            State::Record => self.record(bytes),
            State::Tail if bytes.is_empty() => Ok(Step::Need(1)),
            State::Tail => Ok(Step::Raw(bytes.len())),
            State::Footer => self.footer(bytes),
            _ => self.head(bytes),
        }
    }

    fn record(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        // An offset's first byte is never the footer's mark: blocks end far below.
        if bytes.first() == Some(&section::FOOTER) {
            return Err(ParseErrorKind::NoEndMark);
        }
        let Some(header) = be64(bytes, 0) else { return Ok(Step::Need(8)) };
        let flags = header & flag::MASK;
        let kind = flags & !flag::CONTINUE;
        match kind {
            flag::PAGE | flag::ZERO => {
                let (block, at) = if flags & flag::CONTINUE != 0 {
                    (self.last_block.ok_or(ParseErrorKind::NoBlock)?, 8)
                } else {
                    let Some(name) = counted(bytes, 8) else { return Ok(Step::Need(need_counted(bytes, 8))) };
                    let block = std::str::from_utf8(name).ok().and_then(|name| self.block_by_name.get(name));
                    let block = block.ok_or_else(|| ParseErrorKind::Block(Name::new(name)))?;
                    (*block, 9 + name.len())
                };
                let page = self.page(block, header & !flag::MASK)?;
                if kind == flag::ZERO {
                    match bytes.get(at) {
                        None => return Ok(Step::Need(at + 1)),
                        Some(0) => {}
                        Some(fill) => return Err(ParseErrorKind::Fill(*fill)),
                    }
                    self.last_block = Some(block);
                    return Ok(Step::Zero { used: at + 1, block, page });
                }
                let used = at + PAGE_SIZE;
                if bytes.len() < used {
                    return Ok(Step::Need(used));
                }
                self.last_block = Some(block);
                Ok(Step::Page { used, block, page })
            }
            flag::EOS | flag::MULTIFD_FLUSH if header != kind => Err(ParseErrorKind::Record(header)),
            flag::EOS => {
                self.state = State::Footer;
                Ok(Step::Nothing(8))
            }
            flag::MULTIFD_FLUSH => Ok(Step::Flush(8)),
            _ => Err(ParseErrorKind::Flags(flags)),
        }
    }

    fn page(&self, block: u16, offset: u64) -> Result<u32, ParseErrorKind> {
        let block = &self.blocks[block as usize];
        let page = offset / PAGE_SIZE as u64;
        match u32::try_from(page) {
            Ok(page) if offset < block.bytes => Ok(page),
            _ => Err(ParseErrorKind::Offset { name: Name::new(block.name.as_bytes()), offset }),
        }
    }

    fn footer(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        if bytes.first().is_some_and(|mark| *mark != section::FOOTER) {
            return Err(ParseErrorKind::Footer);
        }
        let Some(id) = be32(bytes, 1) else { return Ok(Step::Need(5)) };
        if Some(id) != self.ram_id {
            return Err(ParseErrorKind::Footer);
        }
        self.state = if self.ram_section == RamSection::End { State::Tail } else { State::Section };
        if self.ram_section == RamSection::Start {
            self.start_due = true;
            return Ok(Step::Raw(5));
        }
        Ok(Step::Footer(5))
    }
}

/// The string at `at`, behind one byte of length; `None` where the bytes end before.
fn counted(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::from(*bytes.get(at)?);
    bytes.get(at + 1..at + 1 + length)
}

/// Bytes up to the end of that string, as far as they are known.
fn need_counted(bytes: &[u8], at: usize) -> usize {
    at + 1 + bytes.get(at).map_or(0, |length| usize::from(*length))
}
