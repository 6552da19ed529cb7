//! Watches and leases while nodes are killed, one after the other.

use crate::client::Client;
use crate::differential::block_on;
use crate::servers::Server;
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::watch_client::WatchClient;
use racos_etcd::pb::etcdserverpb::watch_request::RequestUnion;
use racos_etcd::pb::mvccpb::event::EventType;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::channel;
use tokio::task::{LocalSet, spawn_local};
use tokio_stream::wrappers::ReceiverStream;

const PUTS: u64 = 400;
const LEASE: i64 = 77;
const TTL: Duration = Duration::from_secs(4);

/// What a watch on the first node was told of a key: revisions in order, and whether it is there.
type Told = Vec<(i64, Vec<u8>, bool)>;

#[test]
fn no_event_is_lost_and_no_lease_ends_early_while_nodes_are_killed_in_turn() {
    let racos = Server::racos("crashes");
    block_on(async { LocalSet::new().run_until(exercise(racos)).await });
}

async fn exercise(racos: Server) {
    let client = Arc::new(Client::connect(&racos.endpoints).await);
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: TTL.as_secs() as i64 };
    client.lease(0).lease_grant(grant).await.unwrap();
    let leased = pb::PutRequest { key: "k/leased".into(), lease: LEASE, ..Default::default() };
    client.kv(0).put(leased).await.unwrap();
    let watching = spawn_local(watch(client.clone()));
    let renewing = spawn_local(renew(client.clone()));

    let mut acknowledged = BTreeMap::new();
    for at in 0..PUTS {
        match at {
            100 => racos.kill(1).await,
            300 => racos.kill(2).await,
            // The node is started again after some seconds; only one may be gone at a time.
            299 => racos.wait_for(1).await,
            _ => {}
        }
        // A node that is gone answers nothing: another one is asked. Such a put may happen twice.
        let key = format!("k/{at}");
        for attempt in 0.. {
            let put = pb::PutRequest { key: key.clone().into(), ..Default::default() };
            let member = 1 + (at as usize + attempt) % 4;
            match client.kv(member).put(put).await {
                Ok(answer) => {
                    let revision = answer.into_inner().header.unwrap().revision;
                    acknowledged.insert(revision, key.into_bytes());
                    break;
                }
                Err(status) => assert!(attempt < 100, "{key}: {status}"),
            }
        }
    }
    racos.wait_for(2).await;
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

/// Everything under the prefix until the leased key goes, and when that was told.
async fn watch(client: Arc<Client>) -> (Told, Instant) {
    let (sender, receiver) = channel(1);
    let create = pb::WatchCreateRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        start_revision: 1,
        ..Default::default()
    };
    let request_union = Some(RequestUnion::CreateRequest(create));
    sender.send(pb::WatchRequest { request_union }).await.unwrap();
    let mut watch = WatchClient::new(client.channel(0));
    let mut answers = watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut told = Vec::new();
    loop {
        let answer = answers.message().await.unwrap().expect("its node is not killed");
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

/// Renews the lease through one node after the other, long enough to outlive the crashes; when the
/// last renewal that was acknowledged began.
async fn renew(client: Arc<Client>) -> Instant {
    let until = Instant::now() + 3 * TTL;
    let mut last = Instant::now();
    for member in 0.. {
        let begun = Instant::now();
        if begun > until {
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
