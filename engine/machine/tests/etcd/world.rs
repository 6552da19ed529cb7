//! Random operations, done to the machine and to the model.

use crate::model::{Answer, Book, Kv, Model, answer, kv, range_answer};
use racos_machine::{
    Action, Compare, Content, EXPORT_PART_BYTES, Exported, Given, Hashing, Import, Key, Limits,
    Machine, Op, OpId, Outcome, PutStep, Refusal, Relation, Select, Selecting, Side, SortBy,
    SortOrder, Span, Step, Txn, TxnReport, Written,
};

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (self.0 >> 33) % sides
    }

    fn key(&mut self) -> Key {
        [b'a' + self.roll(6) as u8].into()
    }

    fn span(&mut self) -> Span {
        match self.roll(5) {
            0 => Span::Range { from: [].into(), to: None },
            1 | 2 => Span::Range { from: self.key(), to: Some([b'a' + self.roll(8) as u8].into()) },
            _ => Span::One(self.key()),
        }
    }

    /// Values that often share their first eight bytes, zeros at and around the eighth included.
    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = match self.roll(3) {
            0 => b"samehead".to_vec(),
            1 => b"same\0\0\0\0".to_vec(),
            _ => b"other".to_vec(),
        };
        if self.roll(3) == 0 {
            bytes.truncate(self.roll(9) as usize);
        }
        (0..self.roll(4)).for_each(|_| bytes.push(self.roll(3) as u8));
        bytes
    }
}
pub struct World {
    dice: Dice,
    book: Book,
    machine: Machine,
    model: Model,
    made: u64,
    pub refused: u32,
    /// Reads under way, with what they must find.
    selecting: Option<(Selecting, (u64, u64), Answer)>,
    hashing: Option<(Hashing, Option<u64>, u32)>,
    /// How many of either were finished.
    pub sliced: (u32, u32),
    /// Keys that the transaction being made puts, and the first of the half of the keys that it puts:
    /// etcd takes no transaction that puts a key twice, or puts and deletes it.
    put: Vec<Key>,
    half: u8,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut machine = Machine::new(Limits::default());
        machine.keep_changes();
        let model = Model { revision: 1, ..Model::default() };
        let (dice, book) = (Dice(seed), Book::default());
        World {
            dice,
            book,
            machine,
            model,
            made: 0,
            refused: 0,
            selecting: None,
            hashing: None,
            sliced: (0, 0),
            put: Vec::new(),
            half: b'a',
        }
    }

    fn select(&mut self) -> Select {
        let dice = &mut self.dice;
        let revision = self.model.revision;
        let mut bound = || if dice.roll(6) == 0 { dice.roll(revision + 2) as i64 } else { 0 };
        let [modified_min, modified_max, create_min, create_max] = [(); 4].map(|()| bound());
        let dice = &mut self.dice;
        let orders = [SortOrder::None, SortOrder::Ascending, SortOrder::Descending];
        let bys = [SortBy::Key, SortBy::Version, SortBy::Create, SortBy::Modified, SortBy::Value];
        Select {
            span: dice.span(),
            limit: dice.roll(4) as i64 - 1,
            revision: if dice.roll(3) == 0 { dice.roll(revision + 2) as i64 } else { 0 },
            order: orders[dice.roll(3) as usize],
            by: bys[dice.roll(5) as usize],
            keys_only: false,
            count_only: dice.roll(8) == 0,
            modified_min,
            modified_max,
            create_min,
            create_max,
        }
    }

    fn compare(&mut self) -> Compare {
        let relations = [Relation::Equal, Relation::NotEqual, Relation::Greater, Relation::Less];
        let relation = relations[self.dice.roll(4) as usize];
        let number = self.dice.roll(self.model.revision.min(6) + 1) as i64;
        let side = match self.dice.roll(6) {
            0 => Side::Version(number),
            1 => Side::Create(number),
            2 => Side::Modified(number),
            3 => Side::Lease(number),
            _ => Side::Value(self.book.given(&self.dice.bytes())),
        };
        let one = matches!(side, Side::Value(_)) && self.dice.roll(3) > 0;
        let span = if one { Span::One(self.dice.key()) } else { self.dice.span() };
        Compare { span, relation, side }
    }

    fn txn(&mut self, depth: u64, own: &mut OpId) -> Txn {
        let compares = (0..self.dice.roll(3)).map(|_| self.compare()).collect();
        let mut branch =
            || -> Vec<Step> { (0..self.dice.roll(4)).map(|_| self.step(depth, own)).collect() };
        Txn { compares, success: branch(), failure: branch() }
    }

    fn step(&mut self, depth: u64, own: &mut OpId) -> Step {
        match self.dice.roll(8 + u64::from(depth < 3)) {
            0 | 1 => Step::Select(self.select()),
            2 => {
                let (from, end) = if self.half == b'a' { (b'd', b'g') } else { (b'a', b'd') };
                let first = from + self.dice.roll(3) as u8;
                let to: Key = [end].into();
                let span = match self.dice.roll(2) {
                    0 => Span::One([first].into()),
                    _ => Span::Range { from: [first].into(), to: Some(to) },
                };
                Step::Delete { span, previous: self.dice.roll(2) == 0 }
            }
            8 => Step::Txn(self.txn(depth + 1, own)),
            _ => {
                let key: Key = [self.half + self.dice.roll(3) as u8].into();
                if self.put.contains(&key) {
                    return Step::Select(self.select());
                }
                self.put.push(key.clone());
                let written = if self.dice.roll(6) == 0 {
                    Written::Kept
                } else {
                    own.0 += 1;
                    let bytes = self.dice.bytes();
                    Written::Own(self.book.value(*own, &bytes))
                };
                let lease = match self.dice.roll(6) {
                    0 => None,
                    1 | 2 => Some(self.dice.roll(4) as i64),
                    _ => Some(0),
                };
                let previous = self.dice.roll(2) == 0;
                Step::Put(PutStep { key, written, lease, previous })
            }
        }
    }

    fn action(&mut self, id: OpId) -> Action {
        match self.dice.roll(12) {
            0 => Action::LeaseGrant { id: 1 + self.dice.roll(3) as i64, ttl: 60 },
            1 => Action::LeaseRevoke { id: 1 + self.dice.roll(3) as i64 },
            2 => Action::LeaseExpire { id: 1 + self.dice.roll(3) as i64 },
            3 => Action::Compact { revision: self.dice.roll(self.model.revision + 2) },
            4 => {
                let bytes = self.dice.bytes();
                let content = Content::Whole(self.book.value(id, &bytes));
                Action::Put { key: self.dice.key(), content }
            }
            5 => Action::Delete { key: self.dice.key() },
            _ => {
                let mut own = id;
                self.put.clear();
                self.half = [b'a', b'd'][self.dice.roll(2) as usize];
                Action::Txn(Box::new(self.txn(0, &mut own)))
            }
        }
    }

    /// Gives a transaction the evidence that it lacks; whether it lacked any.
    fn prove(&mut self, txn: &mut Txn) -> bool {
        let missing = self.machine.missing_evidence(txn);
        let mut number = 0;
        let book = &self.book;
        each_given(txn, &mut |given| {
            let bytes = &book.by_digest[&given.digest];
            for (_, content) in missing.iter().filter(|(of, _)| *of == number) {
                given.evidence.push((content.first_op(), book.bytes(content).cmp(bytes)));
            }
            given.evidence.sort();
            given.evidence.dedup();
            number += 1;
        });
        !missing.is_empty()
    }

    pub fn turn(&mut self, slot: u64) {
        self.made += 1000;
        let id = OpId::new(1, 1, 1, self.made);
        let mut op = Op { id, author: None, stamp: None, action: self.action(id) };
        let unproven = op.clone();
        let mut lacked = false;
        if let Action::Txn(txn) = &mut op.action {
            lacked = self.prove(txn);
        }
        let mut bytes = Vec::new();
        op.encode(&mut bytes);
        let mut rest = &bytes[..];
        assert_eq!(Op::decode(&mut rest).as_ref(), Ok(&op));
        assert!(rest.is_empty());
        if lacked {
            let before = self.machine.state_hash();
            let (outcome, report) = self.machine.apply_reporting(slot, 0, &unproven);
            if let Outcome::Refused { reason: Refusal::Unresolved, .. } = outcome {
                assert_eq!(report, None);
                self.refused += 1;
            } else {
                // What is known decides it all the same; the model follows.
                return self.follow(&unproven, outcome, report);
            }
            if !self.machine.is_sweeping() {
                assert_eq!(self.machine.state_hash(), before, "it changed nothing");
            }
        }
        let (outcome, report) = self.machine.apply_reporting(slot, 1, &op);
        self.follow(&op, outcome, report);
    }

    fn follow(&mut self, op: &Op, outcome: Outcome, report: Option<TxnReport>) {
        let expected: Result<u32, Refusal> = match &op.action {
            Action::Txn(txn) => {
                let mut path = Vec::new();
                self.model.path(txn, &self.book, &mut path);
                self.model.check(txn, &mut path.iter()).map(|()| {
                    let mut changes = 0;
                    let done = self.model.run(txn, &self.book, &mut path.iter(), &mut changes);
                    self.model.revision += u64::from(changes > 0);
                    let report = report.expect("what is applied is reported");
                    assert_eq!(answer(report, &self.book), done, "{txn:?}");
                    changes
                })
            }
            Action::Put { key, content } => {
                let written = Written::Stored(content.clone());
                let key = key.clone();
                let put = PutStep { key, written, lease: Some(0), previous: false };
                self.model_txn(Txn::of(Step::Put(put)))
            }
            Action::Delete { key } => {
                let span = Span::One(key.clone());
                self.model_txn(Txn::of(Step::Delete { span, previous: false }))
            }
            Action::LeaseGrant { id, ttl } => match self.model.leases.contains_key(id) {
                true => Err(Refusal::LeaseExists),
                false => {
                    self.model.leases.insert(*id, *ttl);
                    Ok(0)
                }
            },
            Action::LeaseRevoke { id } => self.model.end_lease(*id).ok_or(Refusal::LeaseNotFound),
            Action::LeaseExpire { id } => Ok(self.model.end_lease(*id).unwrap_or(0)),
            Action::Compact { revision } => self.model.compact(*revision).map(|()| 0),
            other => unreachable!("{other:?}"),
        };
        let found = match outcome {
            Outcome::Applied(done) => Ok(done.changes),
            Outcome::Refused { reason, .. } => Err(reason),
            Outcome::Replayed(_) => unreachable!("no sessions"),
        };
        assert_eq!((found, outcome.revision()), (expected, self.model.revision), "{op:?}");
    }

    fn model_txn(&mut self, txn: Txn) -> Result<u32, Refusal> {
        let mut changes = 0;
        self.model.run(&txn, &self.book, &mut [true].iter(), &mut changes);
        self.model.revision += u64::from(changes > 0);
        Ok(changes)
    }

    pub fn check_state(&mut self) {
        assert_eq!(self.machine.state_hash(), self.machine.full_hash());
        let leases: Vec<(i64, i64)> = self.machine.leases().collect();
        assert_eq!(leases, self.model.leases.clone().into_iter().collect::<Vec<_>>());
        let select = self.select();
        if let Ok(selection) = self.machine.select(&select) {
            let found = range_answer(self.model.revision, selection, &self.book);
            assert_eq!(found, self.model.range(&select, self.model.revision), "{select:?}");
        }
        let oldest = self.model.compacted.unwrap_or(1).max(1);
        let revision = oldest + self.dice.roll(self.model.revision + 1 - oldest);
        assert_eq!(
            self.machine.hash_kv(revision),
            Ok((self.model.hash(revision), revision)),
            "at {revision}, compacted {:?}",
            self.model.compacted
        );
        self.check_changes(revision);
        self.go_on_selecting(select);
        self.go_on_hashing(revision);
    }

    /// What is read slice by slice while the state changes is what one look would have found when it
    /// was begun.
    fn go_on_selecting(&mut self, select: Select) {
        let Some((mut selecting, revision, expected)) = self.selecting.take() else {
            if let Ok(selecting) = self.machine.begin_select(select.clone()) {
                let revision = self.model.revision;
                let expected = self.model.range(&select, revision);
                let asked = if select.revision > 0 { select.revision as u64 } else { revision };
                self.selecting = Some((selecting, (revision, asked), expected));
            }
            return;
        };
        match self.machine.go_on_selecting(&mut selecting, 2) {
            Ok(false) => self.selecting = Some((selecting, revision, expected)),
            Ok(true) => {
                let selection = selecting.into_selection();
                assert_eq!(range_answer(revision.0, selection, &self.book), expected);
                self.sliced.0 += 1;
            }
            Err(reason) => {
                assert_eq!(reason, Refusal::Compacted);
                assert!(self.model.compacted > Some(revision.1), "{revision:?}");
            }
        }
    }

    fn go_on_hashing(&mut self, revision: u64) {
        let Some((mut hashing, compacted, expected)) = self.hashing.take() else {
            let hashing = self.machine.begin_hashing(revision).expect("it can be read");
            self.hashing = Some((hashing, self.model.compacted, self.model.hash(revision)));
            return;
        };
        match self.machine.go_on_hashing(&mut hashing, 4) {
            Ok(None) => self.hashing = Some((hashing, compacted, expected)),
            Ok(Some(hash)) => {
                assert_eq!(hash, expected, "at {}", hashing.revision());
                self.sliced.1 += 1;
            }
            Err(reason) => {
                assert_eq!(reason, Refusal::Compacted);
                assert_ne!(self.model.compacted, compacted);
            }
        }
    }

    /// The changes that watches walk are those of the history.
    fn check_changes(&self, since: u64) {
        let mut expected = Vec::new();
        for (key, kvs) in &self.model.keys {
            for (at, change) in kvs.iter().enumerate().filter(|(_, kv)| kv.main >= since) {
                let before = at.checked_sub(1).map(|at| kvs[at].clone());
                let seen = Some(change.main - 1) >= self.model.compacted;
                let before = before.filter(|before| seen && before.value.is_some());
                expected.push(((change.main, change.sub), key.clone(), change.clone(), before));
            }
        }
        expected.sort_by_key(|(at, ..)| *at);
        let found: Vec<_> = self
            .machine
            .changes_since(since)
            .map(|changed| {
                let (made, before) = self.machine.made_at(&changed.key, changed.modified);
                assert_eq!(made.is_none(), changed.is_delete);
                let at = (changed.modified.main, changed.modified.sub);
                let tombstone =
                    Kv { create: 0, main: at.0, sub: at.1, version: 0, lease: 0, value: None };
                let made = made.map_or(tombstone, |item| kv(&item, &self.book));
                (at, changed.key.to_vec(), made, before.map(|item| kv(&item, &self.book)))
            })
            .collect();
        assert_eq!(found, expected);
    }

    /// Exported and imported it is the same, and derives the same list of changes.
    pub fn check_export(&mut self) {
        self.machine.export_begin(EXPORT_PART_BYTES);
        let mut import = Import::new(Limits::default());
        loop {
            let part = match self.machine.export_slice(100, &mut |_| {}) {
                Exported::Working => continue,
                Exported::Part(part) | Exported::Last(part) => part,
            };
            if import.part(&part, &mut |_| {}).expect("a part that was exported") {
                break;
            }
        }
        let mut machine = import.finish().expect("the whole state");
        assert_eq!(machine.full_hash(), self.machine.state_hash());
        machine.keep_changes();
        assert!(machine.changes_since(0).eq(self.machine.changes_since(0)));
        for (id, _) in self.machine.leases() {
            assert!(machine.lease_keys(id).eq(self.machine.lease_keys(id)));
        }
    }
}

fn each_given(txn: &mut Txn, visit: &mut dyn FnMut(&mut Given)) {
    for compare in &mut txn.compares {
        if let Side::Value(given) = &mut compare.side {
            visit(given);
        }
    }
    for step in txn.success.iter_mut().chain(&mut txn.failure) {
        if let Step::Txn(inner) = step {
            each_given(inner, visit);
        }
    }
}
