//! The naive model: every version of every key, with its bytes.

use std::collections::{BTreeMap, HashMap};

use racos_machine::{
    Compare, Content, Given, Item, OpId, Refusal, Select, Selection, Side, SortBy, SortOrder, Span,
    Step, StepReport, Txn, TxnReport, Value, Written,
};

/// What stands for a value's bytes in metadata, and back.
#[derive(Default)]
pub struct Book {
    by_op: HashMap<OpId, Vec<u8>>,
    pub by_digest: HashMap<[u8; 16], Vec<u8>>,
}

impl Book {
    pub fn parts(&mut self, bytes: &[u8]) -> ([u8; 16], [u8; 8]) {
        let mut head = [0; 8];
        let used = bytes.len().min(8);
        head[..used].copy_from_slice(&bytes[..used]);
        let mut digest = [0; 16];
        digest[0] = bytes.len() as u8;
        digest[1..1 + bytes.len()].copy_from_slice(bytes);
        self.by_digest.insert(digest, bytes.to_vec());
        (digest, head)
    }

    pub fn value(&mut self, op: OpId, bytes: &[u8]) -> Value {
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

    pub fn given(&mut self, bytes: &[u8]) -> Given {
        let (digest, head) = self.parts(bytes);
        Given { len: bytes.len() as u64, digest, head, evidence: Vec::new() }
    }

    pub fn bytes(&self, content: &Content) -> Vec<u8> {
        content.values().iter().flat_map(|value| self.by_op[&value.op].clone()).collect()
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Kv {
    pub create: u64,
    pub main: u64,
    pub sub: u32,
    pub version: u64,
    pub lease: i64,
    /// None: a tombstone.
    pub value: Option<Vec<u8>>,
}

#[derive(Clone, Default)]
pub struct Model {
    pub revision: u64,
    pub compacted: Option<u64>,
    pub keys: BTreeMap<Vec<u8>, Vec<Kv>>,
    pub leases: BTreeMap<i64, i64>,
}

#[derive(PartialEq, Debug)]
pub enum Answer {
    Range { revision: u64, count: u64, more: bool, kvs: Vec<(Vec<u8>, Kv)> },
    Put { previous: Option<Kv> },
    Delete { revision: u64, deleted: u32, previous: Vec<Kv> },
    Txn { succeeded: bool, answers: Vec<Answer> },
}

impl Model {
    pub fn live(&self, span: &Span, revision: u64) -> Vec<(Vec<u8>, Kv)> {
        let keys = self.keys.iter().filter(|(key, _)| span.contains(key));
        keys.filter_map(|(key, kvs)| {
            let kv = kvs.iter().rfind(|kv| kv.main <= revision)?;
            kv.value.as_ref().map(|_| (key.clone(), kv.clone()))
        })
        .collect()
    }

    pub fn holds(&self, compare: &Compare, book: &Book) -> bool {
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
    pub fn path(&self, txn: &Txn, book: &Book, path: &mut Vec<bool>) {
        let taken = txn.compares.iter().all(|compare| self.holds(compare, book));
        path.push(taken);
        for step in if taken { &txn.success } else { &txn.failure } {
            if let Step::Txn(inner) = step {
                self.path(inner, book, path);
            }
        }
    }

    pub fn check(&self, txn: &Txn, path: &mut std::slice::Iter<'_, bool>) -> Result<(), Refusal> {
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

    pub fn run(
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

    pub fn bury(&mut self, key: &[u8], main: u64, sub: u32) {
        let tombstone = Kv { create: 0, main, sub, version: 0, lease: 0, value: None };
        self.keys.get_mut(key).unwrap().push(tombstone);
    }

    pub fn range(&self, select: &Select, revision: u64) -> Answer {
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

    pub fn end_lease(&mut self, id: i64) -> Option<u32> {
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

    pub fn compact(&mut self, revision: u64) -> Result<(), Refusal> {
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
    pub fn hash(&self, revision: u64) -> u32 {
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

pub fn row(key: &[u8], kv: &Kv) -> Vec<u8> {
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

pub fn kv(item: &Item, book: &Book) -> Kv {
    Kv {
        create: item.create,
        main: item.modified.main,
        sub: item.modified.sub,
        version: item.version,
        lease: item.lease,
        value: Some(book.bytes(&item.content)),
    }
}

pub fn range_answer(revision: u64, mut selection: Selection, book: &Book) -> Answer {
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

pub fn answer(report: TxnReport, book: &Book) -> Answer {
    let answers = report.steps.into_iter().map(|step| match step {
        StepReport::Select { revision, selection } => range_answer(revision, selection, book),
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
