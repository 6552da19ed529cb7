//! What a node is told when it starts.

use crate::api::AutoCompaction;
use crate::layout::VALUE_BYTES_MAX;
use racos_net::Lane;
use racos_protocol::{Fast, Policy, Terms, Timing};
pub use racos_storage::device::waiting::PollMode;
use std::net::SocketAddr;

/// What was measured or chosen for this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    pub poll: PollMode,
    /// CPU that the reactor is pinned to.
    pub cpu: Option<usize>,
    /// CPU for the kernel's flush workers; must not be the one a busy reactor spins on.
    pub flush_cpu: Option<usize>,
    pub flush: racos_storage::device::FlushMethod,
}

pub const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Bounds of one node's memory and disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Buffers of all kinds: values on their way in and out, batches not yet executed.
    pub buffer_bytes_max: usize,
    /// Fragments kept in memory after use.
    pub cache_bytes_max: usize,
    /// Bytes of one log segment file.
    pub segment_bytes: u32,
    /// Segments written with zeros when the directory is made.
    pub initial_segments: u32,
    /// Largest value of one request; larger ones come as stripes. A fragment of it must fit a group
    /// of the log, a quarter of a segment.
    pub value_bytes_max: usize,
    /// A value of at least so many bytes is stored at the others before it gets a slot (PROTOCOL 6.3,
    /// class R); a smaller one travels with its slot.
    pub ready_bytes_min: usize,
    /// Bytes of log, without copies and checkpoints, after which another checkpoint is written, or twice
    /// the bytes of the newest one if that is more.
    pub checkpoint_bytes: u64,
    /// Bytes that the log's files may take besides 1.28 times what is live; a little below, segments of
    /// little use are copied together.
    pub space_reserve_bytes: u64,
    /// Bytes of one record of a checkpoint, and of one message of a state that a node takes.
    pub piece_bytes_max: usize,
    /// How many executed slots at least keep their batches for nodes that lag, while the log's files
    /// do not take more than they may; one that lags further gets a checkpoint.
    pub history_slots: u64,
    /// Bytes of the disk that the log leaves free.
    pub disk_reserve_bytes: u64,
    /// Bytes of values that this node re-codes in a second at most, after a change of the members; each
    /// value counts some kilobytes more. 0: it leaves that to the others.
    pub recode_bytes_per_s: u64,
    /// Bytes of fragments that this node keeps for members that are missing, of what is written through it
    /// meanwhile, and whether it asks others for such (PROTOCOL 9.6); 0: none.
    pub hosting_bytes_max: u64,
    /// A member that was not heard for so long, at some looks in a row, is missing: see `keeps_margin` and
    /// `hosting_bytes_max`.
    pub missing_ns: u64,
    /// How long a round over everything on disk that is of use takes, in nanoseconds; 0: there is none.
    pub scrub_ns: u64,
    /// A session that was not used for so long may be ended, in nanoseconds; 0: none is, until the table
    /// of sessions is full.
    pub session_idle_ns: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            buffer_bytes_max: 256 << 20,
            cache_bytes_max: 64 << 20,
            segment_bytes: 64 << 20,
            initial_segments: 2,
            value_bytes_max: VALUE_BYTES_MAX,
            ready_bytes_min: 1 << 20,
            checkpoint_bytes: 256 << 20,
            space_reserve_bytes: 1 << 30,
            piece_bytes_max: 256 << 10,
            history_slots: 65_536,
            disk_reserve_bytes: 1 << 30,
            recode_bytes_per_s: 16 << 20,
            hosting_bytes_max: 0,
            missing_ns: 1_500_000_000,
            scrub_ns: 14 * DAY_NS,
            session_idle_ns: 600_000_000_000,
        }
    }
}

/// Identity, membership and tuning of one node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Drawn when the cluster was founded; equal at all members, and part of every datagram.
    pub cluster: u64,
    /// This node: its place in `members`.
    pub node: u8,
    pub incarnation: u32,
    /// Which of the node's lanes this is, of how many: what the cluster is founded with.
    pub lane: Lane,
    /// Addresses of all members, this one included, in order.
    pub members: Vec<SocketAddr>,
    /// Other nodes of the cluster, which are asked when none of those known is heard (PROTOCOL 10-z):
    /// all of them may have left.
    pub contacts: Vec<SocketAddr>,
    pub f: usize,
    pub k: usize,
    /// Who fills the slots: what the cluster is founded with, equal at all members (PROTOCOL 6).
    pub policy: Policy,
    /// How many proposals decide a slot of class R, likewise (PROTOCOL 5.5).
    pub fast: Fast,
    /// While members are missing, what is written through this node is cut into as many data fragments fewer,
    /// so that each new value can lose as many as before (PROTOCOL 9.6).
    pub keeps_margin: bool,
    /// Values up to this many bytes are kept whole at every node instead of being coded.
    pub inline_bytes_max: usize,
    pub alpha: u64,
    /// Own slots in flight.
    pub own_slots_max: usize,
    /// Versions kept of a key; one more drops the oldest, and the right to read at revisions that
    /// would show it. A number that the cluster is founded with, equal on all nodes; it holds until a
    /// node opens its door, from when on all are kept until they are compacted, as etcd does.
    pub versions_per_key_max: u32,
    /// Bytes of the log in use from which on this node takes no puts through the api role and raises
    /// the alarm; 0: as much as the disk holds.
    pub quota_bytes: u64,
    /// What of the history is kept without anybody compacting. Equal on all nodes.
    pub auto_compaction: AutoCompaction,
    pub timing: Timing,
    pub bounds: Bounds,
    /// Seed of what must differ between nodes and starts but not be secret (the local coin).
    pub seed: u64,
}

impl NodeConfig {
    /// A configuration with the usual tuning.
    pub fn new(cluster: u64, node: u8, members: Vec<SocketAddr>, f: usize, k: usize) -> NodeConfig {
        NodeConfig {
            cluster,
            node,
            incarnation: 1,
            lane: Lane::ONLY,
            members,
            contacts: Vec::new(),
            f,
            k,
            policy: Policy::OwnerSlots,
            fast: Fast::Support,
            keeps_margin: false,
            inline_bytes_max: 128,
            alpha: 1024,
            own_slots_max: 2,
            versions_per_key_max: 4,
            quota_bytes: 0,
            auto_compaction: AutoCompaction::Off,
            timing: Timing::default(),
            bounds: Bounds::default(),
            seed: 0,
        }
    }

    /// Flags of this node's datagrams.
    pub(crate) fn flags(&self) -> u8 {
        if self.fast == Fast::Least { racos_net::frame::LEAST } else { 0 }
    }

    /// What all members are founded with besides each other.
    pub fn terms(&self) -> Terms {
        Terms { policy: self.policy, fast: self.fast }
    }
}
