//! Transactions, leases, questions and hashes against a naive model that holds the values' bytes and
//! does what etcd's documentation says, with no thought of cost.

mod model;
mod world;

use proptest::prelude::*;
use racos_machine::{Action, Op, OpId, Select, Span, Step, Txn};
use world::World;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_machine_does_what_etcd_does(seed: u64) {
        let mut world = World::new(seed);
        for slot in 0..150 {
            world.turn(slot);
            world.check_state();
        }
        world.check_export();
    }
}

#[test]
fn transactions_without_evidence_are_refused_now_and_then() {
    let refused: u32 = (0..50)
        .map(|seed| {
            let mut world = World::new(seed);
            (0..100).for_each(|slot| world.turn(slot));
            world.refused
        })
        .sum();
    assert!(refused >= 5, "the other test is about something: {refused}");
}

#[test]
fn reads_in_slices_come_to_an_end_beside_changes() {
    let (mut ranges, mut hashes) = (0, 0);
    for seed in 0..10 {
        let mut world = World::new(seed);
        for slot in 0..150 {
            world.turn(slot);
            world.check_state();
        }
        ranges += world.sliced.0;
        hashes += world.sliced.1;
    }
    assert!(ranges >= 50 && hashes >= 10, "the other test is about something: {ranges}, {hashes}");
}

#[test]
fn numbers_of_both_signs_and_every_field_survive_the_wire() {
    for number in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
        let mut select = Select::new(Span::One([b'k'].into()));
        (select.limit, select.revision, select.create_min) = (number, number, number);
        let op = Op {
            id: OpId(9),
            author: None,
            stamp: None,
            action: Action::Txn(Box::new(Txn::of(Step::Select(select)))),
        };
        let mut bytes = Vec::new();
        op.encode(&mut bytes);
        assert_eq!(Op::decode(&mut &bytes[..]), Ok(op));
    }
}

#[test]
fn transactions_are_nested_only_so_deep() {
    let nested = |depth: usize| {
        let mut txn = Txn::default();
        for _ in 1..depth {
            txn = Txn::of(Step::Txn(txn));
        }
        Op { id: OpId(9), author: None, stamp: None, action: Action::Txn(Box::new(txn)) }
    };
    let deepest = nested(racos_machine::TXN_DEPTH_MAX);
    let mut bytes = Vec::new();
    deepest.encode(&mut bytes);
    assert_eq!(Op::decode(&mut &bytes[..]), Ok(deepest));
    assert!(nested(racos_machine::TXN_DEPTH_MAX + 1).check().is_err());
    // As if another had encoded one level more.
    let head = bytes.len() - 2 - 4 * (racos_machine::TXN_DEPTH_MAX - 1) - 1;
    let mut deeper = bytes[..head].to_vec();
    deeper.extend([0, 1, 3]);
    deeper.extend(&bytes[head..]);
    deeper.push(0);
    assert!(Op::decode(&mut &deeper[..]).is_err());
}
