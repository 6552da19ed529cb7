//! Keys that follow from the cluster's identity, and the digests made with them.

use crate::batch::{QUEUED_MARK, READY_MARK, born_of};
use racos_protocol::{Class, CoinKey, Digest, candidate};

/// Derived keys. The cluster id is not a secret from operators; it keeps clusters apart and makes
/// digests and coins of one cluster useless in another.
#[derive(Clone)]
pub struct Secrets {
    batch: [u8; 32],
    value: [u8; 32],
    pub coin: CoinKey,
}

impl Secrets {
    pub fn new(cluster: u64) -> Secrets {
        let cluster = cluster.to_le_bytes();
        let coin = blake3::derive_key("racos 1 common coin", &cluster);
        let word = |at: usize| u64::from_le_bytes(coin[at..at + 8].try_into().expect("8 bytes"));
        Secrets {
            batch: blake3::derive_key("racos 1 batch digest", &cluster),
            value: blake3::derive_key("racos 1 value digest", &cluster),
            coin: CoinKey(word(0), word(8)),
        }
    }

    /// Names a batch by its encoded metas.
    pub fn batch_digest(&self, bytes: &[u8]) -> Digest {
        let hash = blake3::keyed_hash(&self.batch, bytes);
        let hash = Digest::from_le_bytes(hash.as_bytes()[..16].try_into().expect("16 of 32 bytes"));
        let class = match bytes.first() {
            Some(&READY_MARK) => Class::Ready,
            Some(&QUEUED_MARK) => match born_of(bytes) {
                Some(born) => return candidate(hash, born),
                None => Class::Ready,
            },
            _ => Class::Eager,
        };
        class.mark(hash)
    }

    /// Digest of a value, given in pieces.
    pub fn value_digest<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.value);
        for piece in pieces {
            hasher.update(piece);
        }
        hasher.finalize().as_bytes()[..16].try_into().expect("16 of 32 bytes")
    }
}

/// The private coin of one node and start (PROTOCOL 5.6-b).
pub fn local_coin(seed: u64, node: u8, boot: u32) -> CoinKey {
    CoinKey(seed ^ 0x6c6f_6361_6c00_0000, u64::from(boot) << 8 | u64::from(node))
}
