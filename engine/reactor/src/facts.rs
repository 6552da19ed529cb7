//! Telling nodes that lag what was decided, and being told (PROTOCOL 9.3).
//!
//! PROTOCOL 9.3-b: a range of facts is read from the log. One range at a time per peer. What the history
//! does not reach back to is told as a whole: see [`crate::snap`].
//! Invariant: facts are sent only for executed slots, and an entry is exactly the batch decided.

use crate::batch::Batch;
use crate::history::Past;
use crate::journal::DiskRead;
use crate::node::Node;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::{get_facts_head, kind, put_facts_head};
use racos_buffer::Slice;
use racos_net::{Link, Message as Frame};
use racos_protocol::{Input, Message, Slot, Value};
use racos_storage::device::Device;
use rustc_hash::FxHashMap;

/// Bounds of one range.
const SLOTS_MAX: Slot = 1024;
const BATCHES_MAX: usize = 64;
const BYTES_MAX: u32 = 256 << 10;

enum Entry {
    Null,
    Reading,
    Batch(Slice),
}

struct Job {
    to: u8,
    from: Slot,
    entries: Vec<Entry>,
    reading: usize,
}

/// Ranges being read for others.
#[derive(Default)]
pub(crate) struct FactsJobs {
    jobs: FxHashMap<u64, Job>,
    next: u64,
}

impl<L: Link, D: Device> Node<L, D> {
    /// Starts to answer a node that asked for the decisions in `[from, until)`.
    pub(crate) fn send_facts(&mut self, from: Slot, until: Slot, to: u8) {
        self.facts.jobs.retain(|_, job| job.to != to);
        let id = self.facts.next;
        self.facts.next += 1;
        let mut job = Job { to, from, entries: Vec::new(), reading: 0 };
        let mut bytes = 0;
        for slot in from..until.min(from + SLOTS_MAX) {
            match self.history.get(slot) {
                Some(Past::Null) => job.entries.push(Entry::Null),
                Some(Past::Batch(place)) => {
                    bytes += place.len;
                    if job.reading > 0 && (job.reading >= BATCHES_MAX || bytes > BYTES_MAX) {
                        break;
                    }
                    let what = DiskRead::Facts { job: id, index: job.entries.len() };
                    if !self.read_disk(what, place, None) {
                        break;
                    }
                    job.entries.push(Entry::Reading);
                    job.reading += 1;
                }
                Some(Past::Unplaced) | None => break,
            }
        }
        if job.entries.is_empty() {
            if from < self.history.first() {
                self.offer_snapshot(to, from);
            }
            return;
        }
        let ready = job.reading == 0;
        self.facts.jobs.insert(id, job);
        if ready {
            self.finish_facts(id);
        }
    }

    pub(crate) fn facts_read(&mut self, id: u64, index: usize, bytes: Option<Slice>) {
        let Some(job) = self.facts.jobs.get(&id) else { return };
        let slot = job.from + index as Slot;
        let good = bytes.filter(|bytes| self.stored_head(slot, bytes).is_some());
        let job = self.facts.jobs.get_mut(&id).expect("looked up above");
        let Some(bytes) = good else {
            // Unreadable here: what lies before it is still of use; the rest another node tells.
            job.entries.truncate(index);
            job.reading = job.entries.iter().filter(|e| matches!(e, Entry::Reading)).count();
            if job.reading == 0 {
                self.finish_facts(id);
            }
            return;
        };
        if let Some(entry) = job.entries.get_mut(index) {
            *entry = Entry::Batch(bytes);
            job.reading -= 1;
            if job.reading == 0 {
                self.finish_facts(id);
            }
        }
    }

    fn finish_facts(&mut self, id: u64) {
        let Some(job) = self.facts.jobs.remove(&id) else { return };
        if job.entries.is_empty() {
            // The first cannot be read here.
            return self.offer_snapshot(job.to, job.from);
        }
        let mut body = Vec::new();
        for (index, entry) in job.entries.iter().enumerate() {
            match entry {
                Entry::Null => body.put_long(&[]),
                Entry::Batch(bytes) => {
                    let head = self.stored_head(job.from + index as Slot, bytes);
                    body.put_long(head.expect("checked when it was read").batch);
                }
                Entry::Reading => unreachable!("a range is sent when all of it is read"),
            }
        }
        let Some(body) = self.pool.copy(&body) else { return };
        let mut head = Vec::with_capacity(16);
        put_facts_head(&mut head, self.core.exec(), job.from);
        self.send(job.to, kind::FACTS, &head, &[body]);
    }

    /// A range of facts has come.
    pub(crate) fn on_facts(&mut self, from: u8, frame: &Frame) {
        let Ok((exec, mut slot)) = get_facts_head(&frame.head) else { return };
        let before = self.core.exec();
        let mut body = Reader::new(&frame.body);
        while !body.is_empty() {
            let Ok(bytes) = body.long("batch") else { return };
            if slot >= self.core.exec() && !self.learn_fact(from, slot, bytes) {
                return;
            }
            slot += 1;
        }
        self.step(Input::FactsEnd { from, exec });
        if self.core.exec() > before {
            self.snaps.facts_flow(self.now);
        }
    }

    fn learn_fact(&mut self, from: u8, slot: Slot, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            let message = Message::Decide { slot, value: Value::Null };
            self.step(Input::Message { from, message });
            return true;
        }
        let Ok(batch) = Batch::decode(bytes, &self.secrets) else { return false };
        let value = Value::Batch(batch.info.digest);
        // PROTOCOL 9.3-c: the decision first; it says which metas are taken.
        self.step(Input::Message { from, message: Message::Decide { slot, value } });
        self.learn_batch(slot, batch);
        true
    }
}
