//! What a guest's monitor says of it while it is on its way.

use std::time::{Duration, Instant};

use vmscatter_core::session::VmStage;

use super::actor::{Actor, TaskEnd};
use super::guest::ended;
use crate::qemu::qmp::QmpEvent;
use crate::report::event::{JobEvent, Phase};

/// A QEMU that has closed its monitor has ended by then, if it ends.
const END_MAX: Duration = Duration::from_secs(5);
/// Name of the event with which a monitor's end is told.
pub(super) const CLOSED: &str = "VMSCATTER_MONITOR_CLOSED";

impl Actor {
    pub(super) fn qmp_event(&mut self, vm: u16, event: &QmpEvent) {
        let status = event.data["status"].as_str();
        match (event.name.as_str(), status) {
            ("STOP", _) => {
                self.session.source_stopped(vm);
                let state = &mut self.vms[usize::from(vm)];
                state.times.stopped_unix_us = event.time_us;
                state.times.stopped = Some(Instant::now());
                state.stream.hurry();
                if self.session.stage(vm) == Some(VmStage::Streaming) {
                    self.tell_phase(vm, Phase::HandOff);
                }
            }
            ("MIGRATION", Some("completed")) => self.session.completed(vm),
            ("MIGRATION", Some("failed")) => {
                self.session.source_resumed(vm);
                self.migration_failed(vm);
            }
            ("RESUME", _) => {
                self.vms[usize::from(vm)].times.stopped = None;
                self.session.source_resumed(vm);
            }
            // Behind the end of RAM the guest is stopped; then it is QEMU that is told to end.
            ("SHUTDOWN", _) if !self.ram_has_ended(vm) => {
                self.session.failed(vm, "the guest shut down".to_owned());
            }
            // Its memory is written anew, which QEMU's rounds carry like everything else.
            ("RESET", _) if !self.ram_has_ended(vm) => {
                let guest = Some(self.vms[usize::from(vm)].guest.name.clone());
                let text = "the guest was reset on its way; it is moved all the same".to_owned();
                self.sink.emit(JobEvent::Warning { guest, text });
            }
            ("GUEST_PANICKED", _) if !self.ram_has_ended(vm) => {
                self.session.failed(vm, "the guest panicked".to_owned());
            }
            (CLOSED, _) => self.monitor_closed(vm),
            _ => {}
        }
    }

    fn ram_has_ended(&self, vm: u16) -> bool {
        self.session.stage(vm).is_some_and(|stage| stage >= VmStage::RamEnded)
    }

    /// QEMU closes its monitor when it ends. What that means for the guest follows only if it does end.
    fn monitor_closed(&mut self, vm: u16) {
        let process = self.vms[usize::from(vm)].guest.process;
        self.task(vm, async move {
            let gone = match process {
                Some(process) => ended(process, END_MAX).await,
                None => false,
            };
            Some(if gone {
                TaskEnd::Gone
            } else {
                TaskEnd::Failed("the source QEMU has closed its monitor".to_owned())
            })
        });
    }

    /// QEMU says why, if it is asked.
    fn migration_failed(&mut self, vm: u16) {
        let monitor = self.vms[usize::from(vm)].guest.monitor.clone();
        self.task(vm, async move {
            let reason = monitor.migration_error().await;
            Some(TaskEnd::Failed(match reason {
                Some(reason) => format!("QEMU's migration failed: {reason}"),
                None => "QEMU's migration failed".to_owned(),
            }))
        });
    }
}
