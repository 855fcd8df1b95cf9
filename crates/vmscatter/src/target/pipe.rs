//! The two threads of a VM's migration socket: what is composed goes in, the return path comes out.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crossbeam_channel::{Receiver, Sender, unbounded};
use vmscatter_core::session::Output;

use super::actor::Event;

/// The return path's messages have a few bytes each.
const RETURN_PATH_CHUNK: usize = 4096;

/// A migration socket with its threads; they end when it is dropped or the socket breaks.
#[derive(Debug)]
pub(super) struct Pipe {
    socket: UnixStream,
    /// Bounded by what the session lets a VM have unwritten.
    outputs: Sender<Output>,
}

impl Pipe {
    /// Starts both threads; what they see goes to `events`.
    pub(super) fn start(vm: u16, socket: UnixStream, events: &Sender<Event>) -> std::io::Result<Pipe> {
        let (outputs, queue) = unbounded();
        let (writer, reader) = (socket.try_clone()?, socket.try_clone()?);
        let (to_writer, to_reader) = (events.clone(), events.clone());
        spawn(format!("write-{vm}"), move || write(vm, writer, &queue, &to_writer))?;
        spawn(format!("return-{vm}"), move || read(vm, reader, &to_reader))?;
        Ok(Pipe { socket, outputs })
    }

    /// Queues an output.
    pub(super) fn write(&self, output: Output) {
        // A writer that has ended has told the session why.
        let _ = self.outputs.send(output);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name).spawn(body).map(drop)
}

fn write(vm: u16, mut socket: UnixStream, queue: &Receiver<Output>, events: &Sender<Event>) {
    for output in queue {
        if let Err(error) = socket.write_all(&output.bytes) {
            let _ = events.send(Event::Broken { vm, reason: format!("incoming QEMU's socket: {error}") });
            return;
        }
        let bytes = output.bytes.len();
        let written = Event::Written { vm, bytes, frames: output.frames, stream_next: output.stream_next };
        if events.send(written).is_err() {
            return;
        }
    }
}

fn read(vm: u16, mut socket: UnixStream, events: &Sender<Event>) {
    let mut chunk = [0; RETURN_PATH_CHUNK];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => {
                let _ = events.send(Event::ReturnPathEnded { vm });
                return;
            }
            Ok(len) => {
                if events.send(Event::ReturnPath { vm, bytes: chunk[..len].to_vec() }).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = events.send(Event::Broken { vm, reason: format!("incoming QEMU's socket: {error}") });
                return;
            }
        }
    }
}
