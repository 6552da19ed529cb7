//! Nodes that are not where others look for them (PROTOCOL 10-am, 10-an), by whole nodes.

mod common;

use common::{Cluster, MS, address};
use racos_machine::Action;

/// Tells the cluster through a node that another one is at the address of this place, and starts it there.
fn move_to(cluster: &mut Cluster, through: usize, node: usize, place: usize) {
    let address = address(place).to_string().into();
    let action = Action::MoveNode { node: node as u8, expected: 1, address };
    assert_eq!(cluster.change(through, action), Ok(()));
    cluster.stop(node);
    cluster.start_at(node, place).unwrap();
}

/// tests PROTOCOL 10-am, 10-an: it was away when another one moved, and who could have told it is gone.
#[test]
fn a_node_that_was_away_finds_one_that_moved_meanwhile() {
    let mut cluster = Cluster::new(3, 1, 1);
    cluster.put(0, b"before", b"1");
    cluster.stop(2);
    move_to(&mut cluster, 0, 1, 11);
    cluster.put(0, b"meanwhile", b"2");
    cluster.stop(0);
    cluster.start(2).unwrap();
    let knows = |cluster: &Cluster, node: usize| {
        cluster.node(node).machine().members().address(1) == Some(&*address(11).to_string())
    };
    assert!(!knows(&cluster, 2));
    assert!(cluster.pass_until(10_000 * MS, |cluster| knows(cluster, 2)), "it is told");
    cluster.put(2, b"after", b"3");
    for (key, value) in [(&b"before"[..], b"1"), (b"meanwhile", b"2"), (b"after", b"3")] {
        assert_eq!(cluster.get(2, key).as_deref(), Some(&value[..]));
    }
}

/// tests PROTOCOL 10-am, 10-an: its configuration says where everybody was at the founding; all have moved.
#[test]
fn a_new_disk_finds_members_that_have_all_moved() {
    let mut cluster = Cluster::new(3, 1, 1);
    cluster.put(2, b"before", b"1");
    move_to(&mut cluster, 2, 0, 10);
    move_to(&mut cluster, 2, 1, 11);
    cluster.new_disk(2, 44);
    // Asked where it is by now.
    assert_eq!(cluster.replace(10, 2, 1, 44), Ok(()));
    cluster.start(2).unwrap();
    let whole = |cluster: &mut Cluster| {
        let status = cluster.node(2).status();
        status.is_active && !status.members[2].is_rebuilding
    };
    assert!(cluster.pass_until(20_000 * MS, whole), "{:?}", cluster.node(2).status().members);
    assert_eq!(cluster.get(2, b"before").as_deref(), Some(&b"1"[..]));
}

/// tests PROTOCOL 10-an, 10-al: nobody whom it asks is where it asks; those who know of its disk speak to it.
#[test]
fn an_empty_disk_is_told_by_members_that_have_all_moved() {
    let mut cluster = Cluster::new(3, 1, 1);
    move_to(&mut cluster, 2, 0, 10);
    move_to(&mut cluster, 2, 1, 11);
    cluster.stop(2);
    cluster.wipe(2, 44);
    cluster.start(2).unwrap();
    let stopped = |cluster: &mut Cluster| cluster.node(2).failed().is_some();
    assert!(cluster.pass_until(10_000 * MS, stopped), "it is told");
    assert!(cluster.node(2).failed().unwrap().contains("racos member replace 2"));
}
