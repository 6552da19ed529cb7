//! Encoding and rebuilding beside memcpy and, with the feature `rivals`, other erasure codes.
//!
//! `cargo bench -p racos-codec --bench codec [--features rivals] -- [filter]`. Names end with the
//! code, as k+m, and the bytes of a value; throughput is value bytes. RACOS_CODEC_KERNEL forces a
//! kernel. `--bench table` prints the same as a table, taking the best of many short turns.

mod contenders;

use std::time::Duration;

use contenders::{Rooms, Value, all};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CODES: [(usize, usize); 6] = [(3, 2), (2, 3), (4, 4), (7, 2), (3, 6), (8, 5)];
const SIZES: [usize; 4] = [1344, 64 << 10, 666 << 10, 2 << 20];

fn bench_all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    group.sample_size(20);
    for (k, m) in CODES {
        for size in SIZES {
            let value = Value::new(k, m, size);
            let mut rooms = Rooms::new(&value);
            group.throughput(Throughput::Bytes(value.size() as u64));
            for mut contender in all(&value, &mut rooms) {
                let name = format!("{}/{k}+{m}/{size}", contender.name);
                group.bench_function(format!("encode/{name}"), |bencher| {
                    bencher.iter(&mut contender.encode);
                });
                group.bench_function(format!("rebuild/{name}"), |bencher| {
                    bencher.iter(&mut contender.rebuild);
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench_all);
criterion_main!(benches);
