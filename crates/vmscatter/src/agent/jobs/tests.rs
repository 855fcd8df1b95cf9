use super::*;
use crate::report::event::Phase;

fn done() -> JobOutcome {
    JobOutcome::Scan(ScanOutcome::cancelled())
}

async fn read_all(job: &Job) -> Vec<JobEvent> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let (events, to) = job.events(from, 3).await;
        if events.is_empty() {
            return all;
        }
        all.extend(events);
        from = to;
    }
}

fn phase(phase: Phase) -> JobEvent {
    JobEvent::Phase { guest: None, phase }
}

fn progress(guest: &str, done_bytes: u64) -> Progress {
    Progress { guest: Some(guest.into()), done_bytes, ..Progress::default() }
}

#[tokio::test]
async fn events_are_kept_in_order_and_counters_replaced() {
    let jobs = Jobs::default();
    let job = jobs
        .start(JobKind::Scan, vec!["a".into()], |sink, _| async move {
            sink.emit(phase(Phase::Collect));
            for bytes in 0..100 {
                sink.emit(JobEvent::Progress(progress("a", bytes)));
                sink.emit(JobEvent::Progress(progress("b", bytes * 2)));
            }
            sink.emit(phase(Phase::Report));
            done()
        })
        .unwrap();
    job.ended().await;
    let events = read_all(&job).await;
    assert_eq!(events.len(), 5, "{events:?}");
    assert_eq!(events[0], phase(Phase::Collect));
    assert_eq!(events[1], JobEvent::Progress(progress("a", 99)));
    assert_eq!(events[2], JobEvent::Progress(progress("b", 198)));
    assert_eq!(events[4], JobEvent::Done { outcome: done() });
    assert_eq!(jobs.status()[0].exit, Some(Exit::Cancelled));
    assert_eq!(job.state(), JobState::Done);
}

#[tokio::test]
async fn a_listener_waits_for_what_comes_and_a_late_one_gets_it_again() {
    let jobs = Jobs::default();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let job = jobs
        .start(JobKind::Scan, vec![], |sink, _| async move {
            sink.emit(phase(Phase::Collect));
            gone.await.unwrap();
            done()
        })
        .unwrap();
    let early = tokio::spawn({
        let job = job.clone();
        async move { read_all(&job).await }
    });
    assert_eq!(job.events(0, 9).await.0.len(), 1);
    go.send(()).unwrap();
    assert_eq!(early.await.unwrap(), read_all(&job).await);
}

#[tokio::test]
async fn a_panic_is_an_outcome() {
    let jobs = Jobs::default();
    let job = jobs.start(JobKind::Migrate, vec![], |_, _| async { panic!("on purpose") }).unwrap();
    let events = read_all(&job).await;
    let [JobEvent::Done { outcome }] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(outcome.exit(), Exit::Failed);
    assert!(outcome.error().unwrap().starts_with("internal error: "), "{outcome:?}");
}

#[tokio::test]
async fn a_guest_leaves_once_and_stopping_cancels() {
    let jobs = Jobs::default();
    let until_cancelled = |_: EventSink, cancel: CancelToken| async move {
        cancel.cancelled().await;
        done()
    };
    let first = jobs.start(JobKind::Migrate, vec!["a".into(), "b".into()], until_cancelled).unwrap();
    let second = jobs.start(JobKind::Migrate, vec!["c".into(), "b".into()], until_cancelled);
    assert_eq!(second.unwrap_err(), StartError::GuestTaken { guest: "b".into(), job: first.id });
    jobs.start(JobKind::Scan, vec!["b".into()], until_cancelled).unwrap();
    jobs.stop().await;
    assert!(jobs.status().iter().all(|job| job.state == JobState::Done));
    assert_eq!(jobs.start(JobKind::Scan, vec![], until_cancelled).unwrap_err(), StartError::Stopping);
}

#[tokio::test]
async fn jobs_and_events_are_bounded() {
    let jobs = Jobs::default();
    for _ in 0..ENDED_JOBS_MAX + 10 {
        jobs.start(JobKind::Scan, vec![], |_, _| async { done() }).unwrap().ended().await;
    }
    let known = jobs.status();
    assert_eq!(known.len(), ENDED_JOBS_MAX);
    assert_eq!(known.last().unwrap().job, ENDED_JOBS_MAX as u64 + 10);
    assert!(jobs.get(1).is_none());

    let wait = |_: EventSink, cancel: CancelToken| async move {
        cancel.cancelled().await;
        done()
    };
    for _ in 0..RUNNING_JOBS_MAX {
        jobs.start(JobKind::Scan, vec![], wait).unwrap();
    }
    assert_eq!(jobs.start(JobKind::Scan, vec![], wait).unwrap_err(), StartError::TooMany);

    let mut log = Log::default();
    for _ in 0..EVENTS_MAX + 5 {
        log.push(JobEvent::Warning { guest: None, text: String::new() });
    }
    assert_eq!(log.events.len(), EVENTS_MAX);
    let (events, to, ended) = log.since(0, 2);
    assert_eq!((events.len(), to, ended), (2, 7, false));
}
