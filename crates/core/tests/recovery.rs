//! Deterministic simulation of agents, hosts, QEMUs and networks that fail at any step, and of the recovery behind
//! it: `SIM_SEEDS=N` runs more seeds, `SIM_SEED=S` replays one.

mod crash;
mod sim;

use crash::{Tally, World};

fn run_seeds(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut total = Tally::default();
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        let tally = run.unwrap_or_else(|_| panic!("seed {seed} fails; replay it with SIM_SEED={seed}"));
        total.add(&tally);
    }
    total
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

#[test]
fn every_crash_has_one_end() {
    let Some(seed) = number("SIM_SEED") else {
        let total = run_seeds(0..number("SIM_SEEDS").unwrap_or(600));
        println!("{total:?}");
        // A simulation in which little fails, or in which recovery has little to do, would show little.
        assert!(total.moved > 0 && total.stayed > 0 && total.lost > 0, "{total:?}");
        assert!(total.crashes > 0 && total.torn > 0 && total.forced > 0, "{total:?}");
        assert!(total.recovered > total.vms / 4, "{total:?}");
        return;
    };
    println!("{:?}", run_seeds(seed..seed + 1));
}
