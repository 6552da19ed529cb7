//! What people see: sizes, tables, progress.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Transfers from this size on show a progress bar.
pub const PROGRESS_BYTES_MIN: u64 = 8 << 20;

/// Writes a line to standard output. False once nobody reads it any more (`racos ls | head`), which
/// is no failure: whoever prints much then stops, all others go on.
pub fn line(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Bytes in the largest unit that leaves at least one, with one decimal.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut scaled = count as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Bytes from text: a number, with k, m, g for powers of 1024 or kb, mb, gb for powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        unit => {
            return Err(format!("`{unit}` is no unit: use k, m, g (1024) or kb, mb, gb (1000)"));
        }
    };
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is not a size"))?;
    let count = number * factor as f64;
    if !(0.0..=1e18).contains(&count) {
        return Err(format!("`{text}` is not a size"));
    }
    Ok(count.round() as u64)
}

/// Rows in columns; the first row is the heading. Columns of numbers are aligned to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
    let width = |at: usize| rows.iter().map(|row| cell(row, at).chars().count()).max().unwrap_or(0);
    let is_number = |at: usize| {
        let mut below = rows.iter().skip(1).map(|row| cell(row, at)).filter(|c| !c.is_empty());
        below.all(|text| text.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
    };
    let layout: Vec<_> = (0..columns).map(|at| (width(at), is_number(at))).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (width, right)) in layout.iter().enumerate() {
            let cell = cell(row, at);
            let pad = " ".repeat(width - cell.chars().count());
            let gap = if at == 0 { "" } else { "  " };
            let padded = if *right { format!("{pad}{cell}") } else { format!("{cell}{pad}") };
            line.push_str(gap);
            line.push_str(&padded);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A bar over bytes on standard error; hidden unless that is a terminal and there is enough to do.
pub fn transfer_bar(total: Option<u64>) -> ProgressBar {
    let is_long = total.is_none_or(|total| total >= PROGRESS_BYTES_MIN);
    if !is_long || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match total {
        Some(_) => "{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    bar.with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

/// A bar over steps with a message; plain lines are printed by the caller where it is hidden.
pub fn step_bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    let template = "  {bar:24} {pos}/{len} {msg}";
    bar.with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, count) in [
            ("0", 0),
            ("1300", 1300),
            ("16k", 16 << 10),
            ("1.5MiB", 3 << 19),
            ("133KB", 133_000),
            ("1.3 mb", 1_300_000),
            ("2g", 2 << 30),
        ] {
            assert_eq!(parse_bytes(&text.replace(' ', "")), Ok(count), "{text}");
        }
        assert!(["", "k", "-1", "1x", "1e30"].iter().all(|text| parse_bytes(text).is_err()));
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["name", "size"], ["a", "5"], ["long", "1234"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| cell.to_string()).collect()).collect();
        assert_eq!(table(&rows), "name  size\na        5\nlong  1234\n");
    }
}
