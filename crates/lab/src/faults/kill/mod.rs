//! `lab kill-matrix`: at each step of a guest's way everything that can be killed or cut off is, on real guests.
//!
//! - `matrix`: steps, faults, and which end rule 4 leaves to whom
//! - `cell`: one step and one fault, from a fresh boot to the guests' ends
//! - `table`: what came of it
//!
//! Three guests are on their way: vm1, at whose step something happens; vm3, which goes to the same host; and vm2, which goes to another and has
//! nothing to do with it unless it is the source's agent that dies. In every second cell they have disks
//! of their own to write to; in the others they have none, as image locks would hide a guest that runs twice.

mod cell;
mod matrix;
mod table;

use std::time::Instant;

use anyhow::Result;

pub use matrix::{Fault, Step};

use crate::assets::Assets;
use crate::progress::Progress;
use crate::session::Settings;
use matrix::Cell;
use table::Table;

/// Which cells are played.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Only these steps; none named: all.
    pub steps: Vec<Step>,
    /// Only these faults; none named: all.
    pub faults: Vec<Fault>,
    /// A few cells, for every day.
    pub short: bool,
}

impl Choice {
    fn cells(&self) -> Vec<Cell> {
        let all = if self.short { Cell::SHORT.to_vec() } else { Cell::all().collect() };
        let wanted = |cell: &Cell| {
            (self.steps.is_empty() || self.steps.contains(&cell.step))
                && (self.faults.is_empty() || self.faults.contains(&cell.fault))
        };
        all.into_iter().filter(wanted).collect()
    }
}

/// Plays the cells, prints a line for each and a table of all; whether every guest of every cell has found the end that it should.
pub fn run(settings: &Settings, choice: &Choice) -> Result<bool> {
    let progress = Progress::default();
    let assets = Assets::prepare()?;
    let mut table = Table::default();
    for (number, cell) in choice.cells().into_iter().enumerate() {
        let mut settings = settings.clone();
        settings.guest.own_disks = number % 2 == 1;
        let since = Instant::now();
        let result = cell::play(cell, &settings, &assets, &progress);
        let took = since.elapsed().as_secs_f64();
        println!("{}", table::line(cell, &result, took));
        table.add(cell, result.ok());
    }
    progress.finish();
    println!("{table}");
    Ok(table.is_good())
}
