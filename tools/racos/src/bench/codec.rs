//! `racos bench codec`: how fast values are encoded and rebuilt on this machine.

use crate::exit::{Outcome, failed};
use crate::output;
use clap::Args;
use racos_codec::kernel;
use racos_codec::measure::{Case, Row, measure};
use serde_json::json;
use std::time::Duration;

/// Measure encoding and rebuilding, beside copying, on one core.
#[derive(Args, Debug)]
pub struct CodecArgs {
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Milliseconds for each row.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    row_ms: u64,
}

/// k and m of the codes.
const CODES: [(usize, usize); 5] = [(3, 2), (2, 3), (1, 2), (3, 4), (3, 6)];
const SIZES: [usize; 4] = [1300, 16 << 10, 133_000, 1_300_000];

pub fn run(args: &CodecArgs) -> Outcome {
    let kernel = kernel().map_err(|error| failed(error.to_string()))?;
    let mut rows = Vec::new();
    let bar = output::step_bar((CODES.len() * SIZES.len()) as u64);
    for (k, m) in CODES {
        for size in SIZES {
            let case = Case { k, m, size, working_set: 0, streaming: false };
            let row = measure(case, kernel, Duration::from_millis(args.row_ms));
            rows.push(row.map_err(|error| failed(error.to_string()))?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if args.json {
        let rows: Vec<_> = rows.iter().map(to_json).collect();
        output::line(&json!({"kernel": kernel.name(), "rows": rows}).to_string());
    } else {
        output::line(&format!("kernel {}, GB/s of value bytes on one core", kernel.name()));
        output::line(to_table(&rows).trim_end());
    }
    Ok(())
}

fn to_json(row: &Row) -> serde_json::Value {
    json!({
        "k": row.case.k,
        "m": row.case.m,
        "size": row.case.size,
        "encode_gbs": row.encode_gbs,
        "rebuild_gbs": row.rebuild_gbs,
        "memcpy_gbs": row.memcpy_gbs,
    })
}

fn to_table(rows: &[Row]) -> String {
    let heading = ["k", "m", "size", "encode", "rebuild", "memcpy"].map(String::from).to_vec();
    let figures = rows.iter().map(|row| {
        let gbs = |figure: f64| format!("{figure:.1}");
        let case = &row.case;
        vec![
            case.k.to_string(),
            case.m.to_string(),
            case.size.to_string(),
            gbs(row.encode_gbs),
            gbs(row.rebuild_gbs),
            gbs(row.memcpy_gbs),
        ]
    });
    output::table(&std::iter::once(heading).chain(figures).collect::<Vec<_>>())
}
