//! The agent's configuration: a strict TOML file, in which an unknown key is an error.
//!
//! ```toml
//! name = "node1"                      # as in the certificate
//! listen = "10.0.0.1:7940"            # control connections
//! data_listen = "10.0.0.1:7941"       # data connections; default: the next port on the same address
//! socket = "/run/vmscatter/agent.sock"
//! state_dir = "/var/lib/vmscatter"    # journals
//! run_dir = "/run/vmscatter"          # sockets of incoming guests
//!
//! [tls]
//! ca = "ca.pem"                       # relative paths count from this file
//! cert = "node1.pem"
//! key = "node1.key"
//! peers = ["node2", "node3"]          # who may open sessions; default: whoever has a certificate of the CA
//!
//! [qemu]
//! programs = ["/usr/bin/qemu-system-x86_64"]
//!
//! [memory]
//! capacity_mib = 65536                # for guests that come in; default: what is available, less the reserve
//! reserve_mib = 512
//!
//! [multicast]
//! interface = "eth1"                  # default: the one that has the control connection's address
//! prefix = "239.255.0.0/16"
//! prefix_ipv6 = "ff15::/32"           # where hosts reach each other over IPv6
//! source_specific = true
//! ttl = 1                             # routers that datagrams pass, and one
//! parity = true                       # where targets miss different pieces, one that replaces any
//!
//! [fingerprints]
//! key = "fleet.key"                   # the same on all hosts; without it `scan --out` is refused
//!
//! [test]                              # not for production
//! holds = "holds"                     # see `agent::holds`
//! rekey_mib = 16                      # streams get a new key after so much; default: 524288
//!
//! [values]                            # for {placeholders} of guest files
//! disks = "/srv/images"
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::guest_file::{self, Values};
use super::input::{BadInput, is_host_name};

/// A configuration file may have this many bytes.
pub const CONFIG_BYTES_MAX: u64 = 256 * 1024;
/// Memory that guests may not take when `capacity_mib` is not given, in MiB.
pub const MEMORY_RESERVE_MIB_DEFAULT: u64 = 512;
/// Longest path of a Unix socket: `sun_path` less its terminator (`unix(7)`).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest `run_dir`: in it are sockets with a UUID and up to 16 bytes around it in their names.
pub const RUN_DIR_BYTES_MAX: usize = SOCKET_PATH_BYTES_MAX - 1 - 36 - 16;

/// A checked configuration; all paths are absolute.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// What errors call the file: its path as the operator gave it.
    pub origin: String,
    /// The host's name, as in its certificate.
    pub name: String,
    /// Where control connections come in.
    pub listen: SocketAddr,
    /// Where data connections come in.
    pub data_listen: SocketAddr,
    /// The local socket for the command line.
    pub socket: PathBuf,
    /// Journals, kept over restarts.
    pub state_dir: PathBuf,
    /// Sockets of incoming guests.
    pub run_dir: PathBuf,
    /// Certificate files and permitted peers.
    pub tls: TlsConfig,
    /// Programs that a guest file may name; compared as they are written.
    pub programs: Vec<PathBuf>,
    /// What guests may take here.
    pub memory: MemoryConfig,
    /// How scattered frames arrive and leave.
    pub multicast: MulticastConfig,
    /// The file with the fleet's key, if this host has it.
    pub fleet_key: Option<PathBuf>,
    /// For tests: where it is said at which steps guests are held ([`super::holds`]).
    pub holds: Option<PathBuf>,
    /// For tests: a target's streams get a new key after so many bytes ([`OwnKeys::rekey_after`](vmscatter_core::session::OwnKeys::rekey_after)).
    pub rekey_bytes: Option<u64>,
    /// Replacements for placeholders in guest files.
    pub values: BTreeMap<String, String>,
}

/// Certificate files and permitted peers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The private CA's certificate.
    pub ca: PathBuf,
    /// This host's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Hosts that may open sessions here; `None`: all that have a certificate of the CA.
    pub peers: Option<Vec<String>>,
}

/// What guests may take here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes for guests that come in; `None`: the memory that is available, less the reserve.
    pub capacity_bytes: Option<u64>,
    /// Bytes that stay free when there is no capacity given.
    pub reserve_bytes: u64,
}

/// How scattered frames arrive and leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MulticastConfig {
    /// The interface; `None`: the one that has the control connection's address.
    pub interface: Option<String>,
    /// Groups are drawn from here where hosts reach each other over IPv4.
    pub prefix: MulticastPrefix,
    /// The same for IPv6.
    pub prefix_ipv6: MulticastPrefix,
    /// Groups are joined for the source's address only.
    pub source_specific: bool,
    /// Time to live of datagrams: 1 keeps them on the link.
    pub ttl: u8,
    /// What several targets miss is replaced by parity where that is less.
    pub parity: bool,
}

impl MulticastConfig {
    /// From where the groups of a session are drawn whose control connections have the address `local` here.
    pub fn prefix_for(&self, local: IpAddr) -> &MulticastPrefix {
        if local.to_canonical().is_ipv6() { &self.prefix_ipv6 } else { &self.prefix }
    }
}

/// A range of multicast groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MulticastPrefix {
    /// The first address.
    pub base: IpAddr,
    /// Leading bits that all groups share: 4 to 28 of IPv4, 16 to 124 of IPv6.
    pub bits: u8,
}

impl MulticastPrefix {
    /// Parses `239.255.0.0/16` or, `ipv6`, `ff15::/32`.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn parse(text: &str, ipv6: bool) -> Result<MulticastPrefix, String> {
        let (example, all, lengths) = match ipv6 {
            false => ("239.255.0.0/16", "224.0.0.0/4", 4..=28),
            true => ("ff15::/32", "ff00::/8", 16..=124),
        };
        let form = || format!("'{text}' is no range of addresses such as {example}");
        let (base, bits) = text.split_once('/').ok_or_else(form)?;
        let base: IpAddr = base.parse().map_err(|_| form())?;
        let bits: u8 = bits.parse().map_err(|_| form())?;
        if base.is_ipv6() != ipv6 || !base.is_multicast() || !lengths.contains(&bits) {
            return Err(format!("'{text}' is not within {all}, or smaller than 16 groups"));
        }
        let prefix = MulticastPrefix { base, bits };
        let first = match base {
            IpAddr::V4(base) => base.to_bits().into(),
            IpAddr::V6(base) => base.to_bits(),
        };
        if first & (prefix.groups() - 1) != 0 {
            return Err(format!("'{text}' has bits set behind its prefix"));
        }
        Ok(prefix)
    }

    /// How many groups it has.
    pub fn groups(&self) -> u128 {
        let all = if self.base.is_ipv6() { u128::BITS } else { u32::BITS };
        1 << (all - u32::from(self.bits))
    }

    /// The group whose place in the range is what `number` has behind the prefix.
    pub fn group(&self, number: u128) -> IpAddr {
        let place = number & (self.groups() - 1);
        match self.base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | place as u32).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | place).into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    listen: SocketAddr,
    data_listen: Option<SocketAddr>,
    socket: PathBuf,
    state_dir: PathBuf,
    run_dir: PathBuf,
    tls: TlsConfig,
    qemu: RawQemu,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default)]
    multicast: RawMulticast,
    fingerprints: Option<RawFingerprints>,
    #[serde(default)]
    test: RawTest,
    #[serde(default)]
    values: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQemu {
    programs: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFingerprints {
    key: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    holds: Option<PathBuf>,
    rekey_mib: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMemory {
    capacity_mib: Option<u64>,
    reserve_mib: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMulticast {
    interface: Option<String>,
    prefix: Option<String>,
    prefix_ipv6: Option<String>,
    source_specific: Option<bool>,
    ttl: Option<u8>,
    parity: Option<bool>,
}

impl AgentConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// One line: the file, the key, what is wrong.
    pub fn load(path: &Path) -> Result<AgentConfig, BadInput> {
        let text = read_bounded(path, CONFIG_BYTES_MAX)?;
        AgentConfig::parse(&text, path)
    }

    /// Checks the text of the file at `path`; relative paths in it count from that file's directory.
    ///
    /// # Errors
    /// As [`AgentConfig::load`].
    pub fn parse(text: &str, path: &Path) -> Result<AgentConfig, BadInput> {
        let origin = path.display().to_string();
        let raw: RawConfig = toml::from_str(text).map_err(|e| BadInput::toml(&origin, text, &e))?;
        let bad = |key: &str, detail: String| BadInput::new(&origin, format!("{key}: {detail}"));
        let absolute = std::path::absolute(path).map_err(|e| BadInput::file(path, os_text(&e)))?;
        let base = absolute.parent().unwrap_or(Path::new("/"));

        if !is_host_name(&raw.name) {
            return Err(bad("name", format!("'{}' is no host name (lower case, as in DNS)", raw.name)));
        }
        let data_listen = match raw.data_listen {
            Some(addr) => addr,
            None => next_port(raw.listen).ok_or_else(|| {
                bad("data_listen", "must be given, as there is no port behind listen's".into())
            })?,
        };
        if data_listen == raw.listen && data_listen.port() != 0 {
            return Err(bad("data_listen", format!("{data_listen} is listen's address already")));
        }
        let socket = base.join(&raw.socket);
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(bad(
                "socket",
                format!("longer than {SOCKET_PATH_BYTES_MAX} bytes: {}", socket.display()),
            ));
        }
        let run_dir = base.join(&raw.run_dir);
        if run_dir.as_os_str().len() > RUN_DIR_BYTES_MAX {
            let detail = format!("longer than {RUN_DIR_BYTES_MAX} bytes: {}", run_dir.display());
            return Err(bad("run_dir", detail));
        }
        check_programs(&raw.qemu.programs).map_err(|detail| bad("qemu.programs", detail))?;
        for peer in raw.tls.peers.iter().flatten() {
            if !is_host_name(peer) {
                return Err(bad("tls.peers", format!("'{peer}' is no host name (lower case, as in DNS)")));
            }
        }
        let multicast = multicast(raw.multicast).map_err(|(key, detail)| bad(key, detail))?;
        for key in raw.values.keys() {
            guest_file::check_value_key(key).map_err(|detail| bad("values", detail))?;
        }
        let memory = memory(raw.memory).map_err(|(key, detail)| bad(key, detail))?;
        Ok(AgentConfig {
            name: raw.name,
            listen: raw.listen,
            data_listen,
            socket,
            state_dir: base.join(raw.state_dir),
            run_dir,
            tls: TlsConfig {
                ca: base.join(raw.tls.ca),
                cert: base.join(raw.tls.cert),
                key: base.join(raw.tls.key),
                peers: raw.tls.peers,
            },
            programs: raw.qemu.programs,
            memory,
            multicast,
            fleet_key: raw.fingerprints.map(|fingerprints| base.join(fingerprints.key)),
            holds: raw.test.holds.map(|holds| base.join(holds)),
            rekey_bytes: raw.test.rekey_mib.map(|mib| mib.saturating_mul(1 << 20)),
            values: raw.values,
            origin,
        })
    }

    /// Something that the file says turned out to be wrong here.
    pub fn bad(&self, key: &str, detail: impl std::fmt::Display) -> BadInput {
        BadInput::new(&self.origin, format!("{key}: {detail}"))
    }

    /// What guest files are expanded with on this host.
    pub fn values(&self) -> Values {
        Values { run_dir: self.run_dir.clone(), values: self.values.clone(), programs: self.programs.clone() }
    }
}

fn next_port(addr: SocketAddr) -> Option<SocketAddr> {
    // Port 0 lets the kernel choose, for both.
    let port = if addr.port() == 0 { 0 } else { addr.port().checked_add(1)? };
    Some(SocketAddr::new(addr.ip(), port))
}

fn check_programs(programs: &[PathBuf]) -> Result<(), String> {
    if programs.is_empty() {
        return Err("names no program, so that no guest could start here".into());
    }
    for program in programs {
        if !program.is_absolute() {
            return Err(format!("'{}' is not an absolute path", program.display()));
        }
    }
    Ok(())
}

fn memory(raw: RawMemory) -> Result<MemoryConfig, (&'static str, String)> {
    let bytes = |key, mib: u64| {
        mib.checked_mul(1 << 20).ok_or_else(|| (key, format!("{mib} MiB is more than can be counted")))
    };
    if raw.capacity_mib == Some(0) {
        return Err(("memory.capacity_mib", "0 leaves no memory for a guest".into()));
    }
    Ok(MemoryConfig {
        capacity_bytes: raw.capacity_mib.map(|mib| bytes("memory.capacity_mib", mib)).transpose()?,
        reserve_bytes: bytes("memory.reserve_mib", raw.reserve_mib.unwrap_or(MEMORY_RESERVE_MIB_DEFAULT))?,
    })
}

/// Whether an interface can be called so.
///
/// # Errors
/// One line.
pub fn check_interface(name: &str) -> Result<(), String> {
    // IFNAMSIZ less the terminator (netdevice(7)).
    match name.is_empty() || name.len() > 15 || name.contains(['/', '\0', ' ']) {
        true => Err(format!("'{name}' is no name of an interface")),
        false => Ok(()),
    }
}

fn multicast(raw: RawMulticast) -> Result<MulticastConfig, (&'static str, String)> {
    if let Some(name) = &raw.interface {
        check_interface(name).map_err(|detail| ("multicast.interface", detail))?;
    }
    let prefix = MulticastPrefix::parse(raw.prefix.as_deref().unwrap_or("239.255.0.0/16"), false)
        .map_err(|detail| ("multicast.prefix", detail))?;
    let prefix_ipv6 = MulticastPrefix::parse(raw.prefix_ipv6.as_deref().unwrap_or("ff15::/32"), true)
        .map_err(|detail| ("multicast.prefix_ipv6", detail))?;
    let ttl = raw.ttl.unwrap_or(1);
    if ttl == 0 {
        return Err(("multicast.ttl", "must be 1 to 255".to_owned()));
    }
    Ok(MulticastConfig {
        interface: raw.interface,
        prefix,
        prefix_ipv6,
        source_specific: raw.source_specific.unwrap_or(true),
        ttl,
        parity: raw.parity.unwrap_or(true),
    })
}

/// The text of a file of at most `bytes_max` bytes.
///
/// # Errors
/// One line that names the file: unreadable, too long, or not UTF-8.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<String, BadInput> {
    let bytes = read_bytes_bounded(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| BadInput::file(path, "is not UTF-8 text"))
}

/// A file of at most `bytes_max` bytes.
///
/// # Errors
/// One line that names the file: unreadable or too long.
pub fn read_bytes_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BadInput> {
    use std::io::Read;
    let open = std::fs::File::open(path);
    let mut bytes = Vec::new();
    open.and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes))
        .map_err(|e| BadInput::file(path, os_text(&e)))?;
    if bytes.len() as u64 > bytes_max {
        return Err(BadInput::file(path, format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// An operating system's error in words, without Rust's `(os error N)`.
pub fn os_text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = 'node1'\nlisten = '10.0.0.1:7940'\nsocket = '/run/v.sock'\nstate_dir = '/var/lib/v'\n\
         run_dir = '/run/v'\n[tls]\nca = 'ca.pem'\ncert = '/etc/v/node1.pem'\nkey = 'node1.key'\n\
         [qemu]\nprograms = ['/usr/bin/qemu-system-x86_64']\n";

    fn parse(text: &str) -> Result<AgentConfig, BadInput> {
        AgentConfig::parse(text, Path::new("/etc/v/agent.toml"))
    }

    #[test]
    fn defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.data_listen, "10.0.0.1:7941".parse().unwrap());
        assert_eq!(config.tls.ca, Path::new("/etc/v/ca.pem"));
        assert_eq!(config.tls.cert, Path::new("/etc/v/node1.pem"));
        assert_eq!(config.memory.capacity_bytes, None);
        assert_eq!(config.memory.reserve_bytes, MEMORY_RESERVE_MIB_DEFAULT << 20);
        assert_eq!(
            config.multicast.prefix,
            MulticastPrefix { base: Ipv4Addr::new(239, 255, 0, 0).into(), bits: 16 }
        );
        assert!(config.multicast.source_specific && config.multicast.parity && config.multicast.ttl == 1);
        assert_eq!(config.fleet_key, None);
        let config = parse(&GOOD.replace("[qemu]", "[fingerprints]\nkey = 'fleet.key'\n[qemu]")).unwrap();
        assert_eq!(config.fleet_key.as_deref(), Some(Path::new("/etc/v/fleet.key")));
    }

    #[test]
    fn groups_of_a_prefix() {
        let prefix = MulticastPrefix::parse("239.255.0.0/16", false).unwrap();
        assert_eq!(prefix.groups(), 65_536);
        assert_eq!(prefix.group(u128::MAX), Ipv4Addr::new(239, 255, 255, 255));
        let prefix = MulticastPrefix::parse("ff15:1::/124", true).unwrap();
        assert_eq!(prefix.groups(), 16);
        assert_eq!(prefix.group(0x123), "ff15:1::3".parse::<IpAddr>().unwrap());
        let config = parse(GOOD).unwrap().multicast;
        assert_eq!(config.prefix_for("fd00::1".parse().unwrap()), &config.prefix_ipv6);
        assert_eq!(config.prefix_for("::ffff:10.0.0.1".parse().unwrap()), &config.prefix);
        let groups: Vec<u128> = (0..100).map(|_| u128::from_be_bytes(crate::random::random())).collect();
        assert!(groups.iter().all(|number| config.prefix_ipv6.group(*number).is_multicast()));
    }

    #[test]
    fn each_error_is_one_line_with_file_and_key() {
        let long = format!("socket = '/{}'", "x".repeat(120));
        let long_run = format!("run_dir = '/{}'", "x".repeat(RUN_DIR_BYTES_MAX));
        let cases: &[(&str, &str, &str)] = &[
            ("name = 'node1'", "name = 'Node 1'", "name: "),
            ("name = 'node1'", "", "missing field `name`"),
            ("name = 'node1'", "name = 'node1'\ncolour = 'red'", "unknown field `colour`"),
            ("listen = '10.0.0.1:7940'", "listen = '10.0.0.1'", "listen: "),
            ("listen = '10.0.0.1:7940'", "listen = '10.0.0.1:65535'", "data_listen: "),
            ("listen = '10.0.0.1:7940'", "listen = '1.1.1.1:1'\ndata_listen = '1.1.1.1:1'", "data_listen: "),
            ("socket = '/run/v.sock'", &long, "socket: longer"),
            ("run_dir = '/run/v'", &long_run, "run_dir: longer"),
            ("ca = 'ca.pem'", "ca = 3", "tls.ca: "),
            ("ca = 'ca.pem'", "ca = 'ca.pem'\npeers = ['N 2']", "tls.peers: "),
            ("programs = ['/usr/bin/qemu-system-x86_64']", "programs = []", "qemu.programs: "),
            ("programs = ['/usr/bin/qemu-system-x86_64']", "programs = ['qemu']", "qemu.programs: "),
            ("[qemu]", "[memory]\ncapacity_mib = 0\n[qemu]", "memory.capacity_mib: "),
            ("[qemu]", "[memory]\nreserve_mib = 9223372036854775807\n[qemu]", "memory.reserve_mib: "),
            ("[qemu]", "[multicast]\nprefix = '10.0.0.0/8'\n[qemu]", "multicast.prefix: "),
            ("[qemu]", "[multicast]\nprefix = '239.255.0.1/16'\n[qemu]", "multicast.prefix: "),
            ("[qemu]", "[multicast]\nprefix = '239.255.0.0/33'\n[qemu]", "multicast.prefix: "),
            ("[qemu]", "[multicast]\nprefix = 'ff15::/32'\n[qemu]", "multicast.prefix: "),
            ("[qemu]", "[multicast]\nprefix_ipv6 = '239.255.0.0/16'\n[qemu]", "multicast.prefix_ipv6: "),
            ("[qemu]", "[multicast]\nprefix_ipv6 = 'fd00::/32'\n[qemu]", "multicast.prefix_ipv6: "),
            ("[qemu]", "[multicast]\nprefix_ipv6 = 'ff15::1/112'\n[qemu]", "multicast.prefix_ipv6: "),
            ("[qemu]", "[multicast]\nprefix_ipv6 = 'ff15::/125'\n[qemu]", "multicast.prefix_ipv6: "),
            ("[qemu]", "[multicast]\ninterface = 'a/b'\n[qemu]", "multicast.interface: "),
            ("[qemu]", "[multicast]\nttl = 0\n[qemu]", "multicast.ttl: "),
            ("[qemu]", "[fingerprints]\n[qemu]", "missing field `key`"),
            ("[qemu]", "[values]\nrun_dir = 'x'\n[qemu]", "values: "),
            ("[qemu]", "[values]\n'a b' = 'x'\n[qemu]", "values: "),
            ("[qemu]", "[qemu", "10"),
        ];
        for (from, to, expected) in cases {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            let line = parse(&text).unwrap_err().to_string();
            assert!(line.starts_with("/etc/v/agent.toml") && line.contains(expected), "{to}: {line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let line = AgentConfig::load(Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
        assert_eq!(line, "/nonexistent/agent.toml: no such file or directory");
    }
}
