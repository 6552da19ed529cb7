//! What can be refused without looking at the state, in etcd's order and words.
//!
//! Invariant: a request that passes has keys where they are due, known sort options, at most
//! `ops_max` operations on any path, and no put whose key the same path of a transaction puts or
//! deletes elsewhere (with the one exception that etcd makes, see [`Span`]).

use crate::errors::{
    DUPLICATE_KEY, EMPTY_KEY, INVALID_SORT, KEY_NOT_FOUND, Known, LEASE_PROVIDED, TOO_MANY_OPS,
    VALUE_PROVIDED,
};
use crate::pb::etcdserverpb as pb;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;
use std::collections::BTreeSet;

/// Operations in one list of a transaction; nested ones count from what the outer left.
pub const OPS_MAX: usize = 128;
type Checked = Result<(), Known>;

pub fn range(asked: &pb::RangeRequest) -> Checked {
    refuse_if(asked.key.is_empty(), EMPTY_KEY)?;
    refuse_if(SortOrder::try_from(asked.sort_order).is_err(), INVALID_SORT)?;
    refuse_if(SortTarget::try_from(asked.sort_target).is_err(), INVALID_SORT)
}

pub fn put(asked: &pb::PutRequest) -> Checked {
    refuse_if(asked.key.is_empty(), EMPTY_KEY)?;
    refuse_if(asked.ignore_value && !asked.value.is_empty(), VALUE_PROVIDED)?;
    refuse_if(asked.ignore_lease && asked.lease != 0, LEASE_PROVIDED)
}

pub fn delete(asked: &pb::DeleteRangeRequest) -> Checked {
    refuse_if(asked.key.is_empty(), EMPTY_KEY)
}

/// Shape and overlaps of a transaction, nested ones included.
pub fn txn(asked: &pb::TxnRequest) -> Checked {
    shape(asked, OPS_MAX)?;
    intervals(&asked.success)?;
    intervals(&asked.failure).map(|_| ())
}

fn refuse_if(wrong: bool, error: Known) -> Checked {
    if wrong { Err(error) } else { Ok(()) }
}

fn shape(asked: &pb::TxnRequest, ops_max: usize) -> Checked {
    let ops = asked.compare.len().max(asked.success.len()).max(asked.failure.len());
    refuse_if(ops > ops_max, TOO_MANY_OPS)?;
    for compare in &asked.compare {
        refuse_if(compare.key.is_empty(), EMPTY_KEY)?;
    }
    for op in asked.success.iter().chain(&asked.failure) {
        match &op.request {
            Some(Request::RequestRange(asked)) => range(asked)?,
            Some(Request::RequestPut(asked)) => put(asked)?,
            Some(Request::RequestDeleteRange(asked)) => delete(asked)?,
            Some(Request::RequestTxn(asked)) => shape(asked, ops_max - ops)?,
            // So etcd calls an operation of no kind.
            None => return Err(KEY_NOT_FOUND),
        }
    }
    Ok(())
}

/// Keys that a delete takes: one, or those from `from` to below `to`.
///
/// A delete "from here to the last key" (`to` is one zero byte) meets no put: etcd compares that
/// byte as if it were a key, so that such a delete beside a put is accepted.
#[derive(Clone)]
struct Span<'a> {
    from: &'a [u8],
    to: &'a [u8],
}

impl Span<'_> {
    fn holds(&self, key: &[u8]) -> bool {
        match self.to.is_empty() {
            true => self.from == key,
            false => self.from <= key && key < self.to,
        }
    }
}

/// What a list of operations may write: keys it may put, spans it may delete.
type Writes<'a> = (BTreeSet<&'a [u8]>, Vec<Span<'a>>);

fn intervals(ops: &[pb::RequestOp]) -> Result<Writes<'_>, Known> {
    let requests = || ops.iter().filter_map(|op| op.request.as_ref());
    let mut deletes: Vec<Span<'_>> = requests()
        .filter_map(|request| match request {
            Request::RequestDeleteRange(it) => Some(Span { from: &it.key, to: &it.range_end }),
            _ => None,
        })
        .collect();
    let mut puts: BTreeSet<&[u8]> = BTreeSet::new();
    for request in requests() {
        let Request::RequestTxn(nested) = request else { continue };
        let (puts_then, deletes_then) = intervals(&nested.success)?;
        let (puts_else, deletes_else) = intervals(&nested.failure)?;
        let deleted = |key: &[u8]| deletes.iter().any(|span| span.holds(key));
        for key in &puts_then {
            refuse_if(puts.contains(key) || deleted(key), DUPLICATE_KEY)?;
        }
        for key in &puts_else {
            // Only one of the two branches runs, so they may put the same key.
            refuse_if(puts.contains(key) || deleted(key), DUPLICATE_KEY)?;
        }
        puts.extend(puts_then);
        puts.extend(puts_else);
        deletes.extend(deletes_then);
        deletes.extend(deletes_else);
    }
    for request in requests() {
        let Request::RequestPut(put) = request else { continue };
        let key: &[u8] = &put.key;
        let is_new = puts.insert(key) && !deletes.iter().any(|span| span.holds(key));
        refuse_if(!is_new, DUPLICATE_KEY)?;
    }
    Ok((puts, deletes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_of(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete_of(key: &'static str, range_end: &'static [u8]) -> pb::RequestOp {
        let range_end = range_end.into();
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.into(),
            range_end,
            prev_kv: false,
        }))
    }

    fn both(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::TxnRequest {
        pb::TxnRequest { compare: Vec::new(), success, failure }
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(both(success, failure)))
    }

    #[test]
    fn a_path_puts_a_key_once_and_does_not_delete_it_too() {
        let duplicate = Err(DUPLICATE_KEY);
        for (ops, expected) in [
            (vec![put_of("a"), put_of("b")], Ok(())),
            (vec![put_of("a"), put_of("a")], duplicate),
            (vec![put_of("a"), delete_of("a", b"")], duplicate),
            (vec![put_of("a"), delete_of("a", b"b")], duplicate),
            (vec![put_of("b"), delete_of("a", b"b")], Ok(())),
            (vec![put_of("b"), delete_of("a", b"\0")], Ok(())),
            (vec![delete_of("a", b"c"), delete_of("b", b"")], Ok(())),
            (vec![nested(vec![put_of("a")], vec![put_of("a")])], Ok(())),
            (vec![nested(vec![put_of("a")], vec![]), put_of("a")], duplicate),
            (vec![put_of("a"), nested(vec![], vec![delete_of("a", b"")])], duplicate),
            (vec![delete_of("a", b""), nested(vec![], vec![put_of("a")])], duplicate),
            (vec![nested(vec![put_of("a")], vec![]), nested(vec![put_of("a")], vec![])], duplicate),
        ] {
            assert_eq!(txn(&both(ops.clone(), vec![])), expected, "{ops:?}");
            assert_eq!(txn(&both(vec![], ops.clone())), expected, "{ops:?}");
        }
        assert_eq!(txn(&both(vec![put_of("a")], vec![put_of("a")])), Ok(()));
    }

    #[test]
    fn nested_transactions_have_what_the_outer_left() {
        let puts = |count| vec![delete_of("a", b""); count];
        assert_eq!(txn(&both(puts(128), vec![])), Ok(()));
        assert_eq!(txn(&both(puts(129), vec![])), Err(TOO_MANY_OPS));
        assert_eq!(txn(&both(vec![nested(puts(127), vec![])], vec![])), Ok(()));
        assert_eq!(txn(&both(vec![nested(puts(128), vec![])], vec![])), Err(TOO_MANY_OPS));
    }
}
