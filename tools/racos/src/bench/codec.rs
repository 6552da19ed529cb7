//! `racos bench codec`: how fast values are encoded and rebuilt on this machine.

use crate::exit::{Outcome, failed};
use crate::output;
use clap::Args;
use racos_codec::kernel;
use racos_codec::measure::{CODES, Case, OUT_OF_CACHE, Row, SIZES, measure};
use serde_json::json;
use std::time::Duration;

/// Measure encoding and rebuilding, beside copying and, where they were built in (features `rivals`
/// and `isal`), other erasure codes, on one core.
#[derive(Args, Debug)]
pub struct CodecArgs {
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Milliseconds for each row and contender.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    row_ms: u64,
}

pub fn run(args: &CodecArgs) -> Outcome {
    let kernel = kernel().map_err(|error| failed(error.to_string()))?;
    let cached = CODES.into_iter().flat_map(|(k, m)| SIZES.map(|size| Case::in_cache(k, m, size)));
    let far = CODES.into_iter().map(|(k, m)| Case {
        working_set: OUT_OF_CACHE,
        streaming_from: Some(0),
        ..Case::in_cache(k, m, 2 << 20)
    });
    let bar = output::step_bar((CODES.len() * (SIZES.len() + 1)) as u64);
    let mut rows = Vec::new();
    for case in cached.chain(far) {
        let row = measure(case, kernel, Duration::from_millis(args.row_ms));
        rows.push(row.map_err(|error| failed(error.to_string()))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        let rows: Vec<_> = rows.iter().map(to_json).collect();
        output::line(&json!({"kernel": kernel.name(), "rows": rows}).to_string());
    } else {
        let what = "encode and rebuild in GB/s of value bytes on one core";
        output::line(&format!("kernel {}, {what}; * values out of cache", kernel.name()));
        output::line(to_table(&rows).trim_end());
    }
    Ok(())
}

/// A rival's columns begin with its name, as in `isa_l_2_30_encode_gbs`.
fn to_json(row: &Row) -> serde_json::Value {
    let mut columns = json!({
        "k": row.case.k,
        "m": row.case.m,
        "size": row.case.size,
        "working_set": row.case.working_set.max(row.case.size),
        "encode_gbs": row.encode_gbs,
        "rebuild_gbs": row.rebuild_gbs,
        "memcpy_gbs": row.memcpy_gbs,
    });
    for rival in &row.rivals {
        let name = rival.name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
        columns[format!("{name}_encode_gbs")] = rival.encode_gbs.into();
        columns[format!("{name}_rebuild_gbs")] = rival.rebuild_gbs.into();
    }
    columns
}

fn to_table(rows: &[Row]) -> String {
    // Out of cache fewer rivals take part: those of the first row are all.
    let rivals: Vec<&str> = rows[0].rivals.iter().map(|rival| rival.name.as_str()).collect();
    let mut heading = ["k", "m", "size", "encode", "rebuild", "memcpy"].map(String::from).to_vec();
    for rival in &rivals {
        heading.extend([rival.to_string(), "rebuild".to_owned()]);
    }
    let figures = rows.iter().map(|row| {
        let gbs = |figure: f64| format!("{figure:.1}");
        let Case { k, m, size, working_set, .. } = row.case;
        let far = if working_set > size { " *" } else { "" };
        let mut cells = vec![k.to_string(), m.to_string(), format!("{size}{far}")];
        cells.extend([row.encode_gbs, row.rebuild_gbs, row.memcpy_gbs].map(gbs));
        for name in &rivals {
            let rival = row.rivals.iter().find(|rival| rival.name == *name);
            let both = rival.map(|rival| [rival.encode_gbs, rival.rebuild_gbs].map(gbs));
            cells.extend(both.unwrap_or_else(|| ["-", "-"].map(String::from)));
        }
        cells
    });
    output::table(&std::iter::once(heading).chain(figures).collect::<Vec<_>>())
}
