//! A VM's stream at the source: the thread that reads what QEMU writes, and what the session tells it.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use tokio::sync::mpsc::UnboundedSender;
use vmscatter_core::page::VmDigest;
use vmscatter_core::session::{SourceVm, SourceVmError, StreamFrame};

use super::encode::EncodePool;
use super::link::TargetLink;
use crate::net::data::Priority;

/// Read at once: many pages whole, few cut in two.
const READ_BYTES: usize = 256 * 1024;
/// Less than a page's worth would cut pages into crumbs.
const ROOM_MIN: usize = 8192;
/// QEMU connects at once after `migrate`.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The thread looks up at least this often whether it is still wanted.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What a VM's stream tells the session.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// The block list has been seen.
    Held,
    /// RAM has ended.
    RamEnded(VmDigest),
    /// The stream can't go on.
    Failed(String),
}

/// A VM's stream, shared between the session and its thread.
#[derive(Debug)]
pub(super) struct Stream {
    vm: u16,
    state: Mutex<State>,
    /// Room in flight, release, or closing.
    changed: Condvar,
    link: Arc<TargetLink>,
    encoders: Arc<EncodePool>,
    events: UnboundedSender<(u16, StreamEvent)>,
}

#[derive(Debug)]
struct State {
    vm: SourceVm,
    socket: Option<UnixStream>,
    closed: bool,
    in_flight_limit: usize,
    priority: Priority,
}

impl State {
    /// Bytes that may be read.
    fn room(&self) -> usize {
        match self.vm.is_held() {
            true => self.vm.trickle_room(),
            false => self.in_flight_limit.saturating_sub(self.vm.in_flight_bytes()),
        }
    }
}

impl Stream {
    pub(super) fn new(
        number: u16,
        vm: SourceVm,
        link: Arc<TargetLink>,
        encoders: Arc<EncodePool>,
        in_flight_limit: usize,
        events: UnboundedSender<(u16, StreamEvent)>,
    ) -> Arc<Stream> {
        let state = State { vm, socket: None, closed: false, in_flight_limit, priority: Priority::Stream };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Arc::new(Stream { vm: number, state, changed, link, encoders, events })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Works on the VM's state machine; the thread is told that something may have changed.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut SourceVm) -> T) -> T {
        let result = work(&mut self.lock().vm);
        self.changed.notify_all();
        result
    }

    /// The guest is stopped: what is left goes before everything else.
    pub(super) fn hurry(&self) {
        self.lock().priority = Priority::HandOff;
    }

    /// Lets the stream flow.
    pub(super) fn release(&self) {
        let result = self.with(SourceVm::release);
        if let Err(error) = result {
            self.fail(error.to_string());
        }
        self.forward();
    }

    /// Passes on to QEMU what the target says that its QEMU answers.
    ///
    /// # Errors
    /// It is nothing that an honest target passes on.
    pub(super) fn answered(&self, bytes: &[u8]) -> Result<(), SourceVmError> {
        let bytes = self.with(|vm| vm.return_path(bytes))?;
        self.return_path(&bytes);
        Ok(())
    }

    /// Writes to QEMU's return path. Never waits: QEMU reads the few answers that there are at once, and whoever makes it
    /// stop doing so must not hold up the session.
    pub(super) fn return_path(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let socket = self.lock().socket.as_ref().and_then(|socket| socket.try_clone().ok());
        let Some(socket) = socket else { return };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let fault = match send(socket.as_raw_fd(), bytes, flags) {
            Ok(sent) if sent == bytes.len() => return,
            Ok(_) => "takes no answers".to_owned(),
            Err(errno) => errno.desc().to_owned(),
        };
        // Once RAM has ended it is QEMU's monitor that tells what became of it.
        if self.lock().vm.final_digest().is_none() {
            self.fail(format!("QEMU's migration socket: {fault}"));
        }
    }

    /// Closes QEMU's socket in both directions: QEMU lets the guest go on by itself.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        if let Some(socket) = state.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What the target has written of it, in plain bytes, and whether as much is in flight as may be.
    pub(super) fn pace(&self) -> (u64, bool) {
        let state = self.lock();
        (state.vm.written_bytes(), state.room() < ROOM_MIN)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn fail(&self, reason: String) {
        if !self.is_closed() {
            self.tell(StreamEvent::Failed(reason));
        }
    }

    fn tell(&self, event: StreamEvent) {
        let _ = self.events.send((self.vm, event));
    }

    /// Starts the thread that takes QEMU's connection and reads it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(self: &Arc<Self>, listener: UnixListener) -> std::io::Result<()> {
        let stream = self.clone();
        let body = move || {
            if let Err(reason) = stream.run(&listener) {
                stream.fail(reason);
            }
        };
        std::thread::Builder::new().name(format!("stream-{}", self.vm)).spawn(body).map(drop)
    }

    fn run(&self, listener: &UnixListener) -> Result<(), String> {
        if !readable(listener, CONNECT_DEADLINE)? {
            return Err(format!("QEMU did not connect within {} s", CONNECT_DEADLINE.as_secs()));
        }
        let (socket, _) = listener.accept().map_err(|e| e.to_string())?;
        {
            let mut state = self.lock();
            if state.closed {
                return Ok(());
            }
            state.socket = Some(socket.try_clone().map_err(|e| e.to_string())?);
        }
        self.read(socket)
    }

    fn read(&self, mut socket: UnixStream) -> Result<(), String> {
        let mut buffer = vec![0; READ_BYTES];
        let (mut told_held, mut told_end) = (false, false);
        while let Some(room) = self.wait_for_room() {
            if !readable(&socket, LOOK_UP)? {
                continue;
            }
            let len = match socket.read(&mut buffer[..room.min(READ_BYTES)]) {
                Ok(0) => return if self.is_closed() { Ok(()) } else { self.end_of_stream() },
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) if self.is_closed() => return Ok(()),
                // A QEMU that is killed has not read what we had said to it: the end comes as an error then.
                Err(_) if self.lock().vm.final_digest().is_some() => return Ok(()),
                Err(error) => return Err(format!("QEMU's migration socket: {error}")),
            };
            let more = readable(&socket, Duration::ZERO)?;
            let mut state = self.lock();
            state.vm.input(&buffer[..len]).map_err(|e| e.to_string())?;
            if !more {
                state.vm.flush();
            }
            let held = state.vm.is_held() && !std::mem::replace(&mut told_held, state.vm.is_held());
            let digest = state.vm.final_digest().filter(|_| !told_end).cloned();
            drop(state);
            self.forward();
            if held {
                self.tell(StreamEvent::Held);
            }
            if let Some(digest) = digest {
                told_end = true;
                self.tell(StreamEvent::RamEnded(digest));
            }
        }
        Ok(())
    }

    /// QEMU closes its socket when it has completed, or failed; its monitor says which.
    fn end_of_stream(&self) -> Result<(), String> {
        if self.lock().vm.final_digest().is_some() {
            return Ok(());
        }
        Err("QEMU closed its migration socket before the end of RAM".to_owned())
    }

    /// Waits until more may be read; `None` once the stream is closed.
    fn wait_for_room(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let room = state.room();
            if room >= ROOM_MIN {
                return Some(room);
            }
            state = self.changed.wait_timeout(state, LOOK_UP).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Hands finished frames to the encoders, and by them to the target's link.
    fn forward(&self) {
        let mut frames: Vec<StreamFrame> = Vec::new();
        let mut state = self.lock();
        while let Some(frame) = state.vm.poll_frame() {
            frames.push(frame);
        }
        let priority = state.priority;
        drop(state);
        for mut frame in frames {
            let link = self.link.clone();
            self.encoders.submit(Box::new(move |encoder, compression| {
                let body = frame.body.finish(compression, encoder);
                link.send_stream(frame.vm, frame.seq, &body, priority);
            }));
        }
    }
}

fn readable(fd: &impl AsFd, span: Duration) -> Result<bool, String> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(span).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(errno) => Err(format!("poll: {}", errno.desc())),
    }
}
