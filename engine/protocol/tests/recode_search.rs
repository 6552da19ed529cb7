//! Exhaustive search of re-coding (PROTOCOL 10), as a model of its own: one key and another that shares its
//! values; puts, deletes, a compaction and RECODEs decided in every order, nodes that execute them as late
//! as they like, and a reader who has seen a version at any node, at any time.
//!
//! Invariant: but for who stored them, all versions are those of the same log without its RECODEs; what the
//! newest state names is held by every node; and a reader gets the bytes of the revision that it saw, or
//! finds that it was compacted. Each rule that a mutant leaves out must be refuted.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

const NODES: usize = 2;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// The digest is not looked at.
    AnyBytes,
    /// It counts as a write.
    AsWrite,
    /// Old versions keep the old operation.
    NewestOnly,
    /// It goes by the key: whatever its newest version is by then.
    ByKey,
    /// Nobody looks whether the old operation is still there.
    Resurrected,
    /// The old fragments go when RECODE is proposed.
    DroppedEarly,
    /// The fragments that a void RECODE brought stay.
    GarbageKept,
    /// A reader takes GONE for the end of the version.
    ReaderGivesUp,
}

/// Names an operation; and bytes: those that the put of this name brought.
type OpId = u8;
type Bytes = u8;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Op {
    Put(OpId),
    /// The other key gets a version with what the first one's newest names.
    Share,
    Delete,
    /// Of all but the newest versions.
    Compact,
    Recode {
        old: OpId,
        new: OpId,
        bytes: Bytes,
    },
}

/// One version: its revision, and the operation that stored its bytes; none: a tombstone.
type Version = (u8, Option<OpId>);

/// The revisions of a key and their bytes.
type Shown = Vec<(u8, Option<Bytes>)>;

/// What a node has executed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Machine {
    revision: u8,
    compacted: u8,
    keys: [Vec<Version>; 2],
    /// What is in use, and which bytes it is.
    table: BTreeMap<OpId, Bytes>,
    /// Fragments that the log brought to this node.
    held: BTreeSet<OpId>,
}

impl Machine {
    fn push(&mut self, key: usize, op: Option<OpId>) {
        self.revision += 1;
        self.keys[key].push((self.revision, op));
    }

    fn newest(&self) -> Option<OpId> {
        self.keys[0].last().and_then(|(_, op)| *op)
    }

    fn apply(&mut self, op: Op, mutant: Mutant) {
        match op {
            Op::Put(id) => {
                self.held.insert(id);
                self.table.insert(id, id);
                self.push(0, Some(id));
            }
            Op::Share => {
                if let Some(id) = self.newest() {
                    self.push(1, Some(id));
                }
            }
            Op::Delete => {
                if self.newest().is_some() {
                    self.push(0, None);
                }
            }
            Op::Compact => {
                self.compacted = self.revision;
                for versions in &mut self.keys {
                    let old = versions.len().saturating_sub(1);
                    versions.drain(..old);
                    versions.retain(|(_, op)| op.is_some());
                }
            }
            Op::Recode { old, new, bytes } => {
                self.held.insert(new);
                self.recode(old, new, bytes, mutant);
            }
        }
        let named: BTreeSet<OpId> = self.versions().filter_map(|(_, op)| op).collect();
        self.table.retain(|op, _| named.contains(op));
        let void = |id: &OpId| {
            matches!(op, Op::Recode { new, .. } if new == *id) && mutant == Mutant::GarbageKept
        };
        let table = &self.table;
        self.held.retain(|id| table.contains_key(id) || void(id));
    }

    fn versions(&self) -> impl Iterator<Item = Version> + '_ {
        self.keys.iter().flatten().copied()
    }

    fn recode(&mut self, old: OpId, new: OpId, bytes: Bytes, mutant: Mutant) {
        let is_here = self.table.get(&old).copied();
        match is_here {
            None if mutant == Mutant::Resurrected => {
                self.table.insert(new, bytes);
                self.push(0, Some(new));
            }
            None if mutant == Mutant::ByKey => {}
            None => return,
            Some(held) if held != bytes && mutant != Mutant::AnyBytes => return,
            Some(_) => {}
        }
        self.table.insert(new, bytes);
        let last = self.keys[0].len().saturating_sub(1);
        for (key, versions) in self.keys.iter_mut().enumerate() {
            for (at, (_, op)) in versions.iter_mut().enumerate() {
                let is_newest = key == 0 && at == last;
                let follows = match mutant {
                    Mutant::NewestOnly => is_newest && *op == Some(old),
                    Mutant::ByKey => is_newest && op.is_some(),
                    _ => *op == Some(old),
                };
                if follows {
                    *op = Some(new);
                }
            }
        }
        self.revision += u8::from(mutant == Mutant::AsWrite);
    }

    /// What anybody can see: revisions and bytes.
    fn seen(&self) -> (u8, u8, Vec<Shown>) {
        let bytes = |op: OpId| self.table.get(&op).copied().unwrap_or(u8::MAX);
        let versions = |key: &Vec<Version>| {
            key.iter().map(|(revision, op)| (*revision, op.map(bytes))).collect()
        };
        (self.revision, self.compacted, self.keys.iter().map(versions).collect())
    }
}

/// A reader has seen a version at a node, and gets its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Reader {
    node: usize,
    key: usize,
    revision: u8,
    op: OpId,
    bytes: Bytes,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct State {
    log: Vec<Op>,
    exec: [u8; NODES],
    /// RECODEs on their way to a slot.
    proposed: Vec<Op>,
    reader: Option<Reader>,
    next_op: OpId,
    puts: u8,
    recodes: u8,
}

/// How much of each there is.
struct Scope {
    puts: u8,
    recodes: u8,
    log: usize,
}

impl State {
    fn at(&self, exec: u8, mutant: Mutant) -> Machine {
        let mut machine = Machine::default();
        self.log[..usize::from(exec)].iter().for_each(|op| machine.apply(*op, mutant));
        machine
    }

    fn node(&self, node: usize, mutant: Mutant) -> Machine {
        self.at(self.exec[node], mutant)
    }

    /// Whether a node has its fragment: what the log brings is stored before it is decided.
    fn holds(&self, node: usize, op: OpId, mutant: Mutant) -> bool {
        let is_old = |it: &&Op| matches!(it, Op::Recode { old, .. } if *old == op);
        let dropped = mutant == Mutant::DroppedEarly && self.proposed.iter().any(|it| is_old(&it));
        let later = self.log[usize::from(self.exec[node])..].iter();
        let brought = later.into_iter().any(|it| match it {
            Op::Put(id) => *id == op,
            Op::Recode { new, .. } => *new == op,
            _ => false,
        });
        (brought || self.node(node, mutant).held.contains(&op)) && !dropped
    }

    /// Whether what was rightly re-coded is in use still.
    fn is_left(&self, op: Op, machine: &Machine) -> bool {
        let Op::Recode { old, bytes, .. } = op else { return false };
        let brought = self.log.iter().find_map(|it| match *it {
            Op::Put(id) if id == old => Some(id),
            Op::Recode { new, bytes, .. } if new == old => Some(bytes),
            _ => None,
        });
        brought == Some(bytes) && machine.table.contains_key(&old)
    }

    fn check(&self, mutant: Mutant) -> Result<(), String> {
        let plain = |exec: u8| {
            let mut machine = Machine::default();
            let ops = self.log[..usize::from(exec)].iter();
            let ops = ops.filter(|op| !matches!(op, Op::Recode { .. }));
            ops.for_each(|op| machine.apply(*op, Mutant::None));
            machine.seen()
        };
        for node in 0..NODES {
            let machine = self.node(node, mutant);
            if machine.seen() != plain(self.exec[node]) {
                return Err(format!("somebody sees that it was re-coded: {self:?}"));
            }
            let named: BTreeSet<OpId> = machine.versions().filter_map(|(_, op)| op).collect();
            if self.log[..usize::from(self.exec[node])].iter().any(|op| self.is_left(*op, &machine))
            {
                return Err(format!("a re-coded value is left behind: {self:?}"));
            }
            if machine.held != named {
                return Err(format!("fragments that nothing names, or the reverse: {self:?}"));
            }
        }
        let newest = self.at(self.log.len() as u8, mutant);
        for op in newest.table.keys() {
            if (0..NODES).any(|node| !self.holds(node, *op, mutant)) {
                return Err(format!("a value in use is not held: {self:?}"));
            }
        }
        Ok(())
    }

    /// The reader asks for fragments of what it knows; `Err`: what it is told is wrong.
    fn read(&self, reader: Reader, mutant: Mutant) -> Result<State, String> {
        let mut next = self.clone();
        if (0..NODES).all(|node| self.holds(node, reader.op, mutant)) {
            next.reader = None;
            return Ok(next);
        }
        // GONE(x): executed up to x, it looks again.
        if mutant != Mutant::ReaderGivesUp {
            next.exec[reader.node] = *self.exec.iter().max().expect("there are nodes");
        }
        let machine = next.node(reader.node, mutant);
        let versions = &machine.keys[reader.key];
        let shown = versions.iter().rfind(|(revision, _)| *revision <= reader.revision);
        let found = shown.and_then(|(_, op)| *op).filter(|op| *op != reader.op);
        match found {
            Some(op) if mutant != Mutant::ReaderGivesUp => {
                if machine.table.get(&op) != Some(&reader.bytes) {
                    return Err(format!("a reader is given other bytes: {self:?}"));
                }
                next.reader = Some(Reader { op, ..reader });
            }
            _ => {
                let newest = self.at(self.log.len() as u8, Mutant::None);
                if newest.compacted <= reader.revision {
                    return Err(format!("a version that can be read is lost: {self:?}"));
                }
                next.reader = None;
            }
        }
        Ok(next)
    }

    fn next(&self, scope: &Scope, mutant: Mutant) -> Result<Vec<State>, String> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        if self.log.len() < scope.log {
            if self.puts < scope.puts {
                step(&|state| {
                    state.log.push(Op::Put(state.next_op));
                    (state.next_op, state.puts) = (state.next_op + 1, state.puts + 1);
                });
            }
            for op in [Op::Share, Op::Delete, Op::Compact] {
                if !self.log.contains(&op) {
                    step(&|state| state.log.push(op));
                }
            }
            for at in 0..self.proposed.len() {
                step(&|state| {
                    let op = state.proposed.remove(at);
                    state.log.push(op);
                });
            }
        }
        for node in 0..NODES {
            let machine = self.node(node, mutant);
            if usize::from(self.exec[node]) < self.log.len() {
                step(&|state| state.exec[node] += 1);
            }
            for (&old, &bytes) in machine.table.iter().filter(|_| self.recodes < scope.recodes) {
                // What was read is right, or it is not: the table says.
                for bytes in [bytes, bytes ^ 1] {
                    step(&|state| {
                        let new = state.next_op;
                        state.proposed.push(Op::Recode { old, new, bytes });
                        (state.next_op, state.recodes) = (new + 1, state.recodes + 1);
                    });
                }
            }
            if self.reader.is_none() {
                for (key, versions) in machine.keys.iter().enumerate() {
                    for (revision, op) in versions.iter() {
                        let Some(op) = *op else { continue };
                        let bytes = machine.table[&op];
                        let revision = *revision;
                        let reader = Some(Reader { node, key, revision, op, bytes });
                        step(&|state| state.reader = reader);
                    }
                }
            }
        }
        if let Some(reader) = self.reader {
            all.push(self.read(reader, mutant)?);
        }
        Ok(all)
    }
}

/// Every state that can be reached: how many.
fn search(scope: &Scope, mutant: Mutant) -> Result<usize, String> {
    let mut seen = HashSet::from([State::default()]);
    let mut queue = VecDeque::from([State::default()]);
    while let Some(state) = queue.pop_front() {
        state.check(mutant)?;
        for next in state.next(scope, mutant)? {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

/// tests PROTOCOL 10-ab, 10-ac, 9.8-c
#[test]
fn re_coding_is_seen_by_nobody_in_every_order() {
    for scope in [Scope { puts: 2, recodes: 1, log: 5 }, Scope { puts: 1, recodes: 2, log: 4 }] {
        let states = search(&scope, Mutant::None).unwrap();
        println!("{} puts, {} re-codings: {states} states", scope.puts, scope.recodes);
        assert!(states > 10_000, "{states}");
    }
}

#[test]
fn every_rule_of_re_coding_is_needed() {
    let all = [
        (Mutant::AnyBytes, "somebody sees"),
        (Mutant::AsWrite, "somebody sees"),
        (Mutant::NewestOnly, "is left behind"),
        (Mutant::ByKey, "somebody sees"),
        (Mutant::Resurrected, "somebody sees"),
        (Mutant::DroppedEarly, "is not held"),
        (Mutant::GarbageKept, "nothing names"),
        (Mutant::ReaderGivesUp, "is lost"),
    ];
    for (mutant, what) in all {
        let scope = Scope { puts: 2, recodes: 1, log: 4 };
        let why = search(&scope, mutant).expect_err("the search must refute this mutant");
        assert!(why.contains(what), "{mutant:?}: {why}");
    }
}
