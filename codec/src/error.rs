//! Errors a caller of the codec can make or meet. Invariant: each names the thing, what was found
//! and what was expected, so that the message alone is enough to act on.

use std::fmt;

/// Why the codec refused a call. Nothing was written to the outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// `k` and `m` describe no code: `k >= 1` and `k + m <= 255` are needed.
    Shape { k: usize, m: usize },
    /// The kernel named (by the API or by `RACOS_CODEC_KERNEL`) is not known.
    KernelUnknown { name: String },
    /// This processor lacks the instructions of the kernel asked for.
    KernelUnsupported { kernel: &'static str },
    /// Too few or too many slices were given. `role` says which argument.
    Count { role: &'static str, found: usize, expected: usize },
    /// Data slice, fragment or output `index` has another length than the first one.
    Length { role: &'static str, index: usize, found: usize, expected: usize },
    /// Fragment `index` was given, or asked for, twice.
    Duplicate { role: &'static str, index: usize },
    /// Fragment `index` does not exist in a code of `fragments` fragments.
    Index { role: &'static str, index: usize, fragments: usize },
    /// Fragment `index` is asked for although it is among those present.
    Present { index: usize },
    /// A piece reaches beyond the end (bytes `offset .. offset + length` of `limit`).
    Range { offset: usize, length: usize, limit: usize },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { k, m } => {
                write!(f, "no code has k = {k} and m = {m}: use k >= 1 and k + m <= 255")
            }
            Self::KernelUnknown { name } => write!(
                f,
                "codec kernel {name:?} is not known: use scalar, ssse3, avx2, avx2-gfni or \
                 avx512-gfni, or unset RACOS_CODEC_KERNEL"
            ),
            Self::KernelUnsupported { kernel } => write!(
                f,
                "codec kernel {kernel} needs instructions this processor lacks: choose another \
                 or unset RACOS_CODEC_KERNEL"
            ),
            Self::Count { role, found, expected } => {
                write!(f, "{found} {role} given, the code needs {expected}")
            }
            Self::Length { role, index, found, expected } => {
                write!(f, "{role} {index} has {found} bytes, the others have {expected}")
            }
            Self::Duplicate { role, index } => {
                write!(f, "{role} {index} is named twice: name each fragment once")
            }
            Self::Index { role, index, fragments } => {
                write!(f, "{role} {index} does not exist: the code has fragments 0..{fragments}")
            }
            Self::Present { index } => {
                write!(f, "fragment {index} is asked for but it is among those present: copy it")
            }
            Self::Range { offset, length, limit } => write!(
                f,
                "a piece of {length} bytes at offset {offset} reaches beyond the end at {limit}"
            ),
        }
    }
}

impl std::error::Error for CodecError {}
