//! What is served over plain HTTP beside gRPC: health, version, metrics, the JSON gateway.

use crate::body::Metered;
use crate::face::Face;
use crate::gateway::{Gateway, refusal, whole};
use crate::services::Services;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use racos_engine::api::types::{AlarmKind, Keys, Range, StatusAnswer};
use std::time::Duration;
use tonic::body::Body;
use tonic::{Code, Status};

/// The version of etcd's API that is spoken. Clients choose by it what they may ask.
pub const API_VERSION: &str = "3.6.0";

/// Longest time that a question about health waits for a quorum.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that is served over HTTP other than gRPC.
#[derive(Clone)]
pub struct Pages {
    pub face: Face,
    pub services: Services,
    pub gateway: Gateway,
}

impl Pages {
    pub async fn serve(&self, request: Request<Metered>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if self.gateway.knows(parts.uri.path()) {
            return self.call(parts, body).await;
        }
        match (parts.uri.path(), parts.method == Method::GET) {
            ("/health", true) => self.health(parts.uri.query()).await,
            ("/livez", true) => self.probe(&["serializable_read"], parts.uri.query()).await,
            ("/readyz", true) => {
                let checks = ["data_corruption", "serializable_read", "linearizable_read"];
                self.probe(&checks, parts.uri.query()).await
            }
            ("/version", true) => version(),
            ("/metrics", true) => self.metrics().await,
            ("/health" | "/livez" | "/readyz" | "/version" | "/metrics", false) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".into())
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n".into()),
        }
    }

    async fn call(&self, parts: Parts, body: Metered) -> Response<Body> {
        if parts.method != Method::POST {
            return refusal(&Status::new(Code::Unimplemented, "Method Not Allowed"));
        }
        // Base64 makes four bytes of three.
        let bytes_max = self.face.settings.request_bytes_max / 3 * 4 + 65_536;
        let body = match Limited::new(body, bytes_max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return refusal(&crate::errors::known(crate::errors::REQUEST_TOO_LARGE));
            }
            Err(error) => {
                let status = error.downcast::<Status>();
                return refusal(
                    &status.map_or_else(|error| Status::internal(error.to_string()), |it| *it),
                );
            }
        };
        self.gateway.call(self.services.clone(), parts.uri.path(), &parts.headers, &body).await
    }

    /// Whether a read is answered, one that asks a quorum or one of this node alone.
    async fn reads(&self, serializable: bool) -> Result<(), String> {
        let mut range = Range::new(Keys::One(bytes::Bytes::from_static(b"\0")));
        range.count_only = true;
        let pending = self.face.node.itself().range(range, serializable);
        match tokio::time::timeout(HEALTH_PATIENCE, pending).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".into()),
        }
    }

    /// How the node is, if it says so in time.
    async fn status(&self) -> Result<StatusAnswer, String> {
        match tokio::time::timeout(HEALTH_PATIENCE, self.face.node.itself().status()).await {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_) => Err("no answer in time".into()),
        }
    }

    /// Whether members were found to differ: damage within a node is found when it is read, and never
    /// served.
    async fn damage(&self) -> Result<(), String> {
        let status = self.status().await?;
        match status.alarms.iter().any(|(_, kind)| *kind == AlarmKind::Corrupt) {
            true => Err("alarm activated: CORRUPT".into()),
            false => Ok(()),
        }
    }

    async fn health(&self, query: Option<&str>) -> Response<Body> {
        let serializable = has(query, "serializable=true");
        let mut reason = String::new();
        // A node that does not say how it is is told of by the read that follows.
        let status = self.status().await.ok();
        if let Some(alarm) = status.as_ref().and_then(|it| standing_alarm(it, query)) {
            reason = format!("ALARM {alarm}");
        } else if !serializable && !self.face.node.identity().hears_quorum {
            let problem = status.and_then(|it| it.native.problem);
            reason = problem.unwrap_or_else(|| "RAFT NO LEADER".into());
        } else if let Err(error) = self.reads(serializable).await {
            reason = format!("QGET ERROR:{error}");
        }
        let health = if reason.is_empty() { "true" } else { "false" };
        let status = match reason.is_empty() {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let page = serde_json::json!({"health": health, "reason": reason}).to_string();
        page_of(status, "application/json", page)
    }

    /// `/livez` and `/readyz`: each check, shown with `?verbose`.
    async fn probe(&self, checks: &[&str], query: Option<&str>) -> Response<Body> {
        let (mut lines, mut is_good) = (String::new(), true);
        for check in checks {
            let outcome = match *check {
                "serializable_read" => self.reads(true).await,
                "linearizable_read" => self.reads(false).await,
                _ => self.damage().await,
            };
            is_good &= outcome.is_ok();
            match outcome {
                Ok(()) => lines += &format!("[+]{check} ok\n"),
                Err(error) => lines += &format!("[-]{check} failed: {error}\n"),
            }
        }
        match is_good {
            true if has(query, "verbose") => text(StatusCode::OK, lines + "ok\n"),
            true => text(StatusCode::OK, "ok\n".into()),
            false => text(StatusCode::SERVICE_UNAVAILABLE, lines),
        }
    }

    async fn metrics(&self) -> Response<Body> {
        match self.face.node.itself().status().await {
            Ok(status) => {
                let (identity, auth) = (self.face.node.identity(), self.face.node.auth_view());
                let page = self.face.metrics.page(identity, auth, &status);
                page_of(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
            }
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        }
    }
}

/// The name of an alarm that stands and is not one of those that the query excludes.
fn standing_alarm(status: &StatusAnswer, query: Option<&str>) -> Option<&'static str> {
    let mut names = status.alarms.iter().map(|(_, kind)| match kind {
        AlarmKind::NoSpace => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
        AlarmKind::Restoring => "UNKNOWN",
    });
    names.find(|name| !has(query, &format!("exclude={name}")))
}

fn has(query: Option<&str>, what: &str) -> bool {
    query.is_some_and(|query| query.split('&').any(|part| part == what))
}

fn version() -> Response<Body> {
    let page = serde_json::json!({
        "etcdserver": API_VERSION,
        "etcdcluster": API_VERSION,
        "storage": API_VERSION,
        "racos": env!("CARGO_PKG_VERSION"),
    });
    page_of(StatusCode::OK, "application/json", page.to_string())
}

fn text(status: StatusCode, page: String) -> Response<Body> {
    page_of(status, "text/plain; charset=utf-8", page)
}

fn page_of(status: StatusCode, kind: &str, page: String) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, kind)
        .body(Body::new(whole(page.into_bytes())))
        .expect("the parts are valid")
}
