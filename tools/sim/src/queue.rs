//! What is to happen, in the order (time, number).
//!
//! Purpose: a heap of small keys; the events themselves stay where they were put.
//! Invariant: events of one time come out in the order in which they went in.

use crate::world::Event;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events to come.
#[derive(Debug, Default)]
pub struct Queue {
    /// (time, number, place).
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    number: u64,
}

impl Queue {
    pub fn insert(&mut self, at_ns: u64, event: Event) {
        self.number += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place] = Some(event);
                place
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.heap.push(Reverse((at_ns, self.number, place)));
    }

    /// The next event and its time, unless that is later than `until_ns`.
    pub fn pop_until(&mut self, until_ns: u64) -> Option<(u64, Event)> {
        let Reverse((at_ns, _, place)) = *self.heap.peek()?;
        if at_ns > until_ns {
            return None;
        }
        self.heap.pop();
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
        for (at_ns, node) in [(5, 0), (3, 1), (5, 2), (3, 3), (9, 4)] {
            queue.insert(at_ns, Event::Node(node));
        }
        let mut order = Vec::new();
        while let Some((at_ns, Event::Node(node))) = queue.pop_until(5) {
            order.push((at_ns, node));
            if node == 1 {
                queue.insert(3, Event::Node(5));
            }
        }
        assert_eq!(order, [(3, 1), (3, 3), (3, 5), (5, 0), (5, 2)]);
    }
}
