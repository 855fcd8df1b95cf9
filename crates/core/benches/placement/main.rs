//! How good placements are, and how fast they are found: `cargo bench -p vmscatter-core --bench placement
//! [-- small|structured|fleet]`.
//!
//! 1. The exact search against brute force, on random problems with constraints.
//! 2. Twelve VMs that share in several ways, spread evenly over 2, 3, 4 and 6 targets: VMScatter's greedy placement, the
//!    local search, the bound, and 60 random even groupings, each as a multiple of the exact optimum.
//! 3. A fleet of 1,000 VMs on 100 hosts, known by a sketch: time, memory, cost against greedy and bound; and whether what the
//!    sketch promises holds for contents that it has not seen.
//!
//! Ends with an error if a figure is worse than what is asked of it.

mod fleet;
mod random;
mod small;
mod structured;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut checks = Checks::default();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let parts: [(&str, fn(&mut Checks)); 3] =
        [("small", small::run), ("structured", structured::run), ("fleet", fleet::run)];
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run(&mut checks);
        }
    }
    checks.print()
}

/// What was asked, and whether it was met.
#[derive(Default)]
struct Checks {
    lines: Vec<(bool, String)>,
}

impl Checks {
    fn add(&mut self, met: bool, what: String) {
        self.lines.push((met, what));
    }

    fn print(self) -> ExitCode {
        println!("\nAsked and met?");
        for (met, what) in &self.lines {
            println!("  {:3} {what}", if *met { "yes" } else { "NO" });
        }
        if self.lines.iter().all(|(met, _)| *met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
