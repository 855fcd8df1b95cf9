//! Control connections of the peers: the product's messages, without TLS.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use vmscatter_core::wire::control::{Envelope, Message};

pub(super) const CONTROL_PORT: u16 = 7951;
pub(super) const DATA_PORT: u16 = 7952;

pub(super) fn send(to: &mut TcpStream, message: Message) -> Result<()> {
    Ok(to.write_all(&Envelope { session: [0; 16], message }.encode()?)?)
}

/// The next message; `None` at the end of the connection.
pub(super) fn receive(from: &mut impl Read) -> Result<Option<Message>> {
    let mut prefix = [0; 4];
    match from.read_exact(&mut prefix) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let mut body = vec![0; Envelope::body_len(prefix)?];
    if from.read_exact(&mut body).is_err() {
        bail!("a message without its end");
    }
    Ok(Some(Envelope::decode(&body)?.message))
}
