//! Marks: where replay begins, kept in the superblock.
//!
//! Invariant: one mark is written at a time, marks only go on, and the newest one counts once its write
//! is flushed. What would break it: believing a mark before that, or losing the older one with it.

use super::{Event, Info, Log, MARK_TOKEN};
use crate::device::{Device, FileId, SUPERBLOCK};
use crate::format::BLOCK;
use crate::place::Position;
use crate::superblock::{COPY_LEN, Mark};

impl<D: Device> Log<D> {
    /// The mark at which replay would have to begin to meet every record that is needed from
    /// `horizon` on, of those flushed by now; none before the first flush. It counts once it is
    /// durable: see [`Log::set_mark`].
    pub fn find_mark(&self, tag: u64, horizon: u64) -> Option<Mark> {
        let (begin, last) = (self.superblock.marks[0].start.segment, self.flushed.segment);
        let needed = |segment, info: &Info| {
            let until = info.until.filter(|_| !mutant!("mark beyond own records"));
            segment == last || until >= Some(horizon)
        };
        let mut infos = self.infos.range(begin..=last);
        let (&segment, info) = infos.find(|(segment, info)| needed(**segment, info))?;
        let (sequence, record) = info.first?;
        let start = Position { segment, offset: BLOCK as u32 };
        Some(Mark { tag, horizon, start, sequence, record })
    }

    /// Makes `mark` the newest one, before anything that is queued: [`Event::Marked`] says when it
    /// is durable. The newest one so far becomes the older.
    ///
    /// # Panics
    /// If another mark is being written, or it lies before the newest.
    pub fn set_mark(&mut self, mark: Mark) {
        assert!(self.wanted.is_none() && self.marking.is_none(), "one mark is written at a time");
        assert!(mark.sequence >= self.superblock.marks[0].sequence, "marks only go on");
        self.wanted = Some(mark);
    }

    /// The newest mark, and the one before it.
    pub fn marks(&self) -> [Mark; 2] {
        self.superblock.marks
    }

    pub(super) fn launch_mark(&mut self, mark: Mark) {
        let Some(mut buf) = self.pool.get(COPY_LEN) else {
            self.wanted = Some(mark);
            return;
        };
        let mut next = self.superblock;
        next.sequence += 1;
        next.marks = [mark, next.marks[0]];
        next.encode(&mut buf);
        let offset = (self.copy * COPY_LEN) as u64;
        self.device.write_flush(MARK_TOKEN, SUPERBLOCK, offset, &[buf.freeze()]);
        self.marking = Some(next);
    }

    pub(super) fn marked(&mut self, events: &mut Vec<Event>) {
        self.superblock = self.marking.take().expect("a mark is written while one is in flight");
        self.copy = 1 - self.copy;
        let [Mark { tag, .. }, older] = self.superblock.marks;
        self.infos = self.infos.split_off(&older.start.segment);
        if !self.stopped {
            events.push(Event::Marked { tag });
        }
    }

    /// What a restart reads now: from the newest mark to the end of what is flushed.
    pub fn replayed(&self) -> (Position, Position) {
        (self.superblock.marks[0].start, self.flushed)
    }

    /// The sequence of the first group of a segment that replay may read; none if it holds none.
    pub fn first_sequence(&self, segment: FileId) -> Option<u64> {
        self.infos.get(&segment)?.first.map(|(sequence, _)| sequence)
    }
}
