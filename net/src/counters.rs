//! What a transport has done and dropped, by reason.

use crate::frame::Junk;

/// Counts since the transport was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    /// Messages given to `send`, and those handed out.
    pub messages_sent: u64,
    pub messages_received: u64,
    /// Of these, the ones that travelled in chunks; sent ones count once acknowledged.
    pub large_sent: u64,
    pub large_received: u64,
    pub chunks_sent: u64,
    pub chunks_retransmitted: u64,
    pub acks_sent: u64,
    pub acks_received: u64,

    /// Datagrams dropped whole.
    pub junk_short: u64,
    pub junk_magic: u64,
    pub junk_version: u64,
    pub junk_cluster: u64,
    pub junk_lane: u64,
    pub junk_checksum: u64,
    pub junk_frame: u64,
    /// Frames dropped: a kind of the transport's that it does not know.
    pub junk_kind: u64,
    /// Frames dropped: a chunk or acknowledgement that contradicts itself or its message.
    pub junk_chunk: u64,
    pub junk_ack: u64,

    /// Chunks of messages, streams or boots that are over.
    pub dropped_stale: u64,
    /// Chunks of messages that had been delivered; acknowledged again.
    pub dropped_duplicate: u64,
    /// Chunks of messages larger than the limit.
    pub dropped_too_large: u64,
    /// Chunks of messages for which there is no room now: too many at once, or too many bytes.
    pub dropped_no_room: u64,
    /// Half-received messages given up because no chunk came for long.
    pub assemblies_expired: u64,
    /// Large messages given up because the peer did not acknowledge.
    pub given_up: u64,
    /// Peers forgotten to make room for others.
    pub peers_evicted: u64,
}

impl Counters {
    pub(crate) fn junk(&mut self, junk: Junk) {
        let counter = match junk {
            Junk::Short => &mut self.junk_short,
            Junk::Magic => &mut self.junk_magic,
            Junk::Version => &mut self.junk_version,
            Junk::Cluster => &mut self.junk_cluster,
            Junk::Lane => &mut self.junk_lane,
            Junk::Checksum => &mut self.junk_checksum,
            Junk::Frame => &mut self.junk_frame,
        };
        *counter += 1;
    }

    /// Datagrams and frames dropped because they were wrong in themselves.
    pub fn junk_total(&self) -> u64 {
        self.junk_short
            + self.junk_magic
            + self.junk_version
            + self.junk_cluster
            + self.junk_lane
            + self.junk_checksum
            + self.junk_frame
            + self.junk_kind
            + self.junk_chunk
            + self.junk_ack
    }
}
