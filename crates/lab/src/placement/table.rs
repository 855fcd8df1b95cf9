//! The experiment's figures: JSON, and the table as the paper has it.

use std::collections::BTreeSet;
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use vmscatter_core::page::PAGE_SIZE;
use vmscatter_core::placement::HolderGroups;

use super::{Grouping, Workload};
use crate::guest::Accel;
use crate::report::{Machine, Run};

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One for each workload.
    pub workloads: Vec<WorkloadReport>,
    /// Where it was.
    pub machine: Machine,
    /// Guests of each workload.
    pub guest_count: usize,
    /// RAM of each guest.
    pub memory_mib: u32,
    /// Rate of the links, in tc's notation.
    pub rate: String,
    /// Random groupings for each number of targets.
    pub groupings: u32,
    /// Where they come from.
    pub seed: u64,
}

/// One workload's figures.
#[derive(Debug, Serialize)]
pub struct WorkloadReport {
    /// What the guests did.
    pub workload: Workload,
    /// For each guest its family.
    pub families: Vec<String>,
    /// From the start of the first guest until all were warm, seconds.
    pub warm_after_s: f64,
    /// How their contents are spread.
    pub composition: Composition,
    /// Computed: one for each number of targets.
    pub rows: Vec<Row>,
    /// Measured.
    pub trials: Vec<Trial>,
}

/// Bytes of distinct contents, zero pages apart, by the guests that hold them. They add up to the distinct contents.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Composition {
    /// Held by every guest.
    pub in_all_bytes: u64,
    /// Held by two or more guests of one family, and by no other.
    pub in_one_family_bytes: u64,
    /// Held by one guest.
    pub in_one_guest_bytes: u64,
    /// Held by other sets of guests.
    pub in_others_bytes: u64,
}

/// One number of targets: all computed from the contents.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Number of targets.
    pub targets: usize,
    /// Random groupings.
    pub random: Vec<Grouping>,
    /// Their traffic.
    pub random_bytes: Vec<u64>,
    /// The optimiser's grouping.
    pub chosen: Choice,
    /// The grouping of the paper's algorithm.
    pub greedy: Choice,
    /// Whether a complete search has shown that there is none better than the chosen.
    pub is_optimal: bool,
    /// No even grouping is below it. The chosen grouping's own traffic if that is optimal.
    pub bound_bytes: u64,
    /// The same as computed without any search.
    pub quick_bound_bytes: u64,
}

/// A grouping and its traffic.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// Each guest's target.
    pub grouping: Grouping,
    /// Computed.
    pub bytes: u64,
}

/// A grouping that was really migrated.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// `chosen` or `random N`.
    pub name: String,
    /// Number of targets.
    pub targets: usize,
    /// Each guest's target.
    pub grouping: Grouping,
    /// The traffic computed for it.
    pub computed_bytes: u64,
    /// What was measured; None if the run as a whole failed.
    pub run: Option<Run>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Trial {
    fn good(&self) -> usize {
        let guests = self.run.iter().flat_map(|run| &run.guests);
        guests.filter(|guest| guest.verified && guest.running).count()
    }

    fn measured(&self) -> Option<f64> {
        self.run.as_ref().map(|run| run.network_traffic_bytes as f64)
    }
}

impl Composition {
    /// Adds up what the guests hold. `families` has each guest's family.
    pub fn of(groups: &HolderGroups, families: &[String]) -> Self {
        let mut pages = Self { in_one_guest_bytes: groups.alone.iter().sum(), ..Self::default() };
        for group in &groups.shared {
            let of: BTreeSet<&String> = group.vms.iter().map(|vm| &families[usize::from(*vm)]).collect();
            let class = match (group.vms.len(), of.len()) {
                (holders, _) if holders == families.len() => &mut pages.in_all_bytes,
                (_, 1) => &mut pages.in_one_family_bytes,
                _ => &mut pages.in_others_bytes,
            };
            *class += group.contents;
        }
        let bytes = |pages| pages * PAGE_SIZE as u64;
        Self {
            in_all_bytes: bytes(pages.in_all_bytes),
            in_one_family_bytes: bytes(pages.in_one_family_bytes),
            in_one_guest_bytes: bytes(pages.in_one_guest_bytes),
            in_others_bytes: bytes(pages.in_others_bytes),
        }
    }

    /// All distinct contents.
    pub fn distinct_bytes(&self) -> u64 {
        self.in_all_bytes + self.in_one_family_bytes + self.in_one_guest_bytes + self.in_others_bytes
    }
}

impl Row {
    /// Greatest, least and mean traffic of the random groupings.
    pub fn max_min_avg(&self) -> (u64, u64, f64) {
        let bytes = &self.random_bytes;
        let sum: u64 = bytes.iter().sum();
        let (max, min) = (bytes.iter().max(), bytes.iter().min());
        (max.copied().unwrap_or(0), min.copied().unwrap_or(0), sum as f64 / bytes.len() as f64)
    }
}

impl Report {
    /// Whether every guest that was migrated is verified and running.
    pub fn is_good(&self) -> bool {
        let mut trials = self.workloads.iter().flat_map(|done| &done.trials);
        trials.all(|trial| trial.good() == trial.grouping.len())
    }

    /// Both tables and what must be said beside them.
    pub fn to_text(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{} x {}, Linux {}, {}, {}\n{} guests of {} MiB; links of {}; {} random even groupings, seed {}\n\n",
            machine.cpus,
            machine.cpu_model,
            machine.kernel,
            machine.qemu,
            if machine.accel == Accel::Kvm { "KVM" } else { "TCG" },
            self.guest_count,
            self.memory_mib,
            self.rate,
            self.groupings,
            self.seed
        );
        for done in &self.workloads {
            let part = &done.composition;
            let _ = writeln!(
                text,
                "{}: warm after {:.0} s; distinct contents {} MB: {} in all guests, {} in one family only, {} in one \
                 guest only, {} in others",
                done.workload.name(),
                done.warm_after_s,
                mb(part.distinct_bytes() as f64),
                mb(part.in_all_bytes as f64),
                mb(part.in_one_family_bytes as f64),
                mb(part.in_one_guest_bytes as f64),
                mb(part.in_others_bytes as f64),
            );
        }
        text.push_str("\nComputed from the guests' contents: network traffic in MB, 10^6 bytes\n");
        let _ = writeln!(text, "{}", self.computed());
        text.push_str(
            "chosen *: a complete search found no better one. greedy: the paper's algorithm. bound: no even grouping \
             can be below it.\n",
        );
        if self.workloads.iter().any(|done| !done.trials.is_empty()) {
            text.push_str(
                "\nMeasured: the same guests migrated, bytes of the qdiscs towards all targets in MB\n",
            );
            let _ = writeln!(text, "{}", self.measured());
            self.problems(&mut text);
        }
        text
    }

    fn computed(&self) -> Table {
        let mut table = new_table(&[
            "workload", "targets", "max", "min", "avg", "chosen", "to avg", "to min", "greedy", "bound",
        ]);
        for done in &self.workloads {
            for row in &done.rows {
                let (max, min, avg) = row.max_min_avg();
                let chosen = row.chosen.bytes as f64;
                let mark = if row.is_optimal { " *" } else { "" };
                table.add_row([
                    done.workload.name().to_owned(),
                    row.targets.to_string(),
                    mb(max as f64),
                    mb(min as f64),
                    mb(avg),
                    format!("{}{mark}", mb(chosen)),
                    percent(chosen, avg),
                    percent(chosen, min as f64),
                    mb(row.greedy.bytes as f64),
                    mb(row.bound_bytes as f64),
                ]);
            }
        }
        aligned(table)
    }

    fn measured(&self) -> Table {
        let mut table = new_table(&[
            "workload",
            "targets",
            "grouping",
            "computed",
            "measured",
            "to computed",
            "to chosen",
            "transferred",
            "time",
            "good",
        ]);
        for done in &self.workloads {
            for trial in &done.trials {
                table.add_row(done.measured_cells(trial));
            }
        }
        aligned(table)
    }

    fn problems(&self, text: &mut String) {
        for done in &self.workloads {
            for trial in &done.trials {
                let place = format!("{}, {} targets, {}", done.workload.name(), trial.targets, trial.name);
                if let Some(error) = &trial.error {
                    let _ = writeln!(text, "{place}: {error}");
                }
                for guest in trial.run.iter().flat_map(|run| &run.guests) {
                    if let Some(problem) = &guest.problem {
                        let _ = writeln!(text, "{place}: {} to {}: {problem}", guest.name, guest.target);
                    }
                }
            }
        }
    }
}

impl WorkloadReport {
    fn measured_cells(&self, trial: &Trial) -> [String; 10] {
        let same = |other: &&Trial| other.name == "chosen" && other.targets == trial.targets;
        let chosen = self.trials.iter().find(same).and_then(Trial::measured);
        let against = |of: Option<f64>| match trial.measured().zip(of) {
            Some((measured, of)) => percent(measured, of),
            None => "-".to_owned(),
        };
        let run = trial.run.as_ref();
        [
            self.workload.name().to_owned(),
            trial.targets.to_string(),
            trial.name.clone(),
            mb(trial.computed_bytes as f64),
            trial.measured().map_or("failed".to_owned(), mb),
            against(Some(trial.computed_bytes as f64)),
            if trial.name == "chosen" { String::new() } else { against(chosen) },
            run.map_or("-".to_owned(), |run| mb(run.transferred_bytes as f64)),
            run.map_or("-".to_owned(), |run| format!("{:.1} s", run.total_time_s)),
            format!("{} of {}", trial.good(), trial.grouping.len()),
        ]
    }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

/// Numbers to the right.
fn aligned(mut table: Table) -> Table {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn mb(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e6)
}

fn percent(value: f64, of: f64) -> String {
    format!("{:+.1} %", (value / of - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use vmscatter_core::placement::HolderGroup;

    use super::*;

    #[test]
    fn contents_are_told_apart_by_their_holders() {
        let families = ["a", "b", "a", "b"].map(str::to_owned).to_vec();
        let group = |vms: &[u16], contents| HolderGroup { vms: vms.to_vec(), contents };
        let groups = HolderGroups {
            alone: vec![1, 1, 1, 1],
            shared: vec![group(&[0, 1, 2, 3], 10), group(&[0, 2], 100), group(&[0, 1, 2], 1000)],
        };
        let composition = Composition::of(&groups, &families);
        let page = PAGE_SIZE as u64;
        assert_eq!(
            composition,
            Composition {
                in_all_bytes: 10 * page,
                in_one_family_bytes: 100 * page,
                in_one_guest_bytes: 4 * page,
                in_others_bytes: 1000 * page,
            }
        );
        assert_eq!(composition.distinct_bytes(), groups.contents() * page);
    }
}
