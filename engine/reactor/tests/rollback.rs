//! Disks that are put back to what they held earlier (PROTOCOL 4.4-n, 9.1-j), by whole nodes.

mod common;

use common::{Cluster, MS};
use racos_storage::device::FileId;

fn value(seed: u8) -> Vec<u8> {
    (0..1300usize).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn work(cluster: &mut Cluster, puts: u8) {
    for index in 0..puts {
        cluster.put(usize::from(index % 3), &[b'k', index], &value(index));
    }
}

type Image = Vec<(FileId, Vec<u8>)>;

/// What an administrator copies while the node runs.
fn image(cluster: &Cluster, node: usize) -> Image {
    let disk = cluster.hosts[node].disk.borrow();
    disk.files().into_iter().map(|file| (file, disk.contents(file).unwrap())).collect()
}

fn put_back(cluster: &mut Cluster, node: usize, image: &Image) {
    let mut disk = cluster.hosts[node].disk.borrow_mut();
    disk.files().into_iter().for_each(|file| disk.remove(file));
    image.iter().for_each(|(file, bytes)| disk.put_file(*file, bytes));
}

/// Starts a node, and what it ends with.
fn refused(cluster: &mut Cluster, node: usize) -> Option<String> {
    cluster.start(node).unwrap();
    cluster.pass_until(3000 * MS, |cluster| cluster.node(node).failed().is_some());
    cluster.node(node).failed().map(str::to_owned)
}

/// tests PROTOCOL 9.1-j, 4.4-n: in one and the same boot it wrote more than the image has.
#[test]
fn a_disk_that_is_put_back_is_refused_and_replaced() {
    let mut cluster = Cluster::new(5, 1, 3);
    work(&mut cluster, 20);
    let image = image(&cluster, 4);
    work(&mut cluster, 40);
    cluster.pass(1000 * MS);
    cluster.stop(4);
    put_back(&mut cluster, 4, &image);
    let why = refused(&mut cluster, 4).expect("it has forgotten what it promised");
    assert!(why.contains("put back to what it held earlier"), "{why}");
    assert!(why.contains("`racos member replace 4`"), "{why}");
    cluster.stop(4);
    cluster.put(0, b"meanwhile", &value(40));
    cluster.new_disk(4, 92);
    assert_eq!(cluster.replace(0, 4, 1, 92), Ok(()));
    cluster.start(4).unwrap();
    let is_whole = |cluster: &mut Cluster| !cluster.node(0).status().members[4].is_rebuilding;
    assert!(cluster.pass_until(20_000 * MS, is_whole));
    assert_eq!(cluster.get(4, b"meanwhile"), Some(value(40)));
}

/// tests PROTOCOL 9.1-j, 10-al: an image of before it took part, and an empty disk that was started again
/// and again: neither takes part, and each is told what it is.
#[test]
fn a_disk_that_does_not_take_part_is_told_why() {
    let mut cluster = Cluster::formatted(5, 1, 3, |_| {});
    let image = image(&cluster, 4);
    (0..5).for_each(|node| cluster.start(node).unwrap());
    cluster.founded();
    cluster.new_session();
    work(&mut cluster, 20);
    cluster.pass(1000 * MS);
    cluster.stop(4);
    put_back(&mut cluster, 4, &image);
    // Its first boot has the number that the others heard first.
    cluster.start(4).unwrap();
    cluster.stop(4);
    let why = refused(&mut cluster, 4).expect("it has forgotten what it promised");
    assert!(why.contains("put back to what it held earlier"), "{why}");
    cluster.stop(4);
    cluster.wipe(4, 91);
    for _ in 0..3 {
        cluster.start(4).unwrap();
        cluster.stop(4);
    }
    let why = refused(&mut cluster, 4).expect("it is another disk");
    assert!(why.contains("by another disk") && why.contains("member replace 4"), "{why}");
}

/// tests PROTOCOL 4.4-n: what was heard outlives restarts, and checkpoints.
#[test]
fn nodes_that_were_all_started_anew_remember_how_long_logs_were() {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| {
        bounds.checkpoint_bytes = 64 << 10;
        bounds.space_reserve_bytes = 0;
        bounds.history_slots = 0;
    });
    work(&mut cluster, 20);
    let image = image(&cluster, 4);
    for _ in 0..6 {
        work(&mut cluster, 120);
        cluster.pass(2500 * MS);
    }
    assert!(cluster.node(0).status().disk.checkpoints > 0);
    (0..5).for_each(|node| cluster.stop(node));
    // Each of the others is started twice: the second time from what the first one found and wrote.
    (0..4).for_each(|node| cluster.start(node).unwrap());
    work(&mut cluster, 4);
    (0..4).for_each(|node| cluster.stop(node));
    (0..4).for_each(|node| cluster.start(node).unwrap());
    put_back(&mut cluster, 4, &image);
    let why = refused(&mut cluster, 4).expect("it has forgotten what it promised");
    assert!(why.contains("put back to what it held earlier"), "{why}");
}

/// tests PROTOCOL 4.4-n: what others write of each other is not a reason to write again.
#[test]
fn at_rest_nothing_is_written_because_others_have_written() {
    let mut cluster = Cluster::new(3, 1, 1);
    work(&mut cluster, 20);
    cluster.pass(15_000 * MS);
    let records = |cluster: &Cluster| -> Vec<u64> {
        (0..3).map(|node| cluster.hosts[node].disk.borrow().writes()).collect()
    };
    let before = records(&cluster);
    cluster.pass(25_000 * MS);
    assert_eq!(records(&cluster), before);
}
