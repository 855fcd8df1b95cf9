//! The jobs of an agent: what they said, who listens, and how they end.
//!
//! A job says things through its [`EventSink`]; they are kept, bounded, and any number of listeners read
//! them at their own pace, so that a slow or vanished listener neither holds a job up nor makes anything grow.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::watch;
use vmscatter_core::limits::SESSION_VMS_MAX;

use super::cancel::CancelToken;
use super::input::one_line;
use super::protocol::{JobKind, JobState, JobStatus};
use crate::report::doctor::DoctorOutcome;
use crate::report::event::{JobEvent, JobOutcome, Progress};
use crate::report::outcome::{Exit, MigrateOutcome, ScanOutcome};
use crate::report::plan::PlanOutcome;

/// Jobs that have ended and are still known, for `attach` and `status`.
pub const ENDED_JOBS_MAX: usize = 32;
/// Jobs that run at once.
pub const RUNNING_JOBS_MAX: usize = 16;
/// Events of one job that are kept besides the counters: all phases of the most guests.
pub const EVENTS_MAX: usize = 16 * SESSION_VMS_MAX;

/// Why a job can't be started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// [`RUNNING_JOBS_MAX`].
    #[error("{RUNNING_JOBS_MAX} jobs are running already")]
    TooMany,
    /// A guest can't leave twice.
    #[error("guest '{guest}' is in job {job} already")]
    GuestTaken {
        /// The guest.
        guest: String,
        /// The running migration that has it.
        job: u64,
    },
    /// The agent is about to end.
    #[error("the agent is stopping")]
    Stopping,
}

/// The jobs of an agent.
#[derive(Debug, Default)]
pub struct Jobs {
    inner: Mutex<JobsInner>,
}

#[derive(Debug, Default)]
struct JobsInner {
    last: u64,
    stopping: bool,
    jobs: BTreeMap<u64, Arc<Job>>,
}

/// One job.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// Its guests' names.
    pub guests: Vec<String>,
    /// Cancels it.
    pub cancel: CancelToken,
    started: Instant,
    log: Mutex<Log>,
    /// The number of the next event; changes wake listeners.
    next: watch::Sender<u64>,
}

/// What a job has said. Numbers count all events; of counters only the newest of each guest stays.
#[derive(Debug, Default)]
struct Log {
    next: u64,
    events: VecDeque<(u64, JobEvent)>,
    progress: BTreeMap<Option<String>, (u64, Progress)>,
    outcome: Option<Exit>,
}

/// Where a job's work says what it does; clones say it for the same job.
#[derive(Clone, Debug)]
pub struct EventSink {
    job: Arc<Job>,
}

impl Jobs {
    /// Starts `body` as a task. Whatever becomes of it, the job ends with [`JobEvent::Done`]: a panic is an outcome too.
    ///
    /// # Errors
    /// [`StartError`]; `body` has not been called then.
    pub fn start<F, B>(&self, kind: JobKind, guests: Vec<String>, body: B) -> Result<Arc<Job>, StartError>
    where
        B: FnOnce(EventSink, CancelToken) -> F,
        F: Future<Output = JobOutcome> + Send + 'static,
    {
        let job = self.register(kind, guests)?;
        let sink = EventSink { job: job.clone() };
        let work = tokio::spawn(body(sink, job.cancel.clone()));
        tokio::spawn({
            let job = job.clone();
            async move {
                let outcome = match work.await {
                    Ok(outcome) => outcome,
                    Err(error) => broken(kind, &error.to_string()),
                };
                job.push(JobEvent::Done { outcome });
            }
        });
        Ok(job)
    }

    fn register(&self, kind: JobKind, guests: Vec<String>) -> Result<Arc<Job>, StartError> {
        let mut inner = self.lock();
        if inner.stopping {
            return Err(StartError::Stopping);
        }
        let running = || inner.jobs.values().filter(|job| job.state() != JobState::Done);
        if running().count() >= RUNNING_JOBS_MAX {
            return Err(StartError::TooMany);
        }
        if kind == JobKind::Migrate {
            for job in running().filter(|job| job.kind == JobKind::Migrate) {
                if let Some(guest) = guests.iter().find(|guest| job.guests.contains(guest)) {
                    return Err(StartError::GuestTaken { guest: guest.clone(), job: job.id });
                }
            }
        }
        let ended: Vec<u64> =
            inner.jobs.values().filter(|job| job.state() == JobState::Done).map(|job| job.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_JOBS_MAX - 1)) {
            inner.jobs.remove(id);
        }
        inner.last += 1;
        let job = Arc::new(Job {
            id: inner.last,
            kind,
            guests,
            cancel: CancelToken::new(),
            started: Instant::now(),
            log: Mutex::default(),
            next: watch::Sender::new(0),
        });
        inner.jobs.insert(job.id, job.clone());
        Ok(job)
    }

    /// The job of this number, if it is known.
    pub fn get(&self, id: u64) -> Option<Arc<Job>> {
        self.lock().jobs.get(&id).cloned()
    }

    /// All jobs that are known, the oldest first.
    pub fn status(&self) -> Vec<JobStatus> {
        self.lock().jobs.values().map(|job| job.status()).collect()
    }

    /// Starts no more jobs, cancels all, and returns once they have ended.
    pub async fn stop(&self) {
        let jobs: Vec<_> = {
            let mut inner = self.lock();
            inner.stopping = true;
            inner.jobs.values().cloned().collect()
        };
        for job in &jobs {
            job.cancel.cancel();
        }
        for job in &jobs {
            job.ended().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, JobsInner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn broken(kind: JobKind, error: &str) -> JobOutcome {
    let error = format!("internal error: {}", one_line(error));
    match kind {
        JobKind::Migrate => JobOutcome::Migrate(MigrateOutcome::failed(error)),
        JobKind::Plan => JobOutcome::Plan(Box::new(PlanOutcome::failed(error))),
        JobKind::Scan => JobOutcome::Scan(ScanOutcome::failed(error)),
        JobKind::Doctor => JobOutcome::Doctor(DoctorOutcome::failed(error)),
    }
}

impl Job {
    /// Where it stands.
    pub fn state(&self) -> JobState {
        match self.lock().outcome {
            Some(_) => JobState::Done,
            None if self.cancel.is_cancelled() => JobState::Cancelling,
            None => JobState::Running,
        }
    }

    fn status(&self) -> JobStatus {
        JobStatus {
            job: self.id,
            kind: self.kind,
            state: self.state(),
            age_s: self.started.elapsed().as_secs(),
            guests: self.guests.clone(),
            exit: self.lock().outcome,
        }
    }

    /// Events with numbers from `from`, at most `count` of them, and the number to go on from. Waits until there is one;
    /// none are left once the last, [`JobEvent::Done`], has been read.
    pub async fn events(&self, from: u64, count: usize) -> (Vec<JobEvent>, u64) {
        let mut next = self.next.subscribe();
        loop {
            next.borrow_and_update();
            let (events, to, ended) = self.lock().since(from, count);
            if !events.is_empty() || ended {
                return (events, to);
            }
            // The sender lives in self.
            let _ = next.changed().await;
        }
    }

    /// Returns once the job has ended.
    pub async fn ended(&self) {
        let mut next = self.next.subscribe();
        while self.lock().outcome.is_none() {
            let _ = next.changed().await;
        }
    }

    fn push(&self, event: JobEvent) {
        let number = {
            let mut log = self.lock();
            log.push(event);
            log.next
        };
        self.next.send_replace(number);
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Log {
    fn push(&mut self, event: JobEvent) {
        if self.outcome.is_some() {
            return; // Done is the last; a thread that outlived its job says nothing more.
        }
        let number = self.next;
        match event {
            JobEvent::Progress(progress) => {
                let key = progress.guest.clone();
                if !self.progress.contains_key(&key) && self.progress.len() > SESSION_VMS_MAX {
                    return;
                }
                self.progress.insert(key, (number, progress));
            }
            event => {
                if let JobEvent::Done { outcome } = &event {
                    self.outcome = Some(outcome.exit());
                }
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back((number, event));
            }
        }
        self.next += 1;
    }

    /// Up to `count` events from number `from`, the number behind them, and whether nothing will follow.
    fn since(&self, from: u64, count: usize) -> (Vec<JobEvent>, u64, bool) {
        let first = self.events.partition_point(|(number, _)| *number < from);
        let mut found: Vec<(u64, JobEvent)> = self.events.iter().skip(first).take(count).cloned().collect();
        let progress = self.progress.values().filter(|(number, _)| *number >= from);
        found.extend(progress.map(|(number, p)| (*number, JobEvent::Progress(p.clone()))));
        found.sort_by_key(|(number, _)| *number);
        found.truncate(count);
        let to = found.last().map_or(from, |(number, _)| number + 1);
        let ended = self.outcome.is_some() && to >= self.next;
        (found.into_iter().map(|(_, event)| event).collect(), to, ended)
    }
}

impl EventSink {
    /// The job's number.
    pub fn job(&self) -> u64 {
        self.job.id
    }

    /// Says `event`: logs it, keeps it, and wakes who listens. Counters a few times a second are enough.
    /// [`JobEvent::Done`] is not the work's to say; it comes of itself when the work returns.
    pub fn emit(&self, event: JobEvent) {
        let job = self.job.id;
        match &event {
            JobEvent::Phase { guest, phase } => tracing::info!(job, guest, %phase, "phase"),
            JobEvent::Guest(outcome) => {
                let reason = outcome.reason.as_deref().map(one_line);
                tracing::info!(job, guest = outcome.name, status = outcome.status.name(), reason, "guest");
            }
            JobEvent::Warning { guest, text } => tracing::warn!(job, guest, "{}", one_line(text)),
            JobEvent::Progress(_) => {}
            JobEvent::Done { .. } => return,
        }
        self.job.push(event);
    }
}

#[cfg(test)]
mod tests;
