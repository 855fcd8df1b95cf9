//! Connections to other targets of the session, to which pieces are passed on.

use std::collections::HashMap;
use std::net::SocketAddr;

use crossbeam_channel::Sender;

use super::actor::Event;
use crate::net::data::{DataSender, Priority};

/// The open ones, by the target at their other end.
#[derive(Debug, Default)]
pub(super) struct Hops(HashMap<u16, DataSender>);

impl Hops {
    /// Connects, on a thread of its own: that may take seconds. Then comes [`Event::Connected`].
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn connect(
        target: u16,
        addr: SocketAddr,
        hello: Vec<u8>,
        events: Sender<Event>,
    ) -> std::io::Result<()> {
        let connect = move || {
            let result = DataSender::connect(addr, &hello, None).map_err(|error| format!("{addr}: {error}"));
            // The session may have ended meanwhile.
            let _ = events.send(Event::Connected { target, result });
        };
        std::thread::Builder::new().name("hop".into()).spawn(connect).map(drop)
    }

    /// Takes the connection into use; what it failed with.
    pub(super) fn opened(&mut self, target: u16, result: Result<DataSender, String>) -> Option<String> {
        match result {
            Ok(hop) => drop(self.0.insert(target, hop)),
            Err(error) => return Some(error),
        }
        None
    }

    /// Sends a sealed piece on; never waits.
    ///
    /// # Errors
    /// What has broken the connection, which is closed.
    pub(super) fn pass_on(&mut self, target: u16, bytes: Vec<u8>) -> Result<(), String> {
        let Some(hop) = self.0.get(&target) else { return Ok(()) };
        let Err(closed) = hop.send(Priority::Scatter, bytes) else { return Ok(()) };
        let error = hop.fault().unwrap_or_else(|| closed.to_string());
        self.0.remove(&target);
        Err(error)
    }
}
