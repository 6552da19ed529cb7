//! Entries addressed by 32-bit handles, in chunks that never move.
//!
//! A handle costs 4 bytes where a pointer costs 8 and a node of a tree far more, and growth copies
//! nothing, so that no operation pays for the entries of others. Handles are private to one
//! node's memory: nothing replicated may depend on them.

use crate::pile::Pile;

const CHUNK_ENTRIES: usize = 1024;

/// A place in a [`Slab`]. Valid until removed; then it may be given out again.
pub(crate) type Handle = u32;

#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Pile<Handle>,
    allotted: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Pile::default(), allotted: 0 }
    }
}

impl<T: Default> Slab<T> {
    /// Entries in use.
    pub(crate) fn len(&self) -> usize {
        self.allotted - self.free.len()
    }

    pub(crate) fn insert(&mut self, entry: T) -> Handle {
        if let Some(handle) = self.free.pop() {
            *self.get_mut(handle) = entry;
            return handle;
        }
        let handle = Handle::try_from(self.allotted).expect("a slab holds at most 2^32 entries");
        if self.allotted.is_multiple_of(CHUNK_ENTRIES) {
            self.chunks.push(Vec::with_capacity(CHUNK_ENTRIES));
        }
        self.chunks.last_mut().expect("a chunk was just ensured").push(entry);
        self.allotted += 1;
        handle
    }

    pub(crate) fn get(&self, handle: Handle) -> &T {
        &self.chunks[handle as usize / CHUNK_ENTRIES][handle as usize % CHUNK_ENTRIES]
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> &mut T {
        &mut self.chunks[handle as usize / CHUNK_ENTRIES][handle as usize % CHUNK_ENTRIES]
    }

    /// The entries of the places from `from` on, at most `most`; those of free places are empty.
    pub(crate) fn places(&self, from: Handle, most: usize) -> impl Iterator<Item = &T> {
        let from = from as usize;
        let chunks = self.chunks.iter().skip(from / CHUNK_ENTRIES);
        chunks.flatten().skip(from % CHUNK_ENTRIES).take(most)
    }

    /// How many places there are, free ones included.
    pub(crate) fn places_len(&self) -> usize {
        self.allotted
    }

    /// Takes the entry out. The caller must hold no other copy of the handle.
    pub(crate) fn remove(&mut self, handle: Handle) -> T {
        self.free.push(handle);
        std::mem::take(self.get_mut(handle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_reused_and_never_shared() {
        let mut slab = Slab::default();
        let handles: Vec<Handle> = (0..3000u32).map(|entry| slab.insert(entry)).collect();
        assert_eq!(slab.len(), 3000);
        for &handle in handles.iter().step_by(2) {
            slab.remove(handle);
        }
        assert_eq!(slab.len(), 1500);
        let again: Vec<Handle> = (0..1500u32).map(|entry| slab.insert(10_000 + entry)).collect();
        assert_eq!(slab.allotted, 3000, "freed places are used before new ones");
        for (entry, &handle) in again.iter().enumerate() {
            assert_eq!(*slab.get(handle), 10_000 + entry as u32);
        }
        for (entry, &handle) in handles.iter().enumerate().skip(1).step_by(2) {
            assert_eq!(*slab.get(handle), entry as u32);
        }
    }
}
