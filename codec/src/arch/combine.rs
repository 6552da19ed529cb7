//! The one algorithm: every output is a sum of sources, each times a factor of its own. Columns are
//! walked once; a vector of each source is loaded, and all outputs take their share of it.
//!
//! Invariants the callers in `arch` establish before an instance runs: as many sources as
//! the instance was made for (any number if K = 0) and at least one; R outputs; R rows of `stride`
//! factors, as many as sources or more; `start <= end`, all columns if K > 0; for CHAIN, no more outputs than sources;
//! slices as sources for UNIT, fragments for CHAIN and for PLAIN with K > 0. Lengths of slices and
//! indices of fragments are checked by the instance, in the one place where they are read anyway.

use super::vector::Vector;

/// Slices that lie in an array, each in an item of its own, so that calls need not copy them
/// together.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    places: Places<'a>,
    /// Bytes from one slice to the next.
    step: usize,
    count: usize,
}

/// Where sources lie: what is passed to an instance in registers, while all that is known before a
/// call comes in `Span`.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    first: *const &'a [u8],
    /// The index of each, in order, if they are fragments; else null.
    expected: *const usize,
}

/// A fragment with its index.
pub(crate) type Fragment<'a> = (usize, &'a [u8]);

impl<'a> Sources<'a> {
    #[inline(always)]
    pub(crate) fn of_slices(slices: &'a [&'a [u8]]) -> Self {
        let (first, count) = (slices.as_ptr(), slices.len());
        Self { places: Places { first, expected: std::ptr::null() }, step: SLICE_STEP, count }
    }

    /// The slices of fragments given with their indices. An instance refuses them as it refuses
    /// wrong lengths unless they have the indices `expected`, as many as there are fragments.
    #[inline(always)]
    pub(crate) fn of_fragments(fragments: &'a [Fragment<'a>], expected: &'a [usize]) -> Self {
        const OFFSET: usize = std::mem::offset_of!(Fragment<'_>, 1);
        let count = fragments.len();
        assert_eq!(expected.len(), count, "kernel invariant: an index for each fragment");
        let first = fragments.as_ptr().wrapping_byte_add(OFFSET).cast();
        let places = Places { first, expected: expected.as_ptr() };
        Self { places, step: FRAGMENT_STEP, count }
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    #[inline(always)]
    pub(crate) fn places(&self) -> Places<'a> {
        self.places
    }

    /// Columns `start .. end`, for rows of `stride` factors.
    #[inline(always)]
    pub(crate) fn span(&self, stride: usize, start: usize, end: usize) -> Span {
        Span { count: self.count, step: self.step, stride, start, end }
    }

    /// Whether they lie in an array of nothing but slices.
    #[inline(always)]
    pub(crate) fn are_slices(&self) -> bool {
        self.step == SLICE_STEP
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [u8]> + Clone {
        // SAFETY: `count` slices lie `step` bytes apart.
        (0..self.count).map(|j| unsafe { self.get(j) })
    }

    /// # Safety
    /// `j` must be less than the number of slices.
    #[inline(always)]
    unsafe fn get(&self, j: usize) -> &'a [u8] {
        // SAFETY: passed on; slices lie that far apart.
        unsafe { self.get_apart(self.step, j) }
    }

    /// # Safety
    /// `j` must be less than the number of slices, `step` the bytes from one to the next.
    #[inline(always)]
    unsafe fn get_apart(&self, step: usize, j: usize) -> &'a [u8] {
        // SAFETY: the slice lies there, as long as 'a.
        unsafe { *self.places.first.byte_add(j.wrapping_mul(step)) }
    }

    /// Whether fragment `j` has the index expected.
    ///
    /// # Safety
    /// They must be fragments, `j` less than their number.
    #[inline(always)]
    unsafe fn is_as_expected(&self, j: usize) -> bool {
        const SLICE: usize = std::mem::offset_of!(Fragment<'_>, 1);
        const INDEX: usize = std::mem::offset_of!(Fragment<'_>, 0);
        let to_index = j.wrapping_mul(FRAGMENT_STEP).wrapping_add(INDEX).wrapping_sub(SLICE);
        // SAFETY: fragment j lies there; as many indices are expected as there are fragments.
        unsafe {
            let index = self.places.first.wrapping_byte_add(to_index).cast::<usize>();
            *index == *self.places.expected.add(j)
        }
    }
}

/// Bytes from one slice to the next in an array of slices.
const SLICE_STEP: usize = size_of::<&[u8]>();
/// The same in an array of fragments.
const FRAGMENT_STEP: usize = size_of::<Fragment<'_>>();

/// What a call is about, as far as it is known before. Calls find it in memory that was not just
/// written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Number of sources.
    count: usize,
    /// Bytes from one to the next.
    step: usize,
    /// Factors in a row.
    stride: usize,
    /// Columns start .. end are computed; what lies behind the outputs' length is not.
    start: usize,
    end: usize,
}

impl Span {
    /// All columns of `count` sources, which are slices or else fragments.
    pub(crate) const fn whole(count: usize, are_slices: bool) -> Self {
        let step = if are_slices { SLICE_STEP } else { FRAGMENT_STEP };
        Self { count, step, stride: count, start: 0, end: usize::MAX }
    }
}

/// An instance of `combine`, for sources, R outputs of so many bytes each, R rows of `span.stride`
/// factors (each `Vector::FACTOR_WORDS` words, the first for source 0). False if a slice has a
/// length the mode does not allow, or a fragment another index than expected; nothing was written
/// then.
///
/// # Safety
/// The processor must have the instructions of the kernel; outputs and factors must be there; the
/// call must keep the module's invariants.
pub(crate) type Run = unsafe fn(Places<'_>, *mut &mut [u8], *const u64, usize, &Span) -> bool;

/// Sums that overwrite the outputs, any factors.
pub(crate) const PLAIN: u8 = 0;
/// As PLAIN, the first row and the first column of factors being ones, as the generator's are.
pub(crate) const UNIT: u8 = 1;
/// Sums that are added to what the outputs hold.
pub(crate) const ADD: u8 = 2;
/// As PLAIN with K >= R, but the last output is the plain sum of the first K - R + 1 sources and of
/// all other outputs, whatever its factors: so one of the lost data fragments is found if all are
/// wanted and the first parity, the plain sum of the data, is at hand. Spares a row of products.
pub(crate) const CHAIN: u8 = 4;

/// As PLAIN, whole vectors being written past the caches. Outputs start at `STREAM_ALIGNMENT`.
pub(crate) const STREAM: u8 = 3;

/// Added to a mode: a source may be shorter than the outputs, it counts as followed by zeros. Without
/// it all have the length of the outputs.
pub(crate) const RAGGED: u8 = 0x80;

/// Added to PLAIN, UNIT or CHAIN: lines further on are asked for before they are needed.
pub(crate) const AHEAD: u8 = 0x40;

/// A mode without what is added to it.
const fn kind(mode: u8) -> u8 {
    mode & !(RAGGED | AHEAD)
}

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
        UNIT | UNIT_RAGGED => instances! {
            (1, 1 2 3 4) (2, 1 2 3) (3, 1 2 4 6) (4, 2 4) (5, 2) (7, 2) (8, 5)
        },
        PLAIN => instances! {
            (1, 1 2 3 4) (2, 1 2 3) (3, 1 2 3 4) (4, 1 2 3 4) (5, 1 2) (7, 1 2) (8, 1 2)
        },
        CHAIN => instances! {
            (2, 1 2) (3, 1 2 3) (4, 1 2 3 4) (5, 1 2) (7, 1 2) (8, 1 2 5)
        },
        _ => instances! {},
    }
}

const UNIT_RAGGED: u8 = UNIT | RAGGED;

/// The instance that asks for lines ahead, for numbers and modes where it was measured to gain.
/// It does not with more outputs than sources.
pub(crate) fn select_ahead<I: Isa, const MODE: u8>(sources: usize, rows: usize) -> Option<Run> {
    const { assert!(MODE & AHEAD != 0) };
    match (sources, rows) {
        (3, 2) => Some(I::instance::<3, 2, MODE>()),
        (3, 3) => Some(I::instance::<3, 3, MODE>()),
        (4, 2) => Some(I::instance::<4, 2, MODE>()),
        (4, 4) => Some(I::instance::<4, 4, MODE>()),
        (5, 2) => Some(I::instance::<5, 2, MODE>()),
        (7, 2) => Some(I::instance::<7, 2, MODE>()),
        (8, 5) => Some(I::instance::<8, 5, MODE>()),
        _ => None,
    }
}

/// What the block functions share: pointers and factors of one job, in registers where they fit.
struct Operands<'a, V: Vector, const K: usize, const R: usize> {
    sources: Sources<'a>,
    source_starts: [*const u8; K],
    outputs: [*mut u8; R],
    factors: *const u64,
    stride: usize,
    held: [[V::Factor; K]; R],
}

impl<V: Vector, const K: usize, const R: usize> Operands<'_, V, K, R> {
    /// Whether every factor stays in a register beside the sums and a loaded vector.
    const HOLD: bool = K * R * V::FACTOR_REGISTERS + R * Self::UNROLL + 2 <= V::REGISTERS;
    /// How far ahead lines are asked for: nearer and only of sources if there are many, as then a
    /// line asked for early is gone again before it is used.
    const AHEAD_BYTES: usize = if Self::MANY { 256 } else { 512 };
    const OUTPUTS_AHEAD: bool = !Self::MANY;
    /// Vectors of each output computed together.
    const UNROLL: usize = if Self::MANY && R * 6 <= V::REGISTERS {
        4
    } else if R * 4 <= V::REGISTERS {
        2
    } else {
        1
    };
    /// Whether there are more sources and outputs than the first-level cache has ways: if all start
    /// at the same place in a page, each line is best used up at once, with its neighbours.
    const MANY: bool = K + R > 9;

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
            unsafe { self.sources.get(j).as_ptr() }
        }
    }

    #[inline(always)]
    fn source_count(&self) -> usize {
        if K > 0 { K } else { self.sources.count }
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
            let plain_row = kind(MODE) == CHAIN && i == R - 1;
            if plain_row && j > self.source_count() - R {
                continue;
            }
            let by_one = kind(MODE) == UNIT && (i == 0 || FIRST) || plain_row;
            for (sum, vector) in row.iter_mut().zip(loaded) {
                // SAFETY: the caller has checked the instructions; i < R, j < number of sources.
                unsafe {
                    let share = if by_one { vector } else { vector.multiply(self.factor(i, j)) };
                    *sum = if FIRST && MODE != ADD { share } else { sum.add(share) };
                }
            }
        }
    }

    /// Adds sources `j` and `j + 1`, not the first, two products in one step where they can be.
    #[inline(always)]
    unsafe fn take_two<const MODE: u8, const U: usize>(
        &self,
        sums: &mut [[V; U]; R],
        j: usize,
        loaded: [[V; U]; 2],
    ) {
        let next = j.wrapping_add(1);
        for (i, row) in sums.iter_mut().enumerate() {
            let plain_row = kind(MODE) == CHAIN && i == R - 1;
            let by_one = kind(MODE) == UNIT && i == 0 || plain_row;
            for (u, sum) in row.iter_mut().enumerate() {
                let [one, two] = [loaded[0][u], loaded[1][u]];
                // SAFETY: the caller has checked the instructions; i < R, next < number of sources.
                unsafe {
                    *sum = match by_one {
                        true if plain_row && j.wrapping_add(R) > self.source_count() => *sum,
                        true if plain_row && next.wrapping_add(R) > self.source_count() => {
                            sum.add(one)
                        }
                        true => sum.add_two(one, two),
                        false => {
                            let one = one.multiply(self.factor(i, j));
                            sum.add_two(one, two.multiply(self.factor(i, next)))
                        }
                    }
                }
            }
        }
    }

    /// Completes the last sum of CHAIN, once the others are complete.
    #[inline(always)]
    unsafe fn chain<const MODE: u8, const U: usize>(sums: &mut [[V; U]; R]) {
        if kind(MODE) != CHAIN {
            return;
        }
        let (last, others) = sums.split_last_mut().expect("kernel invariant: at least a row");
        for rows in others.chunks(2) {
            for (u, sum) in last.iter_mut().enumerate() {
                // SAFETY: the caller has checked the instructions.
                unsafe {
                    *sum = match rows {
                        [one, two] => sum.add_two(one[u], two[u]),
                        _ => sum.add(rows[0][u]),
                    }
                }
            }
        }
    }

    /// Reads U vectors of source `j` from column `at`.
    #[inline(always)]
    unsafe fn read<const MODE: u8, const U: usize>(&self, j: usize, at: usize) -> [V; U] {
        // SAFETY: the caller says source j has columns at .. at + U * BYTES.
        unsafe {
            let from = self.source(j).add(at);
            let mut loaded = [V::zero(); U];
            for (u, vector) in loaded.iter_mut().enumerate() {
                if MODE & AHEAD != 0 {
                    V::fetch(from.wrapping_add(u * V::BYTES + Self::AHEAD_BYTES));
                }
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
            self.take::<MODE, U, true>(&mut sums, 0, self.read::<MODE, U>(0, at));
            let (mut j, count) = (1_usize, self.source_count());
            while j.wrapping_add(1) < count {
                let next = j.wrapping_add(1);
                let loaded = [self.read::<MODE, U>(j, at), self.read::<MODE, U>(next, at)];
                self.take_two::<MODE, U>(&mut sums, j, loaded);
                j = j.wrapping_add(2);
            }
            if j < count {
                self.take::<MODE, U, false>(&mut sums, j, self.read::<MODE, U>(j, at));
            }
            Self::chain::<MODE, U>(&mut sums);
            for (row, output) in sums.iter().zip(self.outputs) {
                for (u, sum) in row.iter().enumerate() {
                    let to = output.add(at).add(u * V::BYTES);
                    if MODE & AHEAD != 0 && Self::OUTPUTS_AHEAD {
                        V::fetch_to_write(to.wrapping_add(Self::AHEAD_BYTES));
                    }
                    if MODE == STREAM { sum.store_past_caches(to) } else { sum.store(to) }
                }
            }
        }
    }

    /// Reads `count` columns of source `j` from `at`; if RAGGED, what it has of them, zeros for the
    /// rest.
    #[inline(always)]
    unsafe fn read_partial<const MODE: u8>(&self, j: usize, at: usize, count: usize) -> [V; 1] {
        // SAFETY: j is below the number of sources; if RAGGED the source's length bounds the read,
        // otherwise all columns exist.
        unsafe {
            if MODE & RAGGED == 0 {
                return [V::load_partial(self.source(j).add(at), count)];
            }
            let source = self.sources.get(j);
            let available = source.len().saturating_sub(at).min(count);
            [V::load_partial(source.as_ptr().wrapping_add(at), available)]
        }
    }

    /// Computes `count <= BYTES` columns from `at`; if RAGGED, sources may end before or within
    /// them.
    #[inline(always)]
    unsafe fn tail<const MODE: u8>(&self, at: usize, count: usize) {
        // SAFETY: columns at .. at + count exist in every output and, unless RAGGED, every source.
        unsafe {
            let mut sums = [[V::zero(); 1]; R];
            if MODE == ADD {
                for (row, output) in sums.iter_mut().zip(self.outputs) {
                    row[0] = V::load_partial(output.add(at), count);
                }
            }
            self.take::<MODE, 1, true>(&mut sums, 0, self.read_partial::<MODE>(0, at, count));
            for j in 1..self.source_count() {
                let loaded = self.read_partial::<MODE>(j, at, count);
                self.take::<MODE, 1, false>(&mut sums, j, loaded);
            }
            Self::chain::<MODE, 1>(&mut sums);
            for (row, output) in sums.iter().zip(self.outputs) {
                row[0].store_partial(output.add(at), count);
            }
        }
    }
}

/// Computes columns `start .. end` of R outputs.
///
/// # Safety
/// As for `Run`.
#[inline(always)]
pub(crate) unsafe fn combine<V: Vector, const K: usize, const R: usize, const MODE: u8>(
    places: Places<'_>,
    outputs: *mut &mut [u8],
    factors: *const u64,
    length: usize,
    span: &Span,
) -> bool {
    // SAFETY: the module's invariants give R outputs, K sources and R rows of factors. Columns are
    // handed to `block` only below `whole`, where every source and output has them; to `tail` only
    // below `end`, which is `whole` unless RAGGED.
    unsafe {
        let mut operands = Operands::<V, K, R> {
            sources: Sources { places, step: span.step, count: span.count },
            source_starts: [std::ptr::null(); K],
            outputs: [std::ptr::null_mut(); R],
            factors,
            stride: span.stride,
            held: [[V::factor(factors); K]; R],
        };
        let Some(shortest) = check_and_point::<V, K, R, MODE>(&mut operands, outputs, length)
        else {
            return false;
        };
        if Operands::<V, K, R>::HOLD {
            for i in 0..R {
                for j in 0..K {
                    operands.held[i][j] = V::factor(factors.add((i * K + j) * V::FACTOR_WORDS));
                }
            }
        }
        // Columns are bounded by the length of a slice, so that sums of them cannot overflow;
        // wrapping arithmetic spares the loops the check.
        let (start, end) = if K > 0 { (0, length) } else { (span.start, length.min(span.end)) };
        let whole = shortest.min(end);
        let mut at = start;
        let mut left = whole.saturating_sub(at);
        let left_at_start = left;
        // Lines asked for ahead are there already.
        if Operands::<V, K, R>::UNROLL == 4 && MODE & AHEAD == 0 {
            while left >= 4 * V::BYTES {
                operands.block::<MODE, 4>(at);
                at = at.wrapping_add(4 * V::BYTES);
                left = left.wrapping_sub(4 * V::BYTES);
            }
        }
        if Operands::<V, K, R>::UNROLL >= 2 {
            while left >= 2 * V::BYTES {
                operands.block::<MODE, 2>(at);
                at = at.wrapping_add(2 * V::BYTES);
                left = left.wrapping_sub(2 * V::BYTES);
            }
        }
        // Without masks the last columns are computed together with some before them, cheaper than
        // a part, unless that would add to the outputs twice, break the alignment, or the whole job
        // is smaller than a vector.
        let may_overlap = !V::MASKED
            && MODE != ADD
            && kind(MODE) != STREAM
            && whole == end
            && left_at_start >= V::BYTES;
        while left >= V::BYTES || may_overlap && left > 0 {
            if left < V::BYTES {
                at = whole.wrapping_sub(V::BYTES);
                left = V::BYTES;
            }
            operands.block::<MODE, 1>(at);
            at = at.wrapping_add(V::BYTES);
            left = left.wrapping_sub(V::BYTES);
        }
        if MODE & RAGGED == 0 {
            if at < end {
                operands.tail::<MODE>(at, left);
            }
        } else {
            while at < end {
                let count = V::BYTES.min(end.wrapping_sub(at));
                operands.tail::<MODE>(at, count);
                at = at.wrapping_add(count);
            }
        }
        if kind(MODE) == STREAM {
            V::fence();
        }
    }
    true
}

/// Fills in where sources and outputs start. The number of columns that every source has, or none
/// if a length is wrong.
#[inline(always)]
unsafe fn check_and_point<V: Vector, const K: usize, const R: usize, const MODE: u8>(
    operands: &mut Operands<'_, V, K, R>,
    outputs: *mut &mut [u8],
    length: usize,
) -> Option<usize> {
    let mut shortest = length;
    // A branch for each length and index: one instruction that compares memory, and never taken.
    for (i, start) in operands.outputs.iter_mut().enumerate() {
        // SAFETY: there are R outputs.
        let output = unsafe { &mut *outputs.add(i) };
        if output.len() != length {
            return None;
        }
        *start = V::opaque(output.as_mut_ptr());
    }
    for j in 0..operands.source_count() {
        // SAFETY: there are K sources, or any number if K = 0, as far apart as the mode says or as
        // they say themselves.
        let (source, expected) = unsafe {
            let sources = &operands.sources;
            match (kind(MODE), K) {
                (UNIT, _) => (sources.get_apart(SLICE_STEP, j), true),
                (PLAIN | CHAIN, 1..) => {
                    (sources.get_apart(FRAGMENT_STEP, j), sources.is_as_expected(j))
                }
                _ if sources.places.expected.is_null() => (sources.get(j), true),
                _ => (sources.get(j), sources.is_as_expected(j)),
            }
        };
        let start = V::opaque(source.as_ptr().cast_mut());
        let fits = if MODE & RAGGED == 0 { source.len() == length } else { source.len() <= length };
        if !expected || !fits {
            return None;
        }
        if MODE & RAGGED != 0 {
            shortest =
                shortest.min(V::opaque(std::ptr::without_provenance_mut(source.len())).addr());
        }
        if K > 0 {
            operands.source_starts[j] = start;
        }
    }
    Some(shortest)
}
