//! Chosen programs: the edges that a random one meets rarely.

use crate::auth;
use crate::client::{MemberStep, Step};
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use racos_etcd::pb::etcdserverpb::request_op::Request;

pub fn put(key: &str, value: &[u8]) -> pb::PutRequest {
    let (key, value) = (key.to_string().into(), value.to_vec().into());
    pb::PutRequest { key, value, prev_kv: true, ..Default::default() }
}

pub fn leased(key: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { lease, ..put(key, b"leased") }
}

pub fn range(key: &str, range_end: &str) -> pb::RangeRequest {
    let (key, range_end) = (key.to_string().into(), range_end.to_string().into());
    pb::RangeRequest { key, range_end, ..Default::default() }
}

pub fn delete(key: &str, range_end: &str) -> pb::DeleteRangeRequest {
    let (key, range_end) = (key.to_string().into(), range_end.to_string().into());
    pb::DeleteRangeRequest { key, range_end, prev_kv: true }
}

pub fn compact(revision: i64) -> Step {
    Step::Compact(pb::CompactionRequest { revision, physical: true })
}

pub fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub fn put_op(key: &str) -> pb::RequestOp {
    op(Request::RequestPut(put(key, b"in a txn")))
}

pub fn range_op(asked: pb::RangeRequest) -> pb::RequestOp {
    op(Request::RequestRange(asked))
}

pub fn delete_op(key: &str, range_end: &str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(delete(key, range_end)))
}

pub fn txn(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

pub fn txn_op(asked: pb::TxnRequest) -> pb::RequestOp {
    op(Request::RequestTxn(asked))
}

/// Each case with its name.
pub fn all() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        ("an empty store", empty_store()),
        ("versions and revisions", versions()),
        ("sorting and limits", sorting()),
        ("value compares", value_compares()),
        ("compares of ranges", range_compares()),
        ("transactions inside transactions", nested()),
        ("the counts of operations", op_counts()),
        ("leases and what is attached to them", leases()),
        ("compaction", compaction()),
        ("sizes of values", sizes()),
        ("hashes after compactions", hashes()),
        ("users, roles and permissions while authentication is off", auth::off()),
        ("what each user may do", auth::on()),
        ("users who change while they are at it", auth::changes()),
        ("members that cannot come or go", members()),
    ]
}

fn members() -> Vec<Step> {
    let steps = [
        MemberStep::Add(&[]),
        MemberStep::Add(&["127.0.0.1"]),
        MemberStep::Add(&["http://127.0.0.1:9/path"]),
        MemberStep::Add(&["ftp://127.0.0.1:9"]),
        MemberStep::AddAgain,
        MemberStep::Remove,
        MemberStep::RemoveNobody,
        MemberStep::UpdateNobody,
        MemberStep::Promote,
        MemberStep::PromoteNobody,
    ];
    steps.map(Step::Member).to_vec()
}

fn empty_store() -> Vec<Step> {
    vec![
        Step::Range(range("a", "")),
        Step::Range(range("\0", "\0")),
        Step::Delete(delete("a", "z")),
        Step::Txn(pb::TxnRequest::default()),
        Step::Txn(txn(vec![range_op(range("a", ""))])),
        Step::Txn(txn(vec![delete_op("a", "z")])),
        Step::Leases,
        Step::TimeToLive(pb::LeaseTimeToLiveRequest { id: 9, keys: true }),
        Step::Revoke(pb::LeaseRevokeRequest { id: 9 }),
        compact(0),
        compact(1),
        compact(1),
        compact(2),
        Step::Range(pb::RangeRequest { revision: 1, ..range("a", "") }),
        Step::Put(put("", b"no key")),
        Step::Range(range("", "")),
        Step::Delete(delete("", "")),
        Step::Put(pb::PutRequest { ignore_value: true, ..put("a", b"") }),
        Step::Put(pb::PutRequest { ignore_lease: true, ..put("a", b"x") }),
        Step::Put(pb::PutRequest { ignore_value: true, ..put("a", b"both") }),
        Step::Put(pb::PutRequest { ignore_lease: true, lease: 7, ..put("a", b"both") }),
        Step::Put(leased("a", 7)),
        Step::Put(leased("a", -7)),
    ]
}

fn versions() -> Vec<Step> {
    let mut steps = Vec::new();
    for value in [&b"1"[..], b"1", b"2", b""] {
        steps.push(Step::Put(put("a", value)));
        steps.push(Step::Range(range("a", "")));
    }
    steps.push(Step::Delete(delete("a", "")));
    steps.push(Step::Delete(delete("a", "")));
    steps.push(Step::Put(put("a", b"again")));
    steps.push(Step::Put(pb::PutRequest { ignore_value: true, ..put("a", b"") }));
    steps.push(Step::Txn(txn(vec![put_op("b"), put_op("c"), delete_op("a", "")])));
    for revision in 0..13 {
        steps.push(Step::Range(pb::RangeRequest { revision, ..range("a", "z") }));
    }
    steps
}

fn sorting() -> Vec<Step> {
    let mut steps = Vec::new();
    // Equal in their first 8 bytes, or 4096; zeros where shorter values end.
    let long = vec![b'x'; 4096];
    let values: [Vec<u8>; 9] = [
        b"12345678".to_vec(),
        b"123456789".to_vec(),
        b"12345678\0".to_vec(),
        b"1234567\0".to_vec(),
        b"1234567".to_vec(),
        [&long[..], b"a"].concat(),
        [&long[..], b"b"].concat(),
        long,
        Vec::new(),
    ];
    for (at, value) in values.iter().enumerate() {
        steps.push(Step::Put(put(&format!("k{}", (at * 5) % 9), value)));
    }
    for key in ["k3", "k1", "k3"] {
        steps.push(Step::Put(put(key, b"12345678")));
    }
    for sort_target in 0..5 {
        for sort_order in 0..3 {
            for limit in [0, 1, 4, 9, 10] {
                let asked = pb::RangeRequest { sort_target, sort_order, limit, ..range("k", "l") };
                steps.push(Step::Range(asked));
            }
        }
    }
    steps
}

fn compare(key: &str, result: CompareResult, union: TargetUnion) -> pb::Compare {
    let target = match &union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: key.to_string().into(),
        target_union: Some(union),
        ..Default::default()
    }
}

const RESULTS: [CompareResult; 4] =
    [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];

fn judged(compare: pb::Compare) -> Step {
    Step::Txn(pb::TxnRequest { compare: vec![compare], ..Default::default() })
}

fn value_compares() -> Vec<Step> {
    let shared = |len: usize, rest: &[u8]| [&vec![b's'; len][..], rest].concat();
    let values: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\0".to_vec(),
        b"s".to_vec(),
        shared(7, b""),
        shared(7, b"\0"),
        shared(8, b""),
        shared(8, b"\0"),
        shared(8, b"\0\0"),
        shared(8, b"a"),
        shared(9, b"a"),
        shared(4096, b"a"),
        shared(4096, b"b"),
        shared(100_000, b"a"),
        shared(100_000, b""),
    ];
    let mut steps = Vec::new();
    for (at, value) in values.iter().enumerate() {
        steps.push(Step::Put(put(&format!("v{at:02}"), value)));
    }
    for at in 0..values.len() {
        for given in &values {
            for result in RESULTS {
                let union = TargetUnion::Value(given.clone().into());
                steps.push(judged(compare(&format!("v{at:02}"), result, union)));
            }
        }
    }
    for result in RESULTS {
        steps.push(judged(compare("missing", result, TargetUnion::Value("".into()))));
        steps.push(judged(compare("missing", result, TargetUnion::Version(0))));
        steps.push(judged(compare("missing", result, TargetUnion::Version(1))));
        steps.push(judged(compare("missing", result, TargetUnion::Lease(0))));
    }
    steps
}

fn range_compares() -> Vec<Step> {
    let mut steps: Vec<Step> =
        ["a", "b", "b", "c"].iter().map(|key| Step::Put(put(key, b"8 bytes"))).collect();
    let ends: [&[u8]; 6] = [b"", b"b", b"d", b"\0", b"a", b"a\0"];
    for end in ends {
        for result in RESULTS {
            for union in [
                TargetUnion::Version(1),
                TargetUnion::CreateRevision(3),
                TargetUnion::ModRevision(3),
                TargetUnion::Value("8 bytes".into()),
                TargetUnion::Lease(0),
            ] {
                let range_end = end.to_vec().into();
                steps.push(judged(pb::Compare { range_end, ..compare("a", result, union) }));
            }
        }
    }
    let bad = compare("", CompareResult::Equal, TargetUnion::Version(0));
    steps.push(judged(bad));
    steps
}

fn nested() -> Vec<Step> {
    let is_there = |key: &str| compare(key, CompareResult::Greater, TargetUnion::Version(0));
    let if_there = |key: &str, success, failure| {
        let compare = vec![is_there(key)];
        pb::TxnRequest { compare, success, failure }
    };
    vec![
        // Compares see the state before the whole transaction, reads what came before them.
        Step::Txn(txn(vec![
            put_op("a"),
            range_op(range("a", "z")),
            txn_op(if_there("a", vec![put_op("yes")], vec![put_op("no")])),
            range_op(range("a", "z")),
            delete_op("x", "y"),
            range_op(pb::RangeRequest { revision: 1, ..range("a", "z") }),
        ])),
        Step::Range(range("a", "z")),
        Step::Txn(if_there(
            "a",
            vec![
                txn_op(if_there("b", vec![put_op("c")], vec![txn_op(txn(vec![put_op("d")]))])),
                delete_op("e", "f"),
                delete_op("a", ""),
            ],
            vec![],
        )),
        // A put, or a delete, and a put on one path; on two that exclude each other.
        Step::Txn(txn(vec![put_op("a"), put_op("a")])),
        Step::Txn(txn(vec![put_op("b"), delete_op("a", "c")])),
        Step::Txn(txn(vec![put_op("b"), delete_op("a", "\0")])),
        Step::Txn(txn(vec![txn_op(if_there("a", vec![put_op("z")], vec![put_op("z")]))])),
        Step::Txn(txn(vec![txn_op(txn(vec![put_op("z")])), put_op("z")])),
        Step::Txn(txn(vec![delete_op("z", ""), txn_op(txn(vec![put_op("z")]))])),
        Step::Txn(txn(vec![txn_op(txn(vec![delete_op("z", "")])), put_op("z")])),
        // One that cannot be done refuses them all.
        Step::Txn(txn(vec![put_op("f"), op(Request::RequestPut(leased("g", 99)))])),
        Step::Txn(txn(vec![
            put_op("f"),
            range_op(pb::RangeRequest { revision: 99, ..range("a", "") }),
        ])),
        Step::Txn(txn(vec![
            put_op("f"),
            op(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("nokey", b"") })),
        ])),
        Step::Txn(txn(vec![put_op("f"), pb::RequestOp { request: None }])),
        Step::Txn(txn(vec![put_op("f"), put_op("")])),
        // What is not on the path taken may be undoable.
        Step::Txn(if_there("missing", vec![op(Request::RequestPut(leased("g", 99)))], vec![])),
        Step::Range(range("a", "z")),
    ]
}

fn op_counts() -> Vec<Step> {
    let puts = |count: usize| (0..count).map(|at| put_op(&format!("k{at}"))).collect::<Vec<_>>();
    let compares = |count| {
        let one = compare("k0", CompareResult::Equal, TargetUnion::Version(1));
        pb::TxnRequest { compare: vec![one; count], ..Default::default() }
    };
    vec![
        Step::Txn(txn(puts(128))),
        Step::Txn(txn(puts(129))),
        Step::Txn(pb::TxnRequest { failure: puts(129), ..Default::default() }),
        Step::Txn(compares(128)),
        Step::Txn(compares(129)),
        Step::Txn(txn(vec![txn_op(txn(puts(127)))])),
        Step::Txn(txn(vec![txn_op(txn(puts(128)))])),
    ]
}

fn leases() -> Vec<Step> {
    let grant = |id, ttl| Step::Grant(pb::LeaseGrantRequest { id, ttl });
    let ttl = |id, keys| Step::TimeToLive(pb::LeaseTimeToLiveRequest { id, keys });
    vec![
        grant(7, 1000),
        grant(7, 1000),
        grant(8, 9_000_000_000),
        grant(9, 9_000_000_001),
        grant(10, 0),
        grant(11, -5),
        grant(12, 1),
        grant(-13, 500),
        Step::Put(leased("a", 7)),
        Step::Put(leased("b", 7)),
        Step::Put(leased("c", 8)),
        ttl(7, true),
        ttl(7, false),
        ttl(99, true),
        // A put moves a key to another lease, or to none; ignoring the lease keeps it.
        Step::Put(leased("a", 8)),
        Step::Put(put("c", b"none")),
        Step::Put(pb::PutRequest { ignore_lease: true, ..put("b", b"kept") }),
        Step::Put(pb::PutRequest { ignore_value: true, lease: 8, ..put("b", b"") }),
        ttl(7, true),
        ttl(8, true),
        Step::Txn(txn(vec![
            op(Request::RequestPut(leased("d", 7))),
            op(Request::RequestPut(leased("e", 7))),
        ])),
        Step::Delete(delete("d", "")),
        ttl(7, true),
        Step::Revoke(pb::LeaseRevokeRequest { id: 8 }),
        Step::Range(range("a", "z")),
        Step::Revoke(pb::LeaseRevokeRequest { id: 8 }),
        Step::Put(leased("f", 8)),
        grant(8, 100),
        ttl(8, true),
        Step::Revoke(pb::LeaseRevokeRequest { id: 7 }),
        Step::Revoke(pb::LeaseRevokeRequest { id: 8 }),
        Step::Range(range("a", "z")),
    ]
}

fn compaction() -> Vec<Step> {
    let mut steps: Vec<Step> =
        (0..10).map(|at| Step::Put(put(&format!("k{}", at % 3), b"value"))).collect();
    steps.push(Step::Delete(delete("k0", "")));
    for revision in [5, 5, 4, 13, 12, 12] {
        steps.push(compact(revision));
        for revision in 3..14 {
            steps.push(Step::Range(pb::RangeRequest { revision, ..range("k", "l") }));
        }
    }
    steps.push(Step::Txn(txn(vec![
        put_op("x"),
        range_op(pb::RangeRequest { revision: 5, ..range("k", "l") }),
    ])));
    steps.push(Step::Put(put("k0", b"again")));
    steps.push(Step::Range(range("k", "l")));
    steps
}

fn sizes() -> Vec<Step> {
    let mut steps = Vec::new();
    for len in [0, 1, 127, 128, 129, 1300, 4096, 32_767, 32_768, 133_000, 1_300_000] {
        let value: Vec<u8> =
            (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        steps.push(Step::Put(put("sized", &value)));
        steps.push(Step::Range(range("sized", "")));
        steps.push(Step::Put(put(&format!("sized{len}"), &value)));
    }
    steps.push(Step::Range(range("s", "t")));
    steps.push(Step::Put(pb::PutRequest { ignore_value: true, ..put("sized", b"") }));
    steps.push(Step::Delete(delete("s", "t")));
    steps
}

fn hashes() -> Vec<Step> {
    let hash = |revision| Step::HashKv(pb::HashKvRequest { revision });
    let mut steps = vec![hash(0)];
    for round in 0..4 {
        for at in 0..6 {
            steps.push(Step::Put(put(&format!("k{at}"), format!("value {round}").as_bytes())));
            steps.push(hash(0));
        }
        steps.push(Step::Txn(txn(vec![put_op("k1"), delete_op("k2", "k4")])));
        steps.push(hash(0));
        let revision = 7 * round + 5;
        steps.push(compact(revision));
        steps.extend([hash(0), hash(revision + 1), hash(revision + 2)]);
    }
    steps.push(Step::Delete(delete("k", "l")));
    steps.push(hash(0));
    steps.push(compact(30));
    steps.push(hash(0));
    steps
}
