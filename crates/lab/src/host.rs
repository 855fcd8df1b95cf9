//! The lab as a whole: one source host, its target hosts, the network between them, and their removal.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, ensure};

use crate::guest::QEMU;
use crate::net::{Link, Namespace, Network};
use crate::state;

/// Hosts that fit the lab's address range.
const MAX_HOSTS: usize = 200;

/// A host: a network namespace and a directory for its sockets.
#[derive(Debug, Clone)]
pub struct Host {
    /// `source`, `host1`, `host2` …
    pub name: String,
    /// Its link to the switch.
    pub link: Link,
    /// What runs guests here.
    pub qemu: PathBuf,
    /// Where its QEMUs and its agent have their sockets.
    pub run_dir: PathBuf,
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.link.namespace
    }
}

/// Held by the process's lab: a second one waits, for two would disturb each other's figures.
static ONE_LAB: Mutex<()> = Mutex::new(());

/// One source host, target hosts and the network. Dropping it ends every process in it and removes all of it. A process
/// has one lab at a time: [`Lab::new`] on another thread waits for it, on the same thread for ever.
#[derive(Debug)]
pub struct Lab {
    /// The host that guests leave.
    pub source: Host,
    /// The hosts they can go to.
    pub targets: Vec<Host>,
    /// Switch and counters.
    pub network: Network,
    directory: PathBuf,
    // Last, so that all is gone when the next lab begins.
    _only: MutexGuard<'static, ()>,
}

impl Lab {
    /// A lab with `targets` target hosts, each link of `rate` in tc's notation. What dead labs left is removed first.
    pub fn new(targets: usize, rate: &str) -> Result<Self> {
        Self::with_igmp(targets, rate, 2)
    }

    /// The same with a switch that asks for groups in this version of IGMP: in 3 it keeps sources apart.
    pub fn with_igmp(targets: usize, rate: &str, igmp: u8) -> Result<Self> {
        ensure!((1..MAX_HOSTS).contains(&targets), "a lab has 1 to {} target hosts", MAX_HOSTS - 1);
        // A test that panicked with its lab has also removed it.
        let only = ONE_LAB.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let directory = state::claim()?;
        // From here on whatever fails must be undone.
        let built = Self::build(targets, rate, igmp, directory, only);
        if built.is_err() {
            state::remove(process::id());
        }
        built
    }

    fn build(
        targets: usize,
        rate: &str,
        igmp: u8,
        directory: PathBuf,
        only: MutexGuard<'static, ()>,
    ) -> Result<Self> {
        state::disable_autogroup();
        let network = Network::create(&state::prefix(process::id()), rate, igmp)?;
        let source = make_host(&network, &directory, "source".to_owned(), 0)?;
        let targets =
            (1..=targets).map(|index| make_host(&network, &directory, format!("host{index}"), index));
        Ok(Self { source, targets: targets.collect::<Result<_>>()?, network, directory, _only: only })
    }

    /// Adds one more host, which is in nobody's set unless it is named as a target.
    pub fn add_host(&mut self) -> Result<&Host> {
        let index = self.targets.len() + 1;
        ensure!(index < MAX_HOSTS, "the lab is full");
        self.targets.push(make_host(&self.network, &self.directory, format!("host{index}"), index)?);
        self.targets.last().context("just added")
    }

    /// The source, and then the targets.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        std::iter::once(&self.source).chain(&self.targets)
    }

    /// The lab's directory, for files of a session: configurations, keys, guest files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        state::remove(process::id());
    }
}

fn make_host(network: &Network, directory: &Path, name: String, index: usize) -> Result<Host> {
    let link = network.add_host(u8::try_from(index)?).with_context(|| format!("host {name}"))?;
    let run_dir = directory.join(format!("h{index}"));
    std::fs::create_dir_all(&run_dir)?;
    Ok(Host { name, link, qemu: QEMU.into(), run_dir })
}
