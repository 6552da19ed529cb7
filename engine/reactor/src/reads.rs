//! Quorum reads: one round trip when nothing is in flight on the key, fragments included.
//!
//! Purpose: asks enough nodes for their newest version and marks, lets `ReadQuorum` say whose answer
//! counts (PROTOCOL 8), and collects k fragments of the value.
//! Invariant: a reply is the state after a decided prefix that holds every write completed before
//! the read began; bytes are sent only if they have the digest that was decided.

use crate::assemble::Unfit;
use crate::batch::Waiter;
use crate::fragments::Fetch;
use crate::journal::DiskRead;
use crate::layout;
use crate::node::Node;
use crate::patience::{Asking, Patience, WAIT_MAX, WAIT_MIN};
use crate::serve::Found;
use crate::wire::client::{ErrorCode, Reply, RequestError, put_stripes};
use crate::wire::node::{
    AnswerForm, AnswerHead, Asked, Query, ReadQuestion, SegmentAnswer, get_segment_answer,
    get_stripes, kind, put_segment,
};
use racos_buffer::Slice;
use racos_machine::{MEMBERS_MAX, OpId, Value};
use racos_net::{Link, Message as Frame};
use racos_protocol::{Input, Nanos, NodeSet, ReadQuorum, ReadStep, Slot};
use racos_storage::Place;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

const MS: Nanos = 1_000_000;
/// A read without an answer by then is asked of the others too, with growing pauses; one that lacks
/// fragments alone waits as [`Patience`] says.
const RETRY_MIN: Nanos = WAIT_MIN;
const RETRY_MAX: Nanos = WAIT_MAX;
/// A read that cannot be served by then fails.
const GIVE_UP: Nanos = 5_000 * MS;
/// How often reads under way are looked at.
const SCAN: Nanos = 2 * MS;

#[derive(Debug)]
enum Stage {
    /// Waiting for a quorum of answers.
    Quorum,
    /// Waiting until this node has executed a slot.
    Executed(Slot),
    /// Waiting for fragments.
    Fetch { revision: u64, value: Value },
}

/// What came of asking for a fragment.
enum Came {
    Here(Slice),
    Missing,
    /// The value is not in use any more, as of this exec.
    Gone(Slot),
}

/// A fragment in hand.
#[derive(Debug)]
pub(crate) struct Held {
    pub op: OpId,
    /// Whose fragment it is.
    pub node: u8,
    pub bytes: Slice,
}

struct Read {
    waiter: Waiter,
    query: Query,
    /// Of the configuration when the read began.
    epoch: u32,
    quorum: ReadQuorum,
    stage: Stage,
    best: Found,
    /// What this node knew when it asked.
    guess: Found,
    held: Vec<Held>,
    /// Nodes that were sent the question, and that were asked for a fragment and have not answered.
    asked: NodeSet,
    pending: NodeSet,
    /// Nodes that do not have the fragment, and the highest exec of those that say that the value is
    /// not in use any more.
    denied: NodeSet,
    gone: NodeSet,
    gone_exec: Option<Slot>,
    /// The result is the state after all slots below this.
    as_of: Slot,
    started: Nanos,
    retry_at: Nanos,
    retry_wait: Nanos,
    rounds: u32,
    asking: Asking,
    /// Of one stripe, without a quorum: as it was asked for.
    stripe: Option<Value>,
    /// A digest did not fit: some fragment is bad though its checksum is good.
    suspicious: bool,
}

impl Read {
    /// Keeps a fragment; one that came before, again or by another way, is not kept twice.
    fn hold(&mut self, new: Held) {
        if !self.held.iter().any(|held| held.node == new.node && held.op == new.op) {
            self.held.push(new);
        }
    }
}

/// Reads under way.
pub(crate) struct Reads {
    table: FxHashMap<u64, Read>,
    next: u64,
    waits: BTreeMap<Slot, Vec<u64>>,
    woken: Vec<u64>,
    scan_at: Nanos,
    patience: Patience,
}

impl Reads {
    /// Read ids start above `base`, which differs from boot to boot.
    pub fn new(base: u64) -> Reads {
        Reads {
            table: FxHashMap::default(),
            next: base,
            waits: BTreeMap::new(),
            woken: Vec::new(),
            scan_at: 0,
            patience: Patience::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// An id that no other question of this node has.
    pub fn new_id(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub fn deadline(&self) -> Option<Nanos> {
        (!self.table.is_empty()).then_some(self.scan_at)
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// GET or LIST.
    pub(crate) fn start_read(&mut self, waiter: Waiter, query: Query) {
        self.counts.reads += 1;
        let (exec, mark, guess) = self.answer_query(&query);
        let quorum = self.quorum(exec, mark);
        let best = guess.clone();
        let id = self.insert_read(waiter, query, quorum, Stage::Quorum, best, guess);
        let wanted = self.hold_own(id);
        self.ask_first(id, wanted);
        self.progress(id);
    }

    /// What this node itself answers.
    fn answer_query(&self, query: &Query) -> (Slot, Option<Slot>, Found) {
        match query {
            Query::Key(key) => self.local_answer(&Asked::Key(key)),
            Query::Range { from, to, limit } => {
                self.local_answer(&Asked::Range { from, to: to.as_deref(), limit: *limit })
            }
        }
    }

    /// The quorum that a read needs, with this node's own answer.
    fn quorum(&self, exec: Slot, mark: Option<Slot>) -> ReadQuorum {
        let (before, after) = self.core.read_configurations();
        let (before, after) = (before.thresholds.quorum, after.thresholds.quorum);
        // PROTOCOL 10-x
        let mut quorum = match self.core.is_filling() {
            true => ReadQuorum::joint(before, after),
            false => ReadQuorum::new(after),
        };
        quorum.answer(self.me, exec, mark);
        quorum
    }

    /// GETSTRIPE: no quorum, a stripe never changes.
    pub(crate) fn start_fetch(&mut self, waiter: Waiter, value: Value) {
        self.counts.reads += u64::from(!matches!(waiter, Waiter::Recode(_)));
        let value = self.forwarded(value);
        if self.layout_of(&value).is_none() || value.len == 0 {
            return self.refuse_fetch(&waiter, &value);
        }
        let quorum = ReadQuorum::new(self.core.thresholds().quorum);
        let stage = Stage::Fetch { revision: 0, value };
        let query = Query::Key(Vec::new());
        let id = self.insert_read(waiter, query, quorum, stage, Found::Absent, Found::Absent);
        self.reads.table.get_mut(&id).expect("just inserted").stripe = Some(value);
        self.take_own(id, value.op);
        self.progress(id);
    }

    /// A stripe coded for members that this node does not know, or one of nobody.
    fn refuse_fetch(&mut self, waiter: &Waiter, value: &Value) {
        let members = self.machine.members();
        let is_newer = members.newest().is_some_and(|newest| value.layout > newest.number);
        // PROTOCOL 8.1-p: layouts go when nothing uses them: the client looks again for the key.
        if value.len > 0 && !is_newer && members.layout(value.layout).is_none() {
            return self.reply(waiter, &Reply::NotFound, &[]);
        }
        let (code, text) = match is_newer {
            true => (ErrorCode::Unavailable, "this node has to catch up first; ask another"),
            false => (ErrorCode::BadRequest, "the stripe's code is not one of this cluster"),
        };
        let error = RequestError { code, text: text.into() };
        self.reply(waiter, &Reply::Error(error), &[]);
    }

    fn insert_read(
        &mut self,
        waiter: Waiter,
        query: Query,
        quorum: ReadQuorum,
        stage: Stage,
        best: Found,
        guess: Found,
    ) -> u64 {
        let id = self.reads.new_id();
        if self.reads.table.is_empty() {
            self.reads.scan_at = self.now + SCAN;
        }
        let read = Read {
            waiter,
            query,
            epoch: self.core.epoch(),
            quorum,
            stage,
            best,
            guess,
            held: Vec::new(),
            asked: NodeSet::EMPTY,
            pending: NodeSet::EMPTY,
            denied: NodeSet::EMPTY,
            gone: NodeSet::EMPTY,
            gone_exec: None,
            as_of: self.core.exec(),
            started: self.now,
            retry_at: self.now + RETRY_MIN,
            retry_wait: RETRY_MIN,
            rounds: 0,
            asking: Asking::new(self.now),
            stripe: None,
            suspicious: false,
        };
        self.reads.table.insert(id, read);
        id
    }

    /// Takes the own fragment of the guessed version; returns how many more are needed.
    fn hold_own(&mut self, id: u64) -> usize {
        let read = &self.reads.table[&id];
        let Found::Values { values, .. } = &read.guess else { return 0 };
        let [value] = values[..] else { return 0 };
        if value.len == 0 {
            return 0;
        }
        // PROTOCOL 8.1-h: k fragments in all, the own one first.
        let own = usize::from(self.take_own(id, value.op));
        usize::from(value.k) - own
    }

    /// Takes, or starts to read, the own fragment of an operation.
    fn take_own(&mut self, id: u64, op: OpId) -> bool {
        match self.fragments.find(op) {
            Some(Fetch::Memory(bytes)) => {
                let node = self.me;
                let read = self.reads.table.get_mut(&id).expect("the read is under way");
                read.hold(Held { op, node, bytes });
                true
            }
            Some(Fetch::Disk { place, crc }) => {
                let what = DiskRead::Own { read: id, op: op.0, at: place };
                let started = self.read_disk(what, place, Some(crc));
                if started && let Some(read) = self.reads.table.get_mut(&id) {
                    read.pending.insert(self.me);
                }
                started
            }
            None => {
                if let Some(read) = self.reads.table.get_mut(&id) {
                    read.denied.insert(self.me);
                }
                false
            }
        }
    }

    /// Asks as many nodes as a quorum needs, those that hold data fragments first; the first
    /// `wanted` of them send their fragment along.
    fn ask_first(&mut self, id: u64, wanted: usize) {
        let (before, after) = self.core.read_configurations();
        let needed = match self.core.is_filling() {
            true => MEMBERS_MAX,
            false => after.thresholds.quorum - 1,
        };
        let suspected = self.core.suspected();
        let k = after.thresholds.k;
        let mut chosen = Vec::with_capacity(after.members.len());
        // Parity holders take turns, so that no node is asked more than the others.
        let (data, parity) = after.members.split_at(k);
        let turn = id as usize % parity.len().max(1);
        let leaving = before.thresholds.members.without(after.thresholds.members);
        let order = data.iter().chain(&parity[turn..]).chain(&parity[..turn]).copied();
        let order: Vec<u8> = order.chain(leaving.iter()).collect();
        for trusted in [true, false] {
            for node in order.iter().copied().filter(|node| *node != self.me) {
                if suspected.contains(node) != trusted && chosen.len() < needed {
                    chosen.push(node);
                }
            }
        }
        let holders = self.guessed_holders(id);
        let mut wanted = wanted;
        for node in chosen {
            let brings = wanted > 0 && holders.contains(node);
            wanted -= usize::from(brings);
            self.ask(id, node, brings);
        }
    }

    /// Who holds fragments of what this node takes for the newest version.
    fn guessed_holders(&self, id: u64) -> NodeSet {
        match &self.reads.table[&id].guess {
            Found::Values { values, .. } if values.len() == 1 => self.holders_of(&values[0]),
            _ => NodeSet::EMPTY,
        }
    }

    fn ask(&mut self, id: u64, to: u8, fragment: bool) {
        let Some(read) = self.reads.table.get_mut(&id) else { return };
        read.asked.insert(to);
        if fragment {
            read.pending.insert(to);
            read.asking.ask(to);
        }
        let guess = match &read.guess {
            Found::Values { values, .. } if values.len() == 1 => values[0].op.0,
            _ => 0,
        };
        let mut head = std::mem::take(&mut self.scratch);
        head.clear();
        ReadQuestion { read: id, fragment, guess, query: &read.query }.put(&mut head);
        if let Some(address) = self.addresses.get(to) {
            let _ = self.net.send(address, kind::READQ, &head, &[], self.now);
        }
        self.scratch = head;
    }

    pub(crate) fn own_fragment_read(&mut self, id: u64, op: u128, at: Place, bytes: Option<Slice>) {
        self.read_back(op, at, &bytes);
        let came = bytes.map_or(Came::Missing, Came::Here);
        self.fragment_came(id, self.me, OpId(op), came);
    }

    /// READR.
    pub(crate) fn on_read_answer(&mut self, from: u8, frame: &Frame) {
        let Ok(answer) = AnswerHead::get(&frame.head) else { return };
        let counts = self.core.reads_count(from, frame.from.incarnation);
        let epoch = self.core.epoch();
        let Some(read) = self.reads.table.get_mut(&answer.read) else { return };
        // PROTOCOL 8.1-q, 10-y, 12.1-i: a change that this node has not executed: execute it, start again.
        if answer.epoch > epoch {
            let waits = matches!(read.stage, Stage::Executed(_));
            if !waits && answer.exec > self.core.exec() {
                self.wait_executed(answer.read, answer.exec - 1);
            }
            return;
        }
        if counts == (false, false) {
            return;
        }
        let newer = read.quorum.answer_as(from, counts, answer.exec, answer.mark);
        let mut fragment_of = None;
        let found = match answer.form {
            AnswerForm::Absent => Some(Found::Absent),
            AnswerForm::AsGuessed => match &read.guess {
                Found::Values { values, .. } if values.len() == 1 => {
                    fragment_of = Some(values[0].op);
                    Some(read.guess.clone())
                }
                _ => return,
            },
            AnswerForm::Value { revision, value } => {
                fragment_of = Some(value.op);
                Some(Found::Values { revision, values: vec![value] })
            }
            AnswerForm::Stripes { revision } => {
                let Ok(values) = get_stripes(&frame.body) else { return };
                Some(Found::Values { revision, values })
            }
            AnswerForm::Keys { more } => Some(Found::Keys { bytes: frame.body.clone(), more }),
        };
        if newer && let Some(found) = found {
            read.best = found;
            read.as_of = answer.exec;
        }
        match fragment_of {
            Some(op) if !frame.body.is_empty() => {
                read.pending.remove(from);
                self.reads.patience.came(&mut read.asking, from, frame.body.len(), self.now);
                read.hold(Held { op, node: from, bytes: frame.body.clone() });
            }
            // A fragment on disk follows in a SEG of its own.
            Some(_) => {}
            None => read.pending.remove(from),
        }
        self.progress(answer.read);
    }

    /// SEG.
    pub(crate) fn on_segment_answer(&mut self, from: u8, frame: &Frame) {
        let Ok((read, op, answer)) = get_segment_answer(&frame.head) else { return };
        if !self.reads.table.contains_key(&read) {
            return self.repair_answer(read, from, OpId(op), answer, &frame.body);
        }
        let came = match answer {
            SegmentAnswer::Here => Came::Here(frame.body.clone()),
            SegmentAnswer::Missing => Came::Missing,
            SegmentAnswer::Gone { exec } => Came::Gone(exec),
            // Repairs alone ask for it.
            SegmentAnswer::Hosted { .. } => return,
        };
        self.fragment_came(read, from, OpId(op), came);
    }

    fn fragment_came(&mut self, id: u64, node: u8, op: OpId, came: Came) {
        let Some(read) = self.reads.table.get_mut(&id) else { return };
        read.pending.remove(node);
        let wanted = matches!(&read.stage, Stage::Fetch { value, .. } if value.op == op);
        match came {
            Came::Here(bytes) => {
                self.reads.patience.came(&mut read.asking, node, bytes.len(), self.now);
                read.hold(Held { op, node, bytes });
            }
            // PROTOCOL 8.1-o: another node is asked, in `progress`.
            Came::Missing if wanted => read.denied.insert(node),
            Came::Gone(exec) if wanted => {
                read.denied.insert(node);
                read.gone.insert(node);
                read.gone_exec = read.gone_exec.max(Some(exec));
            }
            _ => {}
        }
        self.progress(id);
    }

    /// Does what the answers so far allow.
    fn progress(&mut self, id: u64) {
        let epoch = self.core.epoch();
        let Some(read) = self.reads.table.get_mut(&id) else { return };
        if matches!(read.stage, Stage::Quorum) && read.epoch != epoch {
            return self.start_again(id);
        }
        match read.stage {
            Stage::Executed(_) => {}
            Stage::Fetch { .. } => self.try_finish(id),
            Stage::Quorum => match read.quorum.step() {
                ReadStep::Wait => {}
                // PROTOCOL 8.1-j: all of the newest answer.
                ReadStep::Use(_) => {
                    let best = std::mem::replace(&mut read.best, Found::Absent);
                    self.resolved(id, best);
                }
                // PROTOCOL 8.1-l: the marked slot is in use here; wait until it is executed.
                ReadStep::WaitExecuted(slot) => self.wait_executed(id, slot),
            },
        }
    }

    fn wait_executed(&mut self, id: u64, slot: Slot) {
        let read = self.reads.table.get_mut(&id).expect("the read is under way");
        read.stage = Stage::Executed(slot);
        read.rounds += 1;
        self.reads.waits.entry(slot).or_default().push(id);
        self.step(Input::InUse { slot });
    }

    /// Notes the reads whose slot is executed now; they go on in `wake_reads`, at the end of the
    /// turn, so that the core is not entered again from within its own effects.
    pub(crate) fn wake_executed(&mut self) {
        while let Some(entry) = self.reads.waits.first_entry()
            && *entry.key() < self.core.exec()
        {
            self.reads.woken.extend(entry.remove());
        }
    }

    /// Continues reads whose slot was executed, and asks again for what did not come.
    pub(crate) fn wake_reads(&mut self) {
        self.wake_executed();
        while let Some(id) = self.reads.woken.pop() {
            if self.reads.table.contains_key(&id) {
                self.resolve_here(id);
            }
        }
        if self.reads.table.is_empty() || self.now < self.reads.scan_at {
            return;
        }
        self.reads.scan_at = self.now + SCAN;
        let now = self.now;
        let mut due: Vec<u64> = self
            .reads
            .table
            .iter()
            .filter(|(_, read)| read.retry_at <= now)
            .map(|(id, _)| *id)
            .collect();
        due.sort_unstable();
        due.into_iter().for_each(|id| self.retry(id));
    }

    /// PROTOCOL 8.1-q: who the members are has changed since the read began. It goes on under another
    /// id: answers to the first question say nothing about now.
    fn start_again(&mut self, id: u64) {
        let Some(old) = self.reads.table.remove(&id) else { return };
        let (exec, mark, guess) = self.answer_query(&old.query);
        let quorum = self.quorum(exec, mark);
        let best = guess.clone();
        let new = self.insert_read(old.waiter, old.query, quorum, Stage::Quorum, best, guess);
        let read = self.reads.table.get_mut(&new).expect("just inserted");
        (read.started, read.rounds) = (old.started, old.rounds + 1);
        let wanted = self.hold_own(new);
        self.ask_first(new, wanted);
        self.progress(new);
    }

    /// PROTOCOL 8.1-l: the result is the own index, all keys at one instant.
    fn resolve_here(&mut self, id: u64) {
        let read = &self.reads.table[&id];
        if let Some(value) = read.stripe {
            return self.find_stripe_again(id, value);
        }
        if read.epoch != self.core.epoch() {
            return self.start_again(id);
        }
        let found = match &read.query {
            Query::Key(key) => self.local_version(key),
            Query::Range { from, to, limit } => self.local_keys(from, to.as_deref(), *limit),
        };
        let read = self.reads.table.get_mut(&id).expect("looked up above");
        read.as_of = self.core.exec();
        self.resolved(id, found);
    }

    /// The answer is known; what is left is to get the bytes.
    fn resolved(&mut self, id: u64, found: Found) {
        let read = self.reads.table.get_mut(&id).expect("the read is under way");
        let (revision, values) = match found {
            Found::Absent => return self.finish(id, &Reply::NotFound, &[]),
            Found::Keys { bytes, more } => {
                return self.finish(id, &Reply::Keys { more }, &[bytes]);
            }
            Found::Values { revision, values } => (revision, values),
        };
        match values[..] {
            [value] if value.len == 0 => self.finish(id, &Reply::Found { revision }, &[]),
            [value] => {
                read.stage = Stage::Fetch { revision, value };
                let own = read.held.iter().any(|held| held.op == value.op && held.node == self.me);
                let guessed = matches!(&read.guess, Found::Values { values, .. }
                    if values.len() == 1 && values[0].op == value.op);
                read.held.retain(|held| held.op == value.op);
                // The own one may have turned out to be unreadable while the quorum was asked.
                let own = own || (guessed && read.pending.contains(self.me));
                if !guessed {
                    // Fragments under way are of another version, or none were asked for.
                    read.pending = NodeSet::EMPTY;
                    read.denied = NodeSet::EMPTY;
                    read.gone = NodeSet::EMPTY;
                    read.asking = Asking::new(self.now);
                }
                if !own {
                    self.take_own(id, value.op);
                }
                self.try_finish(id);
            }
            _ => {
                let mut bytes = Vec::new();
                put_stripes(&mut bytes, &values);
                match self.pool.copy(&bytes) {
                    Some(body) => self.finish(id, &Reply::FoundStripes { revision }, &[body]),
                    None => self.fail_read(id, ErrorCode::Busy, "the node's buffers are in use"),
                }
            }
        }
    }

    fn finish(&mut self, id: u64, reply: &Reply, body: &[Slice]) {
        let Some(read) = self.reads.table.remove(&id) else { return };
        let is_client = !matches!(read.waiter, Waiter::Recode(_));
        self.counts.reads_one_round += u64::from(read.rounds == 0 && is_client);
        self.reply(&read.waiter, reply, body);
    }

    fn fail_read(&mut self, id: u64, code: ErrorCode, text: &str) {
        let error = RequestError { code, text: text.into() };
        self.finish(id, &Reply::Error(error), &[]);
    }

    /// Replies if k fragments are in hand; asks for more if too few are on their way.
    fn try_finish(&mut self, id: u64) {
        let read = &self.reads.table[&id];
        let Stage::Fetch { revision, value } = read.stage else { return };
        if self.layout_of(&value).is_none() {
            // It went out of use, and its layout with it, since it was found; or it is of members
            // that this node has not heard of.
            return self.replaced(id);
        }
        let k = usize::from(value.k);
        let held = read.held.iter().filter(|held| held.op == value.op).count();
        if held >= k {
            let decoded = self.decode(&read.held, &value, read.suspicious);
            match decoded.map(|decoded| decoded.pieces) {
                Ok(pieces) => {
                    let read = self.reads.table.get_mut(&id).expect("the read is under way");
                    if read.suspicious {
                        let held = std::mem::take(&mut read.held);
                        self.report_odd(&held, &value);
                    }
                    return self.finish(id, &Reply::Found { revision }, &pieces);
                }
                Err(Unfit::NoBuffers) => return,
                Err(Unfit::Digest) => {
                    let all = self.holders_of(&value);
                    let read = self.reads.table.get_mut(&id).expect("the read is under way");
                    read.suspicious = true;
                    let known = held + read.denied.len();
                    if known >= all.len() {
                        let text = "the fragments found do not make the value that was written";
                        return self.fail_read(id, ErrorCode::DataLoss, text);
                    }
                    self.ask_fragments(id, MEMBERS_MAX);
                    return;
                }
            }
        }
        let missing = k - held;
        let on_the_way = self.reads.table[&id].pending.len();
        if on_the_way < missing {
            self.ask_fragments(id, missing - on_the_way);
        }
        if self.is_replaced(id, &value) {
            return self.replaced(id);
        }
        // PROTOCOL 9.5-g: never an older value, never silence.
        let holders = self.holders_of(&value);
        let left = holders.without(self.reads.table[&id].denied).len();
        if left < k {
            if self.may_have_gone(id, &value) {
                return self.replaced(id);
            }
            let (n, lacking) = (holders.len(), holders.len() - left);
            let text = format!(
                "{lacking} of {n} nodes answered that they lack their fragment; {k} are needed"
            );
            self.fail_read(id, ErrorCode::DataLoss, &text);
        }
    }

    /// Whether it is certain that no version uses the value any more. A node that says so may only
    /// not have executed it yet.
    fn is_replaced(&self, id: u64, value: &Value) -> bool {
        let read = &self.reads.table[&id];
        let live_here = self.machine.value(value.op).is_some();
        if read.stripe.is_none() {
            // Whoever has executed all that the result shows has executed the value.
            let here = !live_here && self.core.exec() >= read.as_of;
            return here || read.gone_exec.is_some_and(|exec| exec >= read.as_of);
        }
        if self.forwarded(*value).op != value.op {
            return true;
        }
        // So many nodes that one of them held a fragment when the value was decided, and would still
        // hold it, if it were in use.
        let gone = read.gone.len() + usize::from(!live_here && read.denied.contains(self.me));
        gone > usize::from(value.n) - self.support_of(value).min(usize::from(value.n))
    }

    /// Whether a stripe that too few nodes have may just be in no use any more: as of a slot that another node
    /// has executed and this one has not, or as of here, while those that lack it are behind.
    fn may_have_gone(&self, id: u64, value: &Value) -> bool {
        let read = &self.reads.table[&id];
        let gone_later = read.gone_exec.is_some_and(|exec| exec > self.core.exec());
        read.stripe.is_some() && (gone_later || self.machine.value(value.op).is_none())
    }

    /// PROTOCOL 8.1-p GONE: execute what the others have, and look again.
    fn replaced(&mut self, id: u64) {
        let exec = self.core.exec();
        let read = self.reads.table.get_mut(&id).expect("the read is under way");
        read.guess = Found::Absent;
        let ahead = read.gone_exec.take().unwrap_or(0).max(read.as_of);
        match ahead > exec {
            true => self.wait_executed(id, ahead - 1),
            false => self.resolve_here(id),
        }
    }

    /// PROTOCOL 9.8-c: all is executed that the others have: the stripe is where it was re-coded to, or
    /// in no use, and the client looks again for the key.
    fn find_stripe_again(&mut self, id: u64, before: Value) {
        let value = self.forwarded(before);
        if value.op == before.op || self.layout_of(&value).is_none() {
            return self.finish(id, &Reply::NotFound, &[]);
        }
        let read = self.reads.table.get_mut(&id).expect("the read is under way");
        read.stripe = Some(value);
        read.stage = Stage::Fetch { revision: 0, value };
        read.held.clear();
        (read.pending, read.denied, read.gone) = (NodeSet::EMPTY, NodeSet::EMPTY, NodeSet::EMPTY);
        read.asking = Asking::new(self.now);
        read.suspicious = false;
        self.take_own(id, value.op);
        self.try_finish(id);
    }

    /// Asks `more` further nodes for their fragment, those with data fragments first; returns how many
    /// there were.
    fn ask_fragments(&mut self, id: u64, more: usize) -> usize {
        let suspected = self.core.suspected();
        let Stage::Fetch { value, .. } = self.reads.table[&id].stage else { return 0 };
        let order = self.layout_of(&value).map(|layout| layout.members.clone()).unwrap_or_default();
        let read = self.reads.table.get_mut(&id).expect("the read is under way");
        let mut targets = Vec::new();
        for trusted in [true, false] {
            for node in order.iter().copied().filter(|node| *node != self.me) {
                let busy = read.pending.contains(node) || read.denied.contains(node);
                let have = read.held.iter().any(|held| held.node == node && held.op == value.op);
                let fits = suspected.contains(node) != trusted;
                if !busy && !have && fits && targets.len() < more {
                    targets.push(node);
                }
            }
        }
        if !targets.is_empty() {
            read.rounds += 1;
        }
        if !read.asking.is_begun() {
            read.asking = Asking::new(self.now);
            targets.iter().for_each(|node| read.asking.ask(*node));
        }
        for node in &targets {
            let read = self.reads.table.get_mut(&id).expect("the read is under way");
            read.pending.insert(*node);
            let mut head = Vec::with_capacity(32);
            put_segment(&mut head, id, value.op.0, None);
            self.send(*node, kind::GETSEG, &head, &[]);
        }
        targets.len()
    }

    /// Until when a read waits for the fragments that it asked for.
    fn waits_until(&self, id: u64) -> Nanos {
        let read = &self.reads.table[&id];
        let Stage::Fetch { value, .. } = read.stage else { return read.retry_at };
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        self.reads.patience.due(&read.asking, len)
    }

    /// PROTOCOL 8.1-h, 8.1-t, 12.2-i: what was asked did not come in time: ask one node more, and then
    /// everybody who could help.
    fn retry(&mut self, id: u64) {
        let now = self.now;
        // PROTOCOL 8.1-u: it is late because there is much to do, if all of them are.
        let until = self.waits_until(id);
        let read = self.reads.table.get_mut(&id).expect("the caller found it");
        if until > now {
            (read.retry_at, read.retry_wait) = (until, until - read.asking.since());
            return;
        }
        if now >= read.started + GIVE_UP {
            let text = match read.stage {
                Stage::Fetch { .. } => "too few nodes with a fragment of the value answer",
                _ => "too few nodes answer: a read needs n-f of them",
            };
            return self.fail_read(id, ErrorCode::Unavailable, text);
        }
        read.retry_wait = (read.retry_wait * 2).min(RETRY_MAX);
        read.retry_at = now + read.retry_wait;
        match read.stage {
            Stage::Quorum => {
                let (before, after) = self.core.read_configurations();
                let (before, after) = (before.thresholds.members, after.thresholds.members);
                let mut missing = read.quorum.missing(before, after);
                missing.remove(self.me);
                read.rounds += 1;
                for node in missing.iter() {
                    self.ask(id, node, false);
                }
            }
            Stage::Executed(slot) => self.step(Input::InUse { slot }),
            Stage::Fetch { .. } => {
                let is_first = !std::mem::replace(&mut read.asking.is_widened, true);
                if is_first && self.ask_fragments(id, 1) > 0 {
                    return;
                }
                let read = self.reads.table.get_mut(&id).expect("the caller found it");
                // What the own disk reads comes, or an error does: it is not read twice.
                let is_read = read.pending.contains(self.me);
                read.pending = NodeSet::EMPTY;
                if is_read {
                    read.pending.insert(self.me);
                }
                self.ask_fragments(id, MEMBERS_MAX);
            }
        }
    }
}
