//! Listens for IGMP or MLD queries: without somebody who asks, switches that snoop forget who wants which group.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{SockaddrIn6, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

/// IGMP's protocol number, and the type of a membership query in its first byte (RFC 3376, 4.1).
const IGMP: i32 = 2;
const QUERY: u8 = 0x11;
/// The type of a listener query in the first byte of an ICMPv6 message (RFC 3810, 5.1).
const QUERY_V6: u8 = 130;
const LOOK_UP: Duration = Duration::from_millis(200);
const PACKET_BYTES_MAX: usize = 2048;

/// A listener on a thread of its own.
pub(super) struct Querier {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<IpAddr>>,
}

impl Querier {
    /// Starts to listen, for MLD with `ipv6`, else for IGMP.
    ///
    /// # Errors
    /// The agent may not open a raw socket (CAP_NET_RAW), or has no thread.
    pub(super) fn listen(ipv6: bool) -> std::io::Result<Querier> {
        let (domain, protocol) = match ipv6 {
            false => (Domain::IPV4, Protocol::from(IGMP)),
            true => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(LOOK_UP))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let listen = move || {
            while !stopped.load(Relaxed) {
                let from = if ipv6 { asker_v6(&socket) } else { asker_v4(&socket) };
                if from.is_some() {
                    return from;
                }
            }
            None
        };
        let thread = std::thread::Builder::new().name("querier".into()).spawn(listen)?;
        Ok(Querier { stop, thread })
    }

    /// Whether one has been heard already.
    pub(super) fn has_heard(&self) -> bool {
        self.thread.is_finished()
    }

    /// Who asks, if a query was heard.
    pub(super) fn end(self) -> Option<IpAddr> {
        self.stop.store(true, Relaxed);
        self.thread.join().ok().flatten()
    }
}

/// Who sent the next packet, if it is a query. A time-out is none of the listener's concern.
fn asker_v4(mut socket: &Socket) -> Option<IpAddr> {
    let mut packet = [0; PACKET_BYTES_MAX];
    let len = socket.read(&mut packet).unwrap_or(0);
    asker(&packet[..len]).map(IpAddr::V4)
}

/// The kernel takes the IP header off.
fn asker_v6(socket: &Socket) -> Option<IpAddr> {
    let mut kind = [0];
    let (len, from) = recvfrom::<SockaddrIn6>(socket.as_raw_fd(), &mut kind).ok()?;
    from.filter(|_| len > 0 && kind == [QUERY_V6]).map(|from| from.ip().into())
}

/// Who sent this IP packet, if it is a membership query.
fn asker(packet: &[u8]) -> Option<Ipv4Addr> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    (packet.get(header) == Some(&QUERY) && header >= 20).then(|| from.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_told_from_reports() {
        let mut packet = [0; 32];
        packet[0] = 0x46;
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet[24] = 0x22;
        assert_eq!(asker(&packet), None);
        packet[24] = QUERY;
        assert_eq!(asker(&packet), Some(Ipv4Addr::new(192, 0, 2, 1)));
        for cut in 0..packet.len() {
            asker(&packet[..cut]);
        }
        assert_eq!(asker(&[0x41; 40]), None, "a header of four bytes is none");
    }
}
