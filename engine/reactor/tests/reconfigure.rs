//! Other members, and another f and k, by whole nodes (PROTOCOL 10).

mod common;

use common::{Cluster, MS, address};
use racos_engine::api::types::{Error, MembersAnswer};
use racos_engine::api::{Handle, Pending};
use racos_engine::wire::client::{ErrorCode, Reply, Request};
use racos_engine::wire::node::get_keys;
use racos_machine::{Action, Reconfigure, Revision};

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn key(index: u8) -> [u8; 2] {
    [b'k', index]
}

/// Small, coded and large values.
fn len(index: u8) -> usize {
    [40, 1300, 5000, 70_000][usize::from(index % 4)]
}

fn put(cluster: &mut Cluster, at: usize, index: u8) {
    cluster.put(at, &key(index), &value(len(index), index));
}

fn readable(cluster: &mut Cluster, at: usize, indices: std::ops::Range<u8>) {
    for index in indices {
        let found = cluster.get(at, &key(index));
        assert!(found == Some(value(len(index), index)), "{index} at node {at}");
    }
}

/// Lets time pass until the newest change is in effect at these nodes.
fn in_effect(cluster: &mut Cluster, nodes: &[usize]) {
    let effect = nodes.iter().map(|node| cluster.node(*node).machine().members().effect()).max();
    let effect = effect.expect("some node");
    let done = cluster.pass_until(5000 * MS, |cluster| {
        nodes.iter().all(|node| cluster.node(*node).exec() >= effect)
    });
    let execs: Vec<u64> = nodes.iter().map(|node| cluster.node(*node).exec()).collect();
    assert!(done, "{execs:?} of {effect}");
}

fn equal(cluster: &Cluster, nodes: &[usize]) {
    let hash = |node: usize| {
        let machine = cluster.node(node).machine();
        assert_eq!(machine.state_hash(), machine.full_hash());
        (cluster.node(node).exec(), machine.state_hash())
    };
    let last = nodes.iter().map(|node| hash(*node)).max().expect("some node");
    let same: Vec<u64> = nodes
        .iter()
        .map(|node| hash(*node))
        .filter(|it| it.0 == last.0)
        .map(|it| it.1 as u64)
        .collect();
    assert!(same.iter().all(|hash| *hash == last.1 as u64));
}

/// Three nodes, two that look on, and some data.
fn three_and_two() -> Cluster {
    // What is written stays as it was written.
    let mut cluster = Cluster::bounded(3, 1, 1, |bounds| bounds.recode_bytes_per_s = 0);
    (0..16).for_each(|index| put(&mut cluster, usize::from(index % 3), index));
    cluster.add_observers(&[103, 104]);
    // One of them is started again before it is a member.
    cluster.stop(4);
    cluster.start(4).unwrap();
    cluster
}

/// tests PROTOCOL 10-l, 10-m, 10-n, 10-p, 10-t, 10-w: three nodes become five with another code, then
/// four: everything is readable through every member all the time, what was written before has the
/// layout that it was written in, and a restart of all finds the members on the disks.
#[test]
fn a_cluster_grows_and_shrinks_with_everything_readable() {
    let mut cluster = three_and_two();
    match cluster.ask(3, &Request::Get { key: key(1).to_vec() }, &[]) {
        Some((Reply::Error(error), _)) => assert_eq!(error.code, ErrorCode::Unavailable),
        other => panic!("{other:?}"),
    }
    assert_eq!(cluster.reconfigure(1, &[0, 1, 2, 3, 4], (1, 3), &[]), Ok(()));
    readable(&mut cluster, 0, 0..16);
    in_effect(&mut cluster, &[0, 1, 2, 3, 4]);
    let status = cluster.node(4).status();
    assert_eq!((status.n, status.f, status.k, status.is_active), (5, 1, 3, true));
    for node in 0..5 {
        put(&mut cluster, node, 16 + node as u8);
        readable(&mut cluster, node, 0..16);
    }
    // Any one of five may be down: values of both layouts, reads and writes.
    for down in [4, 0] {
        cluster.stop(down);
        put(&mut cluster, 2, 21 + down as u8);
        readable(&mut cluster, 1, 0..21);
        readable(&mut cluster, 3, 0..21);
        cluster.start(down).unwrap();
        cluster.pass(300 * MS);
    }
    equal(&cluster, &[0, 1, 2, 3, 4]);
    // Without work no slot is used: none of those who joined takes its own for slots it may have opened.
    cluster.pass(1000 * MS);
    let exec = cluster.node(0).exec();
    cluster.pass(1000 * MS);
    assert_eq!(cluster.node(0).exec(), exec);
    // Node 1 leaves: what was written before lies on it until it is overwritten.
    assert_eq!(cluster.reconfigure(2, &[0, 2, 3, 4], (1, 2), &[]), Ok(()));
    in_effect(&mut cluster, &[0, 1, 2, 3, 4]);
    put(&mut cluster, 4, 30);
    readable(&mut cluster, 4, 0..21);
    match cluster.ask(1, &Request::Get { key: key(1).to_vec() }, &[]) {
        Some((Reply::Error(error), _)) => assert!(error.text.contains("was removed")),
        other => panic!("{other:?}"),
    }
    let left = &cluster.node(0).status().members[1];
    assert!(!left.is_member && !left.is_released && left.values > 0, "{left:?}");
    // All stop, and come back with the founding list in their configuration.
    (0..5).for_each(|node| cluster.stop(node));
    (0..5).for_each(|node| cluster.start(node).unwrap());
    cluster.pass(500 * MS);
    for node in [0, 2, 3, 4] {
        readable(&mut cluster, node, 0..21);
        let status = cluster.node(node).status();
        assert_eq!((status.n, status.f, status.k), (4, 1, 2));
    }
    put(&mut cluster, 3, 31);
    equal(&cluster, &[0, 2, 3, 4]);
    // What lies on node 1 is overwritten, version by version: it is released, and stops.
    for round in 0..5 {
        for index in 0..32 {
            put(&mut cluster, [0, 2, 3, 4][usize::from(index + round) % 4], index);
        }
    }
    let released = |cluster: &mut Cluster| {
        cluster.node(0).status().members[1].is_released && cluster.node(1).failed().is_some()
    };
    assert!(cluster.pass_until(10_000 * MS, released), "{:?}", cluster.node(0).status().members);
    readable(&mut cluster, 0, 0..32);
}

/// tests PROTOCOL 10-c, 10-i, 10-j, 10-k: what would break the promise is refused, and the
/// reply says why.
#[test]
fn a_reconfiguration_that_would_break_the_promise_is_refused() {
    let mut cluster = three_and_two();
    let why = |result: Result<(), String>| result.expect_err("it must be refused");
    let reason = why(cluster.reconfigure(0, &[0, 1, 2, 3], (1, 3), &[]));
    assert!(reason.contains("at least 2f+k"), "{reason}");
    let reason = why(cluster.reconfigure(0, &[0, 1, 2, 4], (1, 1), &[]));
    assert!(reason.contains("next number"), "{reason}");
    assert_eq!(cluster.node(0).status().epoch, 1);
    assert_eq!(cluster.reconfigure(0, &[0, 1, 2, 3], (1, 2), &[]), Ok(()));
    in_effect(&mut cluster, &[0, 1, 2, 3]);
    // One is lost and removed as lost; of the values written before, no second one may be.
    cluster.stop(2);
    assert_eq!(cluster.reconfigure(0, &[0, 1, 3], (1, 1), &[2]), Ok(()));
    in_effect(&mut cluster, &[0, 1, 3]);
    put(&mut cluster, 3, 40);
    readable(&mut cluster, 0, 0..16);
    let reason = why(cluster.reconfigure(0, &[0, 3], (0, 1), &[1]));
    assert!(reason.contains("as many nodes as may be lost"), "{reason}");
    let reason = why(cluster.change(0, Action::NodeLost { node: 1 }));
    assert!(reason.contains("is a member"), "{reason}");
    let reason = why(cluster.replace(0, 2, 1, 99));
    assert!(reason.contains("no member"), "{reason}");
}

/// tests PROTOCOL 10-ja: old versions too, page by page.
#[test]
fn what_a_forced_change_puts_at_risk_is_listed_before() {
    let mut cluster = three_and_two();
    assert_eq!(cluster.reconfigure(0, &[0, 1, 2, 3], (1, 2), &[]), Ok(()));
    in_effect(&mut cluster, &[0, 1, 2, 3]);
    cluster.stop(2);
    assert_eq!(cluster.reconfigure(0, &[0, 1, 3], (1, 1), &[2]), Ok(()));
    in_effect(&mut cluster, &[0, 1, 3]);
    let members = cluster.node(0).machine().members().clone();
    let forced = Action::Reconfigure(Box::new(Reconfigure {
        expected: members.epoch(),
        members: vec![0, 3],
        joining: Vec::new(),
        lost_max: 0,
        data: 1,
        lost: vec![1],
        is_forced: true,
    }));
    let list = |cluster: &mut Cluster, action: &Action| {
        let (mut found, mut after) = (Vec::new(), (Vec::new(), Revision::default()));
        loop {
            let asked = Request::AtRisk { action: action.clone(), after };
            match cluster.ask(0, &asked, &[]).expect("an answer comes") {
                (Reply::AtRisk { next }, body) => {
                    found.extend(get_keys(&body).unwrap());
                    match next {
                        Some(next) => after = next,
                        None => return Ok(found),
                    }
                }
                (Reply::Error(error), _) => return Err(error.text),
                (other, _) => panic!("{other:?}"),
            }
        }
    };
    let expected: Vec<(Vec<u8>, u64)> = {
        let machine = cluster.node(0).machine();
        let newest = members.newest().unwrap().number;
        let all = machine.versions_after(b"", Revision::default());
        let older = all.filter(|(_, version)| version.values().any(|it| it.layout != newest));
        older.map(|(key, version)| (key.to_vec(), version.modified().main)).collect()
    };
    assert!(!expected.is_empty(), "values of before lie as they did");
    let listed = list(&mut cluster, &forced).unwrap();
    let listed: Vec<_> = listed.into_iter().map(|entry| (entry.key, entry.revision)).collect();
    assert_eq!(listed, expected);
    // One that the promise bears puts nothing at risk; one that can never be is refused here, too.
    let allowed = |expected| Reconfigure {
        expected,
        members: vec![0, 1, 3],
        joining: Vec::new(),
        lost_max: 1,
        data: 1,
        lost: Vec::new(),
        is_forced: true,
    };
    let harmless = Action::Reconfigure(Box::new(allowed(members.epoch())));
    assert_eq!(list(&mut cluster, &harmless).map(|found| found.len()), Ok(0));
    let stale = Action::Reconfigure(Box::new(allowed(members.epoch() + 1)));
    assert!(list(&mut cluster, &stale).is_err());
}

/// Opens a node's door for other threads.
fn door(cluster: &mut Cluster, node: usize) -> Handle {
    cluster.hosts[node].node.as_mut().expect("it runs").open_api(Box::new(|| {}))
}

fn told(
    cluster: &mut Cluster,
    mut pending: Pending<MembersAnswer>,
) -> Result<MembersAnswer, Error> {
    let mut answer = None;
    cluster.pass_until(6000 * MS, |_| {
        answer = pending.try_take();
        answer.is_some()
    });
    answer.expect("an answer comes")
}

fn nodes(answer: &MembersAnswer) -> Vec<u8> {
    answer.members.iter().map(|member| member.node).collect()
}

/// tests PROTOCOL 10-m: who holds a door to a node lists, adds and removes members through it; what cannot
/// be is refused with what to do.
#[test]
fn members_come_and_go_through_a_door() {
    let mut cluster = three_and_two();
    let (zero, one) = (door(&mut cluster, 0), door(&mut cluster, 1));
    let three = door(&mut cluster, 3);
    let refused = |answer: Result<MembersAnswer, Error>| match answer {
        Err(Error::MemberRefused(text)) => text,
        other => panic!("{other:?}"),
    };
    let asked = zero.member_add(address(60));
    let text = refused(told(&mut cluster, asked));
    assert!(text.contains("no node of this cluster looks on") && text.contains("node 3"), "{text}");
    let asked = zero.member_add(address(4));
    let text = refused(told(&mut cluster, asked));
    assert!(text.contains("is node 4, the next one that joins is node 3"), "{text}");
    let asked = zero.member_add(address(2));
    assert_eq!(told(&mut cluster, asked), Err(Error::MemberExists));

    let asked = one.member_add(address(3));
    let added = told(&mut cluster, asked).expect("it looks on and has caught up");
    assert_eq!(nodes(&added), [0, 1, 2, 3]);
    assert_eq!(added.id, added.members[3].id);
    assert_eq!(cluster.node(1).machine().members().effect(), cluster.node(1).exec());
    three.announce("db3:2379");
    // It says so now and then.
    cluster.pass(2500 * MS);
    let asked = zero.members(false);
    let listed = told(&mut cluster, asked).expect("a quorum is there");
    assert_eq!(listed.members[3].id, added.id, "all nodes know it by one id");
    let clients: Vec<_> = listed.members.iter().map(|it| it.clients.as_deref()).collect();
    assert_eq!(clients, [None, None, None, Some("db3:2379")]);
    let asked = three.members(false);
    assert_eq!(told(&mut cluster, asked).expect("a member").members, listed.members);
    put(&mut cluster, 3, 30);

    let asked = zero.member_remove(listed.members[1].id);
    assert_eq!(nodes(&told(&mut cluster, asked).expect("three are enough")), [0, 2, 3]);
    let asked = zero.member_remove(listed.members[1].id);
    assert_eq!(told(&mut cluster, asked), Err(Error::MemberNotFound));
    let asked = zero.member_remove(listed.members[2].id);
    let answer = told(&mut cluster, asked);
    assert!(
        matches!(&answer, Err(Error::TooFewMembers(text)) if text.contains("2f + k")),
        "{answer:?}"
    );
    // Another one may join while one of three is down, not while two are.
    cluster.stop(2);
    cluster.stop(3);
    cluster.pass(4000 * MS);
    let asked = zero.member_add(address(4));
    let answer = told(&mut cluster, asked);
    assert!(matches!(answer, Err(Error::MembersUnhealthy(_))), "{answer:?}");
    cluster.start(3).unwrap();
    cluster.pass(1000 * MS);
    let asked = zero.member_add(address(4));
    assert_eq!(nodes(&told(&mut cluster, asked).expect("three of four live")), [0, 2, 3, 4]);
}

/// tests PROTOCOL 10-o, 10-ae: a dead node is removed as lost by the others, and the cluster goes on
/// with f down again.
#[test]
fn a_lost_node_is_removed_and_another_one_may_fail() {
    let mut cluster = Cluster::new(5, 1, 3);
    (0..12).for_each(|index| put(&mut cluster, usize::from(index % 5), index));
    cluster.stop(0);
    assert_eq!(cluster.reconfigure(1, &[1, 2, 3, 4], (1, 2), &[0]), Ok(()));
    in_effect(&mut cluster, &[1, 2, 3, 4]);
    cluster.stop(4);
    put(&mut cluster, 3, 20);
    assert_eq!(cluster.get(1, &key(20)), Some(value(len(20), 20)));
    readable(&mut cluster, 2, 0..12);
}

/// tests PROTOCOL 3.2-g, 10-z: all whom a node knew have left while it was away: it finds the others through
/// an address that it is given, and not without.
#[test]
fn a_node_that_knows_none_of_the_living_asks_whom_it_is_told_to() {
    let mut cluster = Cluster::new(1, 0, 1);
    (0..6).for_each(|index| put(&mut cluster, 0, index));
    cluster.add_observers(&[101, 102]);
    // One that looks on does not hear of the change.
    cluster.stop(2);
    assert_eq!(cluster.reconfigure(0, &[0, 1], (0, 1), &[]), Ok(()));
    in_effect(&mut cluster, &[0, 1]);
    assert_eq!(cluster.reconfigure(1, &[1], (0, 1), &[]), Ok(()));
    in_effect(&mut cluster, &[0, 1]);
    // What lies on it is overwritten, version by version.
    (0..30).for_each(|round| put(&mut cluster, 1, round % 6));
    let released = |cluster: &mut Cluster| cluster.node(0).failed().is_some();
    assert!(cluster.pass_until(10_000 * MS, released), "nothing lies on it any more");
    cluster.stop(0);
    put(&mut cluster, 1, 9);
    let exec = cluster.node(1).exec();
    cluster.start(2).unwrap();
    assert!(!cluster.pass_until(5000 * MS, |cluster| cluster.node(2).exec() >= exec));
    cluster.stop(2);
    cluster.hosts[2].config.contacts = vec![common::address(1)];
    cluster.start(2).unwrap();
    assert!(cluster.pass_until(5000 * MS, |cluster| cluster.node(2).exec() >= exec));
    equal(&cluster, &[1, 2]);
}

/// tests PROTOCOL 10-aj: whoever leaves does not vouch any more: first come all that will need it.
#[test]
fn nobody_leaves_while_a_member_has_never_taken_part() {
    let mut cluster = Cluster::formatted(5, 1, 2, |_| {});
    (0..4).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    cluster.new_session();
    let why = cluster.reconfigure(0, &[0, 1, 2, 4], (1, 2), &[]).unwrap_err();
    assert!(why.contains("node 4 was never heard") && why.contains("start it first"), "{why}");
    cluster.start(4).unwrap();
    cluster.founded();
    cluster.pass(1000 * MS);
    // That it has taken part is known of one that is down, too, and after a restart.
    for node in [4, 0] {
        cluster.stop(node);
    }
    cluster.start(0).unwrap();
    assert_eq!(cluster.reconfigure(0, &[0, 1, 2, 4], (1, 2), &[]), Ok(()));
}
