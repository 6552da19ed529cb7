//! The changes of all keys in the order of their revisions: what watches walk.
//!
//! Invariant: holds exactly the changes at or above the compact revision. It follows from the index,
//! so it is neither hashed nor exported; a node that serves no watches does not keep it.
//! What would break it: a change to a key that is not told here.

use std::collections::VecDeque;

use crate::index::Revision;
use crate::op::Key;

/// One change of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    pub modified: Revision,
    pub is_delete: bool,
    pub key: Key,
}

#[derive(Default, Debug)]
pub(crate) struct Changes {
    list: Option<VecDeque<Changed>>,
}

impl Changes {
    /// Begins to keep them, with those that the index holds.
    pub(crate) fn keep(&mut self, mut held: Vec<Changed>) {
        held.sort_by_key(|changed| changed.modified);
        self.list = Some(held.into());
    }

    pub(crate) fn are_kept(&self) -> bool {
        self.list.is_some()
    }

    pub(crate) fn push(&mut self, modified: Revision, is_delete: bool, key: &[u8]) {
        if let Some(list) = &mut self.list {
            list.push_back(Changed { modified, is_delete, key: key.into() });
        }
    }

    pub(crate) fn compact(&mut self, compacted: u64) {
        let Some(list) = &mut self.list else { return };
        while list.pop_front_if(|changed| changed.modified.main < compacted).is_some() {}
    }

    /// Those from revision `main` on.
    pub(crate) fn since(&self, main: u64) -> impl Iterator<Item = &Changed> {
        self.list.iter().flat_map(move |list| {
            let from = list.partition_point(|changed| changed.modified.main < main);
            list.range(from..)
        })
    }
}
