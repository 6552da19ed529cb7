//! Users and what they may do, asked through the doors of whole nodes.

use crate::cluster::Cluster;
use crate::{key, prefix, put, watch};
use racos_engine::api::types::*;
use racos_engine::api::{AuthAsk, AuthTold, Handle};
use racos_machine::{
    AuthStep, Caller, Name, Password, Permission, PermissionKind, Refusal, Secret,
};

fn name(text: &str) -> Name {
    text.as_bytes().into()
}

const DENIED: Error = Error::Auth(Refusal::PermissionDenied);
const NOBODY: Error = Error::Auth(Refusal::UserEmpty);

impl Cluster {
    fn step(&mut self, handle: &Handle, step: AuthStep) -> Result<Done, Error> {
        let pending = handle.auth_step(step);
        self.wait(pending)
    }

    /// The handle of a user at a node, as with a token given now.
    fn of(&mut self, node: usize, user: &str) -> Handle {
        let pending = self.handles[node].login(name(user));
        let since = self.wait(pending).unwrap().user.expect("there is one").since;
        self.handles[node].on_behalf_of(Caller { user: name(user), since })
    }
}

/// Five nodes, keys a, b and c, and a lease; root, and u who may read and write [a, c). Authentication is on.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(5, 1, 3);
    for at in ["a", "b", "c"] {
        cluster.put(0, at, "value");
    }
    let lease = cluster.handles[0].lease_grant(7, 60);
    cluster.wait(lease).unwrap();
    let leased = cluster.handles[0].put(Put { lease: 7, ..put("c", "leased") });
    cluster.wait(leased).unwrap();
    let handle = cluster.handles[1].clone();
    let (kind, key, end) = (PermissionKind::ReadWrite, name("a"), name("c"));
    for step in [
        AuthStep::UserAdd { name: name("root"), password: Some(Password(name("hash"))) },
        AuthStep::GrantRole { user: name("root"), role: name("root") },
        AuthStep::UserAdd { name: name("u"), password: Some(Password(name("hash"))) },
        AuthStep::RoleAdd { name: name("r") },
        AuthStep::GrantPermission { role: name("r"), permission: Permission { kind, key, end } },
        AuthStep::GrantRole { user: name("u"), role: name("r") },
        AuthStep::Enable { secret: Secret([1; 32]) },
    ] {
        cluster.step(&handle, step).unwrap();
    }
    cluster
}

/// What each kind of request comes to, by name.
fn asked(cluster: &mut Cluster, handle: &Handle) -> Vec<(&'static str, Option<Error>)> {
    let mut told = Vec::new();
    macro_rules! ask {
        ($what:literal, $pending:expr) => {
            let pending = $pending;
            told.push(($what, cluster.wait(pending).err()));
        };
    }
    let txn = |op| Txn { success: vec![op], ..Txn::default() };
    ask!("range of mine", handle.range(Range::new(prefix("a", "c")), false));
    ask!("range of others'", handle.range(Range::new(prefix("a", "d")), false));
    ask!("local range of mine", handle.range(Range::new(key("a")), true));
    ask!("local range of others'", handle.range(Range::new(key("c")), true));
    ask!("put of mine", handle.put(put("a", "1")));
    ask!("put of others'", handle.put(put("c", "1")));
    ask!("large put of mine", handle.put(put("a", vec![7; 600 << 10])));
    ask!("put on a lease of others'", handle.put(Put { lease: 7, ..put("a", "1") }));
    ask!("delete of mine", handle.delete(Delete { keys: key("b"), prev_kv: true }));
    ask!("delete of others'", handle.delete(Delete { keys: prefix("b", "d"), prev_kv: false }));
    ask!("txn of mine", handle.txn(txn(TxnOp::Put(put("b", "2"))), false));
    ask!("txn of others'", handle.txn(txn(TxnOp::Put(put("c", "2"))), false));
    ask!("reading txn of mine", handle.txn(txn(TxnOp::Range(Range::new(key("b")))), false));
    ask!("reading txn of others'", handle.txn(txn(TxnOp::Range(Range::new(key("c")))), false));
    ask!("lease of mine", handle.lease_grant(0, 60));
    ask!("lease left", handle.lease_time_to_live(7, false));
    ask!("lease keys of others'", handle.lease_time_to_live(7, true));
    ask!("leases", handle.leases());
    ask!("keep alive of others'", handle.lease_keep_alive(7));
    ask!("revoke of others'", handle.lease_revoke(7));
    ask!("members", handle.members(true));
    ask!("members of all", handle.members(false));
    ask!("status", handle.status());
    ask!("alarms", handle.alarms());
    ask!("raise an alarm", handle.alarm(1, AlarmKind::Corrupt, true));
    ask!("lower an alarm", handle.alarm(1, AlarmKind::Corrupt, false));
    ask!("compact", handle.compact(2, false));
    ask!("hash", handle.hash_kv(0));
    ask!("backup", handle.backup_begin());
    ask!("backup page", handle.backup_page(9, BackupPlace::default()));
    ask!("backup of users", handle.backup_auth(None));
    ask!("remove a member", handle.member_remove(1));
    ask!("add a member", handle.member_add("10.0.0.1:1".parse().unwrap()));
    ask!("restore", handle.restore(RestoreStep::Begin { revision: 5 }));
    ask!("users", handle.auth(AuthAsk::Users));
    ask!("roles", handle.auth(AuthAsk::Roles));
    ask!("own roles", handle.auth(AuthAsk::User(name("u"))));
    ask!("root's roles", handle.auth(AuthAsk::User(name("root"))));
    ask!("own role", handle.auth(AuthAsk::Role(name("r"))));
    ask!("state", handle.auth(AuthAsk::State));
    ask!("step", handle.auth_step(AuthStep::RoleAdd { name: name("another") }));
    ask!("switch it off", handle.auth_step(AuthStep::Enable { secret: Secret([9; 32]) }));
    told
}

#[test]
fn nobody_does_anything_and_users_what_they_may_at_every_node() {
    let mut cluster = cluster();
    for node in 0..5 {
        let nobody = cluster.handles[node].clone();
        for (what, error) in asked(&mut cluster, &nobody) {
            assert_eq!(error, Some(NOBODY), "{what} by nobody at node {node}");
        }
    }
    let open =
        ["lease left", "members", "members of all", "status", "alarms", "own roles", "own role"];
    for node in [0, 3] {
        let user = cluster.of(node, "u");
        for (what, error) in asked(&mut cluster, &user) {
            let allowed = what.contains("of mine") || open.contains(&what);
            assert_eq!(error, (!allowed).then_some(DENIED), "{what} by u at node {node}");
        }
    }
    let root = cluster.of(2, "root");
    for (what, error) in asked(&mut cluster, &root) {
        let is_auth = matches!(error, Some(Error::Auth(_)));
        assert!(!is_auth, "{what} by root: {error:?}");
    }
    // What the node wants to know itself needs nobody.
    let itself = cluster.handles[4].itself();
    let read = itself.range(Range::new(key("c")), false);
    assert!(cluster.wait(read).is_ok());
}

#[test]
fn watches_are_judged_in_the_order_in_which_they_are_asked_for() {
    let mut cluster = cluster();
    let user = cluster.of(1, "u");
    let mut stream = user.watches();
    for (id, keys) in [(1, key("a")), (2, key("c")), (3, prefix("a", "c")), (4, prefix("a", "z"))] {
        stream.create(WatchCreate { id, ..watch(keys, 0) }).unwrap();
    }
    // It waits for the watch that it ends.
    stream.cancel(3).unwrap();
    let mut told: Vec<_> =
        (0..5).map(|_| cluster.next(&mut stream)).map(|news| (news.id, news.what)).collect();
    let denied = || WatchNews::Refused(WatchRefusal::Auth(Refusal::PermissionDenied));
    let cancelled = told.remove(4);
    assert_eq!(
        told,
        [(1, WatchNews::Created), (-1, denied()), (3, WatchNews::Created), (-1, denied())]
    );
    assert_eq!(cancelled, (3, WatchNews::Cancelled));
    let pending = user.put(put("a", "told"));
    cluster.wait(pending).unwrap();
    let news = cluster.next(&mut stream);
    assert!(matches!((news.id, &news.what), (1, WatchNews::Events(events)) if events.len() == 1));
    let mut nobody = cluster.handles[1].watches();
    nobody.create(watch(key("a"), 0)).unwrap();
    let refused = WatchNews::Refused(WatchRefusal::Auth(Refusal::UserEmpty));
    assert_eq!(cluster.next(&mut nobody).what, refused);
}

#[test]
fn a_change_counts_at_once_at_every_node_and_one_that_was_away_catches_up() {
    let mut cluster = cluster();
    cluster.stop(4);
    let (root, user) = (cluster.of(0, "root"), cluster.of(3, "u"));
    let (permitted, role) = (Range::new(key("a")), name("r"));
    let read = user.range(permitted.clone(), false);
    assert!(cluster.wait(read).is_ok());
    cluster.step(&root, AuthStep::RevokeRole { user: name("u"), role }).unwrap();
    let read = user.range(permitted.clone(), false);
    assert_eq!(cluster.wait(read), Err(DENIED));
    // A write that was let in as users were is refused, and so is the one let in anew.
    let mut last = None;
    while matches!(last, None | Some(Error::Auth(Refusal::AuthRevision))) {
        let write = user.put(put("a", "1"));
        last = cluster.wait(write).err();
    }
    assert_eq!(last, Some(DENIED));
    let password = Password(name("other"));
    let change = AuthStep::ChangePassword { name: name("u"), password };
    cluster.step(&root, change).unwrap();
    let read = user.range(permitted, false);
    assert_eq!(cluster.wait(read), Err(Error::Auth(Refusal::AuthToken)));

    let told = cluster.handles[0].auth_view();
    let away = cluster.handles[4].clone();
    assert_ne!(away.auth_view(), told);
    cluster.start(4);
    let pending = away.catch_up();
    cluster.wait(pending).unwrap();
    assert_eq!(away.auth_view(), told);
    let root = cluster.of(4, "root");
    let state = root.auth(AuthAsk::State);
    assert_eq!(cluster.wait(state).unwrap().told, AuthTold::State(told));
}
