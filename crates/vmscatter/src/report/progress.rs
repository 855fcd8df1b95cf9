//! A job under way: bars on a terminal, plain lines elsewhere, nothing beside JSON. All of it on standard error.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{BinaryBytes, DecimalBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::event::{JobEvent, Phase, Progress};
use super::outcome::{GuestOutcome, GuestStatus};
use crate::agent::input::one_line;

/// Guests with a bar of their own; more would not fit on a terminal, and are counted in the overall line.
const GUEST_BARS_MAX: usize = 16;

/// Shows a job's events; [`JobEvent::Done`] is for [`super::summary`].
pub struct ProgressView {
    kind: Kind,
    begun: Instant,
}

enum Kind {
    Quiet,
    Plain,
    Bars(Box<Bars>),
}

struct Bars {
    multi: MultiProgress,
    overall: ProgressBar,
    phase: Option<Phase>,
    guests: BTreeMap<String, GuestBar>,
    /// Guests that have ended, and whether they have moved: the last that was said of each.
    ended: BTreeMap<String, bool>,
}

struct GuestBar {
    bar: ProgressBar,
    phase: Option<Phase>,
}

impl ProgressView {
    /// Shows warnings only.
    pub fn quiet() -> ProgressView {
        ProgressView { kind: Kind::Quiet, begun: Instant::now() }
    }

    /// Bars if standard error is a terminal, else plain lines.
    pub fn for_stderr() -> ProgressView {
        let kind =
            if std::io::stderr().is_terminal() { Kind::Bars(Box::new(Bars::new())) } else { Kind::Plain };
        ProgressView { kind, begun: Instant::now() }
    }

    /// The job's number.
    pub fn started(&mut self, job: u64) {
        if !matches!(self.kind, Kind::Quiet) {
            self.line(&format!("job {job}"));
        }
    }

    /// One line, above the bars where there are any.
    pub fn line(&mut self, text: &str) {
        let text = one_line(text);
        match &self.kind {
            Kind::Bars(bars) => bars.multi.suspend(|| write_line(&text)),
            Kind::Quiet => write_line(&text),
            Kind::Plain => write_line(&format!("[{:7.2} s] {text}", self.begun.elapsed().as_secs_f64())),
        }
    }

    /// Shows an event.
    pub fn event(&mut self, event: &JobEvent) {
        match event {
            JobEvent::Warning { guest: Some(guest), text } => self.line(&format!("warning: {guest}: {text}")),
            JobEvent::Warning { guest: None, text } => self.line(&format!("warning: {text}")),
            _ => match &mut self.kind {
                Kind::Quiet => {}
                Kind::Plain => {
                    if let Some(text) = plain(event) {
                        self.line(&text);
                    }
                }
                Kind::Bars(bars) => {
                    bars.event(event);
                    if let JobEvent::Guest(outcome) = event {
                        self.line(&guest_line(outcome));
                    }
                }
            },
        }
    }

    /// Takes the bars away.
    pub fn finish(&mut self) {
        if let Kind::Bars(bars) = &self.kind {
            let _ = bars.multi.clear();
        }
    }
}

/// Standard error may be gone, which must not end a view that still has an outcome to print.
fn write_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What an event is as a plain line; counters are not.
fn plain(event: &JobEvent) -> Option<String> {
    match event {
        JobEvent::Phase { guest: Some(guest), phase } => Some(format!("{guest}: {phase}")),
        JobEvent::Phase { guest: None, phase } => Some(phase.to_string()),
        JobEvent::Guest(outcome) => Some(guest_line(outcome)),
        JobEvent::Progress(_) | JobEvent::Warning { .. } | JobEvent::Done { .. } => None,
    }
}

fn guest_line(outcome: &GuestOutcome) -> String {
    let mut text = format!("{}: {}", outcome.name, outcome.status.name());
    if outcome.status.moved() {
        text.push_str(&format!(" at {}", outcome.target.as_deref().unwrap_or("its target")));
        if let Some(ms) = outcome.downtime_ms {
            text.push_str(&format!(", downtime {ms:.0} ms"));
        }
        if let Some(percent) = outcome.throttled_percent {
            text.push_str(&format!(", throttled by up to {percent} %"));
        }
        text.push_str(if outcome.verified { ", verified" } else { ", NOT VERIFIED" });
    } else {
        let stays = if outcome.status == GuestStatus::InDoubt { "" } else { " stays:" };
        text.push_str(&format!(",{stays} {}", outcome.reason.as_deref().unwrap_or("no reason was given")));
    }
    text
}

impl Bars {
    fn new() -> Bars {
        let multi = MultiProgress::new();
        let overall = multi.add(ProgressBar::new(1).with_style(style()));
        overall.set_prefix("all");
        overall.enable_steady_tick(std::time::Duration::from_millis(250));
        Bars { multi, overall, phase: None, guests: BTreeMap::new(), ended: BTreeMap::new() }
    }

    fn event(&mut self, event: &JobEvent) {
        match event {
            JobEvent::Phase { guest: Some(guest), phase } => {
                if let Some(guest) = self.guest(guest) {
                    guest.phase = Some(*phase);
                    guest.bar.set_message(phase.to_string());
                }
            }
            JobEvent::Phase { guest: None, phase } => {
                self.phase = Some(*phase);
                self.overall.set_message(self.overall_text(None));
            }
            JobEvent::Progress(progress) => self.progress(progress),
            JobEvent::Guest(outcome) => {
                if let Some(guest) = self.guests.remove(&outcome.name) {
                    self.multi.remove(&guest.bar);
                }
                self.ended.insert(outcome.name.clone(), outcome.status.moved());
            }
            JobEvent::Warning { .. } | JobEvent::Done { .. } => {}
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let (bar, text) = match &progress.guest {
            None => (self.overall.clone(), self.overall_text(Some(progress))),
            Some(name) => {
                let Some(guest) = self.guest(name) else { return };
                let phase = guest.phase.map(Phase::name).unwrap_or_default();
                (guest.bar.clone(), format!("{phase:<8} {}", counters(progress)))
            }
        };
        // A length of zero would show as done.
        bar.set_length(progress.total_bytes.max(1));
        bar.set_position(progress.done_bytes.min(progress.total_bytes));
        bar.set_message(text);
    }

    fn guest(&mut self, name: &str) -> Option<&mut GuestBar> {
        if !self.guests.contains_key(name) {
            if self.guests.len() >= GUEST_BARS_MAX {
                return None;
            }
            let bar = ProgressBar::new(1).with_style(style());
            let bar = self.multi.insert_before(&self.overall, bar);
            bar.set_prefix(one_line(name));
            self.guests.insert(name.to_owned(), GuestBar { bar, phase: None });
        }
        self.guests.get_mut(name)
    }

    fn overall_text(&self, progress: Option<&Progress>) -> String {
        let phase = self.phase.map(Phase::name).unwrap_or_default();
        let mut text = format!("{phase:<8}");
        if let Some(progress) = progress {
            text.push_str(&format!(" {}", counters(progress)));
        }
        if !self.ended.is_empty() {
            let moved = self.ended.values().filter(|moved| **moved).count();
            text.push_str(&format!(", {moved} moved, {} stayed", self.ended.len() - moved));
        }
        text
    }
}

fn counters(progress: &Progress) -> String {
    let sent = progress.unicast_bytes.saturating_add(progress.multicast_bytes);
    format!("withheld {}, sent {}", BinaryBytes(progress.withheld_bytes), DecimalBytes(sent))
}

const STYLE: &str = "{prefix:>16} [{bar:24}] {percent:>3} %  {wide_msg}";

fn style() -> ProgressStyle {
    // STYLE is a constant whose form a test checks.
    ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::guest;
    use super::*;

    #[test]
    fn plain_lines_are_one_per_phase_and_guest() {
        let phase =
            |guest: Option<&str>| JobEvent::Phase { guest: guest.map(str::to_owned), phase: Phase::HandOff };
        assert_eq!(plain(&phase(None)).unwrap(), "hand off");
        assert_eq!(plain(&phase(Some("vm1"))).unwrap(), "vm1: hand off");
        assert_eq!(plain(&JobEvent::Progress(Progress::default())), None);
        let moved = plain(&JobEvent::Guest(guest("vm1", GuestStatus::Running))).unwrap();
        assert_eq!(moved, "vm1: running at t1, downtime 12 ms, verified");
        let throttled = GuestOutcome { throttled_percent: Some(70), ..guest("vm1", GuestStatus::Running) };
        let line = plain(&JobEvent::Guest(throttled)).unwrap();
        assert_eq!(line, "vm1: running at t1, downtime 12 ms, throttled by up to 70 %, verified");
        let stayed = plain(&JobEvent::Guest(guest("vm1", GuestStatus::Failed))).unwrap();
        assert_eq!(stayed, "vm1: failed, stays: because");
    }

    #[test]
    fn bars_come_and_go_with_their_guests_and_are_bounded() {
        let mut bars = Bars::new();
        bars.multi.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        for n in 0..GUEST_BARS_MAX + 4 {
            bars.event(&JobEvent::Phase { guest: Some(format!("vm{n}")), phase: Phase::Stream });
        }
        assert_eq!(bars.guests.len(), GUEST_BARS_MAX);
        let progress =
            Progress { guest: Some("vm0".into()), total_bytes: 100, done_bytes: 40, ..Progress::default() };
        bars.event(&JobEvent::Progress(progress));
        let bar = &bars.guests["vm0"].bar;
        assert_eq!((bar.position(), bar.length()), (40, Some(100)));
        assert!(bar.message().starts_with("stream "), "{}", bar.message());
        bars.event(&JobEvent::Guest(guest("vm0", GuestStatus::Running)));
        bars.event(&JobEvent::Guest(guest("vm1", GuestStatus::Failed)));
        bars.event(&JobEvent::Guest(guest("vm2", GuestStatus::InDoubt)));
        bars.event(&JobEvent::Guest(guest("vm2", GuestStatus::Running)));
        assert_eq!(bars.guests.len(), GUEST_BARS_MAX - 3);
        assert!(bars.overall_text(None).ends_with(", 2 moved, 1 stayed"), "{}", bars.overall_text(None));
        assert!(ProgressStyle::with_template(STYLE).is_ok());
    }
}
