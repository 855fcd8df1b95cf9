//! A plan as text.

use indicatif::{BinaryBytes, DecimalBytes};

use super::{Alternative, Plan, PlanClass, PlanOutcome, Prediction, RateOrigin, TopologyReport};
use crate::report::summary::{pages, table};

/// A plan as it is printed; empty where there is none.
pub fn text(outcome: &PlanOutcome) -> String {
    let Some(plan) = &outcome.plan else { return String::new() };
    let mut text = head(plan);
    text.push_str(&classes(plan));
    text.push_str(&targets(plan));
    text.push_str(&placement(plan));
    text.push_str(&cost(plan));
    text.push_str(&alternatives(plan));
    if let Some(report) = &plan.topology {
        text.push_str(&topology(report));
    }
    text
}

fn head(plan: &Plan) -> String {
    let memory = plan.guests.iter().map(|guest| guest.memory_bytes).sum();
    let sources: Vec<&str> = plan.sources.iter().map(|source| source.name.as_str()).collect();
    format!(
        "{} guests, {}, from {} to {} targets; nothing was moved\n\n",
        plan.guests.len(),
        BinaryBytes(memory),
        sources.join(", "),
        plan.targets.len(),
    )
}

fn classes(plan: &Plan) -> String {
    let mut table = table(&["pages", "contents", "memory", ""], 1..3);
    let mut row = |name: &str, class: PlanClass, note: &str| {
        table.add_row([name, &class.contents.to_string(), &pages(class.pages), note]);
    };
    let classes = &plan.classes;
    row("zero", classes.zero, "");
    row("unique", classes.unique, "by the guests' own streams");
    row("ISVST", classes.isvst, "repeats within a guest");
    row("IMVST", classes.imvst, "shared by guests with one target");
    row("IMVMT", classes.imvmt, "shared across targets: by multicast");
    let mut text =
        format!("{table}\n{}distinct contents: {}\n", about(plan), BinaryBytes(plan.distinct_nonzero_bytes));
    if let Some(between) = &plan.between_hosts {
        text.push_str(&format!(
            "{} contents stand on several hosts; each host sends its own, {} more than if one sent for all\n",
            between.contents,
            BinaryBytes(between.repeated_bytes)
        ));
    }
    text.push('\n');
    text
}

fn about(plan: &Plan) -> &'static str {
    if plan.sampled { "estimates from a sample of the contents; " } else { "" }
}

fn targets(plan: &Plan) -> String {
    let mut table = table(&["target", "memory", "free after", "receives", "guests"], 1..4);
    for target in &plan.targets {
        table.add_row([
            target.name.clone(),
            BinaryBytes(target.memory_bytes).to_string(),
            target.free_bytes.map_or_else(|| "-".into(), |bytes| BinaryBytes(bytes).to_string()),
            DecimalBytes(target.received_bytes).to_string(),
            target.guests.join(" "),
        ]);
    }
    format!("{table}\n")
}

fn placement(plan: &Plan) -> String {
    let placement = &plan.placement;
    let how_good = match placement.cost == placement.bound {
        true => "none is better".to_owned(),
        false => format!(
            "none is below {}, so this is at most {:.1} % above the best",
            placement.bound,
            placement.gap_percent()
        ),
    };
    format!(
        "placement: {} ({} ms): {} contents over all {}; {how_good}\n\n",
        placement.method,
        placement.time_ms,
        placement.cost,
        if plan.topology.is_some() { "links, times what a link costs" } else { "targets" },
    )
}

fn cost(plan: &Plan) -> String {
    let (ours, theirs) = (&plan.predicted, &plan.off_the_shelf);
    let mut table = table(&["predicted", "off the shelf", "vmscatter", ""], 1..4);
    let mut row = |name: &str, before: f64, after: f64, show: fn(f64) -> String| {
        let change =
            if before > 0.0 { format!("{:+.1} %", 100.0 * (after / before - 1.0)) } else { String::new() };
        table.add_row([name.to_owned(), show(before), show(after), change]);
    };
    let bytes = |bytes: f64| DecimalBytes(bytes as u64).to_string();
    let seconds = |seconds: f64| format!("{seconds:.1} s");
    row("transferred", theirs.transferred_bytes as f64, ours.transferred_bytes as f64, bytes);
    row("network traffic", theirs.traffic_bytes as f64, ours.traffic_bytes as f64, bytes);
    row("time", theirs.time_s, ours.time_s, seconds);
    for source in plan.sources.iter().filter(|_| plan.sources.len() > 1) {
        let (ours, theirs) = (&source.predicted, &source.off_the_shelf);
        let name = |what: &str| format!("{what} of {}", source.name);
        row(&name("transferred"), theirs.transferred_bytes as f64, ours.transferred_bytes as f64, bytes);
        row(&name("time"), theirs.time_s, ours.time_s, seconds);
    }
    let mut text = format!("{table}\n{}", rate(plan));
    let [shared, unique] = plan.compressed;
    if shared < 1.0 || unique < 1.0 {
        text.push_str(&format!(
            "compressed to {:.1} % (shared contents) and {:.1} % (unique pages) in a sample of this memory\n",
            100.0 * shared,
            100.0 * unique
        ));
    }
    let times = &ours.times;
    text.push_str(&format!(
        "time: connect {:.2} s, collect {:.2}, place {:.2}, prepare {:.2}, open {:.2}, scatter {:.2}, streams {:.2}, \
         hand off {:.2}\n",
        times.connect_s,
        times.collect_s,
        times.place_s,
        times.prepare_s,
        times.open_s,
        times.scatter_s,
        times.streams_s,
        times.hand_off_s
    ));
    if plan.sources.len() > 1 {
        text.push_str("times of several hosts: one after the other\n");
    }
    text.push_str(&format!("multicast to {} target sets\n\n", plan.target_sets));
    text
}

fn rate(plan: &Plan) -> String {
    let origin = match plan.rate.origin {
        RateOrigin::Given => "given",
        RateOrigin::Measured => "measured by the last migrations from here",
        RateOrigin::Assumed => {
            "assumed: no migration from here has measured it, and --bandwidth was not given"
        }
    };
    let hosts = match plan.rate.hosts_measured_unix_s {
        Some(_) => "set-up and the hosts' own speed as in the last migration from here",
        None => "set-up as in the lab, and no host slower than the link",
    };
    format!("link: {:.0} Mbit/s, {origin}; {hosts}\n", plan.rate.bits_per_s / 1e6)
}

fn alternatives(plan: &Plan) -> String {
    let mut text = String::new();
    if let Some(less) = &plan.one_less {
        let without = less.without.as_deref().unwrap_or("one");
        text.push_str(&format!("one target less (without {without}): {}\n", change(&plan.predicted, less)));
    }
    if let Some(more) = &plan.one_more {
        let effect = match more.guests {
            0 => "would stay empty: an even spread needs no more".to_owned(),
            _ => change(&plan.predicted, more),
        };
        text.push_str(&format!("one target more: {effect}\n"));
    }
    text
}

fn change(now: &Prediction, other: &Alternative) -> String {
    let bytes = |now: u64, then: u64| {
        let sign = if then < now { "-" } else { "+" };
        format!("{sign}{}", DecimalBytes(now.abs_diff(then)))
    };
    let then = &other.predicted;
    format!(
        "transferred {}, network traffic {}, time {:+.1} s",
        bytes(now.transferred_bytes, then.transferred_bytes),
        bytes(now.traffic_bytes, then.traffic_bytes),
        then.time_s - now.time_s
    )
}

fn topology(report: &TopologyReport) -> String {
    let mut table = table(&["tier", "off the shelf", "unicast", "multicast"], 1..4);
    let bytes = |bytes: u64| DecimalBytes(bytes).to_string();
    for tier in &report.tiers {
        table.add_row([
            tier.tier.clone(),
            bytes(tier.off_the_shelf),
            bytes(tier.unicast),
            bytes(tier.multicast),
        ]);
    }
    let mut text =
        format!("\npages over the network's links (unicast: each content once to each target)\n{table}\n");
    let busiest = [
        ("off the shelf", &report.busiest_off_the_shelf),
        ("unicast", &report.busiest_unicast),
        ("multicast", &report.busiest_multicast),
    ];
    for (way, link) in busiest {
        if let Some((link, seconds)) = link {
            text.push_str(&format!("busiest link, {way}: {link}, {seconds:.1} s\n"));
        }
    }
    text
}
