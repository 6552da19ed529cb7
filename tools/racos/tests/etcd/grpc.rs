//! What every gRPC service offers beside etcd's: health, and a description of itself. And values as large
//! as a request may be.

use crate::client::Client;
use crate::differential::block_on;
use crate::servers::Server;
use racos_etcd::pb::etcdserverpb as pb;
use std::collections::BTreeSet;
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// etcd's limit is 1.5 MiB; racos takes 64 MiB unless told otherwise.
const LARGE: usize = 64 << 20;

async fn reflect(client: &Client, asked: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut reflection = ServerReflectionClient::new(client.channel(1));
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer: ServerReflectionResponse = answers.into_inner().next().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[test]
fn every_node_tells_its_health_and_its_services() {
    let racos = Server::racos("grpc");
    block_on(async {
        let client = Client::connect(&racos.endpoints).await;
        for member in 0..racos.endpoints.len() {
            let mut health = HealthClient::new(client.channel(member));
            let all = HealthCheckRequest { service: String::new() };
            let status = health.check(all).await.unwrap().into_inner().status();
            assert_eq!(status, ServingStatus::Serving, "node {member}");
            let other = HealthCheckRequest { service: "no.such.Service".into() };
            assert_eq!(health.check(other).await.unwrap_err().code(), tonic::Code::NotFound);
        }
        let MessageResponse::ListServicesResponse(listed) =
            reflect(&client, MessageRequest::ListServices(String::new())).await
        else {
            panic!("a list was asked for");
        };
        let listed: BTreeSet<String> = listed.service.into_iter().map(|one| one.name).collect();
        for service in ["KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth"] {
            let name = format!("etcdserverpb.{service}");
            assert!(listed.contains(&name), "{name} is not in {listed:?}");
        }
        for name in ["v3lockpb.Lock", "v3electionpb.Election", "grpc.health.v1.Health"] {
            assert!(listed.contains(name), "{name} is not in {listed:?}");
        }
        let put = MessageRequest::FileContainingSymbol("etcdserverpb.PutRequest".into());
        let described = reflect(&client, put).await;
        assert!(matches!(described, MessageResponse::FileDescriptorResponse(_)), "{described:?}");
    });
}

#[test]
fn a_value_may_be_as_large_as_a_request_and_no_larger() {
    let racos = Server::racos("large");
    block_on(async {
        let client = Client::connect(&racos.endpoints).await;
        let value = |len: usize| (0..len).map(|at| (at / 977) as u8).collect::<Vec<u8>>();
        let put = |value: Vec<u8>| pb::PutRequest {
            key: "large".into(),
            value: value.into(),
            ..Default::default()
        };
        // Room for the key and the framing of both.
        let large = value(LARGE - 1024);
        client.kv(0).put(put(large.clone())).await.unwrap();
        let get = pb::RangeRequest { key: "large".into(), ..Default::default() };
        let got = client.kv(3).range(get).await.unwrap().into_inner();
        assert!(got.kvs[0].value == large, "all of it, at another node");
        let refused = client.kv(0).put(put(value(LARGE + 1024))).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
        assert_eq!(refused.message(), "etcdserver: request is too large");
    });
}
