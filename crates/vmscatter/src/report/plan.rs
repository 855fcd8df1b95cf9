//! What `vmscatter plan` says: where guests would go, and what moving them would cost.

mod text;

use serde::{Deserialize, Serialize};
use vmscatter_core::predict::PhaseTimes;

use super::outcome::{Exit, PlacementOutcome};

pub use text::text;

/// A plan, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanOutcome {
    /// The code with which `vmscatter plan` ends.
    pub exit: Exit,
    /// What stands in the way, in one line, if something does.
    pub error: Option<String>,
    /// All of it; `None` where something stood in the way.
    pub plan: Option<Plan>,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The hosts that guests would leave.
    pub sources: Vec<PlanSource>,
    /// The guests, in the request's order.
    pub guests: Vec<PlanGuest>,
    /// The targets, in the request's order.
    pub targets: Vec<PlanTarget>,
    /// All guests' pages by class, under the chosen placement.
    pub classes: PlanClasses,
    /// Bytes of contents that are not zero, each counted once a source: what has to leave at least, uncompressed.
    pub distinct_nonzero_bytes: u64,
    /// What hosts hold that other hosts hold too; `None` with one source.
    pub between_hosts: Option<BetweenHosts>,
    /// How the placement was found, and how good it is.
    pub placement: PlacementOutcome,
    /// How fast the link was taken to be, and why.
    pub rate: PlanRate,
    /// Compressed size as a share of the plain one, of shared contents and of unique pages; measured on a sample. 1
    /// without compression.
    pub compressed: [f64; 2],
    /// With vmscatter.
    pub predicted: Prediction,
    /// With QEMU's own migration, each guest by itself.
    pub off_the_shelf: Prediction,
    /// The same placement with one target less, the best to leave out; `None` where that is impossible.
    pub one_less: Option<Alternative>,
    /// With one target more, which has the mean of the others' free memory.
    pub one_more: Option<Alternative>,
    /// What each tier of the network carries, with a topology.
    pub topology: Option<TopologyReport>,
    /// Target sets of several members.
    pub target_sets: u64,
    /// The figures are estimates from a sample of the contents.
    pub sampled: bool,
}

/// A host that guests would leave, and what that costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanSource {
    /// Its name.
    pub name: String,
    /// Guests that leave it.
    pub guests: u64,
    /// Its own share.
    pub predicted: Prediction,
    /// Off the shelf.
    pub off_the_shelf: Prediction,
}

/// A guest of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanGuest {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub source: String,
    /// Where it would go.
    pub target: String,
    /// Memory that it takes there, in bytes.
    pub memory_bytes: u64,
    /// Zero pages.
    pub zero_pages: u64,
    /// Pages that would go by its own stream.
    pub unique_pages: u64,
    /// Pages whose content would be sent once for several.
    pub shared_pages: u64,
}

/// A target's load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanTarget {
    /// Its name.
    pub name: String,
    /// Guests that would go there.
    pub guests: Vec<String>,
    /// Their memory, in bytes.
    pub memory_bytes: u64,
    /// What would be left of the memory for guests, in bytes; `None` where it was not said.
    pub free_bytes: Option<u64>,
    /// What it would receive, in bytes, headers included.
    pub received_bytes: u64,
}

/// Distinct contents, and pages that hold one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanClass {
    /// Contents.
    pub contents: u64,
    /// Pages.
    pub pages: u64,
}

/// Pages by where their content's copies are and where they go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanClasses {
    /// All bytes zero.
    pub zero: PlanClass,
    /// The content stands nowhere else.
    pub unique: PlanClass,
    /// Copies in one VM.
    pub isvst: PlanClass,
    /// Copies in several VMs that go to one target.
    pub imvst: PlanClass,
    /// Copies in several VMs that go to several targets: by multicast.
    pub imvmt: PlanClass,
}

/// What stands on several hosts. Each host sends its own, so this is not saved; it could be if one fetched it from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BetweenHosts {
    /// Distinct contents on two hosts or more.
    pub contents: u64,
    /// Bytes that hosts send although another sends them too.
    pub repeated_bytes: u64,
}

/// Where the link's rate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateOrigin {
    /// `--bandwidth`.
    Given,
    /// This agent's last migrations.
    Measured,
    /// Nobody has said or measured it.
    Assumed,
}

/// How fast the link was taken to be, and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRate {
    /// Bits per second.
    pub bits_per_s: f64,
    /// Where that comes from.
    pub origin: RateOrigin,
    /// When the last migration measured how fast hosts start QEMUs and copy pages, in seconds since the Unix epoch; `None`:
    /// never, so that only the link is taken to limit, and set-up times are those of the lab.
    pub hosts_measured_unix_s: Option<u64>,
}

/// What moving the guests would cost in one way of doing so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// What leaves the sources, in bytes, headers included.
    pub transferred_bytes: u64,
    /// What all targets receive together.
    pub traffic_bytes: u64,
    /// Of several sources: one after the other.
    pub time_s: f64,
    /// What the time is made of.
    pub times: PhaseTimes,
}

/// Bytes of pages (without headers, uncompressed) over the links of a topology, in three ways of moving the guests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopologyReport {
    /// By tier.
    pub tiers: Vec<TierBytes>,
    /// The link that takes longest off the shelf, and its seconds.
    pub busiest_off_the_shelf: Option<(String, f64)>,
    /// The same with each content sent once to each target.
    pub busiest_unicast: Option<(String, f64)>,
    /// The same with multicast.
    pub busiest_multicast: Option<(String, f64)>,
}

/// What the links of one tier carry together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierBytes {
    /// Its name.
    pub tier: String,
    /// Each guest by itself.
    pub off_the_shelf: u64,
    /// Each content once to each target.
    pub unicast: u64,
    /// Each content once over each link.
    pub multicast: u64,
}

/// What another number of targets would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The target that would be left out; `None`: one is added.
    pub without: Option<String>,
    /// Guests that the added one would get.
    pub guests: u64,
    /// What it would be.
    pub predicted: Prediction,
}

impl PlanOutcome {
    /// There is one.
    pub fn of(plan: Plan) -> PlanOutcome {
        PlanOutcome { exit: Exit::Success, error: None, plan: Some(plan) }
    }

    /// Making it failed.
    pub fn failed(error: impl Into<String>) -> PlanOutcome {
        PlanOutcome { exit: Exit::Failed, error: Some(error.into()), plan: None }
    }

    /// What was asked can't be.
    pub fn bad_input(error: impl Into<String>) -> PlanOutcome {
        PlanOutcome { exit: Exit::BadInput, error: Some(error.into()), plan: None }
    }

    /// It was cancelled.
    pub fn cancelled() -> PlanOutcome {
        PlanOutcome { exit: Exit::Cancelled, error: Some("cancelled".into()), plan: None }
    }
}
