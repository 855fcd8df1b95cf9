//! What came of the cells: a line each, and all of them at a glance.

use std::fmt;

use anyhow::Result;

use super::cell::Ends;
use super::matrix::{Cell, End, Fault, Step};

/// A line for one cell.
pub(super) fn line(cell: Cell, result: &Result<Ends>, took: f64) -> String {
    let what = format!("{:<10} {:<14}", cell.step.name(), cell.fault.name());
    match result {
        Ok(ends) => {
            let [vm1, vm2, vm3] = ends.ends.map(End::name);
            format!("{what} ok     vm1 {vm1}{}, vm2 {vm2}, vm3 {vm3} ({took:.1} s)", mark(ends))
        }
        Err(error) => format!("{what} FAILED {error:#} ({took:.1} s)"),
    }
}

fn mark(ends: &Ends) -> &'static str {
    match (ends.decided, ends.recovered) {
        (true, _) => " **",
        (false, true) => " *",
        (false, false) => "",
    }
}

/// All cells that were played.
#[derive(Debug, Default)]
pub(super) struct Table {
    cells: Vec<(Cell, Option<Ends>)>,
}

impl Table {
    pub(super) fn add(&mut self, cell: Cell, ends: Option<Ends>) {
        self.cells.push((cell, ends));
    }

    /// Whether every guest has found the end that it should.
    pub(super) fn is_good(&self) -> bool {
        !self.cells.is_empty() && self.cells.iter().all(|(_, ends)| ends.is_some())
    }

    fn at(&self, step: Step, fault: Fault) -> String {
        match self.cells.iter().find(|(cell, _)| *cell == Cell { step, fault }) {
            None => "-".to_owned(),
            Some((_, None)) => "FAILED".to_owned(),
            Some((_, Some(ends))) => format!("{}{}", ends.ends[0].name(), mark(ends)),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nWhere vm1 is found in the end, by its step and by what was done:\n")?;
        let header = Fault::ALL.map(Fault::name);
        writeln!(f, "| step | {} |", header.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(header.len()))?;
        for step in Step::ALL {
            let row = Fault::ALL.map(|fault| self.at(step, fault));
            if row.iter().any(|cell| cell != "-") {
                writeln!(f, "| {} | {} |", step.name(), row.join(" | "))?;
            }
        }
        let good: Vec<&Ends> = self.cells.iter().filter_map(|(_, ends)| ends.as_ref()).collect();
        let count = |end| good.iter().flat_map(|ends| ends.ends).filter(|found| *found == end).count();
        let by = |what: fn(&Ends) -> bool| good.iter().filter(|ends| what(ends)).count();
        writeln!(f, "\n* after 'vmscatter recover'; ** after the operator's decision; else by themselves")?;
        write!(
            f,
            "{} of {} cells good: {} guests run at the source, {} at their targets, {} ended with the QEMU that was killed; none runs twice, \
             none is lost; in {} cells 'recover' was called, in {} the operator decided",
            good.len(),
            self.cells.len(),
            count(End::Source),
            count(End::Target),
            count(End::Gone),
            by(|ends| ends.recovered),
            by(|ends| ends.decided),
        )
    }
}
