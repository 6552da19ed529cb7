//! The log's sizes.

use crate::error::LogError;
use crate::format::{BLOCK, GROUP_MAX};

/// Sizes of a log. All but `segment_len`, which holds for segments made from now on, may differ
/// from one opening to the next.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Bytes of a new segment file, a multiple of 4096, at most 1 GiB.
    pub segment_len: u32,
    /// Segments kept ready, written with zeros, behind the one in use.
    pub prepare_ahead: usize,
    /// Segments that `format` makes, at least one.
    pub initial_segments: u32,
    /// Prepared bytes that only urgent records may take.
    pub reserve_bytes: u64,
    /// Bytes to leave free on the file system: no segment is made that would take them.
    pub free_bytes_min: u64,
    /// Bodies shorter than this are copied into the group; others are written from where they lie.
    pub inline_body_max: usize,
    /// Buffer for the inline area of a group: bounds heads and short bodies of one flush.
    pub inline_bytes_max: usize,
    /// Files given back that are kept for use as segments; more are removed.
    pub spare_max: usize,
    /// Bytes of one group, payloads included: bounds one flush and one record.
    pub group_bytes_max: usize,
    /// Bytes that may wait for their flush; urgent records may take twice as many.
    pub queue_bytes_max: usize,
    /// Reads in flight.
    pub reads_max: usize,
    /// Check every payload's checksum while opening, not only those of the last group.
    pub check_payloads: bool,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            segment_len: 64 << 20,
            prepare_ahead: 2,
            initial_segments: 3,
            reserve_bytes: 8 << 20,
            free_bytes_min: 64 << 20,
            inline_body_max: 16 << 10,
            inline_bytes_max: 1 << 20,
            spare_max: 2,
            group_bytes_max: 8 << 20,
            queue_bytes_max: 64 << 20,
            reads_max: 256,
            check_payloads: false,
        }
    }
}

impl LogConfig {
    /// The configuration with group sizes that fit its segments, or what cannot work.
    pub(crate) fn checked(&self) -> Result<LogConfig, LogError> {
        let refuse = |what: String| Err(LogError::Config(what));
        let segment = self.segment_len as usize;
        if !segment.is_multiple_of(BLOCK) || !(4 * BLOCK..=1 << 30).contains(&segment) {
            return refuse(format!("segment_len {segment} is not 16 KiB..1 GiB in blocks of 4096"));
        }
        if self.initial_segments == 0 || self.prepare_ahead == 0 || self.reads_max == 0 {
            let names = "initial_segments, prepare_ahead and reads_max";
            return refuse(format!("{names} must be at least 1"));
        }
        let group = self.group_bytes_max.min(segment - BLOCK).min(GROUP_MAX as usize);
        let inline = self.inline_bytes_max.min(group);
        let group = group / BLOCK * BLOCK;
        let inline = inline / BLOCK * BLOCK;
        if inline == 0 || self.inline_body_max > inline / 2 {
            return refuse("inline_body_max exceeds half of what a group takes inline".to_string());
        }
        // Else ordinary records could be refused for ever with every segment prepared.
        let ready = (segment - BLOCK) as u64 * self.prepare_ahead as u64;
        if self.reserve_bytes + group as u64 > ready {
            let reserve = self.reserve_bytes;
            return refuse(format!("reserve_bytes {reserve} leaves no room in {ready} prepared"));
        }
        Ok(LogConfig { group_bytes_max: group, inline_bytes_max: inline, ..self.clone() })
    }
}
