//! The coin of undecided phases (PROTOCOL 5.6).
//!
//! PROTOCOL 5.6-d: safety never depends on it, except that the coin of phase 0 is 0, which is a
//! rule of `consensus.rs` and no coin at all.

use crate::Slot;

/// Key of a coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoinKey(pub u64, pub u64);

impl CoinKey {
    /// PROTOCOL 5.6-a: lowest bit of a keyed hash of (epoch, lane, slot, phase).
    pub fn flip(self, epoch: u32, lane: u16, slot: Slot, phase: u32) -> bool {
        let words = [u64::from(epoch) << 16 | u64::from(lane), slot, u64::from(phase)];
        siphash_2_4(self, &words) & 1 == 1
    }
}

/// SipHash-2-4 of whole 64-bit words.
pub fn siphash_2_4(key: CoinKey, words: &[u64]) -> u64 {
    let mut v = [
        key.0 ^ 0x736f_6d65_7073_6575,
        key.1 ^ 0x646f_7261_6e64_6f6d,
        key.0 ^ 0x6c79_6765_6e65_7261,
        key.1 ^ 0x7465_6462_7974_6573,
    ];
    let length = ((words.len() as u64 * 8) & 0xff) << 56;
    for word in words.iter().copied().chain([length]) {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference vectors' key is 00 01 .. 0f; their 8-byte input is 00 01 .. 07.
    const KEY: CoinKey = CoinKey(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);

    #[test]
    fn siphash_agrees_with_the_reference_vectors() {
        assert_eq!(siphash_2_4(KEY, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash_2_4(KEY, &[0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
    }

    /// tests PROTOCOL 5.6-a
    #[test]
    fn every_slot_has_a_coin_of_its_own() {
        let flips = |slot| (1..33).map(|phase| KEY.flip(1, 0, slot, phase)).collect::<Vec<_>>();
        assert_ne!(flips(1), flips(2));
        let of_lane = |lane| (1..33).map(|phase| KEY.flip(1, lane, 1, phase)).collect::<Vec<_>>();
        assert_eq!(of_lane(0), flips(1));
        assert_ne!(of_lane(1), of_lane(0), "nor has one of another lane the same");
        let ones = (0..1000).filter(|slot| KEY.flip(1, 0, *slot, 1)).count();
        assert!((400..600).contains(&ones), "{ones}");
    }
}
