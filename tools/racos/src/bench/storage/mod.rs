//! `racos bench storage`: what the log reaches on this disk, and fio beside it.
//!
//! All of it runs the shipped log, device and node; what fio does is said by its name, and absent where
//! it is not installed.

mod appends;
mod fio;
mod keys;
mod lone;
mod reads;
mod soak;

use crate::exit::{Outcome, usage};
use crate::output;
use crate::scratch::Scratch;
use appends::Row;
use clap::{Args, ValueEnum};
use keys::{Amplification, Churn, Restart, Stall};
use racos_storage::device::FlushMethod;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Measure the log on this disk: durable appends beside fio, restarts, checkpoints, reclaiming.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racos bench storage /var/lib --only appends\n  \
    racos bench storage --only restart --keys 10000000 --value-size 100\n\n\
    Files are written below DIR and removed. Figures of fio stand beside those of the log where it \
    is installed.")]
pub struct StorageArgs {
    /// A directory on the disk to measure [default: `target` here, or the system's temporary one].
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How long each row of appends and reads is measured.
    #[arg(long, short, default_value_t = 5.0)]
    seconds: f64,
    /// Keys of the restart and of the checkpoints.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    keys: u64,
    /// Bytes of their values.
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, default_value = "1300")]
    value_size: u64,
    /// Live bytes of the store whose write amplification is measured.
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, default_value = "1g")]
    live: u64,
    /// Instead of all that: read and write for so long, and tell of every minute.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<f64>,
    /// Operations under way while soaking, half of them reads.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Bytes that the log of a soak may take besides what is live and a quarter more.
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, default_value = "256m")]
    reserve: u64,
    /// How writes are flushed: linked, dsync or sync [default: measured, as by `racos tune`].
    #[arg(long)]
    flush: Option<String>,
    /// One JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Open the node in this directory, and tell how long that took.
    #[arg(long, hide = true, value_name = "DIR")]
    reopen: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Durable appends to the log alone.
    Appends,
    /// Random reads of large fragments from the log alone.
    Reads,
    /// A node's start with many keys, and the memory they take.
    Restart,
    /// The longest turn of a node's loop while a checkpoint is written.
    Stall,
    /// Bytes written for each byte put, of a store that is full and in use.
    Amplification,
}

/// Bytes of a value where write amplification is measured.
const CHURN_VALUE: usize = 16 << 10;

#[derive(Default)]
struct Results {
    appends: Vec<Row>,
    reads: Vec<reads::Row>,
    restart: Option<Restart>,
    stall: Option<Stall>,
    amplification: Vec<Amplification>,
}

pub fn run(args: &StorageArgs) -> Outcome {
    if let Some(dir) = &args.reopen {
        output::line(&keys::reopen(dir)?.to_string());
        return Ok(());
    }
    if !(0.05..=3600.0).contains(&args.seconds) || args.value_size > 1 << 20 {
        return Err(usage("--seconds from 0.05 to 3600, --value-size up to 1m"));
    }
    let scratch = match &args.dir {
        Some(dir) => Scratch::below(dir, "bench-storage")?,
        None => Scratch::new("bench-storage", None)?,
    };
    let flush = match &args.flush {
        Some(name) => crate::config::parse_flush(name)
            .ok_or_else(|| usage(format!("--flush {name}: linked, dsync or sync")))?,
        None => crate::tune::profile_here(scratch.path(), 1).flush,
    };
    if let Some(minutes) = args.soak {
        let load = soak::Load {
            minutes,
            keys: args.keys,
            len: args.value_size as usize,
            under_way: usize::from(args.clients),
            reserve_bytes: args.reserve,
            flush,
        };
        let verdict = soak::soak(&scratch.path().join("soak"), &load, &mut |minute| {
            let words = if args.json { minute.to_json().to_string() } else { minute.to_text() };
            output::line(&words);
        })?;
        if let Some(verdict) = verdict {
            let words = if args.json { verdict.to_json().to_string() } else { verdict.to_text() };
            output::line(&words);
        }
        return Ok(());
    }
    let results = measure(args, flush, scratch.path())?;
    match args.json {
        true => output::line(&to_json(&results).to_string()),
        false => output::line(to_text(&results).trim_end()),
    };
    Ok(())
}

fn measure(
    args: &StorageArgs,
    flush: FlushMethod,
    dir: &Path,
) -> Result<Results, crate::exit::Failure> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut results = Results::default();
    let bar = output::step_bar(args.keys);
    let mut told = |done: u64| bar.set_position(done);
    let fresh = |name: &str| dir.join(name);
    let clear = |name: &str| {
        // The whole directory goes at the end; what is large goes early.
        let _ = std::fs::remove_dir_all(dir.join(name));
    };
    if wanted(Part::Appends) {
        for load in appends::LOADS {
            bar.set_message(load.name);
            results.appends.push(appends::measure(dir, load, flush, args.seconds)?);
        }
    }
    if wanted(Part::Reads) {
        for load in reads::LOADS {
            bar.set_message(load.name);
            results.reads.push(reads::measure(dir, load, args.seconds)?);
        }
    }
    let len = args.value_size as usize;
    if wanted(Part::Restart) {
        bar.set_message("restart");
        results.restart = Some(keys::restart(&fresh("restart"), args.keys, len, flush, &mut told)?);
        clear("restart");
    }
    if wanted(Part::Stall) {
        bar.set_message("checkpoints");
        results.stall = Some(keys::stall(&fresh("stall"), args.keys, len, flush, &mut told)?);
        clear("stall");
    }
    if wanted(Part::Amplification) {
        for churn in [Churn::Half, Churn::Uniform] {
            bar.set_message("write amplification");
            let measured = keys::amplification(
                &fresh("churn"),
                args.live,
                CHURN_VALUE,
                churn,
                flush,
                &mut told,
            )?;
            results.amplification.push(measured);
            clear("churn");
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

fn to_json(results: &Results) -> Value {
    let fio = |fio: &Option<fio::Fio>| {
        fio.as_ref().map(|fio| {
            json!({
                "version": fio.version,
                "per_second": fio.per_second,
                "mb_per_s": fio.mb_per_s,
                "mean_us": fio.mean_us,
            })
        })
    };
    let reads = results.reads.iter().map(|row| {
        let figures = |it: &reads::Figures| {
            json!({
                "per_second": it.per_second,
                "mb_per_s": it.mb_per_s,
                "p50_us": it.p50_us,
                "p99_us": it.p99_us,
                "cpu_us": it.cpu_us,
            })
        };
        json!({
            "load": row.load.name,
            "registered": figures(&row.registered),
            "alone": figures(&row.alone),
            "device": row.device,
            "fio": fio(&row.fio),
        })
    });
    let appends = results.appends.iter().map(|row| {
        json!({
            "load": row.load.name,
            "per_second": row.per_second,
            "mb_per_s": row.mb_per_s,
            "p50_us": row.p50_us,
            "p99_us": row.p99_us,
            "mean_us": row.mean_us,
            "records_per_flush": row.per_flush,
            "written_per_byte": row.written,
            "device": row.device,
            "fio": fio(&row.fio),
            "ratio": row.ratio(),
        })
    });
    let restart = results.restart.as_ref().map(|restart| {
        json!({
            "keys": restart.keys,
            "value_size": restart.len,
            "open_s": restart.open_s,
            "file_bytes": restart.file_bytes,
            "memory_per_key": restart.memory_per_key,
            "fill_per_second": restart.fill_per_second,
        })
    });
    let turns = |figures: &keys::TurnFigures| {
        json!({
            "max_us": figures.max_us,
            "p999_us": figures.p999_us,
            "cpu_max_us": figures.cpu_max_us,
            "above_1_ms_of_cpu_per_s": figures.long_per_s,
        })
    };
    let stall = results.stall.as_ref().map(|stall| {
        json!({
            "keys": stall.keys,
            "checkpoints": stall.checkpoints,
            "with": turns(&stall.with),
            "without": turns(&stall.without),
            "counting": turns(&stall.counting),
        })
    });
    let amplification = results.amplification.iter().map(|row| {
        json!({
            "churn": row.name,
            "value_size": row.len,
            "written": row.written,
            "copied": row.copied,
            "full_percent": row.full_percent,
            "file_bytes": row.file_bytes,
            "live_bytes": row.live_bytes,
            "written_by_kind": row.kinds.iter().copied().collect::<BTreeMap<_, _>>(),
            "checkpoints": row.checkpoints,
            "files": {
                "needed": row.parts.needed,
                "named_by_a_checkpoint_alone": row.parts.named,
                "tail": row.parts.tail,
                "dead": row.parts.dead,
                "free": row.parts.free,
            },
        })
    });
    json!({
        "appends": appends.collect::<Vec<_>>(),
        "reads": reads.collect::<Vec<_>>(),
        "restart": restart,
        "stall": stall,
        "amplification": amplification.collect::<Vec<_>>(),
    })
}

fn to_text(results: &Results) -> String {
    let mut text = String::new();
    if let Some(row) = results.appends.first() {
        text += &format!("{}\n", row.device);
        text += &appends_table(&results.appends);
    }
    if let Some(row) = results.reads.first() {
        text += &format!("{}\n", row.device);
        text += &reads_table(&results.reads);
    }
    if let Some(restart) = &results.restart {
        text += &format!(
            "restart with {} keys of {} B: {:.2} s ({} of files); {:.0} B of memory a key beyond the \
             key itself; written at {:.0} keys a second\n",
            restart.keys,
            restart.len,
            restart.open_s,
            output::bytes(restart.file_bytes),
            restart.memory_per_key,
            restart.fill_per_second,
        );
    }
    if let Some(stall) = &results.stall {
        text += &stall_table(stall);
    }
    for row in &results.amplification {
        text += &format!(
            "write amplification, {}, values of {}: {:.2}, of that {:.2} copied; {} live of {}, {:.0}% \
             full\n",
            row.name,
            output::bytes(row.len as u64),
            row.written,
            row.copied,
            output::bytes(row.live_bytes),
            output::bytes(row.file_bytes),
            row.full_percent,
        );
        text += &parts_of(row);
    }
    text
}

/// What was written for each byte put, and what the files hold, in parts.
fn parts_of(row: &Amplification) -> String {
    let in_records: f64 = row.kinds.iter().map(|(_, share)| share).sum();
    let kinds = row.kinds.iter().filter(|(_, share)| *share >= 0.005);
    let kinds: Vec<String> = kinds.map(|(name, share)| format!("{name} {share:.2}")).collect();
    let parts = &row.parts;
    let share = |bytes: u64| bytes as f64 / row.live_bytes.max(1) as f64;
    format!(
        "  written: {}, heads and padding {:.2} ({} checkpoints); files, of what is live: named by a \
         checkpoint alone {:.3}, from the older mark on {:.3}, dead {:.3}, free {:.3}\n",
        kinds.join(", "),
        row.written - in_records,
        row.checkpoints,
        share(parts.named),
        share(parts.tail),
        share(parts.dead),
        share(parts.free),
    )
}

fn appends_table(rows: &[Row]) -> String {
    let rival = rows.iter().find_map(|row| row.fio.as_ref());
    let rival = rival.map_or("fio (not installed)", |fio| fio.version.as_str());
    let heading = ["durable appends", "a second", "MB/s", "p50 us", "p99 us", "mean us", "a flush"];
    let mut heading: Vec<String> = heading.map(String::from).to_vec();
    heading.extend([format!("{rival}: a second"), "MB/s".into(), "mean us".into(), "ratio".into()]);
    let cells = rows.iter().map(|row| {
        let figures =
            [row.per_second, row.mb_per_s, row.p50_us, row.p99_us, row.mean_us, row.per_flush];
        let mut cells = vec![row.load.name.to_string()];
        cells.extend(figures.map(|figure| format!("{figure:.1}")));
        if let Some(fio) = &row.fio {
            cells.extend([fio.per_second, fio.mb_per_s, fio.mean_us].map(|f| format!("{f:.1}")));
        }
        cells.extend(row.ratio().map(|ratio| format!("{ratio:.2}")));
        cells
    });
    output::table(&std::iter::once(heading).chain(cells).collect::<Vec<_>>())
}

fn reads_table(rows: &[reads::Row]) -> String {
    let heading = ["random reads", "a second", "MB/s", "p50 us", "p99 us", "CPU us"];
    let heading = heading.map(String::from).to_vec();
    let mut table = vec![heading];
    for row in rows {
        for (way, it) in [("registered", row.registered), ("each alone", row.alone)] {
            let figures = [it.per_second, it.mb_per_s, it.p50_us, it.p99_us, it.cpu_us];
            let figures = figures.map(|figure| format!("{figure:.1}"));
            let name = format!("{}, buffers {way}", row.load.name);
            table.push(std::iter::once(name).chain(figures).collect());
        }
        if let Some(fio) = &row.fio {
            let figures = [fio.per_second, fio.mb_per_s, fio.mean_us].map(|it| format!("{it:.1}"));
            let name = format!("{}, {} (mean us)", row.load.name, fio.version);
            table.push(std::iter::once(name).chain(figures).collect());
        }
    }
    output::table(&table)
}

fn stall_table(stall: &Stall) -> String {
    let heading =
        ["turns of the loop", "longest us", "of CPU us", "p99.9 us", "above 1 ms of CPU/s"];
    let row = |name: String, figures: &keys::TurnFigures| {
        let long = format!("{:.2}", figures.long_per_s);
        let figures = [figures.max_us, figures.cpu_max_us, figures.p999_us];
        let figures = figures.map(|figure| format!("{figure:.0}"));
        std::iter::once(name).chain(figures).chain([long]).collect()
    };
    output::table(&[
        heading.map(String::from).to_vec(),
        row(format!("{} keys, no checkpoint", stall.keys), &stall.without),
        row(format!("{} checkpoints written", stall.checkpoints), &stall.with),
        row("a loop that only counts".into(), &stall.counting),
    ])
}
