//! What an operator says of where guests may go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::agent::input::{BadInput, one_line};

/// A pin: this guest goes to this target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The guest's name.
    pub guest: String,
    /// The target's name.
    pub target: String,
}

/// What keeps guests from targets, besides memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementRules {
    /// Guests with a given target.
    pub pins: Vec<Pin>,
    /// Groups of guests of which no two share a target.
    pub apart: Vec<Vec<String>>,
    /// Guests that a target takes at most; `None`: as many as an even spread gives it.
    pub vms_max: Option<u32>,
    /// As few targets as possible.
    pub few_targets: bool,
}

impl PlacementRules {
    /// Checks names and numbers; `is_guest` and `is_target` tell who takes part.
    ///
    /// # Errors
    /// One line that begins with the option.
    pub fn check(
        &self,
        is_guest: impl Fn(&str) -> Result<(), String>,
        is_target: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), BadInput> {
        let mut pinned = BTreeMap::new();
        for pin in &self.pins {
            let bad = |detail: String| BadInput::new(format!("--vm {}={}", pin.guest, pin.target), detail);
            is_guest(&pin.guest).map_err(bad)?;
            is_target(&pin.target).map_err(bad)?;
            if let Some(other) = pinned.insert(&pin.guest, &pin.target) {
                return Err(bad(format!("the guest is pinned to '{other}' already")));
            }
        }
        for group in &self.apart {
            let bad = |detail: String| BadInput::new(format!("--apart {}", group.join(",")), detail);
            for (at, guest) in group.iter().enumerate() {
                is_guest(guest).map_err(bad)?;
                if group[..at].contains(guest) {
                    return Err(bad(format!("'{}' is named twice", one_line(guest))));
                }
            }
            if group.len() < 2 {
                return Err(bad("names fewer than two guests".into()));
            }
        }
        if self.vms_max == Some(0) {
            return Err(BadInput::new("--vms-max", "must be 1 or more"));
        }
        Ok(())
    }
}
