//! `racos inspect`: what lies in a node's directory, and what a start would make of it.
//!
//! Invariant: nothing in the directory is changed; what is said of it is said by the code that a node
//! starts with.

use crate::exit::{Failure, Outcome, failed};
use crate::output;
use clap::Args;
use racos_buffer::Pool;
use racos_engine::inspect::{Outline, kind_name};
use racos_engine::lanes::LANES_MAX;
use racos_storage::device::picture::PictureDevice;
use racos_storage::survey::{Contents, CopyLook, Depth, SegmentLook, Survey, Tally};
use racos_storage::survey::{rehearse, survey};
use racos_storage::{LogError, Recovered, TABLE};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Memory for what is being looked at.
const POOL_BYTES: usize = 512 << 20;
/// Lines of damage that are printed.
const DAMAGE_LINES: usize = 20;

/// Show what lies in a node's directory and what a start would make of it; changes nothing.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racos inspect /var/lib/racos\n  racos inspect --verify --json \
                        /var/lib/racos | jq .damage\n\n\
                        Of a directory that a node uses a moving picture is seen, whose end may look \
                        torn.\nExit status 0 if a node would start and nothing is damaged, 1 if not."
)]
pub struct InspectArgs {
    /// `data_dir` of a node; with several lanes, all of them are shown.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Check the checksums of everything, large bodies too.
    #[arg(long)]
    verify: bool,
    /// All segments, one a line.
    #[arg(long)]
    segments: bool,
    /// Everything, as one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found.
struct Found {
    in_use: bool,
    survey: Survey,
    outline: Outline,
    /// What a start would have come to.
    start: Result<Recovered, LogError>,
}

pub fn run(args: &InspectArgs) -> Outcome {
    let depth = if args.verify { Depth::Payloads } else { Depth::Records };
    let lanes = lane_dirs(&args.dir);
    if lanes.is_empty() {
        let found = look(&args.dir, depth)?;
        match args.json {
            true => output::line(&to_json(&found).to_string()),
            false => output::line(to_text(&found, args.segments).trim_end()),
        };
        return judge(&found);
    }
    let (mut all, mut outcome) = (Vec::new(), Ok(()));
    for (lane, dir) in lanes.iter().enumerate() {
        let found = look(dir, depth)?;
        match args.json {
            true => all.push(to_json(&found)),
            false => {
                output::line(&format!("lane {lane}:\n{}", to_text(&found, args.segments)));
            }
        }
        outcome = outcome.and(judge(&found).map_err(|failure| Failure {
            text: format!("lane {lane}: {}", failure.text),
            ..failure
        }));
    }
    if args.json {
        output::line(&json!({ "lanes": all }).to_string());
    }
    outcome
}

/// The directories of the lanes in a node's directory; none: it is one log.
fn lane_dirs(dir: &Path) -> Vec<PathBuf> {
    let lanes = (0..LANES_MAX).map(|lane| dir.join(format!("lane-{lane}")));
    lanes.take_while(|lane| lane.exists()).collect()
}

fn judge(found: &Found) -> Outcome {
    let damage = found.survey.damage.len();
    match &found.start {
        Err(error) => Err(failed(format!("a node would not start: {error}"))),
        Ok(_) if damage > 0 => Err(failed(format!("{damage} places are damaged"))),
        Ok(_) => Ok(()),
    }
}

fn look(dir: &Path, depth: Depth) -> Result<Found, Failure> {
    let about = |error: String| failed(format!("cannot look at {}: {error}", dir.display()));
    let open = || PictureDevice::open(dir).map_err(|error| about(error.to_string()));
    let mut picture = open()?;
    let in_use = picture.in_use();
    let pool = Pool::new(POOL_BYTES);
    let bar = output::transfer_bar(Some(picture.bytes()));
    let mut progress = |done, _| bar.set_position(done);
    let survey = survey(&mut picture, &pool, depth, &mut progress);
    let survey = survey.map_err(|error| about(error.to_string()))?;
    bar.finish_and_clear();
    drop(picture);
    let mut outline = Outline::default();
    let start = rehearse(open()?, &pool, &mut outline);
    Ok(Found { in_use, survey, outline, start })
}

/// The rows of the recovery table that a start would meet, with what is done about them.
fn cases(start: &Result<Recovered, LogError>) -> Vec<(String, String)> {
    let cases = match start {
        Ok(recovered) => recovered.cases.clone(),
        Err(error) => error.case().into_iter().collect(),
    };
    let action = |case| TABLE.iter().find(|(row, _)| *row == case).map(|(_, action)| *action);
    let named = cases.into_iter().map(|case| (case, action(case)));
    let words = named.map(|(case, action)| {
        (format!("{case:?}"), action.map_or(String::new(), |action| format!("{action:?}")))
    });
    words.map(|(case, action)| (case, action.to_lowercase())).collect()
}

fn kind_word(kind: u8) -> String {
    kind_name(kind).map_or_else(|| format!("kind {kind}"), str::to_string)
}

fn contents_word(look: &SegmentLook) -> &'static str {
    match look.contents {
        Contents::Groups => "groups",
        Contents::Blank => "blank",
        Contents::Foreign => "foreign",
    }
}

fn all_kinds(survey: &Survey) -> BTreeMap<u8, Tally> {
    let mut all = BTreeMap::<u8, Tally>::new();
    for (kind, tally) in survey.segments.iter().flat_map(|look| &look.kinds) {
        let sum = all.entry(*kind).or_default();
        sum.records += tally.records;
        sum.bytes += tally.bytes;
    }
    all
}

fn kinds_json(kinds: &BTreeMap<u8, Tally>) -> Value {
    let entry = |(kind, tally): (&u8, &Tally)| {
        (kind_word(*kind), json!({"records": tally.records, "bytes": tally.bytes}))
    };
    kinds.iter().map(entry).collect::<serde_json::Map<_, _>>().into()
}

fn to_json(found: &Found) -> Value {
    let Found { in_use, survey, outline, start } = found;
    let copies = survey.copies.iter().map(|copy| match copy {
        CopyLook::Good { sequence, boot } => {
            json!({"good": true, "sequence": sequence, "boot": boot})
        }
        CopyLook::Unknown { version } => json!({"good": false, "version": version}),
        CopyLook::Bad(why) => json!({"good": false, "why": why}),
    });
    let owner = survey.owner.as_ref().map(|owner| {
        let marks = owner.marks.map(
            |mark| json!({"checkpoint": mark.tag, "exec": mark.horizon, "segment": mark.segment()}),
        );
        json!({
            "cluster": format!("{:016x}", owner.identity.cluster),
            "node": owner.identity.node,
            "incarnation": owner.identity.incarnation,
            "disk_id": format!("{:032x}", owner.disk_id),
            "boot": owner.boot,
            "formatted": owner.formatted,
            "marks": marks,
        })
    });
    let segments = survey.segments.iter().map(|look| {
        json!({
            "segment": look.segment,
            "bytes": look.len,
            "used": look.used,
            "contents": contents_word(look),
            "groups": look.groups,
            "first_record": look.records.0,
            "last_record": look.records.1,
            "kinds": kinds_json(&look.kinds),
        })
    });
    let damage = survey.damage.iter().map(|damage| {
        json!({"segment": damage.at.segment, "byte": damage.at.offset, "what": damage.what})
    });
    let checkpoints = outline.checkpoints.iter().map(|look| {
        json!({
            "checkpoint": look.generation,
            "exec": look.exec,
            "records": look.records,
            "bytes": look.bytes,
            "problem": look.problem,
        })
    });
    let cases = cases(start);
    let cases = cases.iter().map(|(case, action)| json!({"case": case, "action": action}));
    json!({
        "in_use": in_use,
        "superblock": {"copies": copies.collect::<Vec<_>>(), "newest": owner},
        "segments": segments.collect::<Vec<_>>(),
        "kinds": kinds_json(&all_kinds(survey)),
        "damage": damage.collect::<Vec<_>>(),
        "start": {
            "possible": start.is_ok(),
            "refusal": start.as_ref().err().map(ToString::to_string),
            "cases": cases.collect::<Vec<_>>(),
            "checkpoints": checkpoints.collect::<Vec<_>>(),
            "records_read": outline.records,
            "last_record": start.as_ref().ok().map(|found| found.last_record.0),
        },
    })
}

fn to_text(found: &Found, all_segments: bool) -> String {
    let mut lines = Vec::new();
    if found.in_use {
        lines.push("a node uses this directory: a moving picture, its end may look torn".into());
    }
    superblock_lines(&found.survey, &mut lines);
    segment_lines(&found.survey, all_segments, &mut lines);
    damage_lines(&found.survey, &mut lines);
    start_lines(found, &mut lines);
    lines.join("\n")
}

fn superblock_lines(survey: &Survey, lines: &mut Vec<String>) {
    for (copy, name) in survey.copies.iter().zip(["first", "second"]) {
        let words = match copy {
            CopyLook::Good { sequence, boot } => format!("good, number {sequence}, boot {boot}"),
            CopyLook::Unknown { version } => format!("of format version {version}"),
            CopyLook::Bad(why) => format!("bad: {why}"),
        };
        lines.push(format!("superblock, {name} copy: {words}"));
    }
    let Some(owner) = &survey.owner else { return };
    lines.push(format!(
        "cluster {:016x}, node {}, incarnation {}, disk {:032x}{}",
        owner.identity.cluster,
        owner.identity.node,
        owner.identity.incarnation,
        owner.disk_id,
        if owner.formatted { "" } else { ", its format did not end" },
    ));
    for (mark, name) in owner.marks.iter().zip(["newest", "older"]) {
        let words = match mark.tag {
            0 => "the beginning of the log".to_string(),
            tag => format!("checkpoint {tag}, of slot {}", mark.horizon),
        };
        lines.push(format!("{name} mark: segment {}, {words}", mark.segment()));
    }
}

fn segment_lines(survey: &Survey, all_segments: bool, lines: &mut Vec<String>) {
    let with = |contents| survey.segments.iter().filter(move |look| look.contents == contents);
    let used: u64 = survey.segments.iter().map(|look| look.used).sum();
    let bytes: u64 = survey.segments.iter().map(|look| look.len).sum();
    lines.push(format!(
        "{} segments, {}: {} hold groups ({}), {} are blank, {} foreign",
        survey.segments.len(),
        output::bytes(bytes),
        with(Contents::Groups).count(),
        output::bytes(used),
        with(Contents::Blank).count(),
        with(Contents::Foreign).count(),
    ));
    let heading = ["kind", "records", "bytes"].map(String::from).to_vec();
    let rows = all_kinds(survey).into_iter().map(|(kind, tally)| {
        vec![kind_word(kind), tally.records.to_string(), output::bytes(tally.bytes)]
    });
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    lines.push(output::table(&rows).trim_end().to_string());
    if !all_segments {
        return;
    }
    let heading = ["segment", "bytes", "used", "contents", "groups", "first record", "last"];
    let rows = survey.segments.iter().map(|look| {
        vec![
            look.segment.to_string(),
            look.len.to_string(),
            look.used.to_string(),
            contents_word(look).to_string(),
            look.groups.to_string(),
            look.records.0.to_string(),
            look.records.1.to_string(),
        ]
    });
    let heading = heading.map(String::from).to_vec();
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    lines.push(output::table(&rows).trim_end().to_string());
}

fn damage_lines(survey: &Survey, lines: &mut Vec<String>) {
    for damage in survey.damage.iter().take(DAMAGE_LINES) {
        let (segment, offset) = (damage.at.segment, damage.at.offset);
        lines.push(format!("DAMAGED: segment-{segment:08}.log at byte {offset}: {}", damage.what));
    }
    let more = survey.damage.len().saturating_sub(DAMAGE_LINES);
    if more > 0 {
        lines.push(format!("and {more} more; `--json` lists all"));
    }
    if survey.damage.is_empty() {
        lines.push("no damage found".into());
    } else {
        lines.push(
            "what a start reads decides as below; fragments elsewhere are made again from those of \
             other nodes when they are read or scrubbed"
                .into(),
        );
    }
}

fn start_lines(found: &Found, lines: &mut Vec<String>) {
    for look in &found.outline.checkpoints {
        let words = match (&look.problem, look.generation) {
            (Some(problem), generation) => format!("checkpoint {generation}: {problem}"),
            (None, 0) => "no checkpoint: the log is read from its beginning".to_string(),
            (None, generation) => format!(
                "checkpoint {generation}: whole, {} in {} records",
                output::bytes(look.bytes),
                look.records
            ),
        };
        lines.push(words);
    }
    let cases: Vec<_> =
        cases(&found.start).iter().map(|(case, action)| format!("{case} ({action})")).collect();
    let cases = cases.join(", ");
    match &found.start {
        Ok(recovered) => lines.push(format!(
            "a start would read {} records up to number {}, and meet the cases {cases}",
            found.outline.records, recovered.last_record.0
        )),
        Err(_) if cases.is_empty() => {}
        Err(_) => lines.push(format!("a start would meet the case {cases}")),
    }
}
