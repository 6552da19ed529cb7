//! The generator matrix, the decode matrices derived from it, and sets of fragment indices.
//!
//! Parity i of any code is the sum over j of `coefficient(i, j)` times data fragment j. The
//! coefficient depends on neither k nor m, so every code is the top left corner of one table.
//! Invariant: every square submatrix of that table is invertible (it is a Cauchy matrix with rows
//! and columns scaled), which is what makes any k fragments enough. CODEC.md gives the proof.
//! The table is part of the disk and wire format.

use crate::field::{inverse, multiply};

/// Fragments a code may have, at most.
pub(crate) const FRAGMENTS_MAX: usize = 255;

/// The factor of data fragment `j` in parity `i`. Row 0 and column 0 are ones.
///
/// With x_i = 255 - i and y_j = j, a Cauchy matrix has the entries 1 / (x_i + y_j). Scaling row i
/// by (x_i + y_0) and column j by (x_0 + y_j), and all by 1 / (x_0 + y_0), turns the first row and
/// the first column into ones and keeps every square submatrix invertible.
pub(crate) fn coefficient(i: usize, j: usize) -> u8 {
    assert!(i + j < FRAGMENTS_MAX, "matrix invariant: row {i} and column {j} share a point");
    let (x_i, y_j) = (255 - i as u8, j as u8);
    multiply(multiply(x_i, 255 ^ y_j), inverse(multiply(x_i ^ y_j, 255)))
}

/// A set of fragment indices below 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FragmentSet([u64; 4]);

impl FragmentSet {
    /// Adds `index`; false if it was there already.
    #[inline]
    pub(crate) fn insert(&mut self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }

    #[inline]
    pub(crate) fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// How many members are smaller than `index`.
    pub(crate) fn rank(&self, index: usize) -> usize {
        let whole: u32 = self.0[..index / 64].iter().map(|word| word.count_ones()).sum();
        let below = self.0[index / 64] & ((1u64 << (index % 64)) - 1);
        (whole + below.count_ones()) as usize
    }

    /// Some member that both sets have.
    #[inline]
    pub(crate) fn common(&self, other: &Self) -> Option<usize> {
        (0..4).find_map(|word| {
            let both = self.0[word] & other.0[word];
            (both != 0).then(|| 64 * word + both.trailing_zeros() as usize)
        })
    }

    /// Members in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..4).flat_map(|word| {
            let mut rest = self.0[word];
            std::iter::from_fn(move || {
                let index = 64 * word + rest.trailing_zeros() as usize;
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    index
                })
            })
        })
    }

    #[inline]
    pub(crate) fn words(&self) -> &[u64; 4] {
        &self.0
    }
}

/// The parity rows of a code, and room to derive decode matrices without allocating.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    k: usize,
    m: usize,
    /// m rows of k coefficients.
    rows: Box<[u8]>,
}

/// Working memory of `Generator::decode`, sized once for a code.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    /// Up to min(k, m) rows, twice as wide as high: the matrix to invert beside the identity.
    augmented: Box<[u8]>,
    /// Up to min(k, m) rows of k: the lost data fragments in terms of those present.
    lost_rows: Box<[u8]>,
}

impl Scratch {
    pub(crate) fn new(k: usize, m: usize) -> Self {
        let lost_max = k.min(m);
        Self {
            augmented: vec![0; 2 * lost_max * lost_max].into(),
            lost_rows: vec![0; lost_max * k].into(),
        }
    }
}

impl Generator {
    /// The code of `k` data and `m` parity fragments; the caller has checked the shape.
    pub(crate) fn new(k: usize, m: usize) -> Self {
        let rows = (0..m * k).map(|at| coefficient(at / k, at % k)).collect();
        Self { k, m, rows }
    }

    /// Number of data fragments.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn rows(&self) -> &[u8] {
        &self.rows
    }

    fn at(&self, parity: usize, data: usize) -> u8 {
        self.rows[parity * self.k + data]
    }

    /// Writes, for each fragment of `wanted` in ascending order, its k factors over the fragments
    /// of `present` in ascending order. `present` has k members, none of them wanted.
    ///
    /// With e data fragments lost and as many parities present, only an e x e matrix is inverted.
    pub(crate) fn decode(
        &self,
        present: &FragmentSet,
        wanted: &FragmentSet,
        scratch: &mut Scratch,
        factors: &mut [u8],
    ) {
        let k = self.k;
        let data_kept = present.rank(k);
        let lost = k - data_kept;
        self.solve_lost(present, data_kept, scratch);
        for (row, index) in factors.chunks_exact_mut(k).zip(wanted.iter()) {
            if index < k {
                let at = index - present.rank(index);
                row.copy_from_slice(&scratch.lost_rows[at * k..(at + 1) * k]);
                continue;
            }
            let parity = index - k;
            row.fill(0);
            for (factor, data) in row.iter_mut().zip(present.iter().take(data_kept)) {
                *factor = self.at(parity, data);
            }
            let lost_data = (0..k).filter(|data| !present.contains(*data));
            for (data, lost_row) in lost_data.zip(scratch.lost_rows.chunks_exact(k).take(lost)) {
                add_scaled(row, lost_row, self.at(parity, data));
            }
        }
    }

    /// Fills `scratch.lost_rows` with one row for each lost data fragment, ascending.
    fn solve_lost(&self, present: &FragmentSet, data_kept: usize, scratch: &mut Scratch) {
        let k = self.k;
        let lost = k - data_kept;
        assert!(lost <= self.m, "matrix invariant: {lost} lost of {} parities", self.m);
        let width = 2 * lost;
        let augmented = &mut scratch.augmented[..lost * width];
        let parities = || present.iter().skip(data_kept).map(|index| index - k);
        for (at, parity) in parities().enumerate() {
            let row = &mut augmented[at * width..(at + 1) * width];
            row.fill(0);
            let lost_data = (0..k).filter(|data| !present.contains(*data));
            for (factor, data) in row.iter_mut().zip(lost_data) {
                *factor = self.at(parity, data);
            }
            row[lost + at] = 1;
        }
        invert(augmented, lost);
        for (at, row) in scratch.lost_rows.chunks_exact_mut(k).take(lost).enumerate() {
            let inverted = &augmented[at * width + lost..(at + 1) * width];
            row[..data_kept].fill(0);
            row[data_kept..].copy_from_slice(inverted);
            for (&factor, parity) in inverted.iter().zip(parities()) {
                for (sum, data) in row.iter_mut().zip(present.iter().take(data_kept)) {
                    *sum ^= multiply(factor, self.at(parity, data));
                }
            }
        }
    }
}

/// Gauss-Jordan: turns [A | I] of `size` rows into [I | A^-1]. Every leading square of A is
/// invertible too (A is a scaled Cauchy matrix), so no pivot is ever zero and no rows are swapped.
fn invert(augmented: &mut [u8], size: usize) {
    let width = 2 * size;
    for pivot in 0..size {
        let (before, rest) = augmented.split_at_mut(pivot * width);
        let (pivot_row, after) = rest.split_at_mut(width);
        assert!(pivot_row[pivot] != 0, "matrix invariant: a square of the generator is singular");
        let scale = inverse(pivot_row[pivot]);
        pivot_row.iter_mut().for_each(|factor| *factor = multiply(*factor, scale));
        for row in before.chunks_exact_mut(width).chain(after.chunks_exact_mut(width)) {
            let factor = row[pivot];
            add_scaled(row, pivot_row, factor);
        }
    }
}

fn add_scaled(sum: &mut [u8], row: &[u8], factor: u8) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum ^= multiply(*value, factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_row_and_first_column_are_ones() {
        for at in 0..FRAGMENTS_MAX - 1 {
            assert_eq!((coefficient(0, at), coefficient(at, 0)), (1, 1), "{at}");
        }
    }

    #[test]
    fn no_coefficient_is_zero_and_no_two_by_two_is_singular() {
        for i in 0..40 {
            for j in 0..40 {
                assert_ne!(coefficient(i, j), 0);
                for (a, b) in [(i + 1, j + 1), (i + 7, j + 3), (254 - j - 40, j + 1)] {
                    let one = multiply(coefficient(i, j), coefficient(a, b));
                    let other = multiply(coefficient(i, b), coefficient(a, j));
                    assert_ne!(one, other, "rows {i} {a}, columns {j} {b}");
                }
            }
        }
    }

    #[test]
    fn decode_rows_times_present_rows_give_the_wanted_rows() {
        let (k, m) = (5, 4);
        let generator = Generator::new(k, m);
        let row = |index: usize| -> Vec<u8> {
            (0..k)
                .map(|j| if index < k { u8::from(index == j) } else { generator.at(index - k, j) })
                .collect()
        };
        let mut scratch = Scratch::new(k, m);
        for pattern in (0u32..1 << (k + m)).filter(|pattern| pattern.count_ones() as usize == k) {
            let (mut present, mut wanted) = (FragmentSet::default(), FragmentSet::default());
            for index in 0..k + m {
                let set = if pattern >> index & 1 == 1 { &mut present } else { &mut wanted };
                assert!(set.insert(index));
            }
            let mut factors = vec![0xAA; m * k];
            generator.decode(&present, &wanted, &mut scratch, &mut factors);
            for (factors, index) in factors.chunks_exact(k).zip(wanted.iter()) {
                let mut sum = vec![0; k];
                for (factor, source) in factors.iter().zip(present.iter()) {
                    add_scaled(&mut sum, &row(source), *factor);
                }
                assert_eq!(sum, row(index), "pattern {pattern:b}, fragment {index}");
            }
        }
    }

    #[test]
    fn sets_rank_and_list_in_ascending_order() {
        let mut set = FragmentSet::default();
        let members = [0, 3, 63, 64, 130, 254];
        for index in members.iter().rev() {
            assert!(set.insert(*index));
        }
        assert!(!set.insert(64));
        assert_eq!(set.iter().collect::<Vec<_>>(), members);
        for (rank, index) in members.into_iter().enumerate() {
            assert_eq!(set.rank(index), rank);
            assert!(set.contains(index) && !set.contains(index + 1) || index == 63);
        }
        assert_eq!(set.rank(255), 6);
    }
}
