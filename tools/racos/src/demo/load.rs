//! Writers and readers that go on while nodes are killed, and the journal of what they were told.
//!
//! Invariant: a key belongs to one writer, which has at most one write of it under way; so at any
//! time the key holds the last acknowledged value, or one of those whose outcome is unknown.

use crate::connect::Target;
use crate::exit::{Failure, failed};
use racos_buffer::Slice;
use racos_client::{Answer, Client, Completion, Op, Route, Ticket};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub type Sum = [u8; 32];

const WRITERS: usize = 16;
const KEYS_PER_WRITER: u64 = 8;
/// Each writer does an operation at most this often.
const PAUSE_NS: u64 = 8_000_000;
const TURN_NS_MAX: u64 = 5_000_000;

pub fn sum(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// `len` bytes that follow from `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What a key may hold.
#[derive(Debug, Clone, Default)]
pub struct KeyState {
    /// The last acknowledged write; `None`: the key was never written.
    pub acknowledged: Option<Sum>,
    /// Writes begun since whose outcome is not known.
    pub unknown: Vec<Sum>,
}

impl KeyState {
    /// Whether a read may give this; `None`: nothing.
    pub fn allows(&self, read: Option<Sum>) -> bool {
        read == self.acknowledged || read.is_some_and(|sum| self.unknown.contains(&sum))
    }
}

pub type Journal = BTreeMap<Vec<u8>, KeyState>;

/// What the load has done so far.
#[derive(Debug, Default)]
pub struct Counters {
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    /// Longest time without an acknowledged write since it was last set to zero, nanoseconds.
    pub stall_ns: AtomicU64,
    pub problems: Mutex<Vec<String>>,
}

/// Load in a thread of its own.
pub struct Load {
    pub counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Journal, Failure>>,
}

impl Load {
    /// Load on keys that begin with `name`, which no other load uses.
    pub fn start(target: Target, name: &'static str) -> Load {
        let (counters, stop) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
        let (seen, until) = (Arc::clone(&counters), Arc::clone(&stop));
        let thread = std::thread::spawn(move || Writers::new(&target, name, seen)?.run(&until));
        Load { counters, stop, thread }
    }

    /// Ends at once, whatever is under way, and tells what must be found.
    pub fn stop(self) -> Result<Journal, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| failed("the load panicked"))?
    }
}

enum Under {
    Write { key: Vec<u8>, sum: Sum },
    Read { key: Vec<u8> },
}

struct Writers {
    client: Client,
    name: &'static str,
    counters: Arc<Counters>,
    journal: Journal,
    /// Writer and what it waits for.
    under_way: BTreeMap<Ticket, (usize, Under)>,
    /// When each writer may go on; `None` while it waits.
    due_ns: Vec<Option<u64>>,
    operations: u64,
    acknowledged_ns: u64,
}

impl Writers {
    fn new(
        target: &Target,
        name: &'static str,
        counters: Arc<Counters>,
    ) -> Result<Writers, Failure> {
        let client = target.client(|config| config.patience_ns = 20_000_000_000)?;
        let due_ns = (0..WRITERS).map(|writer| Some(writer as u64 * 500_000)).collect();
        Ok(Writers {
            client,
            name,
            counters,
            journal: Journal::new(),
            under_way: BTreeMap::new(),
            due_ns,
            operations: 0,
            acknowledged_ns: 0,
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Journal, Failure> {
        let mut done = Vec::new();
        self.acknowledged_ns = self.client.now_ns();
        while !stop.load(Ordering::Relaxed) {
            let now_ns = self.client.now_ns();
            for writer in 0..WRITERS {
                if self.due_ns[writer].is_some_and(|due| due <= now_ns) {
                    self.due_ns[writer] = None;
                    self.begin(writer)?;
                }
            }
            let due = self.due_ns.iter().flatten().min().copied().unwrap_or(u64::MAX);
            self.client.turn(due.min(now_ns + TURN_NS_MAX), &mut done)?;
            let now_ns = self.client.now_ns();
            done.drain(..).for_each(|completion| self.end(completion, now_ns));
            let stall_ns = now_ns.saturating_sub(self.acknowledged_ns);
            self.counters.stall_ns.fetch_max(stall_ns, Ordering::Relaxed);
        }
        for (_, (_, under)) in self.under_way {
            if let Under::Write { key, sum } = under {
                self.journal.entry(key).or_default().unknown.push(sum);
            }
        }
        Ok(self.journal)
    }

    fn begin(&mut self, writer: usize) -> Result<(), Failure> {
        self.operations += 1;
        let draw = u64::from_le_bytes(pattern(self.operations, 8).try_into().expect("8 bytes"));
        let (name, key) = (self.name, draw % KEYS_PER_WRITER);
        let key = format!("{name}/{writer:02}-{key}").into_bytes();
        let (op, under) = if draw >> 16 & 3 == 0 {
            (Op::Get { key: key.clone() }, Under::Read { key })
        } else {
            let bytes = pattern(draw, value_len(draw));
            let value = self.client.pool().copy(&bytes).ok_or_else(|| failed("no buffer"))?;
            (Op::Put { key: key.clone(), value }, Under::Write { key, sum: sum(&bytes) })
        };
        let ticket = self.client.submit(op, Route::Any);
        self.under_way.insert(ticket, (writer, under));
        Ok(())
    }

    fn end(&mut self, completion: Completion, now_ns: u64) {
        let Some((writer, under)) = self.under_way.remove(&completion.ticket) else { return };
        self.due_ns[writer] = Some(now_ns + PAUSE_NS);
        match (under, completion.result) {
            (Under::Write { key, sum }, Ok(Answer::Done { .. })) => {
                let state = KeyState { acknowledged: Some(sum), unknown: Vec::new() };
                self.journal.insert(key, state);
                self.counters.writes.fetch_add(1, Ordering::Relaxed);
                self.acknowledged_ns = now_ns;
            }
            (Under::Read { key }, Ok(answer)) => self.check_read(&key, answer),
            (Under::Write { key, sum }, result) => {
                self.problem(format!("write of {}: {result:?}", key.escape_ascii()));
                self.journal.entry(key).or_default().unknown.push(sum);
            }
            (Under::Read { key }, Err(error)) => {
                self.problem(format!("read of {}: {error}", key.escape_ascii()));
            }
        }
    }

    fn check_read(&mut self, key: &[u8], answer: Answer) {
        let read = match answer {
            Answer::Value { bytes, .. } => Some(sum(&bytes)),
            _ => None,
        };
        let state = self.journal.get(key).cloned().unwrap_or_default();
        if state.allows(read) {
            self.counters.reads.fetch_add(1, Ordering::Relaxed);
        } else {
            let key = key.escape_ascii();
            self.problem(format!("read of {key}: neither the acknowledged value nor a begun one"));
        }
    }

    fn problem(&self, text: String) {
        self.counters.problems.lock().expect("no holder panics").push(text);
    }
}

/// Mostly small, some that fill datagrams, a few of several stripes.
fn value_len(draw: u64) -> usize {
    let size = (draw >> 24) as usize;
    match draw >> 18 & 63 {
        0 => 0,
        1..=50 => size % 5_000,
        51..=62 => 5_000 + size % 150_000,
        _ => (2 << 20) + size % (2 << 20),
    }
}

/// Fetches every key of a journal and tells those that hold what they must not.
pub fn verify(
    client: &mut Client,
    journal: &Journal,
    mut told: impl FnMut(usize),
) -> Result<Vec<String>, Failure> {
    const AT_ONCE: usize = 16;
    let nodes = client.config().endpoints.len();
    let mut keys = journal.iter().enumerate();
    let mut under_way: BTreeMap<Ticket, &Vec<u8>> = BTreeMap::new();
    let (mut wrong, mut done, mut checked) = (Vec::new(), Vec::new(), 0);
    while checked < journal.len() {
        while under_way.len() < AT_ONCE
            && let Some((at, (key, _))) = keys.next()
        {
            let op = Op::Get { key: key.clone() };
            under_way.insert(client.submit(op, Route::Prefer(at % nodes)), key);
        }
        client.turn(u64::MAX, &mut done)?;
        for completion in done.drain(..) {
            let Some(key) = under_way.remove(&completion.ticket) else { continue };
            checked += 1;
            told(checked);
            let name = key.escape_ascii();
            let read = match completion.result {
                Ok(Answer::Value { bytes, .. }) => Some(bytes),
                Ok(_) => None,
                Err(error) => {
                    wrong.push(format!("{name}: {error}"));
                    continue;
                }
            };
            if !journal[key].allows(read.as_deref().map(sum)) {
                wrong.push(format!("{name}: {}", describe(&journal[key], read.as_ref())));
            }
        }
    }
    Ok(wrong)
}

fn describe(state: &KeyState, read: Option<&Slice>) -> String {
    let read = read.map_or("nothing".to_string(), |bytes| {
        let sum: String = sum(bytes)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} bytes with SHA-256 {sum}...", bytes.len())
    });
    let short = |sum: &Sum| -> String {
        let hex: String = sum[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        hex + "..."
    };
    let acknowledged = state.acknowledged.as_ref().map_or("nothing".to_string(), short);
    let unknown: Vec<_> = state.unknown.iter().map(short).collect();
    format!("holds {read}, acknowledged was {acknowledged}, begun were [{}]", unknown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_hold_the_acknowledged_value_or_a_begun_one_and_nothing_else() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| sum(text));
        let state = KeyState { acknowledged: Some(a), unknown: vec![b] };
        assert!(state.allows(Some(a)) && state.allows(Some(b)));
        assert!(!state.allows(Some(c)) && !state.allows(None));
        let new = KeyState { acknowledged: None, unknown: vec![b] };
        assert!(new.allows(None) && new.allows(Some(b)) && !new.allows(Some(a)));
    }

    #[test]
    fn patterns_follow_from_their_seed() {
        assert_eq!(pattern(7, 1000), pattern(7, 1000));
        assert_ne!(pattern(7, 1000), pattern(8, 1000));
        assert_eq!(pattern(7, 13).len(), 13);
        assert_eq!(pattern(7, 13), pattern(7, 1000)[..13]);
    }
}
