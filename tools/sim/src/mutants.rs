//! Mutants: every guard is left out once, and some test must notice.
//!
//! Purpose: a simulator that passes says little unless it fails when something is wrong. Each guard
//! of [`MUTANTS`] can be left out by name in builds with the feature `mutants`. Most are noticed by
//! whole simulated clusters, within [`Catch::within`] seeds; some need a schedule so rare that it is
//! written down, as a probe in [`crate::probes`], which passes with the guard and fails without.
//! Invariant: what notices a mutant passes while no guard is out, or it has proved nothing.

use crate::plan::Fixed;
use crate::probes;
use crate::run::run;
use racos_protocol::{Fast, Policy};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// How a mutant is noticed.
#[derive(Debug, Clone, Copy)]
pub enum Catch {
    /// By a simulated cluster: this seed was the quickest when it was chosen; if it no longer is
    /// one, so many others are tried.
    Seed {
        seed: u64,
        code: Option<(usize, usize, usize)>,
        policy: Policy,
        moves: bool,
        within: u64,
    },
    /// By a schedule of its own.
    Probe { name: &'static str, probe: fn() -> Result<(), String> },
}

/// A guard, and what notices that it is gone.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// As in `mutant!("...")` beside the guard.
    pub name: &'static str,
    pub catch: Catch,
}

/// Fresh seeds of mutants come from here on, each its own, so that the table is the same each time.
const FRESH_FROM: u64 = 40_000_000;
const WITHIN: u64 = 60;

const fn seed(name: &'static str, seed: u64) -> Mutant {
    let (policy, moves) = (Policy::OwnerSlots, false);
    Mutant { name, catch: Catch::Seed { seed, code: None, policy, moves, within: WITHIN } }
}

/// Of a cluster whose nodes move.
const fn moved(name: &'static str, seed: u64) -> Mutant {
    let (policy, moves) = (Policy::OwnerSlots, true);
    Mutant { name, catch: Catch::Seed { seed, code: None, policy, moves, within: WITHIN } }
}

/// Of a cluster whose slots are filled from queues.
const fn queued(name: &'static str, seed: u64) -> Mutant {
    let (policy, moves) = (Policy::Queue, false);
    Mutant { name, catch: Catch::Seed { seed, code: None, policy, moves, within: WITHIN } }
}

macro_rules! probe {
    ($name:literal, $probe:ident) => {
        Mutant {
            name: $name,
            catch: Catch::Probe { name: stringify!($probe), probe: probes::$probe },
        }
    };
}

/// All of them, in the order of the parts that they sit in.
#[rustfmt::skip]
pub const MUTANTS: &[Mutant] = &[
    // Thresholds and votes (PROTOCOL 1, 5).
    seed("fast one short", 265349362505772),
    seed("null as soon as a quorum may lack support", 40000000),
    probe!("datagrams of other lanes taken", lanes_hear_nothing_of_each_other),
    probe!("support of a bare majority", a_decided_batch_has_holders_to_spare),
    seed("f votes decide", 40000005),
    seed("quorum one short", 40000000),
    seed("coin of phase 0 is free", 40000000),
    seed("a vote for whatever was seen", 40000001),
    probe!("F* one short", two_operations_are_not_both_decided),
    probe!("no vote is weak", who_has_not_heard_all_comes_to_what_is_decided),
    seed("late fragments proposed", 40000000),
    seed("silent once decided", 40000000),
    seed("null inferred from a higher slot", 40000001),
    // Persistence and restart (PROTOCOL 4).
    probe!("own vote counted before its flush", a_vote_counts_from_its_flush_on),
    seed("PROPOSE sent before its flush", 40000014),
    seed("votes not recorded", 40000013),
    seed("promises forgotten at restart", 40000004),
    probe!("refusals forgotten at restart", a_refusal_stands_after_a_restart),
    seed("votes forgotten at restart", 40000015),
    probe!(
        "late fragments replayed as a promise",
        late_fragments_are_no_promise_after_a_restart
    ),
    seed("flush skipped", 40000005),
    seed("flush error ignored", 40000048),
    probe!("torn end accepted", a_torn_group_is_not_replayed),
    seed("last group not written anew", 40000046),
    probe!("checksum of groups unchecked", a_damaged_record_is_not_replayed),
    seed("boot not raised", 40000000),
    seed("operations named without the boot", 40000000),
    // Disks that are not what the others noted (PROTOCOL 10).
    seed("takes part unasked", 40000003),
    seed("another disk is vouched for", 40000003),
    seed("notes forgotten at restart", 40000032),
    // Own slots (PROTOCOL 4.3, 6.1).
    seed("reservation forgotten at restart", 40000005),
    seed("reservation used before its flush", 49586244227438),
    probe!("slots opened beyond the reservation", nothing_is_opened_beyond_the_reservation),
    probe!("slots skipped beyond the reservation", what_was_skipped_is_not_opened_after_a_restart),
    seed("silent in unknown own slots", 40000007),
    seed("no end of the window", 40000000),
    // Batches stored before they have a slot (PROTOCOL 6.3, 9.7).
    probe!("assigned before enough have stored", what_too_few_can_store_is_not_acknowledged),
    seed("what is stored dropped unasked", 40000000),
    // Slots filled from queues (PROTOCOL 6.4).
    queued("READY before enough have stored", 40000004),
    probe!("what is in the log waits again", what_is_in_the_log_is_not_proposed_again),
    probe!("proposed for ever", nothing_is_proposed_beyond_its_life),
    // Timers and retransmission (PROTOCOL 6.5, 12).
    seed("no timer for a silent owner", 40000000),
    probe!("a vote stops the timer", who_has_voted_still_proposes),
    seed("nothing asked for again", 40000002),
    probe!("a silent peer waited for", a_silent_peer_holds_up_nobody),
    // Execution and sessions (PROTOCOL 7, 11).
    seed("acknowledged before the prefix is decided", 40000003),
    seed("numbers not looked up", 40000002),
    seed("what the client has received ignored", 40000000),
    probe!("operation of an unknown session applied", an_ended_session_applies_nothing),
    probe!("session ended though it was used since", a_session_used_since_is_not_ended),
    // Reads and repair (PROTOCOL 8, 9).
    probe!("read quorum one short", one_of_three_nodes_answers_no_read),
    seed("marks left out", 40000005),
    probe!("marks of decided slots only", a_decision_known_to_one_node_is_read),
    seed("marks not waited for", 40000005),
    seed("the first answer of a read wins", 40000015),
    seed("GONE answered as MISSING", 40000034),
    probe!("checksum of fragments unchecked", a_damaged_fragment_is_not_read),
    seed("checksum of datagrams unchecked", 40000002),
    probe!("scrub passes over damage", what_rots_is_made_again_unasked),
    probe!("damage not put on the missing list", what_rots_is_made_again_unasked),
    // Changes of the members (PROTOCOL 10).
    probe!("changes overlap", a_change_waits_for_the_one_in_flight),
    probe!("another incarnation is replaced", one_replacement_is_made_once),
    probe!("members of another epoch are changed", members_are_changed_by_who_knows_them),
    probe!("a disk comes back in another place", a_disk_has_one_place),
    probe!("any number may rebuild", at_most_f_members_rebuild),
    probe!("any number may leave as lost", what_leaves_as_lost_is_gone),
    probe!("members of any shape", a_shape_that_cannot_keep_its_promise_is_none),
    probe!(
        "the newest configuration for every slot",
        a_slot_has_the_owner_of_its_own_configuration
    ),
    probe!("both disks of a node count", one_disk_of_a_node_counts_in_a_slot),
    probe!("a new disk speaks before its place", a_new_disk_promises_nothing_before_its_place),
    probe!("slots before a change left open", slots_before_a_change_are_filled_without_work),
    probe!("a replaced owner is waited for", a_replaced_owner_is_not_waited_for),
    probe!("a read asks the new members only", a_read_during_a_change_asks_the_old_members_too),
    probe!("another incarnation is moved", one_disk_is_moved_and_not_the_next),
    probe!("two nodes at one address", a_place_has_one_node),
    moved("places forgotten at restart", 40000004),
    // Values of older layouts (PROTOCOL 10).
    probe!("other bytes re-coded", other_bytes_are_not_put_in_the_place_of_a_value),
    probe!("a part that waits is re-coded", a_part_that_waits_keeps_its_name),
    probe!("re-coded for other members", nothing_is_re_coded_for_members_that_were),
    probe!("RECODE as a write", re_coding_makes_no_revision),
    probe!("an export names what was re-coded meanwhile", an_export_is_of_the_state_before),
    // Fewer fragments while nodes are missing (PROTOCOL 9.6).
    probe!("no margin kept", what_is_written_while_a_node_is_missing_can_lose_as_many),
    probe!("hosted fragment counted", who_hosts_a_fragment_still_makes_its_own_again),
    // States compared, and taken from peers (PROTOCOL 9.2, 9.3).
    probe!("another state than the others'", a_node_with_another_state_stops),
    probe!("state taken in part", a_state_without_its_end_is_none),
    seed("state of a peer used before it is durable", 40000039),
    seed("own records dropped by a jump", 40000005),
    seed("mark beyond own records", 40000038),
    seed("fragments matched by slot", 40000005),
    probe!("own_next left behind", nothing_is_skipped_below_a_jump),
];

/// What became of a mutant.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub name: &'static str,
    /// Seed or probe that noticed, and what it said.
    pub caught: Option<(String, String)>,
    /// Seeds or probes run with the guard out.
    pub runs: u64,
    pub took: Duration,
    /// What noticed fails with the guard in place as well.
    pub unsound: Option<String>,
}

impl Verdict {
    pub fn is_caught(&self) -> bool {
        self.caught.is_some() && self.unsound.is_none()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (by, why) = match (&self.unsound, &self.caught) {
            (Some(what), _) => ("UNSOUND", what.as_str()),
            (None, Some((by, why))) => (by.as_str(), why.as_str()),
            (None, None) => ("MISSED", ""),
        };
        let words: Vec<&str> = why.split_whitespace().collect();
        let why: String = words.join(" ").chars().take(90).collect();
        let (name, runs, seconds) = (self.name, self.runs, self.took.as_secs_f64());
        write!(out, "{name:<44} {by:<44} {runs:>5} {seconds:>6.1}  {why}")
    }
}

/// The head of the table.
pub fn heading() -> String {
    format!("{:<44} {:<44} {:>5} {:>6}  {}", "guard left out", "caught by", "runs", "s", "how")
}

/// Whether this build can leave guards out at all.
pub fn are_built_in() -> bool {
    racos_engine::MUTANTS
}

/// A seed, and what of its run was not drawn: the code, who fills the slots, and whether nodes move.
type Ran = (u64, usize, Policy, Option<bool>);

/// What seeds come to with all guards in place: many mutants share one.
#[derive(Debug, Default)]
pub struct Whole(Mutex<BTreeMap<Ran, Option<String>>>);

impl Whole {
    /// Why this seed fails though no guard is out, if it does.
    fn failure(&self, seed: u64, fixed: &Fixed) -> Option<String> {
        let code = fixed.code.map_or(0, |(n, _, k)| n * 100 + k);
        let key = (seed, code, fixed.policy, fixed.moves);
        let known = self.0.lock().expect("no holder panics").get(&key).cloned();
        known.unwrap_or_else(|| {
            let failure = run(seed, fixed, false).err();
            self.0.lock().expect("no holder panics").insert(key, failure.clone());
            failure
        })
    }
}

/// Leaves one guard out and looks who notices. `fresh`: tries so many seeds never used before
/// instead of the kept one.
pub fn judge(mutant: &Mutant, fresh: Option<(u64, u64)>, whole: &Whole) -> Verdict {
    let started = Instant::now();
    let mut verdict =
        Verdict { name: mutant.name, caught: None, runs: 0, took: Duration::ZERO, unsound: None };
    match mutant.catch {
        Catch::Probe { name, probe } => {
            verdict.runs = 1;
            verdict.unsound = probe().err();
            let off = racos_mutants::leave_out(mutant.name);
            verdict.caught = noticed(probe).map(|why| (name.to_owned(), why));
            drop(off);
        }
        Catch::Seed { seed, code, policy, moves, within } => {
            // The seeds were chosen with these.
            let (fast, moves) = (Some(Fast::Support), Some(moves));
            let fixed = Fixed { code, policy, fast, moves, ..Fixed::default() };
            let kept = std::iter::once(seed).chain(FRESH_FROM..).take(within as usize);
            let (first, count) = fresh.unwrap_or((0, 0));
            let fresh_seeds = first..first + count;
            let seeds: Vec<u64> =
                if fresh.is_some() { fresh_seeds.collect() } else { kept.collect() };
            for seed in seeds {
                verdict.runs += 1;
                let off = racos_mutants::leave_out(mutant.name);
                let result = run(seed, &fixed, false);
                drop(off);
                if let Err(why) = result {
                    verdict.unsound = whole.failure(seed, &fixed);
                    verdict.caught = Some((format!("seed {seed}"), why));
                    break;
                }
            }
        }
    }
    verdict.took = started.elapsed();
    verdict
}

/// What a probe says, or panics with.
fn noticed(probe: fn() -> Result<(), String>) -> Option<String> {
    crate::run::caught(probe).err()
}

/// All mutants, or `only` one, on several threads; `each` is told of every verdict as it comes.
pub fn judge_all(
    jobs: usize,
    fresh: Option<u64>,
    only: Option<&str>,
    mut each: impl FnMut(&Verdict),
) -> Vec<Verdict> {
    let (next, whole) = (AtomicUsize::new(0), Whole::default());
    let (sender, receiver) = mpsc::sync_channel(MUTANTS.len());
    let mut verdicts = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next, whole) = (sender.clone(), &next, &whole);
            scope.spawn(move || {
                while let Some(mutant) = MUTANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if only.is_some_and(|name| name != mutant.name) {
                        continue;
                    }
                    let from = racos_engine::runtime::random_u128() as u64 >> 16;
                    let verdict = judge(mutant, fresh.map(|count| (from, count)), whole);
                    if sender.send(verdict).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for verdict in receiver.iter() {
            each(&verdict);
            verdicts.push(verdict);
        }
    });
    verdicts
}
