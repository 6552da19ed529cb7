//! Whole clusters from seeds: fresh ones, those that once failed, and each the same when run again.

use racos_protocol::{Fast, Policy};
use racos_sim::plan::Kind;
use racos_sim::swarm::{Totals, run_many};
use racos_sim::{Fixed, run};

/// Fresh seeds of one test run; `RACOS_SIM_SEEDS` asks for another number.
const FRESH: u64 = 120;
/// Of those with a guest.
const GUESTS: u64 = 12;
/// Of those whose members change.
const CHANGES: u64 = 12;
/// Of those whose nodes move in every run; every other one changes its members, too.
const MOVES: u64 = 16;
/// Of nodes with several lanes.
const LANES: u64 = 12;
/// Of those that last long; every other one changes its members.
const LONG: u64 = 6;
/// Of those whose slots are filled from queues.
const QUEUES: u64 = 24;
/// Of those of one code that are decided by as few proposals as can be.
const LEASTS: u64 = 6;
const JOBS: usize = 2;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn assert_passed(totals: &Totals) {
    println!("{totals}");
    for failure in &totals.failures {
        println!("seed {}: {}", failure.seed, failure.what);
        println!("  again: cargo run --release --bin racos-sim -- --seed {} --trace", failure.seed);
    }
    assert!(totals.failures.is_empty(), "{} seeds failed, see above", totals.failures.len());
}

#[test]
fn fresh_seeds_keep_every_promise() {
    let random = racos_engine::runtime::random_u128() as u64 >> 16;
    let first = number("RACOS_SIM_SEED").unwrap_or(random);
    let count = number("RACOS_SIM_SEEDS").unwrap_or(FRESH);
    println!("seeds {first} to {}; RACOS_SIM_SEED={first} runs them again", first + count - 1);
    let totals = run_many(first, count, JOBS, &Fixed::default(), |_| true);
    assert_passed(&totals);
    assert_eq!(totals.passed, count);
}

#[test]
fn guests_see_one_history_in_order_and_leases_that_keep_their_time() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    println!("seeds {first} to {}, with --guest", first + GUESTS - 1);
    let fixed = Fixed { guest: true, ..Fixed::default() };
    let totals = run_many(first, GUESTS, JOBS, &fixed, |_| true);
    assert_passed(&totals);
    assert_eq!(totals.passed, GUESTS);
}

/// tests PROTOCOL 3.1-j, 3.2-a: what lanes share is their fate; no key suffers from it, and what reaches
/// another lane is dropped there.
#[test]
fn lanes_that_fail_together_keep_every_key_linearizable_and_in_its_place() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    let of = |seed: u64| [2, 3, 4, 8][(seed / 2 % 4) as usize];
    // Each lane has a policy's slots of its own, whoever fills them.
    let policy_of = |seed: u64| [Policy::OwnerSlots, Policy::Queue][(seed % 2) as usize];
    let mut dropped = 0;
    for seed in first..first + LANES {
        let (lanes, policy) = (of(seed), policy_of(seed));
        println!("racos-sim --lanes {lanes} --policy {policy} --seed {seed}");
        dropped += racos_sim::lanes::run(seed, lanes, policy).unwrap().dropped;
    }
    assert!(dropped > 0);
    for seed in [first, first + 1] {
        let again = || racos_sim::lanes::run(seed, of(seed), policy_of(seed)).unwrap();
        assert_eq!(again(), again(), "the same seed, the same run");
    }
}

#[test]
fn members_change_and_what_was_written_follows_them() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    println!("seeds {first} to {}, with --changes", first + CHANGES - 1);
    let fixed = Fixed { changes: true, ..Fixed::default() };
    let totals = run_many(first, CHANGES, JOBS, &fixed, |_| true);
    assert_passed(&totals);
    assert!(totals.recoded() > 0, "values were re-coded: {totals}");
}

/// tests PROTOCOL 10-am: with disks that are replaced, power cuts of all, and members that change.
#[test]
fn nodes_move_and_are_found_where_they_are() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    let mut moves = 0;
    for changes in [false, true] {
        println!("seeds {first} to {}, with --moves, --changes {changes}", first + MOVES / 2 - 1);
        let fixed = Fixed { moves: Some(true), changes, ..Fixed::default() };
        let totals = run_many(first, MOVES / 2, JOBS, &fixed, |_| true);
        assert_passed(&totals);
        moves += totals.faults(Kind::Move);
    }
    assert!(moves > 0, "nodes move");
    let fixed = Fixed { code: Some((5, 1, 3)), moves: Some(true), ..Fixed::default() };
    let again = || run(first, &fixed, false).expect("it passes");
    assert_eq!(again(), again(), "the same seed, the same run");
}

#[test]
fn what_takes_minutes_keeps_every_promise() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    for changes in [false, true] {
        println!("seeds {first} to {}, with --long, --changes {changes}", first + LONG / 2 - 1);
        let fixed = Fixed { long: true, changes, ..Fixed::default() };
        let totals = run_many(first, LONG / 2, JOBS, &fixed, |_| true);
        assert_passed(&totals);
        assert!(totals.virtual_ns() > LONG / 2 * 100_000_000_000, "minutes, not seconds");
    }
}

#[test]
fn slots_filled_from_queues_keep_every_promise() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    println!("seeds {first} to {}, with --policy queue", first + QUEUES - 1);
    let fixed = Fixed { policy: Policy::Queue, ..Fixed::default() };
    let totals = run_many(first, QUEUES, JOBS, &fixed, |_| true);
    assert_passed(&totals);
    assert_eq!(totals.passed, QUEUES);
    let fixed = Fixed { code: Some((5, 1, 3)), calm: true, ..fixed };
    let report = run(7, &fixed, false).expect("nothing is in the way");
    assert_eq!((report.failed, report.skipped), (0, 0));
    assert!(report.fast > 0);
}

/// tests PROTOCOL 5.5-h: where F* is lower than the usual threshold; of other runs one in four has it, too.
#[test]
fn as_few_proposals_as_can_decide_keep_every_promise() {
    let first = racos_engine::runtime::random_u128() as u64 >> 16;
    for (code, policy) in [
        ((4, 1, 2), Policy::OwnerSlots),
        ((7, 2, 3), Policy::OwnerSlots),
        ((5, 2, 1), Policy::Queue),
        ((7, 2, 3), Policy::Queue),
    ] {
        println!("seeds {first} to {}, {code:?} {policy}, with F*", first + LEASTS - 1);
        let fixed = Fixed { code: Some(code), policy, fast: Some(Fast::Least), ..Fixed::default() };
        let totals = run_many(first, LEASTS, JOBS, &fixed, |_| true);
        assert_passed(&totals);
        assert_eq!(totals.passed, LEASTS);
    }
}

/// A line of the list: a seed, sometimes the code of its cluster, and whether its members change, or move.
fn kept(line: &str) -> Option<(u64, Fixed)> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let mut words = line.split_whitespace();
    let seed = words.next()?.parse().expect("a line begins with a seed");
    let (named, code): (Vec<&str>, Vec<&str>) =
        words.partition(|word| ["changes", "moves"].contains(word));
    let code = code.first().map(|code| {
        let numbers: Vec<usize> =
            code.split(',').map(|part| part.parse().expect("a code is n,f,k")).collect();
        let [n, f, k] = numbers[..] else { panic!("a code is n,f,k, not {code}") };
        (n, f, k)
    });
    // They failed with it.
    let fast = Some(Fast::Support);
    let (changes, moves) = (named.contains(&"changes"), Some(named.contains(&"moves")));
    Some((seed, Fixed { code, changes, moves, fast, ..Fixed::default() }))
}

#[test]
fn seeds_that_once_failed_pass() {
    let mut totals = Totals::default();
    for (seed, fixed) in include_str!("seeds.txt").lines().filter_map(kept) {
        totals.add(seed, run(seed, &fixed, false));
    }
    assert_passed(&totals);
    assert!(totals.passed > 0);
}

#[test]
fn a_seed_gives_the_same_run_bit_for_bit() {
    // One run beside another, and on another thread, changes nothing.
    let runs = || -> Vec<_> { (40..48).map(|seed| run(seed, &Fixed::default(), false)).collect() };
    let other = std::thread::spawn(runs);
    let (first, second) = (runs(), other.join().expect("no run panics"));
    assert_eq!(first, second);
    let hashes: Vec<u64> = first.iter().flatten().map(|report| report.trace_hash).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]), "seeds differ: {hashes:?}");
}

#[test]
fn a_calm_cluster_answers_everything() {
    for code in racos_sim::plan::CODES {
        let fixed = Fixed { code: Some(code), calm: true, ..Fixed::default() };
        let report = run(7, &fixed, false).expect("nothing is in the way");
        assert_eq!(report.failed, 0, "{code:?}");
        assert_eq!(report.faults.iter().sum::<u64>(), 0);
    }
}
