//! Room on the stack for the slices a call gathers before a kernel runs. Filling it costs no more
//! than what is put in, which at 1 KB a call is a good part of the time.
//!
//! Invariant: only items just written are handed out. Items are never dropped, so `T` owns nothing.

use std::mem::MaybeUninit;

use crate::matrix::FRAGMENTS_MAX;

pub(crate) struct Slices<T>([MaybeUninit<T>; FRAGMENTS_MAX]);

impl<T> Slices<T> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        const { assert!(!std::mem::needs_drop::<T>()) };
        Self([const { MaybeUninit::uninit() }; FRAGMENTS_MAX])
    }

    /// The items, in a row; at most as many as a code may have fragments.
    #[inline(always)]
    pub(crate) fn fill(&mut self, items: impl Iterator<Item = T>) -> &mut [T] {
        let mut count = 0;
        for (place, item) in self.0.iter_mut().zip(items) {
            place.write(item);
            count += 1;
        }
        // SAFETY: the loop initialised the first `count` items; MaybeUninit<T> is laid out as T.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), count) }
    }
}
