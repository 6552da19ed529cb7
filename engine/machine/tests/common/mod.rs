//! What the tests share: operations made from small random choices, and a naive model.

#![allow(dead_code)] // Each test program uses a part of it.

use std::collections::BTreeMap;

use racos_machine::{
    Action, Content, Done, Key, Limits, Op, OpId, Outcome, Refusal, SessionId, Stamp, Value,
};

/// A well-formed value, different for each operation.
pub fn value_of(op: OpId) -> Value {
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&(op.0 as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    Value {
        op,
        len: 1300,
        digest,
        crc: op.0 as u32 ^ 0x5555,
        head: *b"racos!!!",
        k: 3,
        n: 5,
        layout: 0,
    }
}

pub fn key(text: &[u8]) -> Key {
    text.into()
}

pub fn op(id: u64, action: Action) -> Op {
    Op { id: OpId::new(1, 1, 1, id), author: None, stamp: None, action }
}

pub fn put(id: u64, at: &str) -> Op {
    let content = Content::Whole(value_of(OpId::new(1, 1, 1, id)));
    op(id, Action::Put { key: key(at.as_bytes()), content })
}

pub fn part(id: u64) -> Op {
    op(id, Action::Part { value: value_of(OpId::new(1, 1, 1, id)) })
}

pub fn stamped(op: Op, session: SessionId, sequence: u64, low: u64) -> Op {
    Op { stamp: Some(Stamp { session, sequence, low }), ..op }
}

/// Makes operations that hit each other: few keys, few sessions, few numbers.
#[derive(Default)]
pub struct Source {
    sessions: Vec<SessionId>,
    stored: Vec<Value>,
    made: u64,
}

impl Source {
    pub fn op(&mut self, slot: u64, position: u32, choice: [u8; 4]) -> Op {
        self.made += 1;
        let id = OpId::new(choice[3] as u16 % 5, 1, 2, self.made);
        let action = self.action(id, choice, slot);
        match &action {
            Action::OpenSession { .. } => self.sessions.push(SessionId { slot, position }),
            Action::Part { value }
            | Action::Put { content: Content::Whole(value), .. }
            | Action::Recode { value, .. } => self.stored.push(*value),
            _ => {}
        }
        let stampable = !matches!(action, Action::OpenSession { .. });
        let stamp = (stampable && !choice[3].is_multiple_of(3)).then(|| {
            let sequence = 1 + u64::from(choice[2] % 6);
            let low = 1 + u64::from(choice[1] / 16) % sequence;
            Stamp { session: self.session(choice[3] / 3), sequence, low }
        });
        Op { id, author: None, stamp, action }
    }

    fn session(&self, pick: u8) -> SessionId {
        let unknown = SessionId { slot: 9999, position: 0 };
        let newest = self.sessions.len().saturating_sub(1 + usize::from(pick % 5));
        self.sessions.get(newest).copied().unwrap_or(unknown)
    }

    fn stored(&self, pick: u8) -> Value {
        let newest = self.stored.len().saturating_sub(1 + usize::from(pick % 8));
        let mut value = self.stored.get(newest).copied().unwrap_or(value_of(OpId(77)));
        if pick.is_multiple_of(31) {
            value.crc ^= 1;
        }
        value
    }

    fn action(&self, id: OpId, [what, a, b, c]: [u8; 4], slot: u64) -> Action {
        let a_key = || vec![b'a' + a % 16, b'x'][..1 + usize::from(a % 2)].into();
        let own = Content::Whole(value_of(id));
        match what % 22 {
            0..=6 => Action::Put { key: a_key(), content: own },
            7 => Action::Put { key: a_key(), content: Content::Whole(self.stored(b)) },
            8 => {
                let stripes = (0..1 + b % 3).map(|at| self.stored(c.wrapping_add(at)));
                Action::Put { key: a_key(), content: Content::Stripes(stripes.collect()) }
            }
            9 | 10 => Action::Part { value: value_of(id) },
            11 | 12 => Action::Delete { key: a_key() },
            13 => {
                let to = (c % 4 > 0).then(|| key(&[b'a' + b % 18]));
                Action::DeleteRange { from: a_key(), to }
            }
            14 | 15 => Action::OpenSession { window: 1 + u32::from(b % 4) },
            16 => Action::CloseSession { session: self.session(b) },
            17 => {
                let last_use = slot.saturating_sub(u64::from(c % 4));
                Action::ExpireSession { session: self.session(b), last_use }
            }
            18 => Action::Compact { revision: u64::from(b) % (2 + self.made) },
            19 | 20 => {
                let old = self.stored(b);
                Action::Recode { old: old.op, value: Value { op: id, k: 1 + c % 3, ..old } }
            }
            _ => Action::Noop,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelVersion {
    pub created: u64,
    pub main: u64,
    pub sub: u32,
    pub number: u64,
    /// Empty for a tombstone.
    pub values: Vec<Value>,
}

pub struct ModelSession {
    pub window: u64,
    pub low: u64,
    pub last_use: (u64, u32),
    pub results: BTreeMap<u64, Outcome>,
}

pub struct ModelPart {
    pub at: (u64, u32),
    pub value: Value,
    pub session: Option<SessionId>,
}

/// The state machine as its rules read, with no thought of cost.
pub struct Model {
    pub limits: Limits,
    pub revision: u64,
    pub compacted: Option<u64>,
    pub keys: BTreeMap<Vec<u8>, Vec<ModelVersion>>,
    pub parts: Vec<ModelPart>,
    pub sessions: BTreeMap<SessionId, ModelSession>,
}

impl Model {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            revision: 1,
            compacted: None,
            keys: BTreeMap::new(),
            parts: Vec::new(),
            sessions: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, slot: u64, position: u32, op: &Op) -> Outcome {
        let at = (slot, position);
        let refused = |reason, revision| Outcome::Refused { reason, revision };
        let revision = self.revision;
        let Some(stamp) = op.stamp else { return self.execute(at, op) };
        let Some(session) = self.sessions.get_mut(&stamp.session) else {
            return refused(Refusal::SessionExpired, revision);
        };
        session.last_use = at;
        if stamp.sequence < session.low {
            return refused(Refusal::Stale, revision);
        }
        match session.results.get(&stamp.sequence) {
            Some(Outcome::Applied(done)) => return Outcome::Replayed(*done),
            Some(other) => return *other,
            None => {}
        }
        if stamp.sequence >= session.low.max(stamp.low) + session.window {
            return refused(Refusal::Window, revision);
        }
        session.low = session.low.max(stamp.low);
        let low = session.low;
        session.results.retain(|&number, _| number >= low);
        let outcome = self.execute(at, op);
        if let Some(session) = self.sessions.get_mut(&stamp.session) {
            session.results.insert(stamp.sequence, outcome);
        }
        outcome
    }

    fn execute(&mut self, at: (u64, u32), op: &Op) -> Outcome {
        match self.changes(at, op) {
            Ok(changes) => Outcome::Applied(Done { revision: self.revision, changes }),
            Err(reason) => Outcome::Refused { reason, revision: self.revision },
        }
    }

    fn changes(&mut self, at: (u64, u32), op: &Op) -> Result<u32, Refusal> {
        match &op.action {
            Action::Noop => Ok(0),
            Action::Put { key, content } => {
                let values = match content {
                    Content::Whole(value) if value.op == op.id && self.find(op.id).is_none() => {
                        vec![*value]
                    }
                    Content::Whole(value) => vec![self.stored(value)?],
                    Content::Stripes(stripes) => {
                        stripes.iter().map(|value| self.stored(value)).collect::<Result<_, _>>()?
                    }
                };
                self.parts.retain(|part| !values.contains(&part.value));
                self.revision += 1;
                self.push(key, values, 0);
                Ok(1)
            }
            Action::Delete { key } => Ok(self.delete(|own| *own == **key)),
            Action::DeleteRange { from, to } => {
                Ok(self.delete(|key| *key >= **from && to.as_ref().is_none_or(|to| *key < **to)))
            }
            Action::Part { value } => {
                match self.stored(value) {
                    Ok(_) => return Ok(0),
                    Err(Refusal::ValueMissing) => {}
                    Err(reason) => return Err(reason),
                }
                let session = op.stamp.map(|stamp| stamp.session);
                self.parts.push(ModelPart { at, value: *value, session });
                if self.parts.len() > self.limits.parts_max as usize {
                    self.parts.remove(0);
                }
                Ok(0)
            }
            Action::OpenSession { window } => {
                if self.sessions.len() == self.limits.sessions_max as usize {
                    let oldest = self.sessions.iter().min_by_key(|(_, held)| held.last_use);
                    self.close(*oldest.unwrap().0);
                }
                let session = ModelSession {
                    window: u64::from(*window),
                    low: 1,
                    last_use: at,
                    results: BTreeMap::new(),
                };
                self.sessions.insert(SessionId { slot: at.0, position: at.1 }, session);
                Ok(0)
            }
            Action::CloseSession { session } => {
                self.close(*session);
                Ok(0)
            }
            Action::ExpireSession { session, last_use } => {
                if self.sessions.get(session).is_some_and(|held| held.last_use.0 == *last_use) {
                    self.close(*session);
                }
                Ok(0)
            }
            Action::Compact { revision } => self.compact(*revision),
            Action::Recode { old, value } => self.recode(*old, value),
            // A store without members refuses to change them.
            Action::ReplaceNode(_) | Action::NodeRebuilt { .. } => Err(Refusal::NoSuchNode),
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn recode(&mut self, old: OpId, value: &Value) -> Result<u32, Refusal> {
        let mut uses: Vec<&mut Value> = self
            .keys
            .values_mut()
            .flatten()
            .flat_map(|version| version.values.iter_mut().filter(|used| used.op == old))
            .collect();
        let Some(used) = uses.first() else { return Err(Refusal::ValueMissing) };
        if (Value { op: old, k: used.k, ..*value }) != **used {
            return Err(Refusal::ValueConflict);
        }
        uses.iter_mut().for_each(|used| **used = *value);
        Ok(0)
    }

    fn close(&mut self, session: SessionId) {
        if self.sessions.remove(&session).is_some() {
            self.parts.retain(|part| part.session != Some(session));
        }
    }

    fn compact(&mut self, revision: u64) -> Result<u32, Refusal> {
        if self.compacted.is_some_and(|compacted| revision <= compacted) {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = Some(revision);
        for versions in self.keys.values_mut() {
            let newest = versions.iter().rposition(|version| version.main <= revision);
            versions.drain(..newest.unwrap_or(0));
            if versions[0].values.is_empty() && versions[0].main < revision {
                versions.remove(0);
            }
        }
        self.keys.retain(|_, versions| !versions.is_empty());
        Ok(0)
    }

    fn push(&mut self, key: &[u8], values: Vec<Value>, sub: u32) {
        let main = self.revision;
        let versions = self.keys.entry(key.to_vec()).or_default();
        let live = versions.last().filter(|last| !last.values.is_empty());
        let (created, number) = match live {
            _ if values.is_empty() => (0, 0),
            Some(last) => (last.created, last.number + 1),
            None => (main, 1),
        };
        versions.push(ModelVersion { created, main, sub, number, values });
        while versions.len() > self.limits.history_max as usize {
            versions.remove(0);
            self.compacted = self.compacted.max(Some(versions[0].main));
            if versions[0].values.is_empty() {
                versions.remove(0);
            }
        }
        if versions.is_empty() {
            self.keys.remove(key);
        }
    }

    fn delete(&mut self, which: impl Fn(&[u8]) -> bool) -> u32 {
        let live = |versions: &Vec<ModelVersion>| !versions.last().unwrap().values.is_empty();
        let keys = self.keys.iter().filter(|(key, versions)| which(key) && live(versions));
        let keys: Vec<Vec<u8>> = keys.map(|(key, _)| key.clone()).collect();
        self.revision += u64::from(!keys.is_empty());
        for (sub, key) in (0..).zip(&keys) {
            self.push(key, Vec::new(), sub);
        }
        keys.len() as u32
    }

    fn named(&self) -> impl Iterator<Item = &Value> {
        self.keys.values().flatten().flat_map(|version| &version.values)
    }

    pub fn uses(&self, op: OpId) -> u32 {
        self.named().filter(|value| value.op == op).count() as u32
    }

    pub fn find(&self, op: OpId) -> Option<Value> {
        let mut all = self.named().chain(self.parts.iter().map(|part| &part.value));
        all.find(|value| value.op == op).copied()
    }

    fn stored(&self, value: &Value) -> Result<Value, Refusal> {
        match self.find(value.op) {
            None => Err(Refusal::ValueMissing),
            Some(found) if found != *value => Err(Refusal::ValueConflict),
            Some(found) => Ok(found),
        }
    }

    /// The newest version of a key at or below a revision, if live.
    pub fn at(&self, key: &[u8], revision: u64) -> Option<&ModelVersion> {
        let versions = self.keys.get(key)?;
        let version = versions.iter().rfind(|version| version.main <= revision)?;
        (!version.values.is_empty()).then_some(version)
    }
}
