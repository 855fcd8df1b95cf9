//! Values of options: targets, pins, rates, times, compression. Errors say what is wrong; clap says with which option.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::agent::input::is_host_name;
use crate::agent::protocol::{Compression, Pin, ZSTD_LEVEL_DEFAULT};

/// Port of an agent unless `--to` says another.
pub(super) const PORT_DEFAULT: u16 = 7940;

/// `--to`, not yet resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetOption {
    pub(super) name: String,
    pub(super) host: Host,
    pub(super) port: u16,
}

/// An address, or a name that is looked up once all options have been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    Name(String),
}

/// `NAME=ADDR[:PORT]`; an IPv6 address with a port is written in brackets.
pub(super) fn target(text: &str) -> Result<TargetOption, String> {
    let (name, addr) = text.split_once('=').ok_or("is not NAME=ADDR[:PORT]")?;
    if !is_host_name(name) {
        return Err(format!("'{name}' is no host name (lower case, as in DNS)"));
    }
    let option = |host, port| TargetOption { name: name.to_owned(), host, port };
    if let Ok(addr) = addr.parse::<SocketAddr>() {
        return match addr.port() {
            0 => Err("port 0 is no port to connect to".into()),
            port => Ok(option(Host::Address(addr.ip()), port)),
        };
    }
    let bare = addr.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(addr);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(option(Host::Address(ip), PORT_DEFAULT));
    }
    let (host, port) = match addr.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(0) | Err(_) => return Err(format!("'{port}' is no port")),
            Ok(port) => (host, port),
        },
        None => (addr, PORT_DEFAULT),
    };
    // Four numbers are an address gone wrong, and not a name to look up.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numeric || !is_host_name(&host.to_ascii_lowercase()) {
        return Err(format!("'{host}' is neither an address nor a host name"));
    }
    Ok(option(Host::Name(host.to_owned()), port))
}

/// `NAME=HOST`.
pub(super) fn pin(text: &str) -> Result<Pin, String> {
    match text.split_once('=') {
        Some((guest, target)) if !guest.is_empty() && !target.is_empty() => {
            Ok(Pin { guest: guest.to_owned(), target: target.to_owned() })
        }
        _ => Err("is not NAME=HOST".into()),
    }
}

/// `--apart`: guests of which no two share a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApartOption(pub(super) Vec<String>);

/// `NAME,NAME..`.
pub(super) fn apart(text: &str) -> Result<ApartOption, String> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    if names.len() < 2 || names.iter().any(String::is_empty) {
        return Err("is not NAME,NAME..".into());
    }
    Ok(ApartOption(names))
}

/// `--target`: a host that is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SavedTarget {
    pub(super) name: String,
    /// Bytes; `None`: enough for whatever comes.
    pub(super) memory_bytes: Option<u64>,
}

/// `NAME` or `NAME=MEMORY`.
pub(super) fn saved_target(text: &str) -> Result<SavedTarget, String> {
    let (name, memory) = match text.split_once('=') {
        Some((name, memory)) => (name, Some(memory)),
        None => (text, None),
    };
    if !is_host_name(name) {
        return Err(format!("'{name}' is no host name (lower case, as in DNS)"));
    }
    Ok(SavedTarget { name: name.to_owned(), memory_bytes: memory.map(memory_bytes).transpose()? })
}

/// Bytes: `64GiB`, `512MiB`, `1.5TiB`.
fn memory_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 3] =
        [("mib", (1u64 << 20) as f64), ("gib", (1u64 << 30) as f64), ("tib", (1u64 << 40) as f64)];
    let lower = text.to_ascii_lowercase();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, factor)))
        .ok_or_else(|| format!("memory '{text}' has no unit: MiB, GiB or TiB"))?;
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match number.parse::<f64>() {
        Ok(number) if plain && number > 0.0 && number * factor <= (1u64 << 60) as f64 => {
            Ok((number * factor) as u64)
        }
        _ => Err(format!("'{text}' is no amount of memory that makes sense")),
    }
}

/// `none`, `zstd`, `zstd:LEVEL`.
pub(super) fn compression(text: &str) -> Result<Compression, String> {
    match text.split_once(':') {
        None if text == "none" => Ok(Compression::None),
        None if text == "zstd" => Ok(Compression::Zstd { level: ZSTD_LEVEL_DEFAULT }),
        Some(("zstd", level)) => match level.parse() {
            Ok(level @ -7..=19) => Ok(Compression::Zstd { level }),
            _ => Err(format!("'{level}' is no level of -7 to 19")),
        },
        _ => Err("is neither none, zstd nor zstd:LEVEL".into()),
    }
}

/// Bits per second: `1gbit`, `2.5gbit`, `800mbit`; the units are powers of 1000, as `tc` has them.
pub(crate) fn bandwidth(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 5] =
        [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9), ("tbit", 1e12), ("bit", 1.0)];
    let lower = text.to_ascii_lowercase();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, factor)))
        .ok_or("has no unit: kbit, mbit, gbit or tbit")?;
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match number.parse::<f64>() {
        Ok(number) if plain && number > 0.0 && number * factor <= 1e15 => Ok((number * factor) as u64),
        _ => Err(format!("'{number}' is no number that makes sense as a rate")),
    }
}

/// A span of time: `500ms`, `2.5s`, `10min`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("min", 60.0), ("s", 1.0), ("h", 3600.0)];
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .ok_or("has no unit: ms, s, min or h")?;
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match number.parse::<f64>() {
        Ok(number) if plain && number > 0.0 && number * factor <= 1e9 => {
            Ok(Duration::from_secs_f64(number * factor))
        }
        _ => Err(format!("'{number}' is no number that makes sense as a time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let cases = [
            ("t1=10.0.0.1", Host::Address([10, 0, 0, 1].into()), PORT_DEFAULT),
            ("t1=10.0.0.1:80", Host::Address([10, 0, 0, 1].into()), 80),
            ("t1=::1", Host::Address("::1".parse().unwrap()), PORT_DEFAULT),
            ("t1=[::1]", Host::Address("::1".parse().unwrap()), PORT_DEFAULT),
            ("t1=[::1]:80", Host::Address("::1".parse().unwrap()), 80),
            ("t1=node-1.example:80", Host::Name("node-1.example".into()), 80),
        ];
        for (text, host, port) in cases {
            assert_eq!(target(text), Ok(TargetOption { name: "t1".into(), host, port }), "{text}");
        }
        for bad in
            ["", "t1", "=10.0.0.1", "T1=10.0.0.1", "t1=", "t1=10.0.0", "t1=10.0.0.256", "t1=10.0.0.1:x"]
        {
            assert!(target(bad).is_err(), "{bad}");
        }
        for bad in ["t1=10.0.0.1:0", "t1=a:0", "t1=a:70000", "t1=[::1", "t1=a b", "t1=a/24"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        for (text, bits) in
            [("1gbit", 1_000_000_000), ("2.5Gbit", 2_500_000_000), ("800mbit", 800_000_000), ("9bit", 9)]
        {
            assert_eq!(bandwidth(text), Ok(bits), "{text}");
        }
        for bad in [
            "",
            "1",
            "gbit",
            "-1gbit",
            "1e3gbit",
            "infgbit",
            "nanbit",
            "0mbit",
            "1 gbit",
            "1gbps",
            "99999tbit",
        ] {
            assert!(bandwidth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("2.5s", 2_500), ("10min", 600_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "1", "ms", "-1s", "0s", "1e3s", "infs", "1 s", "1d", "99999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn compressions_and_pins() {
        assert_eq!(compression("none"), Ok(Compression::None));
        assert_eq!(compression("zstd"), Ok(Compression::Zstd { level: 1 }));
        assert_eq!(compression("zstd:-3"), Ok(Compression::Zstd { level: -3 }));
        for bad in ["", "lz4", "zstd:", "zstd:20", "zstd:-8", "none:1"] {
            assert!(compression(bad).is_err(), "{bad}");
        }
        assert_eq!(pin("vm1=t1"), Ok(Pin { guest: "vm1".into(), target: "t1".into() }));
        for bad in ["", "vm1", "vm1=", "=t1"] {
            assert!(pin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn guests_apart_and_targets_that_are_not_asked() {
        assert_eq!(apart("vm1,vm2"), Ok(ApartOption(vec!["vm1".into(), "vm2".into()])));
        for bad in ["", "vm1", "vm1,", ",vm1", "vm1,,vm2"] {
            assert!(apart(bad).is_err(), "{bad}");
        }
        let target = |memory_bytes| Ok(SavedTarget { name: "t1".into(), memory_bytes });
        assert_eq!(saved_target("t1"), target(None));
        assert_eq!(saved_target("t1=64GiB"), target(Some(64 << 30)));
        assert_eq!(saved_target("t1=1.5tib"), target(Some(3 << 39)));
        for bad in ["", "=1GiB", "T1", "t1=", "t1=64", "t1=GiB", "t1=-1GiB", "t1=1e9GiB", "t1=0MiB", "t1=1GB"]
        {
            assert!(saved_target(bad).is_err(), "{bad}");
        }
    }
}
