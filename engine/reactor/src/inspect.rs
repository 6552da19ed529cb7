//! What lies in a log, for those who look at it without running a node.
//!
//! Invariant: a checkpoint is called whole only if every piece of it, from its first record to its
//! last, is in the log with a good checksum; that it decodes is for a start to find out.
//! What would break it: a piece that is taken without its number.

use crate::checkpoint::Piece;
use crate::record;
use racos_storage::{Mark, Replay, Replayed, ReplayedBody};

/// The name of a kind of records; `None` if there is no such kind.
pub fn kind_name(kind: u8) -> Option<&'static str> {
    record::kind::name(kind)
}

/// A checkpoint that was gone over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointLook {
    /// Its number; 0: the log begins without one.
    pub generation: u64,
    /// All slots below are in it.
    pub exec: u64,
    pub records: u64,
    pub bytes: u64,
    /// Why it cannot be used; `None`: it is whole.
    pub problem: Option<String>,
}

/// Goes over a log as a start would, and keeps of it only whether the checkpoints are whole.
#[derive(Debug, Default)]
pub struct Outline {
    /// Those that the marks named, in the order in which they were tried.
    pub checkpoints: Vec<CheckpointLook>,
    /// Records gone over since the last mark.
    pub records: u64,
    next_part: u32,
    ended: bool,
}

impl Outline {
    fn take(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let (generation, piece) = Piece::get(record.head).map_err(|error| error.to_string())?;
        let Some(look) = self.checkpoints.last_mut() else { return Ok(()) };
        if generation != look.generation || self.ended {
            return Ok(());
        }
        look.records += 1;
        look.bytes += (record.head.len() + record.body_place.len as usize) as u64;
        if record.body == ReplayedBody::Damaged {
            return Err(format!("record {}, a piece of it, is damaged", record.id.0));
        }
        match piece {
            Piece::Begin { exec, .. } if exec != look.exec => {
                return Err(format!("it says that it is of slot {exec}"));
            }
            Piece::Part { number, .. } if number != self.next_part => {
                return Err(format!("part {} of it is missing", self.next_part));
            }
            Piece::Part { last, .. } => self.next_part += u32::from(last),
            Piece::End { parts, exec } if (parts, exec) == (self.next_part, look.exec) => {
                self.ended = true;
            }
            Piece::End { .. } => return Err("pieces of it are missing".into()),
            _ => {}
        }
        Ok(())
    }
}

impl Replay for Outline {
    fn begin(&mut self, mark: &Mark) {
        let (generation, exec) = (mark.tag, mark.horizon);
        self.checkpoints.push(CheckpointLook { generation, exec, ..CheckpointLook::default() });
        (self.records, self.next_part, self.ended) = (0, 0, generation == 0);
    }

    fn wants_body(&self, kind: u8) -> bool {
        kind == record::kind::CHECKPOINT && !self.ended
    }

    fn record(&mut self, record: Replayed<'_>) -> u64 {
        self.records += 1;
        if record.kind == record::kind::CHECKPOINT
            && let Err(problem) = self.take(&record)
            && let Some(look) = self.checkpoints.last_mut()
        {
            look.problem.get_or_insert(problem);
        }
        record::needed_until(record.kind, record.head)
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(look) = self.checkpoints.last_mut() else { return Ok(()) };
        if !self.ended {
            look.problem.get_or_insert_with(|| "its end is missing".into());
        }
        let generation = look.generation;
        look.problem.as_ref().map_or(Ok(()), |why| Err(format!("checkpoint {generation}: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_storage::{Place, RecordId};

    fn told(outline: &mut Outline, generation: u64, piece: Piece, body: ReplayedBody<'_>) {
        let mut head = Vec::new();
        piece.put(generation, &mut head);
        outline.record(Replayed {
            id: RecordId(1),
            kind: record::kind::CHECKPOINT,
            head: &head,
            head_place: Place::default(),
            body,
            body_place: Place::default(),
            body_crc: 0,
        });
    }

    fn outline(pieces: &[(Piece, bool)]) -> Option<String> {
        let look = CheckpointLook { generation: 3, exec: 40, ..CheckpointLook::default() };
        let mut outline = Outline { checkpoints: vec![look], ..Outline::default() };
        for (piece, good) in pieces {
            let body = if *good { ReplayedBody::Inline(&[]) } else { ReplayedBody::Damaged };
            told(&mut outline, 3, *piece, body);
            // Of another checkpoint, whatever it says.
            told(&mut outline, 2, Piece::Part { number: 9, last: true }, body);
        }
        outline.end().err()
    }

    #[test]
    fn a_checkpoint_is_whole_only_with_all_its_pieces() {
        let begin = (Piece::Begin { exec: 40, reserved: 50 }, true);
        let first = (Piece::Part { number: 0, last: false }, true);
        let rest = (Piece::Part { number: 0, last: true }, true);
        let second = (Piece::Part { number: 1, last: true }, true);
        let end = (Piece::End { parts: 2, exec: 40 }, true);
        assert_eq!(outline(&[begin, first, rest, second, end]), None);
        let why = |pieces: &[_]| outline(pieces).expect("it is not whole");
        assert!(why(&[begin, first, rest, second]).contains("its end is missing"));
        assert!(why(&[begin, first, rest, end]).contains("pieces of it are missing"));
        assert!(why(&[begin, second, end]).contains("part 0 of it is missing"));
        assert!(why(&[begin, (first.0, false), rest, second, end]).contains("damaged"));
        assert!(why(&[(Piece::Begin { exec: 41, reserved: 50 }, true)]).contains("of slot 41"));
    }
}
