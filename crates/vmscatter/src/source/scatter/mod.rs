//! The scatter: one thread that reads shared contents again, sends them at the pace that core's sender finds, and
//! settles what each VM's target holds.
//!
//! `work` is the thread: core's state machines say what is sent to whom and when.

mod work;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Sender as Queue, unbounded};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;
use vmscatter_core::index::Contents;
use vmscatter_core::placement::TargetId;
use vmscatter_core::schedule::Schedule;
use vmscatter_core::session::SessionKeys;
use vmscatter_core::wire::control::{LinkCounters, Report, Uuid};

use super::actor::Event;
use super::encode::EncodePool;
use super::groups::Groups;
use super::link::TargetLink;
use super::stream::Stream;
use crate::agent::protocol::Transport;
use crate::net::udp::WayOut;
use crate::qemu::memory::GuestMemory;
use crate::report::outcome::ScatterOutcome;
use work::Work;

/// What the thread works with.
pub(super) struct Setup {
    pub(super) keys: SessionKeys,
    pub(super) session: Uuid,
    pub(super) contents: Arc<Contents>,
    pub(super) schedule: Schedule,
    pub(super) placement: Vec<Option<TargetId>>,
    pub(super) groups: Groups,
    pub(super) links: Vec<Arc<TargetLink>>,
    pub(super) streams: Vec<Arc<Stream>>,
    pub(super) memories: Vec<Arc<GuestMemory>>,
    pub(super) encoders: Arc<EncodePool>,
    pub(super) transport: Transport,
    /// By which way multicast leaves.
    pub(super) out: WayOut,
    pub(super) bandwidth: Option<u64>,
    /// Losses may be answered by parity, at targets that can use it.
    pub(super) parity: bool,
    /// What the link is taken to carry until it has been measured.
    pub(super) assumed_bytes_per_s: f64,
    pub(super) events: UnboundedSender<Event>,
}

enum Order {
    Start,
    /// With its place in the target's queue.
    Report(u16, Report, OwnedSemaphorePermit),
    LinkCounters(u16, LinkCounters, OwnedSemaphorePermit),
    /// This target has joined this set's group, or says why it can't.
    Joined(u16, u16, Option<String>),
    /// A probe has reached this target on this set's group.
    Heard(u16, u16),
    /// So many datagrams of trains have come to this target on this set's group.
    Counted(u16, u16, u64),
    /// The first target can pass frames on to the second, or says why it can't.
    Hopped(u16, u16, Option<String>),
    RemoveTarget(u16),
    RemoveVm(u16),
    Settle(u16, u16, Arc<Stream>),
    Encoded(u64, u16, Vec<u8>),
    Stop,
}

#[derive(Debug, Default)]
struct Shared {
    outcome: Mutex<ScatterOutcome>,
    /// Bytes a second that the link was last seen to carry; zero before it was measured.
    link_bytes_per_s: AtomicU64,
}

impl Shared {
    fn outcome(&self) -> MutexGuard<'_, ScatterOutcome> {
        self.outcome.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The thread, as the session sees it.
#[derive(Debug)]
pub(super) struct ScatterThread {
    orders: Queue<Order>,
    shared: Arc<Shared>,
    /// What the link is taken to carry until it has been measured.
    assumed_bytes_per_s: f64,
}

impl ScatterThread {
    /// Starts the thread: it has groups joined and probed, and sends nothing else before [`ScatterThread::start`].
    ///
    /// # Errors
    /// There is no socket or thread to be had.
    pub(super) fn new(setup: Setup) -> std::io::Result<ScatterThread> {
        let (orders, queue) = unbounded();
        let shared = Arc::new(Shared::default());
        let assumed_bytes_per_s = setup.assumed_bytes_per_s;
        let mut work = Work::new(setup, orders.clone(), queue, shared.clone())?;
        std::thread::Builder::new().name("scatter".into()).spawn(move || work.run())?;
        Ok(ScatterThread { orders, shared, assumed_bytes_per_s })
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    pub(super) fn start(&self) {
        self.order(Order::Start);
    }

    pub(super) fn report(&self, target: u16, report: Report, room: OwnedSemaphorePermit) {
        self.order(Order::Report(target, report, room));
    }

    pub(super) fn link_counters(&self, target: u16, counters: LinkCounters, room: OwnedSemaphorePermit) {
        self.order(Order::LinkCounters(target, counters, room));
    }

    /// The target has joined the set's group, or says why it can't.
    pub(super) fn joined(&self, target: u16, set: u16, error: Option<String>) {
        self.order(Order::Joined(target, set, error));
    }

    /// A probe has reached the target on the set's group.
    pub(super) fn heard(&self, target: u16, set: u16) {
        self.order(Order::Heard(target, set));
    }

    /// So many datagrams of trains have come to the target on the set's group.
    pub(super) fn counted(&self, target: u16, set: u16, datagrams: u64) {
        self.order(Order::Counted(target, set, datagrams));
    }

    /// The target can pass frames on to another, or says why it can't.
    pub(super) fn hopped(&self, from: u16, to: u16, error: Option<String>) {
        self.order(Order::Hopped(from, to, error));
    }

    pub(super) fn remove_target(&self, target: u16) {
        self.order(Order::RemoveTarget(target));
    }

    pub(super) fn remove_vm(&self, vm: u16) {
        self.order(Order::RemoveVm(vm));
    }

    /// Settles what `vm` holds at `target`, after every report that came before; then [`Event::Settled`].
    pub(super) fn settle(&self, vm: u16, target: u16, stream: Arc<Stream>) {
        self.order(Order::Settle(vm, target, stream));
    }

    pub(super) fn stop(&self) {
        self.order(Order::Stop);
    }

    pub(super) fn counters(&self) -> ScatterOutcome {
        self.shared.outcome().clone()
    }

    /// What the source's link carries, in bytes a second.
    pub(super) fn link_bytes_per_s(&self) -> f64 {
        match self.shared.link_bytes_per_s.load(Relaxed) {
            0 => self.assumed_bytes_per_s,
            measured => measured as f64,
        }
    }
}
