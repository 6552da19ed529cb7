//! Kernels: the one algorithm of `combine` compiled for several instruction sets, and the choice
//! among them. All `unsafe` of the crate is below this folder.
//!
//! Invariant: a kernel runs only where `Kernel::is_supported` said yes, and only on slices whose
//! number and lengths `Combiner` has checked. Breaking either is undefined behaviour, so both are
//! asserted here, whatever the callers have checked.

mod combine;
#[cfg(feature = "rivals")]
mod isal;
mod scalar;
mod slices;
#[cfg(all(feature = "roofline", target_arch = "x86_64"))]
mod streams;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::error::CodecError;
use crate::field::{affine_matrix, bit_products, nibble_tables};
use combine::{
    ADD, AHEAD, CHAIN, PLAIN, RAGGED, Run, STREAM, STREAM_ALIGNMENT, Span, UNIT, select,
    select_ahead,
};

use combine::ROWS_MAX;
pub(crate) use combine::Sources;
#[cfg(feature = "rivals")]
pub(crate) use isal::{IsaL, Sums};
pub(crate) use slices::Slices;
#[cfg(all(feature = "roofline", target_arch = "x86_64"))]
pub(crate) use streams::{Streams, Way};

/// Bytes of all sources that one tile holds when the rows need several passes: they stay in the
/// first-level cache between passes, so that memory is read once.
const TILE_BYTES: usize = 16 * 1024;

/// Bytes read and written together from which on it pays to ask for lines ahead: about what the
/// second-level cache holds, or what is left of it.
const AHEAD_FROM: usize = 768 * 1024;
/// From here on it pays no more with three or four outputs.
const AHEAD_SOME_UNTIL: usize = 2 * 1024 * 1024;

/// The environment variable that forces a kernel.
pub const KERNEL_VARIABLE: &str = "RACOS_CODEC_KERNEL";

/// An instruction set the codec is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Scalar,
    Ssse3,
    Avx2,
    Avx2Gfni,
    Avx512Gfni,
}

impl Kernel {
    /// All kernels, the slowest first.
    pub const ALL: [Self; 5] =
        [Self::Scalar, Self::Ssse3, Self::Avx2, Self::Avx2Gfni, Self::Avx512Gfni];

    /// The name used by `RACOS_CODEC_KERNEL` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Ssse3 => "ssse3",
            Self::Avx2 => "avx2",
            Self::Avx2Gfni => "avx2-gfni",
            Self::Avx512Gfni => "avx512-gfni",
        }
    }

    /// The kernel called `name`, or an error that lists the names.
    pub fn from_name(name: &str) -> Result<Self, CodecError> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name() == name)
            .ok_or_else(|| CodecError::KernelUnknown { name: name.to_owned() })
    }

    /// Whether this processor (and operating system) can run the kernel.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Self::Scalar => true,
                Self::Ssse3 => has!("ssse3"),
                Self::Avx2 => has!("avx2"),
                Self::Avx2Gfni => has!("avx2") && has!("gfni"),
                Self::Avx512Gfni => {
                    has!("avx512f") && has!("avx512bw") && has!("gfni") && has!("bmi2")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    /// The fastest kernel this processor can run.
    pub fn fastest() -> Self {
        let supported = |kernel: &Self| kernel.is_supported();
        Self::ALL.into_iter().rev().find(supported).unwrap_or(Self::Scalar)
    }

    /// The kernel `RACOS_CODEC_KERNEL` names, or the fastest if it is unset or empty.
    pub fn chosen() -> Result<Self, CodecError> {
        match std::env::var_os(KERNEL_VARIABLE) {
            Some(name) if !name.is_empty() => Self::from_name(&name.to_string_lossy())?.supported(),
            _ => Ok(Self::fastest()),
        }
    }

    /// Itself, or an error if this processor cannot run it.
    pub(crate) fn supported(self) -> Result<Self, CodecError> {
        if self.is_supported() {
            Ok(self)
        } else {
            Err(CodecError::KernelUnsupported { kernel: self.name() })
        }
    }

    /// Words one factor takes in a table for this kernel.
    pub(crate) fn factor_words(self) -> usize {
        match self {
            Self::Scalar | Self::Avx2Gfni | Self::Avx512Gfni => 1,
            Self::Ssse3 | Self::Avx2 => 4,
        }
    }

    /// Writes `factors` in the form this kernel multiplies by.
    pub(crate) fn write_factors(self, factors: &[u8], table: &mut [u64]) {
        let entries = table.chunks_exact_mut(self.factor_words());
        assert_eq!(entries.len(), factors.len(), "kernel invariant: the table has another size");
        for (entry, &factor) in entries.zip(factors) {
            match self {
                Self::Scalar => entry[0] = bit_products(factor),
                Self::Ssse3 | Self::Avx2 => {
                    // The kernels read the words as bytes in memory order.
                    entry.copy_from_slice(&NIBBLE_TABLES[factor as usize].map(u64::to_le));
                }
                Self::Avx2Gfni | Self::Avx512Gfni => entry[0] = AFFINE_MATRICES[factor as usize],
            }
        }
    }

    fn instance<const MODE: u8>(self, sources: usize, rows: usize) -> Run {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Scalar => select::<scalar::Scalar, MODE>(sources, rows),
            Self::Ssse3 => select::<x86_64::ssse3::Ssse3, MODE>(sources, rows),
            Self::Avx2 => select::<x86_64::avx2::Avx2, MODE>(sources, rows),
            Self::Avx2Gfni => select::<x86_64::avx2::Avx2Gfni, MODE>(sources, rows),
            Self::Avx512Gfni => select::<x86_64::avx512_gfni::Avx512Gfni, MODE>(sources, rows),
        }
        #[cfg(not(target_arch = "x86_64"))]
        select::<scalar::Scalar, MODE>(sources, rows)
    }
}

/// The instance that asks for lines ahead, if the kernel has one for these numbers.
fn instance_ahead(kernel: Kernel, form: Form, sources: usize, rows: usize) -> Option<Run> {
    #[cfg(target_arch = "x86_64")]
    if kernel == Kernel::Avx512Gfni {
        use x86_64::avx512_gfni::Avx512Gfni;
        return match form {
            Form::Unit => select_ahead::<Avx512Gfni, { UNIT | AHEAD }>(sources, rows),
            Form::Chain => select_ahead::<Avx512Gfni, { CHAIN | AHEAD }>(sources, rows),
            Form::Plain => None,
        };
    }
    let _ = (kernel, form, sources, rows);
    None
}

/// The kernel a new `Codec` uses: the one `RACOS_CODEC_KERNEL` names, else the fastest.
pub fn kernel() -> Result<Kernel, CodecError> {
    Kernel::chosen()
}

static AFFINE_MATRICES: [u64; 256] = {
    let mut all = [0; 256];
    let mut factor = 0;
    while factor < 256 {
        all[factor] = affine_matrix(factor as u8);
        factor += 1;
    }
    all
};

static NIBBLE_TABLES: [[u64; 4]; 256] = {
    let mut all = [[0; 4]; 256];
    let mut factor = 0;
    while factor < 256 {
        all[factor] = nibble_tables(factor as u8);
        factor += 1;
    }
    all
};

/// A kernel made ready for `rows` outputs, each a sum of `sources` sources times factors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combiner {
    kernel: Kernel,
    sources: usize,
    rows: usize,
    form: Form,
    /// The instance for the first `ROWS_MAX` rows.
    run: Run,
    /// The same for long outputs.
    run_ahead: Run,
    /// From how many bytes on outputs are long, or 0 if there are several groups of rows.
    long_from: usize,
    /// Words of all factors.
    factors: usize,
    span: Span,
}

/// What is known of the factors of a `Combiner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Nothing.
    Plain,
    /// The first row and the first column are ones.
    Unit,
    /// The last output is the plain sum of the first sources, all but `rows - 1`, and of the other
    /// outputs. Factors of the last row are there, but need not be looked at.
    Chain,
}

/// Why nothing was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The number of sources or outputs is not the combiner's.
    Count,
    /// Lengths differ among sources and outputs, or a source has another index than expected.
    Uneven,
}

impl Combiner {
    /// For outputs that are overwritten.
    pub(crate) fn new(kernel: Kernel, sources: usize, rows: usize, form: Form) -> Self {
        assert!(kernel.is_supported(), "kernel invariant: {} cannot run here", kernel.name());
        assert!(sources > 0 && rows > 0, "kernel invariant: {sources} sources, {rows} rows");
        // Of rows in several groups the last cannot be the sum of the others.
        let form = if rows > ROWS_MAX && form == Form::Chain { Form::Plain } else { form };
        let together = rows.min(ROWS_MAX);
        let run = match form {
            Form::Unit => kernel.instance::<UNIT>(sources, together),
            Form::Chain => {
                assert!(rows <= sources, "kernel invariant: {rows} rows of {sources} sources");
                kernel.instance::<CHAIN>(sources, rows)
            }
            Form::Plain => kernel.instance::<PLAIN>(sources, together),
        };
        let factors = rows * sources * kernel.factor_words();
        let span = Span::whole(sources, form == Form::Unit);
        let run_ahead = instance_ahead(kernel, form, sources, rows).unwrap_or(run);
        let long_from = if rows > ROWS_MAX { 0 } else { AHEAD_FROM / (sources + rows) };
        Self { kernel, sources, rows, form, run, run_ahead, long_from, factors, span }
    }

    #[cfg(test)]
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Overwrites every output. `factors` is row by row, there may be more. Outputs of
    /// `stream_from` bytes in all or more are written past the caches. If refused, nothing was
    /// written. With `Form::Unit`, sources must be slices, else fragments.
    #[inline(always)]
    pub(crate) fn combine(
        &self,
        factors: &[u64],
        sources: Sources<'_>,
        outputs: &mut [&mut [u8]],
        stream_from: usize,
    ) -> Result<(), Refused> {
        if sources.len() != self.sources || outputs.len() != self.rows {
            return Err(Refused::Count);
        }
        assert!(factors.len() >= self.factors, "kernel invariant: number of factors");
        let fits = (self.form == Form::Unit) == sources.are_slices();
        assert!(fits, "kernel invariant: UNIT takes slices, all else fragments");
        let length = outputs[0].len();
        // What calls of a microsecond and less do is done in line.
        let run = if length < self.long_from && length < stream_from / ROWS_MAX {
            self.run
        } else if self.rows > ROWS_MAX {
            return self.combine_in_tiles(factors, sources, outputs, false);
        } else {
            self.instance_for_long(outputs, stream_from)
        };
        // SAFETY: `new` checked the instructions and chose the instance for these numbers of
        // sources and rows, checked above with the number of factors; outputs are aligned where
        // they are streamed.
        let even = unsafe {
            run(sources.places(), outputs.as_mut_ptr(), factors.as_ptr(), length, &self.span)
        };
        if even { Ok(()) } else { Err(Refused::Uneven) }
    }

    /// What computes outputs that are long, or that are to be written past the caches.
    #[inline(never)]
    fn instance_for_long(&self, outputs: &[&mut [u8]], stream_from: usize) -> Run {
        if self.streams(outputs, stream_from) {
            return self.kernel.instance::<STREAM>(self.sources, self.rows);
        }
        let together = outputs[0].len().saturating_mul(self.sources + self.rows);
        let until = if matches!(self.rows, 3 | 4) { AHEAD_SOME_UNTIL } else { usize::MAX };
        if (AHEAD_FROM..until).contains(&together) { self.run_ahead } else { self.run }
    }

    /// As `combine`, but a source shorter than the outputs counts as followed by zeros.
    pub(crate) fn combine_ragged(
        &self,
        factors: &[u64],
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        stream_from: usize,
    ) -> Result<(), Refused> {
        if sources.len() != self.sources || outputs.len() != self.rows {
            return Err(Refused::Count);
        }
        assert_eq!(factors.len(), self.factors, "kernel invariant: number of factors");
        let (length, sources) = (outputs[0].len(), Sources::of_slices(sources));
        let (places, span) = (sources.places(), sources.span(self.sources, 0, length));
        let run = if self.rows > ROWS_MAX {
            return self.combine_in_tiles(factors, sources, outputs, true);
        } else if self.streams(outputs, stream_from) {
            self.kernel.instance::<{ STREAM | RAGGED }>(self.sources, self.rows)
        } else {
            self.ragged(0, self.rows)
        };
        // SAFETY: as in `combine`.
        let fit = unsafe { run(places, outputs.as_mut_ptr(), factors.as_ptr(), length, &span) };
        if fit { Ok(()) } else { Err(Refused::Uneven) }
    }

    /// The instance for sources that may be short, for a group of rows.
    fn ragged(&self, group: usize, rows: usize) -> Run {
        match self.form {
            Form::Unit if group == 0 => {
                self.kernel.instance::<{ UNIT | RAGGED }>(self.sources, rows)
            }
            _ => self.kernel.instance::<{ PLAIN | RAGGED }>(self.sources, rows),
        }
    }

    /// Whether outputs are large enough to be written past the caches, and can be.
    #[inline(never)]
    fn streams(&self, outputs: &[&mut [u8]], stream_from: usize) -> bool {
        outputs[0].len().saturating_mul(outputs.len()) >= stream_from && aligned(outputs)
    }

    /// More rows than registers: group after group of rows over columns that stay in cache.
    #[inline(never)]
    fn combine_in_tiles(
        &self,
        factors: &[u64],
        sources: Sources<'_>,
        outputs: &mut [&mut [u8]],
        ragged: bool,
    ) -> Result<(), Refused> {
        let length = outputs[0].len();
        if outputs.iter().any(|output| output.len() != length) {
            return Err(Refused::Uneven);
        }
        let stride = self.sources;
        let row_words = self.factors / self.rows;
        let tile = (TILE_BYTES / stride).next_multiple_of(64);
        // An empty job runs too: it checks the sources.
        for start in (0..length.max(1)).step_by(tile) {
            let end = length.min(start + tile);
            let groups = outputs.chunks_mut(ROWS_MAX);
            let tables = factors.chunks(ROWS_MAX * row_words);
            for (group, (outputs, factors)) in groups.zip(tables).enumerate() {
                let run = match group {
                    _ if ragged => self.ragged(group, outputs.len()),
                    0 => self.run,
                    // For any number of sources, as PLAIN for a number would take fragments only.
                    _ => self.kernel.instance::<PLAIN>(0, outputs.len()),
                };
                let (span, outputs) = (sources.span(stride, start, end), outputs.as_mut_ptr());
                let places = sources.places();
                // SAFETY: as in `combine`; each group has its own number of rows, at most
                // ROWS_MAX, and as many rows of factors; start <= end.
                let fit = unsafe { run(places, outputs, factors.as_ptr(), length, &span) };
                if !fit {
                    return Err(Refused::Uneven);
                }
            }
        }
        Ok(())
    }
}

/// Whether all outputs can be written past the caches.
#[inline(never)]
fn aligned(outputs: &[&mut [u8]]) -> bool {
    outputs.iter().all(|output| output.as_ptr().addr().is_multiple_of(STREAM_ALIGNMENT))
}

/// Adds `source` times a factor of its own to each output; all have the same length. Row i's
/// factor is at `i * stride` factors.
pub(crate) fn accumulate(
    kernel: Kernel,
    factors: &[u64],
    stride: usize,
    source: &[u8],
    outputs: &mut [&mut [u8]],
) {
    assert!(kernel.is_supported(), "kernel invariant: {} cannot run here", kernel.name());
    let length = source.len();
    let words = kernel.factor_words();
    let sources = [source];
    let sources = Sources::of_slices(&sources);
    let (places, span) = (sources.places(), sources.span(stride, 0, length));
    for (group, outputs) in outputs.chunks_mut(ROWS_MAX).enumerate() {
        let rows = outputs.len();
        let factors = &factors[group * ROWS_MAX * stride * words..];
        assert!(
            factors.len() >= ((rows - 1) * stride + 1) * words,
            "kernel invariant: number of factors"
        );
        let run = kernel.instance::<ADD>(0, rows);
        // SAFETY: the instructions were checked; the instance takes any number of sources and this
        // number of rows; factor 0 of each row exists.
        let even = unsafe { run(places, outputs.as_mut_ptr(), factors.as_ptr(), length, &span) };
        assert!(even, "kernel invariant: pieces are as long as the columns they are added to");
    }
}
