//! One core under the queue policy: what it proposes, and when (PROTOCOL 6.4).

use racos_protocol::{
    BatchInfo, Class, Config, Core, Digest, Effect, Effects, Input, Message, Node, Policy, Record,
    Slot, Target, Value,
};

/// Node 1 of 5,1,3.
struct One {
    core: Core,
    effects: Effects,
}

fn candidate(node: Node, counter: u64) -> Digest {
    Class::Ready.mark(Digest::from(node) << 96 | Digest::from(counter))
}

impl One {
    fn new() -> One {
        let config = Config { policy: Policy::Queue, ..Config::new((5, 1, 3), 1) };
        let core = Core::new(config).expect("a possible configuration");
        let mut one = One { core, effects: Effects::default() };
        one.core.start(0, &mut one.effects);
        one
    }

    fn input(&mut self, input: Input) {
        self.core.step(input, 0, &mut self.effects);
    }

    fn hear(&mut self, from: Node, message: Message) {
        self.input(Input::Message { from, message });
    }

    /// What it has handed to its log as proposals, since it was asked last.
    fn proposed(&mut self) -> Vec<(Slot, Digest)> {
        let effects = std::mem::take(&mut self.effects.list);
        let proposals = effects.into_iter().filter_map(|effect| match effect {
            Effect::Persist { record: Record::Propose { slot, candidate }, .. } => {
                Some((slot, candidate))
            }
            Effect::Fatal(why) => panic!("{why}"),
            _ => None,
        });
        proposals.collect()
    }
}

/// tests PROTOCOL 6.4-b
#[test]
fn a_proposal_is_a_ready_for_a_node_with_an_empty_queue() {
    let mut one = One::new();
    let value = Value::Batch(candidate(3, 9));
    one.hear(3, Message::Propose { slot: 0, value });
    assert_eq!(one.proposed(), [(0, candidate(3, 9))]);
    // Once, however often and by whomever it is proposed.
    for from in [3, 2, 4] {
        one.hear(from, Message::Propose { slot: 0, value });
    }
    assert_eq!(one.proposed(), []);
}

/// tests PROTOCOL 6.4-d
#[test]
fn the_oldest_is_proposed_in_one_slot_at_a_time() {
    let mut one = One::new();
    let (own, older) = (candidate(1, 5), candidate(4, 3));
    one.input(Input::Ready { candidate: own });
    let told = Message::Ready { candidate: own, below: 0 };
    assert!(one.effects.list.contains(&Effect::Send { to: Target::Others, message: told }));
    one.hear(4, Message::Ready { candidate: older, below: 0 });
    assert_eq!(
        one.proposed(),
        [(0, own)],
        "in slot 0 nothing else any more, in slot 1 nothing yet"
    );
    one.hear(4, Message::Propose { slot: 7, value: Value::Batch(older) });
    assert_eq!(one.proposed(), [], "nor because others are further on");
    one.hear(0, Message::Decide { slot: 0, value: Value::Null });
    assert_eq!(one.proposed(), [(1, older)]);
    one.hear(0, Message::Decide { slot: 1, value: Value::Batch(older) });
    assert_eq!(one.proposed(), [(2, own)], "also while the metas of slot 1 are missing");
    assert_eq!(one.core.exec(), 1);
}

/// tests PROTOCOL 6.4-c, 6.4-d
#[test]
fn what_is_ready_waits_until_it_is_decided_and_not_again_afterwards() {
    let mut one = One::new();
    let waits = candidate(2, 1);
    // Nothing of it is stored here.
    one.hear(2, Message::Ready { candidate: waits, below: 0 });
    for slot in 0..100 {
        assert_eq!(one.proposed(), [(slot, waits)]);
        one.hear(0, Message::Decide { slot, value: Value::Null });
    }
    one.hear(0, Message::Decide { slot: 100, value: Value::Batch(waits) });
    one.proposed();
    for below in 0..=100 {
        one.hear(2, Message::Ready { candidate: waits, below });
    }
    assert_eq!(one.proposed(), []);
}

/// tests PROTOCOL 8.1-b, 8.1-c
#[test]
fn a_read_waits_for_the_slot_in_which_its_key_was_proposed() {
    let mut one = One::new();
    let digest = candidate(0, 1);
    let touches = |key: u64| move |batch: &BatchInfo| batch.touches(key);
    one.hear(0, Message::Ready { candidate: digest, below: 0 });
    assert_eq!(one.core.mark(touches(8)), Some(0), "what it touches is not known here");
    one.core.store_ahead(BatchInfo { digest, touches: [7].into(), is_change: false });
    assert_eq!((one.core.mark(touches(7)), one.core.mark(touches(8))), (Some(0), None));
}

#[test]
fn words_of_owners_say_nothing_to_a_queue() {
    let mut one = One::new();
    let batch = BatchInfo { digest: 5, touches: [].into(), is_change: false };
    one.input(Input::Spread { from: 0, slot: 0, batch, room: true });
    one.hear(0, Message::Skip { from: 0, to: 1 });
    one.hear(0, Message::ProposeNull { from: 0, to: 1 });
    one.hear(0, Message::Propose { slot: 0, value: Value::Null });
    one.hear(0, Message::Opening { slot: 0 });
    assert_eq!((one.proposed(), one.core.seen(), one.core.can_open()), (vec![], 0, None));
}
