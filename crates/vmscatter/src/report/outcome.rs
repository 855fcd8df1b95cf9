//! How a job ended: the documents that `--json` prints.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmscatter_core::placement::{Method, Solution};

/// Exit codes of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Exit {
    /// Everything that was asked for is done.
    Success,
    /// It failed, and no guest has moved.
    Failed,
    /// The input was wrong, and nothing has started.
    BadInput,
    /// Some guests have moved, and some have stayed.
    Partial,
    /// The agent can't be reached, or was lost.
    AgentUnreachable,
    /// It was cancelled, and no guest has moved.
    Cancelled,
}

impl Exit {
    /// What follows from what has become of a job's guests.
    pub fn of_guests(guests: &[GuestOutcome]) -> Exit {
        let moved = guests.iter().filter(|g| g.status.moved()).count();
        if moved == guests.len() {
            Exit::Success
        } else if moved > 0 {
            Exit::Partial
        } else if guests.iter().any(|g| g.status == GuestStatus::Cancelled) {
            Exit::Cancelled
        } else {
            Exit::Failed
        }
    }

    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::BadInput => 2,
            Exit::Partial => 3,
            Exit::AgentUnreachable => 4,
            Exit::Cancelled => 130,
        }
    }
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> u8 {
        exit.code()
    }
}

impl TryFrom<u8> for Exit {
    type Error = String;

    fn try_from(code: u8) -> Result<Exit, String> {
        use Exit::*;
        [Success, Failed, BadInput, Partial, AgentUnreachable, Cancelled]
            .into_iter()
            .find(|exit| exit.code() == code)
            .ok_or_else(|| format!("{code} is no exit code"))
    }
}

/// What became of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestStatus {
    /// It runs at its target.
    Running,
    /// It stands at its target, paused as it was before.
    Paused,
    /// It stayed at the source.
    Failed,
    /// It stayed at the source, as the job was cancelled.
    Cancelled,
    /// The target was lost at the hand-off: recovery finds its end.
    InDoubt,
}

impl GuestStatus {
    /// Whether the guest is its target's now.
    pub fn moved(self) -> bool {
        matches!(self, GuestStatus::Running | GuestStatus::Paused)
    }

    /// The name as it is shown and serialised.
    pub fn name(self) -> &'static str {
        match self {
            GuestStatus::Running => "running",
            GuestStatus::Paused => "paused",
            GuestStatus::Failed => "failed",
            GuestStatus::Cancelled => "cancelled",
            GuestStatus::InDoubt => "in_doubt",
        }
    }
}

/// PAGE and ZERO records of one guest's stream, all rounds together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PageCounts {
    /// Pages of the guest's RAM blocks.
    pub total: u64,
    /// PAGE records that were withheld.
    pub withheld: u64,
    /// PAGE records that were sent.
    pub sent: u64,
    /// ZERO records.
    pub zero: u64,
}

/// What became of one guest, and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestOutcome {
    /// Its name.
    pub name: String,
    /// Its UUID, in the usual form.
    pub uuid: String,
    /// The target's name; `None` if it never got one.
    pub target: Option<String>,
    /// What became of it.
    pub status: GuestStatus,
    /// The digests of both sides agreed.
    pub verified: bool,
    /// From STOP at the source to RESUME at the target, in milliseconds; `None` if it was not running, or has not moved.
    pub downtime_ms: Option<f64>,
    /// Of that, what the two journals took to have promises and decision on disk, in milliseconds; `None` if it has not moved.
    #[serde(default)]
    pub journal_ms: Option<f64>,
    /// Why it stayed, in one line.
    pub reason: Option<String>,
    /// Pages.
    pub pages: PageCounts,
    /// Its stream's bytes on the wire, as sealed.
    pub unicast_bytes: u64,
    /// Bytes of memory a second that it dirtied while its stream flowed, a page once a round; `None` if that was not measured.
    #[serde(default)]
    pub dirty_bytes_per_s: Option<f64>,
    /// By how many percent `--auto-converge` slowed it down at most; `None`: not at all.
    #[serde(default)]
    pub throttled_percent: Option<u8>,
    /// How often it was tried.
    #[serde(default = "once")]
    pub attempts: u32,
}

fn once() -> u32 {
    1
}

/// What left the source by multicast, and what was to do besides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScatterOutcome {
    /// Sets of several targets that got contents.
    pub sets: u32,
    /// Multicast groups that served the sets of several targets.
    pub groups: u32,
    /// Joins and leaves of targets at these groups, together, if all goes well.
    pub group_changes_planned: u64,
    /// Joins that targets were told.
    pub joins: u64,
    /// Leaves that they were told.
    pub leaves: u64,
    /// From the first frame's reading until all are settled, in seconds.
    pub time_s: f64,
    /// Contents that were sent once for all their holders.
    pub contents: u64,
    /// Addresses of guest pages that these contents fill.
    pub addresses: u64,
    /// Frames, each counted once.
    pub frames: u64,
    /// Bytes by multicast as sealed, repair included.
    pub multicast_bytes: u64,
    /// Of these, sent again as they were lost, counted as whole datagrams.
    pub repair_bytes: u64,
    /// Scattered frames that went by TCP to one target, as sealed.
    pub unicast_bytes: u64,
    /// Scattered frames that went by TCP to one target which passed them on to others, as sealed.
    pub relay_bytes: u64,
    /// Bytes of contents that are not zero, each counted once, over all guests, when they were collected.
    pub distinct_nonzero_bytes: u64,
    /// Pages by class when they were collected.
    pub classes: PageClasses,
}

/// Pages by where their content's copies are and where they go: the paper's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PageClasses {
    /// All bytes zero.
    pub zero: u64,
    /// The content stands nowhere else.
    pub unique: u64,
    /// Identical, source VM and target are the same: copies in one VM.
    pub isvst: u64,
    /// Copies in several VMs that go to one target.
    pub imvst: u64,
    /// Copies in several VMs that go to several targets: by multicast.
    pub imvmt: u64,
}

impl ScatterOutcome {
    /// Adds what another wave of the same job did.
    pub fn add(&mut self, other: &ScatterOutcome) {
        self.sets += other.sets;
        self.groups += other.groups;
        self.group_changes_planned += other.group_changes_planned;
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.time_s += other.time_s;
        self.contents += other.contents;
        self.addresses += other.addresses;
        self.frames += other.frames;
        self.multicast_bytes += other.multicast_bytes;
        self.repair_bytes += other.repair_bytes;
        self.unicast_bytes += other.unicast_bytes;
        self.relay_bytes += other.relay_bytes;
        self.distinct_nonzero_bytes += other.distinct_nonzero_bytes;
        self.classes.zero += other.classes.zero;
        self.classes.unique += other.classes.unique;
        self.classes.isvst += other.classes.isvst;
        self.classes.imvst += other.classes.imvst;
        self.classes.imvmt += other.classes.imvmt;
    }
}

/// How targets were chosen, and how good the choice is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementOutcome {
    /// `exact`: there is no better one; `local search`: the best that was found.
    pub method: String,
    /// Distinct contents over all targets; with a topology weighted by what its links cost.
    pub cost: u64,
    /// No placement under the same rules costs less.
    pub bound: u64,
    /// Milliseconds that choosing took.
    pub time_ms: u64,
}

impl PlacementOutcome {
    /// Of a solution.
    pub fn of(solution: &Solution, time: Duration) -> PlacementOutcome {
        let method = match solution.method {
            Method::Exact => "exact",
            Method::LocalSearch => "local search",
        };
        let time_ms = time.as_millis() as u64;
        PlacementOutcome { method: method.into(), cost: solution.cost, bound: solution.bound, time_ms }
    }

    /// How far the cost may be from the least possible, in percent.
    pub fn gap_percent(&self) -> f64 {
        if self.bound == 0 { 0.0 } else { 100.0 * (self.cost as f64 / self.bound as f64 - 1.0) }
    }
}

/// How a migration ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrateOutcome {
    /// The session's UUID in the usual form; empty if none was opened.
    pub session: String,
    /// The code with which `vmscatter migrate` ends.
    pub exit: Exit,
    /// What ended the whole job, in one line, if something did.
    pub error: Option<String>,
    /// From the request to the last guest's RESUME, in seconds.
    pub total_time_s: f64,
    /// Guests in the request's order.
    pub guests: Vec<GuestOutcome>,
    /// What was shared.
    pub scatter: ScatterOutcome,
    /// How targets were chosen; `None` if all were given.
    #[serde(default)]
    pub placement: Option<PlacementOutcome>,
}

impl MigrateOutcome {
    /// Of a session that dealt with its guests; the exit code follows from what became of them.
    pub fn of_guests(
        session: String,
        total_time_s: f64,
        guests: Vec<GuestOutcome>,
        scatter: ScatterOutcome,
    ) -> MigrateOutcome {
        let exit = Exit::of_guests(&guests);
        MigrateOutcome { session, exit, error: None, total_time_s, guests, scatter, placement: None }
    }

    /// Of a job that ended before it dealt with guests.
    pub fn failed(error: impl Into<String>) -> MigrateOutcome {
        MigrateOutcome::ended(Exit::Failed, error.into())
    }

    /// Of a request that turned out to be wrong before anything was started.
    pub fn bad_input(error: impl Into<String>) -> MigrateOutcome {
        MigrateOutcome::ended(Exit::BadInput, error.into())
    }

    /// Of a job that was cancelled before it dealt with guests.
    pub fn cancelled() -> MigrateOutcome {
        MigrateOutcome::ended(Exit::Cancelled, "cancelled".into())
    }

    fn ended(exit: Exit, error: String) -> MigrateOutcome {
        let (guests, scatter) = (Vec::new(), ScatterOutcome::default());
        MigrateOutcome {
            session: String::new(),
            exit,
            error: Some(error),
            total_time_s: 0.0,
            guests,
            scatter,
            placement: None,
        }
    }
}

/// What a scan found in one guest. Each page is counted in one of the four.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanGuest {
    /// Its name; empty in the sum of all.
    pub name: String,
    /// All its pages.
    pub pages: u64,
    /// All bytes zero.
    pub zero_pages: u64,
    /// With a content that stands nowhere else.
    pub unique_pages: u64,
    /// With a content that stands more than once, in this guest only.
    pub within_pages: u64,
    /// With a content that another guest has too.
    pub across_pages: u64,
}

/// How a scan ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScanOutcome {
    /// The code with which `vmscatter scan` ends.
    pub exit: Exit,
    /// What ended it, in one line, if something did.
    pub error: Option<String>,
    /// Seconds that reading and hashing took.
    pub collect_time_s: f64,
    /// Bytes that were read; holes are not.
    pub read_bytes: u64,
    /// Bytes of contents that are not zero, each counted once, over all guests.
    pub distinct_nonzero_bytes: u64,
    /// Guests in the request's order.
    pub guests: Vec<ScanGuest>,
    /// The sum over all guests.
    pub total: ScanGuest,
    /// What was saved, if that was asked for.
    #[serde(default)]
    pub fingerprints: Option<SavedFingerprints>,
}

/// The fingerprints that `scan --out` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFingerprints {
    /// Fingerprints, one for each content and guest that holds it.
    pub contents: u64,
    /// Of how many contents one was kept; 1: all.
    pub one_in: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl ScanOutcome {
    /// Of a scan that failed.
    pub fn failed(error: impl Into<String>) -> ScanOutcome {
        ScanOutcome::ended(Exit::Failed, error.into())
    }

    /// Of a request that turned out to be wrong.
    pub fn bad_input(error: impl Into<String>) -> ScanOutcome {
        ScanOutcome::ended(Exit::BadInput, error.into())
    }

    /// Of a scan that was cancelled.
    pub fn cancelled() -> ScanOutcome {
        ScanOutcome::ended(Exit::Cancelled, "cancelled".into())
    }

    fn ended(exit: Exit, error: String) -> ScanOutcome {
        ScanOutcome {
            exit,
            error: Some(error),
            collect_time_s: 0.0,
            read_bytes: 0,
            distinct_nonzero_bytes: 0,
            guests: Vec::new(),
            total: ScanGuest::default(),
            fingerprints: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn guest(name: &str, status: GuestStatus) -> GuestOutcome {
        GuestOutcome {
            name: name.into(),
            uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(),
            target: Some("t1".into()),
            status,
            verified: status.moved(),
            downtime_ms: status.moved().then_some(12.5),
            journal_ms: status.moved().then_some(1.5),
            reason: (!status.moved()).then(|| "because".into()),
            pages: PageCounts { total: 10, withheld: 4, sent: 5, zero: 1 },
            unicast_bytes: 20_480,
            dirty_bytes_per_s: None,
            throttled_percent: None,
            attempts: 1,
        }
    }

    #[test]
    fn the_exit_code_follows_from_the_guests() {
        use GuestStatus::*;
        let cases: &[(&[GuestStatus], Exit)] = &[
            (&[Running, Paused], Exit::Success),
            (&[Running, Failed], Exit::Partial),
            (&[Running, Cancelled], Exit::Partial),
            (&[Failed, Failed], Exit::Failed),
            (&[Failed, Cancelled], Exit::Cancelled),
        ];
        for (statuses, exit) in cases {
            let guests = statuses.iter().map(|&s| guest("g", s)).collect();
            let outcome = MigrateOutcome::of_guests("s".into(), 1.0, guests, ScatterOutcome::default());
            assert_eq!(outcome.exit, *exit, "{statuses:?}");
        }
    }

    #[test]
    fn documents_come_back_from_json() {
        let outcome = MigrateOutcome::of_guests(
            "s".into(),
            1.5,
            vec![guest("g", GuestStatus::Failed)],
            ScatterOutcome::default(),
        );
        let text = serde_json::to_string(&outcome).unwrap();
        assert!(text.contains("\"exit\":1") && text.contains("\"status\":\"failed\""), "{text}");
        assert_eq!(serde_json::from_str::<MigrateOutcome>(&text).unwrap(), outcome);
        assert!(serde_json::from_str::<Exit>("77").is_err());
    }
}
