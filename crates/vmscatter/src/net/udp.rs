//! UDP multicast: sent with segmentation offload where the kernel has it, received with GRO.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};

use crate::agent::config::MulticastConfig;
use crate::agent::host::Interface;

/// One datagram, or what GRO makes of several.
const RECEIVE_BYTES: usize = 65_536;
/// Asked of the kernel for each receiving socket.
const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;
const LOOK_UP: Duration = Duration::from_millis(200);

/// Sealed pieces that arrived together: `segment` bytes each, the last maybe shorter.
#[derive(Debug)]
pub struct PieceBatch {
    bytes: Vec<u8>,
    segment: usize,
}

impl PieceBatch {
    /// A single piece.
    pub fn one(piece: Vec<u8>) -> PieceBatch {
        PieceBatch { segment: piece.len().max(1), bytes: piece }
    }

    /// The pieces.
    pub fn pieces_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_mut(self.segment)
    }
}

/// Sends to multicast groups.
#[derive(Debug)]
pub struct MulticastSender {
    socket: UdpSocket,
    /// The kernel segments for us; switched off when it says that it can't.
    offload: bool,
}

impl MulticastSender {
    /// A socket that sends from `local`, which names the interface.
    ///
    /// # Errors
    /// Those of the socket, and for IPv6, which is not spoken yet.
    pub fn bind(local: IpAddr) -> std::io::Result<MulticastSender> {
        let IpAddr::V4(local) = local else {
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "multicast over IPv6"));
        };
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&SocketAddrV4::new(local, 0).into())?;
        socket.set_multicast_if_v4(&local)?;
        socket.set_multicast_ttl_v4(1)?;
        socket.set_multicast_loop_v4(false)?;
        Ok(MulticastSender { socket: socket.into(), offload: true })
    }

    /// Sends `bytes` as datagrams of `segment` bytes, the last maybe shorter.
    ///
    /// # Errors
    /// Those of the socket; some datagrams may have left.
    pub fn send(&mut self, group: SocketAddr, bytes: &[u8], segment: usize) -> std::io::Result<()> {
        if self.offload && bytes.len() > segment {
            match self.send_offloaded(group, bytes, segment) {
                Err(nix::errno::Errno::EIO | nix::errno::Errno::EINVAL | nix::errno::Errno::ENOPROTOOPT) => {
                    self.offload = false;
                }
                result => return result.map_err(Into::into),
            }
        }
        bytes.chunks(segment).try_for_each(|datagram| self.socket.send_to(datagram, group).map(drop))
    }

    fn send_offloaded(&self, group: SocketAddr, bytes: &[u8], segment: usize) -> nix::Result<()> {
        let SocketAddr::V4(group) = group else { return Err(nix::errno::Errno::EAFNOSUPPORT) };
        let segment = segment as u16;
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let slices = [std::io::IoSlice::new(bytes)];
        let to = SockaddrIn::from(group);
        sendmsg(self.socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to)).map(drop)
    }
}

/// The groups that a session has joined, each with a socket and a thread that end when this is dropped.
#[derive(Debug, Default)]
pub struct GroupReceivers {
    stop: Arc<AtomicBool>,
}

impl GroupReceivers {
    /// None yet.
    pub fn new() -> GroupReceivers {
        GroupReceivers::default()
    }

    /// Joins `group`, for what `source` sends to it only if one is named, on `interface`; what arrives goes to `batches`.
    ///
    /// # Errors
    /// Those of the socket, and for IPv6, which is not spoken yet.
    pub fn join(
        &mut self,
        group: SocketAddr,
        source: Option<IpAddr>,
        interface: &Interface,
        batches: &Sender<PieceBatch>,
    ) -> std::io::Result<()> {
        let (SocketAddr::V4(addr), None | Some(IpAddr::V4(_))) = (group, source) else {
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "multicast over IPv6"));
        };
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        // Bound to the group, so that nothing else that comes to this port is read.
        socket.bind(&group.into())?;
        let source = source.and_then(|source| match source {
            IpAddr::V4(source) => Some(source),
            IpAddr::V6(_) => None,
        });
        join(&socket, *addr.ip(), source, interface)?;
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            let _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
        }
        socket.set_read_timeout(Some(LOOK_UP))?;
        let (stop, batches) = (self.stop.clone(), batches.clone());
        let body = move || receive(&socket, &stop, &batches);
        std::thread::Builder::new().name("multicast".into()).spawn(body).map(drop)
    }
}

impl Drop for GroupReceivers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// For the one source only where that is asked for and the interface has an address to name it by.
fn join(socket: &Socket, group: Ipv4Addr, source: Option<Ipv4Addr>, interface: &Interface) -> std::io::Result<()> {
    match source.zip(interface.ipv4) {
        Some((source, local)) => socket.join_ssm_v4(&source, &group, &local),
        None => socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface.index)),
    }
}

fn receive(socket: &Socket, stop: &AtomicBool, batches: &Sender<PieceBatch>) {
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut control = nix::cmsg_space!(i32);
    while !stop.load(Relaxed) {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty());
        let (len, segment) = match received {
            Ok(message) => {
                let gro = message.cmsgs().ok().and_then(|mut all| {
                    all.find_map(|one| match one {
                        ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok(),
                        _ => None,
                    })
                });
                (message.bytes, gro.filter(|bytes| *bytes > 0).unwrap_or(message.bytes))
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => continue,
            Err(error) => return tracing::warn!("multicast: {}", error.desc()),
        };
        if len > 0 && batches.send(PieceBatch { bytes: buffer[..len].to_vec(), segment }).is_err() {
            return;
        }
    }
}

/// A group for a target set, random within the configured range so that two sources that drain to one target don't meet.
pub fn random_group(config: &MulticastConfig) -> IpAddr {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random numbers");
    let host = u32::from_be_bytes(bytes) & (u32::MAX >> config.prefix.bits);
    IpAddr::V4(Ipv4Addr::from_bits(config.prefix.base.to_bits() | host))
}
