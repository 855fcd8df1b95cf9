//! Monitor and memory against a real QEMU whose firmware has run for a moment.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use vmscatter_core::page::{MacKey, PAGE_SIZE, is_zero};

use crate::qemu::memory::{GuestMemory, MemoryError};
use crate::qemu::monitor::MigrationStatus;
use crate::qemu::process::mappings;
use crate::qemu::qmp::{Qmp, QmpEvent};
use crate::qemu::ramblock::ram_blocks;
use crate::source::collect::{CollectKey, CollectProgress, collect};
use crate::source::effort::Effort;

const MEMORY_BYTES: usize = 16 << 20;
const MEMFD: [&str; 4] =
    ["-M", "pc,memory-backend=m0", "-object", "memory-backend-memfd,id=m0,size=16M,share=on"];

/// QEMU may cut its file short.
const UNSEALED: [&str; 4] =
    ["-M", "pc,memory-backend=m0", "-object", "memory-backend-memfd,id=m0,size=16M,share=on,seal=off"];

/// A child that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) struct Guest {
    process: Process,
    pub(super) qmp: Qmp,
    pub(super) events: mpsc::Receiver<QmpEvent>,
    pub(super) directory: TempDir,
}

impl Guest {
    pub(super) async fn start(options: &[&str]) -> Guest {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("qmp");
        let program = std::env::var("VMSCATTER_TEST_QEMU").unwrap_or("qemu-system-x86_64".into());
        let mut words = program.split_whitespace();
        let child = Command::new(words.next().expect("a program"))
            .args(words)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-name", "lab", "-S"])
            .args(options)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path.display())])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
        let process = Process(child);
        for _ in 0..200 {
            if let Ok((qmp, events)) = Qmp::connect(&path, Duration::from_secs(10)).await {
                return Guest { process, qmp, events, directory };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("QEMU did not open its monitor");
    }

    /// Lets the firmware run until it has written to memory, then stops the guest.
    async fn run_firmware(&mut self) {
        self.qmp.cont().await.expect("cont");
        for _ in 0..200 {
            if !is_zero(&self.physical(0, 0x2000).await) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.qmp.stop().await.expect("stop");
        while self.events.recv().await.expect("events").name != "STOP" {}
    }

    /// Guest-physical memory as QEMU itself saves it.
    async fn physical(&self, address: u64, bytes: usize) -> Vec<u8> {
        let path: PathBuf = self.directory.path().join("saved");
        let arguments = json!({ "val": address, "size": bytes, "filename": path });
        self.qmp.execute("pmemsave", arguments).await.expect("pmemsave");
        std::fs::read(path).expect("saved memory")
    }

    fn pid(&self) -> i32 {
        self.process.0.id() as i32
    }
}

/// Everything that `populated` tells of is read in odd pieces; the rest stays zero.
fn read_all(memory: &GuestMemory, block: usize) -> (Vec<u8>, usize) {
    let bytes = memory.blocks()[block].bytes as usize;
    let (mut content, mut pages_read) = (vec![0; bytes], 0);
    for range in memory.populated(block, 0, (bytes / PAGE_SIZE) as u32).expect("populated") {
        pages_read += range.len();
        for first in range.clone().step_by(13) {
            let last = (first + 13).min(range.end);
            let out = &mut content[first as usize * PAGE_SIZE..last as usize * PAGE_SIZE];
            memory.read(block, first, out).expect("read");
        }
    }
    (content, pages_read)
}

async fn compare_with_pmemsave(guest: &mut Guest, ram: &str) -> GuestMemory {
    guest.run_firmware().await;
    let memory = GuestMemory::locate(&guest.qmp).await.expect("locate");
    assert_eq!(memory.pid(), guest.pid());
    let block = memory.find(ram).expect("RAM block");
    assert_eq!(
        (block, memory.blocks()[block].bytes, memory.blocks()[block].readable),
        (0, MEMORY_BYTES as u64, true)
    );
    let (content, pages_read) = read_all(&memory, block);
    // Between 640 KiB and 1 MiB other memory stands before RAM.
    for (from, to) in [(0, 0xa_0000), (0x10_0000, MEMORY_BYTES)] {
        let saved = guest.physical(from as u64, to - from).await;
        assert!(!is_zero(&saved));
        assert!(content[from..to] == saved, "RAM from {from:#x} differs");
    }
    assert!(pages_read < MEMORY_BYTES / PAGE_SIZE / 2, "{pages_read} pages: untouched ones were not skipped");
    memory
}

#[tokio::test]
async fn private_memory_is_what_pmemsave_says() {
    let mut guest = Guest::start(&["-M", "pc"]).await;
    let memory = compare_with_pmemsave(&mut guest, "pc.ram").await;
    // The firmware's own image is mapped at the end of the first 4 GiB.
    let bios = memory.find("pc.bios").expect("pc.bios");
    assert!(memory.blocks()[bios].readable);
    let bytes = memory.blocks()[bios].bytes as usize;
    assert!(read_all(&memory, bios).0 == guest.physical((1 << 32) - bytes as u64, bytes).await);
}

#[tokio::test]
async fn shared_memory_is_what_pmemsave_says_and_holes_stay_holes() {
    let mut guest = Guest::start(&MEMFD).await;
    let memory = compare_with_pmemsave(&mut guest, "m0").await;
    let mappings = mappings(guest.pid()).expect("maps");
    let ram =
        mappings.iter().find(|m| m.shared && m.end - m.start == MEMORY_BYTES as u64).expect("memfd mapping");
    let path = format!("/proc/{}/map_files/{:x}-{:x}", guest.pid(), ram.start, ram.end);
    let allocated = || std::fs::metadata(&path).expect("memfd").blocks();
    let before = allocated();
    let mut content = vec![0; MEMORY_BYTES];
    memory.read(0, 0, &mut content).expect("read");
    assert_eq!(allocated(), before, "reading populated the guest's memory");

    // What another process has written, a vhost-user device say, QEMU has not touched.
    let pages = (MEMORY_BYTES / PAGE_SIZE) as u32;
    let populated = || memory.populated(0, 0, pages).expect("populated");
    let is_populated = |page: u32| populated().iter().any(|range| range.contains(&page));
    let hole = (0..pages).rev().find(|page| !is_populated(*page)).expect("a hole");
    let file = std::fs::File::options().write(true).open(&path).expect("memfd");
    file.write_all_at(&[7; PAGE_SIZE], u64::from(hole) * PAGE_SIZE as u64).expect("write");
    assert!(is_populated(hole) && !is_populated(hole - 1));
    memory.read(0, hole, &mut content[..PAGE_SIZE]).expect("read");
    assert_eq!(content[..PAGE_SIZE], [7; PAGE_SIZE]);
}

/// What the process has resident of the mapping that `address` is in, by kind.
fn resident(pid: i32, address: u64) -> Vec<String> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let range = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    };
    let lines = smaps.lines().skip_while(|line| !range(line).is_some_and(|range| range.contains(&address)));
    let fields = lines.skip(1).take_while(|line| range(line).is_none());
    // Not Pss, Shared and Private, which depend on who else has a page mapped.
    let kinds = ["Rss:", "Anonymous:", "AnonHugePages:", "ShmemPmdMapped:", "Swap:"];
    let found: Vec<String> =
        fields.filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).map(str::to_owned).collect();
    assert_eq!(found.len(), kinds.len(), "{found:?}");
    found
}

/// Collects the guest's memory as `scan` and `migrate` do; the pages that are not zero.
fn collect_all(memory: &GuestMemory) -> u64 {
    let progress = CollectProgress::default();
    let key = CollectKey::Session(MacKey::new(&[9; 16]));
    let collected = collect(&[memory], &key, Effort::threads(2), &progress).expect("not cancelled");
    assert!(collected.vms[0].error.is_none(), "{:?}", collected.vms[0].error);
    collected.vms[0].pages.pages - collected.vms[0].pages.zero
}

#[tokio::test]
async fn collecting_does_not_grow_a_guest() {
    for (options, ram) in [(&["-M", "pc"][..], "pc.ram"), (&MEMFD, "m0"), (&UNSEALED, "m0")] {
        let mut guest = Guest::start(options).await;
        guest.run_firmware().await;
        let memory = GuestMemory::locate(&guest.qmp).await.expect("locate");
        let (block, pages) = (memory.find(ram).expect("RAM block"), (MEMORY_BYTES / PAGE_SIZE) as u32);
        let populated = || memory.populated(block, 0, pages).expect("populated");
        let address = ram_blocks(&guest.qmp).await.expect("blocks")[block].host_address.expect("an address");
        let before = (resident(guest.pid(), address), populated());
        let nonzero = collect_all(&memory);
        assert!(nonzero > 10, "{options:?}: {nonzero} pages");
        assert_eq!(collect_all(&memory), nonzero);
        assert_eq!((resident(guest.pid(), address), populated()), before, "{options:?}");
    }
}

#[tokio::test]
async fn sealed_shared_memory_is_looked_at_in_place() {
    for (options, in_place) in [(&MEMFD[..], true), (&UNSEALED, false), (&["-M", "pc"], false)] {
        let mut guest = Guest::start(options).await;
        guest.run_firmware().await;
        let memory = GuestMemory::locate(&guest.qmp).await.expect("locate");
        let mut shown = 0;
        for range in memory.populated(0, 0, (MEMORY_BYTES / PAGE_SIZE) as u32).expect("populated") {
            let mut copy = vec![0; range.len() * PAGE_SIZE];
            memory.read(0, range.start, &mut copy).expect("read");
            let looked = memory.look(0, range, &mut |bytes| {
                assert!(bytes == copy);
                shown += bytes.len();
            });
            assert_eq!(looked.expect("look"), in_place, "{options:?}");
        }
        assert_eq!(shown > 0, in_place, "{options:?}");
        let pages = (MEMORY_BYTES / PAGE_SIZE) as u32;
        let beyond = memory.look(0, pages - 1..pages + 1, &mut |_| panic!("shown"));
        assert!(matches!(beyond, Err(MemoryError::Range { block: 0, .. })));
    }
}

#[tokio::test]
async fn pages_outside_and_ended_processes_are_errors() {
    let mut guest = Guest::start(&["-M", "pc"]).await;
    let memory = GuestMemory::locate(&guest.qmp).await.expect("locate");
    let pages = (MEMORY_BYTES / PAGE_SIZE) as u32;
    let mut page = [0; PAGE_SIZE];
    assert!(memory.read(0, pages - 1, &mut page).is_ok());
    assert!(matches!(memory.read(0, pages, &mut page), Err(MemoryError::Range { block: 0, .. })));
    assert!(matches!(memory.read(99, 0, &mut page), Err(MemoryError::Range { block: 99, .. })));
    assert!(matches!(memory.populated(0, 1, pages), Err(MemoryError::Range { .. })));
    assert!(matches!(memory.populated(0, u32::MAX, u32::MAX), Err(MemoryError::Range { .. })));
    guest.process.0.kill().expect("kill");
    guest.process.0.wait().expect("wait");
    assert!(matches!(memory.read(0, 0, &mut page), Err(MemoryError::Process { .. })));
    assert!(matches!(memory.populated(0, 0, 1), Err(MemoryError::Process { .. })));
}

#[tokio::test]
async fn block_that_is_not_where_it_should_be_is_unreadable() {
    let guest = Guest::start(&["-M", "pc"]).await;
    let mut blocks = ram_blocks(&guest.qmp).await.expect("blocks");
    blocks[0].host_address = Some(0x1000);
    blocks[1].host_address = None;
    let memory = GuestMemory::open(guest.pid(), &blocks).expect("open");
    assert!(!memory.blocks()[0].readable && !memory.blocks()[1].readable);
    let error = memory.read(0, 0, &mut [0; PAGE_SIZE]).expect_err("unreadable");
    assert_eq!(error.to_string(), "RAM block pc.ram can't be read from outside");
}

#[tokio::test]
async fn guest_in_the_background_is_found() {
    // After the fork the socket's peer is a process that has ended.
    let mut guest = Guest::start(&["-M", "pc", "-daemonize"]).await;
    guest.process.0.wait().expect("the foreground process ends");
    let memory = GuestMemory::locate(&guest.qmp).await;
    let read = memory.as_ref().map(|memory| memory.read(0, 0, &mut [0; PAGE_SIZE]));
    // First of all, since nothing else ends this process.
    guest.qmp.quit().await.expect("quit");
    assert!(matches!(read, Ok(Ok(()))), "{read:?}");
    assert_ne!(memory.expect("locate").pid(), guest.pid());
}

#[tokio::test]
async fn monitor_answers_are_understood() {
    let mut guest = Guest::start(&["-M", "pc", "-uuid", "00000000-0000-4000-8000-00000000002a"]).await;
    let qmp = guest.qmp.clone();
    let features = qmp.features().await.expect("features");
    assert!(
        features.return_path && features.events && features.late_block_activate && features.query_ramblock
    );
    assert_eq!(
        features.switchover_ack,
        qmp.version().major > 8 || qmp.version().major == 8 && qmp.version().minor >= 1
    );
    assert_eq!(qmp.query_name().await.expect("name").as_deref(), Some("lab"));
    assert_eq!(qmp.query_uuid().await.expect("uuid"), "00000000-0000-4000-8000-00000000002a");
    let machine = qmp.current_machine().await.expect("machine");
    let types = qmp.machine_types().await.expect("machine types");
    let pc = types.iter().find(|kind| kind.alias.as_deref() == Some("pc")).expect("pc");
    assert_eq!(pc.name, machine);
    let state = qmp.query_status().await.expect("status");
    assert_eq!((state.status.as_str(), state.running), ("prelaunch", false));
    qmp.set_capabilities(&[("events", true), ("return-path", true)]).await.expect("capabilities");
    assert!(qmp.capabilities().await.expect("capabilities").contains(&("return-path".into(), true)));
    let error = qmp.set_capabilities(&[("no-such", true)]).await.expect_err("unknown capability");
    assert!(error.to_string().contains("migrate-set-capabilities") && error.to_string().contains("no-such"));
    let old = qmp.parameters().await.expect("parameters")["max-bandwidth"].clone();
    let set = |value| qmp.set_parameters([("max-bandwidth".to_owned(), value)].into_iter().collect());
    set(json!(20480)).await.expect("parameters");
    assert_eq!(qmp.parameters().await.expect("parameters")["max-bandwidth"], 20480);
    set(old.clone()).await.expect("restored");
    assert_eq!(qmp.parameters().await.expect("parameters")["max-bandwidth"], old);
    assert_eq!(qmp.query_migrate().await.expect("migration").status, MigrationStatus::None);
    fail_to_migrate(&mut guest).await;
    qmp.quit().await.expect("quit");
    assert!(guest.process.0.wait().expect("wait").success());
}

/// To a target that hangs up.
async fn fail_to_migrate(guest: &mut Guest) {
    let path = guest.directory.path().join("target");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    let uri = format!("unix:{}", path.display());
    let (started, accepted) = tokio::join!(guest.qmp.migrate(&uri), listener.accept());
    started.expect("migrate");
    drop(accepted);
    loop {
        let event = guest.events.recv().await.expect("events");
        if event.name == "MIGRATION" && event.data["status"] == "failed" {
            assert!(event.time_us > 1_600_000_000_000_000);
            break;
        }
    }
    let info = guest.qmp.query_migrate().await.expect("migration");
    assert_eq!(info.status, MigrationStatus::Failed);
    assert!(!info.status.is_under_way());
}
