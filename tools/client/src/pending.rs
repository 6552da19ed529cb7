//! Operations under way, and where they are kept.
//!
//! Invariant: the number of a request names its place here and is never used twice, so that a late
//! reply cannot be taken for the answer to a later operation.

use crate::endpoints::Class;
use crate::op::{Route, Ticket};
use racos_buffer::Slice;
use racos_engine::wire::client::{Request, RequestError};
use racos_machine::Stamp;

/// Most operations under way at once.
pub const OUTSTANDING_MAX: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 16;

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user; `described`: stripes are answered as descriptors instead of being fetched.
    User { described: bool },
    /// This client, to write.
    Session,
    /// Part of a large value.
    Job { job: u64, part: usize },
    /// Nobody.
    Nobody,
}

/// What an operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A session with room in its window.
    Queued,
    /// A reply, until `due_ns`.
    Asked,
    /// Its turn to be sent again at `due_ns`.
    Paused,
}

/// A node that was asked and has not answered since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    endpoint: usize,
    /// 1: an answer from it is to what it was sent then and to nothing else (Karn's rule).
    pub times: u32,
    pub first_ns: u64,
}

const ASKED_MAX: usize = 4;

/// Who was sent a request, the last few: what an answer may be to is known by who gives it.
#[derive(Debug, Default)]
pub struct AskedNodes {
    latest: [Option<Asked>; ASKED_MAX],
    /// A node that is asked next may yet answer what it was sent before.
    is_unsure: bool,
}

impl AskedNodes {
    pub fn note(&mut self, endpoint: usize, now_ns: u64) {
        let known = self.latest.iter_mut().flatten().find(|asked| asked.endpoint == endpoint);
        if let Some(known) = known {
            known.times += 1;
            return;
        }
        self.latest.rotate_right(1);
        self.is_unsure |= self.latest[0].is_some();
        let times = 1 + u32::from(self.is_unsure);
        self.latest[0] = Some(Asked { endpoint, times, first_ns: now_ns });
    }

    /// How many others have not answered.
    pub fn others(&self, endpoint: usize) -> u32 {
        self.latest.iter().flatten().filter(|asked| asked.endpoint != endpoint).count() as u32
    }

    /// It has answered; what it had been sent, if that is known.
    pub fn take(&mut self, endpoint: usize) -> Option<Asked> {
        let is_it = |asked: &Option<Asked>| asked.is_some_and(|asked| asked.endpoint == endpoint);
        let asked = self.latest.iter_mut().find(|asked| is_it(asked))?.take();
        self.is_unsure |= asked.is_some_and(|asked| asked.times > 1);
        asked
    }
}

/// One operation under way.
#[derive(Debug)]
pub struct Pending {
    pub number: u64,
    pub ticket: Ticket,
    pub origin: Origin,
    pub request: Request,
    pub body: Slice,
    pub route: Route,
    pub class: Class,
    pub phase: Phase,
    /// The endpoint asked last, how often in a row, and how often any.
    pub endpoint: usize,
    pub sends_here: u32,
    pub sends: u32,
    pub asked: AskedNodes,
    pub pauses: u32,
    /// How often it was waited for once more since it was sent last.
    pub waits: u32,
    pub begun_ns: u64,
    pub sent_ns: u64,
    pub due_ns: u64,
    pub deadline_ns: u64,
    /// Nodes that said their disk is full.
    pub full_nodes: usize,
    pub last: Option<RequestError>,
}

impl Pending {
    /// The stamp of a write.
    pub fn stamp(&self) -> Option<&Stamp> {
        match &self.request {
            Request::Put { stamp, .. }
            | Request::Part { stamp }
            | Request::PutStripes { stamp, .. }
            | Request::Delete { stamp, .. } => Some(stamp),
            _ => None,
        }
    }

    pub fn stamp_mut(&mut self) -> Option<&mut Stamp> {
        match &mut self.request {
            Request::Put { stamp, .. }
            | Request::Part { stamp }
            | Request::PutStripes { stamp, .. }
            | Request::Delete { stamp, .. } => Some(stamp),
            _ => None,
        }
    }

    /// Whether the operation, though unanswered, may have been applied and seen.
    pub fn may_have_happened(&self) -> bool {
        self.sends > 0 && self.stamp().is_some() && !matches!(self.request, Request::Part { .. })
    }

    /// Bytes of the value that it carries or asks for.
    pub fn value_bytes(&self) -> u64 {
        match &self.request {
            Request::GetStripe { value } => u64::from(value.len),
            _ => self.body.len() as u64,
        }
    }

    /// Takes the key out, to give it back to the user.
    pub fn take_key(&mut self) -> Vec<u8> {
        match &mut self.request {
            Request::Put { key, .. }
            | Request::PutStripes { key, .. }
            | Request::Delete { key, .. }
            | Request::Get { key } => std::mem::take(key),
            _ => Vec::new(),
        }
    }
}

/// All operations under way.
#[derive(Debug, Default)]
pub struct Table {
    places: Vec<Option<Pending>>,
    free: Vec<usize>,
    counter: u64,
    len: usize,
}

impl Table {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Keeps an operation and gives it its number; gives it back if all places are taken.
    pub fn insert(&mut self, mut pending: Pending) -> Result<usize, Box<Pending>> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.places.len() < OUTSTANDING_MAX => {
                self.places.push(None);
                self.places.len() - 1
            }
            None => return Err(Box::new(pending)),
        };
        self.counter += 1;
        pending.number = (self.counter << PLACE_BITS) | place as u64;
        self.places[place] = Some(pending);
        self.len += 1;
        Ok(place)
    }

    /// Where the request with this number is, if it is still under way.
    pub fn find(&self, number: u64) -> Option<usize> {
        let place = (number & (OUTSTANDING_MAX as u64 - 1)) as usize;
        let pending = self.places.get(place)?.as_ref()?;
        (pending.number == number).then_some(place)
    }

    pub fn get_mut(&mut self, place: usize) -> Option<&mut Pending> {
        self.places.get_mut(place)?.as_mut()
    }

    pub fn remove(&mut self, place: usize) -> Pending {
        let pending = self.places[place].take().expect("a place in use holds an operation");
        self.free.push(place);
        self.len -= 1;
        pending
    }

    /// Places that may be in use: all below.
    pub fn end(&self) -> usize {
        self.places.len()
    }

    /// The operations under way, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Pending)> {
        self.places.iter().enumerate().filter_map(|(place, held)| Some((place, held.as_ref()?)))
    }
}

impl std::ops::Index<usize> for Table {
    type Output = Pending;
    fn index(&self, place: usize) -> &Pending {
        self.places[place].as_ref().expect("a place in use holds an operation")
    }
}

impl std::ops::IndexMut<usize> for Table {
    fn index_mut(&mut self, place: usize) -> &mut Pending {
        self.places[place].as_mut().expect("a place in use holds an operation")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_held_against_what_its_node_was_sent() {
        let mut nodes = AskedNodes::default();
        for (endpoint, now_ns) in [(7, 10), (7, 20), (3, 30), (7, 40)] {
            nodes.note(endpoint, now_ns);
        }
        assert_eq!([3, 7, 8].map(|endpoint| nodes.others(endpoint)), [1, 1, 2]);
        assert_eq!(nodes.take(3), Some(Asked { endpoint: 3, times: 1, first_ns: 30 }));
        assert_eq!(nodes.take(3), None, "it was not asked since");
        nodes.note(3, 50);
        assert_eq!(nodes.take(3), Some(Asked { endpoint: 3, times: 1, first_ns: 50 }));
        assert_eq!(nodes.take(7), Some(Asked { endpoint: 7, times: 3, first_ns: 10 }));
        nodes.note(7, 60);
        let again = nodes.take(7).unwrap();
        assert!(again.times > 1 && again.first_ns == 60, "it may answer another of the three");
    }

    #[test]
    fn whoever_was_asked_long_ago_is_forgotten_and_not_taken_for_asked_once() {
        let mut nodes = AskedNodes::default();
        (0..=ASKED_MAX).for_each(|endpoint| nodes.note(endpoint, 10));
        assert_eq!(nodes.take(0), None);
        nodes.note(0, 20);
        assert!(nodes.take(0).unwrap().times > 1);
        assert_eq!(nodes.take(2).unwrap().times, 1);
    }
}
