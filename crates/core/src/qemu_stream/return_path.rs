//! The messages that a target QEMU sends back (`MIG_RP_MSG_*` in QEMU's `migration/migration.h`).

use thiserror::Error;

use super::{be16, be32};

/// One message of the return path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnMessage {
    /// The last message: the target has loaded the stream (0), or failed.
    Shut {
        /// 0 for success.
        error: u32,
    },
    /// The answer to PING, with PING's value.
    Pong(u32),
    /// The target is ready for switchover (8.1 on, capability `switchover-ack`).
    SwitchoverAck,
}

/// Why the return path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("QEMU's return path, byte {offset}: {kind}")]
pub struct ReturnError {
    /// Bytes from its start to the message that is refused.
    pub offset: u64,
    /// What is wrong.
    pub kind: ReturnErrorKind,
}

/// What is wrong with a return path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReturnErrorKind {
    /// Postcopy's messages, and unknown ones.
    #[error("unsupported message {0} ({name})", name = message_name(*.0))]
    Type(u16),
    /// A known message with a wrong length.
    #[error("message {0} ({name}) with {1} bytes", name = message_name(*.0))]
    Length(u16, u16),
    /// Bytes after SHUT.
    #[error("data after SHUT")]
    AfterShut,
}

/// Incremental parser of the return path.
///
/// Every message comes with its bytes, so that the caller decides when it goes on to the source. Holds one message.
#[derive(Debug, Default)]
pub struct ReturnParser {
    carry: Vec<u8>,
    carry_spent: bool,
    offset: u64,
    shut: bool,
    failed: Option<ReturnError>,
}

impl ReturnParser {
    /// A parser at the return path's first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next message and its bytes; moves `input` past what was read. `None`: more input is needed.
    ///
    /// # Errors
    /// Names the message that is refused; the parser stays failed.
    pub fn next_message(&mut self, input: &mut &[u8]) -> Result<Option<(ReturnMessage, &[u8])>, ReturnError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.carry_spent {
            self.carry.clear();
            self.carry_spent = false;
        }
        loop {
            match message(&self.carry, self.shut) {
                Err(kind) => {
                    let error = ReturnError { offset: self.offset, kind };
                    self.failed = Some(error);
                    return Err(error);
                }
                Ok(Message::Need(total)) => {
                    let (more, rest) = input.split_at((total - self.carry.len()).min(input.len()));
                    self.carry.extend_from_slice(more);
                    *input = rest;
                    if self.carry.len() < total {
                        return Ok(None);
                    }
                }
                Ok(Message::Whole(message)) => {
                    self.shut = matches!(message, ReturnMessage::Shut { .. });
                    self.offset += self.carry.len() as u64;
                    self.carry_spent = true;
                    return Ok(Some((message, &self.carry)));
                }
            }
        }
    }

    /// Whether SHUT was seen: the return path has ended in order.
    pub fn is_shut(&self) -> bool {
        self.shut
    }
}

enum Message {
    /// Bytes needed in all, or more.
    Need(usize),
    Whole(ReturnMessage),
}

fn message(bytes: &[u8], shut: bool) -> Result<Message, ReturnErrorKind> {
    if shut && !bytes.is_empty() {
        return Err(ReturnErrorKind::AfterShut);
    }
    if shut {
        return Ok(Message::Need(1));
    }
    let (Some(kind), Some(length)) = (be16(bytes, 0), be16(bytes, 2)) else { return Ok(Message::Need(4)) };
    let wanted = match kind {
        1 | 2 => 4,
        7 => 0,
        _ => return Err(ReturnErrorKind::Type(kind)),
    };
    if length != wanted {
        return Err(ReturnErrorKind::Length(kind, length));
    }
    if wanted == 0 {
        return Ok(Message::Whole(ReturnMessage::SwitchoverAck));
    }
    let Some(value) = be32(bytes, 4) else { return Ok(Message::Need(8)) };
    Ok(Message::Whole(if kind == 1 {
        ReturnMessage::Shut { error: value }
    } else {
        ReturnMessage::Pong(value)
    }))
}

fn message_name(kind: u16) -> &'static str {
    match kind {
        1 => "SHUT",
        2 => "PONG",
        3 => "REQ_PAGES_ID",
        4 => "REQ_PAGES",
        5 => "RECV_BITMAP",
        6 => "RESUME_ACK",
        7 => "SWITCHOVER_ACK",
        _ => "unknown",
    }
}
