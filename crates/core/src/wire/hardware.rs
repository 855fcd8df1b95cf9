//! What a guest sees of its machine besides RAM: compared with the incoming twin's before anything is changed, since QEMU
//! itself finds most differences only when it loads device state, with the guest stopped, and some never.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Processors and devices of a guest, as its QEMU names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Virtual processors.
    pub cpus: u32,
    /// QEMU's type of the first of them, e.g. `Haswell-x86_64-cpu`.
    pub cpu_model: String,
    /// What it announces by CPUID, where QEMU tells it.
    pub cpu_features: Vec<CpuidWord>,
    /// Devices that were given or plugged.
    pub devices: Vec<Device>,
}

/// One register of a processor's CPUID answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CpuidWord {
    /// EAX and, where it matters, ECX of the question.
    pub leaf: (u32, Option<u32>),
    /// `EAX` to `EDX`.
    pub register: String,
    /// The feature bits.
    pub bits: u32,
}

/// A device that was given or plugged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Device {
    /// Its `id`; empty if it was given none.
    pub id: String,
    /// QEMU's type, e.g. `virtio-blk-pci`.
    pub kind: String,
}

/// In what the incoming twin differs from the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HardwareError {
    /// Another number of processors.
    #[error("{here} virtual CPUs here, and {there} at the source")]
    Cpus {
        /// The twin's.
        here: u32,
        /// The guest's.
        there: u32,
    },
    /// Another model.
    #[error("CPU model is {here} here, and {there} at the source")]
    CpuModel {
        /// The twin's.
        here: String,
        /// The guest's.
        there: String,
    },
    /// The guest may use what it would not find here.
    #[error(
        "the guest's CPU has features that it would not have here: CPUID {0} (start guests with a CPU model that all hosts have)"
    )]
    CpuFeatures(Bits),
    /// The twin lacks a device.
    #[error("no device {0} here, which the guest has (was it plugged after the guest was started?)")]
    Missing(Device),
    /// The twin has one more.
    #[error(
        "a device {0} here, which the guest does not have (was it unplugged after the guest was started?)"
    )]
    Surplus(Device),
}

/// Feature bits of a CPUID word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(CpuidWord);

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CpuidWord { leaf: (eax, ecx), register, bits } = &self.0;
        write!(f, "{eax:#x}")?;
        if let Some(ecx) = ecx {
            write!(f, ".{ecx}")?;
        }
        write!(f, " {register} bits")?;
        let set = (0..32).filter(|bit| bits & (1 << bit) != 0);
        set.enumerate().try_for_each(|(at, bit)| write!(f, "{}{bit}", if at == 0 { " " } else { ", " }))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id.is_empty() {
            true => f.write_str(&self.kind),
            false => write!(f, "'{}' ({})", self.id, self.kind),
        }
    }
}

impl Hardware {
    /// Whether a guest with this hardware can go on in a twin with hardware `here`. More CPU features than the guest has
    /// do not hinder it.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_twin(&self, here: &Hardware) -> Result<(), HardwareError> {
        if self.cpus != here.cpus {
            return Err(HardwareError::Cpus { here: here.cpus, there: self.cpus });
        }
        if self.cpu_model != here.cpu_model {
            return Err(HardwareError::CpuModel {
                here: here.cpu_model.clone(),
                there: self.cpu_model.clone(),
            });
        }
        self.check_features(here)?;
        let (ours, theirs) = (count(&here.devices), count(&self.devices));
        if let Some((device, _)) = theirs.iter().find(|(device, n)| ours.get(*device).unwrap_or(&0) < n) {
            return Err(HardwareError::Missing((*device).clone()));
        }
        if let Some((device, _)) = ours.iter().find(|(device, n)| theirs.get(*device).unwrap_or(&0) < n) {
            return Err(HardwareError::Surplus((*device).clone()));
        }
        Ok(())
    }

    /// A word that one QEMU does not tell of has no feature there.
    fn check_features(&self, here: &Hardware) -> Result<(), HardwareError> {
        if self.cpu_features.is_empty() || here.cpu_features.is_empty() {
            return Ok(());
        }
        let place = |word: &CpuidWord| (word.leaf, word.register.clone());
        let ours: BTreeMap<_, u32> = here.cpu_features.iter().map(|word| (place(word), word.bits)).collect();
        for word in &self.cpu_features {
            let lacking = word.bits & !ours.get(&place(word)).unwrap_or(&0);
            if lacking != 0 {
                return Err(HardwareError::CpuFeatures(Bits(CpuidWord { bits: lacking, ..word.clone() })));
            }
        }
        Ok(())
    }
}

fn count(devices: &[Device]) -> BTreeMap<&Device, usize> {
    let mut counts = BTreeMap::new();
    devices.iter().for_each(|device| *counts.entry(device).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(eax: u32, register: &str, bits: u32) -> CpuidWord {
        CpuidWord { leaf: (eax, (eax == 7).then_some(0)), register: register.into(), bits }
    }

    fn device(id: &str, kind: &str) -> Device {
        Device { id: id.into(), kind: kind.into() }
    }

    fn guest() -> Hardware {
        Hardware {
            cpus: 2,
            cpu_model: "Haswell-x86_64-cpu".into(),
            cpu_features: vec![word(1, "EDX", 0b1011), word(7, "EBX", 0)],
            devices: vec![device("disk", "virtio-blk-pci"), device("", "e1000"), device("", "e1000")],
        }
    }

    fn refused(change: impl FnOnce(&mut Hardware)) -> String {
        let mut twin = guest();
        change(&mut twin);
        guest().check_twin(&twin).unwrap_err().to_string()
    }

    #[test]
    fn the_same_and_more_features_pass() {
        assert_eq!(guest().check_twin(&guest()), Ok(()));
        let mut twin = guest();
        twin.cpu_features = vec![word(7, "EBX", 0xff), word(1, "EDX", 0b1111), word(0xd, "EAX", 1)];
        twin.devices.reverse();
        assert_eq!(guest().check_twin(&twin), Ok(()));
        // Of a processor without CPUID, or a QEMU that does not tell.
        twin.cpu_features.clear();
        assert_eq!(guest().check_twin(&twin), Ok(()));
    }

    #[test]
    fn differences_are_named() {
        assert_eq!(refused(|twin| twin.cpus = 1), "1 virtual CPUs here, and 2 at the source");
        assert!(refused(|twin| twin.cpu_model = "qemu64".into()).contains("qemu64 here, and Haswell"));
        let lost = refused(|twin| twin.cpu_features[0].bits = 0b0100);
        assert!(lost.contains("CPUID 0x1 EDX bits 0, 1, 3 ("), "{lost}");
        let lost = refused(|twin| drop(twin.cpu_features.remove(0)));
        assert!(lost.contains("CPUID 0x1 EDX bits 0, 1, 3 ("), "{lost}");
        assert!(
            refused(|twin| drop(twin.devices.remove(0))).contains("no device 'disk' (virtio-blk-pci) here")
        );
        assert!(refused(|twin| drop(twin.devices.remove(2))).contains("no device e1000 here"));
        assert!(refused(|twin| twin.devices.push(device("", "e1000"))).contains("a device e1000 here"));
    }
}
