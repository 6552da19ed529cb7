//! More nodes lost than the cluster was made for: what is left becomes a new one (PROTOCOL 10-af).

use crate::client::Client;
use crate::differential::block_on;
use crate::program::Draw;
use crate::servers::{Server, fresh_dir};
use crate::snapshot::{LEASE, all_at, at, change, good, hash_at};
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::auth_client::AuthClient;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit status, standard output and standard error.
fn salvage(dirs: &[PathBuf], args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_racos"));
    let founded = ["--nodes", "5", "--f", "1", "--k", "3"];
    let output = command.arg("salvage").args(dirs).args(founded).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn dirs(server: &Server, nodes: &[usize]) -> Vec<PathBuf> {
    nodes.iter().map(|node| server.dir.join(format!("data/node{node}"))).collect()
}

/// Values of all sizes, with history, deletions, a lease, a compaction and users.
async fn fill(client: &Client) {
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: 3600 };
    client.lease(0).lease_grant(grant).await.unwrap();
    let mut draw = Draw::new(1);
    for round in 0..300 {
        change(client, round, &mut draw).await;
    }
    for (key, len) in [("large", 5_000_000), ("striped", 1_300_000)] {
        let value: Vec<u8> = (0..len).map(|at: u32| (at / 9 * 7) as u8).collect();
        let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        client.kv(1).put(put).await.unwrap();
    }
    let compact = pb::CompactionRequest { revision: 100, physical: true };
    client.kv(1).compact(compact).await.unwrap();
    let mut auth = AuthClient::new(client.channel(2));
    let name = |name: &str| name.to_string();
    auth.role_add(pb::AuthRoleAddRequest { name: name("app") }).await.unwrap();
    let user =
        pb::AuthUserAddRequest { name: name("alice"), password: name("pw"), ..Default::default() };
    auth.user_add(user).await.unwrap();
    let granted = pb::AuthUserGrantRoleRequest { user: name("alice"), role: name("app") };
    auth.user_grant_role(granted).await.unwrap();
}

async fn put_end(client: &Client) {
    for member in 0..2 {
        let put = pb::PutRequest { key: "the end".into(), ..Default::default() };
        client.kv(member).put(put).await.unwrap();
    }
}

async fn users(client: &Client) -> Vec<(String, Vec<String>)> {
    let mut auth = AuthClient::new(client.channel(0));
    let mut all = Vec::new();
    for name in auth.user_list(pb::AuthUserListRequest {}).await.unwrap().into_inner().users {
        let asked = pb::AuthUserGetRequest { name: name.clone() };
        all.push((name, auth.user_get(asked).await.unwrap().into_inner().roles));
    }
    all
}

/// All that the cluster shows: at some revisions, its hash, and users.
type Picture = (Vec<Vec<racos_etcd::pb::mvccpb::KeyValue>>, (u32, i64), Vec<(String, Vec<String>)>);

async fn picture(client: &Client, revision: i64) -> Picture {
    let mut states = Vec::new();
    for revision in [101, 150, (101 + revision) / 2, revision] {
        states.push(all_at(client, 3, revision).await);
    }
    (states, hash_at(client, 3, revision).await, users(client).await)
}

/// tests PROTOCOL 10-af
#[test]
fn what_three_of_five_processes_left_becomes_a_cluster_that_shows_the_same() {
    let mut server = Server::racos("salvage");
    let out = fresh_dir("salvage-files");
    let file = out.join("saved");
    let name = file.to_str().unwrap();
    let (revision, expected) = block_on(async {
        let client = Client::connect(&server.endpoints).await;
        fill(&client).await;
        let asked = pb::RangeRequest { key: "a".into(), ..Default::default() };
        let revision =
            client.kv(0).range(asked).await.unwrap().into_inner().header.unwrap().revision;
        let expected = picture(&client, revision).await;
        put_end(&client).await;
        (revision, expected)
    });
    let (code, _, error) = salvage(&dirs(&server, &[0]), &["--out", name]);
    assert!(code == 1 && error.contains("a node runs on"), "{error}");
    server.halt();

    let (code, told, error) =
        salvage(&dirs(&server, &[4, 0, 2]), &["--out", name, "--with-undecided"]);
    assert_eq!((code, error.as_str()), (0, ""), "{told}");
    assert!(
        told.contains("3 of 5 members are here") && told.ends_with("nothing is left out\n"),
        "{told}"
    );
    for line in told.lines().filter(|line| line.contains("UNDECIDED")) {
        assert!(line.contains("the end"), "all but the last writes are proven: {line}");
    }
    let (code, _, error) = salvage(&dirs(&server, &[4, 0, 2]), &["--out", name]);
    assert!(code == 2 && error.contains("--force"), "{error}");
    too_few(&server, &out);

    let restored = Server::racos("salvaged");
    good(&["restore", name, "--endpoint", at(&restored.endpoints[1])]);
    block_on(async {
        let client = Client::connect(&restored.endpoints).await;
        let shown = picture(&client, revision).await;
        assert!(
            shown == expected,
            "users {:?} and {:?}, hashes {:?} and {:?}",
            shown.2,
            expected.2,
            shown.1,
            expected.1
        );
        let asked = pb::LeaseTimeToLiveRequest { id: LEASE, keys: true };
        let lease = client.lease(1).lease_time_to_live(asked).await.unwrap().into_inner();
        let held = all_at(&client, 0, 0).await.into_iter().filter(|kv| kv.lease == LEASE);
        assert_eq!(lease.keys, held.map(|kv| kv.key).collect::<Vec<_>>());
        put_end(&client).await;
    });
    let _ = std::fs::remove_dir_all(&out);
}

/// Two of five: what is coded is lost, and said to be; the rest is a backup only where that was asked for.
fn too_few(server: &Server, out: &Path) {
    let file = out.join("rest");
    let name = file.to_str().unwrap();
    let two = dirs(server, &[1, 3]);
    let (code, told, error) = salvage(&two, &["--out", name]);
    assert!(code == 1 && error.contains("--leave-out"), "{told}{error}");
    let lost = "LOST: large at revision";
    assert!(
        told.contains(lost) && told.contains("2 good fragments are left, 3 are needed"),
        "{told}"
    );
    assert!(
        !file.exists() && std::fs::read_dir(out).unwrap().count() == 1,
        "nothing is left behind"
    );
    let (code, told, error) = salvage(&two, &["--out", name, "--leave-out", "--with-undecided"]);
    assert!(code == 5 && error.is_empty(), "{told}{error}");
    assert!(told.lines().last().unwrap().contains("left out, as listed: "), "{told}");
    assert!(good(&["status", name]).starts_with("revision "));
    let (code, told, _) = salvage(&two, &[]);
    assert!(code == 5 && told.contains("nothing was written"), "{told}");
}
