//! Counts joins and leaves of multicast groups as they pass the lab's switch, in IGMP's own messages.
//!
//! Hosts say each change more than once, and the switch's ports show a message again where it leaves: what counts is
//! whether it changes what is known of that host and group.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::net::Namespace;

/// How long the thread takes at most to see that it is to end; what was said last has come by then.
const LOOK_UP: Duration = Duration::from_millis(200);
const ETHERNET_BYTES: usize = 14;
const IP_BYTES_MIN: usize = 20;
const IP_PROTOCOL_IGMP: u8 = 2;
/// IGMPv2 (RFC 2236).
const REPORT_V2: u8 = 0x16;
const LEAVE_V2: u8 = 0x17;
/// IGMPv3 (RFC 3376), and the kinds of its records that tell of a change.
const REPORT_V3: u8 = 0x22;
const CHANGE_TO_INCLUDE: u8 = 3;
const CHANGE_TO_EXCLUDE: u8 = 4;
const ALLOW_NEW_SOURCES: u8 = 5;
const BLOCK_OLD_SOURCES: u8 = 6;

/// What hosts have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Times that a host joined a group.
    pub joins: u64,
    /// Times that a host left one.
    pub leaves: u64,
}

/// A thread that counts until it is asked.
#[derive(Debug)]
pub struct IgmpCounter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Changes>,
}

impl IgmpCounter {
    /// Begins to count what passes the switch.
    pub fn start(switch: &Namespace) -> Result<Self> {
        let socket = switch.inside(open)?.context("a packet socket at the switch")?;
        let mut socket = File::from(OwnedFd::from(socket));
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = thread::spawn(move || {
            let (mut members, mut packet) = (Members::default(), [0; 2048]);
            // Once more after the end was asked for, so that what came before is counted.
            loop {
                let is_last = until.load(Relaxed);
                match socket.read(&mut packet) {
                    Ok(len) => members.packet(&packet[..len]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock && is_last => return members.changes,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => return members.changes,
                }
            }
        });
        Ok(Self { stop, thread })
    }

    /// What was counted.
    pub fn finish(self) -> Result<Changes> {
        self.stop.store(true, Relaxed);
        self.thread.join().ok().context("the counting thread panicked")
    }
}

/// A socket that sees IGMP on all interfaces of its namespace.
fn open() -> std::io::Result<Socket> {
    // What a bridge takes in is seen only by those who ask for every protocol.
    let all = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
    let load_half = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    let load_byte = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    let jump_if_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give_back = (libc::BPF_RET | libc::BPF_K) as u16;
    socket.attach_filter(&[
        SockFilter::new(load_half, 0, 0, ETHERNET_BYTES as u32 - 2),
        SockFilter::new(jump_if_equal, 0, 3, libc::ETH_P_IP as u32),
        SockFilter::new(load_byte, 0, 0, ETHERNET_BYTES as u32 + 9),
        SockFilter::new(jump_if_equal, 0, 1, IP_PROTOCOL_IGMP.into()),
        SockFilter::new(give_back, 0, 0, u32::MAX),
        SockFilter::new(give_back, 0, 0, 0),
    ])?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    Ok(socket)
}

/// Who is known to be in which group.
#[derive(Debug, Default)]
struct Members {
    joined: HashMap<(Ipv4Addr, Ipv4Addr), bool>,
    changes: Changes,
}

impl Members {
    /// An Ethernet frame; what is no IGMP of a host is passed over.
    fn packet(&mut self, frame: &[u8]) {
        let Some(ip) = frame.get(ETHERNET_BYTES..).filter(|ip| ip.len() >= IP_BYTES_MIN) else { return };
        if frame[ETHERNET_BYTES - 2..ETHERNET_BYTES] != (libc::ETH_P_IP as u16).to_be_bytes()
            || ip[9] != IP_PROTOCOL_IGMP
        {
            return;
        }
        let header_bytes = usize::from(ip[0] & 15) * 4;
        let (Some(host), Some(igmp)) = (address(&ip[12..]), ip.get(header_bytes..)) else { return };
        match igmp.first() {
            Some(&REPORT_V2) => self.note(host, igmp.get(4..).and_then(address), true),
            Some(&LEAVE_V2) => self.note(host, igmp.get(4..).and_then(address), false),
            Some(&REPORT_V3) => self.records(host, igmp.get(8..).unwrap_or_default()),
            _ => {}
        }
    }

    fn records(&mut self, host: Ipv4Addr, mut left: &[u8]) {
        while let Some(record) = left.get(..8) {
            let sources = usize::from(u16::from_be_bytes([record[2], record[3]]));
            let group = address(&record[4..]);
            match (record[0], sources) {
                (CHANGE_TO_EXCLUDE, _) | (CHANGE_TO_INCLUDE | ALLOW_NEW_SOURCES, 1..) => {
                    self.note(host, group, true);
                }
                (CHANGE_TO_INCLUDE, 0) | (BLOCK_OLD_SOURCES, _) => self.note(host, group, false),
                _ => {}
            }
            let bytes = 8 + sources * 4 + usize::from(record[1]) * 4;
            left = left.get(bytes..).unwrap_or_default();
        }
    }

    fn note(&mut self, host: Ipv4Addr, group: Option<Ipv4Addr>, joins: bool) {
        // Groups of the link itself (224.0.0.0/24) are nobody's session.
        let Some(group) = group.filter(|group| group.octets()[..3] != [224, 0, 0]) else { return };
        let before = self.joined.insert((host, group), joins).unwrap_or(false);
        self.changes.joins += u64::from(joins && !before);
        self.changes.leaves += u64::from(!joins && before);
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 4] = [10, 77, 0, 11];

    /// An Ethernet frame with an IP header of 24 bytes, as router alert makes it.
    fn frame(igmp: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_BYTES + 24];
        frame[ETHERNET_BYTES - 2] = 8;
        frame[ETHERNET_BYTES] = 0x46;
        frame[ETHERNET_BYTES + 9] = IP_PROTOCOL_IGMP;
        frame[ETHERNET_BYTES + 12..ETHERNET_BYTES + 16].copy_from_slice(&HOST);
        frame.extend_from_slice(igmp);
        frame
    }

    /// A record's kind, sources and group.
    type Record<'a> = (u8, &'a [[u8; 4]], [u8; 4]);

    fn v3(records: &[Record<'_>]) -> Vec<u8> {
        let mut igmp = vec![REPORT_V3, 0, 0, 0, 0, 0, 0, records.len() as u8];
        for (kind, sources, group) in records {
            igmp.extend([*kind, 0, 0, sources.len() as u8]);
            igmp.extend(group);
            sources.iter().for_each(|source| igmp.extend(source));
        }
        frame(&igmp)
    }

    #[test]
    fn changes_count_once_in_either_version() {
        let (one, two, source) = ([239, 255, 1, 1], [239, 255, 1, 2], [10, 77, 0, 10]);
        let mut members = Members::default();
        let v2 = |kind: u8, group: [u8; 4]| frame(&[&[kind, 0, 0, 0], &group[..]].concat());
        for _ in 0..2 {
            members.packet(&v2(REPORT_V2, one));
            members.packet(&v3(&[(ALLOW_NEW_SOURCES, &[source], two)]));
        }
        assert_eq!(members.changes, Changes { joins: 2, leaves: 0 });
        // What is no change, of no session, or cut off.
        members.packet(&v3(&[(1, &[source], [239, 9, 9, 9]), (2, &[], [239, 9, 9, 9])]));
        members.packet(&v2(REPORT_V2, [224, 0, 0, 251]));
        let whole = v3(&[(ALLOW_NEW_SOURCES, &[source], [239, 1, 1, 1])]);
        (0..whole.len() - 12).for_each(|len| members.packet(&whole[..len]));
        assert_eq!(members.changes, Changes { joins: 2, leaves: 0 });
        for _ in 0..2 {
            members.packet(&v2(LEAVE_V2, one));
        }
        members.packet(&v3(&[(BLOCK_OLD_SOURCES, &[source], two), (CHANGE_TO_EXCLUDE, &[], one)]));
        assert_eq!(members.changes, Changes { joins: 3, leaves: 2 });
        members.packet(&v3(&[(CHANGE_TO_INCLUDE, &[], one), (CHANGE_TO_INCLUDE, &[source], two)]));
        assert_eq!(members.changes, Changes { joins: 4, leaves: 3 });
    }
}
