//! What fuzzers have found, again, with every build.

use std::path::Path;
use std::time::{Duration, Instant};

use fuzz::TARGETS;

/// An input that takes longer than this is as good as a hang: the longest take milliseconds, unoptimised.
const INPUT_MAX: Duration = Duration::from_secs(10);

#[test]
fn corpora() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in TARGETS {
        let mut count = 0;
        for file in std::fs::read_dir(corpora.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")) {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            // Told before, so that a panic can be placed.
            println!("{}", path.display());
            let begun = Instant::now();
            target(&bytes);
            assert!(begun.elapsed() < INPUT_MAX, "{}: {:?}", path.display(), begun.elapsed());
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}
