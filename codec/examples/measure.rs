//! Prints how fast this machine encodes, rebuilds and copies:
//! `cargo run --release -p racos-codec --example measure [milliseconds per row]`.

use std::time::Duration;

use racos_codec::measure::{Case, measure};
use racos_codec::{CodecError, kernel};

const CODES: [(usize, usize); 8] = [(3, 2), (2, 3), (4, 4), (5, 2), (7, 2), (3, 4), (3, 6), (8, 5)];
/// Value bytes, bytes of all values visited, and whether outputs go past the caches. The last two
/// rows are out of cache.
const SIZES: [(usize, usize, bool); 7] = [
    (1344, 0, false),
    (16 << 10, 0, false),
    (64 << 10, 0, false),
    (666 << 10, 0, false),
    (2 << 20, 0, false),
    (2 << 20, 96 << 20, false),
    (2 << 20, 96 << 20, true),
];

fn main() -> Result<(), CodecError> {
    let milliseconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(200);
    let kernel = kernel()?;
    println!("kernel {}, GB/s of value bytes, one core", kernel.name());
    println!("  k  m     size   visited   encode  rebuild   memcpy  stores");
    for (k, m) in CODES {
        for (size, working_set, streaming) in SIZES {
            let case = Case { k, m, size, working_set, streaming };
            let row = measure(case, kernel, Duration::from_millis(milliseconds))?;
            println!(
                "{k:3} {m:2} {size:8} {:9} {:8.1} {:8.1} {:8.1}  {}",
                working_set.max(size),
                row.encode_gbs,
                row.rebuild_gbs,
                row.memcpy_gbs,
                if streaming { "past the caches" } else { "ordinary" }
            );
        }
    }
    Ok(())
}
