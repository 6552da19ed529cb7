//! What RECODE must not do, each as a schedule of its own (PROTOCOL 10).

use racos_machine::{
    Action, Content, Exported, Founding, Import, Limits, Machine, Op, OpId, Outcome, Reconfigure,
    Value,
};

fn id(counter: u64) -> OpId {
    OpId::new(1, 1, 1, counter)
}

pub(super) fn value(counter: u64) -> Value {
    let digest = [counter as u8; 16];
    Value { op: id(counter), len: 20, digest, crc: 1, head: [2; 8], k: 3, n: 5, layout: 0 }
}

fn apply(machine: &mut Machine, slot: u64, counter: u64, action: Action) -> Outcome {
    machine.apply(slot, 0, &Op { id: id(counter), author: None, stamp: None, action })
}

/// A store with a value under the key, one that waits for its put, and another code from slot 10 on.
fn changed() -> Machine {
    let founding = Founding { nodes: 5, lost_max: 1, data: 3, alpha: 5 };
    let mut machine = Machine::with_members(Limits::default(), founding);
    let put = Action::Put { key: b"key".as_slice().into(), content: Content::Whole(value(1)) };
    apply(&mut machine, 1, 1, put);
    apply(&mut machine, 2, 2, Action::Part { value: value(2) });
    let change = Reconfigure { data: 2, ..machine.members().unchanged() };
    apply(&mut machine, 5, 3, Action::Reconfigure(Box::new(change)));
    machine
}

fn again(old: u64, new: u64) -> Value {
    Value { op: id(new), k: 2, layout: 1, ..value(old) }
}

fn recode(machine: &mut Machine, old: u64, value: Value) -> Outcome {
    apply(machine, 20, value.op.counter(), Action::Recode { old: id(old), value })
}

fn is_void(outcome: Outcome, what: &str) -> Result<(), String> {
    match outcome {
        Outcome::Refused { .. } => Ok(()),
        other => Err(format!("{what}: {other:?}")),
    }
}

/// PROTOCOL 10-ab: bytes that are not those of the old operation.
pub fn other_bytes_are_not_put_in_the_place_of_a_value() -> Result<(), String> {
    let mut machine = changed();
    let other = Value { digest: [9; 16], ..again(1, 10) };
    is_void(recode(&mut machine, 1, other), "a key shows other bytes than were written")
}

/// PROTOCOL 10-ab: a put that comes later calls a stripe by the name under which it was stored.
pub fn a_part_that_waits_keeps_its_name() -> Result<(), String> {
    let mut machine = changed();
    recode(&mut machine, 2, again(2, 10));
    let content = Content::Stripes([value(2)].into());
    let put = Action::Put { key: b"large".as_slice().into(), content };
    match apply(&mut machine, 21, 11, put) {
        Outcome::Applied(_) => Ok(()),
        other => Err(format!("the put of a stripe that was acknowledged came to {other:?}")),
    }
}

/// PROTOCOL 10-w, 10-ab: coded for those who were members before.
pub fn nothing_is_re_coded_for_members_that_were() -> Result<(), String> {
    let mut machine = changed();
    let stale = Value { op: id(10), ..value(1) };
    is_void(recode(&mut machine, 1, stale), "fragments lie elsewhere than the table says")
}

/// PROTOCOL 10-ac: no revision.
pub fn re_coding_makes_no_revision() -> Result<(), String> {
    let mut machine = changed();
    let before = machine.revision();
    recode(&mut machine, 1, again(1, 10));
    match machine.revision() - before {
        0 => Ok(()),
        more => Err(format!("{more} revisions that nobody made")),
    }
}

/// PROTOCOL 9.3-d: an export is of one slot, also if what it names is re-coded while it is written.
pub fn an_export_is_of_the_state_before() -> Result<(), String> {
    let mut machine = changed();
    let expected = machine.state_hash();
    machine.export_begin(1);
    let mut import = Import::new(Limits::default());
    let mut is_first = true;
    while machine.is_exporting() {
        if let Exported::Part(part) | Exported::Last(part) = machine.export_slice(1, &mut |_| ()) {
            import.part(&part, &mut |_| ()).map_err(|error| error.to_string())?;
        }
        if std::mem::take(&mut is_first) {
            recode(&mut machine, 1, again(1, 10));
        }
    }
    let found = import.finish().map_err(|error| format!("a checkpoint is lost: {error}"))?;
    if found.state_hash() == expected { Ok(()) } else { Err("another state was taken".into()) }
}
