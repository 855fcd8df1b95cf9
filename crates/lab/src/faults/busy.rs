//! The first guest dirties its memory faster than its stream can carry it; the others do not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, Ended};
use super::scenarios::all_moved;

/// What the first guest rewrites: 8 MiB, some three times a second.
pub(super) const DIRTY_KIB_PER_S: u32 = 24 * 1024;
/// A stream gets half of it: 3 MB/s.
const NARROW: [&str; 2] = ["--bandwidth", "50mbit"];
/// The others have left, and the first one has been given up, whatever is allowed to it.
const END: Duration = Duration::from_secs(200);
const DEADLINE_S: u64 = 12;

/// The reason why a guest stayed.
fn reason<'a>(ended: &'a Ended, name: &str) -> Result<&'a str> {
    let start = format!("{name}: failed, stays: ");
    let line = ended.line(&start)?;
    Ok(line.split_once(&start).map_or(line, |(_, reason)| reason))
}

/// MB/s that the guest dirties, as a reason says it.
fn dirtied(reason: &str) -> Result<f64> {
    let rate = reason.split_once("it dirties ").and_then(|(_, rest)| rest.split_once(" MB/s"));
    let rate = rate.with_context(|| format!("no rate in {reason:?}"))?;
    Ok(rate.0.parse()?)
}

/// Twice given up and left running: at a deadline that comes before the throttle helps, and without any option. Then it is
/// throttled, and leaves.
pub(super) fn gives_up_or_throttles(bench: &mut Bench<'_>) -> Result<()> {
    let deadline = format!("{DEADLINE_S}s");
    let options = [&NARROW[..], &["--auto-converge", "--deadline", &deadline]].concat();
    let mut running = bench.migrate_some(&[0], &options)?;
    running.wait_for("vm1: stream", END)?;
    let streaming = Instant::now();
    let ended = running.end(END)?;
    let took = streaming.elapsed().as_secs_f64();
    ended.exited(&[1])?;
    let text = reason(&ended, "vm1")?;
    ensure!(text.contains(&format!("within {DEADLINE_S} s (--deadline)")), "{text}");
    ensure!(took < DEADLINE_S as f64 + 2.0, "the deadline took {took:.1} s");
    bench.stayed(&ended, 0)?;
    println!("  deadline of {DEADLINE_S} s: given up after {took:.1} s: {text}");

    let since = Instant::now();
    let ended = bench.migrate(&NARROW)?.end(END)?;
    let took = since.elapsed().as_secs_f64();
    ended.exited(&[3])?;
    let text = reason(&ended, "vm1")?;
    ensure!(text.starts_with("does not converge"), "{text}");
    let (rate, really) = (dirtied(text)?, f64::from(DIRTY_KIB_PER_S) * 1024.0 / 1e6);
    ensure!(rate > 1.0 && rate < 2.0 * really, "it dirties {rate} MB/s, and not {really}");
    bench.stayed(&ended, 0)?;
    bench.moved(&ended, 1)?;
    bench.moved(&ended, 2)?;
    println!("  no option: over after {took:.1} s: {text}");

    let ended = bench.migrate_some(&[0], &[&NARROW[..], &["--auto-converge"]].concat())?.end(END)?;
    ended.exited(&[0])?;
    bench.moved(&ended, 0)?;
    let line = ended.line("vm1: running")?;
    ensure!(line.contains("throttled by up to "), "{line}");
    println!("  {}", line.trim());
    Ok(())
}

/// It may stand for as long as its rewritten area takes, and does not stand for longer.
pub(super) fn may_stand(bench: &mut Bench<'_>) -> Result<()> {
    let ended = bench.migrate(&[&NARROW[..], &["--max-downtime", "6s"]].concat())?.end(END)?;
    all_moved(bench, &ended)?;
    let line = ended.line("vm1: running")?;
    let downtime = line.split_once("downtime ").and_then(|(_, rest)| rest.split_once(" ms"));
    let downtime: f64 = downtime.with_context(|| line.to_owned())?.0.parse()?;
    ensure!(downtime > 300.0 && downtime < 6_000.0, "it stood for {downtime} ms");
    println!("  {}", line.trim());
    Ok(())
}
