//! The lab's network: hosts in network namespaces, joined by a bridge, every link shaped in both directions.
//!
//! ```text
//!   host namespace                 switch namespace
//!   eth0 [tbf: host → switch] ──── p<i> [tbf: switch → host] ── bridge (IGMP snooping + querier)
//! ```
//!
//! Bytes are those of the shaping qdiscs. Interface counters would count one header for each segmented super-packet;
//! a qdisc counts what a real link would carry.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::state;

/// Bytes that may leave at once: room for two GSO super-packets of 64 KiB. With less than one, tbf would cut them up
/// (TCP) or drop them; 128 KiB are about a millisecond at 1 Gbit/s.
const BURST_BYTES: u32 = 128 << 10;

/// Bytes that may wait before a link: 8 ms at 1 Gbit/s, as in a switch with modest buffers.
const QUEUE_BYTES: u32 = 1 << 20;

/// A host of the lab, or its switch.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn create(name: String) -> Result<Self> {
        run("ip", &["netns", "add", &name])?;
        run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        let namespace = Self { name };
        // IPv6 would add its neighbour discovery to every count of bytes.
        namespace.inside(|| {
            for scope in ["all", "default"] {
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
        })?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. Sockets it makes and processes it starts stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).context(path)?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a program inside the namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.inside(move || command.spawn())?.with_context(|| format!("{program} can't be started"))
    }

    /// The processes inside the namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let path = format!("/run/netns/{}", self.name);
        let meta = std::fs::metadata(&path).context(path)?;
        Ok(state::processes(&[(meta.dev(), meta.ino())]))
    }

    /// Gives `rules` to nft inside the namespace, for faults that [`Network::set_loss`] does not have.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.ask_nft(rules).map(drop)
    }

    fn ask_nft(&self, rules: &str) -> Result<String> {
        let mut command = Command::new("nft");
        command.arg(rules).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.spawn(&mut command)?.wait_with_output()?;
        ensure!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Bytes that a counter of a netdev table has counted there.
    pub fn counted_bytes(&self, table: &str, counter: &str) -> Result<u64> {
        let said = self.ask_nft(&format!("list counter netdev {table} {counter}"))?;
        let mut words = said.split_ascii_whitespace().skip_while(|word| *word != "bytes").skip(1);
        words.next().and_then(|bytes| bytes.parse().ok()).with_context(|| format!("no bytes in {said:?}"))
    }
}

/// A host of the lab with its link to the switch.
#[derive(Debug, Clone)]
pub struct Link {
    /// The host's namespace; its interface is eth0.
    pub namespace: Namespace,
    /// Its address, in 10.77.0.0/24.
    pub address: Ipv4Addr,
    port: String,
}

impl Link {
    /// Its address in fd77::/64, once it has one.
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, self.address.octets()[3].into())
    }
}

/// The switch and the links to it.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    switch: Namespace,
    rate: String,
}

impl Network {
    /// A switch without hosts. Names begin with `prefix`; `rate` is in tc's notation (`1gbit`), and
    /// `igmp` the version in which it asks for groups from the start: a host that has heard an older one keeps to that for minutes.
    pub fn create(prefix: &str, rate: &str, igmp: u8) -> Result<Self> {
        let switch = Namespace::create(format!("{prefix}sw"))?;
        let network = Self { prefix: prefix.to_owned(), switch, rate: rate.to_owned() };
        let ns = network.switch.name();
        // Snooping without a querier floods every port, and a querier trusts what it has learnt only once a response
        // interval (10 s by default; here 0.2 s, before the querier is on) has passed. Times are in hundredths.
        let snooping = format!(
            "mcast_snooping 1 mcast_query_response_interval 20 mcast_query_interval 500 \
             mcast_startup_query_interval 100 mcast_igmp_version {igmp}"
        );
        let snooping: Vec<&str> = snooping.split_ascii_whitespace().collect();
        run("ip", &[&["-n", ns, "link", "add", "br0", "type", "bridge"], &snooping[..]].concat())?;
        run("ip", &["-n", ns, "link", "set", "br0", "type", "bridge", "mcast_querier", "1"])?;
        run("ip", &["-n", ns, "link", "set", "br0", "up"])?;
        Ok(network)
    }

    /// Adds a host: namespace, cable, address `10.77.0.(10 + index)`, shaping, multicast route.
    pub fn add_host(&self, index: u8) -> Result<Link> {
        let namespace = Namespace::create(format!("{}h{index}", self.prefix))?;
        let (host, switch, port) = (namespace.name(), self.switch.name(), format!("p{index}"));
        let address = Ipv4Addr::new(10, 77, 0, 10 + index);
        run(
            "ip",
            &["-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", host],
        )?;
        run("ip", &["-n", switch, "link", "set", &port, "master", "br0", "up"])?;
        // One host on each port: what it leaves need not be asked for behind it.
        run("ip", &["-n", switch, "link", "set", &port, "type", "bridge_slave", "fastleave", "on"])?;
        run("ip", &["-n", host, "addr", "add", &format!("{address}/24"), "brd", "+", "dev", "eth0"])?;
        run("ip", &["-n", host, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", host, "route", "add", "224.0.0.0/4", "dev", "eth0"])?;
        self.shape(host, "eth0")?;
        self.shape(switch, &port)?;
        Ok(Link { namespace, address, port })
    }

    /// Gives `link` an address of IPv6 too, which the lab's hosts have none of as a rule, and lets the switch ask for groups of it.
    pub fn add_ipv6(&self, link: &Link) -> Result<()> {
        for (namespace, device) in [(&link.namespace, "eth0"), (&self.switch, "br0")] {
            let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
            namespace.inside(|| std::fs::write(&path, "0"))?.context(path)?;
        }
        // Nobody else has it: it need not be asked for.
        let (host, address) = (link.namespace.name(), format!("{}/64", link.address_v6()));
        run("ip", &["-n", host, "addr", "add", &address, "dev", "eth0", "nodad"])
    }

    fn shape(&self, namespace: &str, device: &str) -> Result<()> {
        let (burst, limit) = (BURST_BYTES.to_string(), QUEUE_BYTES.to_string());
        run(
            "tc",
            &[
                "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", &self.rate, "burst",
                &burst, "limit", &limit,
            ],
        )
        .with_context(|| format!("a link of {}", self.rate))
    }

    /// Gives `link` another rate, in tc's notation, both ways.
    pub fn set_rate(&self, link: &Link, rate: &str) -> Result<()> {
        let (burst, limit) = (BURST_BYTES.to_string(), QUEUE_BYTES.to_string());
        for (namespace, device) in [(link.namespace.name(), "eth0"), (self.switch.name(), link.port.as_str())]
        {
            let place = ["-n", namespace, "qdisc", "change", "dev", device, "root"];
            let shape = ["tbf", "rate", rate, "burst", &burst, "limit", &limit];
            run("tc", &[&place[..], &shape[..]].concat())?;
        }
        Ok(())
    }

    /// Gives both ends of `link` another MTU, in bytes.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        let mtu = mtu.to_string();
        [(link.namespace.name(), "eth0"), (self.switch.name(), link.port.as_str())].into_iter().try_for_each(
            |(namespace, device)| run("ip", &["-n", namespace, "link", "set", device, "mtu", &mtu]),
        )
    }

    /// Takes the limit off `link`, both ways; nothing is counted there any more.
    pub fn unshape(&self, link: &Link) -> Result<()> {
        let ends = [(link.namespace.name(), "eth0"), (self.switch.name(), link.port.as_str())];
        ends.into_iter().try_for_each(|(namespace, device)| {
            run("tc", &["-n", namespace, "qdisc", "del", "dev", device, "root"])
        })
    }

    /// Whether `link`'s host leaves the cutting of UDP bursts to its network card, or does it itself. Needs ethtool.
    pub fn set_udp_segmentation(&self, link: &Link, offload: bool) -> Result<()> {
        let state = if offload { "on" } else { "off" };
        run(
            "ip",
            &["netns", "exec", link.namespace.name(), "ethtool", "-K", "eth0", "tx-udp-segmentation", state],
        )
    }

    /// The switch, whose ports see everything.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Drops a random share of the packets that arrive at `link`'s host, `per_mille` of 1000; 0 drops nothing.
    pub fn set_loss(&self, link: &Link, per_mille: u32) -> Result<()> {
        self.drop_some(link, "", per_mille)
    }

    /// As [`Network::set_loss`], of UDP only: streams over TCP have none.
    pub fn set_udp_loss(&self, link: &Link, per_mille: u32) -> Result<()> {
        self.drop_some(link, "ip protocol udp", per_mille)
    }

    fn drop_some(&self, link: &Link, of: &str, per_mille: u32) -> Result<()> {
        ensure!(per_mille <= 1000, "a loss of {per_mille} per mille");
        // A super-packet would be lost as a whole.
        self.cut_super_packets(link, per_mille != 0)?;
        link.namespace.nft("table netdev lab; delete table netdev lab")?;
        if per_mille == 0 {
            return Ok(());
        }
        link.namespace.nft(&format!(
            "table netdev lab {{ chain loss {{ type filter hook ingress device eth0 priority 0; \
             {of} numgen random mod 1000 < {per_mille} drop; }}; }}"
        ))
    }

    /// Whether the switch cuts super-packets up behind the qdisc towards `link`'s host, as a network card would.
    pub fn cut_super_packets(&self, link: &Link, cut: bool) -> Result<()> {
        let segments = if cut { "1" } else { "65535" };
        run("ip", &["-n", self.switch.name(), "link", "set", &link.port, "gso_max_segs", segments])
    }

    /// Bytes that `link`'s host has sent.
    pub fn sent_bytes(&self, link: &Link) -> Result<u64> {
        Ok(counters(link.namespace.name(), "eth0")?.bytes)
    }

    /// Bytes that the switch has sent towards `link`'s host.
    pub fn received_bytes(&self, link: &Link) -> Result<u64> {
        Ok(counters(self.switch.name(), &link.port)?.bytes)
    }

    /// Packets that were dropped before the link, from the host and towards it.
    pub fn dropped_packets(&self, link: &Link) -> Result<(u64, u64)> {
        let from = counters(link.namespace.name(), "eth0")?.drops;
        Ok((from, counters(self.switch.name(), &link.port)?.drops))
    }
}

/// What a shaping qdisc has counted.
#[derive(serde::Deserialize)]
struct Counters {
    kind: String,
    bytes: u64,
    drops: u64,
}

fn counters(namespace: &str, device: &str) -> Result<Counters> {
    let output =
        Command::new("tc").args(["-n", namespace, "-s", "-j", "qdisc", "show", "dev", device]).output()?;
    ensure!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr).trim());
    let qdiscs: Vec<Counters> = serde_json::from_slice(&output.stdout).context("tc -j")?;
    let Some(tbf) = qdiscs.into_iter().find(|qdisc| qdisc.kind == "tbf") else {
        bail!("{device} in {namespace} is not shaped");
    };
    Ok(tbf)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
