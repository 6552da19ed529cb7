//! The request patterns of Kubernetes' storage layer, from several clients at once.
//!
//! Create if absent, guaranteed update, paged lists at one revision, watches from a list's revision
//! with previous values, compaction beside all of it.

use crate::client::Client;
use crate::differential::block_on;
use crate::program::Draw;
use crate::servers::Server;
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use racos_etcd::pb::etcdserverpb::request_op::Request;
use racos_etcd::pb::etcdserverpb::response_op::Response;
use racos_etcd::pb::etcdserverpb::watch_client::WatchClient;
use racos_etcd::pb::etcdserverpb::watch_request::RequestUnion;
use racos_etcd::pb::mvccpb::{Event, KeyValue};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

const PREFIX: &str = "/registry/pods/";
const OBJECTS: usize = 10_000;
const WRITERS: usize = 32;
const UPDATES_EACH: usize = 40;
const PAGE: i64 = 500;
/// Revisions that compactions leave behind what the watch has told.
const COMPACT_BEHIND: i64 = 400;
/// Lists of all objects that are kept, to be looked at in the end.
const LISTS_MAX: usize = 6;

fn name_of(object: usize) -> Vec<u8> {
    format!("{PREFIX}namespace-{}/pod-{object:05}", object % 20).into_bytes()
}

/// 1 to 100 KB, small ones more often.
fn value_of(object: usize, round: u8) -> Vec<u8> {
    let len = match object % 100 {
        0 => 100_000,
        1..=9 => 10_000,
        _ => 1_000 + object % 500,
    };
    let mut value = vec![round; len];
    value[..8].copy_from_slice(&(object as u64).to_be_bytes());
    value
}

fn put_op(key: &[u8], value: Vec<u8>) -> pb::RequestOp {
    let put =
        pb::PutRequest { key: key.to_vec().into(), value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}

fn get_op(key: &[u8]) -> pb::RequestOp {
    let range = pb::RangeRequest { key: key.to_vec().into(), ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestRange(range)) }
}

/// "If the key was last modified then": the only compare that Kubernetes uses.
fn modified_at(key: &[u8], revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: key.to_vec().into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

async fn create(client: &Client, member: usize, object: usize) -> bool {
    let key = name_of(object);
    let asked = pb::TxnRequest {
        compare: vec![modified_at(&key, 0)],
        success: vec![put_op(&key, value_of(object, 0))],
        failure: Vec::new(),
    };
    client.kv(member).txn(asked).await.unwrap().into_inner().succeeded
}

/// Reads, and writes on the condition that nobody has written meanwhile; how often it took.
async fn update(client: &Client, member: usize, object: usize) -> u64 {
    let key = name_of(object);
    let mut kv = client.kv(member);
    let asked = pb::RangeRequest { key: key.clone().into(), ..Default::default() };
    let mut seen = kv.range(asked).await.unwrap().into_inner().kvs.pop().expect("it was created");
    for attempt in 1.. {
        let round = seen.value[8] + 1;
        let asked = pb::TxnRequest {
            compare: vec![modified_at(&key, seen.mod_revision)],
            success: vec![put_op(&key, value_of(object, round))],
            failure: vec![get_op(&key)],
        };
        let mut answer = kv.txn(asked).await.unwrap().into_inner();
        if answer.succeeded {
            return attempt;
        }
        let Some(Response::ResponseRange(mut range)) = answer.responses.remove(0).response else {
            panic!("a failed update reads");
        };
        seen = range.kvs.pop().expect("it is never deleted");
    }
    unreachable!("an update ends")
}

/// All objects, page by page, at the revision of the first page. `None` if that was compacted on the
/// way: Kubernetes begins again then.
async fn try_list(client: &Client, member: usize) -> Option<(i64, Vec<KeyValue>)> {
    let end = format!("{}0", &PREFIX[..PREFIX.len() - 1]);
    let (mut key, mut revision, mut all) = (PREFIX.as_bytes().to_vec(), 0, Vec::new());
    loop {
        let asked = pb::RangeRequest {
            key: key.into(),
            range_end: end.clone().into(),
            limit: PAGE,
            revision,
            ..Default::default()
        };
        let page = match client.kv(member).range(asked).await {
            Ok(page) => page.into_inner(),
            Err(status) => {
                assert!(status.message().contains("required revision has been compacted"));
                return None;
            }
        };
        if revision == 0 {
            revision = page.header.unwrap().revision;
        }
        let is_last = !page.more;
        assert_eq!(is_last, page.count as usize == page.kvs.len(), "the count is of what is left");
        all.extend(page.kvs);
        if is_last {
            return Some((revision, all));
        }
        key = all.last().unwrap().key.to_vec();
        key.push(0);
    }
}

async fn list(client: &Client, member: usize) -> (i64, Vec<KeyValue>) {
    try_list(client, member).await.expect("nothing is compacted meanwhile")
}

/// How far the watch of a test has come; 0: nothing was told yet.
type Watched = Rc<Cell<i64>>;

/// Compacts closely behind the watch until that has told the last revision; how often.
async fn compact_behind(client: Arc<Client>, watched: Watched, until: i64) -> u64 {
    let (mut compacted, mut times) = (0, 0);
    while watched.get() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let revision = watched.get() - COMPACT_BEHIND;
        if revision > compacted {
            let asked = pb::CompactionRequest { revision, physical: false };
            client.kv(times as usize).compact(asked).await.unwrap();
            (compacted, times) = (revision, times + 1);
        }
    }
    times
}

/// Lists some times while the watch has not told the last revision.
async fn list_beside(
    client: Arc<Client>,
    watched: Watched,
    until: i64,
) -> (Vec<(i64, Vec<KeyValue>)>, u64) {
    let (mut lists, mut begun_again) = (Vec::new(), 0);
    while watched.get() < until && lists.len() < LISTS_MAX {
        match try_list(&client, lists.len()).await {
            Some(list) => lists.push(list),
            None => begun_again += 1,
        }
    }
    (lists, begun_again)
}

/// Every event after a revision, until one of `until`; events of one object follow each other.
async fn watch(client: &Client, member: usize, from: i64, until: i64, at: Watched) -> Vec<Event> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: PREFIX.into(),
        range_end: format!("{}0", &PREFIX[..PREFIX.len() - 1]).into(),
        start_revision: from + 1,
        prev_kv: true,
        progress_notify: true,
        ..Default::default()
    };
    let request_union = Some(RequestUnion::CreateRequest(create));
    sender.send(pb::WatchRequest { request_union }).await.unwrap();
    let mut watch = WatchClient::new(client.channel(member)).max_decoding_message_size(256 << 20);
    let mut answers = watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut events: Vec<Event> = Vec::new();
    while at.get() < until {
        let answer = answers.message().await.unwrap().expect("the watch goes on");
        assert!(!answer.canceled, "{} {}", answer.compact_revision, answer.cancel_reason);
        events.extend(answer.events);
        at.set(events.last().map_or(0, |event| event.kv.as_ref().unwrap().mod_revision));
    }
    events
}

#[test]
fn objects_are_created_updated_listed_and_watched_as_kubernetes_does() {
    let racos = Server::racos("storage");
    block_on(async {
        let client = Arc::new(Client::connect(&racos.endpoints).await);
        let local = tokio::task::LocalSet::new();
        local.run_until(exercise(client)).await;
    });
}

type Count = std::pin::Pin<Box<dyn Future<Output = u64>>>;

/// Runs a task for each writer at once; the sum of what they count.
async fn all_writers(client: &Arc<Client>, work: fn(Arc<Client>, usize) -> Count) -> u64 {
    let tasks = (0..WRITERS).map(|at| tokio::task::spawn_local(work(client.clone(), at)));
    let mut sum = 0;
    for task in tasks.collect::<Vec<_>>() {
        sum += task.await.unwrap();
    }
    sum
}

/// Two writers for each object: one of them creates it.
async fn create_share(client: Arc<Client>, at: usize) -> u64 {
    let mut created = 0;
    for object in (at % (WRITERS / 2)..OBJECTS).step_by(WRITERS / 2) {
        created += u64::from(create(&client, at, object).await);
    }
    created
}

async fn update_share(client: Arc<Client>, at: usize) -> u64 {
    let mut draw = Draw::new(at as u64 + 1);
    let mut attempts = 0;
    for _ in 0..UPDATES_EACH {
        attempts += update(&client, at, draw.below(50) as usize).await;
    }
    attempts
}

async fn exercise(client: Arc<Client>) {
    let created = all_writers(&client, |client, at| Box::pin(create_share(client, at))).await;
    assert_eq!(created, OBJECTS as u64, "each is created once");

    let (revision, before) = list(&client, 0).await;
    assert_eq!(before.len(), OBJECTS);
    for kv in &before {
        let object = u64::from_be_bytes(kv.value[..8].try_into().unwrap()) as usize;
        assert_eq!((&kv.key[..], &kv.value[..]), (&name_of(object)[..], &value_of(object, 0)[..]));
    }

    // Updates that meet, with a watch from the list on another node and compaction behind it.
    let updates = (WRITERS * UPDATES_EACH) as u64;
    let (until, watched) = (revision + updates as i64, Watched::default());
    let watching = tokio::task::spawn_local({
        let (client, watched) = (client.clone(), watched.clone());
        async move { watch(&client, 3, revision, until, watched).await }
    });
    let compacting =
        tokio::task::spawn_local(compact_behind(client.clone(), watched.clone(), until));
    let listing = tokio::task::spawn_local(list_beside(client.clone(), watched, until));
    let attempts = all_writers(&client, |client, at| Box::pin(update_share(client, at))).await;
    println!("{updates} updates took {attempts} attempts");
    assert!(attempts > updates, "some updates met");
    let events = watching.await.unwrap();
    let compactions = compacting.await.unwrap();
    let (lists, begun_again) = listing.await.unwrap();
    println!("{compactions} compactions, {} lists, {begun_again} begun again", lists.len());
    assert!(compactions > 0, "there was something to compact");
    let mut lists = lists.into_iter().peekable();

    // The list and the events make the state; each event knows what came before it.
    let mut state: BTreeMap<_, _> = before.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    let mut last = revision;
    let mut check_lists = |last: i64, state: &BTreeMap<_, KeyValue>| {
        while let Some((_, list)) = lists.next_if(|(revision, _)| *revision == last) {
            assert!(list.iter().eq(state.values()), "a list is the state of its revision");
        }
    };
    check_lists(last, &state);
    for event in events {
        let kv = event.kv.unwrap();
        assert_eq!(kv.mod_revision, last + 1, "one event for each revision, in order");
        last = kv.mod_revision;
        assert_eq!(event.prev_kv, state.insert(kv.key.clone(), kv));
        check_lists(last, &state);
    }
    assert_eq!(lists.next().map(|(revision, _)| revision), None, "every list was looked at");
    let compact = pb::CompactionRequest { revision: last, physical: false };
    client.kv(1).compact(compact).await.unwrap();
    let (_, after) = list(&client, 4).await;
    assert_eq!(after, state.into_values().collect::<Vec<_>>());
    let old = pb::RangeRequest { key: PREFIX.into(), revision: last - 1, ..Default::default() };
    let refused = client.kv(2).range(old).await.unwrap_err();
    assert!(refused.message().contains("required revision has been compacted"), "{refused}");
}
