//! The JSON gateway: `POST /v3/kv/put` and its like, as etcd's, onto the same gRPC services.
//!
//! Purpose: messages are translated by their descriptors, so a gateway call means exactly what the
//! gRPC call means. Bytes are base64, 64-bit numbers are strings, field names are those of the
//! .proto files, fields with default values are left out.
//! Invariant: a request body is read whole, and bounded, before anything is called.

use crate::pb::DESCRIPTORS;
use crate::services::Services;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::{Code, Request, Status, Streaming};

/// Paths and the methods they stand for, as etcd's gateway has them.
const ROUTES: &[(&str, &str, &str)] = &[
    ("/v3/kv/range", "etcdserverpb.KV", "Range"),
    ("/v3/kv/put", "etcdserverpb.KV", "Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV", "Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV", "Compact"),
    ("/v3/watch", "etcdserverpb.Watch", "Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("/v3/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/v3/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    ("/v3/cluster/member/remove", "etcdserverpb.Cluster", "MemberRemove"),
    ("/v3/cluster/member/update", "etcdserverpb.Cluster", "MemberUpdate"),
    ("/v3/cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    ("/v3/cluster/member/promote", "etcdserverpb.Cluster", "MemberPromote"),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("/v3/maintenance/status", "etcdserverpb.Maintenance", "Status"),
    ("/v3/maintenance/defragment", "etcdserverpb.Maintenance", "Defragment"),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("/v3/maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    ("/v3/maintenance/snapshot", "etcdserverpb.Maintenance", "Snapshot"),
    ("/v3/maintenance/transfer-leadership", "etcdserverpb.Maintenance", "MoveLeader"),
    ("/v3/maintenance/downgrade", "etcdserverpb.Maintenance", "Downgrade"),
    ("/v3/auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    ("/v3/auth/user/changepw", "etcdserverpb.Auth", "UserChangePassword"),
    ("/v3/auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("/v3/auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("/v3/auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    ("/v3/auth/role/grant", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("/v3/auth/role/revoke", "etcdserverpb.Auth", "RoleRevokePermission"),
    ("/v3/lock/lock", "v3lockpb.Lock", "Lock"),
    ("/v3/lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("/v3/election/campaign", "v3electionpb.Election", "Campaign"),
    ("/v3/election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("/v3/election/leader", "v3electionpb.Election", "Leader"),
    ("/v3/election/observe", "v3electionpb.Election", "Observe"),
    ("/v3/election/resign", "v3electionpb.Election", "Resign"),
];

/// Headers that begin like this are metadata of the call.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// This one is, too: a token.
const TOKEN_HEADER: &str = "authorization";

#[derive(Clone)]
struct Method {
    path: http::uri::PathAndQuery,
    input: MessageDescriptor,
    output: MessageDescriptor,
    is_stream: bool,
}

/// All paths with what is called for each.
#[derive(Clone)]
pub struct Gateway(Arc<BTreeMap<&'static str, Method>>);

impl Gateway {
    pub fn new() -> Gateway {
        let pool = DescriptorPool::decode(DESCRIPTORS).expect("written by our own build");
        let methods = ROUTES.iter().map(|(path, service, name)| {
            let service = pool.get_service_by_name(service).expect("a service of ours");
            let method = service.methods().find(|method| method.name() == *name);
            let method = method.expect("a method of that service");
            let call = format!("/{}/{name}", service.full_name());
            let found = Method {
                path: call.parse().expect("names make a path"),
                input: method.input(),
                output: method.output(),
                is_stream: method.is_server_streaming(),
            };
            (*path, found)
        });
        Gateway(Arc::new(methods.collect()))
    }

    pub fn knows(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Answers a request whose body has been read. The path is one that is known.
    pub async fn call(
        &self,
        services: Services,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Response<Body> {
        let Some(method) = self.0.get(path) else {
            return refusal(&Status::new(Code::NotFound, "Not Found"));
        };
        let messages = match parse(&method.input, body) {
            Ok(messages) => messages,
            Err(status) => return refusal(&status),
        };
        let mut request = Request::new(tokio_stream::iter(messages));
        *request.metadata_mut() = metadata_of(headers);
        let codec = ByDescriptor(method.output.clone());
        let mut client = Grpc::new(services);
        let streaming = client.streaming(request, method.path.clone(), codec).await;
        let mut answers = match streaming {
            Ok(answers) => answers.into_inner(),
            Err(status) => return refusal(&status),
        };
        if method.is_stream {
            let body = Body::new(Lines { answers, is_over: false });
            return json(StatusCode::OK, body);
        }
        match answers.message().await {
            Ok(Some(answer)) => json(StatusCode::OK, Body::new(whole(to_json(&answer)))),
            Ok(None) => refusal(&Status::internal("racos: a call ended without an answer")),
            Err(status) => refusal(&status),
        }
    }
}

/// All messages of a body, one after the other; no body is one empty message.
fn parse(input: &MessageDescriptor, body: &[u8]) -> Result<Vec<DynamicMessage>, Status> {
    let mut from = serde_json::Deserializer::from_slice(body);
    let mut messages = Vec::new();
    while from.end().is_err() {
        let message = DynamicMessage::deserialize(input.clone(), &mut from)
            .map_err(|error| Status::invalid_argument(format!("invalid JSON: {error}")))?;
        messages.push(message);
    }
    if messages.is_empty() {
        messages.push(DynamicMessage::new(input.clone()));
    }
    Ok(messages)
}

fn metadata_of(headers: &HeaderMap) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = match name.as_str() {
            name if *name == *TOKEN_HEADER => name,
            name => match name.strip_prefix(METADATA_PREFIX) {
                Some(name) => name,
                None => continue,
            },
        };
        let value = value.to_str().ok().and_then(|text| text.parse().ok());
        if let (Ok(name), Some(value)) = (AsciiMetadataKey::from_bytes(name.as_bytes()), value) {
            metadata.insert(name, value);
        }
    }
    metadata
}

fn to_json(message: &DynamicMessage) -> Vec<u8> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(true)
        .skip_default_fields(true);
    let mut text = Vec::new();
    let mut into = serde_json::Serializer::new(&mut text);
    message.serialize_with_options(&mut into, &options).expect("a message is valid JSON");
    text
}

fn json(status: StatusCode, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .expect("the parts are valid")
}

fn error_json(status: &Status) -> serde_json::Value {
    let (code, text) = (status.code() as i32, status.message());
    serde_json::json!({"error": text, "code": code, "message": text, "details": []})
}

/// An error, with the HTTP status that etcd's gateway gives its code.
pub fn refusal(status: &Status) -> Response<Body> {
    let http = match status.code() {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    };
    let http = StatusCode::from_u16(http).expect("codes of three digits");
    json(http, Body::new(whole(error_json(status).to_string().into_bytes())))
}

/// A body that is there whole.
pub fn whole(bytes: Vec<u8>) -> http_body_util::Full<Bytes> {
    http_body_util::Full::new(bytes.into())
}

/// The answers of a stream, a line of JSON each.
struct Lines {
    answers: Streaming<DynamicMessage>,
    is_over: bool,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let mut line = match std::task::ready!(Pin::new(&mut self.answers).poll_next(context)) {
            None => return Poll::Ready(None),
            Some(Ok(answer)) => [b"{\"result\":", &to_json(&answer)[..], b"}"].concat(),
            Some(Err(status)) => {
                self.is_over = true;
                serde_json::json!({ "error": error_json(&status) }).to_string().into_bytes()
            }
        };
        line.push(b'\n');
        Poll::Ready(Some(Ok(Frame::data(line.into()))))
    }
}

/// Messages whose kind is known at run time only; with the descriptor of the answers.
struct ByDescriptor(MessageDescriptor);

impl Codec for ByDescriptor {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Write;
    type Decoder = Read;

    fn encoder(&mut self) -> Write {
        Write
    }

    fn decoder(&mut self) -> Read {
        Read(self.0.clone())
    }
}

struct Write;

impl Encoder for Write {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(to).map_err(|error| Status::internal(error.to_string()))
    }
}

struct Read(MessageDescriptor);

impl Decoder for Read {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), from);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(path: &str) -> MessageDescriptor {
        Gateway::new().0[path].input.clone()
    }

    #[test]
    fn every_path_stands_for_a_method_that_exists() {
        assert_eq!(Gateway::new().0.len(), ROUTES.len());
    }

    #[test]
    fn messages_follow_each_other_and_none_is_one() {
        let input = input("/v3/kv/put");
        for (body, count) in [
            ("", 1),
            (" \n", 1),
            ("{}", 1),
            (r#"{"key":"Zm9v","value":"YmFy","lease":"7"}"#, 1),
            (r#"{"key":"Zm9v"} {"key":"YmFy","lease":8}"#, 2),
        ] {
            assert_eq!(parse(&input, body.as_bytes()).unwrap().len(), count, "{body}");
        }
        let parsed = parse(&input, br#"{"key":"Zm9v","lease":"7"}"#).unwrap().remove(0);
        let asked: crate::pb::etcdserverpb::PutRequest = parsed.transcode_to().unwrap();
        assert_eq!((&asked.key[..], asked.lease), (&b"foo"[..], 7));
    }

    #[test]
    fn what_is_no_message_is_refused_with_the_reason() {
        let input = input("/v3/kv/put");
        for body in [
            &b"{"[..],
            b"{\"key\": 7}",
            b"{\"key\": \"*\"}",
            b"{\"no such field\": 7}",
            b"{\"key\": \"\xff\xfe\"}",
            b"\xff",
            b"[]",
            b"{} x",
        ] {
            let status = parse(&input, body).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{body:?}");
            assert!(status.message().starts_with("invalid JSON: "), "{status}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&input, deep.as_bytes()).is_err());
    }

    #[test]
    fn answers_have_the_names_and_forms_of_etcds_gateway() {
        use crate::pb::etcdserverpb as pb;
        let header = Some(pb::ResponseHeader { revision: 5, ..Default::default() });
        let kv = crate::pb::mvccpb::KeyValue {
            key: "foo".into(),
            create_revision: 3,
            value: "bar".into(),
            ..Default::default()
        };
        let answer = pb::RangeResponse { header, kvs: vec![kv], more: false, count: 1 };
        let output = Gateway::new().0["/v3/kv/range"].output.clone();
        let message = DynamicMessage::decode(output, &answer.encode_to_vec()[..]).unwrap();
        let expected = r#"{"header":{"revision":"5"},"kvs":[{"key":"Zm9v","create_revision":"3","value":"YmFy"}],"count":"1"}"#;
        assert_eq!(String::from_utf8(to_json(&message)).unwrap(), expected);
    }
}
