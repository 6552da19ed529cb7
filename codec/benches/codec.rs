//! Encoding and rebuilding beside memcpy and, with the features `rivals` and `isal`, other erasure
//! codes; each answer is checked.
//!
//! `cargo bench -p racos-codec --bench codec [--features rivals,isal] -- [filter]`. Names end with
//! the code, as k+m, and the bytes of a value; throughput is value bytes. RACOS_CODEC_KERNEL forces a
//! kernel. `--bench table` prints the same as a table, taking the best of many short turns.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use racos_codec::kernel;
use racos_codec::measure::{CODES, Case, Memory, SIZES, Stripe, contenders};

fn bench_all(criterion: &mut Criterion) {
    let kernel = kernel().expect("RACOS_CODEC_KERNEL names a kernel this machine has");
    let mut group = criterion.benchmark_group("codec");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    group.sample_size(20);
    for (k, m) in CODES {
        for size in SIZES {
            let case = Case::in_cache(k, m, size);
            let mut memory = Memory::new(case);
            let mut stripes = memory.stripes().expect("a code");
            group.throughput(Throughput::Bytes(size as u64));
            for mut contender in contenders(case, kernel).expect("a code") {
                stripes.iter_mut().for_each(Stripe::clear);
                let name = format!("{}/{k}+{m}/{size}", contender.name());
                // Once before, so that there is something to check whatever the filter leaves out.
                contender.encoder(&mut stripes)();
                group.bench_function(format!("encode/{name}"), |bencher| {
                    bencher.iter(contender.encoder(&mut stripes));
                });
                contender.rebuilder(&mut stripes)();
                group.bench_function(format!("rebuild/{name}"), |bencher| {
                    bencher.iter(contender.rebuilder(&mut stripes));
                });
                contender.check(&stripes);
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench_all);
criterion_main!(benches);
