//! A job that has ended, and an agent's status, as tables.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table};
use indicatif::{BinaryBytes, DecimalBytes};

use super::outcome::{GuestOutcome, GuestStatus, MigrateOutcome, ScanGuest, ScanOutcome};
use crate::agent::input::one_line;
use crate::agent::protocol::{AgentStatus, JobKind, JobState, RecoveredVm, UnfinishedStatus};
use crate::clock::since_epoch;

const PAGE_BYTES: u64 = vmscatter_core::page::PAGE_SIZE as u64;

/// A migration: a row per guest, and the totals. Empty if the job ended before it had guests.
pub fn migrate(outcome: &MigrateOutcome) -> String {
    if outcome.guests.is_empty() {
        return String::new();
    }
    let mut table =
        table(&["guest", "target", "status", "downtime", "withheld", "sent", "zero", "verified"], 3..7);
    for guest in &outcome.guests {
        table.add_row(guest_row(guest));
    }
    let mut text = format!("{table}\n");
    for guest in outcome.guests.iter().filter(|g| !g.status.moved()) {
        let reason = guest.reason.as_deref().unwrap_or("no reason was given");
        let what = if guest.status == GuestStatus::InDoubt { "in doubt" } else { "stays at the source" };
        text.push_str(&format!("{}: {what}: {}\n", guest.name, one_line(reason)));
    }
    text.push_str(&totals(outcome));
    text
}

fn guest_row(guest: &GuestOutcome) -> Vec<String> {
    vec![
        guest.name.clone(),
        guest.target.clone().unwrap_or_else(|| "-".into()),
        guest.status.name().into(),
        guest.downtime_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.0} ms")),
        pages(guest.pages.withheld),
        pages(guest.pages.sent),
        pages(guest.pages.zero),
        match (guest.status.moved(), guest.verified) {
            (_, true) => "yes".into(),
            (true, false) => "NO".into(),
            (false, false) => "-".into(),
        },
    ]
}

fn totals(outcome: &MigrateOutcome) -> String {
    let moved = outcome.guests.iter().filter(|g| g.status.moved()).count();
    let sum = |count: fn(&GuestOutcome) -> u64| outcome.guests.iter().map(count).fold(0, u64::saturating_add);
    let scatter = &outcome.scatter;
    let mut text = format!(
        "{moved} of {} guests moved in {:.2} s; pages withheld {}, sent {}\n",
        outcome.guests.len(),
        outcome.total_time_s,
        pages(sum(|g| g.pages.withheld)),
        pages(sum(|g| g.pages.sent)),
    );
    let relayed = match scatter.relay_bytes {
        0 => String::new(),
        bytes => format!(", passed on by targets {}", DecimalBytes(bytes)),
    };
    text.push_str(&format!(
        "multicast {} (repair {}){relayed} for {} contents at {} addresses in {} sets; unicast {}\n",
        DecimalBytes(scatter.multicast_bytes),
        DecimalBytes(scatter.repair_bytes),
        scatter.contents,
        scatter.addresses,
        scatter.sets,
        DecimalBytes(sum(|g| g.unicast_bytes).saturating_add(scatter.unicast_bytes)),
    ));
    if let Some(placement) = &outcome.placement {
        text.push_str(&format!(
            "placement {}: {} contents over all targets or links, at most {:.1} % above the best\n",
            placement.method,
            placement.cost,
            placement.gap_percent()
        ));
    }
    let downtimes: Vec<f64> = outcome.guests.iter().filter_map(|g| g.downtime_ms).collect();
    if !downtimes.is_empty() {
        let min = downtimes.iter().copied().fold(f64::INFINITY, f64::min);
        let max = downtimes.iter().copied().fold(0.0, f64::max);
        let avg = downtimes.iter().sum::<f64>() / downtimes.len() as f64;
        text.push_str(&format!("downtime min {min:.0} ms, avg {avg:.0} ms, max {max:.0} ms\n"));
    }
    text
}

/// A scan: a row per guest, and their sum.
pub fn scan(outcome: &ScanOutcome) -> String {
    if outcome.guests.is_empty() {
        return String::new();
    }
    let mut table = table(&["guest", "memory", "zero", "unique", "repeats within", "shared across"], 1..6);
    for guest in &outcome.guests {
        table.add_row(scan_row(&guest.name, guest));
    }
    table.add_row(scan_row("all", &outcome.total));
    let seconds = outcome.collect_time_s.max(1e-9);
    let mut text = format!(
        "{table}\ndistinct non-zero contents: {}\nread {} in {:.2} s, {}/s\n",
        BinaryBytes(outcome.distinct_nonzero_bytes),
        BinaryBytes(outcome.read_bytes),
        outcome.collect_time_s,
        DecimalBytes((outcome.read_bytes as f64 / seconds) as u64),
    );
    if let Some(saved) = &outcome.fingerprints {
        let of_all = if saved.one_in == 1 { "all".into() } else { format!("one in {}", saved.one_in) };
        text.push_str(&format!(
            "saved {} fingerprints, {of_all}, in {}\n",
            saved.contents,
            BinaryBytes(saved.bytes)
        ));
    }
    text
}

fn scan_row(name: &str, guest: &ScanGuest) -> Vec<String> {
    let share = |count: u64| {
        let percent = if guest.pages == 0 { 0.0 } else { 100.0 * count as f64 / guest.pages as f64 };
        format!("{} ({percent:.1} %)", pages(count))
    };
    vec![
        name.to_owned(),
        pages(guest.pages),
        share(guest.zero_pages),
        share(guest.unique_pages),
        share(guest.within_pages),
        share(guest.across_pages),
    ]
}

/// What an agent does.
pub fn status(status: &AgentStatus) -> String {
    let mut text = format!(
        "{} (vmscatter {}), control {}, data {}, memory for guests {}\n",
        status.name,
        status.version,
        status.listen,
        status.data_listen,
        BinaryBytes(status.free_memory_bytes),
    );
    if !status.jobs.is_empty() {
        let mut jobs = table(&["job", "kind", "state", "age", "guests"], 0..0);
        for job in &status.jobs {
            let kind = match job.kind {
                JobKind::Migrate => "migrate",
                JobKind::Plan => "plan",
                JobKind::Scan => "scan",
                JobKind::Doctor => "doctor",
            };
            let state = match (job.state, job.exit) {
                (_, Some(exit)) => format!("ended with {}", exit.code()),
                (JobState::Cancelling, None) => "cancelling".into(),
                _ => "running".into(),
            };
            jobs.add_row([
                job.job.to_string(),
                kind.into(),
                state,
                format!("{} s", job.age_s),
                job.guests.join(" "),
            ]);
        }
        text.push_str(&format!("{jobs}\n"));
    }
    if !status.incoming.is_empty() {
        let mut incoming = table(&["guests come from", "address", "session"], 0..0);
        for session in &status.incoming {
            incoming.add_row([session.source.clone(), session.addr.to_string(), session.session.clone()]);
        }
        text.push_str(&format!("{incoming}\n"));
    }
    if !status.unfinished.is_empty() {
        text.push_str(&unfinished(&status.unfinished));
    }
    text
}

/// Guests without an end: what stands in the way of each.
fn unfinished(guests: &[UnfinishedStatus]) -> String {
    let now = since_epoch().as_millis() as u64;
    let mut rows = table(&["unfinished", "way", "step", "since"], 0..0);
    for guest in guests {
        let way = if guest.at_source { "to" } else { "from" };
        let age_s = now.saturating_sub(guest.since_unix_ms) / 1000;
        let row =
            [guest.guest.clone(), format!("{way} {}", guest.peer), guest.step.clone(), format!("{age_s} s")];
        rows.add_row(row);
    }
    let mut text = format!("{rows}\n");
    for guest in guests {
        let what = if guest.needs_operator { "needs a decision" } else { "waits" };
        text.push_str(&format!("{}: {what}: {}\n", guest.guest, one_line(&guest.note)));
    }
    text
}

/// What came of unfinished guests.
pub fn recovered(vms: &[RecoveredVm]) -> String {
    let mut text = String::new();
    for vm in vms {
        for done in &vm.done {
            text.push_str(&format!("{}: {}\n", vm.guest, one_line(done)));
        }
        match &vm.missing {
            Some(missing) => text.push_str(&format!("{}: unfinished: {}\n", vm.guest, one_line(missing))),
            None if vm.done.is_empty() => text.push_str(&format!("{}: its end was found\n", vm.guest)),
            None => {}
        }
    }
    if vms.is_empty() {
        text.push_str("nothing is unfinished\n");
    }
    text
}

/// An empty table whose columns `right` are numbers.
pub(super) fn table(header: &[&str], right: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    let style = NOTHING.header_separator(LineStyle::none().fill('-').junction('-'));
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Pages as memory.
pub(super) fn pages(count: u64) -> String {
    BinaryBytes(count.saturating_mul(PAGE_BYTES)).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::guest;
    use super::super::outcome::{GuestStatus, ScatterOutcome};
    use super::*;

    #[test]
    fn a_partial_migration_says_who_stays_and_why() {
        let guests = vec![guest("vm1", GuestStatus::Running), guest("vm2", GuestStatus::Failed)];
        let text = migrate(&MigrateOutcome::of_guests("s".into(), 2.0, guests, ScatterOutcome::default()));
        assert!(text.contains("vm2: stays at the source: because\n"), "{text}");
        assert!(text.contains("1 of 2 guests moved in 2.00 s"), "{text}");
        assert!(text.contains("downtime min 12 ms, avg 12 ms, max 12 ms"), "{text}");
    }

    #[test]
    fn an_unverified_guest_stands_out() {
        let mut moved = guest("vm1", GuestStatus::Running);
        moved.verified = false;
        let text =
            migrate(&MigrateOutcome::of_guests("s".into(), 2.0, vec![moved], ScatterOutcome::default()));
        assert!(text.contains(" NO "), "{text}");
    }

    #[test]
    fn a_scan_counts_in_memory_and_percent() {
        let row = ScanGuest { name: "vm1".into(), pages: 512, zero_pages: 256, ..ScanGuest::default() };
        let mut outcome = ScanOutcome::failed("");
        outcome.guests = vec![row.clone()];
        outcome.total = row;
        let text = scan(&outcome);
        assert!(text.contains("1.00 MiB (50.0 %)"), "{text}");
        assert_eq!(text.matches("2.00 MiB").count(), 2, "{text}");
        assert_eq!(scan(&ScanOutcome::failed("")), "");
    }
}
