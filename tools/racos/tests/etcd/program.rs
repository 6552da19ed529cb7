//! Random programs: seeded, and the same for every server.
//!
//! Keys are few, so that requests meet; parameters are often at an edge, and sometimes wrong.

use crate::client::Step;
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use racos_etcd::pb::etcdserverpb::request_op::Request;

/// A small generator of pseudo-random numbers (xorshift64*).
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }

    /// True in one of `of` cases.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

pub const KEYS: [&[u8]; 12] = [
    b"a",
    b"aa",
    b"ab",
    b"b",
    b"b\x00",
    b"b\x00c",
    b"c",
    b"c/1",
    b"c/2",
    b"d",
    b"\xff",
    b"\xff\xfe",
];
const LEASES: [i64; 4] = [7, 70, 700, 7000];

/// What the generator knows about the server: bounds for revisions worth asking for.
#[derive(Default, Clone, Copy)]
pub struct Known {
    pub revision: i64,
    pub compacted: i64,
}

/// Draws one step.
pub fn step(draw: &mut Draw, known: Known) -> Step {
    match draw.below(100) {
        0..=27 => Step::Put(put(draw)),
        28..=49 => Step::Range(range(draw, known)),
        50..=57 => Step::Delete(delete(draw)),
        58..=84 => Step::Txn(txn(draw, known, 2)),
        85..=87 => Step::Compact(pb::CompactionRequest {
            revision: some_revision(draw, known),
            // Otherwise etcd's hash is, for a while, that of rows that are still to be deleted,
            // if no key is alive at the revision asked for.
            physical: true,
        }),
        88..=91 => Step::Grant(pb::LeaseGrantRequest {
            ttl: *draw.pick(&[100, 1000, 5000, 9_000_000_001]),
            id: *draw.pick(&LEASES),
        }),
        92..=93 => Step::Revoke(pb::LeaseRevokeRequest { id: *draw.pick(&LEASES) }),
        94..=95 => Step::TimeToLive(pb::LeaseTimeToLiveRequest {
            id: *draw.pick(&LEASES),
            keys: draw.one_in(2),
        }),
        96 => Step::Leases,
        _ => Step::HashKv(hash_kv(draw, known)),
    }
}

/// A hash at a revision that is neither compacted nor in the future: 3.4 and 3.6 differ there.
fn hash_kv(draw: &mut Draw, known: Known) -> pb::HashKvRequest {
    let open = known.revision - known.compacted.max(0);
    let revision = match draw.one_in(3) || open < 1 {
        true => 0,
        false => known.revision - draw.below(open as u64) as i64,
    };
    pb::HashKvRequest { revision }
}

fn key(draw: &mut Draw) -> Vec<u8> {
    match draw.one_in(60) {
        true => Vec::new(),
        false => draw.pick(&KEYS).to_vec(),
    }
}

fn range_end(draw: &mut Draw, key: &[u8]) -> Vec<u8> {
    match draw.below(10) {
        0..=3 => Vec::new(),
        4 | 5 => prefix_end(key),
        6 => vec![0],
        7 => key.to_vec(),
        _ => draw.pick(&KEYS).to_vec(),
    }
}

pub fn prefix_end(key: &[u8]) -> Vec<u8> {
    let mut end = key.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn value(draw: &mut Draw) -> Vec<u8> {
    let len = match draw.below(12) {
        0 => 0,
        1..=4 => 1 + draw.below(3),
        5 | 6 => 8 + draw.below(3),
        7 | 8 => 100 + draw.below(100),
        9 => 1000 + draw.below(4000),
        10 => 20_000 + draw.below(100_000),
        _ => 9,
    };
    // Many values share their first bytes, so that comparisons have to look at the rest.
    let mut value = vec![b'v'; len as usize];
    if let Some(last) = value.last_mut() {
        *last = b'0' + draw.below(4) as u8;
    }
    if value.len() > 8 && draw.one_in(3) {
        value[8] = draw.below(3) as u8;
    }
    value
}

fn some_revision(draw: &mut Draw, known: Known) -> i64 {
    match draw.below(12) {
        0 => known.revision + 1 + draw.below(3) as i64,
        1 => known.compacted,
        2 => known.compacted - 1,
        3 => -(draw.below(3) as i64),
        4 => known.revision,
        _ => {
            let open = (known.revision - known.compacted).max(1) as u64;
            known.compacted.max(0) + draw.below(open) as i64
        }
    }
}

fn put(draw: &mut Draw) -> pb::PutRequest {
    let (mut value, mut lease) = (value(draw), 0);
    if draw.one_in(4) {
        lease = *draw.pick(&LEASES);
    }
    let (ignore_value, ignore_lease) = (draw.one_in(10), draw.one_in(10));
    if ignore_value && !draw.one_in(5) {
        value = Vec::new();
    }
    if ignore_lease && !draw.one_in(5) {
        lease = 0;
    }
    pb::PutRequest {
        key: key(draw).into(),
        value: value.into(),
        lease,
        prev_kv: draw.one_in(3),
        ignore_value,
        ignore_lease,
    }
}

fn delete(draw: &mut Draw) -> pb::DeleteRangeRequest {
    let key = key(draw);
    let range_end = range_end(draw, &key);
    pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: draw.one_in(2) }
}

fn range(draw: &mut Draw, known: Known) -> pb::RangeRequest {
    let key = key(draw);
    let range_end = range_end(draw, &key);
    let bound = |draw: &mut Draw| match draw.one_in(8) {
        true => draw.below(known.revision.max(1) as u64 + 2) as i64,
        false => 0,
    };
    let (one, two, three, four) = (bound(draw), bound(draw), bound(draw), bound(draw));
    pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: match draw.below(4) {
            0 => draw.below(5) as i64,
            1 if draw.one_in(10) => -1,
            _ => 0,
        },
        revision: match draw.one_in(3) {
            true => some_revision(draw, known),
            false => 0,
        },
        // Unknown ones end etcd 3.4; 3.6 refuses them, which `check` has a test for.
        sort_order: draw.below(3) as i32,
        sort_target: draw.below(5) as i32,
        serializable: false,
        keys_only: draw.one_in(5),
        count_only: draw.one_in(6),
        min_mod_revision: one,
        max_mod_revision: two,
        min_create_revision: three,
        max_create_revision: four,
    }
}

fn txn(draw: &mut Draw, known: Known, depth: u32) -> pb::TxnRequest {
    let compare = (0..draw.below(3)).map(|_| compare(draw, known)).collect();
    pb::TxnRequest {
        compare,
        success: branch(draw, known, depth),
        failure: branch(draw, known, depth),
    }
}

fn branch(draw: &mut Draw, known: Known, depth: u32) -> Vec<pb::RequestOp> {
    (0..draw.below(4)).map(|_| op(draw, known, depth)).collect()
}

fn op(draw: &mut Draw, known: Known, depth: u32) -> pb::RequestOp {
    let request = match draw.below(10) {
        0..=3 => Request::RequestPut(put(draw)),
        4..=6 => {
            let mut range = range(draw, known);
            if !draw.one_in(4) {
                range.revision = 0;
            }
            Request::RequestRange(range)
        }
        7 => Request::RequestDeleteRange(delete(draw)),
        8 if draw.one_in(10) => return pb::RequestOp { request: None },
        _ if depth > 0 => Request::RequestTxn(txn(draw, known, depth - 1)),
        _ => Request::RequestPut(put(draw)),
    };
    pb::RequestOp { request: Some(request) }
}

fn compare(draw: &mut Draw, known: Known) -> pb::Compare {
    let key = key(draw);
    let range_end = if draw.one_in(4) { range_end(draw, &key) } else { Vec::new() };
    let target = draw.below(5) as i32;
    let revision = draw.below(known.revision.max(1) as u64 + 1) as i64;
    // Rarely the kind of the operand is not that of the target.
    let of = if draw.one_in(30) { draw.below(5) as i32 } else { target };
    let union = match CompareTarget::try_from(of).unwrap() {
        CompareTarget::Version => TargetUnion::Version(draw.below(4) as i64),
        CompareTarget::Create => TargetUnion::CreateRevision(revision * draw.below(2) as i64),
        CompareTarget::Mod => TargetUnion::ModRevision(revision * draw.below(2) as i64),
        CompareTarget::Value => TargetUnion::Value(value(draw).into()),
        CompareTarget::Lease => TargetUnion::Lease(*draw.pick(&[0, 7, 70])),
    };
    let results = [
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ];
    pb::Compare {
        result: *draw.pick(&results) as i32,
        target,
        key: key.into(),
        range_end: range_end.into(),
        target_union: if draw.one_in(30) { None } else { Some(union) },
    }
}
