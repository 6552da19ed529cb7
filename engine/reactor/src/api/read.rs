//! Ranges, transactions that only read, and hashes.
//!
//! Invariant: a range or a hash looks at no more than [`SLICE`] keys, versions or items before others
//! have their turn, and is all the same the answer of one revision. What would break it: looking at the
//! newest state in a later slice.

use super::auth::Who;
use super::convert::{key_value, select, with_value};
use super::gather::Lost;
use super::pending::Answer;
use super::txn::txn_answer;
use super::types::*;
use crate::keep::Reading;
use crate::node::Node;
use bytes::Bytes;
use racos_machine::{Content, Hashing, Refusal, Selecting, Selection};
use racos_net::Link;
use racos_storage::device::Device;

/// A read whose values keep being replaced while they are fetched is given up after so many tries.
const TRIES_MAX: u32 = 16;
/// Keys, versions or items looked at before others have their turn: some tens of microseconds.
const SLICE: usize = 1000;

/// A range on its way.
pub(super) struct Ranging {
    who: Who,
    range: Range,
    serializable: bool,
    answer: Answer<RangeAnswer>,
    tries: u32,
    /// PROTOCOL 9.8-d: from the first look at the state to the last value.
    _reading: Option<Reading>,
}

/// A range whose items are known.
struct Telling {
    ranging: Ranging,
    selection: Selection,
    /// The first items, with their values.
    kvs: Vec<KeyValue>,
    revision: u64,
}

impl<L: Link, D: Device> Node<L, D> {
    pub(super) fn range(
        &mut self,
        who: Who,
        range: Range,
        serializable: bool,
        answer: Answer<RangeAnswer>,
    ) {
        let tries = 0;
        self.range_again(Ranging { who, range, serializable, answer, tries, _reading: None });
    }

    fn range_again(&mut self, ranging: Ranging) {
        self.counts.reads += 1;
        if ranging.serializable {
            return self.range_here(ranging);
        }
        self.at_pin(Box::new(move |node, pinned| match pinned {
            Ok(()) => node.range_here(ranging),
            Err(error) => ranging.answer.send(Err(error)),
        }));
    }

    fn range_here(&mut self, mut ranging: Ranging) {
        let select = select(&ranging.range);
        let permit = self.permit(&ranging.who);
        // In the state that is read: users and roles cannot have changed in between.
        let allowed = permit.and_then(|permit| permit.read(&select.span).map_err(Error::Auth));
        if let Err(error) = allowed {
            return ranging.answer.send(Err(error));
        }
        ranging._reading = Some(self.begin_reading());
        match self.machine.begin_select(select) {
            Ok(selecting) => self.range_slice(ranging, selecting, self.machine.revision()),
            Err(reason) => ranging.answer.send(Err(self.refusal(reason))),
        }
    }

    /// Looks at some keys; at those behind them when others have had their turn.
    fn range_slice(&mut self, ranging: Ranging, mut selecting: Selecting, revision: u64) {
        if self.machine.is_restoring() {
            return ranging.answer.send(Err(self.refusal(Refusal::Restoring)));
        }
        self.counts.slices += 1;
        match self.machine.go_on_selecting(&mut selecting, SLICE) {
            Ok(true) => self.range_order(ranging, selecting.into_selection(), revision),
            Ok(false) => self.api.slice(Box::new(move |node| {
                node.range_slice(ranging, selecting, revision);
            })),
            Err(_) => self.range_lost(ranging, Lost::Gone),
        }
    }

    /// Finishes the order, for which values may be needed.
    fn range_order(&mut self, ranging: Ranging, mut selection: Selection, revision: u64) {
        let ties = selection.ties();
        let wanted: Vec<Content> =
            ties.iter().map(|&place| selection.items[place].content.clone()).collect();
        if wanted.is_empty() {
            selection.order_by_value(|_| unreachable!("no two values tie"));
            return self.range_values(Telling { ranging, selection, kvs: Vec::new(), revision });
        }
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| match gathered {
                Ok(values) => {
                    order_by_value(&mut selection, &values);
                    let kvs = Vec::new();
                    node.range_values(Telling { ranging, selection, kvs, revision });
                }
                Err(lost) => node.range_lost(ranging, lost),
            }),
        );
    }

    /// Fetches the values of some items; of those behind them when others have had their turn.
    fn range_values(&mut self, mut telling: Telling) {
        let keys_only = telling.ranging.range.keys_only;
        let first = telling.kvs.len();
        let items = &telling.selection.items[first..];
        let items = &items[..items.len().min(SLICE)];
        let wanted: Vec<Content> = match keys_only {
            true => Vec::new(),
            false => items.iter().map(|item| item.content.clone()).collect(),
        };
        let last = first + items.len();
        self.counts.slices += 1;
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| {
                let values = match gathered {
                    Ok(values) => values,
                    Err(lost) => return node.range_lost(telling.ranging, lost),
                };
                let items = &telling.selection.items[first..last];
                telling.kvs.extend(items.iter().map(|item| match keys_only {
                    true => key_value(item, Bytes::new()),
                    false => with_value(item, &values),
                }));
                if last < telling.selection.items.len() {
                    return node.api.slice(Box::new(move |node| node.range_values(telling)));
                }
                let Telling { ranging, selection, kvs, revision } = telling;
                ranging.answer.send(Ok(RangeAnswer {
                    revision: revision as i64,
                    kvs,
                    more: selection.more,
                    count: selection.count as i64,
                }));
            }),
        );
    }

    /// PROTOCOL 9.8-c: a version of a named revision that is gone was compacted; the newest state is looked at anew.
    fn range_lost(&mut self, ranging: Ranging, lost: Lost) {
        let Ranging { who, range, serializable, answer, tries, .. } = ranging;
        match lost {
            Lost::Gone if range.revision > 0 => {
                answer.send(Err(self.refusal(Refusal::Compacted)));
            }
            Lost::Gone if tries < TRIES_MAX => {
                let tries = tries + 1;
                let _reading = None;
                self.range_again(Ranging { who, range, serializable, answer, tries, _reading });
            }
            Lost::Gone => answer.send(Err(replaced())),
            Lost::Failed(error) => answer.send(Err(error)),
        }
    }

    /// The hash of the history, slice by slice.
    pub(super) fn hash_kv(&mut self, who: &Who, revision: i64, answer: Answer<HashAnswer>) {
        match self.may_administer(who) {
            Ok(()) => self.hash_again(revision, answer, 0),
            Err(error) => answer.send(Err(error)),
        }
    }

    fn hash_again(&mut self, revision: i64, answer: Answer<HashAnswer>, tries: u32) {
        let asked = u64::try_from(revision).unwrap_or(0);
        match self.machine.begin_hashing(asked) {
            Ok(hashing) => self.hash_slice(revision, hashing, answer, tries),
            Err(reason) => answer.send(Err(self.refusal(reason))),
        }
    }

    fn hash_slice(
        &mut self,
        revision: i64,
        mut hashing: Hashing,
        answer: Answer<HashAnswer>,
        tries: u32,
    ) {
        if self.machine.is_restoring() {
            return answer.send(Err(self.refusal(Refusal::Restoring)));
        }
        self.counts.slices += 1;
        match self.machine.go_on_hashing(&mut hashing, SLICE) {
            Ok(Some(hash)) => answer.send(Ok(HashAnswer {
                revision: self.machine.revision() as i64,
                hash,
                compact_revision: self.compact_revision(),
                hash_revision: hashing.revision() as i64,
            })),
            Ok(None) => self.api.slice(Box::new(move |node| {
                node.hash_slice(revision, hashing, answer, tries);
            })),
            Err(_) if tries < TRIES_MAX => self.hash_again(revision, answer, tries + 1),
            Err(_) => answer.send(Err(Error::Unavailable(
                "the history is compacted whenever it is hashed; try again".into(),
            ))),
        }
    }

    /// A transaction of nothing but ranges: one state for all of it.
    pub(super) fn read_txn(
        &mut self,
        who: Who,
        txn: Txn,
        serializable: bool,
        answer: Answer<TxnAnswer>,
        tries: u32,
    ) {
        self.counts.reads += 1;
        if serializable {
            return self.read_txn_here(who, txn, serializable, answer, tries);
        }
        self.at_pin(Box::new(move |node, pinned| match pinned {
            Ok(()) => node.read_txn_here(who, txn, serializable, answer, tries),
            Err(error) => answer.send(Err(error)),
        }));
    }

    fn read_txn_here(
        &mut self,
        who: Who,
        txn: Txn,
        serializable: bool,
        answer: Answer<TxnAnswer>,
        tries: u32,
    ) {
        self.with_evidence(
            txn,
            Box::new(move |node, prepared| {
                let (txn, asked) = match prepared {
                    Ok(prepared) => prepared,
                    Err((txn, Lost::Gone)) if tries < TRIES_MAX => {
                        return node.read_txn(who, txn, serializable, answer, tries + 1);
                    }
                    Err((_, Lost::Gone)) => return answer.send(Err(replaced())),
                    Err((_, Lost::Failed(error))) => return answer.send(Err(error)),
                };
                if node.machine.is_restoring() {
                    return answer.send(Err(node.refusal(Refusal::Restoring)));
                }
                let asked = node.build_read(&txn, &asked);
                let allowed = node.permit(&who).and_then(|permit| {
                    node.machine.permits_txn(&permit, &asked).map_err(Error::Auth)
                });
                if let Err(error) = allowed {
                    return answer.send(Err(error));
                }
                let revision = node.machine.revision();
                let report = match node.machine.read_txn(&asked) {
                    Ok(report) => report,
                    Err(Refusal::Unresolved) if tries < TRIES_MAX => {
                        return node.read_txn(who, txn, serializable, answer, tries + 1);
                    }
                    Err(reason) => return answer.send(Err(node.refusal(reason))),
                };
                let wanted = super::txn::wanted(&txn, &report);
                let named = super::txn::names_revision(&txn);
                node.gather(
                    wanted.iter(),
                    Box::new(move |node, gathered| match gathered {
                        Ok(values) => {
                            answer.send(Ok(txn_answer(revision, &txn, report, &values)));
                        }
                        Err(Lost::Gone) if named => {
                            answer.send(Err(node.refusal(Refusal::Compacted)));
                        }
                        Err(Lost::Gone) if tries < TRIES_MAX => {
                            node.read_txn(who, txn, serializable, answer, tries + 1);
                        }
                        Err(Lost::Gone) => answer.send(Err(replaced())),
                        Err(Lost::Failed(error)) => answer.send(Err(error)),
                    }),
                );
            }),
        );
    }
}

pub(super) fn order_by_value(selection: &mut Selection, values: &super::gather::Values) {
    let ties = selection.ties();
    let bytes: Vec<bytes::Bytes> =
        ties.iter().map(|&place| values.bytes(&selection.items[place].content)).collect();
    selection.order_by_value(|place| {
        let known = ties.binary_search(&place).expect("only values that tie are looked at");
        &bytes[known]
    });
}

fn replaced() -> Error {
    Error::Unavailable("the values were replaced whenever they were fetched; try again".into())
}
