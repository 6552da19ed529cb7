//! The figures of `codec.rs` as a table, in GB/s of value bytes, encode / rebuild: each the best of
//! many short turns, taken in turns by all contenders, so that a busy machine disturbs the ratios
//! little. A second table has values out of cache.
//!
//! `cargo bench -p racos-codec --bench table [--features rivals,isal] -- [milliseconds] [k+m] [1300B]`:
//! milliseconds for each contender and row; only the codes and the bytes of a value that are named.

use std::time::Duration;

use racos_codec::kernel;
use racos_codec::measure::{CODES, Case, OUT_OF_CACHE, Row, SIZES, measure};

fn main() {
    let kernel = kernel().expect("RACOS_CODEC_KERNEL names a kernel this machine has");
    let words: Vec<String> = std::env::args().skip(1).collect();
    let milliseconds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(50);
    let chosen = |(k, m): &(usize, usize)| {
        let name = format!("{k}+{m}");
        words.contains(&name) || !words.iter().any(|word| word.contains('+'))
    };
    let rows = |cases: Vec<Case>| {
        let mut heading = true;
        for case in cases {
            let budget = Duration::from_millis(milliseconds);
            let row = measure(case, kernel, budget).expect("a code");
            if std::mem::take(&mut heading) {
                print_heading(kernel.name(), &row);
            }
            print_row(&row);
        }
    };
    let codes = || CODES.into_iter().filter(chosen);
    let asked = |size: &usize| {
        words.contains(&format!("{size}B")) || !words.iter().any(|word| word.ends_with('B'))
    };
    let sizes = || SIZES.into_iter().filter(asked);
    let cases = codes().flat_map(|(k, m)| sizes().map(move |size| Case::in_cache(k, m, size)));
    rows(cases.collect());
    if words.iter().any(|word| word.ends_with('B')) {
        return;
    }
    for (streaming_from, stores) in [(None, "ordinary stores"), (Some(0), "past the caches")] {
        let megabytes = OUT_OF_CACHE >> 20;
        println!("\nOut of cache: values visited in turn, {megabytes} MiB in all, {stores}.\n");
        let cases = codes().map(|(k, m)| Case {
            working_set: OUT_OF_CACHE,
            streaming_from,
            ..Case::in_cache(k, m, 2 << 20)
        });
        rows(cases.collect());
    }
}

fn print_heading(kernel: &str, row: &Row) {
    let names = row.rivals.iter().map(|rival| rival.name.as_str());
    let names: Vec<_> = [kernel, "memcpy"].into_iter().chain(names).collect();
    println!("| k | m | value | {} |", names.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(names.len()));
}

fn print_row(row: &Row) {
    let Case { k, m, size, .. } = row.case;
    let mut cells = format!("{:.1} / {:.1}", row.encode_gbs, row.rebuild_gbs);
    cells += &format!(" | {:.1}", row.memcpy_gbs);
    for rival in &row.rivals {
        cells += &format!(" | {:.1} / {:.2}", rival.encode_gbs, rival.rebuild_gbs);
    }
    println!("| {k} | {m} | {size} | {cells} |");
}
