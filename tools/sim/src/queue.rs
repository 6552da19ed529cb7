//! What is to happen, in the order (time, number).
//!
//! Purpose: a heap of small keys; packets and whatever else is large stay where they were put.
//! Invariant: events of one time come out in the order in which they went in.

use crate::world::Event;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events to come.
#[derive(Debug, Default)]
pub struct Queue {
    /// See [`Queue::insert`]: from the highest bits on, time, number and place.
    heap: BinaryHeap<Reverse<u128>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    number: u64,
}

/// Bits of a key that tell the place, and those above them below the time.
const PLACE_BITS: u32 = 24;
const NUMBER_BITS: u32 = 40;
/// Places from here on are no places: what comes most often is told by the key alone.
const KINDS: usize = 1 << 23;
const KIND_BITS: u32 = 16;

/// An event that its key tells, as a place.
fn place_of(event: &Event) -> Option<usize> {
    let (kind, index) = match event {
        Event::Node(index) => (0, *index),
        Event::Disk(index) => (1, *index),
        Event::Client(index) => (2, *index),
        _ => return None,
    };
    (index < 1 << KIND_BITS).then_some(KINDS + (kind << KIND_BITS) + index)
}

fn event_of(place: usize) -> Event {
    let index = place & ((1 << KIND_BITS) - 1);
    match (place - KINDS) >> KIND_BITS {
        0 => Event::Node(index),
        1 => Event::Disk(index),
        _ => Event::Client(index),
    }
}

impl Queue {
    pub fn insert(&mut self, at_ns: u64, event: Event) {
        self.number += 1;
        let place = place_of(&event).unwrap_or_else(|| self.put(event));
        assert!(self.number < 1 << NUMBER_BITS, "a run has an end");
        let key = u128::from(self.number) << PLACE_BITS | place as u128;
        self.heap.push(Reverse(u128::from(at_ns) << (NUMBER_BITS + PLACE_BITS) | key));
    }

    fn put(&mut self, event: Event) -> usize {
        if let Some(place) = self.free.pop() {
            self.events[place] = Some(event);
            return place;
        }
        assert!(self.events.len() < KINDS, "so many packets are never under way");
        self.events.push(Some(event));
        self.events.len() - 1
    }

    /// The next event and its time, unless that is later than `until_ns`.
    pub fn pop_until(&mut self, until_ns: u64) -> Option<(u64, Event)> {
        let Reverse(key) = *self.heap.peek()?;
        let at_ns = (key >> (NUMBER_BITS + PLACE_BITS)) as u64;
        if at_ns > until_ns {
            return None;
        }
        self.heap.pop();
        let place = (key & ((1 << PLACE_BITS) - 1)) as usize;
        if place >= KINDS {
            return Some((at_ns, event_of(place)));
        }
        self.free.push(place);
        let event = self.events[place].take();
        Some((at_ns, event.expect("a key in the heap has its event")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_insertion() {
        let mut queue = Queue::default();
        // Some are told by their key, others have a place.
        let events = [Event::Node(0), Event::Start(1), Event::Disk(2), Event::Client(3)];
        for (at_ns, event) in [5, 3, 5, 3].into_iter().zip(events) {
            queue.insert(at_ns, event);
        }
        queue.insert(9, Event::Node(4));
        let mut order = Vec::new();
        while let Some((at_ns, event)) = queue.pop_until(5) {
            order.push((at_ns, format!("{event:?}")));
            if let Event::Start(1) = event {
                queue.insert(3, Event::Thaw(65_535));
                queue.insert(3, Event::Client(65_536));
                queue.insert(3, Event::Client(65_535));
            }
        }
        let order: Vec<(u64, &str)> = order.iter().map(|(at, event)| (*at, &**event)).collect();
        let at_3 = ["Start(1)", "Client(3)", "Thaw(65535)", "Client(65536)", "Client(65535)"];
        let all = at_3.map(|event| (3, event)).into_iter();
        assert_eq!(order, all.chain([(5, "Node(0)"), (5, "Disk(2)")]).collect::<Vec<_>>());
    }
}
