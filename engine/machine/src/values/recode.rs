//! Values of older layouts, and another operation that stored the same bytes (PROTOCOL 10).
//!
//! Versions name a value by its handle, so all of them follow when the entry behind it changes: at
//! the same cost however many there are, and without knowing which.

use super::{Extent, ValueTable, ValueUse};
use crate::op::Value;
use crate::slab::Handle;

impl ValueTable {
    /// Puts another operation that stored the same bytes, in `slot`, in the place of the one that did.
    /// It must not be in the table; the one before is told as released.
    pub(crate) fn recode(&mut self, handle: Handle, value: &Value, slot: u64) {
        self.save_recoded(handle);
        let old = self.op(handle);
        let short = self.origins.shorten(value.op);
        let stored = self.stored.get_mut(handle);
        self.sum.sub(stored.hash(old));
        let before = stored.layout;
        (stored.op, stored.slot) = (short, slot);
        (stored.k, stored.n, stored.layout) = (value.k, value.n, value.layout);
        self.sum.add(stored.hash(value.op));
        self.by_layout.get_mut(&before).expect("every value was counted").sub(value.len);
        self.by_layout.entry(value.layout).or_default().add(value.len);
        self.leave(handle, old);
        self.enter(handle);
    }

    /// Of the values whose layout is not this one, how many there are.
    pub(crate) fn not_of(&self, layout: u16) -> Extent {
        let others = self.by_layout.iter().filter(|(of, _)| **of != layout);
        others.fold(Extent::default(), |sum, (_, extent)| Extent {
            values: sum.values + extent.values,
            bytes: sum.bytes + extent.bytes,
        })
    }

    /// Of the places from `from` on, at most `most`, the values there that versions use and whose
    /// layout is not this one.
    pub(crate) fn some_not_of(
        &self,
        layout: u16,
        from: Handle,
        most: usize,
    ) -> impl Iterator<Item = ValueUse> + '_ {
        // A free place holds the default, which nothing uses.
        let others = self.stored.places(from, most);
        let others = others.filter(move |stored| stored.uses > 0 && stored.layout != layout);
        others.map(|stored| self.used(stored))
    }
}
