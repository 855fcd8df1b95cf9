//! What a QEMU says of its machine besides RAM: processors and devices.

use serde::Deserialize;
use serde_json::{Value, json};
use vmscatter_core::wire::hardware::{CpuidWord, Device, Hardware};

use super::qmp::{Qmp, QmpError, QmpErrorKind, one_line};

/// Where QEMU keeps devices that were given or plugged, and whether they have an `id`.
const PARENTS: [(&str, bool); 2] = [("/machine/peripheral", true), ("/machine/peripheral-anon", false)];

/// A device that was given or plugged, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Its last component is the `id`, or `device[n]`.
    pub(super) path: String,
    /// QEMU's type.
    pub(super) kind: String,
    named: bool,
}

impl Placed {
    /// The `id`, or `device[n]`.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// The devices that were given or plugged; what a machine has by itself is none of these.
pub(super) async fn devices(qmp: &Qmp) -> Result<Vec<Placed>, QmpError> {
    #[derive(Deserialize)]
    struct Property {
        name: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let mut devices = Vec::new();
    for (parent, named) in PARENTS {
        let children: Vec<Property> = qmp.ask("qom-list", json!({ "path": parent })).await?;
        devices.extend(children.into_iter().filter_map(|child| {
            let kind = child.kind.strip_prefix("child<")?.strip_suffix('>')?;
            Some(Placed { path: format!("{parent}/{}", one_line(&child.name)), kind: one_line(kind), named })
        }));
    }
    Ok(devices)
}

/// Processors and devices of this QEMU's machine.
///
/// # Errors
/// The monitor's.
pub async fn hardware(qmp: &Qmp) -> Result<Hardware, QmpError> {
    #[derive(Deserialize)]
    struct Cpu {
        #[serde(rename = "qom-path")]
        path: String,
    }
    let cpus: Vec<Cpu> = qmp.ask("query-cpus-fast", json!({})).await?;
    let mut hardware = Hardware { cpus: cpus.len() as u32, ..Hardware::default() };
    if let Some(Cpu { path }) = cpus.first() {
        let model = property(qmp, path, "type").await?;
        hardware.cpu_model = one_line(model.as_ref().and_then(Value::as_str).unwrap_or_default());
        hardware.cpu_features = cpu_features(property(qmp, path, "feature-words").await?);
    }
    let device = |device: Placed| Device {
        id: if device.named { device.name().to_owned() } else { String::new() },
        kind: device.kind,
    };
    hardware.devices = devices(qmp).await?.into_iter().map(device).collect();
    Ok(hardware)
}

/// Words without a feature say nothing.
fn cpu_features(words: Option<Value>) -> Vec<CpuidWord> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Word {
        cpuid_input_eax: u32,
        cpuid_input_ecx: Option<u32>,
        cpuid_register: String,
        features: u32,
    }
    let words: Vec<Word> = words.and_then(|words| serde_json::from_value(words).ok()).unwrap_or_default();
    let words = words.into_iter().filter(|word| word.features != 0);
    let mut words: Vec<_> = words
        .map(|word| CpuidWord {
            leaf: (word.cpuid_input_eax, word.cpuid_input_ecx),
            register: one_line(&word.cpuid_register),
            bits: word.features,
        })
        .collect();
    words.sort();
    words
}

/// An object's property, `None` where the object does not have it.
pub(super) async fn property(qmp: &Qmp, path: &str, property: &str) -> Result<Option<Value>, QmpError> {
    answered(qmp, "qom-get", json!({ "path": path, "property": property })).await
}

/// `None` where QEMU refuses: it has no such command or property, or what it is about is off.
pub(super) async fn answered(qmp: &Qmp, command: &str, arguments: Value) -> Result<Option<Value>, QmpError> {
    match qmp.execute(command, arguments).await {
        Ok(answer) => Ok(Some(answer)),
        Err(QmpError { kind: QmpErrorKind::Refused { .. }, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
