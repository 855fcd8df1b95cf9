//! The elements before and between the RAM records: header, configuration, commands, section starts, block list.

use super::{Parser, RamSection, State, Step, counted, need_counted};
use crate::limits::{BLOCK_PAGES_MAX, NAME_BYTES_MAX, STREAM_CAPABILITIES_MAX, VM_BLOCKS_MAX};
use crate::page::PAGE_SIZE;
use crate::qemu_stream::error::Name;
use crate::qemu_stream::{MAGIC, ParseErrorKind, RamBlock, VERSION, be16, be32, be64, flag, section};

const CONFIGURATION_UUID: &[u8] = b"configuration/uuid";
const CONFIGURATION_PAGE_BITS: &[u8] = b"configuration/target-page-bits";
const CONFIGURATION_CAPABILITIES: &[u8] = b"configuration/capabilities";
/// Capabilities under which RAM is laid out differently in the stream, or is not in it.
const CAPABILITIES_REFUSED: [&[u8]; 2] = [b"x-ignore-shared", b"mapped-ram"];

impl Parser {
    /// Everything that is not a record, a footer or the tail.
    pub(super) fn head(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        match self.state {
            State::Header => self.header(bytes),
            State::Configuration => self.configuration(bytes),
            State::Subsection => self.subsection(bytes),
            State::Capability { left } => self.capability(bytes, left),
            State::RamTotal => self.ram_total(bytes),
            State::RamBlock { bytes_left } => self.ram_block(bytes, bytes_left),
            State::RamListEnd => self.ram_list_end(bytes),
            _ => self.section(bytes),
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        const MULTIFD_MAGIC: u32 = 0x1122_3344;
        match be32(bytes, 0) {
            None => return Ok(Step::Need(4)),
            Some(MAGIC) => {}
            Some(MULTIFD_MAGIC) => return Err(ParseErrorKind::Multifd),
            Some(magic) => return Err(ParseErrorKind::Magic(magic)),
        }
        match be32(bytes, 4) {
            None => return Ok(Step::Need(8)),
            Some(VERSION) => {}
            Some(version) => return Err(ParseErrorKind::Version(version)),
        }
        self.state = State::Configuration;
        Ok(Step::Raw(8))
    }

    fn configuration(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        if bytes.first().is_some_and(|kind| *kind != section::CONFIGURATION) {
            return Err(ParseErrorKind::NoConfiguration);
        }
        let Some(length) = be32(bytes, 1) else { return Ok(Step::Need(5)) };
        let length = length as usize;
        if length > NAME_BYTES_MAX {
            return Err(ParseErrorKind::Name("machine type"));
        }
        let Some(name) = bytes.get(5..5 + length) else { return Ok(Step::Need(5 + length)) };
        self.machine = Some(name_of("machine type", name)?);
        self.state = State::Subsection;
        Ok(Step::Raw(5 + length))
    }

    fn subsection(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        match bytes.first() {
            None => return Ok(Step::Need(1)),
            Some(&section::SUBSECTION) => {}
            Some(_) => {
                self.state = State::Section;
                return Ok(Step::Nothing(0));
            }
        }
        let Some(name) = counted(bytes, 1) else { return Ok(Step::Need(need_counted(bytes, 1))) };
        let at = 2 + name.len() + 4;
        let payload_bytes = match name {
            CONFIGURATION_PAGE_BITS | CONFIGURATION_CAPABILITIES => 4,
            CONFIGURATION_UUID => 16,
            _ => return Err(ParseErrorKind::Subsection(Name::new(name))),
        };
        match be32(bytes, at - 4) {
            None => return Ok(Step::Need(at)),
            Some(1) => {}
            Some(version) => return Err(ParseErrorKind::SubsectionVersion(Name::new(name), version)),
        }
        let used = at + payload_bytes;
        let Some(payload) = bytes.get(at..used) else { return Ok(Step::Need(used)) };
        match name {
            CONFIGURATION_UUID => self.uuid = payload.try_into().ok(),
            CONFIGURATION_PAGE_BITS => match be32(payload, 0) {
                Some(12) => {}
                bits => return Err(ParseErrorKind::PageBits(bits.unwrap_or_default())),
            },
            _ => match be32(payload, 0).unwrap_or_default() {
                0 => {}
                count if count > STREAM_CAPABILITIES_MAX => {
                    return Err(ParseErrorKind::CapabilityCount(count));
                }
                left => self.state = State::Capability { left },
            },
        }
        Ok(Step::Raw(used))
    }

    fn capability(&mut self, bytes: &[u8], left: u32) -> Result<Step, ParseErrorKind> {
        let Some(name) = counted(bytes, 0) else { return Ok(Step::Need(need_counted(bytes, 0))) };
        if CAPABILITIES_REFUSED.contains(&name) {
            return Err(ParseErrorKind::Capability(Name::new(name)));
        }
        self.state = if left == 1 { State::Subsection } else { State::Capability { left: left - 1 } };
        Ok(Step::Raw(1 + name.len()))
    }

    fn section(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        match bytes.first() {
            None => Ok(Step::Need(1)),
            Some(&section::COMMAND) => self.command(bytes),
            Some(&(section::START | section::FULL)) => self.section_start(bytes),
            Some(&kind @ (section::PART | section::END)) => {
                let Some(id) = be32(bytes, 1) else { return Ok(Step::Need(5)) };
                if self.ram_id != Some(id) {
                    return Err(ParseErrorKind::SectionId(id));
                }
                self.ram_section = if kind == section::END { RamSection::End } else { RamSection::Part };
                self.state = State::Record;
                Ok(Step::Nothing(5))
            }
            Some(&section::EOF) => Err(ParseErrorKind::EarlyEnd),
            Some(&kind) => Err(ParseErrorKind::SectionType(kind)),
        }
    }

    fn command(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        let (Some(command), Some(length)) = (be16(bytes, 1), be16(bytes, 3)) else {
            return Ok(Step::Need(5));
        };
        let wanted = match command {
            // OPEN_RETURN_PATH, SWITCHOVER_START
            1 | 11 => 0,
            // PING
            2 => 4,
            _ => return Err(ParseErrorKind::Command(command)),
        };
        if length != wanted {
            return Err(ParseErrorKind::CommandLength(command, length));
        }
        let used = 5 + length as usize;
        Ok(if bytes.len() < used { Step::Need(used) } else { Step::Raw(used) })
    }

    fn section_start(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        let Some(id) = be32(bytes, 1) else { return Ok(Step::Need(5)) };
        let Some(name) = counted(bytes, 5) else { return Ok(Step::Need(need_counted(bytes, 5))) };
        if name != b"ram" || bytes[0] != section::START {
            return Err(ParseErrorKind::Section { name: Name::new(name), id });
        }
        let at = 6 + name.len();
        let (Some(instance), Some(version)) = (be32(bytes, at), be32(bytes, at + 4)) else {
            return Ok(Step::Need(at + 8));
        };
        if instance != 0 || version != 4 || self.ram_id.is_some() {
            return Err(ParseErrorKind::RamSection { instance, version });
        }
        self.ram_id = Some(id);
        self.state = State::RamTotal;
        Ok(Step::Raw(at + 8))
    }

    fn ram_total(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        let Some(header) = be64(bytes, 0) else { return Ok(Step::Need(8)) };
        if header & flag::MASK != flag::MEM_SIZE {
            return Err(ParseErrorKind::BlockList("no total"));
        }
        self.state = match header & !flag::MASK {
            0 => return Err(ParseErrorKind::BlockList("no block")),
            bytes_left => State::RamBlock { bytes_left },
        };
        Ok(Step::Raw(8))
    }

    fn ram_block(&mut self, bytes: &[u8], bytes_left: u64) -> Result<Step, ParseErrorKind> {
        let Some(raw_name) = counted(bytes, 0) else { return Ok(Step::Need(need_counted(bytes, 0))) };
        let used = 1 + raw_name.len() + 8;
        let Some(length) = be64(bytes, used - 8) else { return Ok(Step::Need(used)) };
        let name = name_of("RAM block", raw_name)?;
        let pages = length / PAGE_SIZE as u64;
        if length % PAGE_SIZE as u64 != 0 || pages == 0 || pages > BLOCK_PAGES_MAX {
            return Err(ParseErrorKind::BlockBytes { name: Name::new(raw_name), bytes: length });
        }
        let Some(bytes_left) = bytes_left.checked_sub(length) else {
            return Err(ParseErrorKind::BlockList("the blocks exceed the total"));
        };
        let index = match u16::try_from(self.blocks.len()) {
            Ok(index) if self.blocks.len() < VM_BLOCKS_MAX => index,
            _ => return Err(ParseErrorKind::BlockList("too many blocks")),
        };
        if self.block_by_name.insert(name.clone(), index).is_some() {
            return Err(ParseErrorKind::BlockList("a name stands twice"));
        }
        self.blocks.push(RamBlock { name, bytes: length });
        self.state = if bytes_left == 0 { State::RamListEnd } else { State::RamBlock { bytes_left } };
        Ok(Step::Raw(used))
    }

    fn ram_list_end(&mut self, bytes: &[u8]) -> Result<Step, ParseErrorKind> {
        match be64(bytes, 0) {
            None => Ok(Step::Need(8)),
            Some(flag::EOS) => {
                self.state = State::Footer;
                Ok(Step::Raw(8))
            }
            // Sent by 8.1 on with multifd; the target ignores it without.
            Some(flag::MULTIFD_FLUSH) => Ok(Step::Raw(8)),
            Some(_) => Err(ParseErrorKind::BlockList("no end mark behind the blocks")),
        }
    }
}

/// A name that can be compared and printed without surprise.
fn name_of(what: &'static str, bytes: &[u8]) -> Result<String, ParseErrorKind> {
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.is_empty() && !name.chars().any(char::is_control) => Ok(name.to_owned()),
        _ => Err(ParseErrorKind::Name(what)),
    }
}
