//! Guests: the file that describes one, the QEMUs that run it, and its life from boot to the last check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;

use crate::assets::Assets;
use crate::host::Host;
use crate::placement::Workload;
use crate::qmp::Qmp;
use crate::serial::Serial;
use crate::weight;

/// The program that runs the guests.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Twelve guests of two cores under TCG are ready within a third of it.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// What a guest rewrites by default: 2 MiB per second, and a sixteenth more to be never below.
pub const DIRTY_KIB_PER_S: u32 = 2176;

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// A disk of a guest's own; nothing is on it.
const OWN_DISK_BYTES: u64 = 16 << 20;

/// How guests are made.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// MiB of RAM.
    pub memory_mib: u32,
    /// What runs them.
    pub accel: Accel,
    /// KiB per second that each rewrites.
    pub dirty_kib_per_s: u32,
    /// The same of the first guest, where it is to differ.
    pub first_dirty_kib_per_s: Option<u32>,
    /// QEMU's machine type.
    pub machine: String,
    /// QEMU's processor. With RDRAND the kernel's randomness is there from the start.
    pub cpu: String,
    /// What runs in them beside the load that all guests have.
    pub workload: Option<Workload>,
    /// Contents that only some of them have in common.
    pub shared: Option<SharedSets>,
    /// Each has a disk of its own that it may write to, and that QEMU locks.
    pub own_disks: bool,
}

/// Contents for each set of two or more of some guests: just the guests of the set hold them.
#[derive(Debug, Clone, Copy)]
pub struct SharedSets {
    /// The guests of which there are sets: these first ones.
    pub guests: usize,
    /// Pages for each set.
    pub pages: usize,
}

impl SharedSets {
    /// What guest number `number` is told of it.
    fn kernel_words(&self, number: usize) -> String {
        format!(" load.shared={number},{},{}", self.guests, self.pages)
    }
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            memory_mib: 256,
            accel: Accel::Tcg,
            dirty_kib_per_s: DIRTY_KIB_PER_S,
            first_dirty_kib_per_s: None,
            machine: "pc".to_owned(),
            // The best that the accelerator has.
            cpu: "max".to_owned(),
            workload: None,
            shared: None,
            own_disks: false,
        }
    }
}

/// A guest as vmscatter is told of it: a command line with placeholders, filled in by each host. `{name}` and
/// `{run_dir}` are given, others, such as `{qemu}`, come from the host's configuration.
#[derive(Debug, Clone, Serialize)]
pub struct GuestFile {
    /// The guest's name, unique in the lab.
    pub name: String,
    /// The monitor for vmscatter, on whichever host.
    pub qmp: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl GuestFile {
    /// Describes guest number `number`, from 1.
    pub fn new(number: usize, assets: &Assets, options: &GuestOptions) -> Self {
        let name = format!("vm{number}");
        let accel = match options.accel {
            Accel::Kvm => "kvm",
            // The default would reserve a sixteenth of the machine's memory for each guest's translations.
            Accel::Tcg => "tcg,tb-size=128",
        };
        // On a busy machine an emulated timer fails the check that it ticks in time, and the kernel would give up.
        let append = format!(
            "console=ttyS0 loglevel=4 no_timer_check panic=0 load.dirty_kib={}{}{}",
            options.first_dirty_kib_per_s.filter(|_| number == 1).unwrap_or(options.dirty_kib_per_s),
            options.workload.map_or(String::new(), |workload| workload.kernel_words(number)),
            options.shared.map_or(String::new(), |shared| shared.kernel_words(number))
        );
        let arguments = [
            "{qemu}",
            "-name",
            "{name}",
            "-uuid",
            &format!("5ca77e20-0000-4000-8000-{number:012x}"),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            &format!("{},usb=off", options.machine),
            "-accel",
            accel,
            "-cpu",
            &options.cpu,
            "-smp",
            "1",
            "-m",
            &memory_size(options),
            "-kernel",
            &assets.kernel.display().to_string(),
            "-initrd",
            &assets.initramfs.display().to_string(),
            "-append",
            &append,
            "-drive",
            &format!("file={},if=none,id=disk,format=raw,readonly=on", assets.disk.display()),
            "-device",
            "virtio-blk-pci,drive=disk",
            "-device",
            "pvpanic",
            "-chardev",
            "socket,id=serial,path={run_dir}/{name}.serial,server=on,wait=off",
            "-serial",
            "chardev:serial",
            "-qmp",
            "unix:{run_dir}/{name}.qmp,server=on,wait=off",
            "-qmp",
            "unix:{run_dir}/{name}.lab-qmp,server=on,wait=off",
        ];
        let mut command: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
        if let Some(debian) = &assets.debian {
            let drive = format!("file={},if=none,id=debian,format=raw,readonly=on", debian.display());
            command.extend(["-drive", &drive, "-device", "virtio-blk-pci,drive=debian"].map(str::to_owned));
        }
        Self { qmp: "{run_dir}/{name}.qmp".to_owned(), command, name }
    }

    /// The command on a host.
    pub fn command_on(&self, host: &Host) -> Vec<String> {
        let (qemu, run_dir) = (host.qemu.display().to_string(), host.run_dir.display().to_string());
        let values = [("{qemu}", qemu.as_str()), ("{run_dir}", &run_dir), ("{name}", &self.name)];
        let fill = |argument: &String| {
            values
                .iter()
                .fold(argument.clone(), |text, (placeholder, value)| text.replace(placeholder, value))
        };
        self.command.iter().map(fill).collect()
    }

    /// Gives it a disk of its own to write to, in `directory`, which all hosts see.
    pub(crate) fn add_disk(&mut self, directory: &Path) -> Result<()> {
        let path = directory.join(format!("{}.img", self.name));
        fs::File::create(&path)?.set_len(OWN_DISK_BYTES)?;
        let drive = format!("file={},if=none,id=own,format=raw,cache=none", path.display());
        self.command.extend(["-drive", &drive, "-device", "virtio-blk-pci,drive=own"].map(str::to_owned));
        Ok(())
    }

    /// Writes it to `<directory>/<name>.toml`.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join(format!("{}.toml", self.name));
        fs::write(&path, toml::to_string(self)?)?;
        Ok(path)
    }

    /// Starts its QEMU on a host. `incoming`: as the twin that waits for a migration.
    pub fn start(&self, host: &Host, incoming: bool) -> Result<Qemu> {
        let words = self.command_on(host);
        let log_path = host.run_dir.join(format!("{}.log", self.name));
        let log = fs::File::create(&log_path)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if incoming {
            command.args(["-S", "-incoming", "defer"]);
        }
        // A group of its own: Ctrl-C is for the lab, which then ends the guests.
        let child = host.spawn(std::os::unix::process::CommandExt::process_group(&mut command, 0))?;
        let mut child = Reaped(child);
        match Qmp::connect(&self.monitor(host), START_TIMEOUT) {
            Ok(qmp) => Ok(Qemu { qmp, child: Some(child) }),
            Err(error) => {
                child.end();
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                Err(error.context(format!("QEMU of {} did not start: {}", self.name, log.trim())))
            }
        }
    }

    /// The lab's monitor of it on a host.
    pub fn monitor(&self, host: &Host) -> PathBuf {
        host.run_dir.join(format!("{}.lab-qmp", self.name))
    }

    /// Its serial line on a host.
    pub fn serial(&self, host: &Host) -> PathBuf {
        host.run_dir.join(format!("{}.serial", self.name))
    }
}

/// A child that does not outlive its owner.
#[derive(Debug)]
struct Reaped(Child);

impl Reaped {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        self.end();
    }
}

/// A QEMU that runs a guest or waits for one.
#[derive(Debug)]
pub struct Qemu {
    /// The lab's monitor.
    pub qmp: Qmp,
    /// None for one that an agent has started.
    child: Option<Reaped>,
}

impl Qemu {
    /// A QEMU that someone else starts, now or within `timeout`.
    pub fn attach(monitor: &Path, timeout: Duration) -> Result<Self> {
        let qemu = Self { qmp: Qmp::connect(monitor, timeout)?, child: None };
        weight::lower_vcpus(&qemu.qmp)?;
        Ok(qemu)
    }

    /// Ends it and waits for its end.
    pub fn quit(mut self) {
        // Killed and not asked: what it held is no longer of interest.
        if let Some(child) = &mut self.child {
            child.end();
        } else {
            let _ = self.qmp.execute("quit", json!({}));
        }
    }
}

/// A guest that was booted.
#[derive(Debug)]
pub struct Guest {
    /// How it is described.
    pub file: GuestFile,
    /// Its serial line, wherever it runs.
    pub serial: Arc<Serial>,
    /// The QEMU it was booted in.
    pub source: Qemu,
    /// What it said when it was ready.
    pub ready: String,
    /// Whether it was not booted but goes on from a saved state, so that its first tick here is not number 0.
    pub restored: bool,
}

impl Guest {
    /// Starts it; it is ready after [`Guest::wait_ready`].
    pub fn start(file: GuestFile, host: &Host) -> Result<Self> {
        let source = file.start(host, false)?;
        let serial = Arc::new(Serial::default());
        serial.attach(&file.serial(host), START_TIMEOUT)?;
        Ok(Self { file, serial, source, ready: String::new(), restored: false })
    }

    /// Waits until its workload runs.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = self.serial.wait_line("R ", BOOT_TIMEOUT);
        self.ready = ready.with_context(|| format!("{} did not boot", self.file.name))?;
        ensure!(self.serial.wait_ticks(0, 5, CHECK_TIMEOUT), "{} does not tick", self.file.name);
        // Not before: while it boots it competes with nobody but its like, and a starved kernel gives up.
        weight::lower_vcpus(&self.source.qmp)
    }

    /// Where address randomisation put its kernel.
    pub fn kernel_address(&self) -> &str {
        fact(&self.ready, "text").unwrap_or("unknown")
    }

    /// Has the guest check all its data; returns what it counted, or what is wrong.
    pub fn check(&self) -> Result<String> {
        let answer = self.serial.ask("check", "C ", CHECK_TIMEOUT)?;
        match answer.strip_prefix("ok ") {
            Some(facts) => Ok(facts.to_owned()),
            None => bail!("{answer}"),
        }
    }
}

/// RAM for `-m`.
///
/// Under TCG, QEMU before 9.0 forgets pages that a guest dirties while it migrates: clearing the dirty bitmap by whole
/// words does not reset the translator's TLB, so later stores pass unmarked ("physmem: Fix migration dirty bitmap
/// coherency with TCG memory access", March 2024; not in Debian 12's 7.2). In off-the-shelf runs of six guests each had
/// some 10 to 30 pages that differed at the target, and nearly all their kernels panicked. A block that is no multiple of
/// 64 pages is synchronised page by page, which does reset the TLB; hence 8 KiB more. The price is a pause of the guest
/// at the first synchronisation, in every mode alike.
fn memory_size(options: &GuestOptions) -> String {
    let forgets = options.accel == Accel::Tcg && qemu_major() < 9;
    format!("{}k", u64::from(options.memory_mib) * 1024 + if forgets { 8 } else { 0 })
}

/// What a QEMU's `--version` says first, or nothing if it can't be run.
pub fn qemu_version(program: &Path) -> String {
    let output =
        Command::new(program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
}

/// `7.2.22` of `QEMU emulator version 7.2.22 (Debian …)`; `None` if it can't be run or says something else.
pub(crate) fn qemu_number(program: &Path) -> Option<String> {
    let version = qemu_version(program);
    let (_, rest) = version.split_once("version ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

/// QEMU's major version; 0, the most careful answer, if it is not understood.
fn qemu_major() -> u32 {
    static MAJOR: OnceLock<u32> = OnceLock::new();
    *MAJOR.get_or_init(|| {
        let number = qemu_number(Path::new(QEMU)).unwrap_or_default();
        number.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    })
}

/// The value of `name=` in a guest's line.
pub fn fact<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
