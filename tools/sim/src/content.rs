//! Keys, and the bytes that puts write to them.
//!
//! Invariant: length and first eight bytes of a value tell which put of its key wrote it, and all
//! its bytes follow from key, number and length.

use crate::plan::WorkPlan;
use crate::rng::splitmix;
use std::collections::BTreeMap;

/// Place of a key in the list of keys.
pub type KeyId = usize;

/// Keys, and what was written to them.
pub struct Contents {
    keys: Vec<Vec<u8>>,
    ids: BTreeMap<Vec<u8>, KeyId>,
    family_keys: u64,
    /// The put by key, length and first bytes.
    puts: BTreeMap<(KeyId, usize, [u8; 8]), u64>,
    numbers: Vec<u64>,
}

impl Contents {
    pub fn new(plan: &WorkPlan) -> Contents {
        let mut keys = Vec::new();
        for family in 0..plan.families {
            for member in 0..plan.family_keys {
                // One key in ten is long.
                let tail =
                    if (family + member) % 10 == 7 { "x".repeat(1_500) } else { String::new() };
                keys.push(format!("f{family}/k{member}{tail}").into_bytes());
            }
        }
        let ids = keys.iter().cloned().zip(0..).collect();
        let numbers = vec![0; keys.len()];
        Contents { keys, ids, family_keys: plan.family_keys, puts: BTreeMap::new(), numbers }
    }

    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    pub fn key(&self, id: KeyId) -> &[u8] {
        &self.keys[id]
    }

    pub fn key_id(&self, key: &[u8]) -> Option<KeyId> {
        self.ids.get(key).copied()
    }

    /// The family of a key, and the range of keys that holds just the family.
    pub fn family(&self, id: KeyId) -> (Vec<u8>, Vec<u8>) {
        let family = id as u64 / self.family_keys;
        (format!("f{family}/").into_bytes(), format!("f{family}0").into_bytes())
    }

    /// A key as text, for messages.
    pub fn name(&self, id: KeyId) -> String {
        let key = &self.keys[id];
        String::from_utf8_lossy(&key[..key.len().min(12)]).into_owned()
    }

    /// A put of about `len` bytes that no other put of the key wrote: its number and bytes.
    pub fn new_put(&mut self, key: KeyId, mut len: usize) -> (u64, Vec<u8>) {
        self.numbers[key] += 1;
        let number = self.numbers[key];
        // Short values repeat: a longer one then.
        while self.puts.contains_key(&(key, len, head(number, len))) {
            len += 8;
        }
        self.puts.insert((key, len, head(number, len)), number);
        (number, bytes(key, number, len))
    }

    /// The put that wrote a value of this length with these first bytes.
    pub fn find(&self, key: KeyId, len: usize, first: &[u8; 8]) -> Option<u64> {
        self.puts.get(&(key, len, *first)).copied()
    }

    /// The put that wrote exactly these bytes.
    pub fn recognise(&self, key: KeyId, value: &[u8]) -> Option<u64> {
        let mut first = [0; 8];
        let used = value.len().min(8);
        first[..used].copy_from_slice(&value[..used]);
        let number = self.find(key, value.len(), &first)?;
        is_bytes(key, number, value).then_some(number)
    }
}

fn head(number: u64, len: usize) -> [u8; 8] {
    let mut head = number.to_le_bytes();
    head[len.min(8)..].fill(0);
    head
}

/// What a put wrote, eight bytes at a time.
fn words(key: KeyId, number: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut state = number.wrapping_mul(0x1_0000_01b3) ^ key as u64;
    let others = std::iter::repeat_with(move || splitmix(&mut state));
    std::iter::once(number).chain(others).map(u64::to_le_bytes)
}

fn bytes(key: KeyId, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    words(key, number).take(len.div_ceil(8)).for_each(|word| bytes.extend_from_slice(&word));
    bytes.truncate(len);
    bytes
}

/// Whether these are the bytes of that put.
fn is_bytes(key: KeyId, number: u64, value: &[u8]) -> bool {
    let mut words = words(key, number);
    let (whole, rest) = value.as_chunks::<8>();
    let is_whole = whole.iter().zip(&mut words).all(|(part, word)| *part == word);
    is_whole && words.next().is_some_and(|word| *rest == word[..rest.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fixed, Plan};

    #[test]
    fn every_value_tells_its_put() {
        let mut contents = Contents::new(&Plan::draw(1, &Fixed::default()).work);
        let mut written = Vec::new();
        for len in [0, 0, 1, 1, 2, 7, 8, 9, 4000].repeat(40) {
            written.push(contents.new_put(0, len));
        }
        for (number, value) in written {
            assert_eq!(contents.recognise(0, &value), Some(number));
        }
        assert_eq!(contents.recognise(0, b"never written"), None);
        // Its length and its first bytes are those of a put.
        for at in [8, 3_999] {
            let (_, mut value) = contents.new_put(0, 4_000);
            value[at] ^= 1;
            assert_eq!(contents.recognise(0, &value), None, "byte {at}");
        }
        let (_, mut value) = contents.new_put(0, 4_003);
        value[4_002] ^= 1;
        assert_eq!(contents.recognise(0, &value), None, "what is left behind whole words");
    }
}
