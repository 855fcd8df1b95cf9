//! Which of the latest numbers have been seen, in a ring of bits (as RFC 6479 has it for packet numbers).

/// Remembers the numbers seen among the last `words * 64`, give or take a word; older ones count as seen.
#[derive(Debug)]
pub(crate) struct NumberWindow {
    /// One more than the highest number seen.
    below: u64,
    bits: Box<[u64]>,
}

impl NumberWindow {
    pub(crate) fn new(numbers: u64) -> Self {
        NumberWindow { below: 0, bits: vec![0; numbers.div_ceil(64) as usize].into() }
    }

    pub(crate) fn below(&self) -> u64 {
        self.below
    }

    pub(crate) fn is_seen(&self, number: u64) -> bool {
        if number >= self.below {
            // The last number has no successor to put into `below`.
            return number == u64::MAX;
        }
        number < self.first() || self.bits[self.word(number)] & bit(number) != 0
    }

    pub(crate) fn mark(&mut self, number: u64) {
        if number >= self.below {
            let (old, new, words) = (self.below.div_ceil(64), number / 64 + 1, self.bits.len() as u64);
            // Where the jump is longer than the ring, all of it is cleared.
            for word in old..new.min(old + words) {
                self.bits[(word % words) as usize] = 0;
            }
            self.below = number + 1;
        }
        let word = self.word(number);
        self.bits[word] |= bit(number);
    }

    /// Whole words leave the ring, so the oldest number in reach is the first of one.
    fn first(&self) -> u64 {
        self.below.div_ceil(64).saturating_sub(self.bits.len() as u64) * 64
    }

    fn word(&self, number: u64) -> usize {
        ((number / 64) % self.bits.len() as u64) as usize
    }
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 8_192;

    proptest! {
        /// Against the plain definition: a set of what was seen. The window may refuse what is old, but never
        /// what is near the newest, and never takes a number twice.
        #[test]
        fn takes_each_number_once(steps in proptest::collection::vec((0u64..3, 0u64..20_000), 1..300)) {
            let (mut window, mut seen, mut newest) = (NumberWindow::new(SIZE), BTreeSet::new(), 0u64);
            for (way, by) in steps {
                let number = match way {
                    0 => newest + by % 70,
                    1 => newest.saturating_sub(by % 300),
                    _ => if by % 2 == 0 { newest + by } else { newest.saturating_sub(by) },
                };
                if seen.contains(&number) {
                    prop_assert!(window.is_seen(number));
                } else if number + SIZE - 64 > newest {
                    prop_assert!(!window.is_seen(number), "{number} of {newest}");
                }
                if !window.is_seen(number) {
                    window.mark(number);
                    prop_assert!(seen.insert(number));
                    newest = newest.max(number);
                }
            }
            prop_assert_eq!(window.below(), seen.last().unwrap() + 1);
        }
    }
}
