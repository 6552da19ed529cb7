//! What a node tells the reads of others: its newest versions and marks, and its fragments.
//!
//! Invariant: an answer is of one instant of this node's state, and its mark is never too low
//! (PROTOCOL 8.1-a, 8.1-d). Fragments are told by operation, whatever the own exec (7-h).

use crate::batch::{key_hash, touches};
use crate::fragments::Fetch;
use crate::journal::DiskRead;
use crate::node::Node;
use crate::put_off::Question;
use crate::wire::client::put_stripes;
use crate::wire::node::{
    AnswerForm, AnswerHead, Asked, SegmentAnswer, get_question, get_segment_question, kind,
    put_keys, put_segment,
};
use racos_buffer::Slice;
use racos_machine::{OpId, Value};
use racos_net::{Link, Message as Frame};
use racos_protocol::Slot;
use racos_storage::Place;
use racos_storage::device::Device;

/// Most bytes of keys in one answer.
pub(crate) const KEYS_BYTES_MAX: usize = 256 << 10;

/// What a node answered, or this node itself knows.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    Absent,
    Values {
        revision: u64,
        values: Vec<Value>,
    },
    /// Keys as they go to the client.
    Keys {
        bytes: Slice,
        more: bool,
    },
}

impl<L: Link, D: Device> Node<L, D> {
    /// PROTOCOL 8.1-a, 8.1-d: exec, marks and the newest version, at this instant: executed state,
    /// and marks that are never too low.
    pub(crate) fn local_answer(&self, asked: &Asked<'_>) -> (Slot, Option<Slot>, Found) {
        let exec = self.core.exec();
        match asked {
            Asked::Key(key) => {
                let hash = key_hash(key);
                let mark = self.core.mark(|batch| touches(batch, hash));
                (exec, mark, self.local_version(key))
            }
            Asked::Range { from, to, limit } => {
                // PROTOCOL 8.1-r: of this lane, in which every slot touches a range.
                let mark = self.core.mark(|_| true);
                (exec, mark, self.local_keys(from, *to, *limit))
            }
        }
    }

    pub(crate) fn local_version(&self, key: &[u8]) -> Found {
        match self.machine.get(key) {
            None => Found::Absent,
            Some(version) => Found::Values {
                revision: version.modified().main,
                values: version.values().collect(),
            },
        }
    }

    pub(crate) fn local_keys(&self, from: &[u8], to: Option<&[u8]>, limit: u32) -> Found {
        let mut bytes = Vec::new();
        let mut more = false;
        for (count, (key, version)) in self.machine.range(from, to, limit as usize + 1).enumerate()
        {
            if count >= limit as usize || bytes.len() > KEYS_BYTES_MAX {
                more = true;
                break;
            }
            put_keys(&mut bytes, key, version.modified().main, version.len());
        }
        match self.pool.copy(&bytes) {
            Some(bytes) => Found::Keys { bytes, more },
            // Out of buffers: an answer that says "there is more" and shows nothing is still true.
            None => Found::Keys { bytes: Slice::empty(), more: true },
        }
    }

    /// READQ (PROTOCOL 12.1-d, 12.1-g): answers from this instant's state.
    pub(crate) fn on_read_question(&mut self, from: u8, frame: &Frame) {
        let Ok(question) = get_question(&frame.head) else { return };
        // PROTOCOL 8.1-f, 10-r
        if !self.core.may_answer() {
            return;
        }
        let (exec, mark, found) = self.local_answer(&question.query);
        let mut body = Vec::new();
        let mut fetch = None;
        let form = match found {
            Found::Absent => AnswerForm::Absent,
            Found::Keys { bytes, more } => {
                body.push(bytes);
                AnswerForm::Keys { more }
            }
            Found::Values { revision, values } => match values[..] {
                [value] => {
                    if question.fragment && value.len > 0 {
                        fetch = Some(value.op);
                    }
                    match value.op.0 == question.guess {
                        true => AnswerForm::AsGuessed,
                        false => AnswerForm::Value { revision, value },
                    }
                }
                _ => {
                    let mut bytes = Vec::new();
                    put_stripes(&mut bytes, &values);
                    let Some(bytes) = self.pool.copy(&bytes) else { return };
                    body.push(bytes);
                    AnswerForm::Stripes { revision }
                }
            },
        };
        let later = match fetch.map(|op| (op, self.fragments.find(op))) {
            Some((_, Some(Fetch::Memory(bytes)))) => {
                body.push(bytes);
                None
            }
            Some((op, _)) => Some(op),
            None => None,
        };
        let mut head = std::mem::take(&mut self.scratch);
        head.clear();
        AnswerHead { read: question.read, exec, mark, epoch: self.core.epoch(), form }
            .put(&mut head);
        self.send(from, kind::READR, &head, &body);
        self.scratch = head;
        if let Some(op) = later {
            self.on_question(Question::Fragment { to: from, read: question.read, op });
        }
    }

    /// GETSEG (PROTOCOL 7-h, 9.5-f): by op, whatever the own exec. GETOWN: what is kept here for who asks,
    /// if anything is.
    pub(crate) fn on_segment_question(&mut self, from: u8, frame: &Frame) {
        let Ok((read, op)) = get_segment_question(&frame.head) else { return };
        if frame.kind == kind::GETOWN && self.send_hosted(from, read, OpId(op)) {
            return;
        }
        self.on_question(Question::Fragment { to: from, read, op: OpId(op) });
    }

    /// False if it is to be read and the disk cannot be asked now.
    pub(crate) fn serve_fragment(&mut self, to: u8, read: u64, op: OpId) -> bool {
        match self.fragments.find(op) {
            Some(Fetch::Memory(bytes)) => self.send_segment(to, read, op.0, Some(bytes)),
            Some(Fetch::Disk { place, crc }) => {
                let what = DiskRead::Serve { to, read, op: op.0, at: place };
                return self.read_disk(what, place, Some(crc));
            }
            None => self.send_segment(to, read, op.0, None),
        }
        true
    }

    pub(crate) fn serve_fragment_read(
        &mut self,
        to: u8,
        read: u64,
        op: u128,
        at: Place,
        bytes: Option<Slice>,
    ) {
        self.read_back(op, at, &bytes);
        self.send_segment(to, read, op, bytes);
    }

    /// A fragment was read from the log, or cannot be.
    pub(crate) fn read_back(&mut self, op: u128, at: Place, bytes: &Option<Slice>) {
        match bytes {
            Some(bytes) => {
                let cost = bytes.len().max(racos_buffer::ALIGN);
                self.fragments.cache(OpId(op), bytes.clone(), cost);
            }
            // It may have been made again, or copied, while it was read.
            None if self.fragments.place(OpId(op)).is_some_and(|(held, _)| held == at) => {
                self.fragment_damaged(OpId(op));
            }
            None => {}
        }
    }

    fn send_segment(&mut self, to: u8, read: u64, op: u128, bytes: Option<Slice>) {
        let answer = match bytes {
            Some(_) => SegmentAnswer::Here,
            // PROTOCOL 9.5-e: it should be here: no holder until it is repaired.
            None if self.machine.value(OpId(op)).is_some() => SegmentAnswer::Missing,
            None if mutant!("GONE answered as MISSING") => SegmentAnswer::Missing,
            // PROTOCOL 9.5-f: the reader executes up to here and looks again.
            None => SegmentAnswer::Gone { exec: self.core.exec() },
        };
        let mut head = Vec::with_capacity(32);
        put_segment(&mut head, read, op, Some(answer));
        self.send(to, kind::SEG, &head, bytes.as_slice());
    }
}
