//! Watches and leases while nodes are killed, one after the other.

use crate::client::Client;
use crate::differential::block_on;
use crate::servers::Server;
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::watch_client::WatchClient;
use racos_etcd::pb::etcdserverpb::watch_request::RequestUnion;
use racos_etcd::pb::mvccpb::event::EventType;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::channel;
use tokio::task::{LocalSet, spawn_local};
use tokio_stream::wrappers::ReceiverStream;

/// Puts before a node is killed, and as many while it is gone.
const PUTS: usize = 100;
const LEASE: i64 = 77;
const TTL: Duration = Duration::from_secs(4);

/// What a watch was told of a key: revisions in order, and whether it is there.
type Told = Vec<(i64, Vec<u8>, bool)>;

#[test]
fn no_event_is_lost_and_no_lease_ends_early_while_nodes_are_killed_in_turn() {
    // The first is the one that the watch is on.
    let killed = match std::env::var_os("RACOS_TEST_SLOW") {
        None => &[0, 2][..],
        Some(_) => &[0, 1, 2, 3, 4],
    };
    let racos = Server::racos("crashes");
    block_on(async { LocalSet::new().run_until(exercise(racos, killed)).await });
}

async fn exercise(racos: Server, killed: &[usize]) {
    let client = Arc::new(Client::connect(&racos.endpoints).await);
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: TTL.as_secs() as i64 };
    client.lease(0).lease_grant(grant).await.unwrap();
    let leased = pb::PutRequest { key: "k/leased".into(), lease: LEASE, ..Default::default() };
    client.kv(0).put(leased).await.unwrap();
    let watching = spawn_local(watch(client.clone()));
    let over = Rc::new(Cell::new(false));
    let renewing = spawn_local(renew(client.clone(), over.clone()));

    let mut acknowledged = BTreeMap::new();
    for (round, &node) in killed.iter().enumerate() {
        let first = round * 2 * PUTS;
        put_some(&client, first..first + PUTS, &mut acknowledged).await;
        racos.kill(node).await;
        put_some(&client, first + PUTS..first + 2 * PUTS, &mut acknowledged).await;
        // It is started again after some seconds; only one may be gone at a time.
        racos.wait_for(node).await;
    }
    over.set(true);
    let last_renewed = renewing.await.unwrap();
    let (told, ended) = watching.await.unwrap();
    assert!(ended >= last_renewed + TTL, "the lease ended {:?} early", last_renewed + TTL - ended);
    assert!(told.windows(2).all(|two| two[0].0 < two[1].0), "each revision once, in order");
    for (revision, key) in &acknowledged {
        let found = told.iter().find(|event| event.0 == *revision);
        assert_eq!(found.map(|event| (&event.1, event.2)), Some((key, true)), "at {revision}");
    }
    let ends = told.iter().filter(|event| !event.2).map(|event| &event.1[..]).collect::<Vec<_>>();
    assert_eq!(ends, [b"k/leased"], "nothing else is deleted");
}

/// Puts keys of their own through all nodes in turn. A node that is gone answers nothing: another one is
/// asked, so that a put may happen twice.
async fn put_some(
    client: &Client,
    keys: std::ops::Range<usize>,
    acknowledged: &mut BTreeMap<i64, Vec<u8>>,
) {
    for at in keys {
        let key = format!("k/{at}");
        for attempt in 0.. {
            let put = pb::PutRequest { key: key.clone().into(), ..Default::default() };
            match client.kv(at + attempt).put(put).await {
                Ok(answer) => {
                    let revision = answer.into_inner().header.unwrap().revision;
                    acknowledged.insert(revision, key.into_bytes());
                    break;
                }
                Err(status) => assert!(attempt < 100, "{key}: {status}"),
            }
        }
    }
}

/// Everything under the prefix until the leased key goes, and when that was told. When the node of the
/// watch is gone, the next one goes on behind what was told.
async fn watch(client: Arc<Client>) -> (Told, Instant) {
    let mut told = Told::new();
    for member in 0.. {
        let (sender, receiver) = channel(1);
        let create = pb::WatchCreateRequest {
            key: "k/".into(),
            range_end: "k0".into(),
            start_revision: told.last().map_or(1, |event| event.0 + 1),
            ..Default::default()
        };
        let request_union = Some(RequestUnion::CreateRequest(create));
        sender.send(pb::WatchRequest { request_union }).await.unwrap();
        let mut watch = WatchClient::new(client.channel(member));
        let Ok(answers) = watch.watch(ReceiverStream::new(receiver)).await else { continue };
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            assert!(!answer.canceled, "{}", answer.cancel_reason);
            for event in answer.events {
                let is_put = event.r#type() == EventType::Put;
                let kv = event.kv.unwrap();
                told.push((kv.mod_revision, kv.key.to_vec(), is_put));
                if !is_put {
                    return (told, Instant::now());
                }
            }
        }
    }
    unreachable!("some node goes on")
}

/// Renews the lease through one node after the other until all crashes are over; when the last renewal
/// that was acknowledged began.
async fn renew(client: Arc<Client>, over: Rc<Cell<bool>>) -> Instant {
    let mut last = Instant::now();
    for member in 0.. {
        let begun = Instant::now();
        if over.get() {
            break;
        }
        let asked = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: LEASE }]);
        let answer = async {
            let mut answers = client.lease(member).lease_keep_alive(asked).await.ok()?.into_inner();
            answers.message().await.ok()?
        };
        if let Ok(Some(answer)) = tokio::time::timeout(TTL / 4, answer).await {
            assert!(answer.ttl > 0, "a lease that is renewed in time stays");
            last = begun;
        }
        tokio::time::sleep(TTL / 10).await;
    }
    last
}
