//! UDP multicast: sent with segmentation offload where the kernel has it, received with GRO.
//!
//! A socket gives no backpressure (what exceeds the queue of the interface is dropped without an error), so the sender
//! above keeps the pace.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
    sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};

use crate::agent::host::Interface;

/// One datagram, or what GRO makes of several.
const RECEIVE_BYTES: usize = 65_536;
/// As many of these are taken in by one call, where they wait.
const RECEIVES_MAX: usize = 16;
/// Asked of the kernel for each receiving socket: a tenth of a second at 1 Gbit/s, twice for the kernel's own accounts.
const RECEIVE_BUFFER_BYTES: usize = 24 * 1024 * 1024;
/// Segments that the kernel takes at once (`UDP_MAX_SEGMENTS` before 6.9).
const SEGMENTS_MAX: usize = 64;
/// Bytes that it takes at once: a UDP datagram's, before it is segmented.
const BURST_BYTES_MAX: usize = 65_507;
/// Datagrams handed to the kernel by one call where it does not segment.
const DATAGRAMS_MAX: usize = 64;
/// How long a receiving thread takes at most to see that it is to end.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Sealed pieces that arrived together.
#[derive(Debug)]
pub struct PieceBatch {
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

/// Pieces of `segment` bytes each, the last maybe shorter: `bytes` in all.
#[derive(Debug)]
struct Run {
    bytes: usize,
    segment: usize,
}

impl PieceBatch {
    /// A single piece.
    pub fn one(piece: Vec<u8>) -> PieceBatch {
        PieceBatch { runs: vec![Run { bytes: piece.len(), segment: piece.len().max(1) }], bytes: piece }
    }

    /// The pieces.
    pub fn pieces_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let mut left = &mut self.bytes[..];
        self.runs.iter().flat_map(move |run| {
            let (pieces, behind) = std::mem::take(&mut left).split_at_mut(run.bytes);
            left = behind;
            pieces.chunks_mut(run.segment)
        })
    }
}

/// Bytes of the headers of UDP and IP, to or from `local`.
fn header_bytes(local: IpAddr) -> usize {
    if local.to_canonical().is_ipv6() { 48 } else { 28 }
}

/// Bytes of a datagram behind the UDP header that an interface of this MTU carries whole to or from `local`; an MTU below
/// 1280 counts as that.
pub fn datagram_bytes(mtu: u32, local: IpAddr) -> usize {
    // A packet's length has 16 bits, whatever an interface says (loopback: 65536).
    mtu.clamp(1280, u32::from(u16::MAX)) as usize - header_bytes(local)
}

/// Lengths to be tried where a path may carry less than datagrams of `bytes`, the longest first: these, those of Ethernet, and those that
/// every network carries that speaks IPv6.
pub fn shorter_datagrams(bytes: usize, local: IpAddr) -> Vec<usize> {
    let common = [1500, 1280].map(|mtu| datagram_bytes(mtu, local));
    std::iter::once(bytes).chain(common.into_iter().filter(|common| *common < bytes)).collect()
}

/// What an Ethernet link adds to a datagram to or from `local`: the headers of UDP, IP and Ethernet, in bytes.
pub fn datagram_overhead_bytes(local: IpAddr) -> usize {
    header_bytes(local) + 14
}

/// By which way datagrams leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// The interface; `None`: that which has the address from which they are sent.
    pub interface: Option<Interface>,
    /// Time to live, or hop limit: 1 keeps them on the link.
    pub ttl: u8,
}

impl WayOut {
    /// On the link of the address from which they are sent, and no further.
    pub const LINK: WayOut = WayOut { interface: None, ttl: 1 };
}

/// Sends to multicast groups.
#[derive(Debug)]
pub struct MulticastSender {
    socket: Socket,
    /// The kernel segments for us; switched off when it says that it can't.
    offload: bool,
}

impl MulticastSender {
    /// A socket that sends from `local`, not to this host; datagrams leave as `out` says.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn bind(local: IpAddr, out: WayOut) -> io::Result<MulticastSender> {
        let local = local.to_canonical();
        let socket = open_socket(local)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
        match local {
            IpAddr::V4(local) => {
                let interface = out.interface.and_then(|interface| interface.ipv4);
                socket.set_multicast_if_v4(&interface.unwrap_or(local))?;
                socket.set_multicast_ttl_v4(out.ttl.into())?;
                socket.set_multicast_loop_v4(false)?;
            }
            IpAddr::V6(_) => {
                let interface = match out.interface {
                    Some(interface) => interface,
                    None => Interface::with_address(local).map_err(io::Error::other)?,
                };
                socket.set_multicast_if_v6(interface.index)?;
                socket.set_multicast_hops_v6(out.ttl.into())?;
                socket.set_multicast_loop_v6(false)?;
            }
        }
        Ok(MulticastSender { socket, offload: true })
    }

    /// Sends `bytes` as datagrams of `segment` bytes, the last maybe shorter; `true` if it had to wait until the socket had room, since
    /// the link takes no more.
    ///
    /// # Errors
    /// Those of the socket; some datagrams may have left.
    pub fn send(&mut self, group: SocketAddr, bytes: &[u8], segment: usize) -> io::Result<bool> {
        let group = SockaddrStorage::from(group);
        let mut waited = false;
        let segment = segment.clamp(1, BURST_BYTES_MAX);
        for burst in bytes.chunks(segment * SEGMENTS_MAX.min(BURST_BYTES_MAX / segment)) {
            if self.offload && burst.len() > segment {
                match self.send_offloaded(&group, burst, segment) {
                    // The interface computes no checksums, or the kernel knows no segmentation: this burst and
                    // all that follow go one by one.
                    Err(Errno::EIO | Errno::EINVAL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => {
                        self.offload = false
                    }
                    result => {
                        waited |= result?;
                        continue;
                    }
                }
            }
            waited |= self.send_each(&group, burst, segment)?;
        }
        Ok(waited)
    }

    /// Whether the kernel cuts datagrams for us, as far as is known.
    pub fn is_offloaded(&self) -> bool {
        self.offload
    }

    fn send_offloaded(&self, group: &SockaddrStorage, bytes: &[u8], segment: usize) -> nix::Result<bool> {
        let segment = segment as u16;
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let slices = [IoSlice::new(bytes)];
        let send = |flags| sendmsg(self.socket.as_raw_fd(), &slices, &control, flags, Some(group));
        send_waiting(send).map(|(_, waited)| waited)
    }

    fn send_each(&self, group: &SockaddrStorage, bytes: &[u8], segment: usize) -> nix::Result<bool> {
        let slices: Vec<[IoSlice<'_>; 1]> =
            bytes.chunks(segment).map(|datagram| [IoSlice::new(datagram)]).collect();
        let to = [Some(*group); DATAGRAMS_MAX];
        let mut headers = MultiHeaders::preallocate(DATAGRAMS_MAX, None);
        let (mut left, mut waited) = (&slices[..], false);
        while !left.is_empty() {
            let now = left.len().min(DATAGRAMS_MAX);
            let (sent, has_waited) = send_waiting(|flags| {
                let fd = self.socket.as_raw_fd();
                sendmmsg(fd, &mut headers, left[..now].iter(), &to[..now], [], flags).map(Iterator::count)
            })?;
            left = &left[sent..];
            waited |= has_waited;
        }
        Ok(waited)
    }
}

fn open_socket(family: IpAddr) -> io::Result<Socket> {
    let domain = if family.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
}

/// Sends what there is room for, and waits for it only where there is none; whether it waited.
fn send_waiting<T>(mut send: impl FnMut(MsgFlags) -> nix::Result<T>) -> nix::Result<(T, bool)> {
    match retry(|| send(MsgFlags::MSG_DONTWAIT)) {
        Err(Errno::EAGAIN) => retry(|| send(MsgFlags::empty())).map(|sent| (sent, true)),
        result => result.map(|sent| (sent, false)),
    }
}

/// Again when a signal came between.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// The groups of a session, each with a socket and a thread that end when this is dropped. A group that has been left
/// keeps them, for it may be joined again.
#[derive(Debug, Default)]
pub struct GroupReceivers {
    sockets: HashMap<SocketAddr, Arc<Socket>>,
    stop: Arc<AtomicBool>,
    kernel_drops: Arc<AtomicU64>,
}

impl GroupReceivers {
    /// None yet.
    pub fn new() -> GroupReceivers {
        GroupReceivers::default()
    }

    /// Joins `group` on `interface`, for what `source` sends to it only if one is named. What arrives goes to
    /// `batches`; while that is full its thread waits, and the kernel drops.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn join(
        &mut self,
        group: SocketAddr,
        source: Option<IpAddr>,
        interface: &Interface,
        batches: &Sender<PieceBatch>,
    ) -> io::Result<()> {
        if let Some(socket) = self.sockets.get(&group) {
            return join(socket, group.ip(), source, interface);
        }
        let socket = Arc::new(open(group, interface)?);
        join(&socket, group.ip(), source, interface)?;
        let mut receiver = GroupReceiver {
            socket: socket.clone(),
            buffer: vec![0; RECEIVES_MAX * RECEIVE_BYTES],
            dropped: 0,
            stop: self.stop.clone(),
            kernel_drops: self.kernel_drops.clone(),
        };
        let batches = batches.clone();
        std::thread::Builder::new().name("multicast".into()).spawn(move || receiver.run(&batches))?;
        self.sockets.insert(group, socket);
        Ok(())
    }

    /// Leaves a group that was joined with the same source and interface.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn leave(
        &mut self,
        group: SocketAddr,
        source: Option<IpAddr>,
        interface: &Interface,
    ) -> io::Result<()> {
        let Some(socket) = self.sockets.get(&group) else { return Ok(()) };
        // As it was joined: for the source, or else for any.
        if let Some(source) = source
            && change_source(socket, libc::MCAST_LEAVE_SOURCE_GROUP, group.ip(), source, interface).is_ok()
        {
            return Ok(());
        }
        match group.ip() {
            IpAddr::V4(group) => {
                socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface.index))
            }
            IpAddr::V6(group) => socket.leave_multicast_v6(&group, interface.index),
        }
    }

    /// Datagrams that the kernel dropped since the sockets' buffers were full, over all groups.
    pub fn kernel_drops(&self) -> u64 {
        self.kernel_drops.load(Relaxed)
    }
}

impl Drop for GroupReceivers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// As much as the kernel lets us have.
fn enlarge(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    }
    Ok(())
}

/// What a receiver's socket holds, in bytes: what it asks for, or what `net.core.rmem_max` leaves of that.
///
/// # Errors
/// Those of the socket.
pub fn receive_buffer_bytes() -> io::Result<u64> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    enlarge(&socket)?;
    // Linux says twice of what was asked for (socket(7)).
    Ok(socket.recv_buffer_size()? as u64 / 2)
}

/// A socket that receives what is sent to `group`, once it is joined on `interface`.
fn open(group: SocketAddr, interface: &Interface) -> io::Result<Socket> {
    let socket = open_socket(group.ip())?;
    socket.set_reuse_address(true)?;
    // Bound to the group, so that nothing else that comes to this port is read; and while it is not joined here, what
    // others on this host have joined is not ours.
    match group {
        SocketAddr::V4(group) => {
            socket.bind(&group.into())?;
            socket.set_multicast_all_v4(false)?;
        }
        SocketAddr::V6(group) => {
            // Of a group of the link alone it must be told which link.
            let group = SocketAddrV6::new(*group.ip(), group.port(), 0, interface.index);
            socket.set_only_v6(true)?;
            socket.bind(&group.into())?;
            socket.set_multicast_all_v6(false)?;
        }
    }
    // Each of these is an improvement that a kernel may lack.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
    enlarge(&socket)?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    Ok(socket)
}

/// For one source only, which also holds off others on the same group; where the kernel does not have that for this
/// group, for any.
fn join(socket: &Socket, group: IpAddr, source: Option<IpAddr>, interface: &Interface) -> io::Result<()> {
    if let Some(source) = source {
        match change_source(socket, libc::MCAST_JOIN_SOURCE_GROUP, group, source, interface) {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(%group, "joined for any source, not only {source}: {error}"),
        }
    }
    match group {
        IpAddr::V4(group) => {
            socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface.index))
        }
        IpAddr::V6(group) => socket.join_multicast_v6(&group, interface.index),
    }
}

/// Joins or leaves a group for one source (RFC 3678, section 5.1), as `option` says.
fn change_source(
    socket: &Socket,
    option: libc::c_int,
    group: IpAddr,
    source: IpAddr,
    interface: &Interface,
) -> io::Result<()> {
    let level = if group.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let request = libc::group_source_req {
        gsr_interface: interface.index,
        gsr_group: storage(group),
        gsr_source: storage(source.to_canonical()),
    };
    // SAFETY: the option's value is a group_source_req that lives on, and its length is given (ip(7), ipv6(7)).
    let result = unsafe {
        let (value, len) = ((&raw const request).cast(), size_of_val(&request) as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), level, option, value, len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn storage(addr: IpAddr) -> libc::sockaddr_storage {
    let addr = SockAddr::from(SocketAddr::new(addr, 0));
    // SAFETY: sockaddr_storage is plain bytes, for which all zeros is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = (addr.len() as usize).min(size_of_val(&storage));
    // SAFETY: both are at least `len` bytes long, and neither is part of the other.
    unsafe {
        std::ptr::copy_nonoverlapping(addr.as_ptr().cast::<u8>(), (&raw mut storage).cast::<u8>(), len);
    }
    storage
}

/// One group's socket, on its thread.
struct GroupReceiver {
    socket: Arc<Socket>,
    buffer: Vec<u8>,
    /// The kernel's count of drops, as it was last seen.
    dropped: u32,
    stop: Arc<AtomicBool>,
    kernel_drops: Arc<AtomicU64>,
}

impl GroupReceiver {
    fn run(&mut self, batches: &Sender<PieceBatch>) {
        while !self.stop.load(Relaxed) {
            match self.receive() {
                // It may have been ended while it waited.
                Ok(Some(batch)) => {
                    if self.stop.load(Relaxed) || batches.send(batch).is_err() {
                        return;
                    }
                }
                Ok(None) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return tracing::warn!("multicast: {}", error.desc()),
            }
        }
    }

    /// What waits; if nothing does, the first that comes.
    fn receive(&mut self) -> nix::Result<Option<PieceBatch>> {
        // Anew each time: the kernel shortens the room for control messages to what it has filled.
        let mut headers =
            MultiHeaders::<()>::preallocate(RECEIVES_MAX, Some(nix::cmsg_space!(libc::c_int, u32)));
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffer.chunks_mut(RECEIVE_BYTES).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let fd = self.socket.as_raw_fd();
        let messages = recvmmsg(fd, &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None)?;
        let (mut runs, mut dropped) = (Vec::with_capacity(RECEIVES_MAX), None);
        for message in messages {
            let mut run = Run { bytes: message.bytes, segment: message.bytes.max(1) };
            for one in message.cmsgs()? {
                match one {
                    ControlMessageOwned::UdpGroSegments(bytes) if bytes > 0 => run.segment = bytes as usize,
                    ControlMessageOwned::RxqOvfl(count) => dropped = Some(count),
                    _ => {}
                }
            }
            runs.push(run);
        }
        if let Some(dropped) = dropped {
            // The kernel's count wraps around.
            self.kernel_drops.fetch_add(dropped.wrapping_sub(self.dropped).into(), Relaxed);
            self.dropped = dropped;
        }
        let mut bytes = Vec::with_capacity(runs.iter().map(|run| run.bytes).sum());
        for (run, buffer) in runs.iter().zip(self.buffer.chunks(RECEIVE_BYTES)) {
            bytes.extend_from_slice(&buffer[..run.bytes]);
        }
        Ok((!bytes.is_empty()).then_some(PieceBatch { bytes, runs }))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use crossbeam_channel::{Receiver, bounded};

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const LOCALHOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn datagrams_leave_as_they_are_told() {
        let lo = Interface::with_address(LOCALHOST).unwrap();
        let out = WayOut { interface: Some(lo.clone()), ttl: 7 };
        let sender = MulticastSender::bind(LOCALHOST, out.clone()).unwrap();
        assert_eq!(sender.socket.multicast_ttl_v4().unwrap(), 7);
        assert_eq!(sender.socket.multicast_if_v4().unwrap(), Ipv4Addr::LOCALHOST);
        let sender = MulticastSender::bind(LOCALHOST, WayOut::LINK).unwrap();
        assert_eq!(sender.socket.multicast_ttl_v4().unwrap(), 1);
        if Interface::with_address(LOCALHOST_V6).is_ok() {
            let sender = MulticastSender::bind(LOCALHOST_V6, out).unwrap();
            assert_eq!(sender.socket.multicast_hops_v6().unwrap(), 7);
            assert_eq!(sender.socket.multicast_if_v6().unwrap(), lo.index);
            let sender = MulticastSender::bind(LOCALHOST_V6, WayOut::LINK).unwrap();
            assert_eq!(sender.socket.multicast_hops_v6().unwrap(), 1);
            assert_eq!(sender.socket.multicast_if_v6().unwrap(), lo.index, "that of the address");
        }
    }

    #[test]
    fn datagrams_are_as_long_as_the_interface_carries() {
        assert_eq!(datagram_bytes(1500, LOCALHOST), 1472);
        assert_eq!(datagram_bytes(9000, LOCALHOST_V6), 8952);
        assert_eq!(datagram_bytes(65_536, LOCALHOST), 65_507, "what UDP has at most");
        assert_eq!(datagram_bytes(0, LOCALHOST), 1252);
        assert_eq!(shorter_datagrams(8972, LOCALHOST), [8972, 1472, 1252]);
        assert_eq!(shorter_datagrams(1472, LOCALHOST), [1472, 1252]);
        assert_eq!(shorter_datagrams(1232, LOCALHOST_V6), [1232]);
        assert_eq!((datagram_overhead_bytes(LOCALHOST), datagram_overhead_bytes(LOCALHOST_V6)), (42, 62));
    }

    /// Of IPv4: loopback has no multicast of IPv6, which the lab's hosts try.
    fn group(port: u16) -> SocketAddr {
        let [high, low] = crate::random::random();
        SocketAddr::new(Ipv4Addr::new(239, 255, high, low).into(), port)
    }

    /// What arrives until `bytes` bytes are there, cut into datagrams, and how many reads it took.
    fn collect(batches: &Receiver<PieceBatch>, bytes: usize) -> (Vec<Vec<u8>>, usize) {
        let (mut pieces, mut reads, mut total) = (Vec::new(), 0, 0);
        while total < bytes {
            let mut batch =
                batches.recv_timeout(Duration::from_secs(5)).expect("everything arrives on loopback");
            reads += 1;
            for piece in batch.pieces_mut() {
                total += piece.len();
                pieces.push(piece.to_vec());
            }
        }
        (pieces, reads)
    }

    fn send_and_compare(sender: &mut MulticastSender, source: IpAddr, port: u16) -> (usize, usize) {
        let group = group(port);
        let (to_batches, batches) = bounded(1000);
        let mut receivers = GroupReceivers::new();
        let lo = Interface::with_address(LOCALHOST).expect("every host has a loopback interface");
        receivers.join(group, Some(source), &lo, &to_batches).expect("loopback takes multicast");
        let bytes: Vec<u8> = (0..100_000u32).map(|at| (at / 7) as u8).collect();
        sender.send(group, &bytes, 1400).unwrap();
        let (pieces, reads) = collect(&batches, bytes.len());
        assert_eq!(pieces.concat(), bytes, "in order and whole");
        assert!(pieces.iter().rev().skip(1).all(|piece| piece.len() == 1400));
        assert_eq!(receivers.kernel_drops(), 0);
        (pieces.len(), reads)
    }

    #[test]
    fn datagrams_arrive_cut_as_they_were_sent() {
        let mut sender = MulticastSender::bind(LOCALHOST, WayOut::LINK).unwrap();
        let (pieces, reads) = send_and_compare(&mut sender, LOCALHOST, 40_101);
        assert_eq!(pieces, 100_000usize.div_ceil(1400));
        assert!(sender.is_offloaded() && reads < pieces, "{reads} reads: the kernel segments and coalesces");
        sender.offload = false;
        let (pieces, _) = send_and_compare(&mut sender, LOCALHOST, 40_102);
        assert_eq!(pieces, 100_000usize.div_ceil(1400));
    }

    /// The kernel segments nothing whose checksums are switched off; that very burst leaves all the same.
    #[test]
    fn burst_that_the_kernel_refuses_to_segment_leaves_one_by_one() {
        let mut sender = MulticastSender::bind(LOCALHOST, WayOut::LINK).unwrap();
        let on: libc::c_int = 1;
        // SAFETY: the option's value is a C int that lives on, and its length is given (socket(7), SO_NO_CHECK).
        let result = unsafe {
            let (value, len) = ((&raw const on).cast(), size_of_val(&on) as libc::socklen_t);
            libc::setsockopt(sender.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, value, len)
        };
        assert_eq!(result, 0);
        let (pieces, _) = send_and_compare(&mut sender, LOCALHOST, 40_103);
        assert_eq!(pieces, 100_000usize.div_ceil(1400));
        assert!(!sender.is_offloaded(), "it is remembered");
    }

    /// Leaving ends what arrives, also while another on this host is in the group; and it can be joined again.
    #[test]
    fn groups_are_left_and_joined_again() {
        let group = group(40_105);
        let (to_batches, batches) = bounded(1000);
        let (to_other, other) = bounded(1000);
        let lo = Interface::with_address(LOCALHOST).unwrap();
        for source in [None, Some(LOCALHOST)] {
            let (mut receivers, mut others) = (GroupReceivers::new(), GroupReceivers::new());
            let mut sender = MulticastSender::bind(LOCALHOST, WayOut::LINK).unwrap();
            others.join(group, source, &lo, &to_other).unwrap();
            for round in 1..=2 {
                receivers.join(group, source, &lo, &to_batches).unwrap();
                sender.send(group, &[round; 100], 100).unwrap();
                assert_eq!(collect(&batches, 100).0, [vec![round; 100]]);
                receivers.leave(group, source, &lo).unwrap();
                sender.send(group, &[0; 100], 100).unwrap();
                let heard = collect(&other, 200).0;
                assert_eq!(heard.len(), 2, "{heard:?}");
                let more = batches.recv_timeout(Duration::from_millis(50));
                assert!(more.is_err(), "{more:?}");
            }
            assert!(receivers.leave(group, source, &lo).is_err(), "it is not joined");
        }
    }

    #[test]
    fn other_sources_are_not_heard() {
        let group = group(40_104);
        let (to_batches, batches) = bounded(1000);
        let mut receivers = GroupReceivers::new();
        let lo = Interface::with_address(LOCALHOST).unwrap();
        let stranger = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
        receivers.join(group, Some(stranger), &lo, &to_batches).unwrap();
        MulticastSender::bind(LOCALHOST, WayOut::LINK).unwrap().send(group, &[1; 100], 100).unwrap();
        MulticastSender::bind(stranger, WayOut::LINK).unwrap().send(group, &[2; 100], 100).unwrap();
        assert_eq!(collect(&batches, 100).0, [vec![2; 100]]);
        assert!(batches.try_recv().is_err());
    }
}
