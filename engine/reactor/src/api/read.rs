//! Ranges and transactions that only read.

use super::convert::{range_answer, select};
use super::gather::Lost;
use super::pending::Answer;
use super::txn::txn_answer;
use super::types::*;
use crate::node::Node;
use racos_machine::{Content, Refusal, Selection};
use racos_net::Link;
use racos_storage::device::Device;

/// A read whose values keep being replaced while they are fetched is given up after so many tries.
const TRIES_MAX: u32 = 16;

impl<L: Link, D: Device> Node<L, D> {
    pub(super) fn range(&mut self, range: Range, serializable: bool, answer: Answer<RangeAnswer>) {
        self.range_again(range, serializable, answer, 0);
    }

    fn range_again(
        &mut self,
        range: Range,
        serializable: bool,
        answer: Answer<RangeAnswer>,
        tries: u32,
    ) {
        self.counts.reads += 1;
        if serializable {
            return self.range_here(range, serializable, answer, tries);
        }
        self.at_pin(Box::new(move |node, pinned| match pinned {
            Ok(()) => node.range_here(range, serializable, answer, tries),
            Err(error) => answer.send(Err(error)),
        }));
    }

    fn range_here(
        &mut self,
        range: Range,
        serializable: bool,
        answer: Answer<RangeAnswer>,
        tries: u32,
    ) {
        if self.machine.is_restoring() {
            return answer.send(Err(self.refusal(Refusal::Restoring)));
        }
        let revision = self.machine.revision();
        let mut selection = match self.machine.select(&select(&range)) {
            Ok(selection) => selection,
            Err(reason) => return answer.send(Err(self.refusal(reason))),
        };
        let ties = selection.ties();
        if ties.is_empty() {
            selection.order_by_value(|_| unreachable!("no two values tie"));
            return self.range_values(range, serializable, answer, tries, revision, selection);
        }
        let wanted: Vec<Content> =
            ties.iter().map(|&place| selection.items[place].content.clone()).collect();
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| {
                let values = match gathered {
                    Ok(values) => values,
                    Err(lost) => return node.range_lost(range, serializable, answer, tries, lost),
                };
                order_by_value(&mut selection, &values);
                node.range_values(range, serializable, answer, tries, revision, selection);
            }),
        );
    }

    fn range_values(
        &mut self,
        range: Range,
        serializable: bool,
        answer: Answer<RangeAnswer>,
        tries: u32,
        revision: u64,
        selection: Selection,
    ) {
        let wanted: Vec<Content> = match range.keys_only {
            true => Vec::new(),
            false => selection.items.iter().map(|item| item.content.clone()).collect(),
        };
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| match gathered {
                Ok(values) => {
                    answer.send(Ok(range_answer(revision, &selection, range.keys_only, &values)));
                }
                Err(lost) => node.range_lost(range, serializable, answer, tries, lost),
            }),
        );
    }

    /// A version of a named revision that is gone was compacted; the newest state is looked at anew.
    fn range_lost(
        &mut self,
        range: Range,
        serializable: bool,
        answer: Answer<RangeAnswer>,
        tries: u32,
        lost: Lost,
    ) {
        match lost {
            Lost::Gone if range.revision > 0 => {
                answer.send(Err(self.refusal(Refusal::Compacted)));
            }
            Lost::Gone if tries < TRIES_MAX => {
                self.range_again(range, serializable, answer, tries + 1);
            }
            Lost::Gone => answer.send(Err(replaced())),
            Lost::Failed(error) => answer.send(Err(error)),
        }
    }

    /// A transaction of nothing but ranges: one state for all of it.
    pub(super) fn read_txn(
        &mut self,
        txn: Txn,
        serializable: bool,
        answer: Answer<TxnAnswer>,
        tries: u32,
    ) {
        self.counts.reads += 1;
        if serializable {
            return self.read_txn_here(txn, serializable, answer, tries);
        }
        self.at_pin(Box::new(move |node, pinned| match pinned {
            Ok(()) => node.read_txn_here(txn, serializable, answer, tries),
            Err(error) => answer.send(Err(error)),
        }));
    }

    fn read_txn_here(
        &mut self,
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
                        return node.read_txn(txn, serializable, answer, tries + 1);
                    }
                    Err((_, Lost::Gone)) => return answer.send(Err(replaced())),
                    Err((_, Lost::Failed(error))) => return answer.send(Err(error)),
                };
                if node.machine.is_restoring() {
                    return answer.send(Err(node.refusal(Refusal::Restoring)));
                }
                let asked = node.build_read(&txn, &asked);
                let revision = node.machine.revision();
                let report = match node.machine.read_txn(&asked) {
                    Ok(report) => report,
                    Err(Refusal::Unresolved) if tries < TRIES_MAX => {
                        return node.read_txn(txn, serializable, answer, tries + 1);
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
                            node.read_txn(txn, serializable, answer, tries + 1);
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
