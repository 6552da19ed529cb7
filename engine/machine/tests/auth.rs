//! Users, roles and permissions, as every node applies them.

mod common;

use common::{key, op, put, value_of};
use proptest::prelude::*;
use racos_machine::{
    Action, AlarmKind, Auth, AuthEntry, AuthStep, Author, BatchLimits, Caller, Compare,
    EXPORT_PART_BYTES, Exported, Import, Limits, Machine, Op, OpId, Outcome, Password, Permission,
    PermissionKind, PutStep, ROOT, Refusal, Relation, Restore, Secret, Select, Side, Span, Step,
    Txn, Written, decode_batch, encode_batch,
};

const ON: AuthStep = AuthStep::Enable { secret: Secret([7; 32]) };

/// A machine, and where its next operation stands.
struct World {
    machine: Machine,
    slot: u64,
}

impl World {
    fn new() -> World {
        World { machine: Machine::new(Limits::default()), slot: 0 }
    }

    /// Applies an operation of a user; `None`: of none.
    fn act(&mut self, user: Option<&str>, make: impl FnOnce(u64) -> Op) -> Result<u32, Refusal> {
        self.slot += 1;
        let auth_revision = self.machine.auth().revision();
        let author =
            user.map(|user| Box::new(Author { user: key(user.as_bytes()), auth_revision }));
        let op = Op { author, ..make(self.slot) };
        let before = self.machine.state_hash();
        let outcome = self.machine.apply(self.slot, 0, &op);
        assert_eq!(self.machine.state_hash(), self.machine.full_hash(), "after {op:?}");
        match outcome {
            Outcome::Refused { reason, .. } => {
                assert_eq!(self.machine.state_hash(), before, "a refused one changes nothing");
                Err(reason)
            }
            outcome => Ok(outcome.done().expect("it was not refused").changes),
        }
    }

    fn step(&mut self, user: Option<&str>, step: AuthStep) -> Result<u32, Refusal> {
        self.act(user, |id| op(id, Action::Auth(Box::new(step))))
    }

    fn good(&mut self, step: AuthStep) {
        self.step(None, step).expect("authentication is off");
    }

    fn txn(&mut self, user: &str, txn: Txn) -> Result<u32, Refusal> {
        self.act(Some(user), |id| op(id, Action::Txn(Box::new(txn))))
    }
}

fn name(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

/// root, u who reads and writes [a, c), reads [c, e) and writes [e, g), and v who may do nothing; and a
/// few keys, some of them on leases. Authentication is on.
fn world() -> World {
    let mut world = World::new();
    for user in ["root", "u", "v"] {
        let password = Some(Password(name("hash")));
        world.good(AuthStep::UserAdd { name: name(user), password });
    }
    world.good(AuthStep::RoleAdd { name: name("r") });
    for (kind, from, end) in [
        (PermissionKind::ReadWrite, "a", "c"),
        (PermissionKind::Read, "c", "e"),
        (PermissionKind::Write, "e", "g"),
    ] {
        let permission = Permission { kind, key: name(from), end: name(end) };
        world.good(AuthStep::GrantPermission { role: name("r"), permission });
    }
    world.good(AuthStep::GrantRole { user: name("u"), role: name("r") });
    world.good(AuthStep::GrantRole { user: name("root"), role: name("root") });
    for lease in [1, 2] {
        world.act(None, |id| op(id, Action::LeaseGrant { id: lease, ttl: 60 })).unwrap();
    }
    for (at, lease) in [("a", 1), ("c", 0), ("e", 1), ("z", 2)] {
        let txn = Txn::of(put_step(at, Some(lease), false));
        world.act(None, |id| op(id, Action::Txn(Box::new(named(txn, id))))).unwrap();
    }
    world.good(ON);
    world
}

fn put_step(at: &str, lease: Option<i64>, previous: bool) -> Step {
    Step::Put(PutStep { key: name(at), written: Written::Own(value_of(OpId(0))), lease, previous })
}

/// The transaction with its values named as those of an operation.
fn named(mut txn: Txn, id: u64) -> Txn {
    fn visit(steps: &mut [Step], next: &mut OpId) {
        for step in steps {
            match step {
                Step::Put(PutStep { written: Written::Own(value), .. }) => {
                    next.0 += 1;
                    *value = value_of(*next);
                }
                Step::Txn(inner) => {
                    visit(&mut inner.success, next);
                    visit(&mut inner.failure, next);
                }
                _ => {}
            }
        }
    }
    let mut next = op(id, Action::Noop).id;
    visit(&mut txn.success, &mut next);
    visit(&mut txn.failure, &mut next);
    txn
}

fn range(from: &str, to: &str) -> Span {
    Span::Range { from: name(from), to: Some(name(to)) }
}

fn one(key: &str) -> Span {
    Span::One(name(key))
}

const DENIED: Result<u32, Refusal> = Err(Refusal::PermissionDenied);

#[test]
fn keys_are_written_with_permission_only_and_of_no_user_nothing() {
    let mut world = world();
    assert_eq!(world.act(None, |id| put(id, "a")), Err(Refusal::UserEmpty));
    assert_eq!(world.act(Some("root"), |id| put(id, "anything")), Ok(1));
    for (at, allowed) in [("a", true), ("c", false), ("e", true), ("g", false)] {
        let done = world.act(Some("u"), |id| put(id, at));
        assert_eq!(done, if allowed { Ok(1) } else { DENIED }, "put {at}");
        assert_eq!(world.act(Some("v"), |id| put(id, at)), DENIED);
        let done = world.act(Some("u"), |id| op(id, Action::Delete { key: name(at) }));
        assert_eq!(done.is_ok(), allowed, "delete {at}");
    }
    for (from, to, allowed) in [
        ("a", Some("c"), true),
        ("a", Some("d"), false),
        ("e", Some("g"), true),
        ("e", None, false),
    ] {
        let action = Action::DeleteRange { from: name(from), to: to.map(name) };
        assert_eq!(world.act(Some("u"), |id| op(id, action)).is_ok(), allowed, "{from} to {to:?}");
    }
}

#[test]
fn a_transaction_is_judged_whole() {
    let select = |span| Step::Select(Select::new(span));
    let delete = |span, previous| Step::Delete { span, previous };
    let compare = |span| Compare { span, relation: Relation::Equal, side: Side::Version(0) };
    let of = |compares: Vec<Compare>, success: Vec<Step>, failure: Vec<Step>| Txn {
        compares,
        success,
        failure,
    };
    let nested = |step: Step| Step::Txn(of(vec![], vec![], vec![step]));
    let cases = [
        (of(vec![compare(one("a"))], vec![], vec![]), true),
        (of(vec![compare(one("e"))], vec![], vec![]), false),
        (of(vec![compare(range("a", "f"))], vec![], vec![]), false),
        (of(vec![], vec![select(range("a", "e"))], vec![]), true),
        (of(vec![], vec![select(range("a", "f"))], vec![]), false),
        // The branch that is not taken, too.
        (of(vec![], vec![], vec![select(one("z"))]), false),
        (of(vec![], vec![put_step("a", None, false)], vec![put_step("z", None, false)]), false),
        (of(vec![], vec![delete(range("e", "g"), false)], vec![]), true),
        (of(vec![], vec![delete(range("e", "g"), true)], vec![]), false),
        (of(vec![], vec![delete(range("a", "c"), true)], vec![]), true),
        (of(vec![], vec![put_step("a", Some(0), true)], vec![]), true),
        (of(vec![], vec![put_step("e", Some(0), true)], vec![]), false),
        (of(vec![], vec![put_step("a", Some(1), false)], vec![]), true),
        // A key of others is attached to the lease: it is not u's to end.
        (of(vec![], vec![put_step("a", Some(2), false)], vec![]), false),
        (of(vec![], vec![nested(select(one("a")))], vec![]), true),
        (of(vec![], vec![nested(select(one("z")))], vec![]), false),
        (of(vec![], vec![nested(nested(put_step("z", None, false)))], vec![]), false),
        (of(vec![], vec![Step::Txn(of(vec![compare(one("z"))], vec![], vec![]))], vec![]), false),
    ];
    for (case, (txn, allowed)) in cases.into_iter().enumerate() {
        let mut world = world();
        let next = world.slot + 1;
        let done = world.txn("u", named(txn.clone(), next));
        assert_eq!(done != DENIED, allowed, "case {case}: {txn:?}: {done:?}");
        assert_eq!(world.txn("v", Txn::default()), Ok(0));
        // What reads say of it.
        let machine = &world.machine;
        let since = machine.auth().user(b"u").unwrap().since;
        let permit = machine.permit(Some(&Caller { user: name("u"), since })).unwrap();
        assert_eq!(machine.permits_txn(&permit, &txn).is_ok(), allowed, "case {case}");
    }
}

#[test]
fn a_lease_is_ended_by_who_may_delete_its_keys() {
    let mut world = world();
    let revoke = |lease| move |id| op(id, Action::LeaseRevoke { id: lease });
    assert_eq!(world.act(None, revoke(1)), Err(Refusal::UserEmpty));
    assert_eq!(world.act(Some("v"), revoke(1)), DENIED);
    assert_eq!(world.act(Some("u"), revoke(2)), DENIED);
    assert_eq!(world.act(Some("u"), revoke(1)), Ok(2));
    assert_eq!(world.act(Some("v"), revoke(77)), Err(Refusal::LeaseNotFound));
    let grant = |lease| move |id| op(id, Action::LeaseGrant { id: lease, ttl: 60 });
    assert_eq!(world.act(None, grant(5)), Err(Refusal::UserEmpty));
    assert_eq!(world.act(Some("v"), grant(5)), Ok(0));
    // One that ran out is ended by the nodes.
    assert_eq!(world.act(None, |id| op(id, Action::LeaseExpire { id: 2 })), Ok(1));
}

#[test]
fn what_concerns_all_is_roots() {
    let mut world = world();
    let compact = |id| op(id, Action::Compact { revision: 2 });
    let alarm = Action::Alarm { member: 1, kind: AlarmKind::Corrupt, raised: true };
    assert_eq!(world.act(None, compact), Err(Refusal::UserEmpty));
    assert_eq!(world.act(Some("u"), compact), DENIED);
    assert_eq!(world.act(Some("root"), compact), Ok(0));
    assert_eq!(world.act(Some("u"), |id| op(id, alarm.clone())), DENIED);
    // Nodes raise their own.
    assert_eq!(world.act(None, |id| op(id, alarm)), Ok(0));
    assert_eq!(world.act(Some("u"), |id| op(id, Action::NodeLost { node: 1 })), DENIED);
    let add = || AuthStep::RoleAdd { name: name("s") };
    assert_eq!(world.step(None, add()), Err(Refusal::UserEmpty));
    assert_eq!(world.step(Some("u"), add()), DENIED);
    assert_eq!(world.step(Some("root"), add()), Ok(0));
    assert_eq!(world.step(None, AuthStep::Disable), Err(Refusal::UserEmpty));
    assert_eq!(world.step(Some("u"), AuthStep::Disable), DENIED);
    assert_eq!(world.step(Some("root"), AuthStep::Disable), Ok(0));
    assert_eq!(world.act(None, |id| put(id, "z")), Ok(1));
}

#[test]
fn what_was_let_in_before_a_change_is_refused_after_it() {
    let mut world = world();
    let auth_revision = world.machine.auth().revision();
    let by_u = |id| Op {
        author: Some(Box::new(Author { user: name("u"), auth_revision })),
        ..put(id, "a")
    };
    world.slot += 1;
    let outcome = world.machine.apply(world.slot, 0, &by_u(world.slot));
    assert!(outcome.done().is_some());
    world.step(Some("root"), AuthStep::RevokeRole { user: name("u"), role: name("r") }).unwrap();
    world.slot += 1;
    let outcome = world.machine.apply(world.slot, 0, &by_u(world.slot));
    assert!(matches!(outcome, Outcome::Refused { reason: Refusal::AuthRevision, .. }));
    assert_eq!(world.act(Some("u"), |id| put(id, "a")), DENIED);
}

#[test]
fn a_caller_who_was_deleted_or_has_another_password_is_nobody() {
    let mut world = world();
    let of = |machine: &Machine, user: &str| {
        let since = machine.auth().user(user.as_bytes()).unwrap().since;
        Caller { user: name(user), since }
    };
    let (u, v) = (of(&world.machine, "u"), of(&world.machine, "v"));
    assert!(world.machine.permit(Some(&u)).is_ok());
    assert_eq!(world.machine.author_of(&u).unwrap().unwrap().user, name("u"));
    assert!(matches!(world.machine.permit(None), Err(Refusal::UserEmpty)));
    let password = Password(name("other"));
    world.step(Some("root"), AuthStep::ChangePassword { name: name("u"), password }).unwrap();
    world.step(Some("root"), AuthStep::UserDelete { name: name("v") }).unwrap();
    for caller in [&u, &v] {
        assert!(matches!(world.machine.permit(Some(caller)), Err(Refusal::AuthToken)));
        assert_eq!(world.machine.author_of(caller), Err(Refusal::AuthToken));
    }
    world.step(Some("root"), AuthStep::Disable).unwrap();
    assert!(world.machine.permit(None).is_ok_and(|permit| permit.is_all()));
    assert_eq!(world.machine.author_of(&u), Ok(None));
}

fn export(
    machine: &mut Machine,
    part_bytes: usize,
    mut between: impl FnMut(&mut Machine),
) -> Vec<Vec<u8>> {
    machine.export_begin(part_bytes);
    let mut parts = Vec::new();
    while machine.is_exporting() {
        match machine.export_slice(2, &mut |_| {}) {
            Exported::Working => {}
            Exported::Part(part) | Exported::Last(part) => parts.push(part),
        }
        between(machine);
    }
    parts
}

fn import(parts: &[Vec<u8>]) -> Machine {
    let mut import = Import::new(Limits::default());
    for part in parts {
        import.part(part, &mut |_| {}).unwrap();
    }
    import.finish().unwrap()
}

#[test]
fn users_survive_an_export_and_a_store_without_them_has_none_in_it() {
    let mut world = world();
    let parts = export(&mut world.machine, EXPORT_PART_BYTES, |_| {});
    let mut again = World { machine: import(&parts), slot: world.slot };
    assert_eq!(again.machine.auth(), world.machine.auth());
    assert_eq!(again.machine.state_hash(), world.machine.state_hash());
    assert_eq!(again.act(Some("u"), |id| put(id, "c")), DENIED);
    assert_eq!(again.act(None, |id| put(id, "a")), Err(Refusal::UserEmpty));
    // A store that never had users says nothing of them: older nodes read it.
    let mut plain = Machine::new(Limits::default());
    let entries = export(&mut plain, EXPORT_PART_BYTES, |_| {}).concat();
    let mut with = World::new();
    with.good(AuthStep::RoleAdd { name: name("r") });
    let more = export(&mut with.machine, EXPORT_PART_BYTES, |_| {}).concat();
    let told = with.machine.auth_entries_behind(None).0;
    let told: usize = told.iter().map(|entry| 1 + entry.encoded().len()).sum();
    // And the slot and position of the operation that made the role.
    assert_eq!(more.len(), entries.len() + told + 2);
    assert_eq!(plain.auth_entries_behind(None), (Vec::new(), None));
}

fn step_of([what, a, b, c]: [u8; 4]) -> AuthStep {
    let user = || name(["root", "u", "v", "w"][usize::from(a % 4)]);
    let role = || name(["root", "r", "s", "t"][usize::from(b % 4)]);
    let kinds = [PermissionKind::Read, PermissionKind::Write, PermissionKind::ReadWrite];
    let from = name(["a", "b", "c"][usize::from(c % 3)]);
    let end = || name(["", "\0", "d"][usize::from(c / 3 % 3)]);
    let password = || Password(name(&c.to_string()));
    match what % 14 {
        0 => AuthStep::Enable { secret: Secret([c; 32]) },
        1 => AuthStep::Disable,
        2 | 3 => AuthStep::UserAdd { name: user(), password: (c > 50).then(password) },
        4 => AuthStep::UserDelete { name: user() },
        5 => AuthStep::ChangePassword { name: user(), password: password() },
        6 | 7 => AuthStep::GrantRole { user: user(), role: role() },
        8 => AuthStep::RevokeRole { user: user(), role: role() },
        9 | 10 => AuthStep::RoleAdd { name: role() },
        11 => AuthStep::RoleDelete { name: role() },
        12 => {
            let permission = Permission { kind: kinds[usize::from(a % 3)], key: from, end: end() };
            AuthStep::GrantPermission { role: role(), permission }
        }
        _ => AuthStep::RevokePermission { role: role(), key: from, end: end() },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_history_of_users_is_hashed_sent_and_exported_alike(
        choices in prop::collection::vec(any::<[u8; 4]>(), 1..80),
        pin in any::<prop::sample::Index>(),
        part_bytes in prop::sample::select(vec![1usize, 60, 1 << 16]),
    ) {
        let mut world = World::new();
        let pin = pin.index(choices.len());
        let mut pinned = None;
        for (at, choice) in choices.iter().enumerate() {
            if at == pin {
                let parts = export(&mut world.machine, part_bytes, |_| {});
                world.machine.export_begin(part_bytes);
                pinned = Some((parts, world.machine.auth().clone()));
            }
            let asked = op(1, Action::Auth(Box::new(step_of(*choice))));
            let mut bytes = Vec::new();
            encode_batch(std::slice::from_ref(&asked), &mut bytes);
            prop_assert_eq!(decode_batch(&bytes, &BatchLimits::default()), Ok(vec![asked]));
            for len in 0..bytes.len() {
                prop_assert!(decode_batch(&bytes[..len], &BatchLimits::default()).is_err());
            }
            // Refused or done, the hash kept is the hash of what is there: `act` looks.
            let _ = world.step(Some("root"), step_of(*choice));
        }
        let (expected, auth) = pinned.expect("one place was pinned");
        let mut parts = Vec::new();
        while world.machine.is_exporting() {
            match world.machine.export_slice(1, &mut |_| {}) {
                Exported::Working => {}
                Exported::Part(part) | Exported::Last(part) => parts.push(part),
            }
        }
        prop_assert_eq!(&parts, &expected, "what came later is not in it");
        let back = import(&parts);
        prop_assert_eq!(back.auth(), &auth);
    }
}

/// What a backup holds of users.
fn entries(machine: &Machine) -> Vec<AuthEntry> {
    machine.auth_entries_behind(None).0
}

#[test]
fn users_are_restored_into_a_new_store_with_another_secret() {
    let original = world();
    let mut store = World::new();
    let restore = |step| move |id| op(id, Action::Restore(step));
    store.act(None, restore(Restore::Begin { revision: 9 })).unwrap();
    let mut all = entries(&original.machine);
    let last = all.pop().unwrap();
    for entry in &all {
        let bytes = entry.encoded();
        assert_eq!(AuthEntry::decode(&bytes).as_ref(), Ok(entry));
        assert!(AuthEntry::decode(&bytes[..bytes.len() - 1]).is_err());
        for _ in 0..2 {
            store.act(None, restore(Restore::Auth(Box::new(entry.clone())))).unwrap();
        }
    }
    // Exported in the middle, it goes on.
    let parts = export(&mut store.machine, EXPORT_PART_BYTES, |_| {});
    store.machine = import(&parts);
    let AuthEntry::State { enabled, revision, .. } = last else { panic!("{last:?}") };
    let state = AuthEntry::State { enabled, revision, secret: Secret([9; 32]) };
    store.act(None, restore(Restore::Auth(Box::new(state)))).unwrap();
    let (was, is) = (original.machine.auth(), store.machine.auth());
    assert_eq!((is.revision(), is.is_enabled()), (was.revision(), true));
    assert_eq!((is.user(b"u"), is.role(b"r")), (was.user(b"u"), was.role(b"r")));
    assert_eq!(is.secret(), &Secret([9; 32]));
    let wrong = AuthEntry::Grant { user: name("nobody"), role: ROOT.into() };
    let refused = store.act(None, restore(Restore::Auth(Box::new(wrong))));
    assert_eq!(refused, Err(Refusal::RestoreMismatch));
    // A store that has users is not a new one.
    let mut used = World::new();
    used.good(AuthStep::UserAdd { name: name("u"), password: None });
    assert_eq!(used.act(None, restore(Restore::Begin { revision: 9 })), Err(Refusal::NotEmpty));
    assert_eq!(Auth::default().revision(), 1);
}
