//! Programs about users, roles and permissions, asked of racos and of a real etcd.
//!
//! Left out is what the etcd that is compared with lets pass and newer ones, and racos, do not; the README
//! lists it.

use crate::cases::{
    compact, delete, delete_op, leased, op, put, put_op, range, range_op, txn, txn_op,
};
use crate::client::AuthStep::{self, *};
use crate::client::Step;
use crate::differential::block_on;
use crate::etcdctl::Etcdctl;
use crate::servers::{Server, fresh_dir};
use racos_etcd::pb::authpb::permission::Type::{self, Read, Readwrite, Write};
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use racos_etcd::pb::etcdserverpb::request_op::Request;
use std::process::{Command, Output};

fn steps(asked: impl IntoIterator<Item = AuthStep>) -> Vec<Step> {
    asked.into_iter().map(Step::Auth).collect()
}

fn by(user: &'static str, step: Step) -> Step {
    Step::As(user, Box::new(step))
}

fn plain(key: &str) -> Step {
    Step::Put(pb::PutRequest { prev_kv: false, ..put(key, b"plain") })
}

fn plain_delete(key: &str, range_end: &str) -> Step {
    Step::Delete(pb::DeleteRangeRequest { prev_kv: false, ..delete(key, range_end) })
}

fn get(key: &str, range_end: &str) -> Step {
    Step::Range(range(key, range_end))
}

fn local_get(key: &str) -> Step {
    Step::Range(pb::RangeRequest { serializable: true, ..range(key, "") })
}

fn watch(key: &str, range_end: &str) -> Step {
    let asked = range(key, range_end);
    let (key, range_end) = (asked.key, asked.range_end);
    Step::Watch(pb::WatchCreateRequest { key, range_end, ..Default::default() })
}

fn compared(key: &str, success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> Step {
    let compare = pb::Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Version as i32,
        key: key.to_string().into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Default::default()
    };
    Step::Txn(pb::TxnRequest { compare: vec![compare], success, failure })
}

fn plain_op(key: &str) -> pb::RequestOp {
    op(Request::RequestPut(pb::PutRequest { prev_kv: false, ..put(key, b"in a txn") }))
}

fn grant(id: i64) -> Step {
    Step::Grant(pb::LeaseGrantRequest { id, ttl: 100 })
}

fn ttl(id: i64, keys: bool) -> Step {
    Step::TimeToLive(pb::LeaseTimeToLiveRequest { id, keys })
}

fn revoke(id: i64) -> Step {
    Step::Revoke(pb::LeaseRevokeRequest { id })
}

/// Every call and its errors, before authentication is switched on.
pub fn off() -> Vec<Step> {
    let asked = [
        Users,
        Roles,
        Login("nobody", "pw"),
        Enable,
        Disable,
        User("nobody"),
        User(""),
        Role("no role"),
        Role(""),
        AddUser("", "pw"),
        AddRole(""),
        DeleteUser("nobody"),
        DeleteRole("no role"),
        Password("nobody", "pw"),
        Grant("nobody", "no role"),
        Revoke("nobody", "no role"),
        Permit("no role", Read, "", ""),
        Forbid("no role", "", ""),
        AddUser("u", "pw"),
        AddUser("u", "other"),
        AddUserWithoutPassword("v"),
        AddUser("empty", ""),
        AddRole("r"),
        AddRole("r"),
        AddRole("q"),
        Users,
        Roles,
        Grant("u", "no role"),
        Grant("u", "r"),
        Grant("u", "r"),
        Grant("u", "q"),
        // A role that needs not be there.
        Grant("v", "root"),
        User("u"),
        User("v"),
        Revoke("u", "root"),
        Revoke("u", "q"),
        Revoke("u", "q"),
        User("u"),
        Permit("r", Read, "c", "d"),
        Permit("r", Write, "a", "b"),
        Permit("r", Readwrite, "k", ""),
        Permit("r", Read, "x", "\0"),
        Role("r"),
        Permit("r", Readwrite, "a", "b"),
        Role("r"),
        Forbid("r", "a", "c"),
        Forbid("r", "a", "b"),
        Forbid("r", "a", "b"),
        Forbid("r", "x", "\0"),
        Role("r"),
        Password("u", "new"),
        Login("u", "new"),
        Enable,
        AddUser("root", "pw"),
        Enable,
        DeleteRole("r"),
        User("u"),
        DeleteUser("u"),
        User("u"),
        Users,
        Roles,
        AddRole("root"),
        Role("root"),
        Disable,
    ];
    let mut steps = steps(asked);
    steps.push(plain("a"));
    steps
}

/// root, and users with a role each: to read [a, c), to write [a, c), to do both, one key, a prefix, and
/// everything.
fn people() -> Vec<Step> {
    const PERMISSIONS: [(&str, &str, Type, &str, &str); 6] = [
        ("reader", "may read", Read, "a", "c"),
        ("writer", "may write", Write, "a", "c"),
        ("both", "may do both", Readwrite, "a", "c"),
        ("one", "one key", Readwrite, "b", ""),
        ("prefix", "a prefix", Readwrite, "dir/", "dir0"),
        ("all", "everything", Readwrite, "\0", "\0"),
    ];
    let mut asked = vec![AddUser("root", "pw"), Grant("root", "root"), AddUser("none", "pw")];
    for (user, role, kind, key, end) in PERMISSIONS {
        asked.extend([AddUser(user, "pw"), AddRole(role), Permit(role, kind, key, end)]);
        asked.push(Grant(user, role));
    }
    let mut steps: Vec<Step> = ["a", "b", "c", "dir/x"].map(plain).into();
    steps.extend([grant(7), grant(8), Step::Put(leased("b", 7)), Step::Put(leased("c", 8))]);
    steps.extend(self::steps(asked));
    steps.push(Step::Auth(Enable));
    for user in ["root", "none"].into_iter().chain(PERMISSIONS.map(|(user, ..)| user)) {
        steps.push(Step::Auth(Login(user, "pw")));
    }
    steps
}

/// What is asked by everybody.
fn asked_by_all() -> Vec<Step> {
    let mut all = vec![
        plain("a"),
        plain("c"),
        plain("dir/x"),
        Step::Put(put("b", b"and tell what was there")),
        get("a", ""),
        get("b", ""),
        get("c", ""),
        get("a", "b"),
        get("a", "c"),
        get("a", "d"),
        get("a", "\0"),
        get("\0", "\0"),
        get("b", "a"),
        get("c", "a"),
        get("dir/", "dir0"),
        local_get("a"),
        local_get("c"),
        plain_delete("a", ""),
        plain_delete("c", ""),
        plain_delete("a", "c"),
        plain_delete("a", "d"),
        Step::Delete(delete("a", "b")),
        Step::Txn(txn(vec![plain_op("a"), plain_op("b")])),
        Step::Txn(txn(vec![plain_op("a"), plain_op("c")])),
        Step::Txn(txn(vec![range_op(range("a", "c"))])),
        Step::Txn(txn(vec![range_op(range("c", ""))])),
        Step::Txn(txn(vec![delete_op("a", "c")])),
        compared("a", vec![range_op(range("b", ""))], vec![]),
        compared("c", vec![], vec![range_op(range("b", ""))]),
        // The branch that is not taken counts.
        compared("b", vec![plain_op("b")], vec![plain_op("c")]),
        compared("b", vec![], vec![plain_op("dir/y")]),
        watch("a", ""),
        watch("a", "c"),
        watch("c", ""),
        watch("dir/", "dir0"),
        watch("", "\0"),
        Step::Put(pb::PutRequest { prev_kv: false, ..leased("b", 7) }),
        Step::Put(pb::PutRequest { prev_kv: false, ..leased("b", 8) }),
        revoke(8),
    ];
    all.extend(steps([
        Users,
        Roles,
        User("reader"),
        Role("may read"),
        Role("root"),
        AddUser("x", "pw"),
        DeleteUser("x"),
        Password("reader", "pw"),
        AddRole("x"),
        DeleteRole("x"),
        Grant("none", "x"),
        Revoke("none", "x"),
        Permit("x", Read, "a", ""),
        Forbid("x", "a", ""),
        Disable,
    ]));
    all
}

/// Who has no token, one that is none, and everybody else, asks for everything.
pub fn on() -> Vec<Step> {
    let mut all = people();
    all.extend(asked_by_all());
    for user in ["no token of anybody", "none", "reader", "writer", "both", "one", "prefix", "all"]
    {
        all.extend(asked_by_all().into_iter().map(|step| by(user, step)));
        all.extend([by(user, grant(100)), by(user, revoke(100))]);
        // Leases come and go; all find them as they were.
        all.push(by("root", Step::Put(pb::PutRequest { lease: 7, ..put("b", b"again") })));
    }
    all.extend([by("none", ttl(9, false)), by("all", ttl(7, true))]);
    all.extend([by("all", Step::Leases), by("root", Step::Leases)]);
    all.push(by("root", compact(5)));
    let root = [
        Users,
        Roles,
        Role("root"),
        Enable,
        DeleteUser("root"),
        Revoke("root", "root"),
        DeleteRole("root"),
        AddRole("root"),
        Role("root"),
        DeleteRole("root"),
        Login("none", "wrong"),
        Login("nobody", "pw"),
        AddUserWithoutPassword("mute"),
        Login("mute", "pw"),
    ];
    all.extend(steps(root).into_iter().map(|step| by("root", step)));
    all
}

/// Roles granted and revoked, passwords changed, users deleted, and authentication switched off and on,
/// while tokens are in use.
pub fn changes() -> Vec<Step> {
    let mut all = people();
    let root = |asked| by("root", Step::Auth(asked));
    let probe = |user| [by(user, get("a", "")), by(user, plain("a")), by(user, watch("a", ""))];
    all.extend(probe("none"));
    for asked in [
        Grant("none", "may read"),
        Permit("may read", Write, "a", "b"),
        Permit("may read", Readwrite, "a", "c"),
        Forbid("may read", "a", "c"),
        Grant("none", "may do both"),
        Revoke("none", "may do both"),
        DeleteRole("may read"),
        Grant("none", "root"),
        Revoke("none", "root"),
        Grant("none", "everything"),
        Password("none", "other"),
    ] {
        all.push(root(asked));
        all.extend(probe("none"));
        all.extend(probe("reader"));
    }
    all.extend([Step::Auth(Login("none", "pw")), Step::Auth(Login("none", "other"))]);
    all.extend(probe("none"));
    all.push(root(DeleteUser("none")));
    all.extend(probe("none"));
    all.extend([root(AddUser("none", "other")), root(Grant("none", "everything"))]);
    all.extend(probe("none"));
    all.push(Step::Auth(Login("none", "other")));
    all.extend(probe("none"));
    all.push(root(Disable));
    // Through other members, which may not know yet.
    all.extend([plain("a"), get("a", ""), plain("b"), Step::Auth(AddRole("more"))]);
    all.push(Step::Auth(Login("none", "other")));
    all.push(Step::Auth(Enable));
    all.push(get("a", ""));
    all.extend(probe("none"));
    all.push(Step::Auth(Login("none", "other")));
    all.extend(probe("none"));
    // Deep inside of a transaction, what is permitted.
    all.push(by("none", Step::Txn(txn(vec![txn_op(txn(vec![put_op("a")]))]))));
    all
}

const NO_USER: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";

/// The same commands with a user.
struct Asker<'a>(&'a Etcdctl, &'static str);

impl Asker<'_> {
    fn good(&self, args: &[&str]) -> String {
        self.0.good(&[&["--user", self.1], args].concat())
    }

    fn bad(&self, args: &[&str]) -> String {
        self.0.bad(&[&["--user", self.1], args].concat())
    }
}

fn racos_command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_racos")).args(args).output().unwrap()
}

/// What the README shows; then a node is killed, one joins late, and a backup is restored.
#[test]
fn users_are_obeyed_across_kills_joins_and_backups() {
    let mut racos = Server::racos("users");
    let Some(ctl) = Etcdctl::of(&racos) else { return };
    for args in [
        "user add root:secret",
        "user grant-role root root",
        "role add app",
        "role grant-permission app readwrite --prefix=true app/",
        "user add alice:pw",
        "user grant-role alice app",
    ] {
        ctl.good(&args.split(' ').collect::<Vec<_>>());
    }
    ctl.good(&["put", "other/x", "1"]);
    ctl.good(&["put", "app/x", "1"]);
    let native = racos.dir.join("data").to_str().unwrap().to_string();
    let get = ["get", "other/x", "--dir", &native];
    assert!(racos_command(&get).status.success(), "a native client reads while it is off");
    ctl.good(&["auth", "enable"]);
    obeyed(&ctl);
    crate::http::takes_tokens(&racos.endpoints[2], "alice", "pw", "YXBwL3g=");
    let refused = racos_command(&get);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("use etcd's API"), "{text}");
    assert!(racos_command(&["status", "--dir", &native]).status.success());

    // A node that is killed knows them again; so does one that was never there.
    block_on(async {
        racos.kill(1).await;
        racos.wait_for(1).await;
    });
    obeyed(&Etcdctl::at(&racos.endpoints[1]));
    let root = Asker(&ctl, "root:secret");
    let (peer, face) = racos.join(5);
    let urls = format!("--peer-urls=http://{peer}");
    assert!(ctl.bad(&["member", "add", "node5", &urls]).contains(NO_USER));
    assert!(Asker(&ctl, "alice:pw").bad(&["member", "add", "node5", &urls]).contains(DENIED));
    root.good(&["member", "add", "node5", &urls]);
    obeyed(&Etcdctl::at(&face));

    let dir = fresh_dir("users-backup");
    let (file, endpoint) = (dir.join("saved"), racos.endpoints[2].replace("http://", ""));
    let file = file.to_str().unwrap();
    let save = ["snapshot", "save", file, "--endpoint", &endpoint];
    let refused = String::from_utf8_lossy(&racos_command(&save).stderr).into_owned();
    assert!(refused.contains("give --user NAME:PASSWORD"), "{refused}");
    let refused = racos_command(&[&save[..], &["--user", "alice:pw"]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains(DENIED));
    let saved = racos_command(&[&save[..], &["--user", "root:secret"]].concat());
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    drop(racos);
    let restored = Server::racos("users-restored");
    let endpoint = restored.endpoints[0].replace("http://", "");
    let done = racos_command(&["snapshot", "restore", file, "--endpoint", &endpoint]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let ctl = Etcdctl::at(&restored.endpoints[3]);
    obeyed(&ctl);
    let root = Asker(&ctl, "root:secret");
    assert_eq!(root.good(&["user", "list"]), "alice\nroot\n");
    assert!(ctl.bad(&["auth", "disable"]).contains(NO_USER));
    root.good(&["auth", "disable"]);
    assert_eq!(ctl.good(&["get", "other/x"]), "other/x\n1\n");
    std::fs::remove_dir_all(dir).unwrap();
}

/// Whoever asks, by name or not, may do what the script above has permitted.
fn obeyed(ctl: &Etcdctl) {
    let (alice, root) = (Asker(ctl, "alice:pw"), Asker(ctl, "root:secret"));
    assert!(ctl.bad(&["put", "app/x", "1"]).contains(NO_USER));
    assert!(ctl.bad(&["get", "app/x"]).contains(NO_USER));
    assert_eq!(alice.good(&["put", "app/x", "1"]), "OK\n");
    assert_eq!(alice.good(&["get", "--prefix", "app/"]), "app/x\n1\n");
    assert!(alice.bad(&["get", "other/x"]).contains(DENIED));
    assert!(alice.bad(&["put", "other/x", "1"]).contains(DENIED));
    assert!(alice.bad(&["user", "list"]).contains(DENIED));
    assert_eq!(root.good(&["get", "other/x"]), "other/x\n1\n");
    assert!(alice.good(&["role", "get", "app"]).contains("[app/, app0) (prefix app/)"));
    let wrong = Asker(ctl, "alice:wrong").bad(&["get", "app/x"]);
    assert!(wrong.contains("authentication failed, invalid user ID or password"), "{wrong}");
}
