//! Telling nodes that lag what was decided, and being told (PROTOCOL 9.3).
//!
//! PROTOCOL 9.3-b: a range of facts is read from the log. What the history does not reach back to is
//! told as a whole: see [`crate::snap`].
//! Invariant: facts are sent only for executed slots, and an entry is exactly the batch decided. One
//! range at a time is read for a peer, however often it asks.

use crate::batch::Batch;
use crate::history::Past;
use crate::journal::DiskRead;
use crate::node::Node;
use crate::put_off::Question;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::{get_facts_head, kind, put_facts_head};
use racos_buffer::Slice;
use racos_net::{Link, Message as Frame};
use racos_protocol::{Input, Message, Slot, Value};
use racos_storage::device::Device;
use rustc_hash::FxHashMap;

/// Bounds of one range.
const SLOTS_MAX: Slot = 1024;
const BATCHES_MAX: usize = 128;
const BYTES_MAX: u32 = 512 << 10;

enum Entry {
    Null,
    Reading,
    Batch(Slice),
}

struct Job {
    id: u64,
    from: Slot,
    entries: Vec<Entry>,
    reading: usize,
    /// What was asked for meanwhile and is not part of this range.
    next: Option<(Slot, Slot)>,
}

impl Job {
    /// Another question of the same peer: what this range brings it need not be sent twice.
    fn asked_again(&mut self, from: Slot, until: Slot) {
        let end = self.from + self.entries.len() as Slot;
        if !(self.from..end).contains(&from) {
            self.next = Some((from, until));
        }
    }
}

/// The range that is being read for each peer.
#[derive(Default)]
pub(crate) struct FactsJobs {
    jobs: FxHashMap<u8, Job>,
    next: u64,
    /// Ranges sent.
    pub(crate) told: u64,
}

impl FactsJobs {
    fn find(&mut self, to: u8, id: u64) -> Option<&mut Job> {
        self.jobs.get_mut(&to).filter(|job| job.id == id)
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Starts to answer a node that asked for the decisions in `[from, until)`. False if the disk cannot
    /// be asked now for any of them.
    pub(crate) fn send_facts(&mut self, from: Slot, until: Slot, to: u8) -> bool {
        // PROTOCOL 12.3-f
        if let Some(job) = self.facts.jobs.get_mut(&to) {
            job.asked_again(from, until);
            return true;
        }
        let id = self.facts.next;
        self.facts.next += 1;
        let mut job = Job { id, from, entries: Vec::new(), reading: 0, next: None };
        let mut bytes = 0;
        for slot in from..until.min(from + SLOTS_MAX) {
            match self.history.get(slot) {
                Some(Past::Null) => job.entries.push(Entry::Null),
                Some(Past::Batch(place)) => {
                    bytes += place.len;
                    if job.reading > 0 && (job.reading >= BATCHES_MAX || bytes > BYTES_MAX) {
                        break;
                    }
                    let what = DiskRead::Facts { to, job: id, index: job.entries.len() };
                    if !self.read_disk(what, place, None) {
                        if job.entries.is_empty() {
                            return false;
                        }
                        break;
                    }
                    job.entries.push(Entry::Reading);
                    job.reading += 1;
                }
                Some(Past::Unplaced) | None => break,
            }
        }
        if job.entries.is_empty() {
            // PROTOCOL 5.4-b
            if from < self.history.first() {
                self.offer_snapshot(to, from);
            }
            return true;
        }
        let ready = job.reading == 0;
        self.facts.jobs.insert(to, job);
        if ready {
            self.finish_facts(to);
        }
        true
    }

    pub(crate) fn facts_read(&mut self, to: u8, id: u64, index: usize, bytes: Option<Slice>) {
        let Some(job) = self.facts.find(to, id) else { return };
        let slot = job.from + index as Slot;
        let good = bytes.filter(|bytes| self.stored_head(slot, bytes).is_some());
        let job = self.facts.find(to, id).expect("looked up above");
        match good {
            Some(bytes) => {
                let Some(entry) = job.entries.get_mut(index) else { return };
                *entry = Entry::Batch(bytes);
                job.reading -= 1;
            }
            None => {
                // Unreadable here: what lies before it is still of use; the rest another node tells.
                job.entries.truncate(index);
                job.reading = job.entries.iter().filter(|e| matches!(e, Entry::Reading)).count();
            }
        }
        if job.reading == 0 {
            self.finish_facts(to);
        }
    }

    fn finish_facts(&mut self, to: u8) {
        let Some(job) = self.facts.jobs.remove(&to) else { return };
        let next = job.next;
        self.tell_facts(to, job);
        if let Some((from, until)) = next {
            self.on_question(Question::Facts { to, from, until });
        }
    }

    fn tell_facts(&mut self, to: u8, job: Job) {
        if job.entries.is_empty() {
            // The first cannot be read here.
            return self.offer_snapshot(to, job.from);
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
        self.facts.told += 1;
        self.send(to, kind::FACTS, &head, &[body]);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 12.3-f
    #[test]
    fn what_is_being_read_for_a_node_is_not_read_again_because_it_asks_again() {
        let entries = (0..40).map(|_| Entry::Reading).collect();
        let mut job = Job { id: 0, from: 100, entries, reading: 40, next: None };
        for from in [100, 139, 100] {
            job.asked_again(from, 500);
            assert_eq!(job.next, None, "slot {from} is part of it");
        }
        job.asked_again(140, 141);
        job.asked_again(99, 100);
        assert_eq!(job.next, Some((99, 100)), "one more range, whatever was asked for");
        job.asked_again(120, 500);
        assert_eq!(job.next, Some((99, 100)));
    }
}
