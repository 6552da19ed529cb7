//! New values are cut into fewer fragments while nodes are missing (PROTOCOL 9.6).
//!
//! Purpose: with `a` members away each new value has `a` holders fewer, and can lose `a` fewer of them. A node
//! that is asked to keep the margin cuts what it writes into k-a data fragments instead of k meanwhile: they
//! are longer, and a value can be put together from `a` fewer. When all members are back, what was cut
//! so is stored again in k fragments, by what re-codes values after a change of the members (`recode`).
//!
//! Invariant: the thresholds are those of the configuration, whatever a value is cut into: a decided batch
//! has k+f holders. Who counts as missing has no other effect than on the code of what is written here.
//! What would break it: a code that is not in the value's meta, or one with more data fragments than the
//! configuration has.

use crate::config::NodeConfig;
use crate::node::Node;
use crate::status::MarginStatus;
use racos_machine::{MEMBERS_MAX, Op, Value, ValueUse};
use racos_net::Link;
use racos_protocol::{Nanos, NodeSet};
use racos_storage::device::Device;

/// Who is missing is looked at so often in the time that a node must not have been heard for, and so many looks
/// in a row must say another thing for it to be missing, or back: nobody is to write everything twice
/// because a node comes and goes.
const LOOKS: u8 = 3;

/// Who is missing, and what was cut into fewer fragments for that.
#[derive(Debug)]
pub(crate) struct Margin {
    is_kept: bool,
    /// Somebody wants to know who is missing.
    looks: bool,
    /// By number of the node: looks that did not find it, less those that did.
    away: [u8; MEMBERS_MAX],
    missing: NodeSet,
    look_at: Nanos,
    /// There may be values in fewer fragments: the table is to be gone over.
    pub is_owed: bool,
    /// Met in the round that goes on, and in the last one.
    pub met: u64,
    pub left: u64,
}

impl Margin {
    pub fn new(config: &NodeConfig) -> Margin {
        let is_kept = config.keeps_margin;
        let looks = is_kept || config.bounds.hosting_bytes_max > 0;
        let (away, missing) = ([0; MEMBERS_MAX], NodeSet::EMPTY);
        // What was written before the start.
        Margin { is_kept, looks, away, missing, look_at: 0, is_owed: is_kept, met: 0, left: 0 }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.looks.then_some(self.look_at)
    }

    /// Members that were not heard for long, if anybody wants to know.
    pub fn missing(&self) -> NodeSet {
        self.missing
    }

    /// Another look at who is heard.
    fn look(&mut self, others: NodeSet, heard: impl Fn(u8) -> bool) {
        for node in 0..MEMBERS_MAX as u8 {
            let away = &mut self.away[usize::from(node)];
            *away = match others.contains(node) && !heard(node) {
                true => (*away + 1).min(LOOKS),
                false => away.saturating_sub(1),
            };
            match *away {
                LOOKS if others.contains(node) => self.missing.insert(node),
                0 => self.missing.remove(node),
                _ if !others.contains(node) => self.missing.remove(node),
                _ => {}
            }
        }
    }

    /// PROTOCOL 9.6-a: data fragments of what is written now, of `k` that the configuration has.
    pub fn width(&self, k: usize) -> usize {
        let missing = if self.is_kept { self.missing.len() } else { 0 };
        k.saturating_sub(missing).max(1)
    }

    /// Whether values in fewer fragments are to be stored again now.
    pub fn is_due(&self) -> bool {
        self.is_owed && self.missing.is_empty()
    }

    /// A round over the table has ended.
    pub fn end_round(&mut self) {
        self.left = std::mem::take(&mut self.met);
        self.is_owed = self.left > 0;
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Looks now and then who is missing, and has what comes cut accordingly.
    pub(crate) fn margin_turn(&mut self) {
        if !self.margin.looks || self.now < self.margin.look_at {
            return;
        }
        let silent = self.config.bounds.missing_ns;
        self.margin.look_at = self.now + silent / Nanos::from(LOOKS);
        let mut others = self.members();
        others.remove(self.me);
        let heard: Vec<bool> =
            (0..MEMBERS_MAX as u8).map(|node| self.heard_within(node, silent)).collect();
        let before = self.margin.missing;
        self.margin.look(others, |node| heard[usize::from(node)]);
        let are_back = self.margin.missing.is_empty() && !before.is_empty();
        self.margin.is_owed |= self.margin.is_kept && are_back;
        let k = self.core.newest().thresholds.k;
        let width = if mutant!("no margin kept") { k } else { self.margin.width(k) };
        self.builder.set_width(width);
    }

    /// Whether a value, which is not whole at every node because it is small, lies in fewer data fragments than the
    /// newest members have.
    pub(crate) fn is_narrow(&self, value: &Value) -> bool {
        let Some(newest) = self.machine.members().newest() else { return false };
        let is_inline = value.k == 1 && value.len as usize <= self.config.inline_bytes_max;
        value.layout == newest.number && value.k < newest.data && !is_inline && value.len > 0
    }

    /// The same of one that versions use, so that it may be re-coded.
    pub(crate) fn is_owed_again(&self, used: &ValueUse) -> bool {
        used.uses > 0 && self.is_narrow(&used.value)
    }

    /// An operation was executed, here or by another node that misses somebody.
    pub(crate) fn note_width(&mut self, op: &Op) {
        if self.margin.is_kept && !self.margin.is_owed {
            let mut is_owed = false;
            op.each_value(&mut |value| is_owed |= self.is_narrow(value));
            self.margin.is_owed = is_owed;
        }
    }

    pub(crate) fn margin_status(&self) -> MarginStatus {
        MarginStatus {
            is_kept: self.margin.is_kept,
            missing: self.margin.missing.iter().collect(),
            k: self.builder.width(),
            left: self.margin.left,
            hosted: self.hosting.len() as u64,
            hosted_bytes: self.hosting.bytes(),
            handed_over: self.hosting.handed_over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Margin {
        let mut config = NodeConfig::new(1, 0, Vec::new(), 1, 3);
        config.keeps_margin = true;
        Margin::new(&config)
    }

    fn missing(margin: &Margin) -> Vec<u8> {
        margin.missing.iter().collect()
    }

    /// tests PROTOCOL 9.6-a
    #[test]
    fn a_node_is_missing_after_some_looks_and_back_after_as_many() {
        let mut margin = kept();
        let others = NodeSet(0b11110);
        let (all, without_4) = (|_| true, |node| node != 4);
        (1..LOOKS).for_each(|_| margin.look(others, without_4));
        margin.look(others, all);
        margin.look(others, without_4);
        assert_eq!((missing(&margin).len(), margin.width(3)), (0, 3), "it came and went");
        margin.look(others, without_4);
        assert_eq!((missing(&margin), margin.width(3)), (vec![4], 2));
        margin.end_round();
        margin.is_owed = true;
        assert!(!margin.is_due(), "what is written now is not stored again now");
        (1..LOOKS).for_each(|_| margin.look(others, all));
        assert_eq!(missing(&margin), vec![4], "it may go again");
        margin.look(others, all);
        assert_eq!((missing(&margin).len(), margin.width(3)), (0, 3));
        assert!(margin.is_due());
    }

    /// tests PROTOCOL 9.6-a
    #[test]
    fn one_fragment_is_the_least_and_who_is_no_member_is_not_missed() {
        let mut margin = kept();
        (0..LOOKS).for_each(|_| margin.look(NodeSet(0b11110), |node| node == 1));
        assert_eq!((missing(&margin), margin.width(3), margin.width(5)), (vec![2, 3, 4], 1, 2));
        margin.look(NodeSet(0b00110), |node| node == 1);
        assert_eq!(missing(&margin), vec![2], "the others have left");
    }
}
