//! What programs written in Rust do through the crate etcd-client, against the endpoints given.
//!
//! Ends with status 0 if every answer was the one expected. Any server that speaks etcd's API will do.

use etcd_client::*;
use std::time::Duration;

type Done = Result<(), Error>;

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, text: &str) {
    match result {
        Err(Error::GRpcStatus(status)) => assert!(status.message().contains(text), "{status}"),
        other => panic!("wanted \"{text}\", got {other:?}"),
    }
}

async fn keys(client: &mut Client) -> Done {
    let first = client.put("rs/a", "1", None).await?.header().unwrap().revision();
    let again = client.put("rs/a", "2", Some(PutOptions::new().with_prev_key())).await?;
    assert_eq!(again.header().unwrap().revision(), first + 1);
    assert_eq!(again.prev_key().unwrap().value(), b"1");
    let kv = client.get("rs/a", None).await?.kvs()[0].clone();
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version()), (first, first + 1, 2));
    let old = client.get("rs/a", Some(GetOptions::new().with_revision(first))).await?;
    assert_eq!(old.kvs()[0].value(), b"1");
    for size in [0, 100, 1300, 133_000, 1_300_000] {
        let value = vec![7; size];
        client.put("rs/sized", value.clone(), None).await?;
        assert_eq!(client.get("rs/sized", None).await?.kvs()[0].value(), value);
    }
    for at in 0..9 {
        client.put(format!("rs/many/{at}"), format!("{}", 8 - at), None).await?;
    }
    let prefix = || GetOptions::new().with_prefix();
    let page = client.get("rs/many/", Some(prefix().with_limit(4))).await?;
    assert_eq!((page.more(), page.count(), page.kvs().len()), (true, 9, 4));
    let by_value = prefix().with_sort(SortTarget::Value, SortOrder::Ascend);
    let sorted = client.get("rs/many/", Some(by_value)).await?;
    assert_eq!(sorted.kvs()[0].key(), b"rs/many/8");
    assert!(client.get("rs/many/", Some(prefix().with_count_only())).await?.kvs().is_empty());
    let all = DeleteOptions::new().with_prefix().with_prev_key();
    let deleted = client.delete("rs/many/", Some(all)).await?;
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (9, 9));
    let future = GetOptions::new().with_revision(1 << 40);
    refused(client.get("rs/a", Some(future)).await, "required revision is a future revision");
    refused(client.put("", "", None).await, "key is not provided");
    Ok(())
}

async fn transactions(client: &mut Client) -> Done {
    client.put("rs/t", "old", None).await?;
    let is = |value: &str| vec![Compare::value("rs/t", CompareOp::Equal, value)];
    let inner = Txn::new().when(is("old")).and_then([TxnOp::get("rs/t", None)]);
    let done = client
        .txn(
            Txn::new()
                .when(is("old"))
                .and_then([TxnOp::put("rs/t", "new", None), TxnOp::txn(inner)])
                .or_else([TxnOp::delete("rs/t", None)]),
        )
        .await?;
    assert!(done.succeeded());
    let TxnOpResponse::Txn(inner) = &done.op_responses()[1] else { panic!("{done:?}") };
    let TxnOpResponse::Get(got) = &inner.op_responses()[0] else { panic!("{inner:?}") };
    assert_eq!((inner.succeeded(), got.kvs()[0].value()), (true, &b"new"[..]));
    let twice = vec![TxnOp::put("rs/t", "", None); 2];
    refused(client.txn(Txn::new().and_then(twice)).await, "duplicate key given in txn request");
    Ok(())
}

async fn watches(client: &mut Client) -> Done {
    let first = client.put("rs/w/1", "a", None).await?.header().unwrap().revision();
    let from = || WatchOptions::new().with_start_revision(first).with_prefix();
    let mut stream = client.watch("rs/w/", Some(from().with_prev_key())).await?;
    client.put("rs/w/2", "b", None).await?;
    client.delete("rs/w/1", None).await?;
    let mut told = Vec::new();
    while told.len() < 3 {
        let answer = stream.message().await?.expect("the watch goes on");
        assert!(!answer.canceled());
        for event in answer.events() {
            let before = event.prev_kv().map_or(Vec::new(), |kv| kv.value().to_vec());
            let kv = event.kv().unwrap();
            let is_put = event.event_type() == EventType::Put;
            told.push((is_put, kv.key().to_vec(), kv.value().to_vec(), before));
        }
    }
    let event = |is_put, key: &str, value: &str, before: &str| {
        (is_put, key.into(), value.into(), before.into())
    };
    let deleted = event(false, "rs/w/1", "", "a");
    assert_eq!(told, [event(true, "rs/w/1", "a", ""), event(true, "rs/w/2", "b", ""), deleted]);
    let last = client.put("rs/w/3", "d", None).await?.header().unwrap().revision();
    client.compact(last, Some(CompactionOptions::new().with_physical())).await?;
    refused(client.compact(last, None).await, "required revision has been compacted");
    let mut stream = client.watch("rs/w/", Some(from())).await?;
    let answer = loop {
        let answer = stream.message().await?.expect("the refusal is told");
        if answer.canceled() {
            break answer;
        }
    };
    assert_eq!(answer.compact_revision(), last);
    Ok(())
}

async fn leases(client: &mut Client) -> Done {
    let lease = client.lease_grant(300, None).await?.id();
    client.put("rs/leased", "x", Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    assert_eq!(kept.message().await?.expect("it is renewed").ttl(), 300);
    let asked = LeaseTimeToLiveOptions::new().with_keys();
    let left = client.lease_time_to_live(lease, Some(asked)).await?;
    assert_eq!((left.granted_ttl(), left.keys()), (300, &[b"rs/leased".to_vec()][..]));
    assert!(client.leases().await?.leases().iter().any(|held| held.id() == lease));
    client.lease_revoke(lease).await?;
    assert!(client.get("rs/leased", None).await?.kvs().is_empty());
    refused(client.lease_revoke(lease).await, "requested lease not found");
    Ok(())
}

/// The services that do what the recipes of the Go library do.
async fn locks_and_elections(client: &mut Client) -> Done {
    let held = client.lock("rs-door", None).await?.key().to_vec();
    let mut other = client.clone();
    let waiting = async move { other.lock("rs-door", None).await };
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "one holds the lock");
    client.unlock(held).await?;
    let next = waiting.await?.key().to_vec();
    client.unlock(next).await?;

    let lease = client.lease_grant(60, None).await?.id();
    let elected = client.campaign("rs-office", "one", lease).await?;
    let leader = elected.leader().expect("it was elected").clone();
    assert_eq!(client.leader("rs-office").await?.kv().unwrap().value(), b"one");
    let mine = || Some(ProclaimOptions::new().with_leader(leader.clone()));
    client.proclaim("two", mine()).await?;
    let mut observed = client.observe("rs-office").await?;
    let seen = observed.message().await?.expect("there is a leader");
    assert_eq!(seen.kv().unwrap().value(), b"two");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    refused(client.leader("rs-office").await, "election: no leader");
    Ok(())
}

async fn maintenance(client: &mut Client, endpoints: usize) -> Done {
    assert_eq!(client.member_list().await?.members().len(), endpoints);
    assert!(client.status().await?.version().starts_with("3."));
    client.hash_kv(0).await?;
    client.defragment().await?;
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
    assert!(alarms.alarms().is_empty());
    let mut saved = client.snapshot().await?;
    let mut bytes = 0;
    while let Some(piece) = saved.message().await? {
        bytes += piece.blob().len();
    }
    assert!(bytes > 1000, "{bytes}");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let mut client = Client::connect(&endpoints, None).await?;
    keys(&mut client).await?;
    transactions(&mut client).await?;
    watches(&mut client).await?;
    leases(&mut client).await?;
    locks_and_elections(&mut client).await?;
    maintenance(&mut client, endpoints.len()).await?;
    println!("rust: all answers as expected");
    Ok(())
}
