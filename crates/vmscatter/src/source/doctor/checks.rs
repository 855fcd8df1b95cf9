//! What the facts mean, and what to do about them.

use std::net::IpAddr;
use std::time::Duration;

use vmscatter_core::wire::control::HostReport;

use super::trial::Trial;
use crate::agent::protocol::GROUPS_DEFAULT;
use crate::plan::LINK_BYTES_PER_S;
use crate::report::doctor::{Check, Verdict};
use indicatif::BinaryBytes;

/// What an interface must carry at least.
const MTU_MIN: u32 = 1280;
/// Downtimes are taken from two clocks.
const CLOCK_MAX: Duration = Duration::from_millis(5);
/// TLS refuses certificates whose time has not come, or is over: clocks that differ by so much are close to that.
const CLOCK_FAR: Duration = Duration::from_secs(300);
/// A tenth of a second of a link of 1 Gbit/s.
const RECEIVE_BUFFER_MIN: u64 = 12 * 1024 * 1024;
/// Beyond that, repair costs more than a few percent.
const LOSS_MAX: f64 = 0.02;
/// How often a querier asks (RFC 3376, 8.2).
pub(super) const QUERY_INTERVAL: Duration = Duration::from_secs(125);

/// What was found out about a target.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) addr: String,
    /// Why it can't be reached, and what to do.
    pub(super) unreached: Option<(String, &'static str)>,
    /// From the first packet to both Hellos.
    pub(super) connected: Duration,
    pub(super) version: u16,
    pub(super) mtus: (u32, u32),
    pub(super) free_memory_bytes: u64,
    /// What it says of itself; older builds don't.
    pub(super) report: Option<HostReport>,
    /// Its clock less ours, in microseconds, give or take the second.
    pub(super) clock_us: (i64, u64),
    /// Probes that it sent and that came here, or why none could.
    pub(super) back: Option<Result<(u32, u32), String>>,
    /// Why there is no session with it.
    pub(super) session: Option<String>,
    /// Its place in the trial.
    pub(super) number: Option<usize>,
}

fn check(host: &str, what: &str, verdict: Verdict, found: String, advice: Option<&str>) -> Check {
    let advice = advice.filter(|_| verdict != Verdict::Good).map(str::to_owned);
    Check { host: host.to_owned(), what: what.to_owned(), verdict, found, advice }
}

/// Good or not so good.
fn good(is_good: bool) -> Verdict {
    if is_good { Verdict::Good } else { Verdict::Poor }
}

/// Everything about one target.
pub(super) fn of_target(facts: &Facts, ours: &HostReport, trial: &Trial) -> Vec<Check> {
    let host = &*facts.name;
    if let Some((why, advice)) = &facts.unreached {
        return vec![check(host, "connection", Verdict::Bad, format!("{}: {why}", facts.addr), Some(advice))];
    }
    let millis = facts.connected.as_secs_f64() * 1e3;
    let connected =
        format!("{}, certificate accepted, protocol {}, {millis:.1} ms", facts.addr, facts.version);
    let mut checks = vec![check(host, "connection", Verdict::Good, connected, None)];
    checks.push(match &facts.session {
        None => check(host, "data port", Verdict::Good, "takes sealed pieces".into(), None),
        Some(why) => {
            let advice = "open the port after the agent's control port from here to there";
            check(host, "data port", Verdict::Bad, why.clone(), Some(advice))
        }
    });
    checks.push(memory(host, facts.free_memory_bytes));
    checks.push(mtu(host, facts.mtus));
    match &facts.report {
        None => {
            let found = "an older build, which does not say".to_owned();
            checks.push(check(
                host,
                "host",
                Verdict::Unknown,
                found,
                Some("bring both sides to one version"),
            ));
        }
        Some(report) => {
            checks.push(clock(host, facts.clock_us));
            checks.push(qemu(host, report, ours));
            checks.extend(limits(host, report));
        }
    }
    checks.extend(facts.number.map(|number| forth(host, number, trial)));
    checks.extend(facts.back.as_ref().map(|back| self::back(host, back)));
    checks
}

fn memory(host: &str, free: u64) -> Check {
    let verdict = if free == 0 { Verdict::Bad } else { Verdict::Good };
    let advice = "free memory there, or lower reserve in its [memory]";
    check(host, "memory", verdict, format!("{} for guests", BinaryBytes(free)), Some(advice))
}

fn mtu(host: &str, (ours, theirs): (u32, u32)) -> Check {
    let found =
        if ours == theirs { format!("{ours} at both ends") } else { format!("{ours} here, {theirs} there") };
    let is_good = ours == theirs && ours >= MTU_MIN;
    let advice = "give both interfaces the same MTU: datagrams are cut for the smaller, and larger ones cost less processor time";
    check(host, "MTU", good(is_good), found, Some(advice))
}

fn clock(host: &str, (offset_us, give_us): (i64, u64)) -> Check {
    let offset = Duration::from_micros(offset_us.unsigned_abs().saturating_sub(give_us));
    let way = if offset_us < 0 { "behind" } else { "ahead of" };
    let (offset_ms, give_ms) = (offset_us.unsigned_abs() as f64 / 1e3, give_us as f64 / 1e3);
    let found = format!("{offset_ms:.1} ms {way} this host's, give or take {give_ms:.1} ms");
    let advice = match offset > CLOCK_FAR {
        true => "set the clocks (chrony, systemd-timesyncd): certificates may be refused",
        false => "set the clocks (chrony, systemd-timesyncd): reported downtimes are off by that much",
    };
    check(host, "clock", good(offset <= CLOCK_MAX), found, Some(advice))
}

fn qemu(host: &str, report: &HostReport, ours: &HostReport) -> Check {
    let versions = |report: &HostReport| -> Vec<String> {
        report.qemus.iter().filter_map(|qemu| qemu.version.clone().ok()).collect()
    };
    let (here, there) = (versions(ours), versions(report));
    let silent = report.qemus.iter().find_map(|qemu| Some((&qemu.path, qemu.version.as_ref().err()?)));
    let found = match (&silent, there.is_empty()) {
        (Some((path, why)), _) => format!("{path}: {why}"),
        (None, true) => "none".to_owned(),
        (None, false) => format!("{} (here {})", there.join(", "), here.join(", ")),
    };
    let verdict = match there.is_empty() {
        true => Verdict::Bad,
        false => good(silent.is_none() && here.iter().any(|version| there.contains(version))),
    };
    let advice = "guests go between versions only with a machine type and a CPU model that both know; see [qemu] programs";
    check(host, "QEMU", verdict, found, Some(advice))
}

fn limits(host: &str, report: &HostReport) -> [Check; 2] {
    let (groups, buffer) = (report.igmp_max_memberships, report.receive_buffer_bytes);
    let unknown = |number: u64, is_good: bool| if number == 0 { Verdict::Unknown } else { good(is_good) };
    let groups_advice = "sysctl -w net.ipv4.igmp_max_memberships=64, or fewer --groups";
    let buffer_advice = "give the agent CAP_NET_ADMIN, or sysctl -w net.core.rmem_max=25165824: what it has no room for is lost and sent again";
    [
        check(
            host,
            "groups",
            unknown(groups, groups >= GROUPS_DEFAULT as u64),
            format!("{groups} at once (a session wants up to {GROUPS_DEFAULT} unless told otherwise)"),
            Some(groups_advice),
        ),
        check(
            host,
            "receive buffer",
            unknown(buffer, buffer >= RECEIVE_BUFFER_MIN),
            BinaryBytes(buffer).to_string(),
            Some(buffer_advice),
        ),
    ]
}

/// From here to the target.
fn forth(host: &str, number: usize, trial: &Trial) -> Check {
    let what = "multicast to it";
    let Some(reached) = trial.targets.get(number) else {
        return check(host, what, Verdict::Unknown, "was not tried".into(), None);
    };
    if let Some(error) = &reached.error {
        let advice =
            "see [multicast] interface in its configuration; until then frames are passed on over TCP";
        return check(host, what, Verdict::Poor, format!("it can't join: {error}"), Some(advice));
    }
    if !reached.heard {
        let advice = "let UDP to 239.0.0.0/8 and IGMP pass on the way, and see that a querier asks where switches snoop; until then frames are passed on over TCP";
        return check(host, what, Verdict::Poor, "no probe arrives".into(), Some(advice));
    }
    if reached.datagrams == 0 && trial.datagrams > 0 {
        let found = format!("probes arrive, and nothing of {} bytes", trial.datagram_bytes);
        let advice = "the path carries less than the interfaces' MTU: lower that at both ends";
        return check(host, what, Verdict::Poor, found, Some(advice));
    }
    let lost = 1.0 - (reached.datagrams as f64 / trial.datagrams.max(1) as f64).min(1.0);
    let found = format!(
        "{} of {} datagrams arrived ({:.2} % lost)",
        reached.datagrams,
        trial.datagrams,
        lost * 100.0
    );
    if reached.fell_behind {
        let advice = "it takes a quarter or less of what the others do: look at its link and its load";
        return check(host, what, Verdict::Poor, format!("{found}; it fell behind"), Some(advice));
    }
    let advice = "look for a port that drops: errors on its interface, a shaper, a switch that floods";
    check(host, what, good(lost <= LOSS_MAX), found, Some(advice))
}

/// From the target to here: what the other way round a migration from there would need.
fn back(host: &str, back: &Result<(u32, u32), String>) -> Check {
    let what = "multicast from it";
    let advice = "let UDP to 239.0.0.0/8 and IGMP pass on the way back; it matters when guests leave that host for this one";
    match back {
        Err(error) => check(host, what, Verdict::Unknown, error.clone(), None),
        Ok((0, _)) => check(host, what, Verdict::Poor, "it could send no probe".into(), Some(advice)),
        Ok((sent, arrived)) => {
            check(host, what, good(*arrived > 0), format!("{arrived} of {sent} probes arrived"), Some(advice))
        }
    }
}

/// What concerns the host that guests leave, or all.
pub(super) fn of_source(
    name: &str,
    ours: &HostReport,
    trial: &Trial,
    (protocol, querier): (&str, Result<Option<IpAddr>, String>),
    listened: Duration,
) -> Vec<Check> {
    let mut checks = Vec::new();
    if trial.time > Duration::ZERO {
        let rate = trial.bytes as f64 / trial.time.as_secs_f64();
        let found = format!(
            "{:.0} Mbit/s to all at once, {:.1} MB in {:.2} s",
            rate * 8.0 / 1e6,
            trial.bytes as f64 / 1e6,
            trial.time.as_secs_f64()
        );
        let advice = "the slowest target sets the pace; look at links and processors on the way, or leave that target out";
        checks.push(check(name, "rate", good(rate >= LINK_BYTES_PER_S / 4.0), found, Some(advice)));
    }
    let silent = ours.qemus.iter().find_map(|qemu| Some((&qemu.path, qemu.version.as_ref().err()?)));
    if let Some((path, why)) = silent {
        checks.push(check(
            name,
            "QEMU",
            Verdict::Poor,
            format!("{path}: {why}"),
            Some("see [qemu] programs"),
        ));
    }
    let (seconds, what) = (listened.as_secs(), format!("{protocol} querier"));
    let check = |verdict, found, advice| check(name, &what, verdict, found, advice);
    checks.push(match querier {
        Ok(Some(from)) if from.is_unspecified() => {
            check(Verdict::Good, "a switch without an address asks".into(), None)
        }
        Ok(Some(from)) => check(Verdict::Good, format!("{from} asks"), None),
        Ok(None) if listened >= QUERY_INTERVAL => {
            let advice = "switch a querier on (a router, or the switch itself): without one, switches that snoop forget groups \
                          after some 260 s, and the rest goes from target to target";
            check(Verdict::Poor, format!("nobody asked within {seconds} s"), Some(advice))
        }
        Ok(None) => {
            let advice = "one asks every 125 s as a rule: examine again with --listen 130s";
            check(Verdict::Unknown, format!("nobody asked within {seconds} s"), Some(advice))
        }
        Err(error) => check(Verdict::Unknown, error, Some("the agent needs CAP_NET_RAW to hear it")),
    });
    checks
}

#[cfg(test)]
mod tests {
    use vmscatter_core::wire::control::QemuProgram;

    use super::super::trial::Reached;
    use super::*;

    fn report(version: &str) -> HostReport {
        HostReport {
            clock_unix_us: 1,
            igmp_max_memberships: 20,
            receive_buffer_bytes: 24 << 20,
            qemus: vec![QemuProgram { path: "/usr/bin/qemu".into(), version: Ok(version.into()) }],
            probes: 20,
        }
    }

    fn facts() -> Facts {
        Facts {
            name: "host1".into(),
            addr: "192.0.2.11:7940".into(),
            version: 2,
            mtus: (1500, 1500),
            free_memory_bytes: 1 << 30,
            report: Some(report("7.2.1")),
            clock_us: (-900, 400),
            back: Some(Ok((20, 19))),
            number: Some(0),
            ..Facts::default()
        }
    }

    fn trial() -> Trial {
        let reached = Reached { heard: true, datagrams: 990, ..Reached::default() };
        Trial { targets: vec![reached], datagrams: 1000, ..Trial::default() }
    }

    /// What is not good of a target, and how.
    fn complaints(facts: &Facts, trial: &Trial) -> Vec<(String, Verdict)> {
        let checks = of_target(facts, &report("7.2.1"), trial);
        let bad = checks.into_iter().filter(|check| check.verdict != Verdict::Good);
        bad.inspect(|check| assert!(check.advice.is_some() || check.verdict == Verdict::Unknown, "{check:?}"))
            .map(|check| (check.what, check.verdict))
            .collect()
    }

    #[test]
    fn each_fault_is_told_and_nothing_else() {
        use Verdict::{Bad, Poor, Unknown};
        type Change = fn(&mut Facts, &mut Trial);
        let cases: &[(&str, Verdict, Change)] = &[
            ("connection", Bad, |facts, _| facts.unreached = Some(("no route".into(), "look"))),
            ("data port", Bad, |facts, _| facts.session = Some("refused".into())),
            ("memory", Bad, |facts, _| facts.free_memory_bytes = 0),
            ("MTU", Poor, |facts, _| facts.mtus = (9000, 1500)),
            ("clock", Poor, |facts, _| facts.clock_us = (90_000, 400)),
            ("host", Unknown, |facts, _| facts.report = None),
            ("QEMU", Poor, |facts, _| facts.report = Some(report("10.0"))),
            ("QEMU", Bad, |facts, _| facts.report.as_mut().unwrap().qemus.clear()),
            ("groups", Poor, |facts, _| facts.report.as_mut().unwrap().igmp_max_memberships = 10),
            ("groups", Unknown, |facts, _| facts.report.as_mut().unwrap().igmp_max_memberships = 0),
            ("receive buffer", Poor, |facts, _| {
                facts.report.as_mut().unwrap().receive_buffer_bytes = 200_000
            }),
            ("multicast to it", Poor, |_, trial| trial.targets[0].heard = false),
            ("multicast to it", Poor, |_, trial| trial.targets[0].datagrams = 0),
            ("multicast to it", Poor, |_, trial| trial.targets[0].datagrams = 900),
            ("multicast to it", Poor, |_, trial| trial.targets[0].fell_behind = true),
            ("multicast to it", Poor, |_, trial| trial.targets[0].error = Some("no device".into())),
            ("multicast to it", Unknown, |_, trial| trial.targets.clear()),
            ("multicast from it", Poor, |facts, _| facts.back = Some(Ok((20, 0)))),
            ("multicast from it", Unknown, |facts, _| facts.back = Some(Err("no group".into()))),
        ];
        assert_eq!(complaints(&facts(), &trial()), []);
        for (what, verdict, change) in cases {
            let (mut facts, mut trial) = (facts(), trial());
            change(&mut facts, &mut trial);
            assert_eq!(complaints(&facts, &trial), [((*what).to_owned(), *verdict)]);
        }
    }

    #[test]
    fn a_querier_is_missed_only_by_who_has_waited_for_it() {
        let querier = |heard: Option<IpAddr>, seconds| {
            let checks =
                of_source("s", &report("7.2.1"), &trial(), ("MLD", Ok(heard)), Duration::from_secs(seconds));
            checks.last().unwrap().verdict
        };
        assert_eq!(querier(Some(IpAddr::from([127, 0, 0, 1])), 1), Verdict::Good);
        assert_eq!(querier(None, 5), Verdict::Unknown);
        assert_eq!(querier(None, 130), Verdict::Poor);
    }
}
