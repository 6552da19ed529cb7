//! Transactions, leases, questions and hashes against a naive model that holds the values' bytes and
//! does what etcd's documentation says, with no thought of cost.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use racos_machine::{
    Action, Compare, Content, EXPORT_PART_BYTES, Exported, Given, Import, Item, Key, Limits,
    Machine, Op, OpId, Outcome, PutStep, Refusal, Relation, Select, Side, SortBy, SortOrder, Span,
    Step, StepReport, Txn, TxnReport, Value, Written,
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

/// What stands for a value's bytes in metadata, and back.
#[derive(Default)]
struct Book {
    by_op: HashMap<OpId, Vec<u8>>,
    by_digest: HashMap<[u8; 16], Vec<u8>>,
}

impl Book {
    fn parts(&mut self, bytes: &[u8]) -> ([u8; 16], [u8; 8]) {
        let mut head = [0; 8];
        let used = bytes.len().min(8);
        head[..used].copy_from_slice(&bytes[..used]);
        let mut digest = [0; 16];
        digest[0] = bytes.len() as u8;
        digest[1..1 + bytes.len()].copy_from_slice(bytes);
        self.by_digest.insert(digest, bytes.to_vec());
        (digest, head)
    }

    fn value(&mut self, op: OpId, bytes: &[u8]) -> Value {
        let (digest, head) = self.parts(bytes);
        self.by_op.insert(op, bytes.to_vec());
        Value {
            op,
            len: bytes.len() as u32,
            digest,
            crc: crc32c::crc32c(bytes),
            head,
            k: 3,
            n: 5,
            layout: 0,
        }
    }

    fn given(&mut self, bytes: &[u8]) -> Given {
        let (digest, head) = self.parts(bytes);
        Given { len: bytes.len() as u64, digest, head, evidence: Vec::new() }
    }

    fn bytes(&self, content: &Content) -> Vec<u8> {
        content.values().iter().flat_map(|value| self.by_op[&value.op].clone()).collect()
    }
}

#[derive(Clone, PartialEq, Debug)]
struct Kv {
    create: u64,
    main: u64,
    sub: u32,
    version: u64,
    lease: i64,
    /// None: a tombstone.
    value: Option<Vec<u8>>,
}

#[derive(Clone, Default)]
struct Model {
    revision: u64,
    compacted: Option<u64>,
    keys: BTreeMap<Vec<u8>, Vec<Kv>>,
    leases: BTreeMap<i64, i64>,
}

#[derive(PartialEq, Debug)]
enum Answer {
    Range { revision: u64, count: u64, more: bool, kvs: Vec<(Vec<u8>, Kv)> },
    Put { previous: Option<Kv> },
    Delete { revision: u64, deleted: u32, previous: Vec<Kv> },
    Txn { succeeded: bool, answers: Vec<Answer> },
}

impl Model {
    fn live(&self, span: &Span, revision: u64) -> Vec<(Vec<u8>, Kv)> {
        let keys = self.keys.iter().filter(|(key, _)| span.contains(key));
        keys.filter_map(|(key, kvs)| {
            let kv = kvs.iter().rfind(|kv| kv.main <= revision)?;
            kv.value.as_ref().map(|_| (key.clone(), kv.clone()))
        })
        .collect()
    }

    fn holds(&self, compare: &Compare, book: &Book) -> bool {
        let found = self.live(&compare.span, self.revision);
        if let Side::Value(given) = &compare.side {
            let given = &book.by_digest[&given.digest];
            let order = |kv: &Kv| kv.value.as_ref().map(|value| value.cmp(given));
            return !found.is_empty()
                && found
                    .iter()
                    .all(|(_, kv)| order(kv).is_some_and(|o| compare.relation.holds(o)));
        }
        let absent = Kv { create: 0, main: 0, sub: 0, version: 0, lease: 0, value: None };
        let nothing = [(Vec::new(), absent)];
        let found = if found.is_empty() { &nothing[..] } else { &found[..] };
        found.iter().all(|(_, kv)| {
            let (stored, given) = match compare.side {
                Side::Version(given) => (kv.version as i64, given),
                Side::Create(given) => (kv.create as i64, given),
                Side::Modified(given) => (kv.main as i64, given),
                Side::Lease(given) => (kv.lease, given),
                Side::Value(_) => unreachable!(),
            };
            compare.relation.holds(stored.cmp(&given))
        })
    }

    /// The branches taken, in order.
    fn path(&self, txn: &Txn, book: &Book, path: &mut Vec<bool>) {
        let taken = txn.compares.iter().all(|compare| self.holds(compare, book));
        path.push(taken);
        for step in if taken { &txn.success } else { &txn.failure } {
            if let Step::Txn(inner) = step {
                self.path(inner, book, path);
            }
        }
    }

    fn check(&self, txn: &Txn, path: &mut std::slice::Iter<'_, bool>) -> Result<(), Refusal> {
        for step in if *path.next().unwrap() { &txn.success } else { &txn.failure } {
            match step {
                Step::Select(select) => match select.revision {
                    0 => {}
                    asked if asked > self.revision as i64 => return Err(Refusal::FutureRevision),
                    asked if asked < self.compacted.map_or(-1, |at| at as i64) => {
                        return Err(Refusal::Compacted);
                    }
                    _ => {}
                },
                Step::Put(put) => {
                    let keeps = put.lease.is_none() || put.written == Written::Kept;
                    let span = Span::One(put.key.clone());
                    if keeps && self.live(&span, self.revision).is_empty() {
                        return Err(Refusal::KeyNotFound);
                    }
                    if put.lease.is_some_and(|id| id != 0 && !self.leases.contains_key(&id)) {
                        return Err(Refusal::LeaseNotFound);
                    }
                }
                Step::Delete { .. } => {}
                Step::Txn(inner) => self.check(inner, path)?,
            }
        }
        Ok(())
    }

    fn run(
        &mut self,
        txn: &Txn,
        book: &Book,
        path: &mut std::slice::Iter<'_, bool>,
        changes: &mut u32,
    ) -> Answer {
        let succeeded = *path.next().unwrap();
        let main = self.revision + 1;
        let mut answers = Vec::new();
        for step in if succeeded { &txn.success } else { &txn.failure } {
            answers.push(match step {
                Step::Select(select) => {
                    let revision = main - u64::from(*changes == 0);
                    self.range(select, revision)
                }
                Step::Put(put) => {
                    let newest = self.live(&Span::One(put.key.clone()), main).pop();
                    let newest = newest.map(|(_, kv)| kv);
                    let value = match &put.written {
                        Written::Own(value) => Some(book.by_op[&value.op].clone()),
                        Written::Stored(content) => Some(book.bytes(content)),
                        Written::Kept => newest.as_ref().and_then(|kv| kv.value.clone()),
                    };
                    if let Some(value) = value {
                        let old = newest.as_ref();
                        let kv = Kv {
                            create: old.map_or(main, |kv| kv.create),
                            main,
                            sub: *changes,
                            version: old.map_or(1, |kv| kv.version + 1),
                            lease: put.lease.unwrap_or(old.map_or(0, |kv| kv.lease)),
                            value: Some(value),
                        };
                        self.keys.entry(put.key.to_vec()).or_default().push(kv);
                        *changes += 1;
                    }
                    Answer::Put { previous: newest.filter(|_| put.previous) }
                }
                Step::Delete { span, previous } => {
                    let found = self.live(span, main);
                    for (key, _) in &found {
                        self.bury(key, main, *changes);
                        *changes += 1;
                    }
                    let revision = main - u64::from(*changes == 0);
                    let deleted = found.len() as u32;
                    let wanted = found.into_iter().filter(|_| *previous);
                    let previous = wanted.map(|(_, kv)| kv).collect();
                    Answer::Delete { revision, deleted, previous }
                }
                Step::Txn(inner) => self.run(inner, book, path, changes),
            });
        }
        Answer::Txn { succeeded, answers }
    }

    fn bury(&mut self, key: &[u8], main: u64, sub: u32) {
        let tombstone = Kv { create: 0, main, sub, version: 0, lease: 0, value: None };
        self.keys.get_mut(key).unwrap().push(tombstone);
    }

    fn range(&self, select: &Select, revision: u64) -> Answer {
        let asked = if select.revision > 0 { select.revision as u64 } else { revision };
        let mut kvs = self.live(&select.span, asked);
        let count = kvs.len() as u64;
        let bounds =
            [select.modified_min, select.modified_max, select.create_min, select.create_max];
        let late = select.order != SortOrder::None || bounds.iter().any(|&bound| bound != 0);
        if select.limit > 0 && !late {
            kvs.truncate(select.limit as usize + 1);
        }
        let outside = |number: u64, min: i64, max: i64| {
            (min != 0 && (number as i64) < min) || (max != 0 && number as i64 > max)
        };
        kvs.retain(|(_, kv)| {
            !outside(kv.main, select.modified_min, select.modified_max)
                && !outside(kv.create, select.create_min, select.create_max)
        });
        let order = |one: &(Vec<u8>, Kv), other: &(Vec<u8>, Kv)| match select.by {
            SortBy::Key => one.0.cmp(&other.0),
            SortBy::Version => one.1.version.cmp(&other.1.version),
            SortBy::Create => one.1.create.cmp(&other.1.create),
            SortBy::Modified => one.1.main.cmp(&other.1.main),
            SortBy::Value => one.1.value.cmp(&other.1.value),
        };
        match select.order {
            SortOrder::Descending => kvs.sort_by(|one, other| order(other, one)),
            _ if select.by != SortBy::Key => kvs.sort_by(order),
            _ => {}
        }
        let more = select.limit > 0 && kvs.len() as i64 > select.limit;
        kvs.truncate(if select.limit > 0 { select.limit as usize } else { usize::MAX });
        match select.count_only {
            true => Answer::Range { revision, count, more: false, kvs: Vec::new() },
            false => Answer::Range { revision, count, more, kvs },
        }
    }

    fn end_lease(&mut self, id: i64) -> Option<u32> {
        self.leases.remove(&id)?;
        let all = Span::Range { from: [].into(), to: None };
        let attached = self.live(&all, self.revision).into_iter().filter(|(_, kv)| kv.lease == id);
        let attached: Vec<Vec<u8>> = attached.map(|(key, _)| key).collect();
        for (sub, key) in (0..).zip(&attached) {
            self.bury(key, self.revision + 1, sub);
        }
        self.revision += u64::from(!attached.is_empty());
        Some(attached.len() as u32)
    }

    fn compact(&mut self, revision: u64) -> Result<(), Refusal> {
        if self.compacted.is_some_and(|compacted| revision <= compacted) {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = Some(revision);
        for kvs in self.keys.values_mut() {
            let newest = kvs.iter().rposition(|kv| kv.main <= revision);
            kvs.drain(..newest.unwrap_or(0));
            if kvs[0].value.is_none() && kvs[0].main < revision {
                kvs.remove(0);
            }
        }
        self.keys.retain(|_, kvs| !kvs.is_empty());
        Ok(())
    }

    /// From the bytes themselves.
    fn hash(&self, revision: u64) -> u32 {
        let live = self.live(&Span::Range { from: [].into(), to: None }, revision);
        let mut rows = Vec::new();
        for (key, kvs) in &self.keys {
            for kv in kvs.iter().filter(|kv| kv.main <= revision) {
                let kept = live.iter().any(|(alive, newest)| alive == key && newest == kv);
                let old = Some(kv.main) <= self.compacted;
                let tombstone_at = kv.value.is_none() && Some(kv.main) == self.compacted;
                if (kept || live.is_empty() || !old) && !tombstone_at {
                    rows.push(((kv.main, kv.sub), row(key, kv)));
                }
            }
        }
        rows.sort();
        let bytes: Vec<u8> = rows.into_iter().flat_map(|(_, row)| row).collect();
        crc32c::crc32c_append(crc32c::crc32c(b"key"), &bytes)
    }
}

fn row(key: &[u8], kv: &Kv) -> Vec<u8> {
    let mut row = kv.main.to_be_bytes().to_vec();
    row.push(b'_');
    row.extend(u64::from(kv.sub).to_be_bytes());
    row.extend(kv.value.is_none().then_some(b't'));
    let text = |row: &mut Vec<u8>, field: u8, bytes: &[u8]| {
        assert!(bytes.len() < 128);
        row.extend([field << 3 | 2, bytes.len() as u8]);
        row.extend(bytes);
    };
    let number = |row: &mut Vec<u8>, field: u8, mut number: u64| {
        if number == 0 {
            return;
        }
        row.push(field << 3);
        while number >= 128 {
            row.push(number as u8 | 128);
            number >>= 7;
        }
        row.push(number as u8);
    };
    text(&mut row, 1, key);
    if let Some(value) = &kv.value {
        number(&mut row, 2, kv.create);
        number(&mut row, 3, kv.main);
        number(&mut row, 4, kv.version);
        if !value.is_empty() {
            text(&mut row, 5, value);
        }
        number(&mut row, 6, kv.lease as u64);
    }
    row
}

fn kv(item: &Item, book: &Book) -> Kv {
    Kv {
        create: item.create,
        main: item.modified.main,
        sub: item.modified.sub,
        version: item.version,
        lease: item.lease,
        value: Some(book.bytes(&item.content)),
    }
}

fn answer(report: TxnReport, book: &Book) -> Answer {
    let answers = report.steps.into_iter().map(|step| match step {
        StepReport::Select { revision, mut selection } => {
            let bytes: Vec<Vec<u8>> =
                selection.items.iter().map(|item| book.bytes(&item.content)).collect();
            let ties = selection.ties();
            selection.order_by_value(|place| {
                assert!(ties.contains(&place), "only values that tie are looked at");
                &bytes[place]
            });
            let items = selection.items.iter();
            let kvs = items.map(|item| (item.key.to_vec(), kv(item, book))).collect();
            Answer::Range { revision, count: selection.count, more: selection.more, kvs }
        }
        StepReport::Put { previous, .. } => {
            Answer::Put { previous: previous.map(|item| kv(&item, book)) }
        }
        StepReport::Delete { revision, deleted, previous } => {
            let previous = previous.iter().map(|item| kv(item, book)).collect();
            Answer::Delete { revision, deleted, previous }
        }
        StepReport::Txn(inner) => answer(inner, book),
    });
    Answer::Txn { succeeded: report.succeeded, answers: answers.collect() }
}

struct World {
    dice: Dice,
    book: Book,
    machine: Machine,
    model: Model,
    made: u64,
    refused: u32,
    /// Keys that the transaction being made puts, and the first of the half of the keys that it puts:
    /// etcd takes no transaction that puts a key twice, or puts and deletes it.
    put: Vec<Key>,
    half: u8,
}

impl World {
    fn new(seed: u64) -> World {
        let mut machine = Machine::new(Limits::default());
        machine.keep_changes();
        let model = Model { revision: 1, ..Model::default() };
        let (dice, book) = (Dice(seed), Book::default());
        World { dice, book, machine, model, made: 0, refused: 0, put: Vec::new(), half: b'a' }
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

    fn turn(&mut self, slot: u64) {
        self.made += 1000;
        let id = OpId::new(1, 1, 1, self.made);
        let mut op = Op { id, stamp: None, action: self.action(id) };
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

    fn check_state(&mut self) {
        assert_eq!(self.machine.state_hash(), self.machine.full_hash());
        let leases: Vec<(i64, i64)> = self.machine.leases().collect();
        assert_eq!(leases, self.model.leases.clone().into_iter().collect::<Vec<_>>());
        let select = self.select();
        if let Ok(mut selection) = self.machine.select(&select) {
            let bytes: Vec<Vec<u8>> =
                selection.items.iter().map(|item| self.book.bytes(&item.content)).collect();
            selection.order_by_value(|place| &bytes[place]);
            let found = Answer::Range {
                revision: self.model.revision,
                count: selection.count,
                more: selection.more,
                kvs: selection
                    .items
                    .iter()
                    .map(|item| (item.key.to_vec(), kv(item, &self.book)))
                    .collect(),
            };
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
    fn check_export(&mut self) {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_machine_does_what_etcd_does(seed: u64) {
        let mut world = World::new(seed);
        for slot in 0..150 {
            world.turn(slot);
            world.check_state();
        }
        world.check_export();
    }
}

#[test]
fn transactions_without_evidence_are_refused_now_and_then() {
    let refused: u32 = (0..50)
        .map(|seed| {
            let mut world = World::new(seed);
            (0..100).for_each(|slot| world.turn(slot));
            world.refused
        })
        .sum();
    assert!(refused >= 5, "the other test is about something: {refused}");
}

#[test]
fn numbers_of_both_signs_and_every_field_survive_the_wire() {
    for number in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
        let mut select = Select::new(Span::One([b'k'].into()));
        (select.limit, select.revision, select.create_min) = (number, number, number);
        let op = Op {
            id: OpId(9),
            stamp: None,
            action: Action::Txn(Box::new(Txn::of(Step::Select(select)))),
        };
        let mut bytes = Vec::new();
        op.encode(&mut bytes);
        assert_eq!(Op::decode(&mut &bytes[..]), Ok(op));
    }
}

#[test]
fn transactions_are_nested_only_so_deep() {
    let nested = |depth: usize| {
        let mut txn = Txn::default();
        for _ in 1..depth {
            txn = Txn::of(Step::Txn(txn));
        }
        Op { id: OpId(9), stamp: None, action: Action::Txn(Box::new(txn)) }
    };
    let deepest = nested(racos_machine::TXN_DEPTH_MAX);
    let mut bytes = Vec::new();
    deepest.encode(&mut bytes);
    assert_eq!(Op::decode(&mut &bytes[..]), Ok(deepest));
    assert!(nested(racos_machine::TXN_DEPTH_MAX + 1).check().is_err());
    // As if another had encoded one level more.
    let head = bytes.len() - 2 - 4 * (racos_machine::TXN_DEPTH_MAX - 1) - 1;
    let mut deeper = bytes[..head].to_vec();
    deeper.extend([0, 1, 3]);
    deeper.extend(&bytes[head..]);
    deeper.push(0);
    assert!(Op::decode(&mut &deeper[..]).is_err());
}
