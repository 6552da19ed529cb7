//! Transactions: from what was asked to what is decided, and from what came of it to the answer.
//!
//! Invariant: puts are numbered, and givens (values to compare with) too, in one order: branch after
//! branch, nested transactions in their place. Both directions walk in that order.

use super::convert::{key, range_answer, relation, select, span, with_value};
use super::gather::{Lost, Values};
use super::read::order_by_value;
use super::types::*;
use crate::layout;
use crate::node::Node;
use bytes::Bytes;
use racos_machine::{
    self as machine, Content, Given, Item, OpId, PutStep, Side, Step, StepReport, TxnReport,
    Written,
};
use racos_net::Link;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::cmp::Ordering;

/// Bytes in a node's body that the values of one transaction may take; what is beyond is stored by
/// operations of its own before.
const OWN_BYTES_MAX: usize = 32 << 10;

/// For each given, in order, how contents stand to it.
pub(super) type Evidence = Vec<Vec<(OpId, Ordering)>>;

/// Contents stored before the transaction, by the number of the put.
pub(super) type Stored = FxHashMap<usize, Content>;

/// A job that needs the transaction and what is known of the values that it compares with.
pub(super) type EvidenceJob<L, D> =
    Box<dyn FnOnce(&mut Node<L, D>, Result<(Txn, Evidence), (Txn, Lost)>)>;

/// A transaction being built.
struct Build<'a> {
    evidence: std::slice::Iter<'a, Vec<(OpId, Ordering)>>,
    stored: &'a Stored,
    puts: usize,
    last_own: OpId,
    /// The values that it stores itself, in order.
    own: Vec<Bytes>,
}

fn each_op<'a>(txn: &'a Txn, visit: &mut dyn FnMut(&'a TxnOp)) {
    for op in txn.success.iter().chain(&txn.failure) {
        visit(op);
        if let TxnOp::Txn(inner) = op {
            each_op(inner, visit);
        }
    }
}

fn each_given<'a>(txn: &'a Txn, visit: &mut dyn FnMut(&'a Bytes)) {
    for compare in &txn.compares {
        if let Target::Value(bytes) = &compare.target {
            visit(bytes);
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        if let TxnOp::Txn(inner) = op {
            each_given(inner, visit);
        }
    }
}

/// Whether it is a read.
pub(super) fn is_read(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| matches!(op, TxnOp::Range(_)))
}

/// Whether some range asks for another revision than the newest.
pub(super) fn names_revision(txn: &Txn) -> bool {
    let mut named = false;
    each_op(txn, &mut |op| named |= matches!(op, TxnOp::Range(range) if range.revision > 0));
    named
}

/// Whether either branch stores something.
pub(super) fn has_puts(txn: &Txn) -> bool {
    let mut found = false;
    each_op(txn, &mut |op| found |= matches!(op, TxnOp::Put(_)));
    found
}

/// Whether some range may show what the transaction itself writes.
pub(super) fn has_ranges(txn: &Txn) -> bool {
    let mut found = false;
    each_op(txn, &mut |op| found |= matches!(op, TxnOp::Range(_)));
    found
}

/// Values that a transaction cannot bring itself, with the numbers of their puts: they are too
/// large, or too many.
pub(super) fn parts_of(txn: &Txn, k: usize, value_bytes_max: usize) -> Vec<(usize, Bytes)> {
    let mut values = Vec::new();
    let mut puts = 0;
    each_op(txn, &mut |op| {
        if let TxnOp::Put(put) = op {
            if !put.ignore_value {
                values.push((puts, &put.value));
            }
            puts += 1;
        }
    });
    if let [(_, value)] = values[..]
        && value.len() <= value_bytes_max
    {
        return Vec::new();
    }
    let mut room = OWN_BYTES_MAX;
    values.retain(|(_, value)| {
        let span = layout::span(layout::fragment_len(value.len(), k.min(value.len()).max(1)));
        let fits = value.len() < layout::LARGE_BYTES_MIN && span <= room;
        room -= if fits { span } else { 0 };
        !fits
    });
    values.into_iter().map(|(put, value)| (put, value.clone())).collect()
}

impl<L: Link, D: Device> Node<L, D> {
    /// A transaction as it is decided, by the operation `id`, and the values that it stores.
    pub(super) fn build_txn(
        &self,
        txn: &Txn,
        evidence: &Evidence,
        stored: &Stored,
        id: OpId,
    ) -> (machine::Txn, Vec<Bytes>) {
        let evidence = evidence.iter();
        let mut build = Build { evidence, stored, puts: 0, last_own: id, own: Vec::new() };
        let built = self.build(txn, &mut build);
        (built, build.own)
    }

    /// The same for one that stores nothing.
    pub(super) fn build_read(&self, txn: &Txn, evidence: &Evidence) -> machine::Txn {
        self.build_txn(txn, evidence, &Stored::default(), OpId(0)).0
    }

    fn build(&self, txn: &Txn, build: &mut Build<'_>) -> machine::Txn {
        let compares = txn.compares.iter().map(|compare| machine::Compare {
            span: span(&compare.keys),
            relation: relation(compare.relation),
            side: match &compare.target {
                Target::Version(number) => Side::Version(*number),
                Target::Create(number) => Side::Create(*number),
                Target::Modified(number) => Side::Modified(*number),
                Target::Lease(number) => Side::Lease(*number),
                Target::Value(bytes) => Side::Value(self.given(bytes, build)),
            },
        });
        let compares = compares.collect();
        let mut steps = |ops: &[TxnOp]| ops.iter().map(|op| self.step_of(op, build)).collect();
        let (success, failure) = (steps(&txn.success), steps(&txn.failure));
        machine::Txn { compares, success, failure }
    }

    fn given(&self, bytes: &Bytes, build: &mut Build<'_>) -> Given {
        let mut head = [0; 8];
        let used = bytes.len().min(8);
        head[..used].copy_from_slice(&bytes[..used]);
        Given {
            len: bytes.len() as u64,
            digest: self.secrets.value_digest([&**bytes]),
            head,
            evidence: build.evidence.next().cloned().unwrap_or_default(),
        }
    }

    fn step_of(&self, op: &TxnOp, build: &mut Build<'_>) -> Step {
        match op {
            TxnOp::Range(range) => Step::Select(select(range)),
            TxnOp::Delete(delete) => {
                Step::Delete { span: span(&delete.keys), previous: delete.prev_kv }
            }
            TxnOp::Txn(inner) => Step::Txn(self.build(inner, build)),
            TxnOp::Put(put) => {
                let number = build.puts;
                build.puts += 1;
                let written = if put.ignore_value {
                    Written::Kept
                } else if let Some(content) = build.stored.get(&number) {
                    Written::Stored(content.clone())
                } else {
                    build.last_own = OpId(build.last_own.0 + 1);
                    build.own.push(put.value.clone());
                    Written::Own(self.builder.describe(build.last_own, &put.value))
                };
                let lease = (!put.ignore_lease).then_some(put.lease);
                Step::Put(PutStep { key: key(&put.key), written, lease, previous: put.prev_kv })
            }
        }
    }

    /// Finds out how stored values stand to those that the transaction compares with, where their
    /// metadata does not say it; then does the job.
    pub(super) fn with_evidence(&mut self, txn: Txn, job: EvidenceJob<L, D>) {
        let mut givens = Vec::new();
        each_given(&txn, &mut |given| givens.push(given.clone()));
        if givens.is_empty() {
            return job(self, Ok((txn, Evidence::new())));
        }
        let built = self.build_read(&txn, &Evidence::new());
        let missing = self.machine.missing_evidence(&built);
        if missing.is_empty() {
            return job(self, Ok((txn, Evidence::new())));
        }
        let wanted: Vec<Content> = missing.iter().map(|(_, content)| content.clone()).collect();
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| {
                let values = match gathered {
                    Ok(values) => values,
                    Err(lost) => return job(node, Err((txn, lost))),
                };
                let mut evidence: Evidence = vec![Vec::new(); givens.len()];
                for (given, content) in &missing {
                    let order = values.bytes(content).cmp(&givens[*given]);
                    evidence[*given].push((content.first_op(), order));
                }
                for known in &mut evidence {
                    known.sort_unstable();
                    known.dedup_by_key(|(op, _)| *op);
                }
                job(node, Ok((txn, evidence)));
            }),
        );
    }
}

/// The contents that the answer shows, or needs to put its items in order.
pub(super) fn wanted(txn: &Txn, report: &TxnReport) -> Vec<Content> {
    let mut wanted = Vec::new();
    collect(txn, report, &mut wanted);
    wanted
}

fn taken<'a>(txn: &'a Txn, report: &TxnReport) -> &'a [TxnOp] {
    if report.succeeded { &txn.success } else { &txn.failure }
}

fn collect(txn: &Txn, report: &TxnReport, wanted: &mut Vec<Content>) {
    let content = |item: &Item| item.content.clone();
    for (op, step) in taken(txn, report).iter().zip(&report.steps) {
        match (op, step) {
            (TxnOp::Range(range), StepReport::Select { selection, .. }) => {
                if !range.keys_only || selection.by_value.is_some() {
                    wanted.extend(selection.items.iter().map(content));
                }
            }
            (_, StepReport::Put { previous, .. }) => wanted.extend(previous.iter().map(content)),
            (_, StepReport::Delete { previous, .. }) => wanted.extend(previous.iter().map(content)),
            (TxnOp::Txn(inner), StepReport::Txn(report)) => collect(inner, report, wanted),
            (op, step) => unreachable!("{op:?} does not report {step:?}"),
        }
    }
}

/// The answer, once the values are there.
pub(super) fn txn_answer(
    revision: u64,
    txn: &Txn,
    report: TxnReport,
    values: &Values,
) -> TxnAnswer {
    let ops = taken(txn, &report);
    let succeeded = report.succeeded;
    let steps = ops.iter().zip(report.steps);
    let answers = steps.map(|(op, step)| op_answer(op, step, values)).collect();
    TxnAnswer { revision: revision as i64, succeeded, answers }
}

fn op_answer(op: &TxnOp, step: StepReport, values: &Values) -> TxnOpAnswer {
    match (op, step) {
        (TxnOp::Range(range), StepReport::Select { revision, mut selection }) => {
            order_by_value(&mut selection, values);
            TxnOpAnswer::Range(range_answer(revision, &selection, range.keys_only, values))
        }
        (_, StepReport::Put { revision, previous }) => TxnOpAnswer::Put(PutAnswer {
            revision: revision as i64,
            previous: previous.map(|item| with_value(&item, values)),
        }),
        (_, StepReport::Delete { revision, deleted, previous }) => {
            TxnOpAnswer::Delete(DeleteAnswer {
                revision: revision as i64,
                deleted: i64::from(deleted),
                previous: previous.iter().map(|item| with_value(item, values)).collect(),
            })
        }
        (TxnOp::Txn(inner), StepReport::Txn(report)) => {
            TxnOpAnswer::Txn(txn_answer(0, inner, report, values))
        }
        (op, step) => unreachable!("{op:?} does not report {step:?}"),
    }
}
