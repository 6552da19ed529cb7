//! The libFuzzer program. `RACOS_FUZZ` names the target, `RACOS_FUZZ_SEEDS` a folder that its first
//! inputs are written to; `tools/fuzz/run` sets both.
#![no_main]

use racos_fuzz::{TARGETS, Target};
use std::path::PathBuf;
use std::sync::LazyLock;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("RACOS_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("RACOS_FUZZ={name:?} names no target: use one of {names:?}")
    })
});

fn write_seeds() {
    let Some(folder) = std::env::var_os("RACOS_FUZZ_SEEDS").map(PathBuf::from) else { return };
    for (number, seed) in (TARGET.seeds)().iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a folder for seeds");
    }
}

libfuzzer_sys::fuzz_target!(init: write_seeds(), |input: &[u8]| (TARGET.check)(input));
