//! Each guard left out once: a guard whose absence nobody notices may as well not be there.

use racos_sim::mutants::{MUTANTS, are_built_in, heading, judge_all};

const JOBS: usize = 2;
const LEAST: usize = 30;

#[test]
fn every_guard_is_missed_when_it_is_left_out() {
    assert!(are_built_in(), "tests are built with the feature `mutants`");
    assert!(MUTANTS.len() >= LEAST);
    println!("{}", heading());
    let verdicts = judge_all(JOBS, None, None, |verdict| println!("{verdict}"));
    let caught = verdicts.iter().filter(|verdict| verdict.is_caught()).count();
    let missed = verdicts.len() - caught;
    println!("mutants: {caught} caught, {missed} missed");
    assert_eq!((caught, missed), (MUTANTS.len(), 0));
}
