//! Writes: proposed once each, answered with what came of them.
//!
//! Invariant: every job of the table is done once: with the outcome of its operation, or with the
//! reason why that is not known. Operations of this role carry no session: whoever sends a request
//! again may have it done twice, as in etcd.

use super::auth::Who;
use super::gather::Lost;
use super::pending::Answer;
use super::txn::{Evidence, Stored, has_ranges, parts_of, txn_answer, wanted};
use super::types::*;
use crate::batch::{Payload, Waiter};
use crate::node::Node;
use crate::wire::client::{ErrorCode, Reply};
use bytes::Bytes;
use racos_machine::{Action, Content, KEY_BYTES_MAX, Op, Outcome, Refusal, TxnReport, Value};
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// A transaction whose compares stay unresolved so long is given up.
const UNRESOLVED_NS: Nanos = 5_000_000_000;
/// The first pause before it is tried again; doubled each time, and longer at each further node.
const PAUSE_NS: Nanos = 250_000;
/// Most bytes of an operation's metadata.
const META_BYTES_MAX: usize = (1 << 20) - 1024;
/// Parts of large values on their way, for one request.
const PARTS_FLYING_MAX: usize = 4;

/// What came of an operation.
pub(super) type Applied = Result<(Outcome, Option<TxnReport>), Error>;
pub(super) type WriteJob<L, D> = Box<dyn FnOnce(&mut Node<L, D>, Applied)>;
/// What is done with values that were stored ahead.
pub(super) type Then<L, D> = Box<dyn FnOnce(&mut Node<L, D>, Result<Stored, Error>)>;
type Sink<L, D> = Box<dyn FnOnce(&mut Node<L, D>, Result<TxnAnswer, Error>)>;

/// A transaction on its way.
pub(super) struct Writing<L: Link, D: Device> {
    who: Who,
    txn: Txn,
    stored: Stored,
    answer: Sink<L, D>,
    started: Nanos,
    tries: u32,
}

/// Values being stored ahead of a transaction.
struct Parts<L: Link, D: Device> {
    who: Who,
    /// The number of the put, and the bytes of a stripe.
    queue: VecDeque<(usize, Bytes)>,
    flying: usize,
    /// By the put, and by the place of the stripe in it.
    stored: Vec<(usize, Value)>,
    then: Option<Then<L, D>>,
}

impl<L: Link, D: Device> Node<L, D> {
    pub(super) fn api_put(&mut self, who: Who, put: Put, answer: Answer<PutAnswer>) {
        let plain = put.lease == 0 && !put.prev_kv && !put.ignore_value && !put.ignore_lease;
        if plain && put.value.len() <= self.config.bounds.value_bytes_max {
            return self.plain_put(&who, put, answer);
        }
        let lease = put.lease;
        let txn = Txn { success: vec![TxnOp::Put(put)], ..Txn::default() };
        self.api_txn(
            who,
            txn,
            Box::new(move |node, result| {
                let unknown = lease != 0 && node.machine.lease_ttl(lease).is_none();
                answer.send(match result {
                    // Of two reasons to refuse it, etcd names this one first; in a transaction, the
                    // other.
                    Err(Error::KeyNotFound) if unknown => Err(Error::LeaseNotFound),
                    result => result.map(|txn| match txn.answers.into_iter().next() {
                        Some(TxnOpAnswer::Put(put)) => put,
                        other => unreachable!("a put is not answered with {other:?}"),
                    }),
                });
            }),
        );
    }

    /// As the native put, without a session.
    fn plain_put(&mut self, who: &Who, put: Put, answer: Answer<PutAnswer>) {
        let author = match self.author(who) {
            Ok(author) => author,
            Err(error) => return answer.send(Err(error)),
        };
        let Some(body) = self.pool.copy(&put.value) else {
            return answer.send(Err(no_buffers()));
        };
        let id = self.next_op_id();
        let value = self.builder.describe(id, &put.value);
        let action = Action::Put { key: put.key[..].into(), content: Content::Whole(value) };
        if self.api.watches.are_watched() {
            self.keep_value(id, &put.value);
        }
        self.propose(
            Op { id, author, stamp: None, action },
            Payload::Value(body),
            Box::new(move |node, applied| {
                let done = node.revision_after(applied);
                answer.send(done.map(|revision| PutAnswer { revision, previous: None }));
            }),
        );
    }

    pub(super) fn api_delete(&mut self, who: Who, delete: Delete, answer: Answer<DeleteAnswer>) {
        let txn = Txn { success: vec![TxnOp::Delete(delete)], ..Txn::default() };
        self.api_txn(
            who,
            txn,
            Box::new(move |_, result| {
                answer.send(result.map(|txn| match txn.answers.into_iter().next() {
                    Some(TxnOpAnswer::Delete(delete)) => delete,
                    other => unreachable!("a delete is not answered with {other:?}"),
                }));
            }),
        );
    }

    /// A transaction that may write.
    pub(super) fn api_txn(&mut self, who: Who, txn: Txn, answer: Sink<L, D>) {
        let (stored, started) = (Stored::default(), self.now);
        let parts_of_who = who.clone();
        let writing = Writing { who, txn, stored, answer, started, tries: 0 };
        let most = self.config.bounds.value_bytes_max;
        let parts = parts_of(&writing.txn, self.builder.k(), most);
        if parts.is_empty() {
            return self.try_txn(writing);
        }
        let then: Then<L, D> = Box::new(move |node, stored| match stored {
            Ok(stored) => node.try_txn(Writing { stored, ..writing }),
            Err(error) => (writing.answer)(node, Err(error)),
        });
        self.store_stripes(parts_of_who, parts, then);
    }

    /// Stores values ahead of the operation that will name them.
    pub(super) fn store_stripes(
        &mut self,
        who: Who,
        values: Vec<(usize, Bytes)>,
        then: Then<L, D>,
    ) {
        let most = self.config.bounds.value_bytes_max;
        let stripes = |(put, value): (usize, Bytes)| {
            let starts = (0..value.len()).step_by(most);
            let whole = value.clone();
            starts.map(move |at| (put, whole.slice(at..(at + most).min(whole.len()))))
        };
        let queue = values.into_iter().flat_map(stripes).collect();
        let parts = Parts { who, queue, flying: 0, stored: Vec::new(), then: Some(then) };
        self.store_parts(Rc::new(RefCell::new(parts)));
    }

    /// Stores what is left, a few parts at a time, then goes on.
    fn store_parts(&mut self, shared: Rc<RefCell<Parts<L, D>>>) {
        loop {
            let mut parts = shared.borrow_mut();
            if parts.then.is_none() || parts.flying >= PARTS_FLYING_MAX {
                return;
            }
            let Some((put, bytes)) = parts.queue.pop_front() else {
                if parts.flying == 0 {
                    let then = parts.then.take().expect("looked at above");
                    let stored = contents(&parts.stored);
                    drop(parts);
                    then(self, Ok(stored));
                }
                return;
            };
            let author = match self.author(&parts.who) {
                Ok(author) => author,
                Err(error) => {
                    let then = parts.then.take().expect("looked at above");
                    drop(parts);
                    return then(self, Err(error));
                }
            };
            let Some(body) = self.pool.copy(&bytes) else {
                // What is under way gives buffers back; with nothing under way nothing will.
                if parts.flying > 0 {
                    parts.queue.push_front((put, bytes));
                    return;
                }
                let then = parts.then.take().expect("looked at above");
                drop(parts);
                return then(self, Err(no_buffers()));
            };
            let id = self.next_op_id();
            let value = self.builder.describe(id, &bytes);
            parts.flying += 1;
            // In the order of the ids, which is that of the stripes.
            parts.stored.push((put, value));
            drop(parts);
            let again = shared.clone();
            self.propose(
                Op { id, author, stamp: None, action: Action::Part { value } },
                Payload::Value(body),
                Box::new(move |node, applied| {
                    again.borrow_mut().flying -= 1;
                    if let Err(error) = node.revision_after(applied) {
                        let then = again.borrow_mut().then.take();
                        return then.into_iter().for_each(|then| then(node, Err(error.clone())));
                    }
                    node.store_parts(again);
                }),
            );
        }
    }

    fn try_txn(&mut self, writing: Writing<L, D>) {
        let Writing { who, txn, stored, answer, started, tries } = writing;
        self.with_evidence(
            txn,
            Box::new(move |node, known| match known {
                Ok((txn, evidence)) => {
                    let writing = Writing { who, txn, stored, answer, started, tries };
                    node.propose_txn(writing, &evidence);
                }
                Err((txn, Lost::Gone)) => {
                    node.try_later(Writing { who, txn, stored, answer, started, tries });
                }
                Err((_, Lost::Failed(error))) => answer(node, Err(error)),
            }),
        );
    }

    fn propose_txn(&mut self, writing: Writing<L, D>, evidence: &Evidence) {
        let author = match self.author(&writing.who) {
            Ok(author) => author,
            Err(error) => return (writing.answer)(self, Err(error)),
        };
        let id = self.next_op_id();
        let (txn, own) = self.build_txn(&writing.txn, evidence, &writing.stored, id);
        self.skip_op_ids(own.len() as u64);
        let op = Op { id, author, stamp: None, action: Action::Txn(Box::new(txn)) };
        if let Err(error) = op.check() {
            return (writing.answer)(self, Err(Error::Invalid(error.to_string())));
        }
        if self.api.watches.are_watched() || has_ranges(&writing.txn) {
            for (value, bytes) in op.stored_values().zip(&own) {
                self.keep_value(value.op, bytes);
            }
        }
        let payload = match own.as_slice() {
            [] => Payload::None,
            [one] => match self.pool.copy(one) {
                Some(body) => Payload::Value(body),
                None => return (writing.answer)(self, Err(no_buffers())),
            },
            _ => Payload::Small(own),
        };
        self.propose(
            op,
            payload,
            Box::new(move |node, applied| match applied {
                Ok((Outcome::Refused { reason: Refusal::Unresolved, .. }, _)) => {
                    node.try_later(writing);
                }
                Ok((Outcome::Applied(done), Some(report))) => {
                    node.report_txn(writing, done.revision, report);
                }
                applied => {
                    let error = node.revision_after(applied).expect_err("it was not applied");
                    (writing.answer)(node, Err(error));
                }
            }),
        );
    }

    fn try_later(&mut self, mut writing: Writing<L, D>) {
        if self.now >= writing.started + UNRESOLVED_NS {
            return (writing.answer)(self, Err(Error::Unresolved));
        }
        let pause = (PAUSE_NS + u64::from(self.me) * PAUSE_NS / 4) << writing.tries.min(8);
        writing.tries += 1;
        self.api.later(self.now + pause, Box::new(move |node| node.try_txn(writing)));
    }

    /// The transaction took effect; what is left is to fetch what its answer shows.
    fn report_txn(&mut self, writing: Writing<L, D>, revision: u64, report: TxnReport) {
        let Writing { txn, answer, .. } = writing;
        let wanted = wanted(&txn, &report);
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| {
                let result = match gathered {
                    Ok(values) => Ok(txn_answer(revision, &txn, report, &values)),
                    Err(Lost::Gone) => Err(Error::Unavailable(
                        "the request took effect; a value of its answer was compacted before it \
                         could be fetched"
                            .into(),
                    )),
                    Err(Lost::Failed(error)) => Err(error),
                };
                answer(node, result);
            }),
        );
    }

    /// Proposes an operation; the job is done when it was applied, not before the caller has
    /// returned.
    pub(crate) fn propose(&mut self, op: Op, payload: Payload, job: WriteJob<L, D>) {
        let number = self.api.next_number();
        self.api.writes.insert(number, job);
        if let Some(error) = too_large(&op) {
            return self.api.applied.push_back((number, Err(error)));
        }
        self.write_op(Waiter::Api(number), op, payload);
    }

    /// The operation was executed.
    pub(crate) fn api_applied(&mut self, number: u64, outcome: Outcome, report: Option<TxnReport>) {
        self.api.applied.push_back((number, Ok((outcome, report))));
    }

    /// A fetch has ended, or an operation will not be answered for.
    pub(crate) fn api_reply(&mut self, number: u64, reply: &Reply, body: &[racos_buffer::Slice]) {
        if self.fetched(number, reply, body) {
            return;
        }
        let Reply::Error(error) = reply else {
            unreachable!("an operation's outcome is not a reply: {reply:?}")
        };
        self.counts.failed += 1;
        let error = match error.code {
            ErrorCode::Unavailable if !self.core.is_active() => Error::NoMember(error.text.clone()),
            code => coded(code, error.text.clone()),
        };
        self.api.applied.push_back((number, Err(error)));
    }

    /// Does the jobs of what was applied; whether there were any.
    pub(super) fn finish_writes(&mut self) -> bool {
        let mut any = false;
        while let Some((number, applied)) = self.api.applied.pop_front() {
            // Answered before: "unavailable", and it took effect later.
            let Some(job) = self.api.writes.remove(&number) else { continue };
            any = true;
            job(self, applied);
        }
        any
    }

    /// The revision after an operation that was applied.
    pub(super) fn revision_after(&self, applied: Applied) -> Result<i64, Error> {
        match applied? {
            (Outcome::Applied(done) | Outcome::Replayed(done), _) => Ok(done.revision as i64),
            (Outcome::Refused { reason, .. }, _) => Err(self.refusal(reason)),
        }
    }

    pub(super) fn refusal(&self, reason: Refusal) -> Error {
        match reason {
            Refusal::Compacted => Error::Compacted { compact_revision: self.compact_revision() },
            Refusal::FutureRevision => Error::FutureRevision,
            Refusal::LeaseNotFound => Error::LeaseNotFound,
            Refusal::LeaseExists => Error::LeaseExists,
            Refusal::LeaseTtlTooLarge => Error::LeaseTtlTooLarge,
            Refusal::KeyNotFound => Error::KeyNotFound,
            Refusal::Unresolved => Error::Unresolved,
            Refusal::ValueMissing | Refusal::ValueConflict => Error::Unavailable(
                "too many large values wait for the requests that store them; try again".into(),
            ),
            reason if reason.is_of_auth() => Error::Auth(reason),
            other => coded(ErrorCode::of(other), other.to_string()),
        }
    }

    /// -1: nothing was compacted.
    pub(super) fn compact_revision(&self) -> i64 {
        self.machine.compact_revision().map_or(-1, |revision| revision as i64)
    }
}

/// What has a code on the wire between nodes and native clients.
pub(super) fn coded(code: ErrorCode, text: String) -> Error {
    match code {
        ErrorCode::Busy => Error::Busy(text),
        ErrorCode::NoSpace => Error::NoSpace(text),
        ErrorCode::TooLarge => Error::TooLarge(text),
        ErrorCode::DataLoss => Error::DataLoss(text),
        ErrorCode::Unavailable | ErrorCode::ValueMissing => Error::Unavailable(text),
        // Operations of this role carry no session.
        ErrorCode::BadRequest
        | ErrorCode::SessionExpired
        | ErrorCode::Stale
        | ErrorCode::Window => Error::Invalid(text),
    }
}

pub(super) fn no_buffers() -> Error {
    Error::Busy("the node's buffers are in use; try again".into())
}

fn too_large(op: &Op) -> Option<Error> {
    let mut longest = 0;
    op.each_key(&mut |key| longest = longest.max(key.len()));
    if longest > KEY_BYTES_MAX {
        let text = format!("a key has {longest} bytes; {KEY_BYTES_MAX} are the most");
        return Some(Error::TooLarge(text));
    }
    let Action::Txn(txn) = &op.action else { return None };
    let mut steps = txn.compares.len();
    txn.each_step(&mut |_| steps += 1);
    if steps * KEY_BYTES_MAX < META_BYTES_MAX || op.check().is_err() {
        return None;
    }
    let mut bytes = Vec::new();
    op.encode(&mut bytes);
    (bytes.len() > META_BYTES_MAX).then(|| {
        let len = bytes.len();
        Error::TooLarge(format!(
            "keys and what else a transaction has besides values take {len} bytes; \
             {META_BYTES_MAX} are the most"
        ))
    })
}

/// The content of the one value that was stored.
pub(super) fn contents_of_one(mut stored: Stored) -> Content {
    stored.remove(&0).expect("one value was stored, as that of put 0")
}

/// The contents of the puts from their stripes, which are in order.
fn contents(stored: &[(usize, Value)]) -> Stored {
    let mut contents = Stored::default();
    for group in stored.chunk_by(|(one, _), (other, _)| one == other) {
        let values: Vec<Value> = group.iter().map(|(_, value)| *value).collect();
        let content = match values[..] {
            [one] => Content::Whole(one),
            _ => Content::Stripes(values.into()),
        };
        contents.insert(group[0].0, content);
    }
    contents
}
