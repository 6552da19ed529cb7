//! Fuzz targets: each takes any bytes and makes of them what a stranger could send, a damaged disk
//! could hold, or a caller could ask. It panics if racos does, or if what racos answers breaks the
//! rule that the target's file states.
//!
//! Invariant: a target is a function of its input alone, so that an input found once fails again.
//! The same functions run under libFuzzer (`tools/fuzz/run`) and over the corpus and made-up inputs
//! in `cargo test -p racos-fuzz`.

mod codec;
mod input;
mod machine;
mod messages;
mod net;
mod storage;

/// One target.
pub struct Target {
    /// What `run` is given, and the name of its folder in `corpus`, if inputs are kept there.
    pub name: &'static str,
    pub check: fn(&[u8]),
    /// Inputs to begin with, made by the code that writes what the target reads.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident)+) => {
        &[$(Target { name: stringify!($name), check: $name::check, seeds: $name::seeds }),+]
    };
}

/// All targets.
pub const TARGETS: &[Target] = targets!(codec machine messages net storage);
