//! A limit on the memory of some processes, by whichever memory cgroup the system has; beyond it Linux kills the largest.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A cgroup of its own; it goes with the value, once its processes have ended.
#[derive(Debug)]
pub struct MemoryLimit {
    directory: PathBuf,
}

impl MemoryLimit {
    /// Limits what the process `pid`, and what it starts from now on, may have in memory together.
    pub fn new(name: &str, bytes: u64, pid: u32) -> Result<Self> {
        // Version 1, where it is mounted, else version 2.
        let kinds = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, limit) in kinds {
            let directory = PathBuf::from(root).join(name);
            if !PathBuf::from(root).join("cgroup.procs").exists() || fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Self { directory };
            if !group.directory.join(limit).exists() {
                continue;
            }
            group.write(limit, bytes)?;
            group.write("cgroup.procs", u64::from(pid))?;
            return Ok(group);
        }
        bail!("no memory cgroup can be made here");
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, value.to_string()).with_context(|| path.display().to_string())
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // It can't be removed while the last of its processes is ending.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}
