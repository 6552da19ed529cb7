//! Between etcd's messages and a node's types. Nothing is decided here.

use crate::errors::{KEY_NOT_FOUND, Known, known};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb;
use bytes::Bytes;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request as of_range;
use pb::request_op::Request;
use pb::response_op::Response;
use racos_engine::api::Identity;
use racos_engine::api::types::{
    Compare, Delete, DeleteAnswer, Event, KeyValue, Keys, Put, PutAnswer, Range, RangeAnswer,
    Relation, SortBy, SortOrder, Target, Txn, TxnAnswer, TxnOp, TxnOpAnswer, WatchCreate,
};
use tonic::{Code, Status};

/// The header of an answer of this node.
pub fn header(identity: Identity, revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        cluster_id: identity.cluster_id,
        member_id: identity.member_id,
        revision,
        raft_term: identity.term,
    })
}

/// No end is one key, one zero byte as the end is no end.
pub fn keys(key: Bytes, range_end: Bytes) -> Keys {
    match &range_end[..] {
        [] => Keys::One(key),
        [0] => Keys::Span { from: key, to: None },
        _ => Keys::Span { from: key, to: Some(range_end) },
    }
}

pub fn range(asked: pb::RangeRequest) -> Range {
    let sort_order = match asked.sort_order() {
        of_range::SortOrder::None => SortOrder::None,
        of_range::SortOrder::Ascend => SortOrder::Ascending,
        of_range::SortOrder::Descend => SortOrder::Descending,
    };
    let sort_by = match asked.sort_target() {
        of_range::SortTarget::Key => SortBy::Key,
        of_range::SortTarget::Version => SortBy::Version,
        of_range::SortTarget::Create => SortBy::Create,
        of_range::SortTarget::Mod => SortBy::Modified,
        of_range::SortTarget::Value => SortBy::Value,
    };
    Range {
        keys: keys(asked.key, asked.range_end),
        limit: asked.limit,
        revision: asked.revision,
        sort_order,
        sort_by,
        keys_only: asked.keys_only,
        count_only: asked.count_only,
        modified_min: asked.min_mod_revision,
        modified_max: asked.max_mod_revision,
        create_min: asked.min_create_revision,
        create_max: asked.max_create_revision,
    }
}

pub fn put(asked: pb::PutRequest) -> Put {
    Put {
        key: asked.key,
        value: asked.value,
        lease: asked.lease,
        prev_kv: asked.prev_kv,
        ignore_value: asked.ignore_value,
        ignore_lease: asked.ignore_lease,
    }
}

pub fn delete(asked: pb::DeleteRangeRequest) -> Delete {
    Delete { keys: keys(asked.key, asked.range_end), prev_kv: asked.prev_kv }
}

const UNKNOWN_COMPARE: Known = (Code::InvalidArgument, "racos: a compare of an unknown kind");

/// # Errors
/// A compare whose kind is not known, or an operation of none.
pub fn txn(asked: pb::TxnRequest) -> Result<Txn, Status> {
    let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(op).collect::<Result<_, _>>();
    Ok(Txn {
        compares: asked.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: ops(asked.success)?,
        failure: ops(asked.failure)?,
    })
}

fn op(asked: pb::RequestOp) -> Result<TxnOp, Status> {
    Ok(match asked.request.ok_or_else(|| known(KEY_NOT_FOUND))? {
        Request::RequestRange(asked) => TxnOp::Range(range(asked)),
        Request::RequestPut(asked) => TxnOp::Put(put(asked)),
        Request::RequestDeleteRange(asked) => TxnOp::Delete(delete(asked)),
        Request::RequestTxn(asked) => TxnOp::Txn(txn(asked)?),
    })
}

/// An operand of another kind than the target counts as none: zero, or the empty value.
fn compare(asked: pb::Compare) -> Result<Compare, Status> {
    let relation = match CompareResult::try_from(asked.result) {
        Ok(CompareResult::Equal) => Relation::Equal,
        Ok(CompareResult::NotEqual) => Relation::NotEqual,
        Ok(CompareResult::Greater) => Relation::Greater,
        Ok(CompareResult::Less) => Relation::Less,
        Err(_) => return Err(known(UNKNOWN_COMPARE)),
    };
    let given = asked.target_union;
    let target = match (CompareTarget::try_from(asked.target), given) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(it))) => Target::Version(it),
        (Ok(CompareTarget::Version), _) => Target::Version(0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(it))) => Target::Create(it),
        (Ok(CompareTarget::Create), _) => Target::Create(0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(it))) => Target::Modified(it),
        (Ok(CompareTarget::Mod), _) => Target::Modified(0),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(it))) => Target::Lease(it),
        (Ok(CompareTarget::Lease), _) => Target::Lease(0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(it))) => Target::Value(it),
        (Ok(CompareTarget::Value), _) => Target::Value(Bytes::new()),
        (Err(_), _) => return Err(known(UNKNOWN_COMPARE)),
    };
    Ok(Compare { keys: keys(asked.key, asked.range_end), relation, target })
}

pub fn key_value(from: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: from.key,
        create_revision: from.create,
        mod_revision: from.modified,
        version: from.version,
        value: from.value,
        lease: from.lease,
    }
}

pub fn range_answer(header: Option<pb::ResponseHeader>, from: RangeAnswer) -> pb::RangeResponse {
    let kvs = from.kvs.into_iter().map(key_value).collect();
    pb::RangeResponse { header, kvs, more: from.more, count: from.count }
}

pub fn put_answer(header: Option<pb::ResponseHeader>, from: PutAnswer) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: from.previous.map(key_value) }
}

pub fn delete_answer(
    header: Option<pb::ResponseHeader>,
    from: DeleteAnswer,
) -> pb::DeleteRangeResponse {
    let prev_kvs = from.previous.into_iter().map(key_value).collect();
    pb::DeleteRangeResponse { header, deleted: from.deleted, prev_kvs }
}

/// Answers inside a transaction have a header with a revision and nothing else; that of a nested
/// transaction is empty.
pub fn txn_answer(header: Option<pb::ResponseHeader>, from: TxnAnswer) -> pb::TxnResponse {
    let inner = |revision| Some(pb::ResponseHeader { revision, ..Default::default() });
    let responses = from.answers.into_iter().map(|answer| {
        let response = match answer {
            TxnOpAnswer::Range(it) => Response::ResponseRange(range_answer(inner(it.revision), it)),
            TxnOpAnswer::Put(it) => Response::ResponsePut(put_answer(inner(it.revision), it)),
            TxnOpAnswer::Delete(it) => {
                Response::ResponseDeleteRange(delete_answer(inner(it.revision), it))
            }
            TxnOpAnswer::Txn(it) => Response::ResponseTxn(txn_answer(inner(0), it)),
        };
        pb::ResponseOp { response: Some(response) }
    });
    pb::TxnResponse { header, succeeded: from.succeeded, responses: responses.collect() }
}

/// The empty key means the first there can be.
pub fn watch_create(asked: pb::WatchCreateRequest) -> WatchCreate {
    use pb::watch_create_request::FilterType;
    let has = |filter: FilterType| asked.filters.contains(&(filter as i32));
    let key = if asked.key.is_empty() { Bytes::from_static(&[0]) } else { asked.key.clone() };
    WatchCreate {
        id: asked.watch_id,
        start_revision: asked.start_revision,
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        prev_kv: asked.prev_kv,
        progress_notify: asked.progress_notify,
        keys: keys(key, asked.range_end),
    }
}

pub fn event(from: Event) -> mvccpb::Event {
    use mvccpb::event::EventType;
    let kind = if from.is_delete { EventType::Delete } else { EventType::Put };
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(key_value(from.kv)),
        prev_kv: from.previous.map(key_value),
    }
}
