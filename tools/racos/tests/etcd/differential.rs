//! racos and a real etcd are asked the same, and must answer the same.

use crate::cases;
use crate::client::{Client, Step};
use crate::program::{self, Draw, Known};
use crate::servers::Server;
use crate::watch::Watches;
use std::fmt::Write as _;

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What a server said to a program: one line a step.
#[derive(Default)]
struct Transcript {
    lines: Vec<(String, String)>,
    watched: String,
    /// The server ended at this step.
    broke_off: Option<String>,
}

/// The revision that an answer's header tells.
fn revision_of(answer: &str) -> Option<i64> {
    let rest = answer.split_once("revision: ")?.1;
    rest[..rest.find(|at: char| at != '-' && !at.is_ascii_digit())?].parse().ok()
}

/// Runs one random program. The generator sees only what any correct server tells alike, so two
/// servers that answer alike are asked alike.
async fn run(client: &Client, seed: u64, steps: usize) -> Transcript {
    let mut draw = Draw::new(seed);
    let mut known = Known { revision: 1, compacted: -1 };
    let mut transcript = Transcript::default();
    let mut watches = Watches::new(client.channel(seed as usize));
    for at in 0..steps {
        if draw.one_in(25) {
            let revision = watches.create(&mut draw, known, &mut client.kv(at)).await;
            known.revision = known.revision.max(revision);
        }
        let step = program::step(&mut draw, known);
        if matches!(step, Step::Compact(_)) {
            // Whether an event still has its previous version depends on what came first.
            let revision = watches.settle(&mut client.kv(at)).await;
            known.revision = known.revision.max(revision);
        }
        let answer = client.ask(at, &step).await;
        // Some odd transactions end a real etcd 3.4; then so does the comparison.
        if answer.starts_with("Unavailable") || answer.starts_with("Unknown") {
            transcript.broke_off = Some(format!("{answer} to {}", short(&format!("{step:?}"))));
            return transcript;
        }
        if let Some(revision) = revision_of(&answer) {
            known.revision = known.revision.max(revision);
            if let Step::Compact(asked) = &step {
                known.compacted = asked.revision;
            }
        }
        transcript.lines.push((short(&format!("{step:?}")), answer));
    }
    let mut kv = client.kv(0);
    transcript.watched = watches.finish(&mut kv).await;
    transcript
}

fn short(text: &str) -> String {
    let mut text = text.to_string();
    if text.len() > 1500 {
        text.truncate((0..1500).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        text.push_str("...");
    }
    text
}

/// The first difference, with what led to it.
fn difference(etcd: &Transcript, racos: &Transcript) -> Option<String> {
    let pairs = etcd.lines.iter().zip(&racos.lines);
    let at = pairs.clone().position(|(one, other)| one != other);
    let Some(at) = at else {
        let differs = etcd.broke_off.is_none() && etcd.watched != racos.watched;
        return differs.then(|| watch_difference(etcd, racos));
    };
    let mut text = String::new();
    for (step, answer) in &etcd.lines[at.saturating_sub(12)..at] {
        writeln!(text, "   {step}\n      -> {}", short(answer)).unwrap();
    }
    let ((step, one), (_, other)) = (&etcd.lines[at], &racos.lines[at]);
    writeln!(text, "step {at}: {step}\n  etcd:  {}\n  racos: {}", short(one), short(other))
        .unwrap();
    Some(text)
}

/// The first watch that was told something else, up to where that begins.
fn watch_difference(etcd: &Transcript, racos: &Transcript) -> String {
    let mut lines = etcd.watched.lines().zip(racos.watched.lines()).enumerate();
    let Some((at, (one, other))) = lines.find(|(_, (one, other))| one != other) else {
        return "one of them was told more".to_string();
    };
    let before: Vec<_> = etcd.watched.lines().take(at).collect();
    let begin = before.iter().rposition(|line| line.starts_with("watch ")).unwrap_or(0);
    let before = before[begin..].join("\n");
    format!("{}\n  etcd:  {}\n  racos: {}", short(&before), short(one), short(other))
}

/// Runs a chosen program.
async fn run_case(client: &Client, steps: &[Step]) -> Transcript {
    let mut transcript = Transcript::default();
    for (at, step) in steps.iter().enumerate() {
        let answer = client.ask(at, step).await;
        transcript.lines.push((short(&format!("{step:?}")), answer));
    }
    transcript
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = std::env::var("RACOS_ETCD_SEED").ok().and_then(|text| text.parse().ok());
    let count =
        std::env::var("RACOS_ETCD_SEEDS").ok().and_then(|t| t.parse().ok()).unwrap_or(count);
    let first = first.unwrap_or(1);
    first..first + count
}

/// The harness itself: two etcds give the same answers, so a difference is never the harness's.
#[test]
fn two_etcds_answer_alike() {
    for seed in seeds(1) {
        let Some(one) = Server::etcd("alike") else { return };
        let first =
            block_on(async { run(&Client::connect(&one.endpoints).await, seed, 400).await });
        drop(one);
        let other = Server::etcd("alike").expect("it was there before");
        let second =
            block_on(async { run(&Client::connect(&other.endpoints).await, seed, 400).await });
        if let Some(text) = difference(&first, &second) {
            panic!("seed {seed}:\n{text}");
        }
        let refused = first.lines.iter().filter(|(_, answer)| !answer.contains("header")).count();
        println!("seed {seed}: {} steps, {refused} refused", first.lines.len());
    }
}

/// One of them: `RACOS_ETCD_CASE="each user" cargo test -p racos --test etcd chosen`.
#[test]
fn racos_answers_chosen_programs_as_etcd_does() {
    let chosen = std::env::var("RACOS_ETCD_CASE").unwrap_or_default();
    for (name, steps) in cases::all().into_iter().filter(|(name, _)| name.contains(&chosen)) {
        let Some(etcd) = Server::etcd("cases") else { return };
        let expected =
            block_on(async { run_case(&Client::connect(&etcd.endpoints).await, &steps).await });
        drop(etcd);
        let racos = Server::racos("cases");
        let told =
            block_on(async { run_case(&Client::connect(&racos.endpoints).await, &steps).await });
        if let Some(text) = difference(&expected, &told) {
            panic!("{name}:\n{text}");
        }
    }
}

/// A seed that fails: `RACOS_ETCD_SEED=7 RACOS_ETCD_SEEDS=1 cargo test -p racos --test etcd random`.
#[test]
fn racos_answers_random_programs_as_etcd_does() {
    for seed in seeds(3) {
        let Some(etcd) = Server::etcd("random") else { return };
        let expected =
            block_on(async { run(&Client::connect(&etcd.endpoints).await, seed, 400).await });
        drop(etcd);
        let racos = Server::racos("random");
        let told =
            block_on(async { run(&Client::connect(&racos.endpoints).await, seed, 400).await });
        assert_eq!(told.broke_off, None, "seed {seed}: racos goes on");
        if let Some(text) = difference(&expected, &told) {
            panic!("seed {seed}:\n{text}");
        }
    }
}
