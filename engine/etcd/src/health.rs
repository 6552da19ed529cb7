//! gRPC's own health service: this node serves as long as it hears a quorum.

use crate::face::{Face, reply};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, interval};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};

/// How often a health watch looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub fn health_server(face: &Face) -> HealthServer<Face> {
    HealthServer::new(face.clone())
}

impl Face {
    fn serving(&self) -> ServingStatus {
        match self.node.identity().hears_quorum {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }
}

#[tonic::async_trait]
impl Health for Face {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        // etcd registers itself as a whole only.
        if !service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        reply(pb::HealthCheckResponse { status: self.serving() as i32 })
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = request.into_inner().service.is_empty();
        let face = is_known.then(|| self.clone());
        reply(Box::pin(Changes { face, ticks: interval(LOOK_EVERY), told: None }))
    }
}

/// Tells the state at first, then each change.
struct Changes {
    /// `None`: the service asked about is unknown, which may change only with the node's version.
    face: Option<Face>,
    ticks: Interval,
    told: Option<ServingStatus>,
}

impl Stream for Changes {
    type Item = Result<pb::HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.ticks.poll_tick(context).is_ready() {
            let now = self.face.as_ref().map_or(ServingStatus::ServiceUnknown, Face::serving);
            if self.told != Some(now) {
                self.told = Some(now);
                return Poll::Ready(Some(Ok(pb::HealthCheckResponse { status: now as i32 })));
            }
        }
        Poll::Pending
    }
}
