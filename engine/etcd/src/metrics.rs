//! Counters of this face, and the page `/metrics`.
//!
//! racos' own figures have names that begin with `racos_`; beside them stand those of etcd's names
//! that common dashboards read and that mean the same here.

use racos_engine::api::types::StatusAnswer;
use racos_engine::api::{AuthView, Identity};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    pub connections: AtomicI64,
    pub connections_refused: AtomicU64,
    pub received_bytes: AtomicU64,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub watch_streams: AtomicI64,
    pub watches: AtomicI64,
    pub keep_alives: AtomicU64,
    /// By method, in the order of [`METHODS`].
    methods: [AtomicU64; METHODS.len()],
}

/// Methods that dashboards tell apart.
const METHODS: [(&str, &str); 12] = [
    ("etcdserverpb.KV", "Range"),
    ("etcdserverpb.KV", "Put"),
    ("etcdserverpb.KV", "DeleteRange"),
    ("etcdserverpb.KV", "Txn"),
    ("etcdserverpb.KV", "Compact"),
    ("etcdserverpb.Watch", "Watch"),
    ("etcdserverpb.Lease", "LeaseGrant"),
    ("etcdserverpb.Lease", "LeaseRevoke"),
    ("etcdserverpb.Lease", "LeaseKeepAlive"),
    ("etcdserverpb.Lease", "LeaseTimeToLive"),
    ("etcdserverpb.Cluster", "MemberList"),
    ("etcdserverpb.Maintenance", "Status"),
];

impl Metrics {
    pub fn count(&self, counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// Counts a call of `/SERVICE/METHOD`.
    pub fn called(&self, path: &str) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let Some((service, method)) = path.trim_start_matches('/').split_once('/') else { return };
        if let Some(at) = METHODS.iter().position(|known| *known == (service, method)) {
            self.methods[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The page, in Prometheus' text format.
    pub fn page(&self, identity: Identity, auth: AuthView, status: &StatusAnswer) -> String {
        let mut page = Page(String::new());
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let gauge = |gauge: &AtomicI64| gauge.load(Ordering::Relaxed);
        let has_leader = i64::from(identity.hears_quorum);
        page.line("etcd_server_has_leader", "gauge", "1: this node hears a quorum.", has_leader);
        page.line("racos_revision", "gauge", "Revision of this node's state.", status.revision);
        page.line("racos_keys", "gauge", "Keys alive.", status.keys);
        page.line("racos_slots_seen", "gauge", "Slots known to be in use.", status.seen);
        page.line("racos_slots_applied", "gauge", "Slots executed.", status.exec);
        let (committed, applied) = ("etcd_server_proposals_committed_total", status.seen);
        page.line(committed, "gauge", "As racos_slots_seen.", applied);
        let (name, applied) = ("etcd_server_proposals_applied_total", status.exec);
        page.line(name, "gauge", "As racos_slots_applied.", applied);
        let total = "etcd_mvcc_db_total_size_in_bytes";
        page.line(total, "gauge", "Bytes of the log on disk.", status.db_size);
        let used = "etcd_mvcc_db_total_size_in_use_in_bytes";
        page.line(used, "gauge", "Bytes of the log in use.", status.db_size_in_use);
        let name = "etcd_debugging_mvcc_keys_total";
        page.line(name, "gauge", "As racos_keys.", status.keys);
        let name = "etcd_debugging_mvcc_current_revision";
        page.line(name, "gauge", "As racos_revision.", status.revision);
        let name = "etcd_debugging_auth_revision";
        page.line(name, "gauge", "Revision of users and roles.", auth.revision);
        let name = "racos_auth_enabled";
        page.line(name, "gauge", "1: users need permissions.", u8::from(auth.enabled));
        let name = "etcd_debugging_mvcc_watch_stream_total";
        page.line(name, "gauge", "Streams of watches.", gauge(&self.watch_streams));
        let name = "etcd_debugging_mvcc_watcher_total";
        page.line(name, "gauge", "Watches.", gauge(&self.watches));
        let name = "etcd_network_client_grpc_received_bytes_total";
        page.line(name, "counter", "Bytes of request bodies.", of(&self.received_bytes));
        let name = "racos_client_connections";
        page.line(name, "gauge", "Connections of clients.", gauge(&self.connections));
        let name = "racos_client_connections_refused_total";
        page.line(name, "counter", "Beyond the limit.", of(&self.connections_refused));
        let name = "racos_client_requests_total";
        page.line(name, "counter", "Calls taken.", of(&self.requests));
        let name = "racos_client_failures_total";
        page.line(name, "counter", "Calls answered with an error.", of(&self.failures));
        let name = "racos_lease_keep_alives_total";
        page.line(name, "counter", "Renewals of leases asked for.", of(&self.keep_alives));
        page.states(&status.native.states);
        page.disk(&status.native);
        page.head("grpc_server_started_total", "counter", "Calls by method.");
        for ((service, method), count) in METHODS.iter().zip(&self.methods) {
            let labels = format!("{{grpc_service=\"{service}\",grpc_method=\"{method}\"}}");
            page.value(&format!("grpc_server_started_total{labels}"), of(count));
        }
        page.process();
        page.0
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string grows");
    }

    fn value(&mut self, name: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{name} {value}").expect("a string grows");
    }

    fn line(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.value(name, value);
    }

    /// Whether this node's state is that of the others.
    fn states(&mut self, states: &racos_engine::status::StatesStatus) {
        let name = "racos_states_compared_total";
        let help = "How often another node's state was found to be the same.";
        self.line(name, "counter", help, states.compared);
        let name = "racos_states_same_until_slot";
        let help = "The highest slot at which one was.";
        self.line(name, "gauge", help, states.same_until);
        let name = "racos_states_differing";
        let help = "Nodes with another state after the same slot; anything but 0 is wrong.";
        self.line(name, "gauge", help, states.differing.len());
    }

    /// What the disk is like, and what is done about damage.
    fn disk(&mut self, native: &racos_engine::status::Status) {
        let (disk, scrub, repair) = (&native.disk, &native.scrub, &native.repair);
        let recode = &native.recode;
        let name = "racos_disk_hangs_seconds";
        let hangs = disk.hangs_ms as f64 / 1e3;
        self.line(name, "gauge", "How long the disk has not answered.", hangs);
        let name = "racos_disk_full";
        self.line(name, "gauge", "1: puts are refused for want of space.", u8::from(disk.full));
        let name = "racos_scrub_rounds_total";
        self.line(name, "counter", "Rounds over all that is on disk.", scrub.rounds);
        let name = "racos_scrub_bytes_total";
        self.line(name, "counter", "Bytes read by them.", scrub.bytes);
        let name = "racos_scrub_fragments_damaged_total";
        self.line(name, "counter", "Fragments found damaged.", scrub.fragments_damaged);
        let name = "racos_scrub_records_damaged_total";
        self.line(name, "counter", "Damage in what a restart reads.", scrub.records_damaged);
        let name = "racos_fragments_missing";
        self.line(name, "gauge", "Fragments to be made again.", repair.missing);
        let name = "racos_fragments_repaired_total";
        self.line(name, "counter", "Fragments made again.", repair.repaired);
        let name = "racos_fragments_from_hosts_total";
        let help = "Of these: not made again, but kept by another node meanwhile (hosting_mib).";
        self.line(name, "counter", help, repair.from_hosts);
        let name = "racos_recode_values_left";
        let help = "Values in use in an older layout than the newest.";
        self.line(name, "gauge", help, recode.values_left);
        let name = "racos_recode_bytes_left";
        self.line(name, "gauge", "Their bytes, before coding.", recode.bytes_left);
        let name = "racos_recoded_total";
        self.line(name, "counter", "Values re-coded by this node.", recode.done);
        let name = "racos_missing_members";
        let help = "Members not heard for seconds (with keep_margin or hosting_mib).";
        self.line(name, "gauge", help, native.margin.missing.len());
        let name = "racos_hosted_bytes";
        let help = "Fragments kept for members that are missing (hosting_mib).";
        self.line(name, "gauge", help, native.margin.hosted_bytes);
        let name = "racos_fragment_cache_hits_total";
        self.line(name, "counter", "Fragments found in memory.", disk.cache_hits);
        let name = "racos_fragment_cache_misses_total";
        self.line(name, "counter", "Fragments read from disk.", disk.cache_misses);
    }

    fn process(&mut self) {
        let usage = racos_engine::runtime::usage();
        let seconds = usage.cpu_us as f64 / 1e6;
        let name = "process_cpu_seconds_total";
        self.line(name, "counter", "CPU time of the node.", seconds);
        let name = "process_resident_memory_bytes";
        self.line(name, "gauge", "Memory of the node.", usage.memory_bytes);
    }
}
