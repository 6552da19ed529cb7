//! Switches that take single guards out of racos, to show that some test notices.
//!
//! Purpose: a guard that no test misses may as well not be there. `if mutant!("name")` in a crate of
//! racos asks here whether this guard is to be left out. The answer is the constant `false`, and the
//! guard costs nothing, but with the feature `armed`, which nothing but tests and `racos-sim mutants`
//! turns on.
//! Invariant: at most one guard is out, of the thread that asked for it, until [`Off`] is dropped.
#![forbid(unsafe_code)]

use std::cell::Cell;

thread_local! {
    static OUT: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Whether a test has left out the guard of this name: never, in any but a test build.
#[cfg(feature = "armed")]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::is_out($name)
    };
}
/// Whether a test has left out the guard of this name: never, in any but a test build.
#[cfg(not(feature = "armed"))]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        false
    };
}

/// Whether the guard of this name is left out on this thread.
#[inline]
pub fn is_out(name: &str) -> bool {
    OUT.get().is_some_and(|out| out == name)
}

/// Puts the guard back when it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Off(());

/// Leaves a guard out on this thread.
///
/// # Panics
/// If another one is out already: what would be noticed then, and of which?
pub fn leave_out(name: &'static str) -> Off {
    let before = OUT.replace(Some(name));
    assert_eq!(before, None, "one guard at a time");
    Off(())
}

impl Drop for Off {
    fn drop(&mut self) {
        OUT.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_out_until_its_switch_is_dropped_and_on_this_thread_only() {
        let off = leave_out("a");
        assert!(is_out("a") && !is_out("b"));
        assert!(!std::thread::spawn(|| is_out("a")).join().unwrap());
        drop(off);
        assert!(!is_out("a"));
    }
}
