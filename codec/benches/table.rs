//! The figures of `codec.rs` as a table, in GB/s of value bytes: each the best of many short turns,
//! taken in turns by all contenders, so that a busy machine disturbs the ratios little.
//!
//! `cargo bench -p racos-codec --bench table [--features rivals] [-- milliseconds per figure]`.

mod contenders;

use std::time::Duration;

use contenders::{Rooms, Value, all};
use racos_codec::measure::least_seconds;

const CODES: [(usize, usize); 6] = [(3, 2), (2, 3), (4, 4), (7, 2), (3, 6), (8, 5)];
const SIZES: [usize; 4] = [1344, 64 << 10, 666 << 10, 2 << 20];
const TURNS: u32 = 10;

fn main() {
    let milliseconds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(50);
    let turn = Duration::from_millis(milliseconds) / TURNS;
    let mut heading = true;
    for (k, m) in CODES {
        for size in SIZES {
            let value = Value::new(k, m, size);
            let mut rooms = Rooms::new(&value);
            let mut contenders = all(&value, &mut rooms);
            let mut best = vec![[f64::MAX; 2]; contenders.len()];
            for _ in 0..TURNS {
                for (contender, best) in contenders.iter_mut().zip(&mut best) {
                    let encode = least_seconds(value.size(), turn, &mut contender.encode);
                    let rebuild = least_seconds(value.size(), turn, &mut contender.rebuild);
                    *best = [best[0].min(encode), best[1].min(rebuild)];
                }
            }
            if std::mem::take(&mut heading) {
                let names: Vec<_> = contenders.iter().map(|c| c.name.as_str()).collect();
                println!("| k | m | value | {} |", names.join(" | "));
                println!("|---|---|---|{}", "---|".repeat(names.len()));
            }
            let speed = |seconds: &f64| value.size() as f64 / seconds / 1e9;
            let cells = best
                .iter()
                .map(|[encode, rebuild]| format!("{:.1} / {:.1}", speed(encode), speed(rebuild)));
            println!(
                "| {k} | {m} | {} | {} |",
                value.size(),
                cells.collect::<Vec<_>>().join(" | ")
            );
        }
    }
}
