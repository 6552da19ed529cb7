//! An ordered map from keys to handles, with the keys one behind the other in blocks.
//!
//! Purpose: what a key costs beyond its own bytes is a handle, two bytes for where it ends, and its
//! share of a block: about 12 bytes where a tree of boxed keys takes 60. Blocks are a tree by bounds.
//!
//! Invariant: the keys of a block are in order, none is below the block's bound or at or above the
//! next block's, and the first bound is the empty key. So the block of a key is the last one whose
//! bound is not above it.
//! What would break it: a bound taken away without the keys that it bounds.

use crate::slab::Handle;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

/// Bytes of keys in a block; one with more is cut in two when a key is added. With keys of 16
/// bytes these are 128 keys: moving half of it costs some tens of nanoseconds.
const BLOCK_BYTES: usize = 2048;
/// Keys in a block, however short.
const BLOCK_KEYS: usize = 256;
/// Memory is taken this many keys, and this many bytes, ahead.
const AHEAD_KEYS: usize = 16;
const AHEAD_BYTES: usize = 256;

#[derive(Debug, Default)]
struct Block {
    /// The keys, one behind the other.
    bytes: Vec<u8>,
    /// Where each key ends.
    ends: Vec<u16>,
    handles: Vec<Handle>,
}

impl Block {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| usize::from(self.ends[before]))
    }

    fn key(&self, at: usize) -> &[u8] {
        &self.bytes[self.start(at)..usize::from(self.ends[at])]
    }

    /// Where a key is, or where it would be.
    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        // Keys that come in order belong behind all others.
        if high > 0 && self.key(high - 1) < key {
            return Err(high);
        }
        while low < high {
            let middle = (low + high) / 2;
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn insert(&mut self, at: usize, key: &[u8], handle: Handle) {
        // Exactly, since most blocks of a store that is only read would keep the rest for ever.
        if self.len() == self.ends.capacity() {
            self.ends.reserve_exact(AHEAD_KEYS);
            self.handles.reserve_exact(AHEAD_KEYS);
        }
        if self.bytes.len() + key.len() > self.bytes.capacity() {
            self.bytes.reserve_exact(key.len().max(AHEAD_BYTES));
        }
        let start = self.start(at);
        self.bytes.splice(start..start, key.iter().copied());
        self.ends[at..].iter_mut().for_each(|end| *end += key.len() as u16);
        self.ends.insert(at, (start + key.len()) as u16);
        self.handles.insert(at, handle);
    }

    fn remove(&mut self, at: usize) {
        let (start, end) = (self.start(at), usize::from(self.ends[at]));
        self.bytes.drain(start..end);
        self.ends.remove(at);
        self.ends[at..].iter_mut().for_each(|after| *after -= (end - start) as u16);
        self.handles.remove(at);
    }

    fn is_over_full(&self) -> bool {
        self.len() > 1 && (self.bytes.len() > BLOCK_BYTES || self.len() > BLOCK_KEYS)
    }

    /// Takes the keys from `at` on off.
    fn split_off(&mut self, at: usize) -> Block {
        let start = self.start(at);
        let bytes = self.bytes.split_off(start);
        let ends = self.ends[at..].iter().map(|end| end - start as u16).collect();
        self.ends.truncate(at);
        let handles = self.handles.split_off(at);
        self.shrink();
        Block { bytes, ends, handles }
    }

    fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.handles.shrink_to_fit();
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Keys {
    blocks: BTreeMap<Box<[u8]>, Block>,
    len: usize,
}

impl Keys {
    pub fn len(&self) -> usize {
        self.len
    }

    fn block(&self, key: &[u8]) -> Option<&Block> {
        // Keys that come in order are in the last one: found without a search.
        let last = self.blocks.last_key_value();
        if let Some((_, block)) = last.filter(|(bound, _)| key >= &***bound) {
            return Some(block);
        }
        let upto = (Bound::Unbounded, Bound::Included(key));
        self.blocks.range::<[u8], _>(upto).next_back().map(|(_, block)| block)
    }

    /// The same of a map that has a block.
    fn block_mut(&mut self, key: &[u8]) -> &mut Block {
        let is_last = self.blocks.last_key_value().is_some_and(|(bound, _)| key >= &**bound);
        if is_last {
            return self.blocks.last_entry().expect("there is a block").into_mut();
        }
        let upto = (Bound::Unbounded, Bound::Included(key));
        let mut below = self.blocks.range_mut::<[u8], _>(upto);
        below.next_back().expect("the first bound is below every key").1
    }

    pub fn get(&self, key: &[u8]) -> Option<Handle> {
        let block = self.block(key)?;
        block.find(key).ok().map(|at| block.handles[at])
    }

    /// Adds a key.
    ///
    /// # Panics
    /// If it is there.
    pub fn insert(&mut self, key: &[u8], handle: Handle) {
        if self.blocks.is_empty() {
            self.blocks.insert(Box::default(), Block::default());
        }
        self.len += 1;
        let block = self.block_mut(key);
        let at = block.find(key).expect_err("a key is added once");
        let at_end = at == block.len();
        block.insert(at, key, handle);
        if !block.is_over_full() {
            return;
        }
        // Keys that come in order fill their blocks; others leave room on both sides.
        let half = block.bytes.len() / 2;
        let middle = block.ends.partition_point(|end| usize::from(*end) <= half);
        let cut = if at_end { at } else { middle.clamp(1, block.len() - 1) };
        let upper = block.split_off(cut);
        self.blocks.insert(upper.key(0).into(), upper);
    }

    pub fn remove(&mut self, key: &[u8]) {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let Some((bound, block)) = self.blocks.range_mut::<[u8], _>(upto).next_back() else {
            return;
        };
        let Ok(at) = block.find(key) else { return };
        self.len -= 1;
        block.remove(at);
        if block.len() == 0 && !bound.is_empty() {
            let bound = bound.clone();
            self.blocks.remove(&bound);
        } else if block.bytes.capacity() > 2 * block.bytes.len() + AHEAD_BYTES {
            block.shrink();
        }
    }

    pub fn iter(&self) -> Range<'_> {
        self.range(Bound::Unbounded, None)
    }

    /// Keys in order, up to and without `to`.
    pub fn range(&self, from: Bound<&[u8]>, to: Option<&[u8]>) -> Range<'_> {
        let key = match from {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => &[],
        };
        let upto = (Bound::Unbounded, Bound::Included(key));
        let first = self.blocks.range::<[u8], _>(upto).next_back();
        let Some((bound, _)) = first.filter(|_| to.is_none_or(|to| key < to)) else {
            let blocks = self.blocks.range::<[u8], _>(..);
            return Range { blocks, block: None, at: 0, end: None };
        };
        let from_block = (Bound::Included(&**bound), Bound::Unbounded);
        let mut blocks = self.blocks.range::<[u8], _>(from_block);
        let block = blocks.next().map(|(_, block)| block);
        let at = block.map_or(0, |block| match (block.find(key), from) {
            (Ok(at), Bound::Excluded(_)) => at + 1,
            (Ok(at) | Err(at), _) => at,
        });
        let end = to.and_then(|to| {
            let block = self.block(to)?;
            Some((block, block.find(to).unwrap_or_else(|at| at)))
        });
        Range { blocks, block, at, end }
    }
}

/// Keys in order with their handles.
pub(super) struct Range<'a> {
    blocks: btree_map::Range<'a, Box<[u8]>, Block>,
    block: Option<&'a Block>,
    at: usize,
    /// Where it ends: not before `at`.
    end: Option<(&'a Block, usize)>,
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], Handle);

    fn next(&mut self) -> Option<Self::Item> {
        let mut block = self.block?;
        loop {
            let ends_here = self.end.filter(|(last, _)| std::ptr::eq(*last, block));
            if ends_here.is_some_and(|(_, at)| self.at >= at) {
                self.block = None;
                return None;
            }
            if self.at < block.len() {
                break;
            }
            self.block = self.blocks.next().map(|(_, block)| block);
            (block, self.at) = (self.block?, 0);
        }
        self.at += 1;
        Some((block.key(self.at - 1), block.handles[self.at - 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Vec<u8>),
        Remove(usize),
        Range(Vec<u8>, Option<Vec<u8>>, bool),
    }

    /// Keys with common beginnings, short ones, and some as long as a block or four.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let short = prop::collection::vec(0u8..4, 0..6);
        let long = (prop::collection::vec(0u8..4, 1..5), 0usize..8192)
            .prop_map(|(head, len)| [head, vec![7; len]].concat());
        prop_oneof![8 => short, 1 => long]
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (key(), prop::option::of(key()), any::<bool>())
            .prop_map(|(from, to, excluded)| Step::Range(from, to, excluded));
        prop_oneof![
            6 => key().prop_map(Step::Insert),
            3 => any::<usize>().prop_map(Step::Remove),
            1 => range,
        ]
    }

    fn check(keys: &Keys, model: &BTreeMap<Vec<u8>, Handle>) {
        assert_eq!(keys.len(), model.len());
        assert!(keys.iter().eq(model.iter().map(|(key, handle)| (&**key, *handle))));
        let bounds: Vec<_> = keys.blocks.keys().collect();
        for (at, (bound, block)) in keys.blocks.iter().enumerate() {
            assert!(at == 0 && bound.is_empty() || at > 0 && block.len() > 0);
            // A long key may leave more than wanted on one side of a cut, never more than `ends` can say.
            assert!(block.bytes.len() <= BLOCK_BYTES + 2 * 8192 && block.len() <= BLOCK_KEYS);
            for number in 0..block.len() {
                let key = block.key(number);
                assert!(key >= &**bound && bounds.get(at + 1).is_none_or(|next| key < &***next));
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_the_map_that_a_tree_is(steps in prop::collection::vec(step(), 0..400)) {
            let (mut keys, mut model) = (Keys::default(), BTreeMap::<Vec<u8>, Handle>::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(key) => {
                        prop_assert_eq!(keys.get(&key), model.get(&key).copied());
                        if let btree_map::Entry::Vacant(place) = model.entry(key) {
                            keys.insert(place.key(), number as Handle);
                            place.insert(number as Handle);
                        }
                    }
                    Step::Remove(at) => {
                        let key = model.keys().nth(at % (model.len() + 1)).cloned();
                        keys.remove(key.as_deref().unwrap_or(b"not there"));
                        key.map(|key| model.remove(&key));
                    }
                    Step::Range(from, to, excluded) => {
                        let bound = match excluded {
                            true => Bound::Excluded(&*from),
                            false => Bound::Included(&*from),
                        };
                        let found: Vec<_> = keys.range(bound, to.as_deref()).collect();
                        let inside = |key: &[u8]| {
                            (key > &*from || !excluded && key == &*from)
                                && to.as_deref().is_none_or(|to| key < to)
                        };
                        let held = model.iter().map(|(key, handle)| (&**key, *handle));
                        let expected: Vec<_> = held.filter(|(key, _)| inside(key)).collect();
                        prop_assert_eq!(found, expected);
                    }
                }
            }
            check(&keys, &model);
        }
    }

    #[test]
    fn keys_that_come_in_order_fill_their_blocks() {
        let mut keys = Keys::default();
        (0..10_000u32).for_each(|key| keys.insert(format!("k{key:015}").as_bytes(), key));
        assert!(keys.blocks.len() <= 10_000 * 16 / BLOCK_BYTES + 1);
        let memory: usize = keys
            .blocks
            .values()
            .map(|block| {
                block.bytes.capacity() + 2 * block.ends.capacity() + 4 * block.handles.capacity()
            })
            .sum();
        assert!(memory <= 10_000 * (16 + 6) + 1000, "{memory}: full blocks keep no room");
        (0..10_000u32).for_each(|key| keys.remove(format!("k{key:015}").as_bytes()));
        assert_eq!((keys.len(), keys.blocks.len(), keys.iter().count()), (0, 1, 0));
    }
}
