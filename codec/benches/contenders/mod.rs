//! Those who encode and rebuild one value, each at its best settings: racos, a plain copy, and with
//! the feature `rivals` other erasure codes. What each rebuilds is checked when it is made.

use std::hint::black_box;

use racos_codec::{Codec, fragment_len};

/// The data fragments of one value, each at a cache line and a multiple of 64 bytes long, which is
/// what reed-solomon-simd likes best.
pub struct Value {
    pub k: usize,
    pub m: usize,
    pub fragment: usize,
    memory: Vec<u8>,
    first: usize,
}

impl Value {
    pub fn new(k: usize, m: usize, size: usize) -> Self {
        let fragment = fragment_len(size, k).next_multiple_of(64);
        let memory: Vec<u8> =
            (0..k * fragment + 4096).map(|at| (at.wrapping_mul(0x9E37_79B1) >> 16) as u8).collect();
        let first = memory.as_ptr().align_offset(4096);
        Self { k, m, fragment, memory, first }
    }

    /// Bytes of the value.
    pub fn size(&self) -> usize {
        self.k * self.fragment
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.first..][..self.size()]
    }

    fn data(&self) -> Vec<&[u8]> {
        self.bytes().chunks_exact(self.fragment).collect()
    }

    /// Data fragments lost when as many as possible are: 0 .. lost.
    fn lost(&self) -> usize {
        self.k.min(self.m)
    }
}

/// Room for fragments, at cache lines.
struct Room {
    memory: Vec<u8>,
    first: usize,
    fragment: usize,
}

impl Room {
    fn new(count: usize, fragment: usize) -> Self {
        let memory = vec![0; count * fragment + 4096];
        let first = memory.as_ptr().align_offset(4096);
        Self { memory, first, fragment }
    }

    fn fragments(&mut self) -> Vec<&mut [u8]> {
        self.memory[self.first..].chunks_exact_mut(self.fragment).collect()
    }
}

pub struct Contender<'a> {
    pub name: String,
    pub encode: Box<dyn FnMut() + 'a>,
    pub rebuild: Box<dyn FnMut() + 'a>,
}

/// Memory that outlives the contenders of a value, so that they can hold slices of it.
pub struct Rooms {
    parity: Room,
    rebuilt: Room,
    /// The fragments to rebuild from.
    kept: Vec<(usize, Vec<u8>)>,
}

impl Rooms {
    pub fn new(value: &Value) -> Self {
        let fragment = value.fragment;
        let (parity, rebuilt) = (Room::new(value.m, fragment), Room::new(value.lost(), fragment));
        Self { parity, rebuilt, kept: Vec::new() }
    }
}

pub fn racos<'a>(value: &'a Value, rooms: &'a mut Rooms) -> Contender<'a> {
    let (k, m, lost) = (value.k, value.m, value.lost());
    let codec = Codec::new(k, m).expect("a code and a kernel");
    let data = value.data();
    let Rooms { parity, rebuilt, kept } = rooms;
    let (mut parity, mut rebuilt) = (parity.fragments(), rebuilt.fragments());
    parity.truncate(m);
    rebuilt.truncate(lost);
    codec.encode(&data, &mut parity).expect("encode");
    *kept = (lost..k)
        .map(|j| (j, data[j].to_vec()))
        .chain(parity.iter().enumerate().map(|(i, parity)| (k + i, parity.to_vec())))
        .take(k)
        .collect();
    let present: Vec<(usize, &[u8])> = kept.iter().map(|(i, bytes)| (*i, &bytes[..])).collect();
    let wanted: Vec<usize> = (0..lost).collect();
    codec.rebuild(&present, &wanted, &mut rebuilt).expect("rebuild");
    assert!(rebuilt.iter().zip(&data).all(|(out, data)| out == data), "what is rebuilt was lost");
    let name = format!("racos-{}", codec.kernel().name());
    let again = codec.clone();
    Contender {
        name,
        encode: Box::new(move || {
            codec.encode(black_box(&data), black_box(&mut parity)).expect("encode");
        }),
        rebuild: Box::new(move || {
            let (present, wanted) = (black_box(&present), black_box(&wanted));
            again.rebuild(present, wanted, black_box(&mut rebuilt)).expect("rebuild");
        }),
    }
}

/// A copy of the value, in both places.
pub fn memcpy(value: &Value) -> Contender<'_> {
    let copy = || -> Box<dyn FnMut() + '_> {
        let mut room = Room::new(1, value.size());
        Box::new(move || {
            let to = &mut room.memory[room.first..][..room.fragment];
            black_box(to).copy_from_slice(black_box(value.bytes()));
        })
    };
    Contender { name: "memcpy".to_owned(), encode: copy(), rebuild: copy() }
}

/// With its SIMD C code. Matrices are cached by the crate.
#[cfg(feature = "rivals")]
pub fn reed_solomon_erasure(value: &Value) -> Contender<'_> {
    use reed_solomon_erasure::galois_8::ReedSolomon;
    let (k, m, lost) = (value.k, value.m, value.lost());
    let data = value.data();
    let mut parity = vec![vec![0; value.fragment]; m];
    let code = ReedSolomon::new(k, m).expect("a code");
    code.encode_sep(&data, &mut parity).expect("encode");
    let mut shards: Vec<(Vec<u8>, bool)> = data.iter().map(|data| (data.to_vec(), true)).collect();
    shards.extend(parity.iter().map(|parity| (parity.clone(), true)));
    let mut rebuild = move || {
        // As many parities as fragments are lost take part.
        shards[..lost].iter_mut().for_each(|(_, present)| *present = false);
        code.reconstruct_data(black_box(&mut shards)).expect("rebuild");
        shards[0].0[0]
    };
    assert_eq!(rebuild(), data[0][0]);
    let code = ReedSolomon::new(k, m).expect("a code");
    Contender {
        name: "reed-solomon-erasure".to_owned(),
        encode: Box::new(move || {
            code.encode_sep(black_box(&data), black_box(&mut parity)).expect("encode");
        }),
        rebuild: Box::new(move || {
            black_box(rebuild());
        }),
    }
}

/// Encoder and decoder are kept and fed again, which its documentation calls the fastest way.
#[cfg(feature = "rivals")]
pub fn reed_solomon_simd(value: &Value) -> Contender<'_> {
    use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
    let (k, m, fragment, lost) = (value.k, value.m, value.fragment, value.lost());
    let mut encoder = ReedSolomonEncoder::new(k, m, fragment).expect("a code");
    let mut decoder = ReedSolomonDecoder::new(k, m, fragment).expect("a code");
    let data = value.data();
    let mut encode = move |keep: bool| -> Vec<Vec<u8>> {
        for data in black_box(&data) {
            encoder.add_original_shard(data).expect("a fragment");
        }
        let coded = encoder.encode().expect("encode");
        coded.recovery_iter().map(black_box).filter(|_| keep).map(<[u8]>::to_vec).collect()
    };
    let parity = encode(true);
    let data = value.data();
    let mut rebuild = move |check: bool| {
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
    Contender {
        name: "reed-solomon-simd".to_owned(),
        encode: Box::new(move || {
            black_box(encode(false));
        }),
        rebuild: Box::new(move || rebuild(false)),
    }
}

/// All that this build has, racos first.
pub fn all<'a>(value: &'a Value, rooms: &'a mut Rooms) -> Vec<Contender<'a>> {
    vec![
        racos(value, rooms),
        memcpy(value),
        #[cfg(feature = "rivals")]
        reed_solomon_erasure(value),
        #[cfg(feature = "rivals")]
        reed_solomon_simd(value),
    ]
}
