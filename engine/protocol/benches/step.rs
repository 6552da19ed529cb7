//! What the core costs: one slot from its start to its decision and execution, on one node of 5,1,3.
//!
//! Everything that the core is given is counted: the open or the SPREAD, the flush of the own record,
//! the PROPOSEs of the four others and the SKIPs of the slots in between. Each round checks that the
//! slot was decided with its batch.
//! `cargo bench -p racos-protocol`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use racos_protocol::{BatchInfo, Config, Core, Effect, Effects, Input, Message, Node, Slot, Value};
use std::hint::black_box;

const US: u64 = 1_000;

/// Node 0, and what it is told.
struct Bench {
    core: Core,
    effects: Effects,
    now: u64,
    applied: Slot,
}

impl Bench {
    fn new() -> Bench {
        let config = Config::new((5, 1, 3), 0);
        let mut bench = Bench {
            core: Core::new(config).expect("possible parameters"),
            effects: Effects::default(),
            now: 0,
            applied: 0,
        };
        bench.core.start(0, &mut bench.effects);
        bench.flush();
        bench
    }

    fn step(&mut self, input: Input) {
        self.now += US;
        self.core.step(input, self.now, &mut self.effects);
    }

    /// What was appended is durable; what was applied is counted.
    fn flush(&mut self) {
        let mut list = std::mem::take(&mut self.effects.list);
        let mut releases = Vec::new();
        for effect in list.drain(..) {
            match effect {
                Effect::Persist { release, .. } => releases.push(release),
                Effect::Apply { value: Value::Batch(_), .. } => self.applied += 1,
                Effect::Fatal(what) => panic!("{what}"),
                _ => {}
            }
        }
        self.effects.list = list;
        for release in releases {
            self.step(Input::Durable(release));
        }
    }

    fn message(&mut self, from: Node, message: Message) {
        self.step(Input::Message { from, message });
    }

    fn propose(&mut self, slot: Slot, owner: Node) {
        let value = Value::Batch(u128::from(slot) + 1);
        for from in (0..5).filter(|from| *from != 0) {
            self.message(from, Message::Propose { slot, value });
        }
        for node in (0..5).filter(|node| *node != 0 && *node != owner) {
            let from = slot / 5 * 5 + Slot::from(node);
            self.message(node, Message::Skip { from, to: from + 1 });
        }
        self.flush();
        self.flush();
    }

    /// An own slot.
    fn own_slot(&mut self, batch: &BatchInfo) {
        let before = self.applied;
        let slot = self.core.can_open().expect("an own slot is free");
        self.step(Input::Open {
            batch: BatchInfo { digest: u128::from(slot) + 1, ..batch.clone() },
        });
        self.flush();
        self.propose(slot, 0);
        assert_eq!((self.applied, self.core.exec()), (before + 1, slot + 5));
    }

    /// A slot of node 1.
    fn other_slot(&mut self, batch: &BatchInfo) {
        let before = self.applied;
        let slot = self.core.exec() / 5 * 5 + 1;
        let batch = BatchInfo { digest: u128::from(slot) + 1, ..batch.clone() };
        self.step(Input::Spread { from: 1, slot, batch, room: true });
        self.flush();
        self.propose(slot, 1);
        assert_eq!((self.applied, self.core.exec()), (before + 1, slot + 4));
    }
}

fn steps(criterion: &mut Criterion) {
    let batch = BatchInfo { digest: 0, touches: [7].into(), is_change: false };
    let mut group = criterion.benchmark_group("slot, start to decision, one node of 5,1,3");
    group.throughput(Throughput::Elements(1));
    let mut bench = Bench::new();
    group.bench_function("own", |bencher| bencher.iter(|| bench.own_slot(black_box(&batch))));
    let mut bench = Bench::new();
    group.bench_function("another's", |bencher| {
        bencher.iter(|| bench.other_slot(black_box(&batch)))
    });
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
