//! The one algorithm: every output is a sum of sources, each times a factor of its own. Columns are
//! walked once; a vector of each source is loaded, and all outputs take their share of it.
//!
//! Invariants the callers in `arch` establish before an instance runs: a `Job` has as many sources
//! as the instance was made for (any number if K = 0) and at least one; R outputs; R rows of
//! `stride` factors, as many as sources or more; `start <= end <= length`. Lengths of slices are
//! checked by the instance, in the one place where they are read anyway.

use super::vector::Vector;

/// One call of a kernel: bytes `start .. end` of every output, which has `length` bytes.
pub(crate) struct Job<'a, 'b> {
    pub(crate) sources: &'a [&'a [u8]],
    pub(crate) outputs: &'a mut [&'b mut [u8]],
    /// R rows of `stride` factors, each `Vector::FACTOR_WORDS` words, the first for source 0.
    pub(crate) factors: &'a [u64],
    pub(crate) stride: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) length: usize,
    /// A source may be shorter than `length`: it counts as followed by zeros.
    pub(crate) ragged: bool,
}

/// An instance of `combine`. False if a slice has another length than the job says; nothing was
/// written then.
///
/// # Safety
/// The processor must have the instructions of the kernel, the job must keep the module's
/// invariants.
pub(crate) type Run = unsafe fn(&mut Job<'_, '_>) -> bool;

/// Sums that overwrite the outputs, any factors.
pub(crate) const PLAIN: u8 = 0;
/// As PLAIN, the first row and the first column of factors being ones, as the generator's are.
pub(crate) const UNIT: u8 = 1;
/// Sums that are added to what the outputs hold.
pub(crate) const ADD: u8 = 2;

/// As PLAIN, whole vectors being written past the caches. Outputs start at `STREAM_ALIGNMENT`.
pub(crate) const STREAM: u8 = 3;

/// What streaming stores of the widest vectors need.
pub(crate) const STREAM_ALIGNMENT: usize = 64;

/// Rows computed together at most: more would not fit the registers.
pub(crate) const ROWS_MAX: usize = 8;

/// An instruction set: what compiles `combine` with its instructions enabled.
pub(crate) trait Isa {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run;
}

/// The instance for `sources` sources and `rows <= ROWS_MAX` rows: one of its own for the common
/// codes, otherwise one for any number of sources.
pub(crate) fn select<I: Isa, const MODE: u8>(sources: usize, rows: usize) -> Run {
    macro_rules! instances {
        ($(($k:literal, $($r:literal)+))*) => {
            match (sources, rows) {
                $($(($k, $r) => I::instance::<$k, $r, MODE>(),)+)*
                (_, 1) => I::instance::<0, 1, MODE>(),
                (_, 2) => I::instance::<0, 2, MODE>(),
                (_, 3) => I::instance::<0, 3, MODE>(),
                (_, 4) => I::instance::<0, 4, MODE>(),
                (_, 5) => I::instance::<0, 5, MODE>(),
                (_, 6) => I::instance::<0, 6, MODE>(),
                (_, 7) => I::instance::<0, 7, MODE>(),
                (_, 8) => I::instance::<0, 8, MODE>(),
                _ => panic!("kernel invariant: {rows} rows, 1 to {ROWS_MAX} are computed together"),
            }
        };
    }
    match MODE {
        UNIT => instances! {
            (1, 1 2 3 4) (2, 1 2 3) (3, 1 2 4 6) (4, 2 4) (5, 2) (7, 2) (8, 5)
        },
        PLAIN => instances! {
            (1, 1 2 3 4) (2, 1 2 3) (3, 1 2 3 4) (4, 1 2 3 4) (5, 1 2) (7, 1 2) (8, 1 2)
        },
        _ => instances! {},
    }
}

/// What the block functions share: pointers and factors of one job, in registers where they fit.
struct Operands<'a, V: Vector, const K: usize, const R: usize> {
    sources: &'a [&'a [u8]],
    source_starts: [*const u8; K],
    outputs: [*mut u8; R],
    factors: *const u64,
    stride: usize,
    held: [[V::Factor; K]; R],
}

impl<V: Vector, const K: usize, const R: usize> Operands<'_, V, K, R> {
    /// Whether every factor stays in a register beside the sums and a loaded vector.
    const HOLD: bool = K * R * V::FACTOR_REGISTERS + R * Self::UNROLL + 2 <= V::REGISTERS;
    /// Vectors of each output computed together.
    const UNROLL: usize = if R * 4 <= V::REGISTERS { 2 } else { 1 };

    #[inline(always)]
    unsafe fn factor(&self, i: usize, j: usize) -> V::Factor {
        if Self::HOLD && K > 0 {
            return self.held[i][j];
        }
        let stride = if K > 0 { K } else { self.stride };
        // Places in a slice cannot overflow; wrapping arithmetic spares the loop the check.
        let at = i.wrapping_mul(stride).wrapping_add(j).wrapping_mul(V::FACTOR_WORDS);
        // SAFETY: the job has R rows of `stride` factors, and i < R, j < stride.
        unsafe { V::factor(self.factors.add(at)) }
    }

    #[inline(always)]
    unsafe fn source(&self, j: usize) -> *const u8 {
        if K > 0 {
            self.source_starts[j]
        } else {
            // SAFETY: j is below the number of sources.
            unsafe { self.sources.get_unchecked(j).as_ptr() }
        }
    }

    #[inline(always)]
    fn source_count(&self) -> usize {
        if K > 0 { K } else { self.sources.len() }
    }

    /// Adds source `j`, of which `loaded` holds vectors, to the sums; FIRST if `j` is 0.
    #[inline(always)]
    unsafe fn take<const MODE: u8, const U: usize, const FIRST: bool>(
        &self,
        sums: &mut [[V; U]; R],
        j: usize,
        loaded: [V; U],
    ) {
        for (i, row) in sums.iter_mut().enumerate() {
            let by_one = MODE == UNIT && (i == 0 || FIRST);
            for (sum, vector) in row.iter_mut().zip(loaded) {
                // SAFETY: the caller has checked the instructions; i < R, j < number of sources.
                unsafe {
                    let share = if by_one { vector } else { vector.multiply(self.factor(i, j)) };
                    *sum = if FIRST && MODE != ADD { share } else { sum.add(share) };
                }
            }
        }
    }

    /// Reads U vectors of source `j` from column `at`.
    #[inline(always)]
    unsafe fn read<const U: usize>(&self, j: usize, at: usize) -> [V; U] {
        // SAFETY: the caller says source j has columns at .. at + U * BYTES.
        unsafe {
            let from = self.source(j).add(at);
            let mut loaded = [V::zero(); U];
            for (u, vector) in loaded.iter_mut().enumerate() {
                *vector = V::load(from.add(u * V::BYTES));
            }
            loaded
        }
    }

    /// Computes U vectors of each output from column `at`; every source has those columns.
    #[inline(always)]
    unsafe fn block<const MODE: u8, const U: usize>(&self, at: usize) {
        // SAFETY: columns at .. at + U * BYTES exist in every source and output.
        unsafe {
            let mut sums = [[V::zero(); U]; R];
            if MODE == ADD {
                for (row, output) in sums.iter_mut().zip(self.outputs) {
                    for (u, sum) in row.iter_mut().enumerate() {
                        *sum = V::load(output.add(at).add(u * V::BYTES));
                    }
                }
            }
            self.take::<MODE, U, true>(&mut sums, 0, self.read(0, at));
            for j in 1..self.source_count() {
                self.take::<MODE, U, false>(&mut sums, j, self.read(j, at));
            }
            for (row, output) in sums.iter().zip(self.outputs) {
                for (u, sum) in row.iter().enumerate() {
                    let to = output.add(at).add(u * V::BYTES);
                    if MODE == STREAM { sum.store_past_caches(to) } else { sum.store(to) }
                }
            }
        }
    }

    /// Reads what source `j` has of `count` columns from `at`, zeros for the rest.
    #[inline(always)]
    unsafe fn read_partial(&self, j: usize, at: usize, count: usize) -> [V; 1] {
        // SAFETY: j is below the number of sources; the source's length bounds the read.
        unsafe {
            let source = self.sources.get_unchecked(j);
            let available = source.len().saturating_sub(at).min(count);
            [V::load_partial(source.as_ptr().wrapping_add(at), available)]
        }
    }

    /// Computes `count <= BYTES` columns from `at`; sources may end before or within them.
    #[inline(always)]
    unsafe fn tail<const MODE: u8>(&self, at: usize, count: usize) {
        // SAFETY: columns at .. at + count exist in every output.
        unsafe {
            let mut sums = [[V::zero(); 1]; R];
            if MODE == ADD {
                for (row, output) in sums.iter_mut().zip(self.outputs) {
                    row[0] = V::load_partial(output.add(at), count);
                }
            }
            self.take::<MODE, 1, true>(&mut sums, 0, self.read_partial(0, at, count));
            for j in 1..self.sources.len() {
                self.take::<MODE, 1, false>(&mut sums, j, self.read_partial(j, at, count));
            }
            for (row, output) in sums.iter().zip(self.outputs) {
                row[0].store_partial(output.add(at), count);
            }
        }
    }
}

/// Computes columns `job.start .. job.end` of R outputs.
///
/// # Safety
/// As for `Run`.
#[inline(always)]
pub(crate) unsafe fn combine<V: Vector, const K: usize, const R: usize, const MODE: u8>(
    job: &mut Job<'_, '_>,
) -> bool {
    // SAFETY: the module's invariants give R outputs, K sources and R rows of factors. Columns are
    // handed to `block` only below `whole`, where every source and output has them.
    unsafe {
        let mut operands = Operands::<V, K, R> {
            sources: job.sources,
            source_starts: [std::ptr::null(); K],
            outputs: [std::ptr::null_mut(); R],
            factors: job.factors.as_ptr(),
            stride: job.stride,
            held: [[V::factor(job.factors.as_ptr()); K]; R],
        };
        let Some(whole) = check_and_point(&mut operands, job) else { return false };
        if Operands::<V, K, R>::HOLD {
            for i in 0..R {
                for j in 0..K {
                    operands.held[i][j] =
                        V::factor(operands.factors.add((i * K + j) * V::FACTOR_WORDS));
                }
            }
        }
        // Columns are bounded by the length of a slice, so that sums of them cannot overflow;
        // wrapping arithmetic spares the loops the check.
        let mut at = job.start;
        let mut left = whole.saturating_sub(at);
        let left_at_start = left;
        if Operands::<V, K, R>::UNROLL == 2 {
            while left >= 2 * V::BYTES {
                operands.block::<MODE, 2>(at);
                at = at.wrapping_add(2 * V::BYTES);
                left = left.wrapping_sub(2 * V::BYTES);
            }
        }
        // The last columns are computed together with some before them, cheaper than a part, unless
        // that would add to the outputs twice, break the alignment, or the whole job is smaller
        // than a vector.
        let may_overlap =
            MODE != ADD && MODE != STREAM && whole == job.end && left_at_start >= V::BYTES;
        while left >= V::BYTES || may_overlap && left > 0 {
            if left < V::BYTES {
                at = whole.wrapping_sub(V::BYTES);
                left = V::BYTES;
            }
            operands.block::<MODE, 1>(at);
            at = at.wrapping_add(V::BYTES);
            left = left.wrapping_sub(V::BYTES);
        }
        while at < job.end {
            let count = V::BYTES.min(job.end.wrapping_sub(at));
            operands.tail::<MODE>(at, count);
            at = at.wrapping_add(count);
        }
        if MODE == STREAM {
            V::fence();
        }
    }
    true
}

/// Fills in where sources and outputs start. The number of columns up to `job.end` that every
/// source has, or none if a length is wrong.
#[inline(always)]
unsafe fn check_and_point<V: Vector, const K: usize, const R: usize>(
    operands: &mut Operands<'_, V, K, R>,
    job: &mut Job<'_, '_>,
) -> Option<usize> {
    let mut different = 0;
    for (i, start) in operands.outputs.iter_mut().enumerate() {
        // SAFETY: the job has R outputs.
        let output = unsafe { job.outputs.get_unchecked_mut(i) };
        different |= output.len() ^ job.length;
        *start = output.as_mut_ptr();
    }
    let mut whole = job.length;
    for j in 0..operands.source_count() {
        // SAFETY: the job has K sources, or any number if K = 0.
        let source = unsafe { job.sources.get_unchecked(j) };
        different |= source.len() ^ job.length;
        if K > 0 {
            operands.source_starts[j] = source.as_ptr();
        }
    }
    if different != 0 {
        whole = shortest_if_ragged(job)?;
    }
    Some(whole.min(job.end))
}

/// The length of the shortest source, if sources alone differ and may.
#[cold]
fn shortest_if_ragged(job: &Job<'_, '_>) -> Option<usize> {
    let lengths = || job.sources.iter().map(|source| source.len());
    let even = job.outputs.iter().all(|output| output.len() == job.length);
    let fit = even && job.ragged && lengths().all(|length| length <= job.length);
    lengths().min().filter(|_| fit)
}
