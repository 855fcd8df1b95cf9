//! What a host has: memory for guests that come in, and the interface on which multicast arrives.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::config::{MemoryConfig, os_text};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its first IPv4 address, by which IPv4 multicast finds it.
    pub ipv4: Option<Ipv4Addr>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Why an interface can't be told.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No interface of that name.
    #[error("there is no interface '{0}'")]
    NoInterface(String),
    /// No interface has that address.
    #[error("no interface has the address {0}")]
    NoAddress(IpAddr),
    /// Hosts reach each other over IPv4, and the interface for multicast has no address of it.
    #[error("the interface '{0}' has no IPv4 address for multicast")]
    NoIpv4(String),
    /// The kernel's answer to a question that should succeed.
    #[error("{0}: {text}", text = os_text(.1))]
    Os(&'static str, std::io::Error),
}

impl Interface {
    /// The interface of this name.
    ///
    /// # Errors
    /// [`HostError::NoInterface`] if there is none, else what the kernel said.
    pub fn named(name: &str) -> Result<Interface, HostError> {
        let index = if_nametoindex(name).map_err(|_| HostError::NoInterface(name.to_owned()))?;
        let ipv4 = addresses()?.into_iter().find_map(|(owner, addr)| match addr {
            IpAddr::V4(v4) if owner == name => Some(v4),
            _ => None,
        });
        Ok(Interface { name: name.to_owned(), index, ipv4, mtu: mtu(name)? })
    }

    /// The interface that has this address.
    ///
    /// # Errors
    /// [`HostError::NoAddress`] if none has it, else what the kernel said.
    pub fn with_address(addr: IpAddr) -> Result<Interface, HostError> {
        let owner = addresses()?.into_iter().find(|(_, candidate)| *candidate == addr.to_canonical());
        let (name, _) = owner.ok_or(HostError::NoAddress(addr))?;
        let mut interface = Interface::named(&name)?;
        if let IpAddr::V4(v4) = addr.to_canonical() {
            interface.ipv4 = Some(v4);
        }
        Ok(interface)
    }

    /// Bytes that it has received so far, with headers; `None` if the kernel does not tell.
    pub fn received_bytes(&self) -> Option<u64> {
        // Of the thread's own network namespace, which /sys need not be.
        received_bytes(&std::fs::read_to_string("/proc/thread-self/net/dev").ok()?, &self.name)
    }
}

/// From the table of proc_pid_net(5): a name, a colon, and counters, of which the first are the bytes received.
fn received_bytes(table: &str, name: &str) -> Option<u64> {
    let counters = table.lines().find_map(|line| {
        let (owner, counters) = line.rsplit_once(':')?;
        (owner.trim_start() == name).then_some(counters)
    })?;
    counters.split_ascii_whitespace().next()?.parse().ok()
}

fn addresses() -> Result<Vec<(String, IpAddr)>, HostError> {
    let all = getifaddrs().map_err(|e| HostError::Os("getifaddrs", e.into()))?;
    Ok(all
        .filter_map(|entry| {
            let storage = entry.address?;
            let addr = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            Some((entry.interface_name, addr))
        })
        .collect())
}

/// By ioctl and not from /sys, which shows another network namespace unless it was mounted in this one.
fn mtu(name: &str) -> Result<u32, HostError> {
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| HostError::Os("socket", e.into()))?;
    // SAFETY: ifreq is plain bytes, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(HostError::NoInterface(name.to_owned()));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFMTU reads ifr_name (terminated, checked above) and writes ifr_mtu of this ifreq (netdevice(7)).
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFMTU, &mut request) };
    if result < 0 {
        return Err(HostError::Os("SIOCGIFMTU", std::io::Error::last_os_error()));
    }
    // SAFETY: the successful ioctl has set ifr_mtu.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// What guests that come in may take, over all sessions.
#[derive(Clone, Debug)]
pub struct MemoryLedger {
    config: MemoryConfig,
    taken_bytes: Arc<Mutex<u64>>,
}

/// Memory set aside for one guest; given back when dropped.
#[derive(Debug)]
pub struct MemoryShare {
    bytes: u64,
    taken_bytes: Arc<Mutex<u64>>,
}

impl MemoryLedger {
    /// With nothing taken.
    pub fn new(config: MemoryConfig) -> MemoryLedger {
        MemoryLedger { config, taken_bytes: Arc::default() }
    }

    /// Bytes that guests may still take.
    ///
    /// Without a configured capacity it is what Linux calls available, less the reserve and less what was set aside:
    /// a guest that comes in has touched little of its memory at first.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes_with(*self.taken_bytes.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn free_bytes_with(&self, taken_bytes: u64) -> u64 {
        let all = match self.config.capacity_bytes {
            Some(bytes) => bytes,
            None => mem_available_bytes().saturating_sub(self.config.reserve_bytes),
        };
        all.saturating_sub(taken_bytes)
    }

    /// Sets memory aside, or says how much is free.
    ///
    /// # Errors
    /// The bytes that are free, when they are fewer.
    pub fn take(&self, bytes: u64) -> Result<MemoryShare, u64> {
        let mut taken = self.taken_bytes.lock().unwrap_or_else(|e| e.into_inner());
        let free = self.free_bytes_with(*taken);
        if bytes > free {
            return Err(free);
        }
        *taken += bytes;
        Ok(MemoryShare { bytes, taken_bytes: self.taken_bytes.clone() })
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        let mut taken = self.taken_bytes.lock().unwrap_or_else(|e| e.into_inner());
        *taken = taken.saturating_sub(self.bytes);
    }
}

/// `MemAvailable` of `/proc/meminfo` in bytes; zero where it can't be read, so that nothing is promised.
fn mem_available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_address() {
        let named = Interface::named("lo").unwrap();
        assert!(named.mtu >= 1280 && named.index > 0, "{named:?}");
        assert_eq!(Interface::with_address(Ipv4Addr::LOCALHOST.into()).unwrap(), named);
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        assert_eq!(Interface::with_address(mapped.into()).unwrap().name, "lo");
        assert!(matches!(Interface::named("nosuch0"), Err(HostError::NoInterface(_))));
        assert!(Interface::with_address(Ipv4Addr::new(192, 0, 2, 77).into()).is_err());
    }

    #[test]
    fn received_bytes_are_counted() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n    lo: 1234 5 0 0\n  eth0:18446744073709551615 1 0\n a:b: 7 1\n";
        assert_eq!(received_bytes(table, "lo"), Some(1234));
        assert_eq!(received_bytes(table, "eth0"), Some(u64::MAX));
        assert_eq!(received_bytes(table, "a:b"), Some(7));
        assert_eq!(received_bytes(table, "eth"), None);
        assert_eq!(received_bytes("garbage\n", "garbage"), None);
        let lo = Interface::named("lo").unwrap();
        let before = lo.received_bytes().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        assert!(lo.received_bytes().unwrap() >= before + 1000);
    }

    #[test]
    fn memory_is_given_once_and_comes_back() {
        let ledger = MemoryLedger::new(MemoryConfig { capacity_bytes: Some(100), reserve_bytes: 0 });
        let share = ledger.take(70).unwrap();
        assert_eq!(ledger.free_bytes(), 30);
        assert_eq!(ledger.take(31).unwrap_err(), 30);
        drop(share);
        assert_eq!(ledger.free_bytes(), 100);
    }

    #[test]
    fn available_memory_is_read() {
        let ledger = MemoryLedger::new(MemoryConfig { capacity_bytes: None, reserve_bytes: 0 });
        assert!(ledger.free_bytes() > 1 << 20);
        let reserved = MemoryLedger::new(MemoryConfig { capacity_bytes: None, reserve_bytes: u64::MAX });
        assert_eq!(reserved.free_bytes(), 0);
    }
}
