//! Room for the log: segments made ahead of need, given back, and used again.
//!
//! Invariant: at most one segment is being made or used again at a time, and none is given back that
//! replay may read. What would break it: counting a file as prepared before it is, or twice.

use super::{Event, Log};
use crate::device::{Device, FileId};
use crate::format::BLOCK;
use crate::superblock::COPY_LEN;
use std::io::ErrorKind;

impl<D: Device> Log<D> {
    /// Whether the last attempt to make a segment failed for want of disk space.
    pub fn is_disk_full(&self) -> bool {
        self.space.disk_full
    }

    pub(super) fn prepared(
        &mut self,
        file: FileId,
        result: std::io::Result<()>,
        events: &mut Vec<Event>,
    ) {
        self.space.preparing = false;
        let recycled = std::mem::take(&mut self.recycling);
        self.lending &= result.is_ok();
        match result {
            Ok(()) => {
                self.counters.segments_prepared += u64::from(!recycled);
                self.counters.segments_recycled += u64::from(recycled);
                self.space.add(file, self.config.segment_len);
                let usable = u64::from(self.config.segment_len) - BLOCK as u64;
                if std::mem::take(&mut self.lending) {
                    self.space.lent_bytes += usable;
                    return;
                }
                // One that was given back makes good for one that was lent; one that was made without
                // touching what is to be left free, for all of them.
                let good = if recycled { usable } else { u64::MAX };
                self.space.lent_bytes = self.space.lent_bytes.saturating_sub(good);
                let is_back = self.space.lent_bytes == 0;
                if is_back && std::mem::take(&mut self.space.disk_full) {
                    events.push(Event::SpaceBack);
                }
                self.prepare_more();
            }
            Err(error) if is_full(&error) => self.note_full(),
            Err(error) => self.fail(format!("making log segment {file} failed: {error}"), events),
        }
    }

    pub(super) fn note_full(&mut self) {
        if !self.space.disk_full {
            self.space.disk_full = true;
            let prepared_bytes = self.space.prepared_bytes();
            self.pending.push(Event::SpaceLow { prepared_bytes });
        }
    }

    /// Asks again for disk space after [`Event::SpaceLow`]. A refused append does so by itself.
    pub fn retry_space(&mut self) {
        self.prepare_if(true, false);
    }

    pub(super) fn prepare_more(&mut self) {
        self.prepare_if(false, false);
    }

    /// Makes another segment ready if too few are. `may_lend`: of the space that is to be left free, if
    /// need be.
    pub(super) fn prepare_if(&mut self, also_when_full: bool, may_lend: bool) {
        let enough = self.space.ahead() >= self.config.prepare_ahead;
        let waits = self.space.disk_full && !also_when_full;
        if self.stopped || self.space.preparing || enough || waits {
            return;
        }
        let fits = |(_, len): &(FileId, u32)| *len == self.config.segment_len;
        if let Some(at) = self.spare.iter().position(fits)
            && let Some((from, _)) = self.spare.remove(at)
        {
            (self.space.preparing, self.recycling) = (true, true);
            self.device.recycle(from, self.space.next_file());
            return;
        }
        let len = self.config.segment_len as u64;
        if !may_lend && self.is_limited() {
            return;
        }
        let needed = len + self.config.free_bytes_min;
        // A file system that cannot say how much is free is found full by trying.
        let free = self.device.free_bytes();
        let is_short = free.as_ref().is_ok_and(|free| *free < needed);
        if is_short {
            self.note_full();
            if !may_lend || free.is_ok_and(|free| free < len) {
                return;
            }
        }
        self.lending = is_short;
        self.space.preparing = true;
        self.device.prepare(self.space.next_file(), len);
    }

    /// No more files are made from now on if all together would take more: ordinary records wait
    /// ([`Full::Preparing`](crate::Full)) until a segment is given back. What must not wait, or makes
    /// room, gets more all the same; one segment of what is prepared is left to it.
    pub fn limit_files(&mut self, bytes: u64) {
        let is_raised = bytes > self.files_max;
        self.files_max = bytes;
        if is_raised {
            self.prepare_more();
        }
    }

    /// Whether ordinary records wait, or soon will, for a file that is not made because of the limit.
    pub fn is_at_limit(&self) -> bool {
        let is_short = self.space.ahead() < self.config.prepare_ahead && !self.space.preparing;
        is_short && self.spare.is_empty() && self.is_limited()
    }

    /// Bytes of prepared segments that ordinary records leave to what makes room, because no more files
    /// are made for them.
    pub(super) fn kept_bytes(&self) -> u64 {
        if self.is_at_limit() { u64::from(self.config.segment_len) } else { 0 }
    }

    fn is_limited(&self) -> bool {
        // A full disk is a limit of its own, which is looked at again whenever something is refused.
        let len = u64::from(self.config.segment_len);
        !self.space.disk_full && self.file_bytes() + len > self.files_max
    }

    /// The first segment that the log holds.
    pub fn first_segment(&self) -> FileId {
        self.space.segments().next().map_or(0, |(segment, _)| segment)
    }

    /// Bytes of a segment's file, if there is one.
    pub fn segment_len(&self, segment: FileId) -> Option<u32> {
        self.space.len_of(segment)
    }

    /// Segments before both marks, which hold nothing that replay reads, in order.
    pub fn segments_behind(&self) -> impl Iterator<Item = (FileId, u32)> + '_ {
        let older = self.superblock.marks[1].start.segment;
        self.space.segments().take_while(move |(segment, _)| *segment < older)
    }

    /// Whether a segment is part of the log: not given back.
    pub fn holds(&self, segment: FileId) -> bool {
        self.space.len_of(segment).is_some()
    }

    /// Gives a segment back whose bytes nobody will ask for: its file is used again, or removed if
    /// there are enough. False if a read of it is in flight.
    ///
    /// # Panics
    /// If it does not lie before both marks.
    pub fn give_back(&mut self, segment: FileId) -> bool {
        // PROTOCOL 9.2-c, 9.2-d
        let older = self.superblock.marks[1].start.segment;
        assert!(segment < older, "what replay may read stays: segment {segment} of {older} on");
        if self.reads.iter().flatten().any(|reading| reading.segment == segment) {
            return false;
        }
        if let Some(len) = self.space.remove(segment) {
            self.counters.segments_back += 1;
            self.spare.push_back((segment, len));
            self.prepare_if(true, false);
            self.remove_spare();
        }
        true
    }

    /// Removes a file that is one too many, or not of the length in use now.
    pub(super) fn remove_spare(&mut self) {
        if self.removing {
            return;
        }
        let other = self.spare.iter().position(|(_, len)| *len != self.config.segment_len);
        let extra = self.spare.len() > self.config.spare_max;
        if let Some(at) = other.or(extra.then_some(0))
            && let Some((file, _)) = self.spare.remove(at)
        {
            self.removing = true;
            self.device.remove(file);
        }
    }

    /// Bytes of all files of the log.
    pub fn file_bytes(&self) -> u64 {
        self.space.file_bytes() + self.bytes_spare() + 2 * COPY_LEN as u64
    }

    /// Bytes of files given back and not used again yet.
    pub fn bytes_spare(&self) -> u64 {
        self.spare.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// Bytes of log written, padding and unused ends of segments included.
    pub fn bytes_used(&self) -> u64 {
        self.space.used_bytes()
    }

    /// Bytes that records can take before another segment must be made.
    pub fn bytes_prepared(&self) -> u64 {
        self.space.prepared_bytes()
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
