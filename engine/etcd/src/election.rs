//! The service Election: who has the oldest key under a name leads.

use crate::convert::key_value;
use crate::errors::{Known, known, status_of};
use crate::face::{Face, answer, reply};
use crate::pb::v3electionpb as pb;
use crate::pb::v3electionpb::election_server::Election;
use crate::queue::{self, Place, created_at, first_of, line_of, prefix_of, put_of};
use bytes::Bytes;
use racos_engine::api::WatchStream;
use racos_engine::api::types::{
    Delete, Error, KeyValue, Keys, Txn, TxnAnswer, TxnOp, WatchCreate, WatchNews,
};
use std::pin::Pin;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

const NO_LEADER: Known = (Code::Unknown, "election: no leader");
const NOT_LEADER: Known = (Code::Unknown, "election: not leader");
const NO_KEY: Known = (Code::Unknown, "\"leader\" field must be provided");

#[tonic::async_trait]
impl Election for Face {
    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let lease = queue::session(&face.node, asked.lease).await?;
        let value = asked.value.clone();
        let (mut place, before) = queue::enter(&face.node, &asked.name, lease, value).await?;
        let mut header = self.header(place.revision);
        if before.is_some_and(|kv| kv.value != asked.value) {
            header = self.header(face.proclaim_at(&place, asked.value).await?);
        }
        place.come_first(&face.node).await?;
        let leader = pb::LeaderKey { name: asked.name, key: place.key, rev: place.created, lease };
        reply(pb::CampaignResponse { header, leader: Some(leader) })
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let place = place_of(asked.leader)?;
        let revision = face.proclaim_at(&place, asked.value).await?;
        reply(pb::ProclaimResponse { header: self.header(revision) })
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let first = first_of(&prefix_of(&asked.name));
        let mut found = answer(face.node.range(first, false)).await?;
        let kv = found.kvs.pop().ok_or_else(|| known(NO_LEADER))?;
        reply(leader_response(&face, found.revision, kv))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (face, asked) = self.enter(request).await?;
        // One answer is on its way while the next is being found: no queue grows.
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let prefix = prefix_of(&asked.name);
            let observed = face.observe_into(&prefix, &sender);
            // Ends with the client's stream, even while nothing happens.
            let outcome = tokio::select! {
                outcome = observed => outcome,
                () = sender.closed() => return,
            };
            if let Err(status) = outcome {
                let _ = sender.send(Err(status)).await;
            }
        });
        reply(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let place = place_of(asked.leader)?;
        let delete = Delete { keys: Keys::One(place.key.clone()), prev_kv: false };
        let done = face.if_held(&place, TxnOp::Delete(delete)).await?;
        reply(pb::ResignResponse { header: self.header(done.revision) })
    }
}

type Sender = tokio::sync::mpsc::Sender<Result<pb::LeaderResponse, Status>>;

impl Face {
    /// Does something if the place's key is still the one that was created for it.
    async fn if_held(&self, place: &Place, what: TxnOp) -> Result<TxnAnswer, Status> {
        let txn = Txn {
            compares: vec![created_at(place.key.clone(), place.created)],
            success: vec![what],
            failure: Vec::new(),
        };
        answer(self.node.txn(txn, false)).await
    }

    /// Gives a held place another value; the revision at which it has it.
    async fn proclaim_at(&self, place: &Place, value: Bytes) -> Result<i64, Status> {
        let put = put_of(place.key.clone(), value, place.lease);
        let done = self.if_held(place, TxnOp::Put(put)).await?;
        match done.succeeded {
            true => Ok(done.revision),
            false => Err(known(NOT_LEADER)),
        }
    }

    /// Tells of each leader and each value that it proclaims, for ever.
    async fn observe_into(&self, prefix: &Bytes, sender: &Sender) -> Result<(), Status> {
        loop {
            let mut found = answer(self.node.range(first_of(prefix), false)).await?;
            let (mut leader, mut revision) = (found.kvs.pop(), found.revision);
            if leader.is_none() {
                (leader, revision) = self.first_to_come(prefix, revision + 1).await?;
            }
            let Some(leader) = leader else { continue };
            let key = leader.key.clone();
            let response = leader_response(self, revision, leader);
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
            self.follow(key, revision + 1, sender).await?;
        }
    }

    /// The first key that is put in an empty line.
    async fn first_to_come(
        &self,
        prefix: &Bytes,
        from: i64,
    ) -> Result<(Option<KeyValue>, i64), Status> {
        let mut watches = self.watch_keys(line_of(prefix), from, true)?;
        loop {
            let (revision, what) = next(&mut watches).await?;
            match what {
                WatchNews::Events(events) => {
                    let first = events.first().expect("events are not empty");
                    return Ok((Some(first.kv.clone()), revision));
                }
                WatchNews::Compacted { .. } => return Ok((None, revision)),
                WatchNews::Failed(error) => return Err(status_of(error)),
                _ => {}
            }
        }
    }

    /// Tells what a leader proclaims, until its key is deleted.
    async fn follow(&self, key: Bytes, from: i64, sender: &Sender) -> Result<(), Status> {
        let mut watches = self.watch_keys(Keys::One(key), from, false)?;
        loop {
            let (revision, what) = next(&mut watches).await?;
            match what {
                WatchNews::Events(events) => {
                    for event in events.iter() {
                        let response = leader_response(self, revision, event.kv.clone());
                        if event.is_delete || sender.send(Ok(response)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                WatchNews::Compacted { .. } => return Ok(()),
                WatchNews::Failed(error) => return Err(status_of(error)),
                _ => {}
            }
        }
    }

    fn watch_keys(
        &self,
        keys: Keys,
        start_revision: i64,
        no_delete: bool,
    ) -> Result<WatchStream, Status> {
        let watches = self.node.watches();
        let create = WatchCreate {
            id: 0,
            keys,
            start_revision,
            no_put: false,
            no_delete,
            prev_kv: false,
            progress_notify: false,
        };
        watches.create(create).map_err(status_of)?;
        Ok(watches)
    }
}

async fn next(watches: &mut WatchStream) -> Result<(i64, WatchNews), Status> {
    let news = std::future::poll_fn(|context| watches.poll_next(context)).await;
    let news = news.ok_or_else(|| status_of(Error::Stopped))?;
    Ok((news.revision, news.what))
}

fn leader_response(face: &Face, revision: i64, kv: KeyValue) -> pb::LeaderResponse {
    pb::LeaderResponse { header: face.header(revision), kv: Some(key_value(kv)) }
}

/// The place that a client says it has.
fn place_of(leader: Option<pb::LeaderKey>) -> Result<Place, Status> {
    let leader = leader.ok_or_else(|| known(NO_KEY))?;
    Ok(Place {
        prefix: prefix_of(&leader.name),
        key: leader.key,
        lease: leader.lease,
        created: leader.rev,
        revision: 0,
    })
}
