//! The operations a kernel is written in: a run of bytes in a register and a field factor in the
//! form the instruction set multiplies by.
//!
//! Invariant: an implementation's methods may be called only where the processor has the
//! instructions it uses; whoever picks a kernel has checked that (`Kernel::is_supported`).

/// `BYTES` field elements side by side.
///
/// # Safety
/// All methods need the instructions of the implementation's kernel. Pointers must be valid for
/// the number of bytes named; no alignment is needed.
pub(crate) trait Vector: Copy {
    /// Elements held.
    const BYTES: usize;
    /// Registers the instruction set has, to decide what is kept in them.
    const REGISTERS: usize;
    /// Registers one factor takes.
    const FACTOR_REGISTERS: usize;
    /// Words one factor takes in a table of factors.
    const FACTOR_WORDS: usize;
    /// Whether loads and stores of a part cost about as much as those of a whole.
    const MASKED: bool = false;
    /// A factor, loaded.
    type Factor: Copy;

    unsafe fn zero() -> Self;
    /// The same address, of which the compiler knows nothing but that it is in a general register. Else
    /// it gathers addresses and lengths in vectors, to take them apart again: at 1 KB a call that
    /// was a third of the time, more where a wide load met narrow stores still under way.
    #[inline(always)]
    fn opaque(address: *mut u8) -> *mut u8 {
        address
    }
    /// Asks for the cache line of an address, which need not be valid, to be read soon.
    #[inline(always)]
    fn fetch(_address: *const u8) {}
    /// The same, to be written.
    #[inline(always)]
    fn fetch_to_write(_address: *const u8) {}
    /// Reads `BYTES` bytes.
    unsafe fn load(from: *const u8) -> Self;
    /// Writes `BYTES` bytes.
    unsafe fn store(self, to: *mut u8);
    /// Writes `BYTES` bytes past the caches, if there is a way; `to` is aligned to `BYTES`.
    #[inline(always)]
    unsafe fn store_past_caches(self, to: *mut u8) {
        // SAFETY: passed on.
        unsafe { self.store(to) }
    }
    /// Orders the stores past the caches before all that follow, as other stores are.
    #[inline(always)]
    unsafe fn fence() {}
    /// Reads `count <= BYTES` bytes, zeros for the rest.
    unsafe fn load_partial(from: *const u8, count: usize) -> Self;
    /// Writes the first `count <= BYTES` bytes.
    unsafe fn store_partial(self, to: *mut u8, count: usize);
    /// Field addition.
    unsafe fn add(self, other: Self) -> Self;
    /// Field addition of two more.
    #[inline(always)]
    unsafe fn add_two(self, one: Self, two: Self) -> Self {
        // SAFETY: passed on.
        unsafe { self.add(one).add(two) }
    }
    /// Reads `FACTOR_WORDS` words.
    unsafe fn factor(from: *const u64) -> Self::Factor;
    /// Field multiplication of every element.
    unsafe fn multiply(self, factor: Self::Factor) -> Self;
}

/// `Vector::load_partial` for instruction sets without masked loads. `BYTES` is `V::BYTES`.
///
/// # Safety
/// As for `Vector::load_partial`.
#[inline(always)]
pub(crate) unsafe fn load_by_copy<V: Vector, const BYTES: usize>(
    from: *const u8,
    count: usize,
) -> V {
    let mut bytes = [0; BYTES];
    // SAFETY: the caller says `from` has `count <= BYTES` bytes and that V's instructions exist.
    unsafe {
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count);
        V::load(bytes.as_ptr())
    }
}

/// `Vector::store_partial` for instruction sets without masked stores. `BYTES` is `V::BYTES`.
///
/// # Safety
/// As for `Vector::store_partial`.
#[inline(always)]
pub(crate) unsafe fn store_by_copy<V: Vector, const BYTES: usize>(
    vector: V,
    to: *mut u8,
    count: usize,
) {
    let mut bytes = [0; BYTES];
    // SAFETY: the caller says `to` has `count <= BYTES` bytes and that V's instructions exist.
    unsafe {
        vector.store(bytes.as_mut_ptr());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count);
    }
}
