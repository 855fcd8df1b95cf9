//! Less processor weight for the guests' vCPUs.
//!
//! A real host has cores to spare for its agent; here the guests, the QEMUs' migration threads and the agents of all
//! hosts share a few. So vCPU threads run at nice 19 in every mode alike. Nice counts only within one autogroup while the
//! kernel has these on (each session has its own), so the lab switches them off while it runs.
//!
//! Checked with two spinning processes of each kind in sessions of their own, two cores, five seconds (Linux 6.18;
//! hundredths of a second of processor time, low : normal): nice 19 with autogroups 434 : 437, without 8 : 544.

use std::io;

use anyhow::{Context, Result};
use serde_json::json;

use crate::qmp::Qmp;

/// Weight of a vCPU thread: 15 against the 1024 of other threads (kernel/sched/core.c: sched_prio_to_weight).
const VCPU_NICE: i32 = 19;

/// Gives all vCPU threads of a QEMU their low weight.
pub fn lower_vcpus(qmp: &Qmp) -> Result<()> {
    set_vcpus(qmp, VCPU_NICE)
}

/// Gives them the weight of any other thread again, for work that is not measured.
pub fn restore_vcpus(qmp: &Qmp) -> Result<()> {
    set_vcpus(qmp, 0)
}

fn set_vcpus(qmp: &Qmp, nice: i32) -> Result<()> {
    let vcpus = qmp.execute("query-cpus-fast", json!({}))?;
    for vcpu in vcpus.as_array().context("query-cpus-fast: no list")? {
        let thread = vcpu["thread-id"].as_u64().context("query-cpus-fast: no thread-id")?;
        // SAFETY: no pointers. On Linux PRIO_PROCESS with a thread's id sets that thread's nice value.
        let result = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, thread as u32, nice) };
        if result != 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("nice of vCPU thread {thread}"));
        }
    }
    Ok(())
}
