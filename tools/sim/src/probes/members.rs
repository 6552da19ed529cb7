//! What a change of the members must not do, each as a schedule of its own (PROTOCOL 10).

use super::config;
use super::recode::value;
use racos_machine::{
    Action, Content, Founding, Limits, Machine, Op, OpId, Outcome, Reconfigure, Refusal, Replace,
};
use racos_protocol::{
    BatchInfo, Config, Configuration, Core, Effect, Effects, Input, Membership, Message, Node,
    NodeSet, ReadQuorum, ReadStep, Record, Seat, Slot, Value,
};

/// Five members with f = 1 and k = 3, and a value on them; a change executed in slot s is in effect from
/// s + 5 on.
fn founded() -> Machine {
    let founding = Founding { nodes: 5, lost_max: 1, data: 3, alpha: 5 };
    let mut machine = Machine::with_members(Limits::default(), founding);
    let content = Content::Whole(value(1));
    apply(&mut machine, 1, Action::Put { key: b"key".as_slice().into(), content });
    machine
}

fn apply(machine: &mut Machine, slot: Slot, action: Action) -> Outcome {
    let op = Op { id: OpId::new(1, 1, 1, slot), author: None, stamp: None, action };
    machine.apply(slot, 0, &op)
}

fn replace(node: u8, expected: u32, disk: u128) -> Action {
    let address = "".into();
    Action::ReplaceNode(Box::new(Replace { node, expected, disk, address, is_forced: false }))
}

fn reconfigure(expected: u32, members: &[u8], lost: &[u8]) -> Action {
    Action::Reconfigure(Box::new(Reconfigure {
        expected,
        members: members.to_vec(),
        joining: Vec::new(),
        lost_max: 1,
        data: 1,
        lost: lost.to_vec(),
        is_forced: false,
    }))
}

/// Admits what comes first, and then says why what comes next is void.
fn void_after(first: Action, slot: Slot, next: Action, why: Refusal) -> Result<(), String> {
    let mut machine = founded();
    let admitted = apply(&mut machine, 10, first);
    if !matches!(admitted, Outcome::Applied(_)) {
        return Err(format!("a change that nothing speaks against is void: {admitted:?}"));
    }
    match apply(&mut machine, slot, next) {
        Outcome::Refused { reason, .. } if reason == why => Ok(()),
        other => Err(format!("a change that must be void ({why:?}) came to {other:?}")),
    }
}

/// PROTOCOL 10-g: two changes at once would make three configurations of one window.
pub fn a_change_waits_for_the_one_in_flight() -> Result<(), String> {
    let next = reconfigure(2, &[0, 1, 2, 3], &[]);
    void_after(replace(2, 1, 7), 14, next, Refusal::ChangeInFlight)
}

/// PROTOCOL 10-h: two disks for one REPLACE: the second one does not take the place of the first.
pub fn one_replacement_is_made_once() -> Result<(), String> {
    void_after(replace(2, 1, 7), 15, replace(2, 1, 8), Refusal::OtherIncarnation)
}

/// PROTOCOL 10-h: a change of members that are not those any more.
pub fn members_are_changed_by_who_knows_them() -> Result<(), String> {
    let next = reconfigure(1, &[0, 1, 2, 3], &[]);
    void_after(replace(2, 1, 7), 15, next, Refusal::OtherEpoch)
}

/// PROTOCOL 10-i: a disk that had a place comes back in another one, with what it said there.
pub fn a_disk_has_one_place() -> Result<(), String> {
    void_after(replace(2, 1, 7), 15, replace(2, 2, 7), Refusal::DiskInUse)
}

/// PROTOCOL 10-j: with f = 1, of no value may two members be without their fragments.
pub fn at_most_f_members_rebuild() -> Result<(), String> {
    void_after(replace(2, 1, 7), 15, replace(3, 1, 8), Refusal::TooManyRebuilding)
}

/// PROTOCOL 10-j, 10-ae: one that leaves as lost counts as gone like one that rebuilds.
pub fn what_leaves_as_lost_is_gone() -> Result<(), String> {
    let next = reconfigure(2, &[0, 1, 2, 3], &[4]);
    void_after(replace(2, 1, 7), 15, next, Refusal::TooManyRebuilding)
}

fn move_node(node: u8, expected: u32, address: &str) -> Action {
    Action::MoveNode { node, expected, address: address.into() }
}

/// PROTOCOL 10-am: the disk that was to move is not there any more; the one in its place is where it was named.
pub fn one_disk_is_moved_and_not_the_next() -> Result<(), String> {
    void_after(replace(2, 1, 7), 15, move_node(2, 1, "a:1"), Refusal::OtherIncarnation)
}

/// PROTOCOL 10-am: what is sent to one of two nodes at an address reaches the other.
pub fn a_place_has_one_node() -> Result<(), String> {
    void_after(move_node(2, 1, "a:1"), 11, move_node(3, 1, "a:1"), Refusal::AddressInUse)
}

/// PROTOCOL 10-i: one of five that may be lost, and five of six fragments: some value would be gone.
pub fn a_shape_that_cannot_keep_its_promise_is_none() -> Result<(), String> {
    let mut machine = founded();
    let Action::Reconfigure(mut change) = reconfigure(1, &[0, 1, 2, 3, 4], &[]) else {
        unreachable!("made here");
    };
    change.data = 4;
    match apply(&mut machine, 10, Action::Reconfigure(change)) {
        Outcome::Refused { reason: Refusal::ImpossibleMembers, .. } => Ok(()),
        other => Err(format!("n = 5, f = 1, k = 4 came to {other:?}")),
    }
}

const EXEC: Slot = 1003;
const EFFECT: Slot = 1013;

/// Node `me` of five, at slot 1003, after a change that is in effect from slot 1013 on: node 3 has another
/// disk, or, `smaller`, only the first three stay.
fn changing(me: Node, incarnation: u32, smaller: bool) -> (Core, Effects) {
    let config = Config { incarnation, ..config(5, 1, 3, me) };
    let mut core = Core::new(config).expect("possible parameters");
    let mut effects = Effects::default();
    core.start(0, &mut effects);
    let of = |from, members, f, k| Configuration::new(from, members, f, k).expect("possible");
    let mut to = Membership {
        seats: core.seats().to_vec(),
        lost: NodeSet::EMPTY,
        configurations: vec![of(0, (0..5).collect(), 1, 3)],
        epoch: 2,
        effect: EFFECT,
    };
    match smaller {
        true => to.configurations.push(of(EFFECT, (0..3).collect(), 1, 1)),
        false => to.seats[3] = Seat { incarnation: 2, from: EFFECT },
    }
    core.jump(EXEC, to, 0, 0, &mut effects);
    while let Some(at) = effects.list.iter().position(|it| matches!(it, Effect::Persist { .. })) {
        if let Effect::Persist { release, .. } = effects.list.remove(at) {
            core.step(Input::Durable(release), 0, &mut effects);
        }
    }
    (core, effects)
}

/// PROTOCOL 10-l: slots below the effect are those of the members before.
pub fn a_slot_has_the_owner_of_its_own_configuration() -> Result<(), String> {
    let (core, _) = changing(0, 1, true);
    match (core.owner(EFFECT - 4), core.owner(EFFECT + 1)) {
        (4, 0) => Ok(()),
        other => Err(format!("slots 1009 and 1014 belong to {other:?}, not to nodes 4 and 0")),
    }
}

/// PROTOCOL 10-q: no slot in which both disks of a node count.
pub fn one_disk_of_a_node_counts_in_a_slot() -> Result<(), String> {
    let (core, _) = changing(0, 1, false);
    for slot in EXEC..EFFECT + 10 {
        let message = Message::Propose { slot, value: Value::Null };
        let counts = [1, 2].map(|incarnation| core.hears(3, incarnation, &message));
        if counts != [slot < EFFECT, slot >= EFFECT] {
            return Err(format!("in slot {slot} the old and the new disk count: {counts:?}"));
        }
    }
    Ok(())
}

/// PROTOCOL 10-t: what its predecessor said of a slot in which it does not count it cannot know; before it
/// has executed all of those it says nothing.
pub fn a_new_disk_promises_nothing_before_its_place() -> Result<(), String> {
    let (mut core, mut effects) = changing(3, 2, false);
    effects.list.clear();
    let batch = BatchInfo { digest: 7, touches: [1].into(), is_change: false };
    let slot = EFFECT + 2;
    core.step(Input::Spread { from: 0, slot, batch, room: true }, 0, &mut effects);
    let holds = |it: &Effect| matches!(it, Effect::Persist { record: Record::Hold { .. }, .. });
    match effects.list.iter().any(holds) {
        false => Ok(()),
        true => Err(format!("slot {slot} is promised by a disk that has executed 1003")),
    }
}

/// PROTOCOL 10-n, 10-p: whoever executes a change gives up its own slots up to there, work or none.
pub fn slots_before_a_change_are_filled_without_work() -> Result<(), String> {
    let (core, effects) = changing(0, 1, false);
    let skips = |it: &Effect| match *it {
        Effect::Send { message: Message::Skip { from, to }, .. } => from <= 1005 && to > 1010,
        _ => false,
    };
    match core.seen() >= EFFECT && effects.list.iter().any(skips) {
        true => Ok(()),
        false => Err("slots below the change wait for somebody who has work".into()),
    }
}

/// PROTOCOL 10-o: nobody waits for the slots of a disk that was replaced.
pub fn a_replaced_owner_is_not_waited_for() -> Result<(), String> {
    let (mut core, mut effects) = changing(0, 1, false);
    // It told the state, and has nothing more to tell.
    core.step(Input::Tick, 1, &mut effects);
    let refuses = |it: &Effect| match *it {
        Effect::Persist { record: Record::NoHold { from, to }, .. } => {
            from == 1003 && to > 1008 && to <= EFFECT
        }
        _ => false,
    };
    match effects.list.iter().any(refuses) {
        true => Ok(()),
        false => Err("the slots of a replaced disk are waited for".into()),
    }
}

/// PROTOCOL 10-x: a write that the old members acknowledged may be unknown to all new ones.
pub fn a_read_during_a_change_asks_the_old_members_too() -> Result<(), String> {
    let mut read = ReadQuorum::joint(4, 2);
    for node in 0..2 {
        read.answer_as(node, (false, true), EXEC, None);
    }
    match read.step() {
        ReadStep::Wait => Ok(()),
        other => Err(format!("a read that no old member answered is answered by {other:?}")),
    }
}
