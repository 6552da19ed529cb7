//! Values for tasks: one fetch for each operation however many ask, and a bounded cache.
//!
//! Invariant: a value is fetched at most once at a time; bytes in flight over all tasks stay below
//! [`FLIGHT_BYTES_MAX`] but for one value; a task that waits for room holds none of it.
//! What would break it: a fetch that ends without its waiters being told.

use super::types::Error;
use crate::batch::Waiter;
use crate::keep::Reading;
use crate::node::Node;
use crate::wire::client::Reply;
use bytes::Bytes;
use racos_buffer::Slice;
use racos_machine::{Content, OpId, Value};
use racos_net::Link;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Bytes of values on their way.
const FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Values on their way.
const FLIGHT_MAX: usize = 512;
/// Bytes of values kept for the next who asks: watches, and what was just written.
const CACHE_BYTES_MAX: usize = 32 << 20;
/// A value longer than this is not kept.
const CACHED_MAX: usize = 1 << 20;

/// Values in hand, by the operation that stored them.
#[derive(Default)]
pub(crate) struct Values(FxHashMap<OpId, Bytes>);

impl Values {
    /// The bytes of a content, all of whose values are here.
    ///
    /// # Panics
    /// If one is not: the caller gathers before it answers.
    pub(super) fn bytes(&self, content: &Content) -> Bytes {
        let get = |value: &Value| match value.len {
            0 => Bytes::new(),
            _ => self.0.get(&value.op).expect("a task gathers all values before it ends").clone(),
        };
        match content.values() {
            [one] => get(one),
            many => {
                let mut bytes = Vec::with_capacity(content.len() as usize);
                many.iter().for_each(|value| bytes.extend_from_slice(&get(value)));
                bytes.into()
            }
        }
    }

    pub(super) fn insert(&mut self, op: OpId, bytes: Bytes) {
        self.0.insert(op, bytes);
    }

    fn has(&self, op: OpId) -> bool {
        self.0.contains_key(&op)
    }
}

/// Why a value did not come.
#[derive(Debug, Clone)]
pub(crate) enum Lost {
    /// No version names it any more.
    Gone,
    Failed(Error),
}

/// What is done with the values.
pub(super) type Job<L, D> = Box<dyn FnOnce(&mut Node<L, D>, Result<Values, Lost>)>;

/// Something that waits for values.
struct Gathering<L: Link, D: Device> {
    values: Values,
    missing: usize,
    job: Job<L, D>,
    /// PROTOCOL 9.8-d: the state that they are of.
    _reading: Reading,
}

struct Fetch {
    value: Value,
    /// Gatherings that wait for it.
    waiters: Vec<u64>,
}

pub(super) struct Gatherings<L: Link, D: Device> {
    table: FxHashMap<u64, Gathering<L, D>>,
    next: u64,
    fetches: FxHashMap<OpId, Fetch>,
    /// Fetches that wait for room.
    queue: VecDeque<OpId>,
    /// Fetches under way, by the number that the reads know them by.
    flying: FxHashMap<u64, OpId>,
    flight_bytes: usize,
    /// Gatherings that are complete, or lost.
    done: VecDeque<(u64, Option<Lost>)>,
    cache: Cache,
}

impl<L: Link, D: Device> Default for Gatherings<L, D> {
    fn default() -> Self {
        Gatherings {
            table: FxHashMap::default(),
            next: 0,
            fetches: FxHashMap::default(),
            queue: VecDeque::new(),
            flying: FxHashMap::default(),
            flight_bytes: 0,
            done: VecDeque::new(),
            cache: Cache::default(),
        }
    }
}

impl<L: Link, D: Device> Gatherings<L, D> {
    /// Something can be gone on with.
    pub(super) fn has_news(&self) -> bool {
        !self.done.is_empty() || (!self.queue.is_empty() && self.has_room())
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    fn has_room(&self) -> bool {
        self.flying.len() < FLIGHT_MAX && self.flight_bytes < FLIGHT_BYTES_MAX
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Fetches the values and then does the job, not before the caller has returned.
    pub(super) fn gather<'a>(&mut self, wanted: impl Iterator<Item = &'a Content>, job: Job<L, D>) {
        let reading = self.begin_reading();
        let gatherings = &mut self.api.gatherings;
        let id = gatherings.next;
        gatherings.next += 1;
        let (mut values, mut missing) = (Values::default(), 0);
        for value in wanted.flat_map(Content::values) {
            if value.len == 0 || values.has(value.op) {
                continue;
            }
            if let Some(bytes) = gatherings.cache.get(value.op) {
                values.insert(value.op, bytes);
                continue;
            }
            let fetch = gatherings.fetches.entry(value.op).or_insert_with(|| {
                gatherings.queue.push_back(value.op);
                Fetch { value: *value, waiters: Vec::new() }
            });
            if fetch.waiters.last() != Some(&id) {
                fetch.waiters.push(id);
                missing += 1;
            }
        }
        if missing == 0 {
            gatherings.done.push_back((id, None));
        }
        gatherings.table.insert(id, Gathering { values, missing, job, _reading: reading });
        self.fly();
    }

    /// Keeps the bytes of a value that was just written, or fetched.
    pub(super) fn keep_value(&mut self, op: OpId, bytes: &Bytes) {
        self.api.gatherings.cache.insert(op, bytes.clone());
    }

    /// Begins fetches while there is room.
    fn fly(&mut self) {
        while self.api.gatherings.has_room()
            && let Some(op) = self.api.gatherings.queue.pop_front()
        {
            let Some(fetch) = self.api.gatherings.fetches.get(&op) else { continue };
            let value = fetch.value;
            let number = self.api.next_number();
            self.api.gatherings.flying.insert(number, op);
            self.api.gatherings.flight_bytes += value.len as usize;
            self.start_fetch(Waiter::Api(number), value);
        }
    }

    /// A fetch has ended; false if the number is not of one.
    pub(super) fn fetched(&mut self, number: u64, reply: &Reply, body: &[Slice]) -> bool {
        let gatherings = &mut self.api.gatherings;
        let Some(op) = gatherings.flying.remove(&number) else { return false };
        let fetch = gatherings.fetches.remove(&op).expect("a fetch under way is in the table");
        gatherings.flight_bytes -= fetch.value.len as usize;
        let result = match reply {
            Reply::Found { .. } => Ok(joined(body)),
            Reply::NotFound => Err(Lost::Gone),
            Reply::Error(error) => {
                Err(Lost::Failed(super::write::coded(error.code, error.text.clone())))
            }
            other => unreachable!("a fetch is not answered with {other:?}"),
        };
        if let Ok(bytes) = &result {
            gatherings.cache.insert(op, bytes.clone());
        }
        for id in fetch.waiters {
            let Some(gathering) = gatherings.table.get_mut(&id) else { continue };
            match &result {
                Ok(bytes) => {
                    gathering.values.insert(op, bytes.clone());
                    gathering.missing -= 1;
                    if gathering.missing == 0 {
                        gatherings.done.push_back((id, None));
                    }
                }
                Err(lost) => gatherings.done.push_back((id, Some(lost.clone()))),
            }
        }
        true
    }

    /// Goes on with what has come; whether there was anything.
    pub(super) fn finish_gatherings(&mut self) -> bool {
        self.fly();
        let mut any = false;
        while let Some((id, lost)) = self.api.gatherings.done.pop_front() {
            // Lost twice, the second time for another value.
            let Some(gathering) = self.api.gatherings.table.remove(&id) else { continue };
            any = true;
            (gathering.job)(self, lost.map_or(Ok(gathering.values), Err));
        }
        any
    }
}

fn joined(pieces: &[Slice]) -> Bytes {
    let mut bytes = Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes.into()
}

/// Values kept for a while, oldest first out.
#[derive(Default)]
struct Cache {
    table: FxHashMap<OpId, Bytes>,
    order: VecDeque<OpId>,
    bytes: usize,
}

impl Cache {
    fn get(&self, op: OpId) -> Option<Bytes> {
        self.table.get(&op).cloned()
    }

    fn insert(&mut self, op: OpId, bytes: Bytes) {
        if bytes.is_empty() || bytes.len() > CACHED_MAX || self.table.contains_key(&op) {
            return;
        }
        self.bytes += bytes.len();
        self.table.insert(op, bytes);
        self.order.push_back(op);
        while self.bytes > CACHE_BYTES_MAX {
            let oldest = self.order.pop_front().expect("what is counted is in the order");
            let removed = self.table.remove(&oldest).expect("what is in the order is kept");
            self.bytes -= removed.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_in_bytes() {
        let mut cache = Cache::default();
        for number in 0..100 {
            cache.insert(OpId(number), Bytes::from(vec![1; CACHED_MAX]));
        }
        assert_eq!(cache.bytes, CACHE_BYTES_MAX);
        assert!(cache.get(OpId(0)).is_none() && cache.get(OpId(99)).is_some());
        cache.insert(OpId(200), Bytes::from(vec![1; CACHED_MAX + 1]));
        assert!(cache.get(OpId(200)).is_none());
    }
}
