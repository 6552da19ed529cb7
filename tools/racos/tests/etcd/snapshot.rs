//! Backups: saved under load, restored into a new cluster, compared.

use crate::client::Client;
use crate::differential::block_on;
use crate::program::Draw;
use crate::servers::{Server, fresh_dir};
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use racos_etcd::pb::mvccpb::KeyValue;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const KEYS: u64 = 60;
const WRITERS: u64 = 8;
pub const LEASE: i64 = 4711;

fn racos(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_racos")).arg("snapshot").args(args).output().unwrap()
}

/// Standard output of a command that must succeed.
pub fn good(args: &[&str]) -> String {
    let output = racos(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that must fail says.
fn bad(args: &[&str]) -> String {
    let output = racos(args);
    assert!(!output.status.success(), "{args:?} must fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn at(endpoint: &str) -> &str {
    endpoint.trim_start_matches("http://")
}

fn value_of(draw: &mut Draw) -> Vec<u8> {
    let len = match draw.below(40) {
        0 => 200_000,
        1..=9 => 0,
        10..=19 => 5000,
        _ => 10 + draw.below(200),
    };
    vec![draw.below(256) as u8; len as usize]
}

/// One change: mostly puts, some deletes, some with a lease.
pub async fn change(client: &Client, member: usize, draw: &mut Draw) {
    let mut kv = client.kv(member);
    let key = format!("key-{:02}", draw.below(KEYS));
    if draw.below(10) == 0 {
        let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
        kv.delete_range(delete).await.unwrap();
    } else {
        let lease = if draw.below(8) == 0 { LEASE } else { 0 };
        let value = value_of(draw).into();
        let put = pb::PutRequest { key: key.into(), value, lease, ..Default::default() };
        kv.put(put).await.unwrap();
    }
}

pub async fn all_at(client: &Client, member: usize, revision: i64) -> Vec<KeyValue> {
    let asked = pb::RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        revision,
        ..Default::default()
    };
    client.kv(member).range(asked).await.unwrap().into_inner().kvs
}

pub async fn hash_at(client: &Client, member: usize, revision: i64) -> (u32, i64) {
    // A hash is that of one member alone: it shall have executed what was done before.
    all_at(client, member, 0).await;
    let mut maintenance = MaintenanceClient::new(client.channel(member));
    let hash = maintenance.hash_kv(pb::HashKvRequest { revision }).await.unwrap().into_inner();
    (hash.hash, hash.compact_revision)
}

/// Writes before, during and after the backup, which is made twice: by `racos` and by `etcdctl`.
async fn save_under_load(server: &Server, file: &Path) {
    let client = Arc::new(Client::connect(&server.endpoints).await);
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: 3600 };
    client.lease(0).lease_grant(grant).await.unwrap();
    let mut draw = Draw::new(1);
    for round in 0..400 {
        change(&client, round, &mut draw).await;
    }
    let large = pb::PutRequest {
        key: "large".into(),
        value: vec![9; 5_000_000].into(),
        ..Default::default()
    };
    client.kv(1).put(large).await.unwrap();
    let compact = pb::CompactionRequest { revision: 100, physical: true };
    client.kv(1).compact(compact).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|at| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::task::spawn_local(async move {
                let mut draw = Draw::new(at + 2);
                while !stop.load(Ordering::Relaxed) {
                    change(&client, at as usize, &mut draw).await;
                }
            })
        })
        .collect();
    let (endpoint, file) = (at(&server.endpoints[2]).to_string(), file.to_path_buf());
    let saving = tokio::task::spawn_blocking(move || {
        good(&["save", file.to_str().unwrap(), "--endpoint", &endpoint])
    });
    // A compaction comes in between, or before, or after: it must not matter.
    let compact = pb::CompactionRequest { revision: 150, physical: true };
    client.kv(4).compact(compact).await.unwrap();
    saving.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Nodes that are down, hang up or refuse are passed over; where none answers, each is named.
fn from_the_node_that_answers(cluster: &Server, dir: &Path) {
    let file = dir.join("from-any");
    let file = file.to_str().unwrap();
    let hangs_up = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let rude = hangs_up.local_addr().unwrap().to_string();
    std::thread::spawn(move || hangs_up.incoming().for_each(drop));
    let (dead, good_one) = ("127.0.0.1:1", at(&cluster.endpoints[2]));
    let none = ["save", file, "--endpoint", dead, "--endpoint", dead];
    let output = racos(&none);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert_eq!(told.matches(dead).count(), 2, "{told}");
    assert_eq!(racos(&["save", file, "--endpoint", &rude]).status.code(), Some(4));
    assert!(!Path::new(file).exists());
    good(&["save", file, "--endpoint", &format!("{dead},{rude},{good_one}")]);
    assert!(good(&["status", file]).starts_with("revision "));
}

#[test]
fn a_backup_made_under_load_becomes_a_cluster_that_shows_the_same_at_every_revision() {
    let original = Server::racos("snapshot");
    let dir = fresh_dir("snapshot-files");
    let file = dir.join("backup");
    block_on(async {
        tokio::task::LocalSet::new().run_until(save_under_load(&original, &file)).await;
    });
    let name = file.to_str().unwrap();
    assert!(bad(&["save", name, "--endpoint", at(&original.endpoints[0])]).contains("--force"));
    from_the_node_that_answers(&original, &dir);
    // A cluster that holds something is left alone.
    let refused = bad(&["restore", name, "--endpoint", at(&original.endpoints[0])]);
    assert!(refused.contains("not a new one"), "{refused}");

    let told = good(&["status", name]);
    let revision: i64 =
        told.trim_start_matches("revision ").split(' ').next().unwrap().parse().unwrap();
    let restored = Server::racos("restored");
    // A damaged file is not even begun with.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = dir.join("damaged");
    std::fs::write(&damaged, &bytes).unwrap();
    let refused =
        bad(&["restore", damaged.to_str().unwrap(), "--endpoint", at(&restored.endpoints[0])]);
    assert!(refused.contains("checksum differs"), "{refused}");

    good(&["restore", name, "--endpoint", at(&restored.endpoints[3])]);
    block_on(async {
        let (one, other) = (
            Client::connect(&original.endpoints).await,
            Client::connect(&restored.endpoints).await,
        );
        let compacted = hash_at(&other, 0, revision).await.1;
        assert!(compacted == 100 || compacted == 150, "{compacted}");
        let from = compacted.max(150);
        for (at, revision) in
            [from, from + 1, (from + revision) / 2, revision - 1, revision].into_iter().enumerate()
        {
            let expected = all_at(&one, at, revision).await;
            for member in 0..5 {
                assert_eq!(all_at(&other, member, revision).await, expected, "at {revision}");
            }
        }
        assert_eq!(all_at(&other, 0, 0).await, all_at(&one, 0, revision).await);
        for member in 0..5 {
            // Compacted equally far, the histories hash equally.
            if member == 0 && compacted < 150 {
                let compact = pb::CompactionRequest { revision: 150, physical: true };
                other.kv(0).compact(compact).await.unwrap();
            }
            assert_eq!(hash_at(&other, member, revision).await, hash_at(&one, 0, revision).await);
        }
        // It is a cluster like any other: leases hold their keys, revisions go on.
        let asked = pb::LeaseTimeToLiveRequest { id: LEASE, keys: true };
        let lease = other.lease(1).lease_time_to_live(asked).await.unwrap().into_inner();
        let expected = all_at(&other, 0, 0).await.into_iter().filter(|kv| kv.lease == LEASE);
        assert_eq!(lease.keys, expected.map(|kv| kv.key).collect::<Vec<_>>());
        assert!(lease.ttl > 3000, "{}", lease.ttl);
        let put = pb::PutRequest { key: "next".into(), ..Default::default() };
        let next = other.kv(2).put(put).await.unwrap().into_inner();
        assert_eq!(next.header.unwrap().revision, revision + 1);
    });
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn a_restore_that_breaks_off_shows_nothing() {
    let original = Server::racos("broken-from");
    let restored = Server::racos("broken-to");
    let dir = fresh_dir("broken-files");
    let file = dir.join("backup");
    block_on(async {
        let client = Client::connect(&original.endpoints).await;
        let mut draw = Draw::new(1);
        for round in 0..50 {
            change_without_lease(&client, round, &mut draw).await;
        }
    });
    good(&["save", file.to_str().unwrap(), "--endpoint", at(&original.endpoints[0])]);
    let bytes = std::fs::read(&file).unwrap();
    block_on(async {
        use racos_etcd::pb::racospb::{RestoreRequest, backup_client::BackupClient};
        let client = Client::connect(&restored.endpoints).await;
        // All but the last byte.
        let blob = bytes[..bytes.len() - 1].to_vec().into();
        let blobs = tokio_stream::iter([RestoreRequest { blob }]);
        let mut backup = BackupClient::new(client.channel(0));
        let refused = backup.restore(blobs).await.unwrap_err();
        assert!(refused.message().contains("not a good backup"), "{refused}");
        for member in 0..5 {
            let asked = pb::RangeRequest { key: "key-01".into(), ..Default::default() };
            let refused = client.kv(member).range(asked).await.unwrap_err();
            let detail = refused.metadata().get("racos-detail").unwrap().to_str().unwrap();
            assert!(detail.contains("being restored"), "{detail}");
            let put = pb::PutRequest { key: "a".into(), ..Default::default() };
            assert!(client.kv(member).put(put).await.is_err());
        }
    });
    let _ = std::fs::remove_dir_all(&dir);
}

async fn change_without_lease(client: &Client, member: usize, draw: &mut Draw) {
    let key = format!("key-{:02}", draw.below(KEYS));
    let value = value_of(draw).into();
    let put = pb::PutRequest { key: key.into(), value, ..Default::default() };
    client.kv(member).put(put).await.unwrap();
}
