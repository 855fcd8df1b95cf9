//! What the guests of the placement experiment do, and which of them do the same.

use std::fmt::Write;

use serde::Serialize;

/// A workload of the Debian disk (scripts/workloads).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// The C compiler on one of four source trees.
    Compile,
    /// sysbench: processor, memory, and one of four file sets.
    Sysbench,
    /// Visits to one of four book shops, as the shop's database sees them.
    Shop,
}

impl Workload {
    /// All of them, in the order in which the paper's table has them.
    pub const ALL: [Self; 3] = [Self::Compile, Self::Sysbench, Self::Shop];

    /// Its name on the disk, in options and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compile => "compile",
            Self::Sysbench => "sysbench",
            Self::Shop => "shop",
        }
    }

    /// The families of guests: the guests of one work on the same files.
    pub fn families(self) -> [&'static str; 4] {
        match self {
            Self::Compile => ["musl", "busybox", "mbedtls", "zstd"],
            Self::Sysbench => ["rndrd", "seqrd", "rndrw", "mmap"],
            Self::Shop => ["fiction", "science", "travel", "school"],
        }
    }

    /// The family of guest number `number`, from 1: in turn.
    pub fn family(self, number: usize) -> &'static str {
        self.families()[(number + 3) % 4]
    }

    /// What a guest is told on the kernel's command line.
    pub(crate) fn kernel_words(self, number: usize) -> String {
        let mut words = String::new();
        for (name, value) in [("workload", self.name()), ("family", self.family(number))] {
            let _ = write!(words, " load.{name}={value}");
        }
        words + &format!(" load.number={number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_guests_are_three_of_each_family() {
        for workload in Workload::ALL {
            let of = |family: &str| (1..=12).filter(|number| workload.family(*number) == family).count();
            assert_eq!(workload.families().map(of), [3; 4]);
        }
        assert_eq!(Workload::Shop.kernel_words(5), " load.workload=shop load.family=fiction load.number=5");
    }
}
