//! A node joins a running cluster, and another leaves, through etcd's API and by etcdctl where there is
//! one.

use crate::client::Client;
use crate::differential::block_on;
use crate::etcdctl::Etcdctl;
use crate::http;
use crate::servers::Server;
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::cluster_client::ClusterClient;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address where no node is.
const NOWHERE: &str = "--peer-urls=http://127.0.0.1:9";

type Members = ClusterClient<Channel>;

#[test]
fn members_come_and_go_through_etcds_api() {
    let mut racos = Server::racos("members");
    let etcdctl = Etcdctl::of(&racos);
    block_on(exercise(&mut racos, etcdctl.as_ref()));
}

async fn exercise(racos: &mut Server, etcdctl: Option<&Etcdctl>) {
    let founders = Client::connect(&racos.endpoints).await;
    let mut cluster = ClusterClient::new(founders.channel(0));
    let nobody = add(&mut cluster, "127.0.0.1:9").await.expect_err("nobody is there");
    assert_eq!(nobody.code(), Code::FailedPrecondition);
    assert!(nobody.message().contains("looks on at 127.0.0.1:9: start it first"), "{nobody}");

    let (peer, face) = racos.join(5);
    let mut joined = match etcdctl {
        Some(ctl) => {
            let urls = format!("--peer-urls=http://{peer}");
            ctl.good(&["member", "add", "node5", &urls])
        }
        None => format!("{:?}", add(&mut cluster, &format!("http://{peer}")).await.unwrap()),
    };
    joined.make_ascii_lowercase();
    assert!(joined.contains("node5"), "{joined}");
    let again = add(&mut cluster, &peer).await.expect_err("it is a member");
    assert_eq!(again.message(), "etcdserver: Peer URLs already exists");

    // Every node tells it, and where its clients go.
    for (member, endpoint) in racos.endpoints.iter().enumerate() {
        wait_until(async || {
            let mut cluster = ClusterClient::new(founders.channel(member));
            let listed = list(&mut cluster).await;
            let last = listed.last().expect("there are members");
            let at = (vec![format!("udp://{peer}")], vec![format!("http://{face}")]);
            listed.len() == 6
                && (&last.name[..], &last.peer_ur_ls, &last.client_ur_ls) == ("node5", &at.0, &at.1)
        })
        .await
        .unwrap_or_else(|| panic!("{endpoint} does not tell of it"));
    }
    if let Some(ctl) = etcdctl {
        let listed = ctl.good(&["member", "list"]);
        let line = format!(", started, node5, udp://{peer}, http://{face}");
        assert!(listed.lines().count() == 6 && listed.contains(&line), "{listed}");
    }
    let new = Client::connect(&[format!("http://{face}")]).await;
    let put = pb::PutRequest { key: "a".into(), value: vec![7; 5000].into(), ..Default::default() };
    let revision =
        new.kv(0).put(put).await.expect("it serves").into_inner().header.unwrap().revision;

    let large =
        pb::PutRequest { value: vec![7; 1_200_000].into(), key: "b".into(), ..Default::default() };
    let refused = new.kv(0).put(large.clone()).await.expect_err("more than it was told to take");
    assert_eq!(refused.message(), "etcdserver: request is too large");
    founders.kv(0).put(large).await.expect("others take more");

    leaves(racos, &founders, etcdctl).await;
    let asked = pb::RangeRequest { key: "a".into(), ..Default::default() };
    // Node 2 has gone: it tells no more than what it knows itself.
    let refused = founders.kv(2).range(asked.clone()).await.expect_err("it is no member");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
    let own = pb::RangeRequest { serializable: true, ..asked.clone() };
    for (mut kv, asked) in [(new.kv(0), &asked), (founders.kv(1), &asked), (founders.kv(2), &own)] {
        let found = kv.range(asked.clone()).await.unwrap().into_inner();
        assert_eq!((found.kvs[0].mod_revision, found.kvs[0].value.len()), (revision, 5000));
    }
}

/// One goes; no other may; one moves to where nobody is, and back.
async fn leaves(racos: &Server, founders: &Client, etcdctl: Option<&Etcdctl>) {
    let cluster = &mut ClusterClient::new(founders.channel(0));
    let listed = list(cluster).await;
    let (second, third) = (listed[2].id, listed[3].id);
    match etcdctl {
        Some(ctl) => {
            let told = ctl.good(&["member", "remove", &format!("{second:x}")]);
            assert!(told.contains("removed from cluster"), "{told}");
            // The one that went refuses what the others do.
            let ctl = Etcdctl::at(&racos.endpoints[4]);
            let told = ctl.bad(&["member", "remove", &format!("{third:x}")]);
            assert!(told.contains("not enough started members"), "{told}");
            let told = ctl.good(&["member", "update", &format!("{third:x}"), NOWHERE]);
            assert!(told.contains("updated in cluster"), "{told}");
        }
        None => {
            let asked = pb::MemberRemoveRequest { id: second };
            cluster.member_remove(asked).await.expect("five are enough");
        }
    }
    let endpoint = racos.endpoints[2].trim_start_matches("http://");
    let (status, page) = http::ask(endpoint, "GET", "/health", b"");
    assert!(status == 503 && page.contains("node 2 was removed; ask another"), "{page}");
    let put = pb::PutRequest { key: "c".into(), value: "d".into(), ..Default::default() };
    let refused = founders.kv(2).put(put).await.expect_err("it is no member any more");
    let stopped = (Code::Unavailable, "etcdserver: server stopped");
    assert_eq!((refused.code(), refused.message()), stopped);
    let names: Vec<String> = list(cluster).await.into_iter().map(|member| member.name).collect();
    assert_eq!(names, ["node0", "node1", "node3", "node4", "node5"]);
    let gone = cluster.member_remove(pb::MemberRemoveRequest { id: second }).await;
    assert_eq!(gone.expect_err("it is gone").message(), "etcdserver: member not found");
    let update = |id, urls: &[String]| pb::MemberUpdateRequest { id, peer_ur_ls: urls.to_vec() };
    let theirs = update(third, &listed[4].peer_ur_ls);
    let refused = cluster.member_update(theirs).await.expect_err("somebody is there");
    assert_eq!(refused.message(), "etcdserver: Peer URLs already exists");
    let refused = cluster.member_update(update(third, &["http://0.0.0.0:7".into()])).await;
    assert!(refused.expect_err("nowhere").message().contains("give IP:PORT"));
    for url in ["udp://127.0.0.1:9".to_string(), listed[3].peer_ur_ls[0].clone()] {
        for _ in 0..2 {
            let moved = cluster.member_update(update(third, std::slice::from_ref(&url))).await;
            let moved = moved.expect("it may be anywhere").into_inner().members;
            let urls = moved.iter().map(|it| (it.id, &it.peer_ur_ls[0])).collect::<Vec<_>>();
            assert!(urls.len() == 5 && urls.contains(&(third, &url)), "{urls:?}");
        }
    }
}

async fn add(cluster: &mut Members, url: &str) -> Result<pb::MemberAddResponse, tonic::Status> {
    let asked = pb::MemberAddRequest { peer_ur_ls: vec![url.into()], ..Default::default() };
    cluster.member_add(asked).await.map(tonic::Response::into_inner)
}

async fn list(cluster: &mut Members) -> Vec<pb::Member> {
    let asked = pb::MemberListRequest { linearizable: true };
    cluster.member_list(asked).await.expect("members are listed").into_inner().members
}

/// Looks until it is so; `None` if it is not in time.
async fn wait_until(mut is_so: impl AsyncFnMut() -> bool) -> Option<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Some(())
}
