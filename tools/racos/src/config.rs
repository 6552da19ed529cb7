//! The configuration file of a node.
//!
//! Purpose: TOML in, [`racos_engine::runtime::Options`] out; the file is documented line by line in
//! `node.example.toml`.
//!
//! Invariant: whatever is not understood is refused with file, line, reason and fix; nothing is
//! guessed or silently corrected.

use racos_engine::api::AutoCompaction;
use racos_engine::lanes::{LANES_MAX, lane_address};
use racos_engine::runtime::{FLUSH_DEFAULT, Options};
use racos_engine::{Bounds, DAY_NS, NodeConfig, PollMode, Profile};
use racos_etcd::{Options as EtcdOptions, Settings};
use racos_protocol::{Fast, MEMBERS_MAX, Policy, Thresholds};
use racos_storage::device::FlushMethod;
use racos_tuning::SPIN_US_DEFAULT;
use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    /// From 1; `None` if it concerns the whole file.
    pub line: Option<usize>,
    pub reason: String,
    pub fix: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(out, ":{line}")?;
        }
        write!(out, ": {}\n  fix: {}", self.reason, self.fix)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: Spanned<String>,
    node: Spanned<u64>,
    members: Spanned<Vec<Spanned<String>>>,
    contacts: Option<Spanned<Vec<Spanned<String>>>>,
    f: Spanned<u64>,
    k: Spanned<u64>,
    policy: Option<Spanned<String>>,
    fast: Option<Spanned<String>>,
    lanes: Option<Spanned<u64>>,
    data_dir: PathBuf,
    listen: Option<Spanned<String>>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    tuning: Tuning,
    etcd: Option<Etcd>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Etcd {
    endpoints: Spanned<Vec<Spanned<String>>>,
    listen: Option<Spanned<String>>,
    advertise: Option<String>,
    request_mib_max: Option<Spanned<u64>>,
    quota_mib: Option<Spanned<u64>>,
    keep_revisions: Option<Spanned<u64>>,
    keep_minutes: Option<Spanned<u64>>,
}

/// What a configuration file asks for.
pub struct Config {
    pub node: Options,
    /// `None`: no etcd API.
    pub etcd: Option<EtcdOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    buffer_mib: Option<Spanned<u64>>,
    cache_mib: Option<Spanned<u64>>,
    segment_mib: Option<Spanned<u64>>,
    initial_segments: Option<Spanned<u64>>,
    disk_reserve_mib: Option<Spanned<u64>>,
    hosting_mib: Option<Spanned<u64>>,
    history_slots: Option<Spanned<u64>>,
    scrub_days: Option<Spanned<u64>>,
    session_idle_minutes: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuning {
    inline_bytes_max: Option<Spanned<u64>>,
    keep_margin: Option<bool>,
    own_slots_in_flight: Option<Spanned<u64>>,
    store_first_kib: Option<Spanned<u64>>,
    poll: Option<Spanned<String>>,
    spin_us: Option<Spanned<u64>>,
    flush: Option<Spanned<String>>,
    cpu: Option<Spanned<u64>>,
    flush_cpu: Option<Spanned<u64>>,
}

/// Least memory for buffers, in MiB, of each lane.
const BUFFER_MIB_MIN: u64 = 64;
/// Largest request of an etcd client, in MiB, unless said otherwise.
const REQUEST_MIB_DEFAULT: u64 = 64;

/// Reads and checks a configuration file. A relative `data_dir` is relative to the working
/// directory.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
        file: path.to_path_buf(),
        line: None,
        reason: format!("cannot be read: {error}"),
        fix: "give the path of a file as in node.example.toml".to_string(),
    })?;
    parse(path, &text)
}

/// As [`read`], from the text of the file.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let source = Source { path, text };
    let file: File = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    let members = source.addresses("members", &file.members)?;
    // A node that joins a running cluster has a number behind those of the founding members.
    let node = source.number("node", &file.node, 0, MEMBERS_MAX as u64 - 1)?;
    source.code(&file, members.len())?;
    let (f, k) = (*file.f.get_ref() as usize, *file.k.get_ref() as usize);
    let cluster = source.cluster(&file.cluster)?;
    let listen = match (&file.listen, members.get(node as usize)) {
        (Some(listen), _) => source.address("listen", listen)?,
        (None, Some(member)) => *member,
        (None, None) => return Err(source.no_place(&file.node, members.len())),
    };
    let mut config = NodeConfig::new(cluster, node as u8, members, f, k);
    if let Some(contacts) = &file.contacts {
        config.contacts = source.addresses("contacts", contacts)?;
    }
    config.policy = source.policy(&file)?;
    config.fast = source.fast(&file)?;
    config.lane.count = source.lanes(&file, &config.members, listen)?;
    config.bounds = source.bounds(&file.limits, config.lane.count)?;
    let tuning = &file.tuning;
    if let Some(bytes) = &tuning.inline_bytes_max {
        config.inline_bytes_max = source.number("inline_bytes_max", bytes, 0, 4096)? as usize;
    }
    config.keeps_margin = tuning.keep_margin.unwrap_or(config.keeps_margin);
    if let Some(kib) = &tuning.store_first_kib {
        let kib = source.number("store_first_kib", kib, 1, 1 << 20)?;
        config.bounds.ready_bytes_min = (kib as usize) << 10;
    }
    if let Some(slots) = &tuning.own_slots_in_flight {
        let most = config.alpha / config.members.len() as u64;
        config.own_slots_max = source.number("own_slots_in_flight", slots, 1, most)? as usize;
    }
    let profile = source.profile(tuning, config.lane.count)?;
    let etcd = file.etcd.as_ref().map(|etcd| source.etcd(etcd, &config)).transpose()?;
    if let Some(etcd) = &file.etcd {
        if let Some(quota) = &etcd.quota_mib {
            config.quota_bytes = source.number("etcd.quota_mib", quota, 0, 1 << 40)? << 20;
        }
        config.auto_compaction = source.auto_compaction(etcd)?;
    }
    let node =
        Options { config, dir: file.data_dir, take_device: false, listen, profile, api: None };
    Ok(Config { node, etcd })
}

/// The text, to tell lines.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn refuse(&self, span: Option<Range<usize>>, reason: String, fix: &str) -> ConfigError {
        let line = span.map(|span| {
            let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
            1 + before.iter().filter(|byte| **byte == b'\n').count()
        });
        ConfigError { file: self.path.to_path_buf(), line, reason, fix: fix.to_string() }
    }

    /// What the TOML reader refuses: syntax, unknown and missing keys, wrong types.
    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message();
        let (reason, fix) = if let Some((unknown, known)) = message.split_once(", expected ") {
            match unknown.strip_prefix("unknown field ") {
                Some(key) => (format!("unknown key {key}"), format!("use {known}, or remove it")),
                None if known == "nothing" => (unknown.to_string(), "remove it".to_string()),
                None => (unknown.to_string(), format!("write {known}")),
            }
        } else if let Some(key) = message.strip_prefix("missing field ") {
            let fix = format!("add {key}; node.example.toml shows how");
            (format!("the key {key} is missing"), fix)
        } else {
            (message.to_string(), "write it as in node.example.toml".to_string())
        };
        let missing = message.starts_with("missing field ");
        self.refuse(error.span().filter(|_| !missing), reason, &fix)
    }

    fn number(
        &self,
        key: &str,
        value: &Spanned<u64>,
        least: u64,
        most: u64,
    ) -> Result<u64, ConfigError> {
        let number = *value.get_ref();
        if (least..=most).contains(&number) {
            return Ok(number);
        }
        let reason = format!("{key} = {number} is out of range");
        Err(self.refuse(
            Some(value.span()),
            reason,
            &format!("use a number from {least} to {most}"),
        ))
    }

    fn cluster(&self, value: &Spanned<String>) -> Result<u64, ConfigError> {
        parse_cluster(value.get_ref()).ok_or_else(|| {
            let reason = format!("cluster = \"{}\" is not a cluster number", value.get_ref());
            self.refuse(Some(value.span()), reason, "use 1 to 16 hexadecimal digits, not all zero")
        })
    }

    fn address(&self, key: &str, value: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        value.get_ref().parse().map_err(|_| {
            let reason = format!("{key}: \"{}\" is not an address", value.get_ref());
            let fix = "write IP:PORT, as in \"10.0.0.1:7400\" or \"[fd00::1]:7400\"";
            self.refuse(Some(value.span()), reason, fix)
        })
    }

    /// Addresses that can be sent to, each once.
    fn addresses(
        &self,
        key: &str,
        list: &Spanned<Vec<Spanned<String>>>,
    ) -> Result<Vec<SocketAddr>, ConfigError> {
        let mut addresses = Vec::new();
        for entry in list.get_ref() {
            let address = self.address(key, entry)?;
            if addresses.contains(&address) {
                let reason = format!("{key}: {address} is listed twice");
                let fix = "give every node an address of its own";
                return Err(self.refuse(Some(entry.span()), reason, fix));
            }
            if address.port() == 0 || address.ip().is_unspecified() {
                let reason = format!("{key}: {address} cannot be sent to");
                let fix = "give the address that other nodes reach the node at; see also `listen`";
                return Err(self.refuse(Some(entry.span()), reason, fix));
            }
            addresses.push(address);
        }
        if addresses.is_empty() {
            let reason = format!("{key} is empty");
            return Err(self.refuse(Some(list.span()), reason, "list at least one node"));
        }
        Ok(addresses)
    }

    fn auto_compaction(&self, etcd: &Etcd) -> Result<AutoCompaction, ConfigError> {
        Ok(match (&etcd.keep_revisions, &etcd.keep_minutes) {
            (None, None) => AutoCompaction::Off,
            (Some(count), None) => {
                AutoCompaction::Revisions(self.number("etcd.keep_revisions", count, 1, 1 << 40)?)
            }
            (None, Some(minutes)) => {
                let minutes = self.number("etcd.keep_minutes", minutes, 1, 1 << 20)?;
                AutoCompaction::Period(minutes * 60_000_000_000)
            }
            (Some(_), Some(minutes)) => {
                let reason = "etcd.keep_revisions and etcd.keep_minutes are both given";
                let fix = "choose one of them";
                return Err(self.refuse(Some(minutes.span()), reason.to_string(), fix));
            }
        })
    }

    fn etcd(&self, etcd: &Etcd, config: &NodeConfig) -> Result<EtcdOptions, ConfigError> {
        let list = etcd.endpoints.get_ref();
        let (named, members) = (list.len(), config.members.len());
        if named != members {
            let reason = format!("etcd.endpoints has {named} entries for {members} members");
            let fix = "list where etcd clients reach each node, in the order of `members`";
            return Err(self.refuse(Some(etcd.endpoints.span()), reason, fix));
        }
        let listen = match (&etcd.listen, list.get(usize::from(config.node))) {
            (Some(listen), _) => self.address("etcd.listen", listen)?,
            (None, None) => {
                let reason = "etcd.endpoints has no place for this node".to_string();
                let fix = "say in `listen` of [etcd] where it listens";
                return Err(self.refuse(Some(etcd.endpoints.span()), reason, fix));
            }
            (None, Some(own)) => own.get_ref().parse().map_err(|_| {
                let reason = format!("etcd.endpoints: \"{}\" is not an address", own.get_ref());
                let fix = "write IP:PORT for this node, or say in `listen` where it listens";
                self.refuse(Some(own.span()), reason, fix)
            })?,
        };
        let mib = match &etcd.request_mib_max {
            Some(value) => self.number("etcd.request_mib_max", value, 1, 1024)?,
            None => REQUEST_MIB_DEFAULT,
        };
        let endpoints = list.iter().map(|endpoint| endpoint.get_ref().clone()).collect();
        // A node that joined tells the others where it is; who listens everywhere must be told where. One
        // that moved says so.
        let joined = usize::from(config.node) >= members;
        let own = || (joined && !listen.ip().is_unspecified()).then(|| listen.to_string());
        let advertise = etcd.advertise.clone().or_else(own);
        let request_bytes_max = (mib as usize) << 20;
        let settings = Settings { endpoints, advertise, request_bytes_max };
        Ok(EtcdOptions { listen, settings })
    }

    /// Who fills the slots, and what goes with that only.
    fn policy(&self, file: &File) -> Result<Policy, ConfigError> {
        let Some(policy) = &file.policy else { return Ok(Policy::OwnerSlots) };
        let named = policy.get_ref().parse();
        let named = named.map_err(|reason: String| {
            let fix = "use \"owner\", or \"queue\" to compare with the published policy";
            self.refuse(Some(policy.span()), format!("policy: {reason}"), fix)
        })?;
        if let (Policy::Queue, Some(etcd)) = (named, &file.etcd) {
            let reason = "policy = \"queue\" has native clients only, and [etcd] is given";
            let fix = "remove [etcd], or found the cluster with policy = \"owner\"";
            return Err(self.refuse(Some(etcd.endpoints.span()), reason.to_string(), fix));
        }
        Ok(named)
    }

    /// How many proposals decide the slot of a large value.
    fn fast(&self, file: &File) -> Result<Fast, ConfigError> {
        let Some(fast) = &file.fast else { return Ok(Fast::Support) };
        fast.get_ref().parse().map_err(|reason: String| {
            let fix = "remove `fast`, or use \"f*\" if the cluster was founded with it";
            self.refuse(Some(fast.span()), format!("fast: {reason}"), fix)
        })
    }

    /// How many lanes, and whether the ports behind each address are free for them.
    fn lanes(
        &self,
        file: &File,
        members: &[SocketAddr],
        listen: SocketAddr,
    ) -> Result<u8, ConfigError> {
        let Some(value) = &file.lanes else { return Ok(1) };
        let lanes = self.number("lanes", value, 1, u64::from(LANES_MAX))? as u8;
        if let (2.., Some(etcd)) = (lanes, &file.etcd) {
            // PROTOCOL 3.1-k
            let reason = format!(
                "lanes = {lanes} has native clients only, and [etcd] is given: etcd's revisions and \
                 transactions need one order of all keys"
            );
            let fix = "remove [etcd], or found the cluster with lanes = 1";
            return Err(self.refuse(Some(etcd.endpoints.span()), reason, fix));
        }
        let span = || Some(value.span());
        let has_room = |base: &SocketAddr| lane_address(*base, lanes - 1).is_some();
        if let Some(full) = members.iter().chain([&listen]).find(|base| !has_room(base)) {
            let reason = format!("lanes = {lanes} needs as many ports from that of {full} on");
            return Err(self.refuse(span(), reason, "choose lower ports"));
        }
        for (at, member) in members.iter().enumerate() {
            let same_host = members[..at].iter().find(|other| {
                other.ip() == member.ip() && other.port().abs_diff(member.port()) < lanes.into()
            });
            if let Some(other) = same_host {
                let reason = format!(
                    "{other} and {member} are too close: with lanes = {lanes} a node uses its port and \
                     the {} after it",
                    lanes - 1
                );
                let fix = "leave room between the ports of nodes on one host";
                return Err(self.refuse(span(), reason, fix));
            }
        }
        Ok(lanes)
    }

    fn no_place(&self, node: &Spanned<u64>, members: usize) -> ConfigError {
        let reason = format!("node = {} is not a place in `members`", node.get_ref());
        let fix = format!(
            "use a number from 0 to {}; a node that joins a running cluster gives `listen` of its own, see \
             `racos member add --help`",
            members - 1
        );
        self.refuse(Some(node.span()), reason, &fix)
    }

    /// The code must fit the number of members.
    fn code(&self, file: &File, n: usize) -> Result<(), ConfigError> {
        let f = self.number("f", &file.f, 0, 63)? as usize;
        let k = self.number("k", &file.k, 1, 64)? as usize;
        let Err(error) = Thresholds::new(n, f, k) else { return Ok(()) };
        let (reason, fix) = match error {
            racos_protocol::ConfigError::TooFewMembers { .. } => (
                format!(
                    "(n, f, k) = ({n}, {f}, {k}) is impossible: n >= 2f + k = {} must hold",
                    2 * f + k
                ),
                format!("list {} members, or lower f or k", 2 * f + k),
            ),
            other => (other.to_string(), "see node.example.toml".to_string()),
        };
        let is_too_long = n > racos_protocol::MEMBERS_MAX;
        let span = if is_too_long { file.members.span() } else { file.k.span() };
        Err(self.refuse(Some(span), reason, &fix))
    }

    fn bounds(&self, limits: &Limits, lanes: u8) -> Result<Bounds, ConfigError> {
        let mut bounds = Bounds::default();
        // They share it, and each needs some.
        let least_mib = BUFFER_MIB_MIN * u64::from(lanes);
        bounds.buffer_bytes_max = bounds.buffer_bytes_max.max((least_mib as usize) << 20);
        if let Some(value) = &limits.buffer_mib {
            let mib = self.number("buffer_mib", value, least_mib, 1 << 20)?;
            bounds.buffer_bytes_max = (mib as usize) << 20;
        }
        if let Some(value) = &limits.cache_mib {
            let mib = self.number("cache_mib", value, 0, 1 << 20)?;
            bounds.cache_bytes_max = (mib as usize) << 20;
        }
        if let Some(value) = &limits.segment_mib {
            bounds.segment_bytes = (self.number("segment_mib", value, 16, 1024)? << 20) as u32;
        }
        if let Some(value) = &limits.initial_segments {
            bounds.initial_segments = self.number("initial_segments", value, 1, 1 << 20)? as u32;
        }
        if let Some(value) = &limits.disk_reserve_mib {
            bounds.disk_reserve_bytes = self.number("disk_reserve_mib", value, 0, 1 << 30)? << 20;
        }
        if let Some(value) = &limits.hosting_mib {
            bounds.hosting_bytes_max = self.number("hosting_mib", value, 0, 1 << 30)? << 20;
        }
        if let Some(value) = &limits.history_slots {
            bounds.history_slots = self.number("history_slots", value, 0, 1 << 40)?;
        }
        if let Some(value) = &limits.scrub_days {
            bounds.scrub_ns = self.number("scrub_days", value, 0, 365)? * DAY_NS;
        }
        if let Some(value) = &limits.session_idle_minutes {
            let minutes = self.number("session_idle_minutes", value, 0, 1 << 20)?;
            bounds.session_idle_ns = minutes * 60_000_000_000;
        }
        Ok(bounds)
    }

    fn profile(&self, tuning: &Tuning, lanes: u8) -> Result<Profile, ConfigError> {
        let spin_us = match &tuning.spin_us {
            Some(value) => self.number("spin_us", value, 1, 1_000_000)?,
            None => SPIN_US_DEFAULT,
        };
        let poll = match &tuning.poll {
            Some(value) => parse_poll(value.get_ref(), spin_us).ok_or_else(|| {
                let reason = format!("poll = \"{}\" is no way to wait", value.get_ref());
                let fix = "use \"blocking\", \"adaptive\" or \"busy\"";
                self.refuse(Some(value.span()), reason, fix)
            })?,
            None => PollMode::Blocking,
        };
        let flush = match &tuning.flush {
            Some(value) => parse_flush(value.get_ref()).ok_or_else(|| {
                let reason = format!("flush = \"{}\" is no way to flush", value.get_ref());
                let fix = "use \"linked\", \"dsync\" or \"sync\"";
                self.refuse(Some(value.span()), reason, fix)
            })?,
            None => FLUSH_DEFAULT,
        };
        let cpu = |key: &str, value: &Option<Spanned<u64>>| match value {
            Some(value) => self.number(key, value, 0, 4095).map(|cpu| Some(cpu as usize)),
            None => Ok(None),
        };
        let (cpu, flush_cpu) = (cpu("cpu", &tuning.cpu)?, cpu("flush_cpu", &tuning.flush_cpu)?);
        let flushes_on = |cpus: Range<usize>| flush_cpu.is_some_and(|cpu| cpus.contains(&cpu));
        if let (PollMode::Busy, Some(first), Some(value)) = (poll, cpu, &tuning.flush_cpu)
            && flushes_on(first..first + usize::from(lanes))
        {
            let reason = "flush_cpu is the CPU that a busy node never leaves".to_string();
            return Err(self.refuse(Some(value.span()), reason, "give another CPU"));
        }
        Ok(Profile { poll, cpu, flush_cpu, flush })
    }
}

/// A way to wait, by name.
pub fn parse_poll(name: &str, spin_us: u64) -> Option<PollMode> {
    match name {
        "blocking" => Some(PollMode::Blocking),
        "adaptive" => Some(PollMode::Adaptive { spin_ns: spin_us * 1000 }),
        "busy" => Some(PollMode::Busy),
        _ => None,
    }
}

/// A way to flush, by name.
pub fn parse_flush(name: &str) -> Option<FlushMethod> {
    match name {
        "linked" => Some(FlushMethod::Linked),
        "dsync" => Some(FlushMethod::Dsync),
        "sync" => Some(FlushMethod::Sync),
        _ => None,
    }
}

/// A cluster number in hexadecimal digits.
pub fn parse_cluster(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|number| is_number && *number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../node.example.toml");

    fn example(change: impl Fn(&str) -> String) -> Result<Config, ConfigError> {
        parse(Path::new("node.toml"), &change(EXAMPLE))
    }

    fn refused(from: &str, to: &str) -> ConfigError {
        assert!(EXAMPLE.contains(from), "the example has {from}");
        example(|text| text.replacen(from, to, 1)).err().expect("must be refused")
    }

    /// Line of the example that starts like this.
    fn line_of(start: &str) -> Option<usize> {
        EXAMPLE.lines().position(|line| line.starts_with(start)).map(|line| line + 1)
    }

    #[test]
    fn the_example_is_accepted_and_shows_the_defaults() {
        let plain = example(str::to_string).unwrap();
        assert_eq!(plain.node.config.cluster, 0x1f2e_3d4c_5b6a_7988);
        assert_eq!(
            (plain.node.config.members.len(), plain.node.config.f, plain.node.config.k),
            (5, 1, 3)
        );
        assert_eq!(plain.node.listen, plain.node.config.members[0]);
        let other = example(|text| text.replace("# history_slots = 65536", "history_slots = 99"));
        assert_eq!(other.unwrap().node.config.bounds.history_slots, 99);
        let other =
            example(|text| text.replace("# session_idle_minutes = 10", "session_idle_minutes = 0"));
        assert_eq!(other.unwrap().node.config.bounds.session_idle_ns, 0);
        let other = example(|text| text.replace("# hosting_mib = 0", "hosting_mib = 99"));
        assert_eq!(other.unwrap().node.config.bounds.hosting_bytes_max, 99 << 20);
        assert!(!plain.node.config.keeps_margin);
        let other = example(|text| text.replace("# keep_margin = false", "keep_margin = true"));
        assert!(other.unwrap().node.config.keeps_margin);
        // Every default that the example shows is the default.
        let shown = example(|text| {
            let is_key = |line: &str| {
                line.strip_prefix("# ").is_some_and(|rest| rest.contains(" = "))
                    && !line.contains("cpu =")
                    && !line.contains("listen =")
            };
            let uncomment = |line: &str| match is_key(line) {
                true => line[2..].to_string(),
                false => line.to_string(),
            };
            text.lines().map(uncomment).collect::<Vec<_>>().join("\n")
        });
        let shown = shown.unwrap();
        assert_eq!(shown.node.config.bounds, plain.node.config.bounds);
        assert_eq!(shown.node.config.inline_bytes_max, plain.node.config.inline_bytes_max);
        assert_eq!(shown.node.config.keeps_margin, plain.node.config.keeps_margin);
        assert_eq!(shown.node.config.quota_bytes, plain.node.config.quota_bytes);
        assert_eq!(shown.node.config.own_slots_max, plain.node.config.own_slots_max);
        assert_eq!(shown.node.profile, plain.node.profile);
        assert_eq!(shown.etcd, plain.etcd);
        let etcd = plain.etcd.expect("the example serves etcd's API");
        assert_eq!((etcd.listen, etcd.settings.endpoints.len()), (etcd_address(0), 5));
    }

    fn etcd_address(node: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 2379 + node))
    }

    #[test]
    fn contacts_are_addresses_that_can_be_sent_to() {
        let shown = "# contacts = [\"127.0.0.1:7405\", \"127.0.0.1:7406\"]";
        assert!(example(str::to_string).unwrap().node.config.contacts.is_empty());
        let given = example(|text| text.replace(shown, &shown[2..])).unwrap();
        assert_eq!(given.node.config.contacts.len(), 2);
        for (given, reason) in [("[]", "is empty"), ("[\"0.0.0.0:7405\"]", "cannot be sent to")] {
            let error = refused(shown, &format!("contacts = {given}"));
            assert!(error.reason.contains("contacts") && error.reason.contains(reason), "{error}");
            assert_eq!(error.line, line_of("# contacts"));
        }
    }

    #[test]
    fn the_least_fast_threshold_is_asked_for_by_name() {
        let shown = "# fast = \"sup+f\"";
        assert_eq!(example(str::to_string).unwrap().node.config.fast, Fast::Support);
        let named = |name: &str| {
            let line = format!("fast = \"{name}\"");
            example(|text: &str| text.replace(shown, &line)).map(|config| config.node.config.fast)
        };
        assert_eq!(named("f*").unwrap(), Fast::Least);
        assert_eq!(named("sup+f").unwrap(), Fast::Support);
        let error = refused(shown, "fast = \"F\"");
        assert!(error.reason.contains("\"F\" is no fast threshold"), "{error}");
        assert!(error.fix.contains("remove `fast`"), "{error}");
    }

    #[test]
    fn the_queue_policy_is_asked_for_and_has_no_etcd_api() {
        let shown = "# policy = \"owner\"";
        assert_eq!(example(str::to_string).unwrap().node.config.policy, Policy::OwnerSlots);
        let queue = |text: &str| text.replace(shown, "policy = \"queue\"");
        let plain = |text: &str| queue(text.split("[etcd]").next().unwrap());
        assert_eq!(example(plain).unwrap().node.config.policy, Policy::Queue);
        let error = example(queue).err().expect("must be refused");
        assert!(error.reason.contains("policy") && error.fix.contains("[etcd]"), "{error}");
        assert_eq!(error.line, line_of("endpoints ="));
        let error = refused(shown, "policy = \"raft\"");
        assert!(error.reason.contains("\"raft\" is no policy"), "{error}");
        assert_eq!(error.line, line_of(shown));
    }

    #[test]
    fn the_etcd_api_is_off_unless_asked_for_and_its_endpoints_are_the_members() {
        let plain = |text: &str| text.split("[etcd]").next().unwrap().to_string();
        assert!(example(plain).unwrap().etcd.is_none());
        let error = refused("    \"127.0.0.1:2383\",\n", "");
        assert_eq!(error.line, line_of("endpoints ="));
        assert!(error.reason.contains("4 entries for 5 members"), "{error}");
        let error = refused("\"127.0.0.1:2379\"", "\"db0:2379\"");
        assert!(error.fix.contains("`listen`"), "{error}");
        let other = |text: &str| {
            text.replace("\"127.0.0.1:2379\"", "\"db0:2379\"")
                .replace("# listen = \"0.0.0.0:2379\"", "listen = \"0.0.0.0:2379\"")
        };
        let etcd = example(other).unwrap().etcd.unwrap();
        assert_eq!(etcd.listen, "0.0.0.0:2379".parse().unwrap());
        assert_eq!(etcd.settings.endpoints[0], "db0:2379");
        assert_eq!(etcd.settings.advertise, None);
        let joined = |lines: &str| {
            let config = example(|text| {
                let text = text.replace("node = 0", "node = 5");
                format!("listen = \"127.0.0.1:7405\"\n{text}{lines}")
            });
            config.unwrap().etcd.unwrap().settings.advertise
        };
        let at = |text: &str| Some(text.to_string());
        assert_eq!(joined("listen = \"127.0.0.1:2384\"\n"), at("127.0.0.1:2384"));
        assert_eq!(joined("listen = \"0.0.0.0:2384\"\n"), None);
        let both = "listen = \"0.0.0.0:2384\"\nadvertise = \"db5:2384\"\n";
        assert_eq!(joined(both), at("db5:2384"));
        let keep = |lines: &str| {
            let config = example(|text| format!("{text}{lines}"));
            config.map(|config| config.node.config.auto_compaction)
        };
        assert_eq!(keep(""), Ok(AutoCompaction::Off));
        assert_eq!(keep("keep_revisions = 1000\n"), Ok(AutoCompaction::Revisions(1000)));
        assert_eq!(keep("keep_minutes = 5\n"), Ok(AutoCompaction::Period(300_000_000_000)));
        let error = keep("keep_revisions = 1\nkeep_minutes = 5\n").unwrap_err();
        assert!(error.reason.contains("both given"), "{error}");
    }

    /// tests PROTOCOL 3.1-k
    #[test]
    fn lanes_are_for_native_clients_and_need_ports_of_their_own() {
        let plain = |text: &str| text.split("[etcd]").next().unwrap().to_string();
        let lanes = |count: u32, apart: u32| {
            example(|text| {
                let mut text = plain(text).replace("# lanes = 1", &format!("lanes = {count}"));
                for node in (1..5).rev() {
                    let port = |node: u32, apart: u32| format!("127.0.0.1:{}", 7400 + node * apart);
                    text = text.replacen(&port(node, 1), &port(node, apart), 1);
                }
                text
            })
        };
        assert_eq!(example(str::to_string).unwrap().node.config.lane.count, 1);
        let four = lanes(4, 4).unwrap().node.config;
        assert_eq!((four.lane.count, four.bounds.buffer_bytes_max), (4, 256 << 20));
        assert_eq!(lanes(64, 64).unwrap().node.config.bounds.buffer_bytes_max, 4096 << 20);
        let error = lanes(4, 3).err().expect("must be refused");
        assert!(error.reason.contains("too close") && error.fix.contains("room"), "{error}");
        assert_eq!(error.line, line_of("# lanes = 1"));
        for count in [0, 65] {
            let error = lanes(count, 100).err().expect("must be refused");
            assert!(error.fix.contains("from 1 to 64"), "{error}");
        }
        let error = refused("# lanes = 1", "lanes = 2");
        assert!(error.reason.contains("one order of all keys"), "{error}");
        assert_eq!(error.line, line_of("endpoints ="));
        let error = example(|text| {
            plain(text).replace("# lanes = 1", "lanes = 2").replace("7404", "65535")
        });
        let error = error.err().expect("must be refused");
        assert!(error.fix.contains("lower ports"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_fix() {
        let error = refused("# listen = \"0.0.0.0:7400\"", "lisen = \"0.0.0.0:7400\"");
        assert_eq!(error.line, line_of("# listen ="));
        assert!(error.reason.contains("unknown key `lisen`"), "{error}");
        assert!(error.fix.contains("`listen`"), "{error}");
        let error = refused("# cache_mib = 64", "cash_mib = 64");
        assert!(error.line == line_of("# cache_mib") && error.fix.contains("cache_mib"), "{error}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = refused("cluster = \"1f2e3d4c5b6a7988\"", "");
        assert!(error.reason.contains("`cluster` is missing"), "{error}");
    }

    #[test]
    fn bad_values_are_refused_with_line_and_fix() {
        for (from, to, line, reason, fix) in [
            ("node = 0", "node = 5", "node =", "node = 5", "from 0 to 4"),
            ("node = 0", "node = \"a\"", "node =", "invalid type", "write u64"),
            ("\"1f2e3d4c5b6a7988\"", "\"xyz\"", "cluster =", "xyz", "hexadecimal"),
            ("\"1f2e3d4c5b6a7988\"", "\"0\"", "cluster =", "not a cluster number", "not all zero"),
            ("127.0.0.1:7402", "127.0.0.1", "    \"127.0.0.1:7402", "not an address", "IP:PORT"),
            ("127.0.0.1:7402", "127.0.0.1:7401", "    \"127.0.0.1:7402", "twice", "of its own"),
            ("127.0.0.1:7402", "0.0.0.0:7402", "    \"127.0.0.1:7402", "cannot be sent", "listen"),
            ("# segment_mib = 64", "segment_mib = 3", "# segment_mib", "range", "16 to 1024"),
            ("# poll = \"blocking\"", "poll = \"fast\"", "# poll", "no way to wait", "adaptive"),
            ("# flush = \"linked\"", "flush = \"no\"", "# flush =", "no way to flush", "dsync"),
            ("f = 1\n", "f = = 1\n", "f =", "extra `=`", "remove it"),
        ] {
            let error = refused(from, to);
            assert_eq!(error.line, line_of(line), "{error}");
            assert!(error.reason.contains(reason), "{error}");
            assert!(error.fix.contains(fix), "{error}");
            assert!(error.to_string().starts_with("node.toml:"), "{error}");
        }
    }

    #[test]
    fn an_impossible_code_is_refused_with_the_formula() {
        let error = refused("f = 1\n", "f = 2\n");
        assert_eq!(error.line, line_of("k ="));
        assert!(error.reason.contains("(5, 2, 3)"), "{error}");
        assert!(error.reason.contains("n >= 2f + k = 7"), "{error}");
        assert!(error.fix.contains("list 7 members, or lower f or k"), "{error}");
        assert!(refused("k = 3\n", "k = 0\n").fix.contains("1 to 64"));
    }

    #[test]
    fn every_code_with_n_at_least_2f_plus_k_is_accepted() {
        for (n, f, k) in [(1, 0, 1), (3, 1, 1), (5, 1, 3), (5, 1, 2), (7, 2, 3), (9, 3, 3)] {
            let members: Vec<_> = (0..n).map(|at| format!("\"10.0.0.1:{}\"", 100 + at)).collect();
            let text = format!(
                "cluster = \"1\"\nnode = 0\nmembers = [{}]\nf = {f}\nk = {k}\ndata_dir = \"d\"",
                members.join(", ")
            );
            assert!(parse(Path::new("x"), &text).is_ok(), "({n}, {f}, {k})");
        }
    }
}
