//! What `vmscatter scan` shows: what is identical, per VM and across, as a table and as JSON.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use vmscatter_core::index::{Sharing, VmPages, VmSharing};
use vmscatter_core::page::PAGE_SIZE;

use super::collect::{Collected, CollectedVm};

/// What a scan found. Counts are pages of 4 KiB.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScanReport {
    /// Each VM.
    pub vms: Vec<ScanVm>,
    /// All VMs that could be read.
    pub total: VmSharing,
    /// Contents that stand more than once, all in one VM.
    pub contents_within: u64,
    /// Contents that stand in several VMs.
    pub contents_across: u64,
    /// Bytes of all distinct contents but the zero page, of the VMs that could be read: what has to leave the
    /// host at least, uncompressed.
    pub distinct_nonzero_bytes: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// How long reading and indexing took.
    pub seconds: f64,
}

/// One VM of a scan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScanVm {
    /// The VM's name.
    pub name: String,
    /// Its pages, all zero where it could not be read.
    #[serde(flatten)]
    pub sharing: VmSharing,
    /// Why it could not be read.
    pub error: Option<String>,
}

impl ScanReport {
    /// `names` are those of the VMs that were collected, in the same order.
    pub fn new(names: &[&str], collected: &Collected, bytes_read: u64, time: Duration) -> Self {
        let read = |vm: &CollectedVm| match vm.error {
            None => vm.pages,
            Some(_) => VmPages::default(),
        };
        let sharing = Sharing::of(&collected.contents, &collected.vms.iter().map(read).collect::<Vec<_>>());
        let vms = names.iter().zip(&sharing.vms).zip(&collected.vms).map(|((name, sharing), vm)| ScanVm {
            name: (*name).to_owned(),
            sharing: *sharing,
            error: vm.error.as_ref().map(ToString::to_string),
        });
        ScanReport {
            vms: vms.collect(),
            total: sharing.total(),
            contents_within: sharing.contents_within,
            contents_across: sharing.contents_across,
            distinct_nonzero_bytes: sharing.distinct_nonzero_bytes(),
            bytes_read,
            seconds: time.as_secs_f64(),
        }
    }

    /// The report for people: a table in MiB, and two lines below it.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        let titles = ["VM", "memory", "zero", "unique", "shared within", "shared across"];
        table.set_header(titles);
        let mut unread = String::new();
        for vm in &self.vms {
            match &vm.error {
                None => {
                    table.add_row(row(&vm.name, &vm.sharing));
                }
                Some(error) => unread += &format!("{} could not be read: {error}\n", vm.name),
            }
        }
        table.add_row(row("all", &self.total));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let nonzero = self.total.pages - self.total.zero;
        let distinct = self.distinct_nonzero_bytes / PAGE_SIZE as u64;
        let repeats = if nonzero == 0 { 0.0 } else { 100.0 * (nonzero - distinct) as f64 / nonzero as f64 };
        format!(
            "MiB\n{table}\n{} MiB of distinct contents besides zero; \
             {repeats:.1} % of the pages that are not zero repeat another.\n\
             Read {} MiB in {:.2} s.\n{unread}",
            mib(distinct),
            mib(self.bytes_read / PAGE_SIZE as u64),
            self.seconds,
        )
    }
}

fn row(name: &str, sharing: &VmSharing) -> [String; 6] {
    let VmSharing { pages, zero, unique, within, across } = *sharing;
    [name.to_owned(), mib(pages), mib(zero), mib(unique), mib(within), mib(across)]
}

fn mib(pages: u64) -> String {
    format!("{:.1}", pages as f64 * PAGE_SIZE as f64 / (1024.0 * 1024.0))
}

#[cfg(test)]
mod tests {
    use std::io;

    use vmscatter_core::index::{Contents, PageSpace, Records, RunBuilder};
    use vmscatter_core::page::{Mac, PageAddr};

    use super::*;

    /// Two VMs that share one content, one of them with a repeat of its own, and a VM that could not be read.
    fn report() -> ScanReport {
        let space = PageSpace::new(&[vec![(0, 1_028)], vec![(0, 257)], vec![(0, 512)]]).unwrap();
        let mut builder = RunBuilder::new();
        for (vm, page, content) in [(0, 0, 1), (0, 1, 2), (0, 2, 2), (0, 3, 3), (1, 0, 1)] {
            let number = space.number(PageAddr { vm, block: 0, page }).unwrap();
            assert!(builder.push(Mac([content; 16]), number).is_none());
        }
        let contents = Contents::from_records(space, Records::new(builder.finish().into_iter().collect()));
        let vm = |pages, zero| CollectedVm { pages: VmPages { pages, zero }, error: None };
        let unread = CollectedVm { error: Some(io::Error::other("it is gone")), ..vm(512, 0) };
        let collected = Collected { contents, vms: vec![vm(1_028, 1_024), vm(257, 256), unread] };
        ScanReport::new(&["web", "db", "mail"], &collected, 20_480, Duration::from_millis(1_500))
    }

    #[test]
    fn json_has_counts_per_vm_and_in_all() {
        let json = serde_json::to_value(report()).unwrap();
        let web = serde_json::json!({
            "name": "web", "pages": 1_028, "zero": 1_024, "unique": 1, "within": 2, "across": 1, "error": null
        });
        assert_eq!(json["vms"][0], web);
        assert_eq!(json["vms"][2]["error"], "it is gone");
        assert_eq!(json["total"]["pages"], 1_285);
        assert_eq!(json["distinct_nonzero_bytes"], 3 * PAGE_SIZE);
        assert_eq!((&json["contents_within"], &json["contents_across"]), (&1.into(), &1.into()));
    }

    #[test]
    fn the_table_has_a_line_for_each_vm() {
        let table = report().table();
        let cells = |name: &str| -> Vec<String> {
            let line = table.lines().find(|line| line.trim_start().starts_with(name)).expect("a line for it");
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(cells("db"), ["db", "1.0", "1.0", "0.0", "0.0", "0.0"]);
        assert_eq!(cells("all")[..3], ["all", "5.0", "5.0"]);
        assert!(table.contains("40.0 % of the pages that are not zero repeat another"));
        assert!(table.ends_with("Read 0.0 MiB in 1.50 s.\nmail could not be read: it is gone\n"));
    }
}
