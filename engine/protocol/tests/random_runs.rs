//! Random runs of whole clusters under loss, duplication, reordering, partitions, freezes, crashes
//! and power cuts, then a phase without faults in which everything has to finish.
//!
//! `RACOS_PROTOCOL_SEEDS=5000` runs more seeds; `RACOS_PROTOCOL_FIRST=123 RACOS_PROTOCOL_SEEDS=1`
//! with one test name repeats the run of one seed, `RACOS_PROTOCOL_TRACE=1` prints its events.

mod cluster;

use cluster::{Cluster, Event, MS, Replay, Rng, SECOND, US, Weather, config};
use racos_protocol::{Config, Fast, Nanos, Node, NodeSet, Policy, Terms, Wait};
use std::hash::DefaultHasher;

type Shape = (usize, usize, usize);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Parameters that differ from run to run; the nodes of one run agree in all but their coins.
fn configs(shape: Shape, terms: Terms, rng: &mut Rng) -> Vec<Config> {
    let own_slots_max = rng.pick(&[1, 2, 2, 4]);
    let alpha = (shape.0 * own_slots_max) as u64 * rng.pick(&[1, 2, 4, 16]);
    let vote_wait = rng.pick(&[Wait::Adaptive, Wait::Fixed(0), Wait::Fixed(MS)]);
    let support_wait = rng.pick(&[0, 2 * MS]);
    let coin = rng.next();
    let one = |me| {
        let mut config = config(shape, me, coin);
        config.own_slots_max = own_slots_max;
        (config.policy, config.fast) = (terms.policy, terms.fast);
        config.alpha = alpha;
        config.timing.vote_wait = vote_wait;
        config.timing.support_wait = support_wait;
        config
    };
    (0..shape.0 as Node).map(one).collect()
}

fn weather(nodes: usize, rng: &mut Rng) -> Weather {
    Weather {
        delay: rng.pick(&[20, 50, 200]) * US,
        flush: rng.pick(&[30, 100, 1000]) * US,
        loss_per_mille: rng.pick(&[0, 0, 20, 100, 300]),
        duplicate_per_mille: rng.pick(&[0, 20, 100]),
        stall: rng.pick(&[0, 2 * MS, 30 * MS]),
        no_room_per_mille: rng.pick(&[0, 0, 0, 50]),
        apart: if rng.chance(250) { NodeSet(rng.below(1 << nodes)) } else { NodeSet::EMPTY },
        offer_every: rng.pick(&[200, 1000, 3000]) * US,
    }
}

/// What goes wrong, and when: decided in advance, so that a shorter run is a prefix of a longer one.
fn schedule_faults(cluster: &mut Cluster, rng: &mut Rng, end: Nanos) {
    let nodes = cluster.hosts.len();
    let node = |rng: &mut Rng| rng.below(nodes as u64) as Node;
    let mut at = 0;
    while at < end {
        let sky = Box::new(weather(nodes, rng));
        cluster.schedule(at, Event::Weather(sky));
        at += rng.between(2 * MS, 20 * MS);
    }
    for _ in 0..rng.below(12) {
        cluster.schedule(rng.below(end), Event::Read { node: node(rng) });
    }
    let away = |rng: &mut Rng| {
        let longest = rng.pick(&[100 * US, 3 * MS, 15 * MS]);
        rng.below(longest)
    };
    for _ in 0..rng.pick(&[0, 1, 2, 5]) {
        let (node, at) = (node(rng), rng.below(end));
        cluster.schedule(at, Event::Crash { node });
        let back = at + away(rng);
        cluster.schedule(back, Event::Restart { node });
    }
    for _ in 0..rng.pick(&[0, 0, 1, 2]) {
        let at = rng.below(end);
        cluster.schedule(at, Event::PowerCut);
        for node in 0..nodes as Node {
            let back = at + away(rng);
            cluster.schedule(back, Event::Restart { node });
        }
    }
    for _ in 0..rng.pick(&[0, 0, 1, 2]) {
        let (node, at) = (node(rng), rng.below(end));
        let until = at + away(rng);
        cluster.schedule(at, Event::Freeze { node, until });
    }
}

fn run(shape: Shape, terms: Terms, seed: u64, traced: bool) -> Cluster {
    let mut rng = Rng::new(seed);
    let configs = configs(shape, terms, &mut rng);
    let mut cluster = Cluster::new(configs, rng.next());
    cluster.trace = traced.then(DefaultHasher::new);
    let end = rng.between(10 * MS, 60 * MS);
    schedule_faults(&mut cluster, &mut rng, end);
    cluster.run_until(end);
    // The rest of what was scheduled comes true too, then all is well.
    cluster.run_until(end + 20 * MS);
    cluster.heal();
    // Clients go on until each node has carried out a write: all can, and a node that was away learns
    // from the writes of others what it missed.
    let sky = Weather { offer_every: 2 * MS, ..Weather::fair() };
    let (now, before) = (cluster.now, cluster.oracle.writes.clone());
    cluster.schedule(now, Event::Weather(Box::new(sky)));
    while !cluster.nodes().all(|node| cluster.oracle.writes.get(&node) > before.get(&node)) {
        assert!(cluster.now < now + 5 * SECOND, "some node cannot write");
        cluster.run_until(cluster.now + 5 * MS);
    }
    cluster.schedule(cluster.now, Event::Weather(Box::new(Weather::fair())));
    // tests PROTOCOL 3.3-b: every slot in use comes to a decision.
    let settled = cluster.run_dry(10 * SECOND);
    assert!(settled, "the cluster is still busy long after the last fault");
    cluster.check_settled();
    cluster
}

fn run_seeds(name: &str, shape: Shape, terms: Terms, seeds: u64) {
    let first = number("RACOS_PROTOCOL_FIRST").unwrap_or(0);
    let seeds = number("RACOS_PROTOCOL_SEEDS").unwrap_or(seeds);
    let (mut reads, mut batches, mut slots, mut phases, mut weak) = (0, 0, 0, 0, 0);
    for seed in first..first + seeds {
        let _replay = Replay(format!(
            "RACOS_PROTOCOL_FIRST={seed} RACOS_PROTOCOL_SEEDS=1 cargo test -p racos-protocol \
             --test random_runs {name}"
        ));
        let cluster = run(shape, terms, seed, false);
        reads += cluster.oracle.reads;
        batches += cluster.oracle.acknowledged.len();
        slots += cluster.oracle.decided.len();
        weak += cluster.hosts.iter().map(|host| host.log.weak_votes()).sum::<usize>();
        phases = phases.max(cluster.hosts.iter().map(|host| host.log.phase_max()).max().unwrap());
    }
    println!(
        "{name}: {seeds} seeds, {slots} slots, {batches} acknowledged, {reads} reads, {phases} phases, \
         {weak} weak votes"
    );
    // A run in which little happens shows little.
    let loaded = batches as u64 >= seeds && reads >= seeds;
    let slow = seeds < 100 || shape.0 == 1 || phases >= 2;
    // Where F* is lower than what it is in place of.
    let is_weak = terms.fast == Fast::Least && (shape.0.is_multiple_of(2) || shape.1 > 1);
    assert!(seeds < 10 || (weak > 0) == is_weak, "{weak} weak votes");
    assert!(loaded && slow, "too little happened to mean anything");
}

macro_rules! shapes {
    ($policy:expr, $fast:expr; $($name:ident $shape:expr, $seeds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let terms = Terms { policy: $policy, fast: $fast };
                run_seeds(stringify!($name), $shape, terms, $seeds);
            }
        )*
    };
}

shapes! {
    Policy::OwnerSlots, Fast::Support;
    random_runs_1_0_1 (1, 0, 1), 200;
    random_runs_3_1_1 (3, 1, 1), 250;
    random_runs_4_1_2 (4, 1, 2), 200;
    random_runs_5_1_3 (5, 1, 3), 250;
    random_runs_5_1_2 (5, 1, 2), 200;
    random_runs_7_2_3 (7, 2, 3), 120;
    random_runs_9_3_3 (9, 3, 3), 100;
}

// tests PROTOCOL 6.4-b, 6.4-c, 6.4-d, 6.4-f: see what `Oracle` asks of a queue.
shapes! {
    Policy::Queue, Fast::Support;
    random_queue_runs_1_0_1 (1, 0, 1), 60;
    random_queue_runs_3_1_1 (3, 1, 1), 100;
    random_queue_runs_5_1_3 (5, 1, 3), 100;
    random_queue_runs_7_2_3 (7, 2, 3), 40;
}

// tests PROTOCOL 5.5-h, 5.5-i, 5.5-j: batches of class R among those of class E, and queues; what was said
// is said the same after every restart, weak or not.
shapes! {
    Policy::OwnerSlots, Fast::Least;
    random_least_runs_3_1_1 (3, 1, 1), 60;
    random_least_runs_4_1_2 (4, 1, 2), 200;
    random_least_runs_6_1_3 (6, 1, 3), 90;
    random_least_runs_7_2_3 (7, 2, 3), 100;
}

shapes! {
    Policy::Queue, Fast::Least;
    random_least_queue_runs_4_1_2 (4, 1, 2), 100;
    random_least_queue_runs_5_2_1 (5, 2, 1), 150;
    random_least_queue_runs_7_2_3 (7, 2, 3), 60;
}

/// tests PROTOCOL 12.2-j
#[test]
fn the_same_seed_gives_the_same_run() {
    let traced = |seed| run((5, 1, 3), Terms::default(), seed, true);
    for seed in 0..5 {
        let (one, two) = (traced(seed), traced(seed));
        assert_eq!(one.trace_hash(), two.trace_hash());
        assert!(one.handled == two.handled && one.handled > 1000);
        let other = traced(seed + 1000);
        assert_ne!(one.trace_hash(), other.trace_hash(), "the trace does not depend on the seed");
    }
}
