//! Memory whose content can be checked at any time: random data that stays, and an area that is rewritten.

const WORDS: usize = 512;

/// Bytes of a page of the rewritten area.
pub(crate) const PAGE_SIZE: usize = WORDS * 8;

/// A splitmix64 step: cheap enough for an emulated processor, and its output does not compress.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A checksum against accidents, not against attackers: every step is a bijection of the state, so one changed
/// word always changes the result.
pub(crate) fn checksum(mut state: u64, words: &[u64]) -> u64 {
    for &word in words {
        state = (state ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
    }
    state
}

/// [`checksum`] of bytes; the last word is filled up with zeroes.
pub(crate) fn checksum_bytes(mut state: u64, bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8);
    let mut last = [0u8; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    for word in words {
        state = checksum(state, &[u64::from_le_bytes(word.try_into().expect("8 bytes"))]);
    }
    checksum(state, &[u64::from_le_bytes(last), bytes.len() as u64])
}

/// Random data that is written once.
pub(crate) struct RandomData {
    words: Vec<u64>,
    sum: u64,
}

impl RandomData {
    /// `bytes` of random content.
    pub(crate) fn new(bytes: usize, mut seed: u64) -> Self {
        let words: Vec<u64> = (0..bytes / 8).map(|_| next_random(&mut seed)).collect();
        let sum = checksum(0, &words);
        Self { words, sum }
    }

    /// Adds up 64 KiB after another, and tells of each.
    pub(crate) fn sum_parts(&self, mut done: impl FnMut()) {
        for part in self.words.chunks(8192) {
            std::hint::black_box(checksum(0, part));
            done();
        }
    }

    pub(crate) fn is_intact(&self) -> bool {
        checksum(0, &self.words) == self.sum
    }

    pub(crate) fn len(&self) -> usize {
        self.words.len() * 8
    }
}

#[repr(align(4096))]
#[derive(Clone)]
struct Page([u64; WORDS]);

/// Pages that are rewritten in turn. Each says which page it is and how often it was written, so a lost, stale or
/// misplaced page is found and not only a damaged one.
pub(crate) struct DirtyArea {
    pages: Vec<Page>,
    generations: Vec<u64>,
    secret: u64,
    next: usize,
    rewritten: u64,
}

impl DirtyArea {
    /// An area of `pages` pages, all written once.
    pub(crate) fn new(pages: usize, secret: u64) -> Self {
        let mut area = Self {
            pages: vec![Page([0; WORDS]); pages],
            generations: vec![0; pages],
            secret,
            next: 0,
            rewritten: 0,
        };
        for _ in 0..pages {
            area.rewrite_next();
        }
        area.rewritten = 0;
        area
    }

    /// Gives the next page, round robin, its next content.
    pub(crate) fn rewrite_next(&mut self) {
        let index = self.next;
        self.generations[index] += 1;
        let generation = self.generations[index];
        fill(&mut self.pages[index].0, self.secret, index as u64, generation);
        self.next = (index + 1) % self.pages.len();
        self.rewritten += 1;
    }

    /// The number of the first page that does not hold what was last written to it.
    pub(crate) fn first_damaged(&self) -> Option<usize> {
        let mut expected = [0; WORDS];
        (0..self.pages.len()).find(|&index| {
            fill(&mut expected, self.secret, index as u64, self.generations[index]);
            expected != self.pages[index].0
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Pages rewritten since the area was made.
    pub(crate) fn rewritten(&self) -> u64 {
        self.rewritten
    }
}

fn fill(words: &mut [u64; WORDS], secret: u64, index: u64, generation: u64) {
    let mut state = secret ^ index.rotate_left(40) ^ generation;
    words[0] = index;
    words[1] = generation;
    for word in &mut words[2..WORDS - 1] {
        *word = next_random(&mut state);
    }
    words[WORDS - 1] = checksum(0, &words[..WORDS - 1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_of_random_data_is_found() {
        let mut data = RandomData::new(1 << 16, 1);
        assert!(data.is_intact());
        data.words[4000] ^= 1 << 17;
        assert!(!data.is_intact());
    }

    #[test]
    fn damaged_stale_and_swapped_pages_are_found() {
        let mut area = DirtyArea::new(8, 7);
        let stale = area.pages[0].clone();
        area.rewrite_next();
        assert_eq!((area.first_damaged(), area.rewritten()), (None, 1));
        let good = std::mem::replace(&mut area.pages[0], stale);
        assert_eq!(area.first_damaged(), Some(0));
        area.pages[0] = good;
        area.pages.swap(2, 3);
        assert_eq!(area.first_damaged(), Some(2));
        area.pages.swap(2, 3);
        area.pages[5].0[100] ^= 1;
        assert_eq!(area.first_damaged(), Some(5));
    }

    #[test]
    fn the_length_is_part_of_a_checksum() {
        assert_ne!(checksum_bytes(0, &[1, 2, 3]), checksum_bytes(0, &[1, 2, 3, 0]));
        assert_ne!(checksum_bytes(0, &[1, 2, 3]), checksum_bytes(0, &[1, 2, 4]));
    }
}
