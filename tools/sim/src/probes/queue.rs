//! Schedules of one core whose slots are filled from queues (PROTOCOL 6.4).

use racos_protocol::{
    Config, Core, Digest, Effect, Effects, Input, Message, Policy, Record, Slot, Value, candidate,
};

/// Node 1 of 5,1,3.
struct One {
    core: Core,
    effects: Effects,
}

impl One {
    fn new() -> One {
        let config = Config { policy: Policy::Queue, alpha: 10, ..Config::new((5, 1, 3), 1) };
        let core = Core::new(config).expect("possible parameters");
        let mut one = One { core, effects: Effects::default() };
        one.core.start(0, &mut one.effects);
        one
    }

    fn hear(&mut self, message: Message) {
        self.core.step(Input::Message { from: 3, message }, 0, &mut self.effects);
    }

    /// Slots in which it has proposed an operation.
    fn proposed(&self, of: Digest) -> Vec<Slot> {
        let proposed = self.effects.list.iter().filter_map(|effect| match effect {
            Effect::Persist { record: Record::Propose { slot, candidate }, .. } => {
                (*candidate == of).then_some(*slot)
            }
            _ => None,
        });
        proposed.collect()
    }
}

/// PROTOCOL 6.4-d: READY comes late, of an operation that has its slot.
pub fn what_is_in_the_log_is_not_proposed_again() -> Result<(), String> {
    let (mut one, operation) = (One::new(), candidate(7 << 50, 0));
    one.hear(Message::Ready { candidate: operation, below: 0 });
    one.hear(Message::Decide { slot: 0, value: Value::Batch(operation) });
    one.hear(Message::Ready { candidate: operation, below: 0 });
    match one.proposed(operation)[..] {
        [0] => Ok(()),
        ref other => Err(format!("an operation in slot 0 is proposed in {other:?}")),
    }
}

/// PROTOCOL 6.4-g: others drop what is stored of an operation when its slots are over.
pub fn nothing_is_proposed_beyond_its_life() -> Result<(), String> {
    let (mut one, operation) = (One::new(), candidate(7 << 50, 0));
    let life = one.core.config().life();
    one.hear(Message::Ready { candidate: operation, below: 0 });
    for slot in 0..life + 5 {
        one.hear(Message::Decide { slot, value: Value::Null });
    }
    match one.proposed(operation).last() {
        Some(last) if *last == life - 1 => Ok(()),
        last => Err(format!("an operation that lives for {life} slots is proposed in {last:?}")),
    }
}
