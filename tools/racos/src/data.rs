//! `racos put`, `get`, `del` and `ls`.

use crate::connect::Connect;
use crate::exit::{Failure, NOT_FOUND, Outcome, failed, usage};
use crate::{keys, output};
use clap::Args;
use racos_client::{Client, ClientError, KeyEntry};
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How often a value that is replaced while it is fetched is fetched anew.
const FETCHES_MAX: usize = 5;

const KEYS: &str = "Keys are any bytes: write \\xNN for a byte, \\\\ for a backslash, or give \
                    pairs of hexadecimal digits with --hex-key.";

/// A key on the command line.
#[derive(Args, Debug)]
pub struct KeyArgs {
    /// The key.
    key: OsString,
    /// The key is given as pairs of hexadecimal digits.
    #[arg(long)]
    hex_key: bool,
}

impl KeyArgs {
    fn bytes(&self) -> Result<Vec<u8>, Failure> {
        parse_key(&self.key, self.hex_key)
    }
}

fn parse_key(text: &OsString, is_hex: bool) -> Result<Vec<u8>, Failure> {
    match text.to_str() {
        Some(text) if is_hex => keys::parse_hex(text).map_err(usage),
        Some(text) => keys::parse(text).map_err(usage),
        // Bytes that are no text have no escapes either.
        None => Ok(text.as_bytes().to_vec()),
    }
}

/// Store a value under a key.
#[derive(Args, Debug)]
#[command(after_help = format!("Examples:\n  racos put greeting hello\n  racos put photo --file \
    photo.jpg\n  tar c src | racos put backup/src -\n\n{KEYS}"))]
pub struct PutArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// The value; `-` reads it from standard input.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<OsString>,
    /// Read the value from this file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

pub fn put(args: PutArgs) -> Outcome {
    let key = args.key.bytes()?;
    let mut client = args.connect.client()?;
    let revision = match (args.value, &args.file) {
        (Some(value), _) if value == "-" => {
            put_from(&mut client, &key, &mut std::io::stdin().lock(), None)?
        }
        (Some(value), _) => client.put(&key, &value.into_vec())?,
        (None, Some(path)) => {
            let name = path.display();
            let cannot = |error| failed(format!("cannot read {name}: {error}"));
            let mut file = File::open(path).map_err(cannot)?;
            let meta = file.metadata().map_err(cannot)?;
            put_from(&mut client, &key, &mut file, meta.is_file().then_some(meta.len()))?
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    output::line(&format!("stored at revision {revision}"));
    Ok(())
}

fn put_from(
    client: &mut Client,
    key: &[u8],
    source: &mut dyn Read,
    len: Option<u64>,
) -> Result<u64, Failure> {
    let bar = output::transfer_bar(len);
    let result = client.put_reader(key, source, &mut |done, _| bar.set_position(done));
    bar.finish_and_clear();
    Ok(result?)
}

/// Fetch the value of a key: its exact bytes, to standard output or a file.
#[derive(Args, Debug)]
#[command(after_help = format!("Examples:\n  racos get greeting\n  racos get photo --file \
    photo.jpg\n  racos get backup/src | tar x\n\n{KEYS}"))]
pub struct GetArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// Write the value to this file, which appears once it is complete.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

pub fn get(args: &GetArgs) -> Outcome {
    let key = args.key.bytes()?;
    let mut client = args.connect.client()?;
    let found = match &args.file {
        Some(path) => get_to_file(&mut client, &key, path)?,
        None => {
            let mut out = std::io::stdout().lock();
            let found = fetch(&mut client, &key, &mut out)?;
            out.flush().map_err(|error| failed(format!("writing the value: {error}")))?;
            found
        }
    };
    if found { Ok(()) } else { Err(not_found(&key)) }
}

fn not_found(key: &[u8]) -> Failure {
    Failure { code: NOT_FOUND, text: format!("no key `{}`", keys::show(key)) }
}

fn fetch(client: &mut Client, key: &[u8], sink: &mut dyn Write) -> Result<bool, ClientError> {
    let mut bar = None;
    let found = client.get_writer(key, sink, &mut |done, total| {
        bar.get_or_insert_with(|| output::transfer_bar(total)).set_position(done);
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(found?.is_some())
}

fn get_to_file(client: &mut Client, key: &[u8], path: &Path) -> Result<bool, Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".racos-part");
    let part = PathBuf::from(name);
    let result = get_to_part(client, key, path, &part);
    if !matches!(result, Ok(true)) {
        // It may never have been made.
        let _ = std::fs::remove_file(&part);
    }
    result
}

fn get_to_part(client: &mut Client, key: &[u8], path: &Path, part: &Path) -> Result<bool, Failure> {
    let cannot = |error| failed(format!("cannot write {}: {error}", path.display()));
    for fetches in 1.. {
        let mut file = File::create(part).map_err(cannot)?;
        match fetch(client, key, &mut file) {
            Ok(true) => {
                file.sync_all().map_err(cannot)?;
                std::fs::rename(part, path).map_err(cannot)?;
                return Ok(true);
            }
            Ok(false) => return Ok(false),
            Err(ClientError::Replaced) if fetches < FETCHES_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the last fetch returns")
}

/// Delete a key.
#[derive(Args, Debug)]
#[command(after_help = format!("Example:\n  racos del greeting\n\nExit status 3 if it was not \
    there.\n{KEYS}"))]
pub struct DelArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    connect: Connect,
}

pub fn del(args: &DelArgs) -> Outcome {
    let key = args.key.bytes()?;
    match args.connect.client()?.delete(&key)? {
        (true, revision) => {
            output::line(&format!("deleted at revision {revision}"));
            Ok(())
        }
        (false, _) => Err(not_found(&key)),
    }
}

/// List the keys that begin with a prefix, in order.
#[derive(Args, Debug)]
#[command(after_help = format!("Examples:\n  racos ls\n  racos ls --long backup/\n\n{KEYS}\n\
    Each thousand keys are consistent in themselves; keys may change between two thousands. If the nodes\n\
    have several lanes, each has an order of its own: then a listing is one of no single moment."))]
pub struct LsArgs {
    /// The prefix; without it, all keys.
    #[arg(default_value = "")]
    prefix: OsString,
    /// The prefix is given as pairs of hexadecimal digits.
    #[arg(long)]
    hex_key: bool,
    /// Show size and revision too.
    #[arg(long, short)]
    long: bool,
    /// One JSON object a line: key (escaped), hex, size, revision.
    #[arg(long, conflicts_with = "long")]
    json: bool,
    /// List at most so many keys.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    #[command(flatten)]
    connect: Connect,
}

pub fn ls(args: &LsArgs) -> Outcome {
    let prefix = parse_key(&args.prefix, args.hex_key)?;
    let mut client = args.connect.client()?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut from = None;
    while left > 0 {
        let page = client.list(&prefix, from.as_deref())?;
        for entry in page.entries.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            left -= 1;
            if !output::line(&show_entry(entry, args)) {
                return Ok(());
            }
        }
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    Ok(())
}

fn show_entry(entry: &KeyEntry, args: &LsArgs) -> String {
    let key = keys::show(&entry.key);
    if args.json {
        let hex: String = entry.key.iter().map(|byte| format!("{byte:02x}")).collect();
        let (size, revision) = (entry.len, entry.revision);
        return json!({"key": key, "hex": hex, "size": size, "revision": revision}).to_string();
    }
    match args.long {
        true => format!("{:>12} {:>10} {key}", entry.len, entry.revision),
        false => key,
    }
}
