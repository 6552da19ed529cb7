//! Executing transactions.
//!
//! Invariant: as in etcd, all compares that lie on the taken path are judged on the state before
//! the transaction; then every step of the path is checked on that same state, and if one fails
//! nothing is done; then the steps are done in order, later ones see earlier ones, and all changes
//! have one revision. What would break it: a step that can fail once the first change is made.

use crate::index::{Change, Named, Revision};
use crate::machine::Machine;
use crate::op::{Content, Key, Value};
use crate::outcome::Refusal;
use crate::select::{Item, Selection};
use crate::slab::Handle;
use crate::txn::{Compare, PutStep, Select, Side, Span, Step, Txn, Written};

/// What a transaction answers: for the node that owes the answer, built beside its execution.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnReport {
    pub succeeded: bool,
    /// One for each step of the taken branch.
    pub steps: Vec<StepReport>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StepReport {
    Select { revision: u64, selection: Selection },
    Put { revision: u64, previous: Option<Item> },
    Delete { revision: u64, deleted: u32, previous: Vec<Item> },
    Txn(TxnReport),
}

/// What the steps of the taken path need.
#[derive(Default)]
struct Needs {
    puts: usize,
    own_values: usize,
    /// The slot in which they are stored.
    slot: u64,
    /// Values that steps name, held on to until the last step is done.
    named: Vec<Handle>,
}

/// A transaction under way.
struct Run {
    slot: u64,
    /// The revision that its changes get, and how many there are.
    main: u64,
    changes: u32,
    /// A report is wanted.
    report: bool,
}

impl Run {
    /// The revision that a reader within the transaction is shown.
    fn revision(&self) -> u64 {
        if self.changes > 0 { self.main } else { self.main - 1 }
    }
}

fn all_hold(mut each: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut known = true;
    let failed = each.any(|holds| {
        known &= holds.is_some();
        holds == Some(false)
    });
    if failed { Some(false) } else { known.then_some(true) }
}

impl Machine {
    /// Executes a transaction; the report has no steps unless it is wanted.
    pub(crate) fn transact(
        &mut self,
        slot: u64,
        txn: &Txn,
        report: bool,
    ) -> Result<(u32, TxnReport), Refusal> {
        let mut path = Vec::new();
        self.choose(txn, &mut path)?;
        if self.alarms.iter().any(|(_, kind)| *kind == crate::op::AlarmKind::NoSpace) {
            let mut puts = false;
            txn.each_step(&mut |step| puts |= matches!(step, Step::Put(_)));
            if puts {
                return Err(Refusal::NoSpace);
            }
        }
        let mut needs = Needs { slot, ..Needs::default() };
        self.check_steps(txn, &mut path.iter(), &mut needs)?;
        let most = self.limits.versions_max as usize;
        if self.index.versions() + needs.puts > most || self.values.len() + needs.own_values > most
        {
            return Err(Refusal::NoSpace);
        }
        needs.named.iter().for_each(|&handle| self.values.retain(handle));
        let mut run = Run { slot, main: self.revision + 1, changes: 0, report };
        let report = self.run_steps(txn, &mut path.iter(), &mut run);
        needs.named.iter().for_each(|&handle| self.values.release(handle));
        self.revision += u64::from(run.changes > 0);
        Ok((run.changes, report))
    }

    /// Answers a transaction without puts and deletes.
    ///
    /// # Errors
    /// As of a transaction that is applied; `Malformed` if it could change something.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnReport, Refusal> {
        let mut reads = true;
        txn.each_step(&mut |step| reads &= matches!(step, Step::Select(_)));
        if !reads {
            return Err(Refusal::Malformed);
        }
        let mut path = Vec::new();
        self.choose(txn, &mut path)?;
        self.check_steps(txn, &mut path.iter(), &mut Needs::default())?;
        let revision = self.revision;
        let selects = if path[0] { &txn.success } else { &txn.failure };
        let steps = selects.iter().filter_map(|step| match step {
            Step::Select(select) => {
                Some(StepReport::Select { revision, selection: self.selection(select) })
            }
            _ => None,
        });
        Ok(TxnReport { succeeded: path[0], steps: steps.collect() })
    }

    /// Contents that value compares of the transaction look at now and cannot decide on, each with the
    /// number of the given value: outer ones first, then those of nested transactions in their place.
    pub fn missing_evidence(&self, txn: &Txn) -> Vec<(usize, Content)> {
        let mut missing = Vec::new();
        self.collect_missing(txn, &mut 0, &mut missing);
        missing
    }

    fn collect_missing(&self, txn: &Txn, given: &mut usize, into: &mut Vec<(usize, Content)>) {
        for compare in &txn.compares {
            let Side::Value(side) = &compare.side else { continue };
            let mut end = Vec::new();
            let (from, to) = compare.span.range(&mut end);
            for (_, version) in self.index.range(from, to, None, &self.values) {
                if let Some(content) = version.content()
                    && side.holds(compare.relation, &content).is_none()
                {
                    into.push((*given, content));
                }
            }
            *given += 1;
        }
        for step in txn.success.iter().chain(&txn.failure) {
            if let Step::Txn(inner) = step {
                self.collect_missing(inner, given, into);
            }
        }
    }

    /// Which branch of the transaction, and of every one nested in it, is taken.
    fn choose(&self, txn: &Txn, path: &mut Vec<bool>) -> Result<(), Refusal> {
        // PROTOCOL 7-e
        let holds = all_hold(txn.compares.iter().map(|compare| self.holds(compare)));
        let holds = holds.ok_or(Refusal::Unresolved)?;
        path.push(holds);
        for step in if holds { &txn.success } else { &txn.failure } {
            if let Step::Txn(inner) = step {
                self.choose(inner, path)?;
            }
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> Option<bool> {
        let Compare { span, relation, side } = compare;
        let mut end = Vec::new();
        let (from, to) = span.range(&mut end);
        let mut keys = self.index.range(from, to, None, &self.values).map(|(_, found)| found);
        let number = |stored: i64, given: i64| relation.holds(stored.cmp(&given));
        if let Side::Value(given) = side {
            let Some(first) = keys.next() else { return Some(false) };
            let all = std::iter::once(first).chain(keys);
            return all_hold(all.map(|found| given.holds(*relation, &found.content()?)));
        }
        let mut any = false;
        let all = keys.all(|found| {
            any = true;
            match *side {
                Side::Version(given) => number(found.number() as i64, given),
                Side::Create(given) => number(found.created() as i64, given),
                Side::Modified(given) => number(found.modified().main as i64, given),
                Side::Lease(given) => number(found.lease(), given),
                Side::Value(_) => unreachable!("values are compared above"),
            }
        });
        match *side {
            _ if any => Some(all),
            Side::Version(given)
            | Side::Create(given)
            | Side::Modified(given)
            | Side::Lease(given) => Some(number(0, given)),
            Side::Value(_) => unreachable!("values are compared above"),
        }
    }

    fn check_steps(
        &self,
        txn: &Txn,
        path: &mut std::slice::Iter<'_, bool>,
        needs: &mut Needs,
    ) -> Result<(), Refusal> {
        let taken = *path.next().expect("the path has an entry for every transaction taken");
        for step in if taken { &txn.success } else { &txn.failure } {
            match step {
                Step::Select(select) => self.check_select(select)?,
                Step::Put(put) => self.check_put(put, needs)?,
                Step::Delete { .. } => {}
                Step::Txn(inner) => self.check_steps(inner, path, needs)?,
            }
        }
        Ok(())
    }

    fn check_select(&self, select: &Select) -> Result<(), Refusal> {
        let oldest = self.compacted.map_or(-1, |compacted| compacted as i64);
        match select.revision {
            0 => Ok(()),
            asked if asked > self.revision as i64 => Err(Refusal::FutureRevision),
            asked if asked < oldest => Err(Refusal::Compacted),
            _ => Ok(()),
        }
    }

    fn check_put(&self, put: &PutStep, needs: &mut Needs) -> Result<(), Refusal> {
        let keeps = put.lease.is_none() || put.written == Written::Kept;
        if keeps && self.index.newest(&put.key, &self.values).is_none() {
            return Err(Refusal::KeyNotFound);
        }
        if let Some(lease) = put.lease
            && lease != 0
            && !self.leases.contains(lease)
        {
            return Err(Refusal::LeaseNotFound);
        }
        needs.puts += 1;
        match &put.written {
            Written::Own(value) => match self.stored(value) {
                Ok(handle) => needs.named.push(handle),
                Err(Refusal::ValueMissing) => {
                    self.check_layout(value, needs.slot)?;
                    needs.own_values += 1;
                }
                Err(reason) => return Err(reason),
            },
            Written::Stored(content) => {
                for value in content.values() {
                    needs.named.push(self.stored(value)?);
                }
            }
            Written::Kept => {}
        }
        Ok(())
    }

    fn run_steps(
        &mut self,
        txn: &Txn,
        path: &mut std::slice::Iter<'_, bool>,
        run: &mut Run,
    ) -> TxnReport {
        let taken = *path.next().expect("the path has an entry for every transaction taken");
        let mut report = TxnReport { succeeded: taken, steps: Vec::new() };
        for step in if taken { &txn.success } else { &txn.failure } {
            let done = match step {
                Step::Select(_) if !run.report => continue,
                Step::Select(select) => {
                    let revision = run.revision();
                    StepReport::Select { revision, selection: self.selection(select) }
                }
                Step::Put(put) => self.put_step(put, run),
                Step::Delete { span, previous } => self.delete_step(span, *previous, run),
                Step::Txn(inner) => StepReport::Txn(self.run_steps(inner, path, run)),
            };
            if run.report {
                report.steps.push(done);
            }
        }
        report
    }

    /// The answer as of the revision asked for, which is one that can be read.
    pub(crate) fn selection(&self, select: &Select) -> Selection {
        let mut end = Vec::new();
        let (from, to) = select.span.range(&mut end);
        let revision = (select.revision > 0).then_some(select.revision as u64);
        Selection::of(select, self.index.range(from, to, revision, &self.values))
    }

    fn item(&self, key: &[u8]) -> Option<Item> {
        self.index.newest(key, &self.values).and_then(|version| Item::new(key, &version))
    }

    fn put_step(&mut self, put: &PutStep, run: &mut Run) -> StepReport {
        let previous = if run.report && put.previous { self.item(&put.key) } else { None };
        let named = match &put.written {
            Written::Own(value) => Named::Whole(self.find_or_add(value, run.slot)),
            Written::Stored(Content::Whole(value)) => Named::Whole(self.held(value)),
            Written::Stored(Content::Stripes(stripes)) => {
                let handles = stripes.iter().map(|stripe| self.held(stripe)).collect();
                self.index.add_list(handles)
            }
            // A delete of the same transaction may have come first; then there is nothing to keep.
            Written::Kept => self.index.share_newest(&put.key).unwrap_or(Named::Nothing),
        };
        if named != Named::Nothing {
            let former = self.index.lease_of(&put.key);
            let lease = put.lease.unwrap_or(former);
            let modified = Revision { main: run.main, sub: run.changes };
            self.put_version(&put.key, named, Change { modified, lease });
            run.changes += 1;
        }
        StepReport::Put { revision: run.main, previous }
    }

    fn delete_step(&mut self, span: &Span, previous: bool, run: &mut Run) -> StepReport {
        let mut end = Vec::new();
        let (from, to) = span.range(&mut end);
        let keys = self.index.live_keys(from, to);
        let wanted = run.report && previous;
        let previous = keys.iter().filter(|_| wanted).filter_map(|key| self.item(key)).collect();
        for key in &keys {
            let modified = Revision { main: run.main, sub: run.changes };
            if self.delete_version(key, modified) {
                run.changes += 1;
            }
        }
        StepReport::Delete { revision: run.revision(), deleted: keys.len() as u32, previous }
    }

    fn find_or_add(&mut self, value: &Value, slot: u64) -> Handle {
        match self.values.find(value.op) {
            Some(handle) => handle,
            None => self.values.add(value, slot),
        }
    }

    fn held(&self, value: &Value) -> Handle {
        self.values.find(value.op).expect("a value that a step names is held on to")
    }

    /// Deletes the keys of a lease that has been taken out of the table, at one revision.
    pub(crate) fn delete_attached(&mut self, keys: &[Key]) -> u32 {
        let mut modified = Revision { main: self.revision + 1, sub: 0 };
        for key in keys {
            if self.delete_version(key, modified) {
                modified.sub += 1;
            }
        }
        self.revision += u64::from(modified.sub > 0);
        modified.sub
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::Relation;

    #[test]
    fn one_compare_that_fails_settles_what_others_leave_open() {
        assert_eq!(all_hold([Some(true), None, Some(false)].into_iter()), Some(false));
        assert_eq!(all_hold([Some(true), None].into_iter()), None);
        assert_eq!(all_hold([Some(true)].into_iter()), Some(true));
        assert_eq!(all_hold(std::iter::empty()), Some(true));
        assert!(Relation::NotEqual.holds(std::cmp::Ordering::Less));
    }
}
