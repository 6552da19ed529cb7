//! Watches beside a program, and what they were told.
//!
//! Invariant: waits for what must come, never for time to pass: at the end each watch is shown a
//! put and a delete of a key it watches, and has been told everything once it has been told those.

use crate::program::{Draw, KEYS, Known, prefix_end};
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::kv_client::KvClient;
use racos_etcd::pb::etcdserverpb::watch_client::WatchClient;
use racos_etcd::pb::etcdserverpb::watch_create_request::FilterType;
use racos_etcd::pb::etcdserverpb::watch_request::RequestUnion;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Longer than any answer takes; a watch that says nothing for so long has lost something.
const PATIENCE: Duration = Duration::from_secs(20);

/// One stream with many watches.
pub struct Watches {
    channel: Channel,
    requests: Sender<pb::WatchRequest>,
    /// Before the first request: etcd answers the call itself only once there is one.
    unopened: Option<ReceiverStream<pb::WatchRequest>>,
    answers: Option<Streaming<pb::WatchResponse>>,
    watches: BTreeMap<i64, Watch>,
}

struct Watch {
    asked: pb::WatchCreateRequest,
    /// Lines that two servers are compared by.
    told: String,
    /// Highest revision of an event.
    seen: i64,
    /// Revision that it was waited for last.
    due: i64,
    is_over: bool,
    /// An event of a response that is not the last fragment came before.
    in_fragment: bool,
}

impl Watches {
    pub fn new(channel: Channel) -> Watches {
        let (requests, receiver) = self::channel(64);
        let unopened = Some(ReceiverStream::new(receiver));
        Watches { channel, requests, unopened, answers: None, watches: BTreeMap::new() }
    }

    /// Creates a watch as the generator likes, and waits until the server says that it is there.
    /// Until it has caught up, what it is told depends on time, so that is waited for too; the
    /// revision then.
    pub async fn create(
        &mut self,
        draw: &mut Draw,
        known: Known,
        kv: &mut KvClient<Channel>,
    ) -> i64 {
        let key = KEYS[draw.below(KEYS.len() as u64) as usize].to_vec();
        let range_end = match draw.below(3) {
            0 => Vec::new(),
            1 => prefix_end(&key),
            _ => vec![0],
        };
        let filters = match draw.below(6) {
            0 => vec![FilterType::Noput as i32],
            1 => vec![FilterType::Nodelete as i32],
            _ => Vec::new(),
        };
        let start_revision = match draw.below(3) {
            0 => 0,
            1 => known.revision + 1,
            _ => draw.below(known.revision as u64 + 1) as i64,
        };
        // A deletion at the compacted revision itself is told by 3.6 and racos, not by 3.4.
        let start_revision = start_revision + i64::from(start_revision == known.compacted);
        let asked = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision,
            filters,
            prev_kv: draw.one_in(2),
            watch_id: self.watches.len() as i64 + 1,
            fragment: draw.one_in(4),
            progress_notify: false,
        };
        let id = asked.watch_id;
        self.create_as(asked).await;
        self.settle_one(id, kv).await
    }

    pub async fn create_as(&mut self, asked: pb::WatchCreateRequest) {
        // The member may not have executed yet what others did; a linearizable read waits for it.
        let range = pb::RangeRequest { key: "a".into(), ..Default::default() };
        KvClient::new(self.channel.clone()).range(range).await.unwrap();
        let id = asked.watch_id;
        let told = format!("watch {asked:?}\n");
        let watch = Watch {
            asked: asked.clone(),
            told,
            seen: 0,
            due: 0,
            is_over: false,
            in_fragment: false,
        };
        assert!(self.watches.insert(id, watch).is_none());
        let union = Some(RequestUnion::CreateRequest(asked));
        let sent = self.requests.send(pb::WatchRequest { request_union: union }).await;
        sent.expect("the server goes on listening");
        if let Some(requests) = self.unopened.take() {
            let client = WatchClient::new(self.channel.clone());
            let mut client = client.max_decoding_message_size(256 << 20);
            self.answers = Some(client.watch(requests).await.unwrap().into_inner());
        }
        while !self.take().await.1 {}
    }

    /// Takes one response; whose it was, and whether it says that a watch was created.
    async fn take(&mut self) -> (i64, bool) {
        let answers = self.answers.as_mut().expect("a watch was created");
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.expect("a watch is told in time").unwrap().expect("the stream is open");
        let header = answer.header.expect("every response has a header").revision;
        let watch = self.watches.get_mut(&answer.watch_id).expect("a watch that was asked for");
        assert!(!watch.is_over, "nothing follows the end: {answer:?}");
        if answer.created {
            writeln!(watch.told, "created at {header}").unwrap();
        }
        if answer.canceled {
            watch.is_over = true;
            let (compacted, why) = (answer.compact_revision, &answer.cancel_reason);
            writeln!(watch.told, "canceled: {compacted} {why:?}").unwrap();
        }
        assert!(watch.asked.fragment || !answer.fragment);
        for event in &answer.events {
            let at = event.kv.as_ref().expect("an event has a key").mod_revision;
            assert!(at >= watch.seen, "in order");
            assert!(at <= header, "a header is never below what it brings");
            watch.seen = at;
            writeln!(watch.told, "{event:?}").unwrap();
        }
        watch.in_fragment = answer.fragment;
        (answer.watch_id, answer.created)
    }

    /// Shows each watch a change of a key that it watches, and waits until it has been told: by then
    /// it has been told everything before. The revision then.
    pub async fn settle(&mut self, kv: &mut KvClient<Channel>) -> i64 {
        let ids: Vec<i64> = self.watches.keys().copied().collect();
        let mut last = 0;
        for id in ids {
            last = last.max(self.settle_one(id, kv).await);
        }
        last
    }

    async fn settle_one(&mut self, id: i64, kv: &mut KvClient<Channel>) -> i64 {
        let watch = &self.watches[&id];
        let asked = watch.asked.clone();
        if watch.is_over {
            return 0;
        }
        let mut put_at = put(kv, &asked.key).await;
        while put_at < asked.start_revision {
            put_at = put(kv, &asked.key).await;
        }
        let delete = pb::DeleteRangeRequest { key: asked.key.clone(), ..Default::default() };
        let delete = kv.delete_range(delete).await.unwrap().into_inner();
        let delete_at = delete.header.unwrap().revision;
        let no_delete = asked.filters.contains(&(FilterType::Nodelete as i32));
        let due = if no_delete { put_at } else { delete_at };
        let waits = |watch: &Watch| !watch.is_over && (watch.seen < due || watch.in_fragment);
        self.watches.get_mut(&id).expect("looked at above").due = due;
        while waits(&self.watches[&id]) {
            self.take().await;
        }
        delete_at
    }

    /// All that was told.
    pub async fn finish(mut self, kv: &mut KvClient<Channel>) -> String {
        self.settle(kv).await;
        // What comes after the last change that all have seen depends on when each was taken.
        let due = self.watches.values().filter(|watch| !watch.is_over).map(|watch| watch.due);
        let until = due.min().unwrap_or(i64::MAX);
        let mut text = String::new();
        for line in self.watches.values().flat_map(|watch| watch.told.lines()) {
            let at = line
                .split_once("mod_revision: ")
                .map(|(_, rest)| rest.split_once(',').unwrap().0.parse::<i64>().unwrap());
            if at.is_none_or(|at| at <= until) {
                writeln!(text, "{line}").unwrap();
            }
        }
        text
    }
}

async fn put(kv: &mut KvClient<Channel>, key: &[u8]) -> i64 {
    let asked = pb::PutRequest { key: key.to_vec().into(), ..Default::default() };
    kv.put(asked).await.unwrap().into_inner().header.unwrap().revision
}
