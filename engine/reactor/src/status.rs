//! What a node tells about itself: the STATUS reply, as JSON.

use serde::{Deserialize, Serialize};

/// One node's report. All counts are since the process started unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: u8,
    pub cluster: u64,
    /// Which lane tells this, and how many the node has; CPU and memory are those of all.
    #[serde(default)]
    pub lane: u8,
    #[serde(default = "one_lane")]
    pub lanes: u8,
    pub incarnation: u32,
    /// The id of this node's disk, 32 hexadecimal digits.
    #[serde(default)]
    pub disk_id: String,
    pub boot: u32,
    pub version: String,
    pub n: usize,
    pub f: usize,
    pub k: usize,
    /// What the cluster was founded with, as in a configuration; empty: the node is too old to tell.
    #[serde(default)]
    pub policy: String,
    #[serde(default)]
    pub fast: String,
    /// All slots below are executed; all below `seen` are in use.
    pub exec: u64,
    pub seen: u64,
    pub revision: u64,
    pub keys: u64,
    pub sessions: u64,
    pub peers: Vec<PeerStatus>,
    pub slots: SlotCounts,
    pub disk: DiskStatus,
    pub net: NetStatus,
    pub repair: RepairStatus,
    pub scrub: ScrubStatus,
    #[serde(default)]
    pub recode: RecodeStatus,
    #[serde(default)]
    pub margin: MarginStatus,
    /// What is wrong with this node, for the person who runs it; none: nothing is known to be.
    pub problem: Option<String>,
    #[serde(default)]
    pub catch_up: CatchUpStatus,
    #[serde(default)]
    pub states: StatesStatus,
    /// The configuration as this node has executed it, and how many changes led to it.
    pub members: Vec<MemberStatus>,
    pub epoch: u32,
    /// The slot from which on the newest change is in effect.
    #[serde(default)]
    pub effect: u64,
    /// Whether this node takes clients' work: not while it replaces another and catches up.
    pub is_active: bool,
    pub requests: RequestCounts,
    /// CPU time of the process, user and system, in microseconds; resident memory in bytes.
    pub cpu_us: u64,
    pub memory_bytes: u64,
    pub uptime_ms: u64,
    /// How this node waits, flushes and sends, in words.
    pub runtime: String,
}

fn one_lane() -> u8 {
    1
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub node: u8,
    pub address: String,
    /// The exec that the peer told last (it tells when asked), and whether it is not waited for.
    pub exec: u64,
    pub suspected: bool,
    /// Milliseconds since any datagram came from it; none: never.
    pub heard_ms_ago: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotCounts {
    /// Slots decided with a batch: by proposals alone, by votes, or learned from another node.
    pub fast: u64,
    pub slow: u64,
    pub told: u64,
    /// Null slots decided by consensus; slots that their owner skipped.
    pub null: u64,
    pub skipped: u64,
}

/// One member's place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub node: u8,
    pub address: String,
    pub incarnation: u32,
    /// The first slot in which this incarnation counts.
    pub from: u64,
    /// The disk's id, 32 hexadecimal digits; zeros: the one it was founded with.
    pub disk: String,
    pub is_rebuilding: bool,
    /// In the newest configuration, perhaps not in effect.
    #[serde(default)]
    pub is_member: bool,
    /// It left and its disk is lost; it left and may be wiped.
    #[serde(default)]
    pub is_lost: bool,
    #[serde(default)]
    pub is_released: bool,
    /// Values in use, written before the newest change of the members, with fragments on it.
    #[serde(default)]
    pub values: u64,
}

/// Fragments that this node should have and has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairStatus {
    pub missing: u64,
    pub under_way: u64,
    /// Of the missing ones: fewer than k fragments of the value were found.
    pub lost: u64,
    /// Made again and stored.
    pub repaired: u64,
    /// Of these: not made again, but kept by another node meanwhile.
    #[serde(default)]
    pub from_hosts: u64,
    /// Found to be wrong though their checksum was good, here or at another node.
    pub odd: u64,
}

/// Values in use, and how many of them have an older layout than the newest and are stored again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecodeStatus {
    pub values: u64,
    pub values_left: u64,
    /// Before coding.
    pub bytes_left: u64,
    /// This node's share of it: begun, and done since the start.
    pub under_way: u64,
    pub done: u64,
}

/// What is written while members are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarginStatus {
    /// As configured: new values are cut into fewer data fragments then.
    pub is_kept: bool,
    /// Members that were not heard for seconds.
    pub missing: Vec<u8>,
    /// Data fragments of what is written now.
    pub k: usize,
    /// Values in fewer than the configuration has, as counted when they were gone over last; they are stored
    /// again once nobody is missing.
    pub left: u64,
    /// Fragments of missing members that are kept for them, their bytes, and how many were handed over.
    #[serde(default)]
    pub hosted: u64,
    #[serde(default)]
    pub hosted_bytes: u64,
    #[serde(default)]
    pub handed_over: u64,
}

/// What was read again to find damage before anybody needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Rounds ended, how far this one is, and bytes read in all of them.
    pub rounds: u64,
    pub percent: u8,
    pub bytes: u64,
    /// Fragments found damaged (they are repaired), and records that a restart reads.
    pub fragments_damaged: u64,
    pub records_damaged: u64,
}

/// States taken from, and sent to, nodes instead of slots one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatchUpStatus {
    /// All slots from here on are kept for nodes that lag; one that lags further is sent a state.
    pub history_from: u64,
    /// The slot up to which a state is on its way in.
    pub fetching: Option<u64>,
    /// States taken, and pieces of states sent.
    pub installed: u64,
    pub pieces_sent: u64,
    /// Why a state was not taken last.
    pub refused: Option<String>,
    /// Ranges of slots told to nodes that lag.
    #[serde(default)]
    pub ranges_told: u64,
}

/// Whether this node's state is that of others that have executed the same slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatesStatus {
    /// How often another node's state was found to be the same, and the highest exec at which one was.
    pub compared: u64,
    pub same_until: u64,
    /// Nodes whose state is another one, as far as is known.
    pub differing: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Bytes of the log in use, and bytes of its files.
    pub log_bytes: u64,
    pub file_bytes: u64,
    pub free_bytes: u64,
    pub flushes: u64,
    pub flushed_bytes: u64,
    pub full: bool,
    /// How long the disk has not completed what it was asked, in milliseconds; 0: it answers.
    pub hangs_ms: u64,
    /// Fragments asked for that were in memory, and that were not.
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// Bytes of fragments that values in use need.
    pub live_bytes: u64,
    /// Bytes that the files may take: 1.28 times what is live and a fixed reserve, or what checkpoints of
    /// many small values need; and that reserve.
    pub wanted_bytes: u64,
    pub reserve_bytes: u64,
    /// Checkpoints written; the slot up to which the newest durable one reaches, and its bytes.
    pub checkpoints: u64,
    pub checkpoint_exec: u64,
    pub checkpoint_bytes: u64,
    /// Bytes of fragments copied so that segments could be used again.
    pub copied_bytes: u64,
    /// Segments that were of no use any more, and segments made of files used before.
    pub segments_back: u64,
    pub segments_recycled: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    pub datagrams_junk: u64,
    pub retransmissions: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    pub writes: u64,
    pub reads: u64,
    pub failed: u64,
    /// Reads that needed no second round.
    pub reads_one_round: u64,
    /// Spans and watches looked at for changes that watches were told, or not.
    #[serde(default)]
    pub watch_steps: u64,
    /// Slices of reads through the API: of at most 1000 keys, versions or items each.
    #[serde(default)]
    pub slices: u64,
}
