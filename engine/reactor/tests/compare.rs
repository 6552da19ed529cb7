//! Nodes whose states are not the same though they have executed the same slots (PROTOCOL 9.2-a).

mod common;

use common::{Cluster, MS};

/// Nodes of which these have machines of another build, as it were: one that keeps more versions. The
/// bound is part of the state.
fn cluster(n: usize, odd: &[usize]) -> Cluster {
    let mut cluster = Cluster::formatted(n, 1, if n == 3 { 1 } else { 3 }, |_| {});
    for node in odd {
        cluster.hosts[*node].config.versions_per_key_max = 9;
    }
    (0..n).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    cluster
}

fn running(cluster: &Cluster) -> Vec<usize> {
    let nodes = 0..cluster.hosts.len();
    nodes.filter(|node| cluster.node(*node).failed().is_none()).collect()
}

/// tests PROTOCOL 9.2-a: at rest, with nothing executed.
#[test]
fn a_node_with_another_state_than_the_others_stops_and_names_both() {
    let mut cluster = cluster(5, &[2]);
    assert!(cluster.pass_until(3000 * MS, |cluster| cluster.node(2).failed().is_some()));
    let why = cluster.node(2).failed().unwrap().to_owned();
    let hash = |node: usize| format!("{:032x}", cluster.node(node).machine().state_hash());
    assert!(why.contains(&hash(2)) && why.contains(&hash(0)), "{why}");
    assert!(why.contains("with all slots below 0 executed"), "{why}");
    assert!(why.contains("`racos member replace 2`"), "{why}");
    cluster.pass(5000 * MS);
    assert_eq!(running(&cluster), [0, 1, 3, 4]);
    let status = cluster.node(0).status();
    assert_eq!(status.states.differing, [2]);
    let problem = status.problem.expect("those that go on say so");
    assert!(problem.contains("node 2 is not that of this one"), "{problem}");
    assert!(problem.contains("that of nodes 1, 3, 4 too"), "{problem}");
    // It was right to stop: with the machine of the others it is one of them again.
    cluster.hosts[2].config.versions_per_key_max = 4;
    cluster.stop(2);
    cluster.start(2).unwrap();
    let healed = |cluster: &mut Cluster| cluster.node(0).status().states.differing.is_empty();
    assert!(cluster.pass_until(3000 * MS, healed));
    assert_eq!(cluster.node(0).status().problem, None);
    assert!(cluster.node(2).status().states.compared > 0);
}

/// tests PROTOCOL 9.2-a: with no third that could say who is right.
#[test]
fn of_two_that_differ_both_say_so_and_go_on() {
    let mut cluster = Cluster::formatted(3, 1, 1, |_| {});
    (0..3).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    (0..3).for_each(|node| cluster.stop(node));
    cluster.hosts[1].config.versions_per_key_max = 9;
    (0..2).for_each(|node| cluster.start(node).unwrap());
    let told = |cluster: &mut Cluster| {
        (0..2).all(|node| cluster.node(node).status().states.differing == [1 - node as u8])
    };
    assert!(cluster.pass_until(3000 * MS, told));
    for (node, other) in [(0, 1), (1, 0)] {
        let problem = cluster.node(node).status().problem.expect("it is said");
        assert!(problem.contains(&format!("the state of node {other} is not that")), "{problem}");
        assert!(problem.contains("nobody else can say which"), "{problem}");
    }
    cluster.pass(10_000 * MS);
    assert!((0..2).all(|node| cluster.node(node).failed().is_none()));
    // The third one says it.
    cluster.start(2).unwrap();
    assert!(cluster.pass_until(3000 * MS, |cluster| cluster.node(1).failed().is_some()));
    cluster.pass(5000 * MS);
    assert_eq!(running(&cluster), [0, 2]);
}

/// tests PROTOCOL 9.2-a: under work no two nodes are at the same slot when they tell.
#[test]
fn states_are_compared_while_slots_are_executed_and_after_restarts_and_jumps() {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| {
        bounds.checkpoint_bytes = 64 << 10;
        bounds.space_reserve_bytes = 0;
        bounds.history_slots = 0;
    });
    cluster.stop(4);
    for round in 0..4u8 {
        for index in 0..200u8 {
            cluster.put(usize::from(index % 4), &[b'k', index], &[round; 1300]);
        }
        cluster.pass(600 * MS);
        cluster.stop(usize::from(round));
        cluster.start(usize::from(round)).unwrap();
    }
    cluster.start(4).unwrap();
    let arrived = |cluster: &mut Cluster| cluster.node(4).exec() == cluster.node(0).exec();
    assert!(cluster.pass_until(20_000 * MS, arrived));
    assert!(cluster.node(4).jumps() > 0, "it took a state");
    (0..20u8).for_each(|index| cluster.put(4, &[b'l', index], &[index; 1300]));
    cluster.pass(2000 * MS);
    for node in 0..5 {
        let states = cluster.node(node).status().states;
        assert!(states.same_until >= 64 && states.differing.is_empty(), "{node}: {states:?}");
    }
}
