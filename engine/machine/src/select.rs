//! Answering questions about keys from metadata: counts, filters, order, limits.
//!
//! Invariant: the answer is etcd's for the same question and history, but for the one thing that
//! metadata cannot say: the order of values that begin with the same 8 bytes. Such an answer comes
//! unordered and uncut, and is finished with [`Selection::order_by_value`].

use std::cmp::Ordering;

use crate::index::{Revision, Version};
use crate::machine::Machine;
use crate::op::{Content, Key};
use crate::outcome::Refusal;
use crate::txn::{Select, SortBy, SortOrder, Span};

/// A live key as of some revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub key: Key,
    pub create: u64,
    pub modified: Revision,
    pub version: u64,
    pub lease: i64,
    pub content: Content,
}

impl Item {
    /// What a live version says; `None` for a tombstone.
    pub fn new(key: &[u8], version: &Version<'_>) -> Option<Item> {
        Some(Item {
            key: key.into(),
            create: version.created(),
            modified: version.modified(),
            version: version.number(),
            lease: version.lease(),
            content: version.content()?,
        })
    }
}

/// The order that is still to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByValue {
    pub descending: bool,
    /// 0 or less: none.
    pub limit: i64,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// Keys of the span, whatever was filtered or cut.
    pub count: u64,
    pub items: Vec<Item>,
    pub more: bool,
    /// The items are all there and still to be ordered by value, then cut.
    pub by_value: Option<ByValue>,
}

/// How two contents stand to each other, if their metadata says so.
fn known_order(one: &Content, other: &Content) -> Option<Ordering> {
    let (len, other_len) = (one.len(), other.len());
    let heads = one.head().cmp(&other.head());
    if heads.is_ne() {
        return Some(heads);
    }
    if len.min(other_len) <= 8 {
        return Some(len.cmp(&other_len));
    }
    let same = match (one, other) {
        (Content::Whole(one), Content::Whole(other)) => {
            one.digest == other.digest && len == other_len
        }
        (Content::Stripes(one), Content::Stripes(other)) => one == other,
        _ => false,
    };
    same.then_some(Ordering::Equal)
}

impl Selection {
    /// Answers from the live keys of the question's span, in key order.
    pub(crate) fn of<'a>(
        select: &Select,
        keys: impl Iterator<Item = (&'a [u8], Version<'a>)>,
    ) -> Selection {
        let mut found = Selection::default();
        let most = most_items(select);
        keys.for_each(|(key, version)| found.take(select, most, key, &version));
        found.finish(select);
        found
    }

    /// Takes the next live key of the span.
    fn take(&mut self, select: &Select, most: u64, key: &[u8], version: &Version<'_>) {
        self.count += 1;
        if self.count <= most && passes(select, version) {
            self.items.extend(Item::new(key, version));
        }
    }

    /// All keys were taken.
    fn finish(&mut self, select: &Select) {
        self.sort(select);
        if self.by_value.is_none() {
            self.cut(select.limit);
        }
    }

    fn sort(&mut self, select: &Select) {
        let descending = select.order == SortOrder::Descending;
        if select.order == SortOrder::None && select.by == SortBy::Key {
            return;
        }
        let number = |item: &Item| match select.by {
            SortBy::Version => item.version,
            SortBy::Create => item.create,
            _ => item.modified.main,
        };
        match select.by {
            SortBy::Key if descending => self.items.reverse(),
            SortBy::Key => {}
            SortBy::Value => {
                self.by_value = Some(ByValue { descending, limit: select.limit });
            }
            _ if descending => self.items.sort_by_key(|item| std::cmp::Reverse(number(item))),
            _ => self.items.sort_by_key(number),
        }
    }

    fn cut(&mut self, limit: i64) {
        if limit > 0 && self.items.len() as u64 > limit as u64 {
            self.items.truncate(limit as usize);
            self.more = true;
        }
    }

    /// Places of the items whose bytes are needed for an order by value.
    pub fn ties(&self) -> Vec<usize> {
        if self.by_value.is_none() {
            return Vec::new();
        }
        let mut places: Vec<usize> = (0..self.items.len()).collect();
        places.retain(|&place| self.items[place].content.len() > 8);
        places.sort_by_key(|&place| self.items[place].content.head());
        let content = |place: usize| &self.items[place].content;
        let mut ties = Vec::new();
        for group in places.chunk_by(|&one, &other| content(one).head() == content(other).head()) {
            let first = content(group[0]);
            if group.iter().any(|&place| known_order(first, content(place)).is_none()) {
                ties.extend_from_slice(group);
            }
        }
        ties.sort_unstable();
        ties
    }

    /// Finishes an order by value. `bytes` gives the value of the item at a place, for those that
    /// [`Selection::ties`] named.
    pub fn order_by_value<'a>(&mut self, bytes: impl Fn(usize) -> &'a [u8]) {
        let Some(ByValue { descending, limit }) = self.by_value.take() else { return };
        let mut places: Vec<usize> = (0..self.items.len()).collect();
        places.sort_by(|&one, &other| {
            let (first, second) = (&self.items[one].content, &self.items[other].content);
            let order = known_order(first, second).unwrap_or_else(|| bytes(one).cmp(bytes(other)));
            if descending { order.reverse() } else { order }
        });
        let mut items: Vec<Option<Item>> = self.items.drain(..).map(Some).collect();
        self.items = places.iter().filter_map(|&place| items[place].take()).collect();
        self.cut(limit);
    }
}

/// Items that are worth being kept, of those that the filters let pass.
fn most_items(select: &Select) -> u64 {
    let bounds = [select.modified_min, select.modified_max, select.create_min, select.create_max];
    let filtered = bounds.iter().any(|&bound| bound != 0);
    // As etcd does: an order asked for by target alone is made of what the limit has left.
    let cut_first = select.limit > 0 && select.order == SortOrder::None && !filtered;
    match (select.count_only, cut_first) {
        (true, _) => 0,
        (false, true) => select.limit as u64 + 1,
        (false, false) => u64::MAX,
    }
}

/// An answer that is put together slice by slice, while other operations are applied: it is that of
/// the revision at which it was begun.
#[derive(Debug)]
pub struct Selecting {
    select: Select,
    revision: u64,
    most: u64,
    /// The first key that was not looked at; `None` before the first slice and after the last.
    next: Option<Key>,
    complete: bool,
    found: Selection,
}

impl Selecting {
    /// The answer.
    ///
    /// # Panics
    /// If it is not complete.
    pub fn into_selection(self) -> Selection {
        assert!(self.complete, "only a complete answer is given");
        self.found
    }
}

impl Machine {
    /// Begins to answer a question, at the newest state unless it names a revision.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`.
    pub fn begin_select(&self, select: Select) -> Result<Selecting, Refusal> {
        let revision = match u64::try_from(select.revision) {
            Ok(asked) if asked > 0 => asked,
            _ => self.revision,
        };
        let most = most_items(&select);
        let found = Selection::default();
        let selecting = Selecting { select, revision, most, next: None, complete: false, found };
        self.check_selectable(&selecting).map(|()| selecting)
    }

    /// Looks at so many keys more; whether the answer is complete.
    ///
    /// # Errors
    /// `Compacted`: the revision at which it was begun, meanwhile.
    pub fn go_on_selecting(
        &self,
        selecting: &mut Selecting,
        keys_max: usize,
    ) -> Result<bool, Refusal> {
        self.check_selectable(selecting)?;
        if selecting.complete {
            return Ok(true);
        }
        let Selecting { select, revision, most, next, found, .. } = selecting;
        let next = next.take();
        let mut end = Vec::new();
        let (first, to) = select.span.range(&mut end);
        // The newest versions are found without a search.
        let revision = (*revision != self.revision).then_some(*revision);
        let visit = |key: &_, version: Version<'_>| found.take(select, *most, key, &version);
        let first = next.as_deref().unwrap_or(first);
        let next = self.index.visit(first, to, revision, keys_max, &self.values, visit);
        selecting.complete = next.is_none();
        selecting.next = next;
        if selecting.complete {
            selecting.found.finish(&selecting.select);
        }
        Ok(selecting.complete)
    }

    fn check_selectable(&self, selecting: &Selecting) -> Result<(), Refusal> {
        // The newest state can be read at any time, also where nothing was compacted yet.
        if selecting.revision == self.revision {
            return Ok(());
        }
        self.check_readable(selecting.revision)
    }
}

fn passes(select: &Select, version: &Version<'_>) -> bool {
    let (modified, create) = (version.modified().main as i64, version.created() as i64);
    let at_most = |bound: i64, number: i64| bound == 0 || number <= bound;
    let at_least = |bound: i64, number: i64| bound == 0 || number >= bound;
    at_most(select.modified_max, modified)
        && at_least(select.modified_min, modified)
        && at_most(select.create_max, create)
        && at_least(select.create_min, create)
}

impl Span {
    /// As a half-open range; the end of a single key's is made in `end`.
    pub(crate) fn range<'a>(&'a self, end: &'a mut Vec<u8>) -> (&'a [u8], Option<&'a [u8]>) {
        match self {
            Span::One(key) => {
                end.clear();
                end.extend_from_slice(key);
                end.push(0);
                (key, Some(end))
            }
            Span::Range { from, to } => (from, to.as_deref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{OpId, Value};

    fn item(bytes: &[u8]) -> Item {
        let mut head = [0; 8];
        let used = bytes.len().min(8);
        head[..used].copy_from_slice(&bytes[..used]);
        let digest = crate::hash::bytes(bytes).to_le_bytes();
        let op = OpId(1 + crate::hash::bytes(bytes) % 1000);
        let value =
            Value { op, len: bytes.len() as u32, digest, crc: 0, head, k: 1, n: 3, layout: 0 };
        Item {
            key: bytes.into(),
            create: 1,
            modified: Revision { main: 1, sub: 0 },
            version: 1,
            lease: 0,
            content: Content::Whole(value),
        }
    }

    #[test]
    fn only_values_that_tie_are_needed_to_order_by_value() {
        let values: [&[u8]; 7] = [
            b"same head, z",
            b"other",
            b"same head, a",
            b"same hea",
            b"alone and long",
            b"twice the same",
            b"twice the same",
        ];
        let mut found = Selection {
            count: 7,
            items: values.iter().map(|value| item(value)).collect(),
            more: false,
            by_value: Some(ByValue { descending: false, limit: 5 }),
        };
        assert_eq!(found.ties(), [0, 2], "the rest is ordered by what is known");
        found.order_by_value(|place| values[place]);
        let keys: Vec<&[u8]> = found.items.iter().map(|item| &*item.key).collect();
        let expected: [&[u8]; 5] =
            [b"alone and long", b"other", b"same hea", b"same head, a", b"same head, z"];
        assert_eq!(keys, expected);
        assert!(found.more && found.by_value.is_none());
    }
}
