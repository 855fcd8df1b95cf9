//! A job as the command line shows it, against an agent that the test plays: what is printed where, exit codes, and what
//! Ctrl-C and a lost terminal do.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmscatter::agent::protocol::{LocalReply, LocalRequest, MigrateRequest};
use vmscatter::report::event::{JobEvent, JobOutcome, Phase, Progress};
use vmscatter::report::outcome::{GuestOutcome, GuestStatus, MigrateOutcome, PageCounts, ScatterOutcome};

use crate::harness::{DEADLINE, Lab};

const JOB: u64 = 3;

/// The test's agent.
struct Stage {
    lab: Lab,
    listener: UnixListener,
}

impl Stage {
    fn new() -> Stage {
        let lab = Lab { dir: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(lab.path("agent.sock")).unwrap();
        Stage { lab, listener }
    }

    fn start(&self, args: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_vmscatter"))
            .args(args)
            .args(["--agent", &self.lab.path("agent.sock")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Starts `migrate` of one guest, and takes its request.
    fn migrate(&self, args: &[&str]) -> (Child, Client, MigrateRequest) {
        let text = "name = 'vm1'\nqmp = '/x'\ncommand = ['/bin/q']\n";
        let guest = self.lab.write("vm1.toml", text);
        let child = self.start(&[&["migrate", "--guest", &guest, "--to", "t1=10.0.0.1"], args].concat());
        let (client, request) = self.accept();
        let LocalRequest::Migrate(request) = request else { panic!("{request:?}") };
        (child, client, request)
    }

    fn accept(&self) -> (Client, LocalRequest) {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Client { reader: BufReader::new(stream.try_clone().unwrap()), stream };
        let mut line = String::new();
        client.reader.read_line(&mut line).unwrap();
        (client, serde_json::from_str(&line).unwrap())
    }

    /// Whether anybody has connected that was not taken in.
    fn has_caller(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let called = self.listener.accept().is_ok();
        self.listener.set_nonblocking(false).unwrap();
        called
    }
}

struct Client {
    reader: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Client {
    fn say(&mut self, reply: &LocalReply) {
        self.say_all(std::slice::from_ref(reply));
    }

    /// In one write, as a client may leave after any line that ends its work.
    fn say_all(&mut self, replies: &[LocalReply]) {
        let line = |reply| serde_json::to_string(reply).unwrap() + "\n";
        let lines: String = replies.iter().map(line).collect();
        self.stream.write_all(lines.as_bytes()).unwrap();
    }

    fn event(&mut self, event: JobEvent) {
        self.say(&LocalReply::Event { event });
    }

    fn done(&mut self, outcome: MigrateOutcome) {
        let event = JobEvent::Done { outcome: JobOutcome::Migrate(outcome) };
        self.say_all(&[LocalReply::Event { event }, LocalReply::Done]);
    }

    /// Waits until the client is gone.
    fn gone(&mut self) {
        assert_eq!(self.reader.read(&mut [0]).unwrap(), 0);
    }
}

fn guest(status: GuestStatus) -> GuestOutcome {
    GuestOutcome {
        name: "vm1".into(),
        uuid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(),
        target: Some("t1".into()),
        status,
        verified: status.moved(),
        downtime_ms: status.moved().then_some(41.0),
        journal_ms: None,
        reason: (!status.moved()).then(|| "the target\u{1b}[2J lacks memory".into()),
        pages: PageCounts { total: 100, withheld: 40, sent: 50, zero: 10 },
        unicast_bytes: 204_800,
        dirty_bytes_per_s: None,
        throttled_percent: None,
        attempts: 1,
    }
}

fn outcome(statuses: &[GuestStatus]) -> MigrateOutcome {
    let guests = statuses.iter().map(|&status| guest(status)).collect();
    MigrateOutcome::of_guests("s".into(), 1.25, guests, ScatterOutcome::default())
}

fn finish(child: Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// Returns once the child has written a line to standard error: by then it listens for signals.
fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let stderr = child.stderr.as_mut().unwrap();
    // Byte by byte, so that the rest stays for wait_with_output.
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn a_migration_is_lines_on_stderr_and_a_table_on_stdout() {
    let stage = Stage::new();
    let options = ["--vm", "vm1=t1", "--compress", "zstd:3", "--bandwidth", "1gbit", "--parallel", "2"];
    let (child, mut client, request) = stage.migrate(&options);
    request.check().unwrap();
    assert_eq!(request.targets[0].addr, "10.0.0.1:7940".parse().unwrap());
    assert_eq!((request.parallel, request.rules.pins[0].target.as_str()), (Some(2), "t1"));

    client.say(&LocalReply::Job { job: JOB });
    client.event(JobEvent::Phase { guest: None, phase: Phase::Collect });
    client.event(JobEvent::Progress(Progress::default()));
    client.event(JobEvent::Phase { guest: Some("vm1".into()), phase: Phase::Stream });
    client.event(JobEvent::Warning { guest: None, text: "no multicast".into() });
    client.event(JobEvent::Guest(guest(GuestStatus::Running)));
    client.done(outcome(&[GuestStatus::Running]));
    let (code, stdout, stderr) = finish(child);
    assert_eq!(code, Some(0), "{stderr}");
    let lines: Vec<&str> = stderr.lines().map(|line| line.split_once("s] ").unwrap().1).collect();
    let moved = "vm1: running at t1, downtime 41 ms, verified";
    assert_eq!(lines, ["job 3", "collect", "vm1: stream", "warning: no multicast", moved]);
    assert!(stdout.contains("1 of 1 guests moved in 1.25 s"), "{stdout}");
}

#[test]
fn json_is_the_only_thing_on_stdout() {
    let stage = Stage::new();
    let (child, mut client, _) = stage.migrate(&["--json"]);
    client.say(&LocalReply::Job { job: JOB });
    client.event(JobEvent::Phase { guest: None, phase: Phase::Collect });
    client.event(JobEvent::Guest(guest(GuestStatus::Running)));
    let told = outcome(&[GuestStatus::Running, GuestStatus::Failed]);
    client.done(told.clone());
    let (code, stdout, stderr) = finish(child);
    assert_eq!((code, stderr.as_str()), (Some(3), ""));
    assert_eq!(serde_json::from_str::<MigrateOutcome>(&stdout).unwrap(), told);
}

#[test]
fn the_exit_code_is_the_outcomes() {
    use GuestStatus::*;
    let cases = [
        (outcome(&[Running, Paused]), 0, ""),
        (outcome(&[Failed]), 1, ""),
        (MigrateOutcome::failed("it broke\nbadly"), 1, "vmscatter: it broke badly\n"),
        (MigrateOutcome::bad_input("t1: no such host"), 2, "vmscatter: t1: no such host\n"),
        (outcome(&[Running, Failed]), 3, ""),
        (MigrateOutcome::cancelled(), 130, "vmscatter: cancelled\n"),
    ];
    for (told, code, end) in cases {
        let stage = Stage::new();
        let (child, mut client, _) = stage.migrate(&[]);
        client.say(&LocalReply::Job { job: JOB });
        client.done(told);
        let (got, stdout, stderr) = finish(child);
        assert_eq!(got, Some(code), "{stderr}");
        assert!(stderr.ends_with(end), "{stderr}");
        assert!(!stdout.contains('\u{1b}'), "what a target says must not reach the terminal raw: {stdout}");
    }
}

#[test]
fn a_lost_agent_is_code_4() {
    let stage = Stage::new();
    let (child, mut client, _) = stage.migrate(&[]);
    client.say(&LocalReply::Job { job: JOB });
    drop(client);
    let (code, _, stderr) = finish(child);
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("it ended the connection"), "{stderr}");
}

#[test]
fn detached_means_the_number_and_no_more() {
    let stage = Stage::new();
    let (child, mut client, _) = stage.migrate(&["--detach"]);
    client.say(&LocalReply::Job { job: JOB });
    client.gone();
    assert_eq!(finish(child), (Some(0), "job 3\n".into(), String::new()));
}

#[test]
fn ctrl_c_cancels_the_job_and_shows_its_end() {
    let stage = Stage::new();
    let (mut child, mut client, _) = stage.migrate(&[]);
    client.say(&LocalReply::Job { job: JOB });
    assert!(first_line(&mut child).ends_with("job 3\n"));
    signal(&child, Signal::SIGINT);
    let (mut second, request) = stage.accept();
    assert_eq!(request, LocalRequest::Cancel { job: JOB });
    second.say(&LocalReply::Done);
    client.event(JobEvent::Guest(guest(GuestStatus::Cancelled)));
    client.done(outcome(&[GuestStatus::Cancelled]));
    let (code, stdout, stderr) = finish(child);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(
        stderr.contains("cancelling job 3") && stdout.contains("0 of 1 guests moved"),
        "{stdout}{stderr}"
    );
}

#[test]
fn a_second_ctrl_c_leaves() {
    let stage = Stage::new();
    let (mut child, mut client, _) = stage.migrate(&[]);
    client.say(&LocalReply::Job { job: JOB });
    first_line(&mut child);
    signal(&child, Signal::SIGINT);
    let (mut second, _) = stage.accept();
    second.say(&LocalReply::Done);
    second.gone();
    signal(&child, Signal::SIGINT);
    let (code, _, stderr) = finish(child);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("'vmscatter attach 3'"), "{stderr}");
}

/// Whether this process, and so its children, ignore SIGHUP, the first bit of `SigIgn` (`proc(5)`).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    u64::from_str_radix(ignored, 16).unwrap() & 1 == 1
}

#[test]
fn a_lost_terminal_cancels_nothing() {
    // Under nohup(1), whose children ignore it, a hang-up ends nobody.
    let ends = |lost: &Signal| *lost != Signal::SIGHUP || !ignores_hangup();
    for lost in [Signal::SIGHUP, Signal::SIGKILL].into_iter().filter(ends) {
        let stage = Stage::new();
        let (mut child, mut client, _) = stage.migrate(&[]);
        client.say(&LocalReply::Job { job: JOB });
        first_line(&mut child);
        signal(&child, lost);
        client.gone();
        child.wait().unwrap();
        assert!(!stage.has_caller());
    }
}

#[test]
fn a_reader_that_is_gone_changes_no_exit_code() {
    let stage = Stage::new();
    let (mut child, mut client, _) = stage.migrate(&[]);
    client.say(&LocalReply::Job { job: JOB });
    first_line(&mut child);
    drop((child.stdout.take(), child.stderr.take()));
    for _ in 0..10 {
        client.event(JobEvent::Phase { guest: None, phase: Phase::Collect });
    }
    client.done(outcome(&[GuestStatus::Running]));
    assert_eq!(finish(child).0, Some(0));
}

#[test]
fn ctrl_c_in_attach_leaves_the_job_alone() {
    let stage = Stage::new();
    let mut child = stage.start(&["attach", "3"]);
    let (mut client, request) = stage.accept();
    assert_eq!(request, LocalRequest::Attach { job: JOB });
    client.say(&LocalReply::Job { job: JOB });
    first_line(&mut child);
    signal(&child, Signal::SIGINT);
    client.gone();
    let (code, _, stderr) = finish(child);
    assert_eq!(code, Some(130), "{stderr}");
    std::thread::sleep(Duration::from_millis(50));
    assert!(!stage.has_caller());
}

#[test]
fn cancel_and_a_reply_out_of_place() {
    let stage = Stage::new();
    let child = stage.start(&["cancel", "3"]);
    let (mut client, request) = stage.accept();
    assert_eq!(request, LocalRequest::Cancel { job: JOB });
    client.say(&LocalReply::Done);
    assert_eq!(finish(child), (Some(0), String::new(), String::new()));

    let child = stage.start(&["cancel", "3"]);
    let (mut client, _) = stage.accept();
    client.stream.write_all(b"nonsense\n").unwrap();
    let (code, _, stderr) = finish(child);
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("malformed line"), "{stderr}");
}
