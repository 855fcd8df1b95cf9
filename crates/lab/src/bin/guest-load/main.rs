//! Init and workload of a lab guest.
//!
//! It runs as process 1 of a guest that has nothing else. Every guest reads the same files into its page cache, holds
//! random data of its own, and keeps rewriting an area at a steady rate; all of it can be checked at any time.
//! On the serial line it says, one line each:
//!
//! - `R files=N bytes=N cached=N random=N text=ADDRESS` once it is ready (`text` is where the kernel was put);
//! - `T <seq>` every 20 ms, from 0, each number once;
//! - `C ok <facts>` or `C bad <what>` in answer to a line `check`;
//! - `P done=N` once a workload from the Debian disk is warm;
//! - `N units=N` in answer to a line `count`: what it has done besides, if it was told to work all the time;
//! - `E <reason>` if it can't go on.
//!
//! A line `sysrq X` has the kernel do what its key X does: `b` resets the guest, `o` switches it off. `panic` tells QEMU that the
//! guest has panicked, as a kernel with a driver for its device pvpanic does.
//!
//! Kernel command line: `load.dirty_kib=` per second (2176), `load.area_mib=` (8), `load.random_mib=` (16), `load.work=` 1
//! to work all the time (0); `load.shared=` number, guests and pages, for contents that only some guests have (none); and,
//! for a program of the second disk, `load.workload=`, `load.family=` and `load.number=` (none).

mod memory;
mod sys;
mod workload;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use memory::{DirtyArea, PAGE_SIZE, RandomData, SharedData};
use workload::Task;

const TICK: Duration = Duration::from_millis(20);
/// QEMU's ISA device pvpanic: where it listens, and what says that the guest has panicked (docs/specs/pvpanic in QEMU).
const PVPANIC_PORT: u16 = 0x505;
const PVPANIC_PANICKED: u8 = 1;
const DISK_WAIT: Duration = Duration::from_secs(60);

/// What the kernel command line asks for.
struct Options {
    dirty_kib_per_s: u64,
    area_mib: usize,
    random_mib: usize,
    works: bool,
    /// Which guest of how many this is, and the pages for each set of them.
    shared: Option<(u32, u32, u64)>,
    task: Option<Task>,
}

/// The files of the disk, and their checksum when they were first read.
struct Files {
    paths: Vec<PathBuf>,
    bytes: usize,
    sum: u64,
}

type Line = Arc<Mutex<File>>;

fn main() {
    if std::process::id() != 1 {
        eprintln!("guest-load is the init of a lab guest and does nothing elsewhere");
        std::process::exit(2);
    }
    let Err(error) = run();
    // The serial line may be what failed; then there is nobody to tell.
    if let Ok(mut line) = File::options().write(true).open("/dev/ttyS0") {
        let _ = writeln!(line, "E {error}");
    }
    // Were init to return, the kernel would panic over the message.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn run() -> io::Result<std::convert::Infallible> {
    for (source, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        // Made here, so that the initramfs needs no directories; /dev is there already.
        let _ = fs::create_dir(target);
        sys::mount_at(source, target, source, false)?;
    }
    load_modules();
    // Nothing of the kernel's may mix with the ticks from here on.
    fs::write("/proc/sys/kernel/printk", "1")?;
    let options = options(&fs::read_to_string("/proc/cmdline")?);
    let terminal = File::options().read(true).write(true).open("/dev/ttyS0")?;
    sys::make_raw(&terminal)?;
    let line: Line = Arc::new(Mutex::new(terminal.try_clone()?));

    mount_disk("/dev/vda", "/disk")?;
    let files = Files::read("/disk")?;
    let random = Arc::new(RandomData::new(options.random_mib << 20, seed()?));
    let shared = options.shared.map(|(number, guests, pages)| SharedData::new(number, guests, pages));
    let area = DirtyArea::new((options.area_mib << 20) / PAGE_SIZE, seed()?);
    let area = Arc::new(Mutex::new(area));
    say(
        &line,
        &format!(
            "R files={} bytes={} cached={} random={} text={}",
            files.paths.len(),
            files.bytes,
            files.cached()?,
            random.len(),
            kernel_text()?
        ),
    )?;

    let started = Instant::now();
    let ticks = line.clone();
    thread::spawn(move || tick(&ticks));
    let dirtied = area.clone();
    thread::spawn(move || dirty(&dirtied, options.dirty_kib_per_s << 10));
    let units = Arc::new(AtomicU64::new(0));
    if options.works {
        let (random, units) = (random.clone(), units.clone());
        thread::spawn(move || work(&random, &units));
    }
    if let Some(task) = &options.task {
        workload::start(task, &line)?;
    }
    serve(terminal, |command| match command {
        "check" => {
            let answer = match shared.as_ref().is_none_or(SharedData::is_intact) {
                true => check(&files, &random, &area, started),
                false => Ok("C bad shared data".to_owned()),
            };
            say(&line, &answer.unwrap_or_else(|error| format!("C bad {error}")))
        }
        command if command.starts_with("sysrq ") => {
            fs::write("/proc/sysrq-trigger", command.trim_start_matches("sysrq "))
        }
        "panic" => sys::write_port(PVPANIC_PORT, PVPANIC_PANICKED),
        "count" => say(&line, &format!("N units={}", units.load(Relaxed))),
        _ => Ok(()),
    })
}

fn load_modules() {
    let mut modules: Vec<PathBuf> = fs::read_dir("/modules")
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    // Their names begin with their place in the order of loading.
    modules.sort();
    for path in modules {
        // A module that this kernel won't take shows as a missing disk below, with a message that names it.
        if let Err(error) = File::open(&path).and_then(|module| sys::load_module(&module)) {
            let _ = fs::write("/dev/kmsg", format!("guest-load: {}: {error}\n", path.display()));
        }
    }
}

fn options(command_line: &str) -> Options {
    let text = |name: &str| {
        let mut words = command_line.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let value = |name, default: u64| text(name).and_then(|value| value.parse().ok()).unwrap_or(default);
    let task = text("load.workload").zip(text("load.family"));
    Options {
        dirty_kib_per_s: value("load.dirty_kib", 2176),
        area_mib: value("load.area_mib", 8) as usize,
        random_mib: value("load.random_mib", 16) as usize,
        works: value("load.work", 0) != 0,
        shared: text("load.shared").and_then(|text| {
            let mut numbers = text.split(',').filter_map(|number| number.parse::<u32>().ok());
            Some((numbers.next()?, numbers.next()?, numbers.next()?.into()))
        }),
        task: task.map(|(workload, family)| Task { workload, family, number: value("load.number", 0) }),
    }
}

/// Mounts a disk read-only at a directory of the initramfs, which is made.
fn mount_disk(device: &str, directory: &str) -> io::Result<()> {
    let _ = fs::create_dir(directory);
    let since = Instant::now();
    loop {
        match sys::mount_at(device, directory, "ext4", true) {
            Ok(()) => return Ok(()),
            Err(error) if since.elapsed() > DISK_WAIT => {
                return Err(io::Error::other(format!("{device}: {error}")));
            }
            // The driver probes the device in the background.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The address of the kernel's text, which address randomisation makes differ from boot to boot.
fn kernel_text() -> io::Result<String> {
    for symbol in BufReader::new(File::open("/proc/kallsyms")?).lines() {
        let symbol = symbol?;
        if let Some(address) = symbol.strip_suffix(" T _text").or_else(|| symbol.strip_suffix(" T _stext")) {
            return Ok(address.to_owned());
        }
    }
    Ok("unknown".to_owned())
}

impl Files {
    fn read(root: &str) -> io::Result<Self> {
        let mut paths = Vec::new();
        walk(Path::new(root), &mut paths)?;
        paths.sort();
        let (bytes, sum) = sum_of(&paths)?;
        Ok(Self { paths, bytes, sum })
    }

    /// Pages of all files that are in the page cache.
    fn cached(&self) -> io::Result<usize> {
        let mut pages = 0;
        for path in &self.paths {
            let file = File::open(path)?;
            pages += sys::cached_pages(&file, file.metadata()?.len() as usize)?;
        }
        Ok(pages)
    }
}

fn walk(directory: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // mke2fs makes lost+found, readable by root only, which we are.
            walk(&entry.path(), paths)?;
        } else if kind.is_file() {
            paths.push(entry.path());
        }
    }
    Ok(())
}

fn sum_of(paths: &[PathBuf]) -> io::Result<(usize, u64)> {
    let (mut bytes, mut sum) = (0, 0);
    let mut buffer = vec![0; 1 << 18];
    for path in paths {
        let mut file = File::open(path)?;
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            bytes += length;
            sum = memory::checksum_bytes(sum, &buffer[..length]);
        }
    }
    Ok((bytes, sum))
}

fn say(line: &Line, text: &str) -> io::Result<()> {
    // One write, so that lines of several threads do not mix.
    line.lock().expect("no thread panics while it writes").write_all(format!("{text}\n").as_bytes())
}

fn tick(line: &Line) {
    sys::set_nice(-19);
    for sequence in 0u64.. {
        if say(line, &format!("T {sequence}")).is_err() {
            return;
        }
        // Not up to a point in time: after a pause the ticks must not come in a burst.
        thread::sleep(TICK);
    }
}

fn dirty(area: &Mutex<DirtyArea>, bytes_per_s: u64) {
    // Before a check, which takes all of the processor for a while; after the ticks.
    sys::set_nice(-10);
    let started = Instant::now();
    let mut done = 0;
    loop {
        let due = (started.elapsed().as_micros() as u64 * bytes_per_s).div_ceil(1_000_000 * PAGE_SIZE as u64);
        while done < due {
            area.lock().expect("no thread panics while it holds the area").rewrite_next();
            done += 1;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads memory and computes for as long as the guest lives, and counts.
fn work(random: &RandomData, units: &AtomicU64) {
    // After everything else.
    sys::set_nice(5);
    loop {
        random.sum_parts(|| {
            units.fetch_add(1, Relaxed);
        });
    }
}

fn serve(terminal: File, answer: impl Fn(&str) -> io::Result<()>) -> io::Result<std::convert::Infallible> {
    let mut commands = BufReader::new(terminal);
    let mut command = String::new();
    loop {
        command.clear();
        if commands.read_line(&mut command)? == 0 {
            thread::sleep(TICK);
        }
        answer(command.trim())?;
    }
}

fn check(files: &Files, random: &RandomData, area: &Mutex<DirtyArea>, since: Instant) -> io::Result<String> {
    // Counted before the files are read again, which would bring back what the cache had lost.
    let cached = files.cached()?;
    if !random.is_intact() {
        return Ok("C bad random data".to_owned());
    }
    let (bytes, sum) = sum_of(&files.paths)?;
    if (bytes, sum) != (files.bytes, files.sum) {
        return Ok("C bad files".to_owned());
    }
    let area = area.lock().expect("no thread panics while it holds the area");
    if let Some(page) = area.first_damaged() {
        return Ok(format!("C bad page {page} of the rewritten area"));
    }
    Ok(format!(
        "C ok cached={cached} random={} area={} rewritten={} ms={}",
        random.len(),
        area.len(),
        area.rewritten(),
        since.elapsed().as_millis()
    ))
}
