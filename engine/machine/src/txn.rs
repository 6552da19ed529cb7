//! Transactions as they are decided: compares, and the steps of either branch.
//!
//! Invariant: a value is compared by what every node holds of it. Where that does not decide, the
//! transaction brings *evidence*: how the given value stands to the content that an operation
//! stored. Contents never change, so evidence may be of no use but never wrong; without it the
//! transaction is refused as unresolved, by every node alike.
//! What would break it: anything here that depends on the bytes of a stored value.

use std::cmp::Ordering;

use crate::op::{Content, Key, OpId, Value, check_bounds, check_key};
use crate::wire::{DecodeError, Problem};

/// How deep transactions may be nested, the outermost counted.
pub const TXN_DEPTH_MAX: usize = 128;

/// The keys that something is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Span {
    One(Key),
    /// From `from` up to but not including `to`; without `to`, to the end.
    Range {
        from: Key,
        to: Option<Key>,
    },
}

impl Span {
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Span::One(own) => **own == *key,
            Span::Range { from, to } => **from <= *key && to.as_ref().is_none_or(|to| *key < **to),
        }
    }

    /// Whether it has a key in common with `from..to` (`None`: to the end).
    pub fn meets(&self, from: &[u8], to: Option<&[u8]>) -> bool {
        match self {
            Span::One(key) => *from <= **key && to.is_none_or(|to| **key < *to),
            Span::Range { from: own, to: end } => {
                end.as_ref().is_none_or(|end| *from < **end) && to.is_none_or(|to| **own < *to)
            }
        }
    }

    fn check(&self) -> Result<(), DecodeError> {
        match self {
            Span::One(key) => check_key("key", key, 1),
            Span::Range { from, to } => {
                check_key("range start", from, 0)?;
                to.as_ref().map_or(Ok(()), |to| check_key("range end", to, 0))
            }
        }
    }
}

/// `stored relation given`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

impl Relation {
    pub fn holds(self, order: Ordering) -> bool {
        match self {
            Relation::Equal => order.is_eq(),
            Relation::NotEqual => order.is_ne(),
            Relation::Greater => order.is_gt(),
            Relation::Less => order.is_lt(),
        }
    }
}

/// What is known of a value that stored ones are compared with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    pub len: u64,
    pub digest: [u8; 16],
    /// The first 8 bytes, padded with zeros.
    pub head: [u8; 8],
    /// How contents, each by the first operation that stored a part of it, stand to this value; in
    /// the order of the operations.
    pub evidence: Vec<(OpId, Ordering)>,
}

impl Given {
    /// How a stored content stands to this value; `None` if that is not known.
    pub fn order(&self, content: &Content) -> Option<Ordering> {
        let (head, len) = (content.head(), content.len());
        if head != self.head {
            return Some(head.cmp(&self.head));
        }
        if len.min(self.len) <= 8 {
            // One of them is its own head, and the other begins with it.
            return Some(len.cmp(&self.len));
        }
        if let Content::Whole(value) = content
            && len == self.len
            && value.digest == self.digest
        {
            return Some(Ordering::Equal);
        }
        let known = self.evidence.binary_search_by_key(&content.first_op(), |(op, _)| *op).ok()?;
        Some(self.evidence[known].1)
    }

    /// Whether `content relation self` holds; `None` if that is not known.
    pub fn holds(&self, relation: Relation, content: &Content) -> Option<bool> {
        if let Some(order) = self.order(content) {
            return Some(relation.holds(order));
        }
        // The order is not known; that they differ may be.
        let differ = content.len() != self.len || matches!(content, Content::Whole(_));
        match relation {
            Relation::Equal if differ => Some(false),
            Relation::NotEqual if differ => Some(true),
            _ => None,
        }
    }
}

/// What is compared, and with what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Side {
    Version(i64),
    Create(i64),
    Modified(i64),
    Lease(i64),
    Value(Given),
}

/// Holds if it does for every key of the span. With none, numbers count as 0, and a value compare
/// fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    pub span: Span,
    pub relation: Relation,
    pub side: Side,
}

/// By what an answer is put in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SortBy {
    #[default]
    Key,
    Version,
    Create,
    Modified,
    Value,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SortOrder {
    /// As stored; by another thing than the key: ascending, after the limit was applied.
    #[default]
    None,
    Ascending,
    Descending,
}

/// A question about keys. Numbers as in etcd: 0 stands for "none", and odd ones mean what they mean
/// there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Select {
    pub span: Span,
    pub limit: i64,
    pub revision: i64,
    pub order: SortOrder,
    pub by: SortBy,
    pub keys_only: bool,
    pub count_only: bool,
    pub modified_min: i64,
    pub modified_max: i64,
    pub create_min: i64,
    pub create_max: i64,
}

impl Select {
    /// All of these keys at the newest revision.
    pub fn new(span: Span) -> Select {
        Select {
            span,
            limit: 0,
            revision: 0,
            order: SortOrder::None,
            by: SortBy::Key,
            keys_only: false,
            count_only: false,
            modified_min: 0,
            modified_max: 0,
            create_min: 0,
            create_max: 0,
        }
    }
}

/// What a put of a transaction makes the value of its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Written {
    /// A value stored by this operation. Its name follows from its place: see [`Txn::own_values`].
    Own(Value),
    /// One that is stored already.
    Stored(Content),
    /// The one that the key has.
    Kept,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutStep {
    pub key: Key,
    pub written: Written,
    /// 0: none. `None`: the one that the key has.
    pub lease: Option<i64>,
    /// The version before is asked for.
    pub previous: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    Select(Select),
    Put(PutStep),
    Delete { span: Span, previous: bool },
    Txn(Txn),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Step>,
    pub failure: Vec<Step>,
}

impl Txn {
    /// A transaction of one step.
    pub fn of(step: Step) -> Txn {
        Txn { compares: Vec::new(), success: vec![step], failure: Vec::new() }
    }

    /// Calls `visit` for every step of both branches, those of nested transactions in their place.
    pub fn each_step<'a>(&'a self, visit: &mut dyn FnMut(&'a Step)) {
        for step in self.success.iter().chain(&self.failure) {
            visit(step);
            if let Step::Txn(inner) = step {
                inner.each_step(visit);
            }
        }
    }

    /// Values that the operation stores, in the order of [`Txn::each_step`]: the first is named by
    /// the number after the operation's, and so on.
    pub fn own_values(&self) -> Vec<&Value> {
        let mut values = Vec::new();
        self.each_step(&mut |step| {
            if let Step::Put(PutStep { written: Written::Own(value), .. }) = step {
                values.push(value);
            }
        });
        values
    }

    /// Whether some step may write or delete a key that `meets` the caller's.
    pub(crate) fn writes(&self, meets: &dyn Fn(&Span) -> bool) -> bool {
        let mut found = false;
        self.each_step(&mut |step| match step {
            Step::Put(put) => found |= meets(&Span::One(put.key.clone())),
            Step::Delete { span, .. } => found |= meets(span),
            Step::Select(_) | Step::Txn(_) => {}
        });
        found
    }

    /// Whether every field is within its bounds; `id` is the operation's.
    pub(crate) fn check(&self, id: OpId) -> Result<(), DecodeError> {
        self.check_depth(1)?;
        for (number, value) in (1..).zip(self.own_values()) {
            if value.op.0 != id.0.wrapping_add(number) {
                let problem = Problem::Inconsistent("values are named in the order of the puts");
                return Err(DecodeError::new("value op", problem));
            }
        }
        Ok(())
    }

    fn check_depth(&self, depth: usize) -> Result<(), DecodeError> {
        check_bounds("transaction depth", depth, 1, TXN_DEPTH_MAX)?;
        for compare in &self.compares {
            compare.span.check()?;
            if let Side::Value(given) = &compare.side {
                given.check()?;
            }
        }
        for step in self.success.iter().chain(&self.failure) {
            match step {
                Step::Select(select) => select.span.check()?,
                Step::Put(put) => put.check()?,
                Step::Delete { span, .. } => span.check()?,
                Step::Txn(inner) => inner.check_depth(depth + 1)?,
            }
        }
        Ok(())
    }
}

impl PutStep {
    fn check(&self) -> Result<(), DecodeError> {
        check_key("key", &self.key, 1)?;
        match &self.written {
            Written::Own(value) => value.check(),
            Written::Stored(content) => content.check(),
            Written::Kept => Ok(()),
        }
    }
}

impl Given {
    fn check(&self) -> Result<(), DecodeError> {
        let used = 8.min(self.len as usize);
        if self.head[used..].iter().any(|&byte| byte != 0) {
            let problem = Problem::Inconsistent("bytes beyond the value's length must be zero");
            return Err(DecodeError::new("compared head", problem));
        }
        if !self.evidence.is_sorted_by(|(one, _), (next, _)| one < next) {
            let problem = Problem::Inconsistent("evidence is in the order of its operations");
            return Err(DecodeError::new("evidence", problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(bytes: &[u8]) -> [u8; 8] {
        let mut head = [0; 8];
        let used = bytes.len().min(8);
        head[..used].copy_from_slice(&bytes[..used]);
        head
    }

    fn digest_of(bytes: &[u8]) -> [u8; 16] {
        crate::hash::bytes(bytes).to_le_bytes()
    }

    fn stored(bytes: &[u8]) -> Content {
        let (digest, head) = (digest_of(bytes), head_of(bytes));
        let len = bytes.len() as u32;
        Content::Whole(Value { op: OpId(7), len, digest, crc: 0, head, k: 3, n: 5, layout: 0 })
    }

    fn given(bytes: &[u8], evidence: Vec<(OpId, Ordering)>) -> Given {
        let (digest, head) = (digest_of(bytes), head_of(bytes));
        Given { len: bytes.len() as u64, digest, head, evidence }
    }

    #[test]
    fn heads_and_lengths_order_values_as_their_bytes_do_or_not_at_all() {
        let mut values: Vec<Vec<u8>> = vec![b"".to_vec()];
        for len in [1, 7, 8, 9, 16, 4096, 4097] {
            for last in [0, 1, 255] {
                for first in [0, b'a'] {
                    let mut value = vec![first; len];
                    value[len - 1] = last;
                    values.push(value);
                }
            }
        }
        let mut unknown = 0;
        for one in &values {
            for other in &values {
                let order = given(other, Vec::new()).order(&stored(one));
                match order {
                    Some(order) => assert_eq!(order, one.cmp(other), "{one:?} {other:?}"),
                    None => {
                        unknown += 1;
                        assert!(one.len() > 8 && other.len() > 8 && one[..8] == other[..8]);
                        let brought = vec![(OpId(7), one.cmp(other))];
                        assert_eq!(given(other, brought).order(&stored(one)), Some(one.cmp(other)));
                        let foreign = vec![(OpId(8), one.cmp(other))];
                        assert_eq!(given(other, foreign).order(&stored(one)), None);
                    }
                }
                let equal = given(other, Vec::new()).holds(Relation::Equal, &stored(one));
                assert_eq!(equal, Some(one == other), "equality needs no evidence");
            }
        }
        assert!(unknown > 0);
    }
}
