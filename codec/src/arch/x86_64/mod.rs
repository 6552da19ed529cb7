//! Kernels for x86-64, from the oldest instructions to the newest. Each file wraps a register and
//! compiles the one algorithm with its instructions enabled.

pub(crate) mod avx2;
pub(crate) mod avx2_gfni;
pub(crate) mod avx512_gfni;
pub(crate) mod ssse3;
