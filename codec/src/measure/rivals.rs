//! Other erasure codes. Each is given what its documentation calls its fastest way, and matrices,
//! tables and pointers are made before it is timed.
//!
//! Invariant: a rival's answer is checked like racos' own. ISA-L is given racos' matrix and so has to
//! compute the same bytes; the two others have matrices of their own and have to rebuild the data.

use std::hint::black_box;

use super::{Case, Contender, Stripe, Work};
use crate::arch::{IsaL, Sums};
use crate::matrix::Generator;

/// Those that can do the case.
pub(super) fn all(case: Case) -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    if case.m == 0 || case.size == 0 {
        return all;
    }
    all.extend(IsaL::installed().map(|isal| Box::new(IsaLContender::new(case, isal)) as Box<_>));
    #[cfg(feature = "isal")]
    all.push(Box::new(IsaLContender::new(case, IsaL::newest())));
    // They keep fragments of their own, of one value.
    if case.working_set <= case.size {
        all.push(Box::new(Erasure::new(case)));
        all.push(Box::new(Simd::new(case)));
    }
    all
}

struct IsaLContender {
    name: String,
    isal: IsaL,
    encode_factors: Vec<u8>,
    rebuild_factors: Vec<u8>,
}

impl IsaLContender {
    fn new(case: Case, isal: IsaL) -> Self {
        let Case { k, m, .. } = case;
        let generator = Generator::new(k, m);
        let identity = |row: usize| (0..k).map(move |column| u8::from(column == row));
        let mut kept: Vec<u8> = (case.lost()..k).flat_map(identity).collect();
        kept.extend_from_slice(&generator.rows()[..case.lost() * k]);
        let inverse = isal.invert(&kept, k).expect("rivals invariant: any k fragments suffice");
        Self {
            name: format!("isa-l-{}", isal.version()),
            isal,
            encode_factors: generator.rows().to_vec(),
            rebuild_factors: inverse[..case.lost() * k].to_vec(),
        }
    }
}

fn compute_all<'s>(mut sums: Vec<Sums<'s>>) -> Work<'s> {
    Box::new(move || sums.iter_mut().for_each(|sums| black_box(sums).compute()))
}

impl Contender for IsaLContender {
    fn name(&self) -> &str {
        &self.name
    }

    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let sums = stripes
            .iter_mut()
            .map(|stripe| self.isal.sums(&self.encode_factors, &stripe.data, &mut stripe.parity));
        compute_all(sums.collect())
    }

    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let sums = stripes.iter_mut().map(|stripe| {
            let present: Vec<&[u8]> = stripe.present.iter().map(|(_, bytes)| *bytes).collect();
            self.isal.sums(&self.rebuild_factors, &present, &mut stripe.rebuilt)
        });
        compute_all(sums.collect())
    }
}

/// reed-solomon-erasure with its SIMD C code. Matrices are cached by the crate.
struct Erasure {
    code: reed_solomon_erasure::galois_8::ReedSolomon,
    lost: usize,
    shards: Vec<(Vec<u8>, bool)>,
}

impl Erasure {
    fn new(case: Case) -> Self {
        let code = reed_solomon_erasure::galois_8::ReedSolomon::new(case.k, case.m);
        let code = code.expect("rivals invariant: a code");
        Self { code, lost: case.lost(), shards: Vec::new() }
    }
}

impl Contender for Erasure {
    fn name(&self) -> &str {
        "reed-solomon-erasure"
    }

    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let (code, stripe) = (&self.code, &mut stripes[0]);
        Box::new(move || {
            let done = code.encode_sep(black_box(&stripe.data), black_box(&mut stripe.parity));
            assert!(done.is_ok(), "rivals invariant: the stripe fits the code: {done:?}");
        })
    }

    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let Self { code, lost, shards } = self;
        let stripe = &stripes[0];
        // As many of its own parities as fragments are lost take part.
        let data = stripe.data.iter().map(|data| data.to_vec());
        let parity = stripe.parity.iter().map(|parity| parity.to_vec());
        *shards = data.chain(parity).map(|shard| (shard, true)).collect();
        shards[..*lost].iter_mut().for_each(|(shard, _)| shard.fill(0));
        Box::new(move || {
            shards[..*lost].iter_mut().for_each(|(_, present)| *present = false);
            let done = code.reconstruct_data(black_box(shards));
            assert!(done.is_ok(), "rivals invariant: enough shards: {done:?}");
        })
    }

    fn check(&mut self, stripes: &[Stripe<'_>]) {
        let equal = self.shards.iter().zip(&stripes[0].data).all(|((own, _), data)| own == data);
        assert!(equal, "measure invariant: reed-solomon-erasure rebuilds what was lost");
    }
}

/// reed-solomon-simd: encoder and decoder are kept and fed again. It likes fragments of a multiple
/// of 64 bytes and is given them, which is up to 63 bytes a fragment more than the others have.
struct Simd {
    lost: usize,
    encoder: reed_solomon_simd::ReedSolomonEncoder,
    decoder: reed_solomon_simd::ReedSolomonDecoder,
    parity: Vec<Vec<u8>>,
    rebuilt: Vec<Vec<u8>>,
}

impl Simd {
    fn new(case: Case) -> Self {
        let Case { k, m, size, .. } = case;
        let bytes = crate::fragment_len(size, k).next_multiple_of(64);
        let encoder = reed_solomon_simd::ReedSolomonEncoder::new(k, m, bytes);
        let decoder = reed_solomon_simd::ReedSolomonDecoder::new(k, m, bytes);
        Self {
            lost: case.lost(),
            encoder: encoder.expect("rivals invariant: a code"),
            decoder: decoder.expect("rivals invariant: a code"),
            parity: Vec::new(),
            rebuilt: Vec::new(),
        }
    }

    fn encode(&mut self, stripe: &Stripe<'_>, mut visit: impl FnMut(&[u8])) {
        for data in black_box(&stripe.rounded) {
            self.encoder.add_original_shard(data).expect("rivals invariant: a fragment");
        }
        let coded = self.encoder.encode().expect("rivals invariant: all fragments are there");
        coded.recovery_iter().for_each(&mut visit);
    }

    fn rebuild(&mut self, stripe: &Stripe<'_>, mut visit: impl FnMut(&[u8])) {
        for (j, data) in stripe.rounded.iter().enumerate().skip(self.lost) {
            self.decoder.add_original_shard(j, data).expect("rivals invariant: a fragment");
        }
        for (i, parity) in self.parity.iter().enumerate().take(self.lost) {
            self.decoder.add_recovery_shard(i, parity).expect("rivals invariant: a fragment");
        }
        let rebuilt = self.decoder.decode().expect("rivals invariant: k fragments are there");
        rebuilt.restored_original_iter().for_each(|(_, fragment)| visit(fragment));
    }
}

impl Contender for Simd {
    fn name(&self) -> &str {
        "reed-solomon-simd"
    }

    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let stripe = &stripes[0];
        Box::new(move || {
            self.encode(stripe, |parity| {
                black_box(parity);
            });
        })
    }

    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let stripe = &stripes[0];
        let mut parity = Vec::new();
        self.encode(stripe, |fragment| parity.push(fragment.to_vec()));
        self.parity = parity;
        Box::new(move || {
            self.rebuild(stripe, |fragment| {
                black_box(fragment);
            });
        })
    }

    fn check(&mut self, stripes: &[Stripe<'_>]) {
        let mut rebuilt = std::mem::take(&mut self.rebuilt);
        rebuilt.clear();
        self.rebuild(&stripes[0], |fragment| rebuilt.push(fragment.to_vec()));
        let lost = stripes[0].rounded.iter().take(self.lost);
        assert!(
            rebuilt.len() == self.lost && rebuilt.iter().zip(lost).all(|(one, other)| one == other),
            "measure invariant: reed-solomon-simd rebuilds what was lost"
        );
        self.rebuilt = rebuilt;
    }
}
