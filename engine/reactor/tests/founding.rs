//! Who may begin anew on an empty disk (PROTOCOL 10-ag to 10-al), by whole nodes.

mod common;

use common::{CLUSTER, Cluster, MS, address};
use racos_engine::wire::client::{ErrorCode, Reply, Request};
use racos_engine::wire::node::{Hello, Known, KnownAs, kind};
use racos_net::memory::MemoryLink;
use racos_net::{Identity, Lane, Transport, TransportConfig};
use racos_protocol::Terms;
use racos_storage::device::memory::Timing;

fn value(seed: u8) -> Vec<u8> {
    (0..1300usize).map(|index| (index / 7) as u8 ^ seed).collect()
}

/// Starts a node on an empty disk, and what it ends with.
fn refused(cluster: &mut Cluster, node: usize, disk_id: u128) -> String {
    cluster.wipe(node, disk_id);
    cluster.start(node).unwrap();
    let stopped = cluster.pass_until(3000 * MS, |cluster| {
        assert!(!cluster.node(node).takes_part(), "it must not speak");
        cluster.node(node).failed().is_some()
    });
    assert!(stopped, "{:?}", cluster.node(node).waits_for());
    let why = cluster.node(node).failed().unwrap().to_owned();
    cluster.stop(node);
    why
}

/// tests PROTOCOL 10-ag, 10-ai, 10-al: its directory lost, a node must not vote as if it had promised
/// nothing; it says how it comes back, and comes back so.
#[test]
fn a_node_that_lost_its_disk_is_refused_until_it_is_replaced() {
    let mut cluster = Cluster::new(5, 1, 3);
    for index in 0..8u8 {
        cluster.put(usize::from(index % 5), &[b'k', index], &value(index));
    }
    let why = refused(&mut cluster, 4, 91);
    assert!(why.contains("node 4 by another disk") && why.contains("member replace 4"), "{why}");
    cluster.put(0, b"meanwhile", &value(40));
    cluster.new_disk(4, 92);
    assert_eq!(cluster.replace(0, 4, 1, 92), Ok(()));
    cluster.start(4).unwrap();
    let whole = cluster
        .pass_until(20_000 * MS, |cluster| !cluster.node(0).status().members[4].is_rebuilding);
    assert!(whole && cluster.node(4).takes_part());
    // And again: the incarnation that an empty directory has is older than the one that is a member.
    let why = refused(&mut cluster, 4, 93);
    assert!(why.contains("was replaced before") && why.contains("member replace 4"), "{why}");
    assert_eq!(cluster.get(1, b"meanwhile"), Some(value(40)));
}

/// tests PROTOCOL 10-al: all that it was founded with have left when its directory is lost; those that joined tell
/// it.
#[test]
fn a_node_that_lost_its_disk_is_refused_by_members_that_joined() {
    let mut cluster = Cluster::new(3, 1, 1);
    cluster.put(0, b"k", &value(1));
    cluster.add_observers(&[103, 104]);
    for members in [&[0, 1, 2, 3, 4][..], &[0, 2, 3, 4], &[0, 3, 4]] {
        assert_eq!(cluster.reconfigure(0, members, (1, 1), &[]), Ok(()));
        cluster.pass(2000 * MS);
    }
    for left in [1, 2] {
        let gone = cluster.pass_until(20_000 * MS, |cluster| cluster.node(left).failed().is_some());
        assert!(gone, "node {left} is released, and stops");
        cluster.stop(left);
    }
    let why = refused(&mut cluster, 0, 91);
    assert!(why.contains("node 0 by another disk") && why.contains("member replace 0"), "{why}");
    assert_eq!(cluster.get(3, b"k"), Some(value(1)));
}

/// tests PROTOCOL 10-ag: that the others have worked for long says nothing of a node that was never
/// there.
#[test]
fn a_node_that_was_never_started_comes_in_late() {
    let mut cluster = Cluster::formatted(5, 1, 3, |_| {});
    (0..4).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    cluster.new_session();
    for index in 0..8u8 {
        cluster.put(usize::from(index % 4), &[b'k', index], &value(index));
    }
    assert!(cluster.node(0).exec() > 0);
    cluster.start(4).unwrap();
    cluster.founded();
    let exec = cluster.node(0).exec();
    assert!(cluster.pass_until(3000 * MS, |cluster| cluster.node(4).exec() >= exec));
    // It counts: there is no quorum of four without it now.
    cluster.stop(3);
    cluster.put(4, b"with it", &value(50));
    assert_eq!(cluster.get(4, b"k\x03"), Some(value(3)));
}

/// tests PROTOCOL 10-ag: too few vouch, and it waits, does nothing for anyone, and says for whom.
#[test]
fn with_too_few_to_vouch_a_node_waits() {
    let mut cluster = Cluster::formatted(5, 1, 3, |_| {});
    (0..3).for_each(|node| cluster.start(node).unwrap());
    cluster.pass(3000 * MS);
    for node in 0..3 {
        assert!(!cluster.node(node).takes_part() && cluster.node(node).failed().is_none());
        assert_eq!(cluster.node(node).core().reservation(), 0, "nothing was promised");
    }
    let words = cluster.node(1).waits_for().unwrap();
    assert!(words.contains("3 of the others") && words.contains("2 have"), "{words}");
    assert!(words.ends_with("from 3 (10.0.0.1:4003), 4 (10.0.0.1:4004)"), "{words}");
    match cluster.ask(1, &Request::OpenSession { window: 8 }, &[]) {
        Some((Reply::Error(error), _)) => assert_eq!(error.code, ErrorCode::Unavailable),
        other => panic!("{other:?}"),
    }
    cluster.start(3).unwrap();
    cluster.founded();
    cluster.new_session();
    cluster.put(2, b"k", &value(1));
}

/// Founds a cluster in which power goes at node 0 as soon as it takes part; what it promises when it
/// starts again, all others away, and whether it takes part then.
fn cut_as_it_takes_part(seed: u64) -> (u64, bool) {
    let mut cluster = Cluster::formatted(5, 1, 3, |_| {});
    (0..5).for_each(|node| cluster.start(node).unwrap());
    cluster.hosts[0].disk.borrow_mut().set_timing(Timing::Stepped);
    cluster.hosts[0].disk.borrow_mut().freeze(true);
    cluster.pass(150 * MS);
    assert!((1..5).all(|node| cluster.node(node).takes_part()));
    assert!(!cluster.node(0).takes_part(), "it is vouched for, but its disk stands still");
    cluster.hosts[0].disk.borrow_mut().freeze(false);
    cluster.steps_left = Some(100);
    assert!(cluster.pass_until(500 * MS, |cluster| cluster.node(0).takes_part()));
    cluster.steps_left = None;
    cluster.hosts[0].disk.borrow_mut().power_cut(seed);
    cluster.hosts[0].disk.borrow_mut().set_timing(Timing::Immediate);
    (0..5).for_each(|node| cluster.stop(node));
    cluster.start(0).unwrap();
    (cluster.node(0).core().reservation(), cluster.node(0).takes_part())
}

/// tests PROTOCOL 10-ag: it takes part from the flush of its own note on, and from then on needs nobody
/// to come back, whatever else it had no time to write.
#[test]
fn a_node_that_took_part_needs_nobody_when_it_starts_again() {
    let found: Vec<(u64, bool)> = (1..=6).map(cut_as_it_takes_part).collect();
    assert!(found.iter().all(|(_, takes_part)| *takes_part), "{found:?}");
    // One whose first reservation was lost makes the same again, the others the next one.
    let lost = |(promised, _): &(u64, bool)| found.iter().any(|(other, _)| promised < other);
    assert!(found.iter().any(lost), "nothing else was written: {found:?}");
}

/// tests PROTOCOL 10-ak: notes outlive restarts, checkpoints, and the log before them.
#[test]
fn what_was_noted_is_known_after_restarts_and_checkpoints() {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| {
        bounds.checkpoint_bytes = 64 << 10;
        bounds.space_reserve_bytes = 0;
        bounds.history_slots = 0;
    });
    for index in 0..250u32 {
        cluster.put((index % 5) as usize, &[b'k', (index % 9) as u8], &value(index as u8));
    }
    cluster.stop(2);
    for node in [0, 1, 3, 4] {
        assert!(cluster.node(node).snapshot().generation > 2, "the beginning of the log is gone");
        cluster.stop(node);
        cluster.start(node).unwrap();
    }
    let why = refused(&mut cluster, 2, 91);
    assert!(why.contains("another disk"), "{why}");
}

/// tests PROTOCOL 10-aj: those that came later do not remember who was there before.
#[test]
fn replaced_nodes_do_not_vouch() {
    let mut cluster = Cluster::formatted(5, 1, 3, |_| {});
    (0..4).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    cluster.new_session();
    cluster.put(0, b"k", &value(1));
    for node in [2u8, 3] {
        // The fifth, never started, counts as absent: this one must be there until it is replaced.
        let disk = 60 + u128::from(node);
        assert_eq!(cluster.replace(0, node, 1, disk), Ok(()));
        let index = usize::from(node);
        cluster.pass_until(3000 * MS, |cluster| cluster.node(index).failed().is_some());
        cluster.new_disk(index, disk);
        cluster.start(index).unwrap();
        let whole = cluster.pass_until(20_000 * MS, |cluster| {
            !cluster.node(0).status().members[index].is_rebuilding
        });
        assert!(whole, "node {node}");
    }
    cluster.start(4).unwrap();
    let stopped = cluster.pass_until(3000 * MS, |cluster| cluster.node(4).failed().is_some());
    let why = cluster.node(4).failed().unwrap_or_default();
    assert!(
        stopped && why.contains("nobody can tell") && why.contains("member replace 4"),
        "{why}"
    );
}

/// A disk of node 4 that is made of messages alone.
struct Fake {
    net: Transport<MemoryLink>,
}

impl Fake {
    fn new(cluster: &Cluster) -> Fake {
        let identity =
            Identity { cluster: CLUSTER, node: Some(4), incarnation: 1, boot: 1, lane: Lane::ONLY };
        let (link, pool) = (cluster.hub.link(address(4)), cluster.pool.clone());
        Fake { net: Transport::new(link, identity, pool, TransportConfig::default()) }
    }

    /// Shows itself to a node; its answers.
    fn hello(&mut self, cluster: &mut Cluster, to: usize, disk: u128, part: bool) -> Vec<KnownAs> {
        let mut head = Vec::new();
        let terms = Terms::default();
        Hello { disk, takes_part: part, terms, found: 0 }.put(&mut head);
        self.net.send(address(to), kind::HELLO, &head, &[], cluster.now).unwrap();
        self.net.flush(cluster.now);
        cluster.pass(5 * MS);
        self.answers(cluster)
    }

    fn answers(&mut self, cluster: &Cluster) -> Vec<KnownAs> {
        let mut messages = Vec::new();
        self.net.receive(cluster.now, &mut messages);
        let known = messages.iter().filter(|message| message.kind == kind::KNOWN);
        known.map(|message| Known::get(&message.head).unwrap().known).collect()
    }
}

/// tests PROTOCOL 10-ah, 10-ai: a node vouches for a disk once its note is flushed, for no other one
/// after that, and gives way to one that takes part: it has the vouchers that no other can get.
#[test]
fn a_node_vouches_for_one_disk_and_only_from_the_flush_on() {
    let mut cluster = Cluster::formatted(5, 1, 3, |_| {});
    (0..4).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    let mut fake = Fake::new(&cluster);
    assert_eq!(fake.hello(&mut cluster, 0, 0, false), [KnownAs::Nothing], "only asked");
    cluster.hosts[0].disk.borrow_mut().freeze(true);
    assert_eq!(fake.hello(&mut cluster, 0, 7, false), [], "its disk stands still");
    assert_eq!(fake.hello(&mut cluster, 0, 7, false), [], "nor when asked again");
    assert_eq!(fake.hello(&mut cluster, 0, 8, false), [KnownAs::Other(7)]);
    cluster.hosts[0].disk.borrow_mut().freeze(false);
    cluster.pass(5 * MS);
    assert_eq!(fake.answers(&cluster), [KnownAs::OnlyThis]);
    assert_eq!(fake.hello(&mut cluster, 0, 0, false), [KnownAs::Other(7)]);
    assert_eq!(fake.hello(&mut cluster, 0, 8, true), [KnownAs::OnlyThis]);
    assert_eq!(fake.hello(&mut cluster, 0, 7, false), [KnownAs::Other(8)]);
    assert_eq!(fake.hello(&mut cluster, 0, 7, true), [KnownAs::Other(8)], "never both");
    // The note is there after a restart, power lost.
    cluster.stop(0);
    cluster.start(0).unwrap();
    assert_eq!(fake.hello(&mut cluster, 0, 7, true), [KnownAs::Other(8)]);
}

/// tests PROTOCOL 10-e: a disk that the configuration does not name is told so.
#[test]
fn a_disk_that_no_change_names_is_refused_by_those_that_hear_it() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"k", &value(1));
    cluster.stop(4);
    assert_eq!(cluster.replace(0, 4, 1, 44), Ok(()));
    cluster.new_disk(4, 45);
    // Cut off from everything that would bring it on, it hears one answer.
    let identity =
        Identity { cluster: CLUSTER, node: Some(4), incarnation: 2, boot: 1, lane: Lane::ONLY };
    let (link, pool) = (cluster.hub.link(address(4)), cluster.pool.clone());
    let net = Transport::new(link, identity, pool, TransportConfig::default());
    let mut fake = Fake { net };
    assert_eq!(fake.hello(&mut cluster, 0, 45, true), [KnownAs::Other(44)]);
    assert_eq!(fake.hello(&mut cluster, 0, 44, true), [KnownAs::OnlyThis]);
}
