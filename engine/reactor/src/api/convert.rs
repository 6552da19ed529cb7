//! Between what other threads say and what the machine holds.

use super::gather::Values;
use super::types::*;
use bytes::Bytes;
use racos_machine::{self as machine, Item, Key, Selection, Span};

pub(super) fn key(bytes: &[u8]) -> Key {
    bytes.into()
}

pub(super) fn span(keys: &Keys) -> Span {
    match keys {
        Keys::One(one) => Span::One(key(one)),
        Keys::Span { from, to } => {
            Span::Range { from: key(from), to: to.as_ref().map(|to| key(to)) }
        }
    }
}

pub(super) fn select(range: &Range) -> machine::Select {
    machine::Select {
        span: span(&range.keys),
        limit: range.limit,
        revision: range.revision,
        order: match range.sort_order {
            SortOrder::None => machine::SortOrder::None,
            SortOrder::Ascending => machine::SortOrder::Ascending,
            SortOrder::Descending => machine::SortOrder::Descending,
        },
        by: match range.sort_by {
            SortBy::Key => machine::SortBy::Key,
            SortBy::Version => machine::SortBy::Version,
            SortBy::Create => machine::SortBy::Create,
            SortBy::Modified => machine::SortBy::Modified,
            SortBy::Value => machine::SortBy::Value,
        },
        keys_only: range.keys_only,
        count_only: range.count_only,
        modified_min: range.modified_min,
        modified_max: range.modified_max,
        create_min: range.create_min,
        create_max: range.create_max,
    }
}

pub(super) fn relation(relation: Relation) -> machine::Relation {
    match relation {
        Relation::Equal => machine::Relation::Equal,
        Relation::NotEqual => machine::Relation::NotEqual,
        Relation::Greater => machine::Relation::Greater,
        Relation::Less => machine::Relation::Less,
    }
}

pub(super) fn key_value(item: &Item, value: Bytes) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(&item.key),
        create: item.create as i64,
        modified: item.modified.main as i64,
        version: item.version as i64,
        lease: item.lease,
        value,
    }
}

pub(super) fn with_value(item: &Item, values: &Values) -> KeyValue {
    key_value(item, values.bytes(&item.content))
}

pub(super) fn range_answer(
    revision: u64,
    selection: &Selection,
    keys_only: bool,
    values: &Values,
) -> RangeAnswer {
    let kv = |item: &Item| match keys_only {
        true => key_value(item, Bytes::new()),
        false => with_value(item, values),
    };
    RangeAnswer {
        revision: revision as i64,
        kvs: selection.items.iter().map(kv).collect(),
        more: selection.more,
        count: selection.count as i64,
    }
}
