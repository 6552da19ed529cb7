//! PROTOCOL.md and the code that cites it, held together.
//!
//! Purpose: every requirement of PROTOCOL.md has an identifier; code and tests cite it as
//! `PROTOCOL <id>`. This test reads the text and every source file and keeps the two in step.
//! Invariant: no citation names what does not exist, no identifier occurs twice, every "must"
//! stands in a bullet with an identifier and a state, and the number of requirements marked (now)
//! that lack an implementing line or a test never rises.
//! `cargo test -p racos-protocol --test protocol_text -- --nocapture` prints the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Requirements marked (now) that no implementing line cites. Lower it whenever it falls.
const WITHOUT_IMPLEMENTATION_MAX: usize = 0;
/// Requirements marked (now) that no test cites. Lower it whenever it falls.
const WITHOUT_TEST_MAX: usize = 1;
/// Tests named in the tables of section 2 that do not exist yet. Lower it whenever it falls.
const HAZARDS_WITHOUT_TEST_MAX: usize = 0;

/// Folders of the workspace that may cite the protocol.
const FOLDERS: [&str; 5] = ["codec", "engine", "net", "storage", "tools"];
/// Crates that exist to check the others: what they cite is tested there, not implemented.
const CHECKERS: [&str; 4] = ["tools/sim", "tools/linear", "tools/chaos", "tools/fuzz"];
/// This file quotes citations that cite nothing.
const SELF: &str = "engine/protocol/tests/protocol_text.rs";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Now,
    Later,
}

/// One bullet of PROTOCOL.md.
#[derive(Debug)]
struct Requirement {
    id: String,
    line: usize,
    text: String,
}

impl Requirement {
    fn state(&self) -> Option<State> {
        match self.text.rsplit_once(' ')?.1 {
            "(now)" => Some(State::Now),
            "(later)" => Some(State::Later),
            _ => None,
        }
    }
}

/// What PROTOCOL.md holds, as far as this test cares.
#[derive(Default, Debug)]
struct Text {
    requirements: Vec<Requirement>,
    sections: BTreeSet<String>,
    /// Lines with a "must" that no identifier covers.
    loose_musts: Vec<usize>,
    /// Identifiers that the text itself refers to, and where.
    references: Vec<(String, usize)>,
    /// Names of tests in the tables of section 2.
    hazards: Vec<String>,
}

fn parse(markdown: &str) -> Text {
    let mut text = Text::default();
    let (mut fenced, mut section, mut in_bullet) = (false, String::new(), false);
    for (index, line) in markdown.lines().enumerate() {
        let number = index + 1;
        if line.starts_with("```") {
            fenced = !fenced;
            in_bullet = false;
            continue;
        }
        if fenced {
            continue;
        }
        if line.starts_with('#') {
            section = heading_number(line);
            text.sections.insert(section.clone());
            in_bullet = false;
            continue;
        }
        if let Some(rest) = line.strip_prefix("- **[") {
            let (id, body) = rest.split_once("]**").unwrap_or((rest, ""));
            let text_of = body.trim().to_string();
            text.requirements.push(Requirement { id: id.to_string(), line: number, text: text_of });
            in_bullet = true;
        } else if in_bullet && line.starts_with("  ") {
            let last = text.requirements.last_mut().expect("a bullet was opened");
            last.text.push(' ');
            last.text.push_str(line.trim());
        } else {
            in_bullet = false;
            if !section.is_empty() && words(line).any(|word| word == "must") {
                text.loose_musts.push(number);
            }
        }
        text.references.extend(identifiers(line).into_iter().map(|id| (id, number)));
        if section == "2" {
            text.hazards.extend(hazard(line));
        }
    }
    text
}

/// `## 5. The core` and `### 5.2 Rules` give `5` and `5.2`; a heading without number gives nothing.
fn heading_number(line: &str) -> String {
    let word = line.trim_start_matches('#').trim().split(' ').next().unwrap_or("");
    let number = word.trim_end_matches('.');
    let numeric = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    if numeric { number.to_string() } else { String::new() }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The test that the last cell of a table row names.
fn hazard(line: &str) -> Option<String> {
    let cell = line.strip_prefix('|')?.trim_end().strip_suffix('|')?.rsplit('|').next()?.trim();
    let name = cell.strip_prefix('`')?.strip_suffix('`')?;
    Some(name.to_string())
}

/// Everything in a line that looks like an identifier of a requirement.
fn identifiers(line: &str) -> Vec<String> {
    let outside = |c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-');
    line.split(outside)
        .map(|token| token.trim_end_matches(['.', '-']))
        .filter(|token| is_identifier(token))
        .map(str::to_string)
        .collect()
}

/// `5.2-a`, `7-f`, `10-aa`.
fn is_identifier(token: &str) -> bool {
    let Some((section, letters)) = token.split_once('-') else { return false };
    is_section(section)
        && (1..=2).contains(&letters.len())
        && letters.chars().all(|c| c.is_ascii_lowercase())
}

/// `5` or `5.2`.
fn is_section(token: &str) -> bool {
    let parts: Vec<&str> = token.split('.').collect();
    let numeric = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    parts.len() <= 2 && parts.iter().all(|part| numeric(part))
}

/// What a source line cites: after `PROTOCOL `, sections and identifiers joined by commas or "and".
/// A token that begins like a reference and is none is given back as it stands, to be refused.
fn citations(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for tail in line.split("PROTOCOL ").skip(1) {
        let mut tokens = tail.split(' ').peekable();
        while let Some(token) = tokens.next() {
            if !token.starts_with(|c: char| c.is_ascii_digit()) {
                break;
            }
            let end = token.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-'));
            let reference = token[..end.unwrap_or(token.len())].trim_end_matches(['.', '-']);
            found.push(reference.to_string());
            let joined = tokens.next_if_eq(&"and").is_some();
            if !joined && !token.ends_with(',') {
                break;
            }
        }
    }
    found
}

/// A source line that cites the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Citation {
    reference: String,
    place: String,
    tests: bool,
}

/// The citations of one file; `path` is relative to the workspace.
fn citations_of(path: &str, source: &str) -> Vec<Citation> {
    let whole_file_tests = path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || CHECKERS.iter().any(|checker| path.starts_with(checker));
    let mut module_end: Option<String> = None;
    let mut found = Vec::new();
    for (index, line) in source.lines().enumerate() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        if module_end.is_none() && code.starts_with("mod ") && code.ends_with("tests {") {
            module_end = Some(format!("{indent}}}"));
        } else if module_end.as_deref() == Some(line.trim_end()) {
            module_end = None;
        }
        let tests = whole_file_tests || module_end.is_some() || line.contains("tests PROTOCOL ");
        for reference in citations(line) {
            found.push(Citation { reference, place: format!("{path}:{}", index + 1), tests });
        }
    }
    found
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("workspace exists")
}

/// All source files with their paths relative to the workspace, in order of path.
fn sources() -> BTreeMap<String, String> {
    let root = workspace();
    let mut pending: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let mut files = BTreeMap::new();
    while let Some(folder) = pending.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder of the workspace can be listed").path();
            let relative = path.strip_prefix(&root).expect("below the root").to_string_lossy();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                pending.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") && relative != SELF {
                let source = fs::read_to_string(&path).expect("a source file can be read");
                files.insert(relative.into_owned(), source);
            }
        }
    }
    files
}

fn protocol() -> Text {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("PROTOCOL.md");
    parse(&fs::read_to_string(path).expect("PROTOCOL.md stands beside Cargo.toml"))
}

/// Where a requirement is cited: the first place, and how many there are.
fn first_of(places: &[&str]) -> String {
    match places {
        [] => "-".to_string(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (+{})", rest.len()),
    }
}

#[test]
fn the_text_is_well_formed() {
    let text = protocol();
    assert!(text.requirements.len() > 200, "found {} requirements", text.requirements.len());
    let mut seen = BTreeMap::new();
    let mut faults = Vec::new();
    for requirement in &text.requirements {
        let Requirement { id, line, text: body } = requirement;
        if !is_identifier(id) {
            faults.push(format!("line {line}: [{id}] is no identifier like 5.2-a"));
        } else if !text.sections.contains(id.split('-').next().unwrap_or("")) {
            faults.push(format!("line {line}: [{id}] names a section that does not exist"));
        }
        if let Some(other) = seen.insert(id, line) {
            faults.push(format!("line {line}: [{id}] was used before, in line {other}"));
        }
        if !words(body).any(|word| word == "must") {
            faults.push(format!("line {line}: [{id}] requires nothing: say must or must not"));
        }
        if requirement.state().is_none() {
            faults.push(format!("line {line}: [{id}] does not end with (now) or (later)"));
        }
    }
    for line in &text.loose_musts {
        faults.push(format!("line {line}: a \"must\" outside a bullet with an identifier"));
    }
    for (reference, line) in &text.references {
        if !seen.contains_key(reference) {
            faults.push(format!("line {line}: refers to {reference}, which does not exist"));
        }
    }
    assert!(faults.is_empty(), "PROTOCOL.md:\n{}", faults.join("\n"));
}

#[test]
fn every_citation_names_something() {
    let text = protocol();
    let ids: BTreeSet<&str> = text.requirements.iter().map(|r| r.id.as_str()).collect();
    let unknown: Vec<String> = sources()
        .iter()
        .flat_map(|(path, source)| citations_of(path, source))
        .filter(|c| {
            let known = |reference: &str| ids.contains(reference);
            !known(&c.reference) && !text.sections.contains(&c.reference)
        })
        .map(|c| format!("{}: PROTOCOL {} does not exist", c.place, c.reference))
        .collect();
    assert!(unknown.is_empty(), "citations of nothing:\n{}", unknown.join("\n"));
}

#[test]
fn requirements_are_implemented_and_tested() {
    let text = protocol();
    let sources = sources();
    let cited: Vec<Citation> =
        sources.iter().flat_map(|(path, source)| citations_of(path, source)).collect();
    let places = |id: &str, tests: bool| -> Vec<&str> {
        let here = |c: &&Citation| c.reference == id && c.tests == tests;
        cited.iter().filter(here).map(|c| c.place.as_str()).collect()
    };
    let (mut now, mut no_code, mut no_test) = (0, 0, 0);
    println!("{:<8} {:<60} tested", "id", "implemented");
    for requirement in &text.requirements {
        let code = places(&requirement.id, false);
        let tests = places(&requirement.id, true);
        if requirement.state() == Some(State::Later) {
            for place in code.iter().chain(&tests) {
                println!("{:<8} is marked (later) and cited at {place}", requirement.id);
            }
            continue;
        }
        now += 1;
        no_code += usize::from(code.is_empty());
        no_test += usize::from(tests.is_empty());
        println!("{:<8} {:<60} {}", requirement.id, first_of(&code), first_of(&tests));
    }
    let hazards_open: Vec<&String> = text
        .hazards
        .iter()
        .filter(|name| !sources.values().any(|s| s.contains(&format!("fn {name}("))))
        .collect();
    println!("{now} requirements (now): {no_code} without code, {no_test} without test");
    println!("{} of {} hazards open: {hazards_open:#?}", hazards_open.len(), text.hazards.len());
    for (what, count, max) in [
        ("requirements without an implementing line", no_code, WITHOUT_IMPLEMENTATION_MAX),
        ("requirements without a test", no_test, WITHOUT_TEST_MAX),
        ("hazards of section 2 without a test", hazards_open.len(), HAZARDS_WITHOUT_TEST_MAX),
    ] {
        assert!(count <= max, "{count} {what}; at most {max} are allowed, and fewer from now on");
        if count < max {
            println!("{what}: {count} of at most {max}; lower the constant in this file");
        }
    }
}

#[test]
fn citations_are_found_as_written() {
    assert_eq!(citations("// PROTOCOL 5.2-b: late messages count."), ["5.2-b"]);
    assert_eq!(citations("/// Number of a slot (PROTOCOL 3.1)."), ["3.1"]);
    assert_eq!(citations("// PROTOCOL 4.3-g, 4.3-h: unknown own slots"), ["4.3-g", "4.3-h"]);
    assert_eq!(citations("// PROTOCOL 4.3-g and 10-aa."), ["4.3-g", "10-aa"]);
    assert_eq!(citations("// PROTOCOL 1-a, 1-b and 1-c and no more"), ["1-a", "1-b", "1-c"]);
    assert_eq!(citations("// PROTOCOL 5.2: 3 of 4 nodes"), ["5.2"]);
    assert_eq!(citations("// PROTOCOL 7-f, as in PROTOCOL 8"), ["7-f", "8"]);
    assert_eq!(citations("// PROTOCOL 5.2-B"), ["5.2-B"], "kept as it stands, to be refused");
    assert_eq!(citations("// see PROTOCOL.md, or PROTOCOL at large"), [""; 0]);
}

#[test]
fn tests_and_implementation_are_told_apart() {
    let source = "// PROTOCOL 1-a\nmod tests {\n    // PROTOCOL 1-b\n}\n// PROTOCOL 1-c\n\
                  // tests PROTOCOL 1-d\n";
    let kinds =
        |path: &str| -> Vec<bool> { citations_of(path, source).iter().map(|c| c.tests).collect() };
    assert_eq!(kinds("engine/protocol/src/lib.rs"), [false, true, false, true]);
    assert_eq!(kinds("engine/protocol/tests/schedules.rs"), [true; 4]);
    assert_eq!(kinds("tools/sim/src/oracle.rs"), [true; 4]);
    assert_eq!(citations_of("net/src/link.rs", source)[0].place, "net/src/link.rs:1");
}

#[test]
fn a_malformed_text_is_noticed() {
    let text = parse(
        "intro: must is free here\n## 5. Core\n- **[5-a]** A node must\n  wait. (now)\n\
         | a | `some_test` |\nA node must run; see 5-z.\n```\nmust 5-y\n```\n",
    );
    assert_eq!(text.requirements.len(), 1);
    assert_eq!(text.requirements[0].text, "A node must wait. (now)");
    assert_eq!(text.requirements[0].state(), Some(State::Now));
    assert_eq!(text.loose_musts, [6]);
    assert_eq!(text.references, [("5-a".to_string(), 3), ("5-z".to_string(), 6)]);
    assert!(text.hazards.is_empty(), "only section 2 names hazards");
    assert_eq!(hazard("| 7 | rule | `a_name` |"), Some("a_name".to_string()));
}
