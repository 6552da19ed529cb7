//! Checkpoints on their way from one node to another (PROTOCOL 3.2, 9.3).

use super::cursor::{Reader, WireError, Writer};
use racos_protocol::Slot;

/// Most bytes of a piece; it is a record of the sender's log.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// Most pieces of a checkpoint: of a state larger than any machine here can hold.
pub const PIECES_MAX: u32 = 1 << 28;

/// Names a checkpoint of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapId {
    pub generation: u64,
    /// All slots below are in it.
    pub exec: Slot,
}

/// The body of a SNAPOFFER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub id: SnapId,
    pub pieces: u32,
    /// The one that was asked for is not here any more.
    pub is_instead: bool,
}

/// SNAPQ: some pieces of it; none: it is still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub id: SnapId,
    pub first: u32,
    pub count: u32,
}

/// The head of a SNAP; the body is the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHead {
    pub id: SnapId,
    pub index: u32,
    /// A part of the state ends with it.
    pub ends_part: bool,
}

fn put_id(id: SnapId, out: &mut Vec<u8>) {
    out.put_u64(id.generation);
    out.put_u64(id.exec);
}

fn get_id(from: &mut Reader<'_>) -> Result<SnapId, WireError> {
    Ok(SnapId { generation: from.u64("generation")?, exec: from.u64("exec")? })
}

fn get_flag(from: &mut Reader<'_>, field: &'static str) -> Result<bool, WireError> {
    match from.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError { field }),
    }
}

impl Offer {
    pub fn put(self, out: &mut Vec<u8>) {
        put_id(self.id, out);
        out.put_u32(self.pieces);
        out.put_u8(u8::from(self.is_instead));
    }

    pub fn get(bytes: &[u8]) -> Result<Offer, WireError> {
        let mut from = Reader::new(bytes);
        let (id, pieces) = (get_id(&mut from)?, from.u32("pieces")?);
        let offer = Offer { id, pieces, is_instead: get_flag(&mut from, "instead")? };
        from.end("offer")?;
        if offer.pieces == 0 || offer.pieces > PIECES_MAX {
            return Err(WireError { field: "pieces" });
        }
        Ok(offer)
    }
}

impl Question {
    pub fn put(self, out: &mut Vec<u8>) {
        put_id(self.id, out);
        out.put_u32(self.first);
        out.put_u32(self.count);
    }

    pub fn get(bytes: &[u8]) -> Result<Question, WireError> {
        let mut from = Reader::new(bytes);
        let id = get_id(&mut from)?;
        let question = Question { id, first: from.u32("first")?, count: from.u32("count")? };
        from.end("question")?;
        Ok(question)
    }
}

impl PieceHead {
    pub fn put(self, out: &mut Vec<u8>) {
        put_id(self.id, out);
        out.put_u32(self.index);
        out.put_u8(u8::from(self.ends_part));
    }

    pub fn get(bytes: &[u8]) -> Result<PieceHead, WireError> {
        let mut from = Reader::new(bytes);
        let (id, index) = (get_id(&mut from)?, from.u32("index")?);
        let ends_part = get_flag(&mut from, "end of part")?;
        from.end("piece")?;
        Ok(PieceHead { id, index, ends_part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_survive_the_wire() {
        let id = SnapId { generation: 3, exec: 1 << 40 };
        let mut out = Vec::new();
        let offer = Offer { id, pieces: 7, is_instead: true };
        offer.put(&mut out);
        assert_eq!(Offer::get(&out), Ok(offer));
        assert!(Offer::get(&out[..out.len() - 1]).is_err());
        out.clear();
        let question = Question { id, first: 2, count: 0 };
        question.put(&mut out);
        assert_eq!(Question::get(&out), Ok(question));
        out.clear();
        let head = PieceHead { id, index: 6, ends_part: true };
        head.put(&mut out);
        assert_eq!(PieceHead::get(&out), Ok(head));
    }

    #[test]
    fn an_offer_of_no_pieces_or_of_more_than_there_can_be_is_none() {
        let id = SnapId { generation: 3, exec: 9 };
        for pieces in [0, PIECES_MAX + 1] {
            let mut out = Vec::new();
            Offer { id, pieces, is_instead: false }.put(&mut out);
            assert!(Offer::get(&out).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>) {
            let _ = (Offer::get(&bytes), Question::get(&bytes), PieceHead::get(&bytes));
        }
    }
}
