//! What must hold at every step of every run, whatever is lost, cut or late.
//!
//! It sees all nodes at once, survives every restart, and panics with what was broken.

use racos_protocol::{BatchInfo, Class, Digest, Node, NodeSet, Slot, Thresholds, Value};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
struct Opened {
    batch: BatchInfo,
    /// Highest slot acknowledged before this one was opened.
    floor: Option<Slot>,
}

#[derive(Clone, Debug)]
pub struct Oracle {
    pub t: Thresholds,
    pub decided: BTreeMap<Slot, Value>,
    opened: BTreeMap<Slot, Opened>,
    skipped: BTreeSet<Slot>,
    /// Nodes whose HOLD of the slot is or was flushed.
    holders: BTreeMap<Slot, NodeSet>,
    /// Nodes whose disks are lost for ever.
    lost: NodeSet,
    pub acknowledged: BTreeSet<Slot>,
    /// By node that answered its client.
    pub writes: BTreeMap<Node, usize>,
    acknowledged_max: Option<Slot>,
    /// By key hash: highest slot that a read of the key must see.
    key_floor: BTreeMap<u64, Slot>,
    pub reads: u64,
    pub applied: u64,
    pub is_queue: bool,
    /// Operations that wait for a slot, or have one; which; who has proposed and stored them.
    offered: BTreeMap<Digest, Opened>,
    placed: BTreeMap<Digest, Slot>,
    proposed: BTreeMap<(Slot, Digest), NodeSet>,
    stored: BTreeMap<Digest, NodeSet>,
}

impl Oracle {
    pub fn new(t: Thresholds) -> Oracle {
        Oracle {
            t,
            decided: BTreeMap::new(),
            opened: BTreeMap::new(),
            skipped: BTreeSet::new(),
            holders: BTreeMap::new(),
            lost: NodeSet::EMPTY,
            acknowledged: BTreeSet::new(),
            writes: BTreeMap::new(),
            is_queue: false,
            offered: BTreeMap::new(),
            placed: BTreeMap::new(),
            proposed: BTreeMap::new(),
            stored: BTreeMap::new(),
            acknowledged_max: None,
            key_floor: BTreeMap::new(),
            reads: 0,
            applied: 0,
        }
    }

    /// PROTOCOL 4.3-b, 4.3-g, 6.1-a, 6.1-l.
    pub fn opens(&mut self, node: Node, slot: Slot, batch: BatchInfo, reserved: Slot) {
        assert!(slot % self.t.n as Slot == Slot::from(node), "node {node} opened slot {slot}");
        assert!(slot < reserved, "slot {slot} opened, reserved to {reserved}");
        assert!(!self.skipped.contains(&slot), "slot {slot} opened after it was skipped");
        let fresh = Opened { batch, floor: self.acknowledged_max };
        assert!(self.opened.insert(slot, fresh).is_none(), "slot {slot} opened twice");
    }

    /// PROTOCOL 4.3-c, 4.3-h, 6.1-j, 6.1-m.
    pub fn skips(&mut self, node: Node, from: Slot, to: Slot, reserved: Slot) {
        assert!(from % self.t.n as Slot == Slot::from(node), "node {node} skipped slot {from}");
        for slot in (from..to).step_by(self.t.n) {
            assert!(slot < reserved, "slot {slot} skipped, reserved to {reserved}");
            assert!(!self.opened.contains_key(&slot), "slot {slot} skipped after it was opened");
            self.skipped.insert(slot);
        }
    }

    /// Queue policy: a client's operation is accepted.
    pub fn offers(&mut self, batch: BatchInfo) {
        let fresh = Opened { batch: batch.clone(), floor: self.acknowledged_max };
        assert!(self.offered.insert(batch.digest, fresh).is_none(), "an op id is used once");
    }

    /// A node has its fragment of an operation durably.
    pub fn stores(&mut self, node: Node, candidate: Digest) {
        self.stored.entry(candidate).or_default().insert(node);
    }

    /// PROTOCOL 6.4-d: a PROPOSE became durable: of what is in no lower slot.
    pub fn proposes(&mut self, node: Node, slot: Slot, candidate: Digest) {
        let lower = self.placed.get(&candidate).filter(|placed| **placed < slot);
        assert_eq!(lower, None, "node {node} proposes again in slot {slot} what is in the log");
        self.proposed.entry((slot, candidate)).or_default().insert(node);
    }

    /// PROTOCOL 6.4-d, 6.4-f: one operation a slot, each in one; a majority has proposed it, and D nodes
    /// have stored it.
    fn places(&mut self, slot: Slot, candidate: Digest) {
        let offered = self.offered.get(&candidate).expect("a slot holds what a client asked for");
        self.opened.insert(slot, offered.clone());
        let before = self.placed.insert(candidate, slot);
        assert_eq!(before, None, "slot {slot} holds an operation that is in the log");
        let proposed = self.proposed.get(&(slot, candidate)).copied().unwrap_or_default().len();
        let least = self.t.least_proposals(Class::Ready);
        assert!(proposed >= least, "slot {slot} is decided by {proposed} proposals");
        let stored = self.stored.get(&candidate).copied().unwrap_or_default();
        assert!(stored.len() >= self.t.durable, "slot {slot} is stored at {stored:?}");
        self.holders.insert(slot, stored);
    }

    pub fn holds(&mut self, node: Node, slot: Slot) {
        self.holders.entry(slot).or_default().insert(node);
    }

    /// The disk of a node is gone.
    pub fn wiped(&mut self, node: Node) {
        self.lost.insert(node);
    }

    /// Nodes that ever held the slot durably.
    fn ever_held(&self, slot: Slot) -> usize {
        self.holders.get(&slot).copied().unwrap_or_default().len()
    }

    /// Nodes that hold the slot durably and have not lost it.
    pub fn holders(&self, slot: Slot) -> NodeSet {
        self.holders.get(&slot).copied().unwrap_or_default().without(self.lost)
    }

    /// PROTOCOL 6.1-a, 6.2-f, 7-f, 9.1-i. A node executes a slot, for the first time or again after
    /// a restart.
    pub fn applies(&mut self, node: Node, slot: Slot, value: Value) {
        self.applied += 1;
        if let Some(known) = self.decided.get(&slot) {
            assert_eq!(*known, value, "two decisions of slot {slot}, the second at node {node}");
            return;
        }
        self.decided.insert(slot, value);
        let Value::Batch(digest) = value else { return };
        if self.is_queue {
            self.places(slot, digest);
        }
        let opened = self.opened.get(&slot).unwrap_or_else(|| panic!("slot {slot} has no owner"));
        assert_eq!(
            opened.batch.digest, digest,
            "slot {slot} holds a batch that was not opened in it"
        );
        let holders = self.ever_held(slot);
        // Of an assigned batch this counts who proposed it; that it is stored came before.
        let proposals = self.t.least_proposals(Class::of(digest));
        let least = if self.is_queue { self.t.durable } else { proposals };
        assert!(holders >= least, "slot {slot} is decided with {holders} holders");
        assert!(
            opened.floor < Some(slot),
            "slot {slot} was opened after slot {:?} had been acknowledged",
            opened.floor
        );
    }

    /// The owner replies to its clients: its batch is executed there.
    pub fn acknowledges(&mut self, node: Node, slot: Slot) {
        *self.writes.entry(node).or_default() += 1;
        let holders = self.ever_held(slot);
        let is_assigned = Class::of(self.opened[&slot].batch.digest) == Class::Ready;
        let least = if is_assigned && !self.is_queue { 0 } else { self.t.durable };
        assert!(holders >= least, "slot {slot} is acknowledged with {holders} holders");
        self.acknowledged.insert(slot);
        self.acknowledged_max = self.acknowledged_max.max(Some(slot));
        for key in self.opened[&slot].batch.touches.clone().iter() {
            self.shown(*key, slot);
        }
    }

    /// A read has shown, or a reply has promised, this slot to somebody.
    fn shown(&mut self, key: u64, slot: Slot) {
        let floor = self.key_floor.entry(key).or_insert(slot);
        *floor = (*floor).max(slot);
    }

    /// A read of the key that begins now must see this slot.
    pub fn read_floor(&self, key: u64) -> Option<Slot> {
        self.key_floor.get(&key).copied()
    }

    /// PROTOCOL 8.1-a, 8.1-k. A read showed the state after all slots below `prefix`.
    pub fn read_ends(&mut self, key: u64, floor: Option<Slot>, prefix: Slot) {
        assert!(
            floor.is_none_or(|floor| floor < prefix),
            "a read of key {key} shows slots below {prefix} and misses slot {floor:?}"
        );
        self.reads += 1;
        let mut below = self.decided.range(..prefix).rev();
        let last = below
            .find(|(slot, value)| **value != Value::Null && self.opened[slot].batch.touches(key));
        if let Some((last, _)) = last {
            self.shown(key, *last);
        }
    }

    pub fn opened(&self) -> impl Iterator<Item = Slot> + '_ {
        self.opened.keys().copied()
    }
}
