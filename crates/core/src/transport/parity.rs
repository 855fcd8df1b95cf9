//! Parity pieces: each replaces any one piece of its frame that a receiver misses, whichever that is.
//!
//! Receivers that miss different pieces of a frame are all served by as many parity pieces as the one of them misses that misses
//! most (as in NORM, RFC 5740, section 4.2). They are made with a Cauchy matrix over GF(2^8), by the construction of Blömer et al. (An XOR-based
//! erasure-resilient coding scheme, 1995): a piece is eight strips, multiplying it by a constant is an 8 × 8 matrix of bits over them, and
//! all that is done with bytes is XOR, which compilers make wide instructions of. The matrix is scaled so that the first
//! parity piece is the XOR of all pieces.
//!
//! A frame of many pieces is several [blocks], with parity of their own: piece *i* of *b* blocks is in block *i* mod *b*, so that pieces lost
//! together are missed in different blocks.

use std::sync::LazyLock;

use crate::wire::piece::{BLOCK_PARITY, BLOCK_PIECES, STRIPS, blocks};

// Rows and columns of the matrix are told apart by the numbers of the field. A block has less than half as many pieces again.
const _: () = assert!(BLOCK_PIECES + BLOCK_PIECES / 2 + BLOCK_PARITY <= 256);

/// The block of a piece, in a frame of `count`.
pub(super) fn block_of(index: u16, count: u16) -> u16 {
    index % blocks(count)
}

/// Indices of the pieces of a block.
pub(super) fn block_pieces(block: u16, count: u16) -> impl Iterator<Item = u16> + Clone {
    (block..count).step_by(usize::from(blocks(count)))
}

/// x^8 + x^4 + x^3 + x^2 + 1.
const POLYNOMIAL: u16 = 0x11d;

/// Powers and logarithms of x, and of each number the matrix that multiplies by it.
struct Tables {
    powers: [u8; 510],
    logarithms: [u8; 256],
    /// Per strip of a product, the strips of a piece whose sum it is, as bits.
    matrices: [[u8; STRIPS]; 256],
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables { powers: [0; 510], logarithms: [0; 256], matrices: [[0; STRIPS]; 256] };
    let mut power = 1u16;
    for exponent in 0..255 {
        tables.powers[exponent] = power as u8;
        tables.powers[exponent + 255] = power as u8;
        tables.logarithms[usize::from(power)] = exponent as u8;
        power = twice(power);
    }
    for number in 0..=255u8 {
        let mut product = u16::from(number);
        for from in 0..STRIPS {
            for (to, bits) in tables.matrices[usize::from(number)].iter_mut().enumerate() {
                *bits |= ((product >> to & 1) as u8) << from;
            }
            product = twice(product);
        }
    }
    tables
});

/// Times x.
fn twice(number: u16) -> u16 {
    let twice = number << 1;
    if twice > 0xff { twice ^ POLYNOMIAL } else { twice }
}

fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let log = |x: u8| usize::from(TABLES.logarithms[usize::from(x)]);
    TABLES.powers[log(a) + log(b)]
}

/// Of a number that is not zero.
fn inverse(a: u8) -> u8 {
    TABLES.powers[255 - usize::from(TABLES.logarithms[usize::from(a)])]
}

/// By what the piece at `column` of its block is multiplied in the parity piece at `row`.
fn coefficient(row: u16, column: u16) -> u8 {
    let x = |row: u16| row as u8;
    let y = (BLOCK_PARITY + column) as u8;
    // 1 / (x + y), divided by what the first row has there.
    multiply(inverse(x(row) ^ y), x(0) ^ y)
}

/// Adds pieces, each multiplied by its factor, to `to`, which is as long as each of them. Four strips at a time: most of the time goes
/// into reading and writing `to`.
fn add_multiples(pieces: &[(u8, &[u8])], to: &mut [u8]) {
    let (strip, matrices) = (to.len() / STRIPS, &TABLES.matrices);
    for (row, to) in to.chunks_exact_mut(strip).enumerate() {
        let (mut four, mut count) = ([&[][..]; 4], 0);
        for (factor, piece) in pieces {
            let mut bits = matrices[usize::from(*factor)][row];
            while bits != 0 {
                let start = bits.trailing_zeros() as usize * strip;
                bits &= bits - 1;
                four[count] = &piece[start..start + strip];
                count += 1;
                if count == four.len() {
                    add(four, to);
                    count = 0;
                }
            }
        }
        four[..count].iter().for_each(|strip| add([strip], to));
    }
}

/// All of the same length.
fn add<const N: usize>(strips: [&[u8]; N], to: &mut [u8]) {
    let strips = strips.map(|strip| &strip[..to.len()]);
    for (at, to) in to.iter_mut().enumerate() {
        *to = strips.iter().fold(*to, |sum, strip| sum ^ strip[at]);
    }
}

/// Appends the parity piece of this index to `out`: piece `index % BLOCK_PARITY` of block `index / BLOCK_PARITY` of a frame's `body`,
/// cut into pieces of `piece_bytes`, a multiple of [`STRIPS`].
///
/// # Panics
/// If there is no such parity piece of such a frame.
pub fn encode(body: &[u8], piece_bytes: usize, index: u16, out: &mut Vec<u8>) {
    assert!(piece_bytes.is_multiple_of(STRIPS) && piece_bytes > 0, "strips of a piece");
    let count = u16::try_from(body.len().div_ceil(piece_bytes)).expect("a body's pieces can be counted");
    let (block, row) = (index / BLOCK_PARITY, index % BLOCK_PARITY);
    assert!(block < blocks(count), "a block of the frame");
    let mut last = body[usize::from(count - 1) * piece_bytes..].to_vec();
    last.resize(piece_bytes, 0);
    let pieces = (0..).zip(block_pieces(block, count)).map(|(column, piece)| {
        let start = usize::from(piece) * piece_bytes;
        (coefficient(row, column), body.get(start..start + piece_bytes).unwrap_or(&last))
    });
    let start = out.len();
    out.resize(start + piece_bytes, 0);
    add_multiples(&pieces.collect::<Vec<_>>(), &mut out[start..]);
}

/// Puts the `missing` pieces of a block into a frame's `buffer`, where each piece has `piece_bytes` bytes and the rest of the last is zero.
/// `rows` are as many parity pieces of the block, each with its row.
///
/// # Panics
/// If there are not as many, or two of the same row.
pub(super) fn decode(
    buffer: &mut [u8],
    piece_bytes: usize,
    block: u16,
    missing: &[u16],
    rows: Vec<(u16, Vec<u8>)>,
) {
    assert_eq!(missing.len(), rows.len(), "a parity piece for each that is missing");
    let count = (buffer.len() / piece_bytes) as u16;
    let column = |piece: u16| piece / blocks(count);
    let place = |piece: u16| usize::from(piece) * piece_bytes..(usize::from(piece) + 1) * piece_bytes;
    let there = block_pieces(block, count).filter(|piece| !missing.contains(piece));
    let there: Vec<(u16, &[u8])> = there.map(|piece| (column(piece), &buffer[place(piece)])).collect();
    // What is left of each parity piece without the pieces that are there.
    let left = rows.into_iter().map(|(row, mut sum)| {
        let pieces = there.iter().map(|(column, piece)| (coefficient(row, *column), *piece));
        add_multiples(&pieces.collect::<Vec<_>>(), &mut sum);
        (row, sum)
    });
    let (numbers, sums): (Vec<u16>, Vec<Vec<u8>>) = left.unzip();
    let matrix =
        numbers.iter().map(|row| missing.iter().map(|piece| coefficient(*row, column(*piece))).collect());
    for (piece, factors) in missing.iter().zip(invert(matrix.collect())) {
        let to = &mut buffer[place(*piece)];
        to.fill(0);
        let sums = factors.into_iter().zip(sums.iter().map(Vec::as_slice));
        add_multiples(&sums.collect::<Vec<_>>(), to);
    }
}

/// Inverts a square part of the matrix; every such part can be (Cauchy).
fn invert(mut matrix: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let size = matrix.len();
    let unit = |row: usize| (0..size).map(|column| u8::from(row == column)).collect();
    let mut inverted: Vec<Vec<u8>> = (0..size).map(unit).collect();
    for at in 0..size {
        let pivot = (at..size).find(|row| matrix[*row][at] != 0).expect("a Cauchy matrix can be inverted");
        matrix.swap(at, pivot);
        inverted.swap(at, pivot);
        let factor = inverse(matrix[at][at]);
        for row in [&mut matrix[at], &mut inverted[at]] {
            row.iter_mut().for_each(|entry| *entry = multiply(*entry, factor));
        }
        let pivot_rows = (matrix[at].clone(), inverted[at].clone());
        for row in (0..size).filter(|row| *row != at) {
            let factor = matrix[row][at];
            for (row, pivot) in [(&mut matrix[row], &pivot_rows.0), (&mut inverted[row], &pivot_rows.1)] {
                row.iter_mut().zip(pivot).for_each(|(entry, pivot)| *entry ^= multiply(factor, *pivot));
            }
        }
    }
    inverted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..bytes).map(byte).collect()
    }

    #[test]
    fn field() {
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1);
            assert_eq!(multiply(a, 1), a);
            for b in [0, 1, 2, 77, 255] {
                assert_eq!(multiply(a, b), multiply(b, a));
                assert_eq!(multiply(a, b ^ 9), multiply(a, b) ^ multiply(a, 9));
            }
        }
        assert_eq!((multiply(0x80, 2), multiply(0, 5)), (0x1d, 0));
    }

    #[test]
    fn first_parity_piece_is_the_xor_of_all() {
        let mut parity = Vec::new();
        encode(&[1, 2, 3, 4, 5, 6, 7, 8, 16, 32], 8, 0, &mut parity);
        assert_eq!(parity, [1 ^ 16, 2 ^ 32, 3, 4, 5, 6, 7, 8]);
    }

    proptest! {
        /// Any pieces of a frame come back from any as many parity pieces, whatever was in their place.
        #[test]
        fn any_rows_replace_any_pieces(
            bytes in 1usize..40_000,
            strip in 1usize..12,
            lost in proptest::collection::vec((any::<u16>(), 0..BLOCK_PARITY), 1..20),
            seed in any::<u64>(),
        ) {
            let piece_bytes = strip * STRIPS;
            let whole = body(bytes, seed);
            let count = bytes.div_ceil(piece_bytes) as u16;
            let mut buffer = whole.clone();
            buffer.resize(usize::from(count) * piece_bytes, 0);
            for block in 0..blocks(count) {
                let pieces: Vec<u16> = block_pieces(block, count).collect();
                let (mut missing, mut rows) = (Vec::new(), Vec::<(u16, Vec<u8>)>::new());
                for (piece, row) in &lost {
                    let piece = pieces[usize::from(*piece) % pieces.len()];
                    if missing.contains(&piece) || rows.iter().any(|(other, _)| other == row) {
                        continue;
                    }
                    missing.push(piece);
                    let mut parity = Vec::new();
                    encode(&whole, piece_bytes, block * BLOCK_PARITY + row, &mut parity);
                    rows.push((*row, parity));
                    let at = usize::from(piece) * piece_bytes;
                    buffer[at..at + piece_bytes].fill(0xa5);
                }
                decode(&mut buffer, piece_bytes, block, &missing, rows);
            }
            prop_assert_eq!(&buffer[..bytes], &whole[..]);
            prop_assert!(buffer[bytes..].iter().all(|byte| *byte == 0));
        }
    }

    /// As much as a block can lose, of the largest block that there is.
    #[test]
    fn as_many_as_there_are() {
        let count = BLOCK_PIECES + BLOCK_PIECES / 2 - 1;
        assert_eq!((blocks(count), blocks(count + 1)), (1, 2));
        let whole = body(usize::from(count) * 8, 5);
        let mut buffer = whole.clone();
        let missing: Vec<u16> = (20..20 + BLOCK_PARITY).collect();
        let parity = |row| {
            let mut out = Vec::new();
            encode(&whole, 8, row, &mut out);
            (row, out)
        };
        buffer[160..160 + 8 * usize::from(BLOCK_PARITY)].fill(0);
        decode(&mut buffer, 8, 0, &missing, (0..BLOCK_PARITY).map(parity).collect());
        assert_eq!(buffer, whole);
    }
}
