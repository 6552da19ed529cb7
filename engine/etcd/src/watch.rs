//! The service Watch: many watches on one stream.
//!
//! Invariant: the node builds a response only when the one before has been taken, so a client that
//! reads slowly costs one response and its requests, at most [`REQUESTS_AT_ONCE`] at a time.
//! Responses leave in the order in which the node gives them; one that is cut into fragments is
//! sent whole before the next.

use crate::convert;
use crate::errors::{NO_LEADER, STOPPED, known, status_of};
use crate::face::{Face, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::watch_server::Watch;
use prost::Message;
use racos_engine::api::WatchStream;
use racos_engine::api::types::{WatchNews, WatchRefusal, WatchResponse};
use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// Requests taken from a client before it is looked what there is to send.
const REQUESTS_AT_ONCE: usize = 16;
/// A response larger than this is cut for watches that allow it; etcd's own default.
const FRAGMENT_BYTES: usize = 1_572_864 + 512 * 1024;
/// How often a stream that wants to be ended when this node is cut off looks whether it is.
const LEADER_CHECK_EVERY: Duration = Duration::from_secs(1);
/// Id of a watch that was not created.
const NO_WATCH: i64 = -1;

#[tonic::async_trait]
impl Watch for Face {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.check_leader(request.metadata())?;
        let asks_leader = request.metadata().get("hasleader").is_some();
        self.metrics.watch_streams.fetch_add(1, Ordering::Relaxed);
        reply(Box::pin(Session {
            leader_check: asks_leader.then(|| tokio::time::interval(LEADER_CHECK_EVERY)),
            requests: Some(request.into_inner()),
            news: self.node.watches(),
            face: self.clone(),
            asked: VecDeque::new(),
            fragmenting: BTreeSet::new(),
            ready: VecDeque::new(),
            alive: 0,
            is_over: false,
        }))
    }
}

/// One client's stream.
struct Session {
    face: Face,
    /// Ticks if the client wants to hear when this node is cut off from the others.
    leader_check: Option<tokio::time::Interval>,
    /// `None` once the client has said that it asks no more; its watches go on.
    requests: Option<Streaming<pb::WatchRequest>>,
    news: WatchStream,
    /// Whether each watch that was asked for and not answered yet allows fragments.
    asked: VecDeque<bool>,
    /// Watches that allow fragments.
    fragmenting: BTreeSet<i64>,
    /// Fragments that wait to be sent.
    ready: VecDeque<pb::WatchResponse>,
    /// Watches that have not ended.
    alive: i64,
    is_over: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.face.metrics.watch_streams.fetch_sub(1, Ordering::Relaxed);
        self.face.metrics.watches.fetch_sub(self.alive, Ordering::Relaxed);
    }
}

impl Session {
    fn check_leader(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        let Some(ticks) = &mut self.leader_check else { return Ok(()) };
        while ticks.poll_tick(context).is_ready() {
            if !self.face.node.identity().hears_quorum {
                return Err(known(NO_LEADER));
            }
        }
        Ok(())
    }

    /// Takes requests that are there. An error ends the stream.
    fn take_requests(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(requests) = &mut self.requests else { return Ok(()) };
            match Pin::new(requests).poll_next(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(request)) => self.take_request(request?)?,
            }
        }
        // There may be more: come back soon.
        context.waker().wake_by_ref();
        Ok(())
    }

    fn take_request(&mut self, request: pb::WatchRequest) -> Result<(), Status> {
        let taken = match request.request_union {
            Some(RequestUnion::CreateRequest(asked)) => {
                self.asked.push_back(asked.fragment);
                self.news.create(convert::watch_create(asked))
            }
            Some(RequestUnion::CancelRequest(asked)) => self.news.cancel(asked.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.news.progress(),
            None => Ok(()),
        };
        taken.map_err(status_of)
    }

    fn queue(&mut self, news: WatchResponse) {
        let id = news.id;
        let mut response = pb::WatchResponse {
            header: self.face.header(news.revision),
            watch_id: id,
            ..Default::default()
        };
        match news.what {
            WatchNews::Created => {
                response.created = true;
                self.alive += 1;
                self.face.metrics.watches.fetch_add(1, Ordering::Relaxed);
                if self.asked.pop_front().unwrap_or(false) {
                    self.fragmenting.insert(id);
                }
            }
            WatchNews::Refused(why) => {
                self.asked.pop_front();
                (response.created, response.canceled) = (true, true);
                response.watch_id = NO_WATCH;
                response.cancel_reason = match why {
                    WatchRefusal::DuplicateId => {
                        "mvcc: duplicate watch ID provided on the WatchStream".into()
                    }
                    WatchRefusal::EmptyRange => "mvcc: watcher range is empty".into(),
                };
            }
            WatchNews::Events(events) => {
                response.events = events.into_iter().map(convert::event).collect();
                if self.fragmenting.contains(&id) {
                    return self.ready.extend(fragments(response, FRAGMENT_BYTES));
                }
            }
            WatchNews::Progress => {}
            WatchNews::Cancelled => self.end(&mut response),
            WatchNews::Compacted { compact_revision } => {
                // etcd tells no revision here.
                response.header = self.face.header(0);
                response.compact_revision = compact_revision;
                self.end(&mut response);
            }
            WatchNews::Failed(error) => {
                response.cancel_reason = format!("racos: {error}");
                self.end(&mut response);
            }
        }
        self.ready.push_back(response);
    }

    fn end(&mut self, response: &mut pb::WatchResponse) {
        response.canceled = true;
        self.alive -= 1;
        self.face.metrics.watches.fetch_sub(1, Ordering::Relaxed);
        self.fragmenting.remove(&response.watch_id);
    }
}

impl Stream for Session {
    type Item = Result<pb::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        let checked = this.check_leader(context).and_then(|()| this.take_requests(context));
        if let Err(status) = checked {
            this.is_over = true;
            return Poll::Ready(Some(Err(status)));
        }
        loop {
            if let Some(response) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            match this.news.poll_next(context) {
                Poll::Ready(Some(news)) => this.queue(news),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    this.is_over = true;
                    return Poll::Ready(Some(Err(known(STOPPED))));
                }
            }
        }
    }
}

/// Cuts a response that is larger than `bytes_max`; no event is cut.
fn fragments(mut whole: pb::WatchResponse, bytes_max: usize) -> Vec<pb::WatchResponse> {
    if whole.events.len() < 2 || whole.encoded_len() < bytes_max {
        return vec![whole];
    }
    let events = std::mem::take(&mut whole.events);
    let empty_bytes = whole.encoded_len();
    whole.fragment = true;
    let mut cut: Vec<pb::WatchResponse> = Vec::new();
    let mut bytes = usize::MAX;
    for event in events {
        // Its tag and length take at most six bytes.
        let event_bytes = event.encoded_len() + 6;
        if bytes.saturating_add(event_bytes) > bytes_max {
            cut.push(whole.clone());
            bytes = empty_bytes;
        }
        bytes += event_bytes;
        cut.last_mut().expect("one was pushed for the first event").events.push(event);
    }
    cut.last_mut().expect("there are events").fragment = false;
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb;

    fn event(bytes: usize) -> mvccpb::Event {
        let kv = mvccpb::KeyValue { value: vec![7; bytes].into(), ..Default::default() };
        mvccpb::Event { kv: Some(kv), ..Default::default() }
    }

    #[test]
    fn fragments_hold_all_events_in_order_and_only_the_last_says_so() {
        for sizes in [vec![10; 50], vec![500], vec![5, 500, 5, 5], vec![90, 90, 90], vec![1]] {
            let events: Vec<_> = sizes.iter().map(|bytes| event(*bytes)).collect();
            let whole = pb::WatchResponse { events: events.clone(), ..Default::default() };
            let cut = fragments(whole, 100);
            let joined: Vec<_> = cut.iter().flat_map(|part| part.events.clone()).collect();
            assert_eq!(joined, events);
            let (last, others) = cut.split_last().unwrap();
            assert!(!last.fragment && others.iter().all(|part| part.fragment));
            assert!(cut.iter().all(|part| part.events.len() == 1 || part.encoded_len() <= 100));
        }
    }
}
