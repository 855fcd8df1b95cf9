//! The same bytes by `udpcast` and `uftp`, each with several settings, of which the fastest counts.
//!
//! Their time is taken in their favour: from the first to the last moment at which their sender's link carries data, so
//! that neither their handshakes nor their farewells count. What arrived is compared with what was sent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::scenario::{Options, TARGETS};
use crate::host::{Host, Lab};

const LOOK: Duration = Duration::from_millis(2);
/// Above this the link carries data, not farewells.
const DATA_BYTES_PER_S: f64 = 2e6;
/// What uftp's manual has its blocks be shorter than a packet, and the longest that it takes, in bytes.
const UFTP_HEADERS_BYTES: u16 = 100;
const UFTP_BLOCK_BYTES_MAX: u16 = 8800;
const WINDOW: Duration = Duration::from_millis(100);
const END_MAX: Duration = Duration::from_secs(90);

/// Another multicast file transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Rival {
    /// udp-sender and udp-receiver
    Udpcast,
    /// uftp and uftpd
    Uftp,
}

/// One run of a rival.
#[derive(Debug, Serialize)]
pub(super) struct RivalRun {
    pub(super) rival: Rival,
    /// The sender's options.
    pub(super) options: String,
    /// From the first to the last data; None if it did not arrive whole everywhere.
    pub(super) seconds: Option<f64>,
    /// Through the source's shaping qdisc.
    pub(super) wire_bytes: u64,
}

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(host: &Host, program: &str, arguments: &[&str], directory: &Path) -> Result<Running> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(File::create(directory.join("log"))?);
    Ok(Running(host.spawn(&mut command)?))
}

/// Bytes that the process's host has put on its interface.
fn sent_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"))?;
    line.split_ascii_whitespace().nth(8)?.parse().ok()
}

/// Waits for the sender's end; returns the span in which its link carried data.
fn watch(sender: &mut Running) -> Result<Option<f64>> {
    let pid = sender.0.id();
    let mut marks: Vec<(Instant, u64)> = Vec::new();
    let (mut first, mut last) = (None, None);
    let begun = Instant::now();
    while sender.0.try_wait()?.is_none() {
        if begun.elapsed() > END_MAX {
            return Ok(None);
        }
        thread::sleep(LOOK);
        let (Some(bytes), now) = (sent_bytes(pid), Instant::now()) else { continue };
        marks.push((now, bytes));
        let old = marks.iter().rposition(|(at, _)| now - *at >= WINDOW);
        let Some((at, before)) = old.map(|old| marks.drain(..=old).next_back().expect("one at least")) else {
            continue;
        };
        if (bytes - before) as f64 / (now - at).as_secs_f64() > DATA_BYTES_PER_S {
            first.get_or_insert(at);
            last = Some(now);
        }
    }
    ensure!(sender.0.wait()?.success(), "the sender failed");
    Ok(first.zip(last).map(|(first, last)| (last - first).as_secs_f64() - WINDOW.as_secs_f64()))
}

/// A file of noise in memory; both ends' files stand there.
pub(super) struct Material {
    directory: PathBuf,
    file: PathBuf,
    bytes: u64,
}

impl Material {
    pub(super) fn new(bytes: u64) -> Result<Material> {
        let directory = PathBuf::from(format!("/dev/shm/lab-transport-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let file = directory.join("payload");
        std::io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut File::create(&file)?)?;
        Ok(Material { directory, file, bytes })
    }
}

impl Drop for Material {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Rival {
    /// All of them.
    pub const ALL: [Rival; 2] = [Self::Udpcast, Self::Uftp];

    /// Options of the sender that are tried where links carry so much.
    fn settings(self, link_mbit: u64) -> Vec<String> {
        let kbit = |per_mille: u64| per_mille * link_mbit;
        match self {
            Self::Udpcast => {
                let limit = format!("--max-bitrate {}m", kbit(950) / 1_000);
                vec![
                    "--full-duplex".to_owned(),
                    format!("--full-duplex {limit}"),
                    format!("--half-duplex {limit}"),
                    format!("--full-duplex {limit} --fec 8x8/128"),
                ]
            }
            Self::Uftp => {
                let limits = [950, 900, 800, 600].map(|per_mille| format!("-R {}", kbit(per_mille)));
                let found = format!("-C tfmcc:init={}:max={}", kbit(500), kbit(950));
                limits.into_iter().chain(["-R -1".to_owned(), found]).collect()
            }
        }
    }

    /// Sends the material with each setting in turn.
    pub(super) fn run(self, lab: &Lab, material: &Material, on: &Options) -> Result<Vec<RivalRun>> {
        let settings = self.settings(on.link_mbit);
        settings.iter().map(|options| self.run_with(lab, material, options, on.mtu)).collect()
    }

    fn run_with(self, lab: &Lab, material: &Material, options: &str, mtu: u16) -> Result<RivalRun> {
        let before = lab.network.sent_bytes(&lab.source.link)?;
        let mut receivers = Vec::new();
        for host in &lab.targets[..TARGETS] {
            let directory = material.directory.join(&host.name);
            fs::create_dir_all(&directory)?;
            let _ = fs::remove_file(directory.join("payload"));
            receivers.push(match self {
                Self::Udpcast => {
                    let arguments = ["--nokbd", "--no-progress", "--interface", "eth0", "--file", "payload"];
                    start(host, "udp-receiver", &arguments, &directory)?
                }
                Self::Uftp => {
                    let place = directory.to_str().context("a path in UTF-8")?;
                    let arguments = [
                        "-d",
                        "-q",
                        "-I",
                        "eth0",
                        "-B",
                        "104857600",
                        "-D",
                        place,
                        "-L",
                        "uftpd.log",
                        "-c",
                        "1000000000",
                    ];
                    start(host, "uftpd", &arguments[..10], &directory)?
                }
            });
        }
        thread::sleep(Duration::from_millis(500));
        let file = material.file.to_str().context("a path in UTF-8")?;
        let count = TARGETS.to_string();
        let block = (mtu - UFTP_HEADERS_BYTES).min(UFTP_BLOCK_BYTES_MAX).to_string();
        let options_list = options.split_ascii_whitespace();
        let mut sender = match self {
            Self::Udpcast => {
                let mut arguments =
                    vec!["--nokbd", "--no-progress", "--interface", "eth0", "--min-receivers", &count];
                arguments.extend(["--file", file].into_iter().chain(options_list));
                start(&lab.source, "udp-sender", &arguments, &material.directory)?
            }
            Self::Uftp => {
                let mut arguments = vec!["-I", "eth0", "-B", "104857600", "-b", &block, "-r", "0.05:0.01:1"];
                arguments.extend(options_list.chain([file]));
                start(&lab.source, "uftp", &arguments, &material.directory)?
            }
        };
        let seconds = watch(&mut sender)?;
        thread::sleep(Duration::from_millis(500));
        drop(receivers);
        let whole = lab.targets[..TARGETS].iter().all(|host| {
            let arrived = material.directory.join(&host.name).join("payload");
            same(&arrived, &material.file).unwrap_or(false)
        });
        let wire_bytes = lab.network.sent_bytes(&lab.source.link)? - before;
        Ok(RivalRun {
            rival: self,
            options: options.to_owned(),
            seconds: seconds.filter(|_| whole),
            wire_bytes,
        })
    }
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut a)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..read])?;
        if a[..read] != b[..read] {
            return Ok(false);
        }
    }
}

/// The runs as text, the fastest of each first.
pub(super) fn table(runs: &[(super::Scenario, Vec<RivalRun>)], material: &Material) -> String {
    let mut text = Vec::new();
    for (scenario, runs) in runs {
        for run in runs {
            let speed = match run.seconds {
                Some(seconds) => format!("{:.0} Mbit/s", material.bytes as f64 * 8.0 / seconds / 1e6),
                None => "did not arrive whole".to_owned(),
            };
            let wire = run.wire_bytes as f64 / material.bytes as f64;
            let _ = writeln!(
                text,
                "{scenario:?} {:?} {}: {speed}, {wire:.3} bytes sent for one of payload",
                run.rival, run.options
            );
        }
    }
    String::from_utf8(text).expect("made of text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_scaled_and_nothing_else() {
        let scaled: Vec<String> = Rival::ALL.into_iter().flat_map(|rival| rival.settings(400)).collect();
        assert_eq!(
            scaled,
            [
                "--full-duplex",
                "--full-duplex --max-bitrate 380m",
                "--half-duplex --max-bitrate 380m",
                "--full-duplex --max-bitrate 380m --fec 8x8/128",
                "-R 380000",
                "-R 360000",
                "-R 320000",
                "-R 240000",
                "-R -1",
                "-C tfmcc:init=200000:max=380000",
            ]
        );
    }
}
