//! The results as a table.

use std::fmt::Write;

use comfy_table::{Table, presets};

use super::scenario::Run;

pub(super) fn table(runs: &[Run]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "scenario",
        "Mbit/s",
        "seconds of each",
        "beyond payload",
        "forced",
        "repairs by parity + multicast + TCP",
        "source CPU s/GB",
        "receiver CPU s/GB",
        "kernel drops",
        "qdisc drops",
    ]);
    for run in runs {
        let source = &run.source;
        let gigabytes = run.bytes as f64 / 1e9;
        let list = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>().join(" ");
        table.add_row([
            format!("{:?}", run.scenario),
            format!("{:.0}", run.bytes as f64 * 8.0 / source.seconds / 1e6),
            list(
                &mut source
                    .target_seconds
                    .iter()
                    .map(|seconds| seconds.map_or("left".into(), |seconds| format!("{seconds:.2}"))),
            ),
            format!("{:.2} %", 100.0 * source.sent_again()),
            format!("{:.2} %", 100.0 * source.share(source.losses)),
            format!("{} + {} + {}", source.parity_pieces, source.multicast_repairs, source.unicast_repairs),
            format!("{:.2}", source.cpu_seconds / gigabytes),
            list(&mut run.targets.iter().map(|target| format!("{:.2}", target.cpu_seconds / gigabytes))),
            list(&mut run.targets.iter().map(|target| target.kernel_drops.to_string())),
            list(&mut run.dropped.iter().map(u64::to_string)),
        ]);
    }
    let mut text = format!("{table}\n");
    for run in runs {
        if let Some((alone, beside)) = run.tcp {
            let mbit = |rate: f64| rate * 8.0 / 1e6;
            let (alone, beside, share) = (mbit(alone), mbit(beside), 100.0 * beside / alone);
            writeln!(text, "TCP: {alone:.0} Mbit/s alone, {beside:.0} beside the multicast: {share:.0} %")
                .unwrap();
        }
        for (target, why) in &run.source.expelled {
            writeln!(text, "{:?}: receiver {target} left the scatter: {why}", run.scenario).unwrap();
        }
        for (number, target) in
            run.targets.iter().enumerate().filter(|(_, target)| target.good_bytes != run.bytes)
        {
            let (good, wrong) = (target.good_bytes, target.wrong_frames);
            writeln!(text, "{:?}: receiver {number} got {good} bytes, {wrong} frames wrong", run.scenario)
                .unwrap();
        }
    }
    text
}
