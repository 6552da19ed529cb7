//! A store in miniature over a log with marks: what must be there after a restart is what was put last.

use racos_storage::{Mark, Replay, Replayed, ReplayedBody};
use std::collections::BTreeMap;

/// Kinds of the test's records: a keeper is needed for ever, a whole state ends with a number.
pub const STATE: u8 = 9;

/// A store in miniature: record `n` puts `n` under key `n % 10`. A STATE record holds all ten.
#[derive(Default)]
pub struct Store {
    pub begun: Vec<u64>,
    pub horizon: u64,
    /// The state record of the mark has come.
    pub whole: bool,
    pub keys: BTreeMap<u64, u64>,
    pub next: u64,
    early: Vec<u64>,
}

impl Store {
    pub fn put(&mut self, number: u64) {
        assert!(number >= self.next, "records come in order");
        self.next = number + 1;
        self.keys.insert(number % 10, number);
    }

    pub fn state(&self) -> Vec<u8> {
        let keys = self.keys.iter().flat_map(|(key, number)| [*key, *number]);
        keys.flat_map(u64::to_le_bytes).collect()
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

impl Replay for Store {
    fn begin(&mut self, mark: &Mark) {
        let mut begun = std::mem::take(&mut self.begun);
        begun.push(mark.tag);
        *self = Store { begun, horizon: mark.horizon, whole: mark.tag == 0, ..Store::default() };
    }

    fn wants_body(&self, kind: u8) -> bool {
        kind == STATE
    }

    fn record(&mut self, record: Replayed<'_>) -> u64 {
        let number = words(record.head)[0];
        match (record.kind, record.body) {
            (STATE, ReplayedBody::Inline(body)) if number == self.horizon && !self.whole => {
                self.whole = true;
                self.next = self.horizon;
                let pairs = words(body);
                self.keys = pairs.chunks(2).map(|pair| (pair[0], pair[1])).collect();
                std::mem::take(&mut self.early).into_iter().for_each(|number| self.put(number));
                0
            }
            (STATE, _) => 0,
            _ if number < self.horizon => number,
            _ if !self.whole => {
                self.early.push(number);
                number
            }
            _ => {
                self.put(number);
                number
            }
        }
    }

    fn end(&mut self) -> Result<(), String> {
        if self.whole { Ok(()) } else { Err(format!("no whole state of {}", self.horizon)) }
    }
}
