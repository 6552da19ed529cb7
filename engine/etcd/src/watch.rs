//! The service Watch: many watches on one stream.
//!
//! Invariant: the node builds responses only when those before have been taken, so a client that
//! reads slowly costs a bounded number of them and its requests, at most [`REQUESTS_AT_ONCE`] at a
//! time. Events are encoded once, however many watches of this node tell them.
//! Responses leave in the order in which the node gives them; one that is cut into fragments is
//! sent whole before the next.

use crate::convert;
use crate::errors::{NO_LEADER, STOPPED, auth_known, known, status_of};
use crate::face::{Face, Token, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use bytes::{BufMut, Bytes};
use prost::Message;
use racos_engine::api::WatchStream;
use racos_engine::api::types::{Event, Events, WatchNews, WatchRefusal, WatchResponse};
use racos_machine::Caller;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};

/// Requests taken from a client before it is looked what there is to send.
const REQUESTS_AT_ONCE: usize = 16;
/// A response larger than this is cut for watches that allow it; etcd's own default.
const FRAGMENT_BYTES: usize = 1_572_864 + 512 * 1024;
/// How often a stream that wants to be ended when this node is cut off looks whether it is.
const LEADER_CHECK_EVERY: Duration = Duration::from_secs(1);
/// Id of a watch that was not created.
const NO_WATCH: i64 = -1;

/// The service, written out instead of generated: its responses are not plain messages.
#[derive(Clone)]
pub struct WatchServer {
    pub face: Face,
    pub request_bytes_max: usize,
}

impl NamedService for WatchServer {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl Service<http::Request<Body>> for WatchServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let WatchServer { face, request_bytes_max } = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                let text = format!("unknown method {}", request.uri().path());
                return Ok(Status::unimplemented(text).into_http());
            }
            let mut grpc =
                Grpc::new(WatchCodec).apply_max_message_size_config(Some(request_bytes_max), None);
            Ok(grpc.streaming(Opening(face), request).await)
        })
    }
}

/// A stream about to begin.
struct Opening(Face);

impl StreamingService<pb::WatchRequest> for Opening {
    type Response = Outgoing;
    type ResponseStream = Session;
    type Future = BoxFuture<Response<Session>, Status>;

    fn call(&mut self, request: Request<Streaming<pb::WatchRequest>>) -> Self::Future {
        let face = self.0.clone();
        Box::pin(async move { reply(Session::open(face, request).await?) })
    }
}

/// A response on its way: the message, and behind it its events, encoded already.
#[derive(Debug)]
struct Outgoing {
    message: pb::WatchResponse,
    events: Option<Arc<Events>>,
}

impl From<pb::WatchResponse> for Outgoing {
    fn from(message: pb::WatchResponse) -> Outgoing {
        Outgoing { message, events: None }
    }
}

/// Events as they stand in a response. Two messages one behind the other are one with the fields of
/// both.
fn encode_events(events: &[Event]) -> Bytes {
    let events = events.iter().cloned().map(convert::event).collect();
    pb::WatchResponse { events, ..Default::default() }.encode_to_vec().into()
}

struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Outgoing;
    type Decode = pb::WatchRequest;
    type Encoder = WatchEncoder;
    type Decoder = ProstDecoder<pb::WatchRequest>;

    fn encoder(&mut self) -> WatchEncoder {
        WatchEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<pb::WatchResponse, pb::WatchRequest>::default().decoder()
    }
}

struct WatchEncoder;

impl Encoder for WatchEncoder {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.message.encode(out).map_err(|error| Status::internal(error.to_string()))?;
        if let Some(events) = item.events {
            let encoded = events.encoded(encode_events);
            out.reserve(encoded.len());
            out.put_slice(encoded);
        }
        Ok(())
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
    ready: VecDeque<Outgoing>,
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
    async fn open(
        face: Face,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Session, Status> {
        face.check_leader(request.metadata())?;
        let face = match face.of(&Token::of(request.metadata())).await {
            // As in etcd, not the stream is refused but each watch on it: such a user there never is.
            Err(status) if status.code() == Code::Unauthenticated => {
                let nobody = Caller { user: Default::default(), since: 0 };
                Face { node: face.node.on_behalf_of(nobody), ..face }
            }
            face => face?,
        };
        let asks_leader = request.metadata().get("hasleader").is_some();
        face.metrics.watch_streams.fetch_add(1, Ordering::Relaxed);
        Ok(Session {
            leader_check: asks_leader.then(|| tokio::time::interval(LEADER_CHECK_EVERY)),
            requests: Some(request.into_inner()),
            news: face.node.watches(),
            face,
            asked: VecDeque::new(),
            fragmenting: BTreeSet::new(),
            ready: VecDeque::new(),
            alive: 0,
            is_over: false,
        })
    }

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
            // The client waits until what it asked before is taken in.
            if !self.news.poll_room(context) {
                return Ok(());
            }
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
                    WatchRefusal::Auth(reason) => {
                        // As Go prints a status.
                        let (code, text) = auth_known(reason);
                        format!("rpc error: code = {code:?} desc = {text}")
                    }
                };
            }
            WatchNews::Events(events) => {
                if self.fragmenting.contains(&id) {
                    response.events = events.iter().cloned().map(convert::event).collect();
                    let cut = fragments(response, FRAGMENT_BYTES);
                    return self.ready.extend(cut.into_iter().map(Outgoing::from));
                }
                let outgoing = Outgoing { message: response, events: Some(events) };
                return self.ready.push_back(outgoing);
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
        self.ready.push_back(response.into());
    }

    fn end(&mut self, response: &mut pb::WatchResponse) {
        response.canceled = true;
        self.alive -= 1;
        self.face.metrics.watches.fetch_sub(1, Ordering::Relaxed);
        self.fragmenting.remove(&response.watch_id);
    }
}

impl Stream for Session {
    type Item = Result<Outgoing, Status>;

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
