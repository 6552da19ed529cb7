//! Kernels for x86-64, from the oldest instructions to the newest. Each file wraps a register and
//! compiles the one algorithm with its instructions enabled.

pub(crate) mod avx2;
pub(crate) mod avx512_gfni;
pub(crate) mod ssse3;

/// `Vector::opaque` of all kernels here.
#[inline(always)]
fn opaque(mut address: *mut u8) -> *mut u8 {
    // SAFETY: no instruction, nothing changes.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) address, options(pure, readonly, nostack, preserves_flags))
    }
    address
}
