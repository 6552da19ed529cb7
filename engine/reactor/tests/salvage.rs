//! A state from the logs of too few survivors (PROTOCOL 10-af).

mod common;

use common::{Cluster, MS};
use racos_buffer::Pool;
use racos_engine::salvage::{
    Adopted, Cut, Founded, Lost, Rehearsal, Salvage, Survivor, Undecided, Unreadable, adopt,
};
use racos_storage::Place;
use racos_storage::device::memory::{Disk, MemoryDevice};
use racos_storage::survey::{Depth, survey_records};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const FOUNDED: Option<Founded> = Some(Founded { nodes: 5, f: 1, k: 3 });
type Contents = BTreeMap<Vec<u8>, Vec<u8>>;
type Salvaged = Salvage<MemoryDevice>;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn survivors(cluster: &Cluster, nodes: &[usize]) -> Vec<Survivor<MemoryDevice>> {
    let read = |node: &usize| {
        let device = MemoryDevice::new(cluster.hosts[*node].disk.clone());
        let name = format!("node{node}");
        Survivor::read(&name, device, &cluster.pool, &mut |_, _| {}).expect("it is a log")
    };
    nodes.iter().map(read).collect()
}

/// All nodes end; what is made of the logs of some.
fn salvaged_as(
    cluster: &mut Cluster,
    nodes: &[usize],
    founded: Option<Founded>,
    undecided: Undecided,
) -> Result<Salvaged, String> {
    (0..cluster.hosts.len()).for_each(|node| cluster.stop(node));
    let writes = |cluster: &Cluster| {
        cluster.hosts.iter().map(|host| host.disk.borrow().writes()).collect::<Vec<_>>()
    };
    let before = writes(cluster);
    let pool = Pool::new(256 << 20);
    let mut made = Salvage::execute(survivors(cluster, nodes), founded, undecided, pool)?;
    made.find_fragments(&mut |_, _, _| {})?;
    assert_eq!(writes(cluster), before, "nothing is written");
    Ok(made)
}

fn salvaged(cluster: &mut Cluster, nodes: &[usize]) -> Salvaged {
    salvaged_as(cluster, nodes, FOUNDED, Undecided::Leave).expect("they make a state")
}

/// The newest values, and what is lost. What is whole is restored, too, by the machine that would do it.
fn shown(salvage: &mut Salvaged, cut: &Cut) -> (Contents, Vec<Lost>) {
    let (mut contents, mut lost) = (Contents::new(), Vec::new());
    let mut rehearsal = Rehearsal::begin(salvage.machine().revision()).unwrap();
    for (id, ttl) in salvage.machine().leases() {
        rehearsal.lease(id, ttl).unwrap();
    }
    let gone = salvage.each_version(cut, &mut |shown| {
        match &shown.bytes {
            Ok(bytes) => {
                if lost.is_empty() {
                    rehearsal.version(shown.key, &shown.version, bytes.as_deref())?;
                }
                match bytes {
                    Some(bytes) if shown.next.is_none() => {
                        contents.insert(shown.key.to_vec(), bytes.clone())
                    }
                    _ => contents.remove(shown.key),
                };
            }
            Err(why) => lost.push(shown.lost(*why)),
        }
        Ok::<(), String>(())
    });
    gone.unwrap();
    if lost.is_empty() {
        let end = rehearsal.end(cut.compacted).unwrap();
        if *cut == salvage.uncut() {
            assert_eq!(Ok(end.hash), salvage.machine().hash_kv(0).map(|(hash, _)| hash));
        }
    }
    (contents, lost)
}

fn whole(salvage: &mut Salvaged) -> Contents {
    let cut = salvage.uncut();
    let (contents, lost) = shown(salvage, &cut);
    assert_eq!(lost, []);
    contents
}

/// Values of all sizes and both classes, overwritten and deleted, through all nodes but those that are
/// stopped.
fn fill(cluster: &mut Cluster, through: &[usize]) -> Contents {
    let mut expected = Contents::new();
    let sizes = [0, 1, 100, 200, 1300, 5000, 40_000, 130_000];
    for round in 0..3u8 {
        for (at, len) in sizes.iter().enumerate() {
            let key = vec![b'k', at as u8, round % 2];
            let bytes = value(*len, round);
            cluster.put(through[at % through.len()], &key, &bytes);
            expected.insert(key, bytes);
        }
        let gone = vec![b'k', round, 0];
        cluster.delete(through[0], &gone);
        expected.remove(&gone);
    }
    expected
}

/// A last write whose decision no log has noted, and which is none of what is compared.
fn settle(cluster: &mut Cluster, through: usize) {
    cluster.put(through, b"last", b"");
}

fn without_last(mut contents: Contents) -> Contents {
    contents.remove(&b"last"[..]);
    contents
}

/// tests PROTOCOL 10-af
#[test]
fn what_three_of_five_hold_is_all_that_was_written() {
    for checkpoint_bytes in [1 << 30, 64 << 10] {
        let mut cluster = Cluster::bounded(5, 1, 3, |bounds| {
            bounds.checkpoint_bytes = checkpoint_bytes;
            bounds.ready_bytes_min = 100_000;
        });
        let expected = fill(&mut cluster, &[0, 1, 2, 3, 4]);
        settle(&mut cluster, 0);
        let mut salvage = salvaged(&mut cluster, &[4, 1, 3]);
        assert_eq!(salvage.base.of.is_some(), checkpoint_bytes < 1 << 30, "{:?}", salvage.base);
        assert_eq!(without_last(whole(&mut salvage)), expected);
        assert_eq!(salvage.members(), (vec![0, 1, 2, 3, 4], 4));
    }
}

/// tests PROTOCOL 10-af: what cannot be decoded is listed, and never replaced by an older value.
#[test]
fn what_two_of_five_hold_is_told_and_the_rest_is_whole() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"kept", b"small values lie whole everywhere");
    cluster.put(1, b"gone", &value(5000, 1));
    cluster.put(1, b"short", &value(5000, 2));
    cluster.put(2, b"short", b"the older one is coded, the newer one small");
    cluster.put(3, b"stale", b"small at first");
    cluster.put(3, b"stale", &value(5000, 3));
    settle(&mut cluster, 0);
    let mut salvage = salvaged(&mut cluster, &[0, 3]);
    let cut = salvage.uncut();
    let (_, lost) = shown(&mut salvage, &cut);
    let told: Vec<_> = lost.iter().map(|lost| (&lost.key[..], lost.next.is_none())).collect();
    assert_eq!(told, [(&b"gone"[..], true), (b"short", false), (b"stale", true)]);
    assert!(
        lost.iter().all(|lost| lost.why == Unreadable::TooFew { good: 2, needed: 3 }),
        "{lost:?}"
    );
    let cut = salvage.without(&lost);
    let (rest, lost) = shown(&mut salvage, &cut);
    assert_eq!(lost, []);
    let short = salvage.machine().get(b"short").unwrap().modified().main;
    assert_eq!(cut.compacted, Some(short), "older states are not shown without the lost value");
    let keys: Vec<_> = without_last(rest).into_iter().collect();
    assert_eq!(
        keys,
        [
            (b"kept".to_vec(), b"small values lie whole everywhere".to_vec()),
            (b"short".to_vec(), b"the older one is coded, the newer one small".to_vec()),
        ]
    );
}

/// Node 0 alone has noted that the write of "fact" was decided.
fn known_to_one() -> Cluster {
    let mut cluster = Cluster::new(5, 1, 3);
    // One slot after the other, so that nothing lies between that nobody has noted.
    cluster.put(0, b"before", b"1");
    cluster.put(1, b"fact", b"2");
    (1..5).for_each(|node| cluster.stop(node));
    // It notes what it knows before it says anything more.
    cluster.send_put(0, b"alone", b"3");
    cluster.pass(50 * MS);
    cluster
}

/// tests PROTOCOL 10-af: a fact that one survivor knows is one.
#[test]
fn what_one_survivor_knows_to_be_decided_is() {
    let mut salvage = salvaged(&mut known_to_one(), &[2, 1, 0]);
    assert_eq!(whole(&mut salvage).get(&b"fact"[..]), Some(&b"2".to_vec()));
    let mut salvage = salvaged(&mut known_to_one(), &[3, 1, 2]);
    let contents = whole(&mut salvage);
    assert_eq!(contents.get(&b"before"[..]), Some(&b"1".to_vec()));
    assert_eq!(contents.get(&b"fact"[..]), None, "three of five hold it: that is no proof");
    assert_eq!(keys_open(&salvage), [(b"fact".to_vec(), vec![1, 2, 3])]);
}

/// What is told as open: keys, and who holds them.
fn keys_open(salvage: &Salvaged) -> Vec<(Vec<u8>, Vec<u16>)> {
    let deeds = |open: &racos_engine::salvage::Open| open.deeds.clone().unwrap_or_default();
    let all = salvage.open.iter().flat_map(|open| {
        deeds(open)
            .into_iter()
            .map(|deed| (deed.key.unwrap_or_default().to_vec(), open.nodes.clone()))
    });
    all.collect()
}

/// tests PROTOCOL 10-af: undecided writes are printed and left out, or taken where that is asked for.
#[test]
fn an_open_slot_is_told_and_taken_only_on_demand() {
    let mut cluster = known_to_one();
    let salvage = salvaged(&mut cluster, &[0, 1, 2]);
    assert_eq!(keys_open(&salvage), [(b"alone".to_vec(), vec![0])]);
    let mut cluster = known_to_one();
    let taken = salvaged_as(&mut cluster, &[0, 1, 2], FOUNDED, Undecided::Take);
    let mut taken = taken.unwrap();
    assert_eq!(keys_open(&taken), [(b"alone".to_vec(), vec![0])]);
    assert_eq!(whole(&mut taken).get(&b"alone"[..]), Some(&b"3".to_vec()));
}

/// tests PROTOCOL 10-af, 5.2-h: f + 1 equal votes prove a decision that nobody has noted; a vote less
/// does not.
#[test]
fn votes_prove_what_nobody_has_noted() {
    let voted = || {
        let mut cluster = Cluster::new(5, 1, 3);
        cluster.put(0, b"before", b"1");
        cluster.stop(4);
        // Slots of the dead node lie before it, and are noted with the next write.
        cluster.put(0, b"between", b"2");
        cluster.put(1, b"voted", b"3");
        cluster
    };
    let mut salvage = salvaged(&mut voted(), &[2, 3]);
    assert_eq!(whole(&mut salvage).get(&b"voted"[..]), Some(&b"3".to_vec()));
    assert_eq!(salvage.open, []);
    let salvage = salvaged(&mut voted(), &[3]);
    assert_eq!(keys_open(&salvage), [(b"voted".to_vec(), vec![3])]);
}

/// tests PROTOCOL 10-af: damage hides what lay there and nothing else.
#[test]
fn a_torn_or_damaged_log_is_used_as_far_as_it_is_sound() {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| bounds.checkpoint_bytes = 1 << 30);
    let expected = fill(&mut cluster, &[0, 1, 2, 3, 4]);
    settle(&mut cluster, 0);
    (0..5).for_each(|node| cluster.stop(node));
    let used = |node: usize| {
        let disk = &cluster.hosts[node].disk;
        let bytes = disk.borrow().contents(1).unwrap();
        (bytes.iter().rposition(|byte| *byte != 0).unwrap() / 4096 * 4096) as u64
    };
    // The end of one log is torn, and in the middle of another a stretch has rotten.
    let (end, middle) = (used(1), used(2) / 2 / 4096 * 4096);
    cluster.hosts[1].disk.borrow_mut().corrupt(1, end);
    (0..16).for_each(|block| cluster.hosts[2].disk.borrow_mut().corrupt(1, middle + block * 4096));
    let mut salvage = salvaged(&mut cluster, &[1, 2, 3, 4]);
    let damaged: Vec<_> = salvage.survivors().iter().map(|it| !it.damage.is_empty()).collect();
    assert!(damaged.contains(&true), "{damaged:?}");
    assert_eq!(without_last(whole(&mut salvage)), expected);
    // One more lost: what lay there is lost, and nothing is shown that was not written.
    let mut salvage = salvaged(&mut cluster, &[2, 3, 4]);
    let cut = salvage.uncut();
    let (contents, lost) = shown(&mut salvage, &cut);
    assert!(!lost.is_empty());
    assert!(lost.iter().all(|it| matches!(it.why, Unreadable::TooFew { .. })), "{lost:?}");
    for (key, bytes) in without_last(contents) {
        let is_lost = lost.iter().any(|lost| *lost.key == *key);
        assert!(is_lost || expected.get(&key) == Some(&bytes), "{key:?}");
    }
}

/// tests PROTOCOL 10-af: the newest sound checkpoint of any survivor.
#[test]
fn a_damaged_checkpoint_gives_way_to_one_of_another_survivor() {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| bounds.checkpoint_bytes = 64 << 10);
    let mut expected = fill(&mut cluster, &[0, 1, 2, 3, 4]);
    // So many that a part of the state is large enough to lie apart from its record.
    for number in 0..600u32 {
        let key = format!("key{number:06}").into_bytes();
        cluster.put(number as usize % 5, &key, &key);
        expected.insert(key.clone(), key);
    }
    (0..8).for_each(|round| cluster.put(round % 5, b"more", &value(100_000, 0)));
    expected.insert(b"more".to_vec(), value(100_000, 0));
    settle(&mut cluster, 0);
    cluster.pass(300 * MS);
    let newest = (0..5).max_by_key(|node| cluster.node(*node).snapshot().exec).unwrap();
    let snapshot = cluster.node(newest).snapshot().clone();
    assert!(snapshot.exec > 0);
    let place = snapshot.pieces.iter().map(|(_, place)| *place).max_by_key(|it| it.len).unwrap();
    cluster.hosts[newest].disk.borrow_mut().corrupt(place.segment, u64::from(place.offset));
    // The last one given is looked at first, of checkpoints of one slot.
    let nodes: Vec<usize> = (newest + 2..newest + 6).map(|node| node % 5).collect();
    let mut salvage = salvaged(&mut cluster, &nodes);
    assert!(salvage.base.unusable[0].contains("damaged"), "{:?}", salvage.base);
    assert_eq!(without_last(whole(&mut salvage)), expected);
}

/// tests PROTOCOL 10-af, 10-q: a replaced disk's fragments lie in its predecessor's place.
#[test]
fn a_node_whose_disk_was_replaced_is_a_survivor_like_any_other() {
    let mut cluster = Cluster::new(5, 1, 3);
    let mut expected = fill(&mut cluster, &[0, 1, 2, 3, 4]);
    cluster.stop(4);
    cluster.new_disk(4, 44);
    assert_eq!(cluster.replace(1, 4, 1, 44), Ok(()));
    let effect = cluster.node(1).machine().members().effect();
    cluster.pass_until(2000 * MS, |cluster| cluster.node(0).exec() >= effect);
    cluster.start(4).unwrap();
    let rebuilt = cluster
        .pass_until(20_000 * MS, |cluster| !cluster.node(0).status().members[4].is_rebuilding);
    assert!(rebuilt);
    cluster.put(4, b"new", &value(3000, 7));
    expected.insert(b"new".to_vec(), value(3000, 7));
    settle(&mut cluster, 0);
    let mut salvage = salvaged(&mut cluster, &[4, 0, 1]);
    assert_eq!(without_last(whole(&mut salvage)), expected);
}

/// tests PROTOCOL 10-af: fragments that were moved from segment to segment.
#[test]
fn fragments_are_found_where_they_were_copied_to() {
    let mut cluster = Cluster::bounded(1, 0, 1, |bounds| {
        (bounds.segment_bytes, bounds.checkpoint_bytes) = (512 << 10, 512 << 10);
        (bounds.value_bytes_max, bounds.space_reserve_bytes) = (64 << 10, 4 << 20);
        bounds.history_slots = 16;
    });
    let mut expected = Contents::new();
    for round in 0..20u8 {
        for number in 0..100u32 {
            // Every tenth is written once.
            if round == 0 || number % 10 > 0 {
                let (key, bytes) = (number.to_le_bytes().to_vec(), value(4096, round));
                cluster.put(0, &key, &bytes);
                expected.insert(key, bytes);
            }
        }
    }
    const COPIES: u8 = 12;
    assert!(cluster.node(0).log().bytes_of_kind(COPIES) > 0, "some were copied");
    settle(&mut cluster, 0);
    let founded = Some(Founded { nodes: 1, f: 0, k: 1 });
    let salvage = salvaged_as(&mut cluster, &[0], founded, Undecided::Take);
    assert_eq!(without_last(whole(&mut salvage.unwrap())), expected);
}

/// The disk of node 4 is taken out, and what it holds taken over by the one in its place.
fn adopted(cluster: &mut Cluster) -> Result<Adopted, String> {
    cluster.stop(4);
    let old = survivors(cluster, &[4]).remove(0);
    cluster.new_disk(4, 44);
    let host = &cluster.hosts[4];
    let device = MemoryDevice::new(host.disk.clone());
    adopt(&host.config, device, old, &cluster.pool, &mut |_, _| {})
}

/// The disk in node 4's place takes part and holds everything; how much of it was made again.
fn replaced(cluster: &mut Cluster) -> u64 {
    assert_eq!(cluster.replace(1, 4, 1, 44), Ok(()));
    let effect = cluster.node(1).machine().members().effect();
    cluster.pass_until(2000 * MS, |cluster| cluster.node(0).exec() >= effect);
    cluster.start(4).unwrap();
    let rebuilt = cluster
        .pass_until(20_000 * MS, |cluster| !cluster.node(0).status().members[4].is_rebuilding);
    assert!(rebuilt, "{:?}", cluster.node(4).status().repair);
    let node = cluster.node(4);
    let used: Vec<_> = node.machine().values().filter(|used| used.value.len > 0).collect();
    assert!(used.len() > 10 && used.iter().all(|used| node.has_fragment(used.value.op)));
    node.status().repair.repaired
}

/// tests PROTOCOL 10-f
#[test]
fn what_an_old_disk_holds_need_not_be_made_again() {
    for checkpoint_bytes in [1 << 30, 64 << 10] {
        let cluster = || {
            Cluster::bounded(5, 1, 3, |bounds| {
                (bounds.checkpoint_bytes, bounds.ready_bytes_min) = (checkpoint_bytes, 100_000);
            })
        };
        let mut whole = cluster();
        fill(&mut whole, &[0, 1, 2, 3, 4]);
        settle(&mut whole, 0);
        let taken = adopted(&mut whole).unwrap();
        assert!(taken.fragments > 10 && taken.missing == 0, "{taken:?}");
        assert_eq!(replaced(&mut whole), 0, "all of it was there");
        // Every one is the right one: each value can be read from this node and two others.
        (1..3).for_each(|node| whole.stop(node));
        let mut salvage = salvaged(&mut whole, &[4, 0, 3]);
        let cut = salvage.uncut();
        assert_eq!(shown(&mut salvage, &cut).1, []);
        // Without: each is made again.
        let mut empty = cluster();
        fill(&mut empty, &[0, 1, 2, 3, 4]);
        settle(&mut empty, 0);
        empty.stop(4);
        empty.new_disk(4, 44);
        assert!(replaced(&mut empty) >= taken.fragments);
    }
}

/// Where the last large body lies.
fn last_large(disk: Rc<RefCell<Disk>>, pool: &Pool) -> Place {
    let (mut device, mut last) = (MemoryDevice::new(disk), Place::default());
    survey_records(&mut device, pool, Depth::Records, &mut |_, _| {}, &mut |record| {
        if record.body_place.len > 40_000 {
            last = record.body_place;
        }
    })
    .unwrap();
    last
}

/// tests PROTOCOL 10-f: what is damaged is not taken over, nor what is not in use.
#[test]
fn only_good_fragments_of_values_in_use_count() {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| bounds.checkpoint_bytes = 64 << 10);
    fill(&mut cluster, &[0, 1, 2, 3, 4]);
    cluster.put(0, b"rotten", &value(130_000, 5));
    settle(&mut cluster, 0);
    assert!(cluster.node(4).has_fragment(cluster.stored(4, b"rotten")));
    cluster.stop(4);
    let disk = cluster.hosts[4].disk.clone();
    let place = last_large(disk.clone(), &cluster.pool);
    disk.borrow_mut().corrupt(place.segment, u64::from(place.offset) + 100);
    // While it is away, most of what it holds goes out of use.
    (0..5).for_each(|_| drop(fill(&mut cluster, &[0, 1, 2, 3])));
    let taken = adopted(&mut cluster).unwrap();
    assert_eq!(taken.missing, 1, "{taken:?}");
    assert!(replaced(&mut cluster) > 0);
    assert_eq!(cluster.get(4, b"rotten"), Some(value(130_000, 5)));
}

/// tests PROTOCOL 10-f: of the same node, and an earlier disk of it.
#[test]
fn a_disk_of_another_node_is_not_adopted() {
    let mut cluster = Cluster::new(5, 1, 3);
    fill(&mut cluster, &[0, 1, 2, 3, 4]);
    (0..5).for_each(|node| cluster.stop(node));
    let others = survivors(&cluster, &[3]).remove(0);
    let own = survivors(&cluster, &[4]).remove(0);
    let same = cluster.hosts[4].config.clone();
    let device = MemoryDevice::new(cluster.hosts[4].disk.clone());
    let refused = adopt(&same, device, own, &cluster.pool, &mut |_, _| {});
    assert!(refused.unwrap_err().contains("earlier disk of the same node"));
    cluster.new_disk(4, 44);
    let device = MemoryDevice::new(cluster.hosts[4].disk.clone());
    let config = cluster.hosts[4].config.clone();
    let refused = adopt(&config, device, others, &cluster.pool, &mut |_, _| {});
    assert!(refused.unwrap_err().contains("node 3, incarnation 1"));
}

/// tests PROTOCOL 10-af: values of older layouts and newer ones.
#[test]
fn values_of_every_layout_are_put_together() {
    let mut cluster = Cluster::configured(5, 1, 3, |config| config.bounds.recode_bytes_per_s = 0);
    let mut expected = fill(&mut cluster, &[0, 1, 2, 3, 4]);
    cluster.add_observers(&[55]);
    assert_eq!(cluster.reconfigure(0, &[0, 1, 2, 3, 4, 5], (2, 2), &[]), Ok(()));
    let effect = cluster.node(0).machine().members().effect();
    let joined = |cluster: &mut Cluster| {
        (0..6).all(|node| {
            cluster.node(node).exec() >= effect && cluster.node(node).status().is_active
        })
    };
    assert!(cluster.pass_until(9000 * MS, joined));
    cluster.put(5, b"new", &value(3000, 7));
    expected.insert(b"new".to_vec(), value(3000, 7));
    settle(&mut cluster, 0);
    let mut salvage = salvaged(&mut cluster, &[5, 0, 1, 2]);
    assert_eq!(without_last(whole(&mut salvage)), expected);
    assert_eq!(salvage.members(), (vec![0, 1, 2, 3, 4, 5], 4));
}

/// tests PROTOCOL 10-af
#[test]
fn what_does_not_belong_together_is_refused() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", b"value");
    settle(&mut cluster, 1);
    let why = |cluster: &mut Cluster, nodes: &[usize], founded| {
        salvaged_as(cluster, nodes, founded, Undecided::Leave).err().expect("it must be refused")
    };
    assert!(why(&mut cluster, &[0, 1, 0], FOUNDED).contains("both of node 0"));
    assert!(why(&mut cluster, &[], FOUNDED).contains("no survivors"));
    assert!(
        why(&mut cluster, &[0, 1], None).contains("--nodes"),
        "no checkpoint tells the members"
    );
    let wrong = Some(Founded { nodes: 4, f: 1, k: 3 });
    assert!(why(&mut cluster, &[0, 1], wrong).contains("2f+k = 5"));
    let wrong = Some(Founded { nodes: 6, f: 1, k: 3 });
    assert!(why(&mut cluster, &[0, 1], wrong).contains("was not founded with 6 nodes"));
    let other = Cluster::formatted(5, 1, 3, |config| config.cluster = 78);
    let mut both = survivors(&cluster, &[0, 1]);
    both.extend(survivors(&other, &[2]));
    let pool = Pool::new(64 << 20);
    let refused = Salvage::execute(both, FOUNDED, Undecided::Leave, pool).err().unwrap();
    assert!(refused.contains("of cluster 000000000000004d") && refused.contains("4e"), "{refused}");
}
