//! The load of a bench: many clients in one thread.
//!
//! Invariant: in steady state an operation allocates nothing: keys and values are given back by
//! their completion and used again.

use super::Kind;
use crate::connect::Target;
use crate::exit::{Failure, failed};
use hdrhistogram::Histogram;
use racos_buffer::{Buf, Slice};
use racos_client::{Answer, Client, Completion, Op, Route, Ticket};
use rustc_hash::FxHashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Values up to this size are compared whole, larger ones at their stamp and at some places.
const COMPARED_BYTES_MAX: usize = 4096;
/// Longest latency told apart, nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
const STAMP_BYTES: usize = 16;
const TURN_NS_MAX: u64 = 50_000_000;

/// What to do.
#[derive(Debug, Clone)]
pub struct Workload {
    pub kind: Kind,
    pub value_bytes: usize,
    pub keys: u32,
    pub read_percent: u32,
    pub pin: Option<usize>,
    /// A node that nobody begins at, because it is known not to answer.
    pub avoid: Option<usize>,
    pub patience_ns: u64,
}

/// What the threads are at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Warming = 0,
    Measured = 1,
    /// Load goes on, uncounted, until the nodes have told their counts.
    Cooling = 2,
    Over = 3,
}

/// Shared by all threads of a bench.
#[derive(Debug, Default)]
pub struct Shared {
    phase: AtomicU8,
    done: AtomicU64,
}

impl Shared {
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Warming,
            1 => Phase::Measured,
            2 => Phase::Cooling,
            _ => Phase::Over,
        }
    }

    pub fn count(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    /// Operations that have succeeded so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// For latencies in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3).expect("the bounds are valid")
}

/// What one thread has measured.
pub struct Tally {
    pub latency_ns: Histogram<u64>,
    pub done: u64,
    pub reads: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    /// Requests sent again.
    pub resent: u64,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            latency_ns: histogram(),
            done: 0,
            reads: 0,
            errors: 0,
            first_error: None,
            resent: 0,
        }
    }

    fn error(&mut self, text: String) {
        self.errors += 1;
        self.first_error.get_or_insert(text);
    }
}

/// Values whose contents tell the key that they belong to.
pub struct Values {
    pattern: Vec<u8>,
}

impl Values {
    pub fn new(len: usize) -> Values {
        Values { pattern: crate::demo::pattern(0x5eed, len) }
    }

    fn stamp(&self, buffer: &mut Buf, key: u32) {
        let stamp = stamp_of(key);
        let len = STAMP_BYTES.min(buffer.len());
        buffer[..len].copy_from_slice(&stamp[..len]);
    }

    /// A value in bytes of its own.
    pub fn bytes(&self, key: u32) -> Vec<u8> {
        let mut bytes = self.pattern.clone();
        let len = STAMP_BYTES.min(bytes.len());
        bytes[..len].copy_from_slice(&stamp_of(key)[..len]);
        bytes
    }

    fn make(&self, client: &Client, key: u32) -> Result<Slice, Failure> {
        let mut buffer = client
            .pool()
            .get(self.pattern.len())
            .ok_or_else(|| failed("too many bytes under way: fewer clients or smaller values"))?;
        buffer.copy_from_slice(&self.pattern);
        self.stamp(&mut buffer, key);
        Ok(buffer.freeze())
    }

    /// The same bytes for another key, in the same buffer if nobody else holds it.
    fn remake(&self, client: &Client, used: Slice, key: u32) -> Result<Slice, Failure> {
        match used.try_thaw() {
            Ok(mut buffer) if buffer.capacity() >= self.pattern.len() => {
                buffer.set_len(self.pattern.len());
                self.stamp(&mut buffer, key);
                Ok(buffer.freeze())
            }
            _ => self.make(client, key),
        }
    }

    /// What is wrong with a value read under a key.
    pub fn check(&self, bytes: &[u8], key: u32) -> Result<(), String> {
        let len = self.pattern.len();
        if bytes.len() != len {
            return Err(format!("key {key}: {} bytes instead of {len}", bytes.len()));
        }
        let stamped = STAMP_BYTES.min(len);
        if bytes[..stamped] != stamp_of(key)[..stamped] {
            return Err(format!("key {key}: the value of another key"));
        }
        let is_same = if len <= COMPARED_BYTES_MAX {
            bytes[stamped..] == self.pattern[stamped..]
        } else {
            let step = len / 64;
            (stamped..len).step_by(step).chain([len - 1]).all(|at| bytes[at] == self.pattern[at])
        };
        if is_same { Ok(()) } else { Err(format!("key {key}: damaged bytes")) }
    }
}

fn stamp_of(key: u32) -> [u8; STAMP_BYTES] {
    let mut stamp = [0x42; STAMP_BYTES];
    stamp[..4].copy_from_slice(&key.to_le_bytes());
    let mixed = u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    stamp[8..].copy_from_slice(&mixed.to_le_bytes());
    stamp
}

pub fn write_key(into: &mut Vec<u8>, key: u32) {
    into.clear();
    write!(into, "bench/{key:08}").expect("writing to memory");
}

/// One client of the closed loop.
struct Slot {
    key: u32,
    begun_ns: u64,
    is_read: bool,
    route: Route,
    /// Buffers that wait for their next use.
    name: Vec<u8>,
    value: Slice,
}

struct Loop<'a> {
    client: Client,
    values: Values,
    workload: &'a Workload,
    slots: Vec<Slot>,
    under_way: FxHashMap<Ticket, usize>,
    random: u64,
    tally: Tally,
}

/// Runs `clients` clients until the phase says that it is over.
pub fn run(
    target: &Target,
    workload: &Workload,
    thread: u32,
    clients: u32,
    shared: &Shared,
) -> Result<Tally, Failure> {
    let client = connect(target, workload)?;
    let nodes: Vec<usize> =
        (0..target.endpoints.len()).filter(|&node| workload.avoid != Some(node)).collect();
    let slots = (0..clients).map(|slot| {
        let node = nodes[(slot + thread) as usize % nodes.len()];
        let route = Route::Prefer(workload.pin.unwrap_or(node));
        let (name, value) = (Vec::with_capacity(24), Slice::empty());
        Slot { key: 0, begun_ns: 0, is_read: false, route, name, value }
    });
    let mut this = Loop {
        client,
        values: Values::new(workload.value_bytes),
        workload,
        slots: slots.collect(),
        under_way: FxHashMap::default(),
        random: u64::from(thread + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        tally: Tally::new(),
    };
    let mut done = Vec::new();
    for slot in 0..this.slots.len() {
        this.begin(slot)?;
    }
    let resent_before = this.client.counts().resent;
    loop {
        let phase = shared.phase();
        if phase == Phase::Over {
            this.tally.resent = this.client.counts().resent - resent_before;
            return Ok(this.tally);
        }
        let until_ns = this.client.now_ns() + TURN_NS_MAX;
        this.client.turn(until_ns, &mut done)?;
        let now_ns = this.client.now_ns();
        let mut good = 0;
        for completion in done.drain(..) {
            good += u64::from(this.end(completion, phase, now_ns)?);
        }
        shared.done.fetch_add(good, Ordering::Relaxed);
    }
}

fn connect(target: &Target, workload: &Workload) -> Result<Client, Failure> {
    target.client(|config| {
        config.window = 4096;
        config.patience_ns = workload.patience_ns;
    })
}

impl Loop<'_> {
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn begin(&mut self, at: usize) -> Result<(), Failure> {
        let key = (self.draw() % u64::from(self.workload.keys)) as u32;
        let is_read = match self.workload.kind {
            Kind::Put => false,
            Kind::Get => true,
            Kind::Mix => self.draw() % 100 < u64::from(self.workload.read_percent),
        };
        let now_ns = self.client.now_ns();
        let slot = &mut self.slots[at];
        let mut name = std::mem::take(&mut slot.name);
        write_key(&mut name, key);
        let op = if is_read {
            Op::Get { key: name }
        } else {
            let used = std::mem::take(&mut slot.value);
            Op::Put { key: name, value: self.values.remake(&self.client, used, key)? }
        };
        (slot.key, slot.begun_ns, slot.is_read) = (key, now_ns, is_read);
        let ticket = self.client.submit(op, slot.route);
        self.under_way.insert(ticket, at);
        Ok(())
    }

    /// Counts an operation and begins the client's next. Whether it succeeded.
    fn end(&mut self, done: Completion, phase: Phase, now_ns: u64) -> Result<bool, Failure> {
        let Some(at) = self.under_way.remove(&done.ticket) else { return Ok(false) };
        let slot = &mut self.slots[at];
        let checked = match (&done.result, slot.is_read) {
            (Ok(Answer::Value { bytes, .. }), true) => self.values.check(bytes, slot.key),
            (Ok(Answer::Done { .. }), false) => Ok(()),
            (Ok(other), _) => Err(format!("key {}: {other:?}", slot.key)),
            (Err(error), _) => Err(error.to_string()),
        };
        slot.name = done.key;
        if !slot.is_read {
            slot.value = done.value;
        }
        let (latency_ns, is_read) = (now_ns - slot.begun_ns, slot.is_read);
        let is_good = checked.is_ok();
        match checked {
            Err(text) => self.tally.error(text),
            Ok(()) if phase == Phase::Measured => {
                self.tally.done += 1;
                self.tally.reads += u64::from(is_read);
                self.tally.latency_ns.saturating_record(latency_ns);
            }
            Ok(()) => {}
        }
        self.begin(at)?;
        Ok(is_good)
    }
}

/// Stores every key once, so that it can be read.
pub fn preload(
    target: &Target,
    workload: &Workload,
    told: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    const AT_ONCE: usize = 64;
    const BYTES_AT_ONCE: usize = 32 << 20;
    let at_once = AT_ONCE.min(BYTES_AT_ONCE / workload.value_bytes.max(1)).max(1);
    let mut client = connect(target, workload)?;
    let values = Values::new(workload.value_bytes);
    let (mut begun, mut ended) = (0, 0);
    let mut done = Vec::new();
    while ended < workload.keys {
        while begun < workload.keys && ((begun - ended) as usize) < at_once {
            let mut key = Vec::new();
            write_key(&mut key, begun);
            let value = values.make(&client, begun)?;
            let node = workload.pin.unwrap_or(begun as usize % target.endpoints.len());
            client.submit(Op::Put { key, value }, Route::Prefer(node));
            begun += 1;
        }
        client.turn(u64::MAX, &mut done)?;
        for completion in done.drain(..) {
            completion.result?;
            ended += 1;
        }
        told(u64::from(ended));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_good_under_its_own_key_only_and_whole() {
        for len in [1, 10, 16, 100, 4096, 4097, 100_000] {
            let values = Values::new(len);
            let good = values.bytes(7);
            assert_eq!(values.check(&good, 7), Ok(()), "{len}");
            assert!(values.check(&good, 9).is_err(), "{len}");
            assert!(values.check(&good[..len - 1], 7).is_err(), "{len}");
            let mut bad = good.clone();
            bad[len - 1] ^= 1;
            assert!(values.check(&bad, 7).is_err(), "{len}");
        }
        assert_eq!(Values::new(0).check(b"", 3), Ok(()));
    }
}
