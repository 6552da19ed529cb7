//! Every target over its seeds and the inputs that are kept, over changed copies of them and over
//! made-up inputs, the same in every run.

use racos_fuzz::{TARGETS, Target};
use std::path::Path;

/// Inputs of each kind that each target is given.
const INPUTS: u64 = 1500;
const INPUT_BYTES_MAX: usize = 400;

fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 20) as usize
}

/// The inputs kept in a folder of the target's name, if there is one.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file of the corpus")).collect()
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let &Target { check, seeds, .. } = target.expect("a target of that name");
    let mut corpus = seeds();
    assert!(!corpus.is_empty(), "something to begin with");
    corpus.extend(kept(name));
    corpus.iter().for_each(|input| check(input));
    let mut state = 0x9E37_79B9_7F4A_7C15;
    for _ in 0..INPUTS {
        let length = random(&mut state) % INPUT_BYTES_MAX;
        check(&(0..length).map(|_| random(&mut state) as u8).collect::<Vec<_>>());
        let mut changed = corpus[random(&mut state) % corpus.len()].clone();
        for _ in 0..1 + random(&mut state) % 4 {
            let at = random(&mut state) % (changed.len() + 1);
            match (random(&mut state) % 3, changed.get_mut(at)) {
                (0, Some(byte)) => *byte = random(&mut state) as u8,
                (1, Some(_)) => changed.truncate(at),
                _ => changed.insert(at, random(&mut state) as u8),
            }
        }
        check(&changed);
    }
}

#[test]
fn codec_answers_any_call() {
    holds("codec");
}

#[test]
fn machine_reads_any_batch() {
    holds("machine");
}

#[test]
fn messages_are_read_whatever_they_hold() {
    holds("messages");
}

#[test]
fn net_meets_any_datagram() {
    holds("net");
}

#[test]
fn storage_opens_or_refuses_any_disk() {
    holds("storage");
}
