//! All gRPC services of a node behind one door.
//!
//! Paths are matched here, in the order of how often services are asked for: a put costs no routing
//! table.

use crate::face::Face;
use crate::health::health_server;
use crate::pb::DESCRIPTORS;
use crate::pb::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
    lease_server::LeaseServer, maintenance_server::MaintenanceServer,
};
use crate::pb::racospb::backup_server::BackupServer;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::watch::WatchServer;
use http::{HeaderMap, HeaderValue, Request, Response};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::{Code, Status};

/// What a request may have beyond its value: etcd's own allowance.
const OVERHEAD_BYTES: usize = 512 * 1024;

/// A service that only its name is known of.
type Door =
    Arc<dyn Fn(Request<Body>) -> BoxFuture<Response<Body>, Infallible> + Send + Sync + 'static>;

/// The services; a clone for each call is cheap.
#[derive(Clone)]
pub struct Services {
    face: Face,
    doors: Arc<[(&'static str, Door)]>,
}

fn door<S>(service: S) -> (&'static str, Door)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    (S::NAME, Arc::new(move |request| Box::pin(service.clone().call(request))))
}

/// Limits of a generated service: the size of requests, and none on answers.
macro_rules! limited {
    ($server:ident, $face:expr) => {
        door(
            $server::new($face.clone())
                .max_decoding_message_size($face.settings.request_bytes_max + OVERHEAD_BYTES),
        )
    };
}

impl Services {
    pub fn new(face: Face) -> Services {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let valid = "the descriptors were written by our own build";
        let doors = [
            limited!(KvServer, face),
            door(WatchServer {
                face: face.clone(),
                request_bytes_max: face.settings.request_bytes_max + OVERHEAD_BYTES,
            }),
            limited!(LeaseServer, face),
            limited!(LockServer, face),
            limited!(ElectionServer, face),
            limited!(MaintenanceServer, face),
            limited!(ClusterServer, face),
            limited!(AuthServer, face),
            limited!(BackupServer, face),
            door(health_server(&face)),
            door(reflection().build_v1().expect(valid)),
            door(reflection().build_v1alpha().expect(valid)),
        ];
        Services { face, doors: doors.into() }
    }

    fn door_of(&self, path: &str) -> Option<&Door> {
        let (service, _) = path.strip_prefix('/')?.split_once('/')?;
        self.doors.iter().find(|(name, _)| *name == service).map(|(_, door)| door)
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let metrics = self.face.metrics.clone();
        metrics.called(request.uri().path());
        let Some(door) = self.door_of(request.uri().path()) else {
            metrics.count(&metrics.failures, 1);
            let text = format!("unknown service {}", request.uri().path());
            let response = Status::unimplemented(text).into_http();
            return Box::pin(std::future::ready(Ok(response)));
        };
        let patience = patience(request.headers());
        let answer = door(request);
        Box::pin(async move {
            let answered = match patience {
                None => Some(answer.await),
                Some(patience) => tokio::time::timeout(patience, answer).await.ok(),
            };
            // What was asked may take effect all the same; the client has stopped waiting.
            let Ok(mut response) = answered.unwrap_or_else(|| {
                Ok(Status::deadline_exceeded("context deadline exceeded").into_http())
            });
            if response.headers().contains_key(Status::GRPC_STATUS) {
                metrics.count(&metrics.failures, 1);
                say_too_large_as_go_does(&mut response);
            }
            Ok(response)
        })
    }
}

/// How long the client waits, by its own word: a number of at most eight digits, and a unit.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A message beyond the limit is refused before it is decoded. Clients know the code and text that
/// the Go library gives.
fn say_too_large_as_go_does(response: &mut Response<Body>) {
    let Some(status) = Status::from_header_map(response.headers()) else { return };
    let Some(rest) = status.message().strip_prefix("Error, decoded message length too large: ")
    else {
        return;
    };
    let mut numbers = rest.split(|at: char| !at.is_ascii_digit()).filter(|text| !text.is_empty());
    let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    let said = Status::new(Code::ResourceExhausted, text);
    let replaced: Response<Body> = said.into_http();
    for name in [Status::GRPC_STATUS, Status::GRPC_MESSAGE] {
        if let Some(value) = replaced.headers().get(&name) {
            let value: HeaderValue = value.clone();
            response.headers_mut().insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_says_how_long_it_waits_in_units_of_its_choice() {
        let said = |text: &'static str| {
            let header =
                (http::HeaderName::from_static("grpc-timeout"), HeaderValue::from_static(text));
            patience(&[header].into_iter().collect())
        };
        assert_eq!(said("3S"), Some(Duration::from_secs(3)));
        assert_eq!(said("250m"), Some(Duration::from_millis(250)));
        assert_eq!(said("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(said("2H"), Some(Duration::from_secs(7200)));
        for odd in ["", "S", "3", "3x", "999999999S", "-1S", "1.5S"] {
            assert_eq!(said(odd), None, "{odd}");
        }
        assert_eq!(patience(&HeaderMap::new()), None);
    }
}
