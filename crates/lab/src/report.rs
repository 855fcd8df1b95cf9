//! Results: JSON for machines, a table with the ratios to off-the-shelf for people.

use std::fs;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::guest::{Accel, QEMU, qemu_version};
use crate::session::Mode;

/// Downtime and tick gap may differ by this much before the output says so.
const GAP_TOLERANCE_MS: f64 = 100.0;

/// All runs and the machine they ran on.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One for each mode.
    pub runs: Vec<Run>,
    /// Where it was.
    pub machine: Machine,
}

/// One run.
#[derive(Debug, Serialize)]
pub struct Run {
    /// How guests were moved.
    pub mode: Mode,
    /// Number of guests.
    pub guest_count: usize,
    /// Number of target hosts.
    pub host_count: usize,
    /// From the command to the last guest's RESUME.
    pub total_time_s: f64,
    /// Bytes through the source's shaping qdisc.
    pub transferred_bytes: u64,
    /// Bytes through the shaping qdiscs towards all targets.
    pub network_traffic_bytes: u64,
    /// Over all guests that arrived.
    pub downtime_ms: Downtime,
    /// Bytes of contents that are not zero, each counted once, over all guests, as vmscatter found them; None off the
    /// shelf.
    pub distinct_nonzero_bytes: Option<u64>,
    /// One for each guest.
    pub guests: Vec<GuestRow>,
    /// Rate of the links, in tc's notation.
    pub rate: String,
    /// RAM of each guest.
    pub memory_mib: u32,
    /// False if guests were held to compare their RAM.
    pub downtime_comparable: bool,
    /// Bytes towards each target.
    pub host_bytes: Vec<u64>,
}

impl Run {
    /// Prints a line on a run whose guests' RAM was compared, and one for each guest that had a problem; whether all is well.
    pub fn tell_of_ram(&self, way: &str) -> bool {
        let is_good = |guest: &&GuestRow| guest.verified && guest.running && guest.ram_equal == Some(true);
        let (good, all) = (self.guests.iter().filter(is_good).count(), self.guests.len());
        println!("{way}: {good} of {all} guests verified and running, all RAM equal");
        for guest in &self.guests {
            if let Some(problem) = &guest.problem {
                println!("  {}: {problem}", guest.name);
            }
        }
        good == all
    }
}

/// Milliseconds; None (null) if no guest arrived.
#[derive(Debug, Default, Serialize)]
pub struct Downtime {
    /// Shortest.
    pub min: Option<f64>,
    /// Mean.
    pub avg: Option<f64>,
    /// Longest.
    pub max: Option<f64>,
}

/// What became of one guest.
#[derive(Debug, Serialize)]
pub struct GuestRow {
    /// Its name.
    pub name: String,
    /// The host it was to go to.
    pub target: String,
    /// STOP to RESUME.
    pub downtime_ms: f64,
    /// Digests agreed (where there are any) and the guest's own checksums hold; with `--compare-ram` all RAM too.
    pub verified: bool,
    /// It ticks at its target, and no tick was lost or repeated.
    pub running: bool,
    /// Longest time without a tick from the command to the end.
    pub tick_gap_ms: f64,
    /// From the last tick at the source to the first at the target.
    pub handover_gap_ms: Option<f64>,
    /// Whether all RAM was equal; null if not compared.
    pub ram_equal: Option<bool>,
    /// What it has rewritten, by its own clock.
    pub dirtied_kib_per_s: Option<f64>,
    /// Why it is not verified or not running.
    pub problem: Option<String>,
}

/// Facts of the machine.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Their model.
    pub cpu_model: String,
    /// Linux release.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// What ran the guests.
    pub accel: Accel,
}

impl GuestRow {
    /// A guest of which nothing good is known yet.
    pub(crate) fn new(name: &str, target: &str) -> Self {
        Self {
            name: name.to_owned(),
            target: target.to_owned(),
            downtime_ms: f64::NAN,
            verified: false,
            running: false,
            tick_gap_ms: f64::NAN,
            handover_gap_ms: None,
            ram_equal: None,
            dirtied_kib_per_s: None,
            problem: None,
        }
    }
}

impl Downtime {
    pub(crate) fn of(rows: &[GuestRow]) -> Self {
        let times: Vec<f64> =
            rows.iter().map(|row| row.downtime_ms).filter(|time| time.is_finite()).collect();
        if times.is_empty() {
            return Self::default();
        }
        Self {
            min: times.iter().copied().reduce(f64::min),
            avg: Some(times.iter().sum::<f64>() / times.len() as f64),
            max: times.iter().copied().reduce(f64::max),
        }
    }
}

impl Machine {
    /// This machine.
    pub fn this(accel: Accel) -> Self {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_model: model.map_or_else(String::new, |(_, model)| model.to_owned()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            qemu: qemu_version(std::path::Path::new(QEMU)),
            accel,
        }
    }
}

impl Report {
    /// Whether every guest of every run is verified and running.
    pub fn is_good(&self) -> bool {
        self.runs.iter().flat_map(|run| &run.guests).all(|guest| guest.verified && guest.running)
    }

    /// Writes the JSON file.
    pub fn write(&self, path: &std::path::Path) -> Result<()> {
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// The table and what must be said beside it.
    pub fn to_text(&self) -> String {
        let baseline = self.runs.iter().find(|run| run.mode == Mode::OffTheShelf);
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "mode",
            "total time",
            "transferred",
            "traffic",
            "downtime min/avg/max",
            "tick gap",
            "good",
        ]);
        for run in &self.runs {
            table.add_row(run.cells(baseline.filter(|baseline| baseline.mode != run.mode)));
        }
        let machine = &self.machine;
        let mut text = format!(
            "{} x {}, Linux {}, {}, {}\n{table}\n",
            machine.cpus,
            machine.cpu_model,
            machine.kernel,
            machine.qemu,
            if machine.accel == Accel::Kvm { "KVM" } else { "TCG" }
        );
        if let Some(run) = self.runs.first() {
            text += &format!(
                "{} guests of {} MiB, {} target hosts, links of {}; percentages are against off-the-shelf.\n\
                 Tick gap: the longest time without a tick of any guest. Good: verified and running.\n",
                run.guest_count, run.memory_mib, run.host_count, run.rate
            );
        }
        self.remarks(&mut text);
        text
    }

    fn remarks(&self, text: &mut String) {
        if self.runs.iter().any(|run| !run.downtime_comparable) {
            text.push_str("Guests were held while their RAM was compared: downtimes are not comparable.\n");
        }
        for run in &self.runs {
            let mode = run.mode.name();
            run.against_distinct(text);
            for guest in &run.guests {
                if let Some(problem) = &guest.problem {
                    text.push_str(&format!("{mode}, {} to {}: {problem}\n", guest.name, guest.target));
                }
            }
            let apart = run
                .guests
                .iter()
                .filter(|guest| (guest.tick_gap_ms - guest.downtime_ms).abs() > GAP_TOLERANCE_MS);
            let apart: Vec<String> = apart
                .map(|guest| {
                    let handover = guest.handover_gap_ms.map_or("-".to_owned(), |gap| format!("{gap:.0}"));
                    format!("{} {:.0} / {handover} / {:.0}", guest.name, guest.tick_gap_ms, guest.downtime_ms)
                })
                .collect();
            if !apart.is_empty() {
                text.push_str(&format!(
                    "{mode}: longest tick gap more than {GAP_TOLERANCE_MS:.0} ms from downtime (longest gap / gap at the hand-over / downtime, ms): {}\n",
                    apart.join(", ")
                ));
            }
        }
    }
}

impl Run {
    /// How close the transfer came to what has to leave: each distinct content once, and what was rewritten meanwhile.
    fn against_distinct(&self, text: &mut String) {
        let Some(distinct) = self.distinct_nonzero_bytes else { return };
        let rates = self.guests.iter().filter_map(|guest| guest.dirtied_kib_per_s);
        let rewritten = rates.sum::<f64>() * 1024.0 * self.total_time_s;
        let floor = distinct as f64 + rewritten;
        text.push_str(&format!(
            "{}: {:.2} x (distinct contents {:.1} MB + rewritten meanwhile {:.1} MB)\n",
            self.mode.name(),
            self.transferred_bytes as f64 / floor,
            distinct as f64 / 1e6,
            rewritten / 1e6
        ));
    }

    fn cells(&self, baseline: Option<&Self>) -> [String; 7] {
        let against = |value: f64, of: fn(&Self) -> f64| match baseline {
            Some(baseline) if of(baseline) > 0.0 => {
                format!(" ({:+.1} %)", (value / of(baseline) - 1.0) * 100.0)
            }
            _ => String::new(),
        };
        let average = |run: &Self| run.downtime_ms.avg.unwrap_or(f64::NAN);
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
        let gap = self.guests.iter().map(|guest| guest.tick_gap_ms).fold(0.0, f64::max);
        let good = self.guests.iter().filter(|guest| guest.verified && guest.running).count();
        let (transferred, traffic) = (self.transferred_bytes as f64, self.network_traffic_bytes as f64);
        let downtime = &self.downtime_ms;
        let mark = if self.downtime_comparable { "" } else { " not comparable" };
        [
            self.mode.name().to_owned(),
            format!("{:.1} s{}", self.total_time_s, against(self.total_time_s, |run| run.total_time_s)),
            format!(
                "{:.1} MB{}",
                transferred / 1e6,
                against(transferred, |run| run.transferred_bytes as f64)
            ),
            format!("{:.1} MB{}", traffic / 1e6, against(traffic, |run| run.network_traffic_bytes as f64)),
            format!(
                "{}/{}/{} ms{}{mark}",
                ms(downtime.min),
                ms(downtime.avg),
                ms(downtime.max),
                if mark.is_empty() { against(average(self), average) } else { String::new() }
            ),
            format!("{gap:.0} ms"),
            format!("{good} of {}", self.guest_count),
        ]
    }
}
