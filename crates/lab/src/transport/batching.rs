//! What a core does: one source and one receiver on links without a limit, with the kernel's segmentation offload and without it.

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};

use super::process::{run_peers, task};
use crate::host::Lab;
use crate::progress::Progress;

/// Runs of each; the median of their rates is shown.
const RUNS: usize = 3;

/// A run's figures.
struct Figures {
    seconds: f64,
    /// CPU seconds of source and receiver, system time included.
    cpu: [f64; 2],
    /// Pieces sent again, of those sent once.
    again: f64,
    kernel_drops: u64,
}

/// Sends `bytes` each time and prints a table; fails if something did not arrive as it was sent.
pub fn run(bytes: u64) -> Result<()> {
    let lab = Lab::new(1, "1gbit")?;
    let progress = Progress::default();
    for host in lab.hosts() {
        lab.network.unshape(&host.link)?;
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let header = ["tx-udp-segmentation", "Gbit/s", "source, Gbit/s per core", "receiver, Gbit/s per core"];
    table.set_header(header.into_iter().chain(["beyond payload", "kernel drops"]));
    for offload in [true, false] {
        let word = if offload { "on" } else { "off" };
        progress.step(&format!("tx-udp-segmentation {word}"));
        lab.network.set_udp_segmentation(&lab.source.link, offload).context("ethtool")?;
        let mut runs = (0..RUNS).map(|_| one(&lab, bytes)).collect::<Result<Vec<_>>>()?;
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let Figures { seconds, cpu: [source, receiver], again, kernel_drops } = &runs[RUNS / 2];
        let rate = |seconds: f64| format!("{:.2}", bytes as f64 * 8.0 / seconds / 1e9);
        let again = format!("{:.2} %", 100.0 * again);
        let cells = [rate(*seconds), rate(*source), rate(*receiver), again, kernel_drops.to_string()];
        table.add_row([word.to_owned()].into_iter().chain(cells));
    }
    progress.finish();
    println!("{table}");
    Ok(())
}

fn one(lab: &Lab, bytes: u64) -> Result<Figures> {
    let (source, targets) = run_peers(lab, &task(lab, 1, bytes), || Ok(()))?;
    let target = &targets[0];
    ensure!(target.good_bytes == bytes && target.wrong_frames == 0, "not all arrived as it was sent");
    Ok(Figures {
        seconds: source.seconds,
        cpu: [source.cpu_seconds, target.cpu_seconds],
        again: source.sent_again(),
        kernel_drops: target.kernel_drops,
    })
}
