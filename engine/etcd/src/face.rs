//! What all services of a node share.

use crate::convert;
use crate::errors::{NO_LEADER, REQUEST_TOO_LARGE, known, status_of};
use crate::metrics::Metrics;
use crate::pb::etcdserverpb as pb;
use racos_engine::api::{Handle, Pending};
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// How this node presents itself; see `node.example.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where clients reach each node, `HOST:PORT`, by number.
    pub endpoints: Vec<String>,
    /// Where clients reach this node, if it joined and has no place among them: it tells the others.
    pub advertise: Option<String>,
    /// Bytes of a request; larger ones are refused.
    pub request_bytes_max: usize,
}

/// One for a node; cheap to clone.
#[derive(Clone)]
pub struct Face {
    pub node: Handle,
    pub settings: Arc<Settings>,
    pub metrics: Arc<Metrics>,
}

impl Face {
    /// Takes the message of a request, once what every request is checked for holds.
    pub fn open<T: prost::Message>(&self, request: Request<T>) -> Result<T, Status> {
        self.check_leader(request.metadata())?;
        let message = request.into_inner();
        match message.encoded_len() > self.settings.request_bytes_max {
            true => Err(known(REQUEST_TOO_LARGE)),
            false => Ok(message),
        }
    }

    /// Clients that ask for a leader want to hear at once if this node is cut off.
    pub fn check_leader(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let asks = metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        match asks && !self.node.identity().hears_quorum {
            true => Err(known(NO_LEADER)),
            false => Ok(()),
        }
    }

    pub fn header(&self, revision: i64) -> Option<pb::ResponseHeader> {
        convert::header(self.node.identity(), revision)
    }
}

/// Waits for a node's answer.
pub async fn answer<T>(pending: Pending<T>) -> Result<T, Status> {
    pending.await.map_err(status_of)
}

/// An answer on its way out.
pub fn reply<T>(message: T) -> Result<Response<T>, Status> {
    Ok(Response::new(message))
}
