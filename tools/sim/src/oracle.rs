//! What must hold of the nodes: agreement, equal states, each write applied once.
//!
//! Purpose: told of every slot that any node executes, at start-up or while running, it compares
//! each with what the first node to execute that slot did.
//! Invariant checked: all nodes execute the same value with the same outcomes to the same state
//! hash in every slot; no session number and no put is applied twice.

use crate::content::{Contents, KeyId};
use racos_engine::Observer;
use racos_machine::{Action, Content, Machine, Op, Outcome, SessionId, Value as Stored};
use racos_protocol::{Slot, Value};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What the first node to execute a slot did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    value: Value,
    outcomes: u64,
    state: u128,
}

/// What a revision of the store did: the put of this number, or a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub key: KeyId,
    pub put: Option<u64>,
}

/// Everything that was executed anywhere.
#[derive(Default)]
pub struct Oracle {
    slots: Vec<Seen>,
    revisions: BTreeMap<u64, Change>,
    stamps: BTreeSet<(SessionId, u64)>,
    puts: BTreeMap<(KeyId, u64), Slot>,
    /// Revisions made by operations of guests.
    others: usize,
    /// Values that were re-coded, and RECODEs that were void.
    recoded: [u64; 2],
    problem: Option<String>,
}

impl Oracle {
    /// What is wrong, if anything is.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Slots executed by the node that is furthest.
    pub fn slots(&self) -> Slot {
        self.slots.len() as Slot
    }

    /// Slots that hold a batch.
    pub fn batches(&self) -> usize {
        self.slots.iter().filter(|seen| seen.value != Value::Null).count()
    }

    /// What made this revision, if a node has executed it.
    pub fn change(&self, revision: u64) -> Option<Change> {
        self.revisions.get(&revision).copied()
    }

    /// Revisions made so far.
    pub fn changes(&self) -> usize {
        self.revisions.len() + self.others
    }

    /// Values that were re-coded, and RECODEs that came too late.
    pub fn recoded(&self) -> [u64; 2] {
        self.recoded
    }

    pub fn fail(&mut self, what: String) {
        self.problem.get_or_insert(what);
    }

    fn note(&mut self, op: &Op, slot: Slot, outcome: &Outcome, contents: &Contents) {
        if let Action::Recode { .. } = op.action {
            self.recoded[usize::from(outcome.done().is_none())] += 1;
        }
        let Outcome::Applied(done) = outcome else { return };
        if let Some(stamp) = op.stamp
            // PROTOCOL 11-e
            && !self.stamps.insert((stamp.session, stamp.sequence))
        {
            let (session, number) = (stamp.session, stamp.sequence);
            self.fail(format!("slot {slot}: number {number} of session {session} applied twice"));
        }
        let change = match &op.action {
            Action::Put { key, content } => {
                let Some(key) = contents.key_id(key) else {
                    return self.fail(format!("slot {slot}: a put of a key that nobody wrote"));
                };
                let Some(put) = number_of(content, key, contents) else {
                    return self.fail(format!("slot {slot}: a put of bytes that nobody wrote"));
                };
                // PROTOCOL 3.1-b, 11-d: no put takes effect twice.
                if let Some(before) = self.puts.insert((key, put), slot) {
                    let name = contents.name(key);
                    self.fail(format!("put {put} of {name} applied in slots {before} and {slot}"));
                }
                Change { key, put: Some(put) }
            }
            Action::Delete { key } if done.changes > 0 => {
                let Some(key) = contents.key_id(key) else {
                    return self.fail(format!("slot {slot}: a delete of a key that nobody wrote"));
                };
                Change { key, put: None }
            }
            Action::Txn(_) | Action::LeaseRevoke { .. } | Action::LeaseExpire { .. } => {
                self.others += usize::from(done.changes > 0);
                return;
            }
            _ => return,
        };
        if let Some(before) = self.revisions.insert(done.revision, change) {
            let revision = done.revision;
            self.fail(format!("revision {revision} made by {before:?} and by {change:?}"));
        }
    }
}

fn number_of(content: &Content, key: KeyId, contents: &Contents) -> Option<u64> {
    let (first, len) = match content {
        Content::Whole(value) => (value, value.len as usize),
        Content::Stripes(stripes) => {
            let len = stripes.iter().map(|stripe: &Stored| stripe.len as usize).sum();
            (stripes.first()?, len)
        }
    };
    contents.find(key, len, &first.head)
}

/// One node's reports to the oracle.
pub struct Witness {
    node: usize,
    oracle: Rc<RefCell<Oracle>>,
    contents: Rc<RefCell<Contents>>,
    outcomes: u64,
}

impl Witness {
    pub fn new(
        node: usize,
        oracle: Rc<RefCell<Oracle>>,
        contents: Rc<RefCell<Contents>>,
    ) -> Witness {
        Witness { node, oracle, contents, outcomes: 0 }
    }
}

impl Observer for Witness {
    fn applied(&mut self, slot: Slot, position: u32, op: &Op, outcome: &Outcome) {
        let changes = outcome.done().map_or(u64::MAX, |done| u64::from(done.changes));
        for word in [u64::from(position), op.id.0 as u64, outcome.revision(), changes] {
            self.outcomes = (self.outcomes ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let mut oracle = self.oracle.borrow_mut();
        if oracle.slots() == slot {
            oracle.note(op, slot, outcome, &self.contents.borrow());
        }
    }

    fn executed(&mut self, slot: Slot, value: Value, machine: &Machine) {
        let outcomes = std::mem::take(&mut self.outcomes);
        let seen = Seen { value, outcomes, state: machine.state_hash() };
        let mut oracle = self.oracle.borrow_mut();
        let node = self.node;
        // PROTOCOL 3.2-d, 7-a, 7-c, 7-d, 9.1-i: in order, the same everywhere, after a restart too.
        match oracle.slots.get(slot as usize).copied() {
            None if slot == oracle.slots() => oracle.slots.push(seen),
            None => oracle.fail(format!("node {node} executed slot {slot} before those below it")),
            Some(first) if first == seen => {}
            Some(first) if first.value != value => oracle.fail(format!(
                "agreement: node {node} executed {value:?} in slot {slot}, another {:?}",
                first.value
            )),
            Some(_) => oracle.fail(format!(
                "equal states: node {node} differs from the first to execute slot {slot}"
            )),
        }
    }

    fn loaded(&mut self, exec: Slot, machine: &Machine) {
        let mut oracle = self.oracle.borrow_mut();
        let (node, state) = (self.node, machine.state_hash());
        let before = (exec as usize).checked_sub(1).and_then(|slot| oracle.slots.get(slot));
        // PROTOCOL 9.2-a, 9.3-e: as if every slot below had been executed here.
        match before.map(|seen| seen.state == state) {
            Some(true) => {}
            Some(false) => {
                oracle.fail(format!("equal states: node {node} loaded another of {exec}"))
            }
            None => {
                oracle.fail(format!("node {node} loaded a state of {exec}, which nobody executed"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fixed, Plan};
    use racos_machine::{Limits, OpId, Stamp};

    struct Watch {
        oracle: Rc<RefCell<Oracle>>,
        contents: Rc<RefCell<Contents>>,
        machine: Machine,
    }

    impl Watch {
        fn new() -> Watch {
            let plan = Plan::draw(1, &Fixed::default());
            let contents = Rc::new(RefCell::new(Contents::new(&plan.work)));
            let oracle = Rc::default();
            Watch { oracle, contents, machine: Machine::new(Limits::default()) }
        }

        fn witness(&self, node: usize) -> Witness {
            Witness::new(node, self.oracle.clone(), self.contents.clone())
        }

        fn put(&self, counter: u64, stamp: Option<Stamp>) -> Op {
            let (_, bytes) = self.contents.borrow_mut().new_put(0, 20);
            let id = OpId::new(0, 1, 1, counter);
            let head = bytes[..8].try_into().unwrap();
            let value =
                Stored { op: id, len: 20, digest: [0; 16], crc: 0, head, k: 1, n: 1, layout: 0 };
            let key = self.contents.borrow().key(0).into();
            Op {
                id,
                author: None,
                stamp,
                action: Action::Put { key, content: Content::Whole(value) },
            }
        }

        fn execute(&mut self, witness: &mut Witness, slot: Slot, op: &Op) {
            let outcome = self.machine.apply(slot, 0, op);
            witness.applied(slot, 0, op, &outcome);
            witness.executed(slot, Value::Batch(u128::from(slot) + 1), &self.machine);
        }

        fn problem(&self) -> String {
            self.oracle.borrow().problem().unwrap_or("none").to_owned()
        }
    }

    #[test]
    fn equal_executions_are_in_order_and_found_again_by_revision() {
        let (mut watch, mut other) = (Watch::new(), Machine::new(Limits::default()));
        let (mut first, mut second) = (watch.witness(0), watch.witness(1));
        let op = watch.put(1, None);
        watch.execute(&mut first, 0, &op);
        let outcome = other.apply(0, 0, &op);
        second.applied(0, 0, &op, &outcome);
        second.executed(0, Value::Batch(1), &other);
        assert_eq!(watch.problem(), "none");
        let change = Change { key: 0, put: Some(1) };
        assert_eq!(watch.oracle.borrow().change(outcome.revision()), Some(change));
    }

    #[test]
    fn two_values_in_a_slot_are_a_problem() {
        let watch = Watch::new();
        watch.witness(0).executed(0, Value::Null, &watch.machine);
        watch.witness(1).executed(0, Value::Batch(1), &watch.machine);
        assert!(watch.problem().starts_with("agreement"), "{}", watch.problem());
    }

    #[test]
    fn another_state_after_the_same_slot_is_a_problem() {
        let mut watch = Watch::new();
        let op = watch.put(1, None);
        watch.execute(&mut watch.witness(0), 0, &op);
        watch.witness(1).executed(0, Value::Batch(1), &Machine::new(Limits::default()));
        assert!(watch.problem().starts_with("equal states"), "{}", watch.problem());
    }

    #[test]
    fn a_put_applied_twice_is_a_problem() {
        let mut watch = Watch::new();
        let mut witness = watch.witness(0);
        let op = watch.put(1, None);
        let again = Op { id: OpId::new(0, 1, 1, 2), ..op.clone() };
        let mut again = again;
        if let Action::Put { content: Content::Whole(value), .. } = &mut again.action {
            value.op = again.id;
        }
        watch.execute(&mut witness, 0, &op);
        watch.execute(&mut witness, 1, &again);
        assert!(watch.problem().contains("applied in slots 0 and 1"), "{}", watch.problem());
    }
}
