//! Encoding and rebuilding beside memcpy and, with the feature `rivals`, other erasure codes, each
//! at its best settings. Every call's answer is checked before it is timed.
//!
//! `cargo bench -p racos-codec [--features rivals] -- [filter]`. Names end with the code, as k+m,
//! and the bytes of a value. RACOS_CODEC_KERNEL forces a kernel. Throughput is value bytes.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use racos_codec::{Codec, fragment_len};

const CODES: [(usize, usize); 6] = [(3, 2), (2, 3), (4, 4), (7, 2), (3, 6), (8, 5)];
const SIZES: [usize; 4] = [1344, 64 << 10, 666 << 10, 2 << 20];

/// The fragments of one value, each at a cache line, and what encoding them gives.
struct Stripe {
    k: usize,
    m: usize,
    /// Bytes of a value.
    size: usize,
    fragment: usize,
    memory: Vec<u8>,
    first: usize,
}

impl Stripe {
    fn new(k: usize, m: usize, size: usize) -> Self {
        // The rivals want fragments of even length, reed-solomon-simd of 64 bytes at best.
        let fragment = fragment_len(size, k).next_multiple_of(64);
        let mut memory = vec![0; (k + m) * fragment + 4096];
        let first = memory.as_ptr().align_offset(4096);
        for (at, byte) in memory[first..].iter_mut().enumerate() {
            *byte = (at.wrapping_mul(0x9E37_79B1) >> 16) as u8;
        }
        Self { k, m, size: k * fragment, fragment, memory, first }
    }

    fn split(&mut self) -> (Vec<&[u8]>, Vec<&mut [u8]>) {
        let (data, rest) = self.memory[self.first..].split_at_mut(self.k * self.fragment);
        let parity = rest[..self.m * self.fragment].chunks_exact_mut(self.fragment);
        (data.chunks_exact(self.fragment).collect(), parity.collect())
    }

    /// Fragments lost when as many data fragments as possible are.
    fn lost(&self) -> usize {
        self.k.min(self.m)
    }
}

fn bench_racos(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, stripe: &mut Stripe) {
    let (k, m, fragment, lost) = (stripe.k, stripe.m, stripe.fragment, stripe.lost());
    let codec = Codec::new(k, m).expect("a code and a kernel");
    let (data, mut parity) = stripe.split();
    codec.encode(&data, &mut parity).expect("encode");
    let held: Vec<Vec<u8>> = parity.iter().map(|parity| parity.to_vec()).collect();
    group.bench_function(format!("encode/racos-{}/{name}", codec.kernel().name()), |bencher| {
        bencher.iter(|| codec.encode(black_box(&data), black_box(&mut parity)).expect("encode"));
    });
    let kept = (lost..k).map(|j| (j, data[j]));
    let held = held.iter().enumerate().map(|(i, held)| (k + i, &held[..]));
    let present: Vec<(usize, &[u8])> = kept.chain(held).take(k).collect();
    let wanted: Vec<usize> = (0..lost).collect();
    let mut rebuilt = vec![vec![0; fragment]; lost];
    let mut out: Vec<&mut [u8]> = rebuilt.iter_mut().map(|out| &mut out[..]).collect();
    codec.rebuild(&present, &wanted, &mut out).expect("rebuild");
    assert!(out.iter().zip(&data).all(|(out, data)| out == data), "what is rebuilt was lost");
    group.bench_function(format!("rebuild/racos-{}/{name}", codec.kernel().name()), |bencher| {
        bencher.iter(|| {
            let out = black_box(&mut out[..]);
            codec.rebuild(black_box(&present), black_box(&wanted), out).expect("rebuild");
        });
    });
}

fn bench_memcpy(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, stripe: &Stripe) {
    let value = &stripe.memory[stripe.first..][..stripe.size];
    let mut copy = vec![0; stripe.size];
    group.bench_function(format!("memcpy/{name}"), |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(value)));
    });
    assert!(copy == value || copy.iter().all(|byte| *byte == 0), "a copy is equal");
}

#[cfg(feature = "rivals")]
mod rivals {
    use super::*;

    /// Its parities differ from ours (another matrix); what it rebuilds must be what was lost.
    pub fn bench_reed_solomon_erasure(
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        stripe: &mut Stripe,
    ) {
        use reed_solomon_erasure::galois_8::ReedSolomon;
        let (k, m, lost) = (stripe.k, stripe.m, stripe.lost());
        let code = ReedSolomon::new(k, m).expect("a code");
        let (data, mut parity) = stripe.split();
        code.encode_sep(&data, &mut parity).expect("encode");
        let mut shards: Vec<(Vec<u8>, bool)> =
            data.iter().map(|data| data.to_vec()).zip((0..k).map(|j| j >= lost)).collect();
        shards.extend(parity.iter().map(|parity| (parity.to_vec(), true)));
        shards[..lost].iter_mut().for_each(|(lost, _)| lost.fill(0));
        code.reconstruct_data(&mut shards).expect("rebuild");
        assert!(shards.iter().zip(&data).all(|((out, _), data)| out == data), "rebuilt was lost");
        group.bench_function(format!("encode/reed-solomon-erasure/{name}"), |bencher| {
            bencher.iter(|| code.encode_sep(black_box(&data), black_box(&mut parity)).expect("ok"));
        });
        group.bench_function(format!("rebuild/reed-solomon-erasure/{name}"), |bencher| {
            bencher.iter(|| {
                shards[..lost].iter_mut().for_each(|(_, present)| *present = false);
                code.reconstruct_data(black_box(&mut shards)).expect("rebuild");
            });
        });
    }

    /// Encoder and decoder are kept and fed again, which its documentation calls the fastest way.
    pub fn bench_reed_solomon_simd(
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        stripe: &mut Stripe,
    ) {
        use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
        let (k, m, fragment, lost) = (stripe.k, stripe.m, stripe.fragment, stripe.lost());
        let mut encoder = ReedSolomonEncoder::new(k, m, fragment).expect("a code");
        let mut decoder = ReedSolomonDecoder::new(k, m, fragment).expect("a code");
        let (data, _) = stripe.split();
        let mut encode = |data: &[&[u8]]| -> Vec<Vec<u8>> {
            data.iter().for_each(|data| encoder.add_original_shard(data).expect("a fragment"));
            let coded = encoder.encode().expect("encode");
            coded.recovery_iter().map(<[u8]>::to_vec).collect()
        };
        let parity = encode(&data);
        let mut rebuild = |check: bool| {
            for (j, data) in data.iter().enumerate().skip(lost) {
                decoder.add_original_shard(j, data).expect("a fragment");
            }
            for (i, parity) in parity.iter().enumerate().take(lost) {
                decoder.add_recovery_shard(i, parity).expect("a fragment");
            }
            let rebuilt = decoder.decode().expect("rebuild");
            for (j, out) in rebuilt.restored_original_iter() {
                assert!(!check || out == data[j], "what is rebuilt was lost");
                black_box(out);
            }
        };
        rebuild(true);
        group.bench_function(format!("rebuild/reed-solomon-simd/{name}"), |bencher| {
            bencher.iter(|| rebuild(false));
        });
        group.bench_function(format!("encode/reed-solomon-simd/{name}"), |bencher| {
            bencher.iter(|| {
                for data in black_box(&data) {
                    encoder.add_original_shard(data).expect("a fragment");
                }
                let coded = encoder.encode().expect("encode");
                coded.recovery_iter().for_each(|parity| {
                    black_box(parity);
                });
            });
        });
    }
}

fn bench_all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    group.sample_size(20);
    for (k, m) in CODES {
        for size in SIZES {
            let mut stripe = Stripe::new(k, m, size);
            let name = format!("{k}+{m}/{size}");
            group.throughput(Throughput::Bytes(stripe.size as u64));
            bench_memcpy(&mut group, &name, &stripe);
            bench_racos(&mut group, &name, &mut stripe);
            #[cfg(feature = "rivals")]
            {
                rivals::bench_reed_solomon_erasure(&mut group, &name, &mut stripe);
                rivals::bench_reed_solomon_simd(&mut group, &name, &mut stripe);
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench_all);
criterion_main!(benches);
