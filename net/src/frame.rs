//! The bytes of a datagram: one header, then frames, then the bodies that were gathered.
//!
//! Purpose: many messages share a datagram, and a body of any size may lie at its end so that the
//! sender never copies it.
//!
//! ```text
//! 0  magic u32       8  version u8, flags u8, sender u16        16 cluster u64
//! 4  checksum u32    12 frames length u16                       24 incarnation u32, boot u32
//!                    14 lane u8, number of lanes less one u8
//! 32 frames: kind u8, flags u8, head length u16, body length u32, head, body, zeros up to 8
//! .. tails: the bodies of the frames flagged `TAIL`, in order, up to the end of the datagram
//! ```
//!
//! The only flag is [`LEAST`]. Integers are little-endian. The checksum is the CRC-32 of everything after itself.
//!
//! Invariant: [`open`] accepts a datagram only if every length in it is consistent, so that reading
//! its frames cannot fail.
//! What would break it: a length used before [`open`] has checked it.

use racos_buffer::Slice;

/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 32;
/// Bytes before a frame's head.
pub const FRAME_BYTES: usize = 8;
/// First four bytes of every datagram.
pub const MAGIC: u32 = u32::from_le_bytes(*b"rcos");
/// Version of this format. A node drops what it does not speak.
pub const VERSION: u8 = 1;
/// Sender number of everything that is not a node.
pub const CLIENT: u16 = u16::MAX;
/// Where the flags of a datagram are.
pub(crate) const FLAGS_AT: usize = 9;
/// Flag of a datagram: the sender's cluster decides class R by F* proposals (PROTOCOL 5.5-l).
pub const LEAST: u8 = 2;
/// Frame flag: the body lies behind the frames.
const TAIL: u8 = 1;

/// One of the independent instances that a node consists of, and how many there are (PROTOCOL 3.1-j).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// From 0.
    pub number: u8,
    /// 0: not known yet; clients only.
    pub count: u8,
}

impl Lane {
    /// Most lanes of a node.
    pub const COUNT_MAX: u8 = 64;
    /// The lane of a node that has no other.
    pub const ONLY: Lane = Lane { number: 0, count: 1 };
    /// The lane that a client asks how many there are.
    pub const UNKNOWN: Lane = Lane { number: 0, count: 0 };

    fn bytes(self) -> [u8; 2] {
        [self.number, self.count.wrapping_sub(1)]
    }
}

/// Who this endpoint is; stamped on every datagram that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Only datagrams of this cluster are accepted.
    pub cluster: u64,
    /// `None` for a client.
    pub node: Option<u16>,
    pub incarnation: u32,
    /// Differs after each start of the process: a counter for a node, a nonce for a client.
    pub boot: u32,
    /// Only datagrams of this lane, of as many, are accepted.
    pub lane: Lane,
}

/// Why a datagram was dropped before any of it was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Junk {
    /// Shorter than a header.
    Short,
    /// Not a datagram of racos.
    Magic,
    /// Another version of this format.
    Version,
    /// Another cluster.
    Cluster,
    /// Another lane, or a node that has another number of them.
    Lane,
    /// Damaged on the way.
    Checksum,
    /// Lengths that contradict each other, or unknown flags.
    Frame,
}

/// What the header of an accepted datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub node: Option<u16>,
    pub incarnation: u32,
    pub boot: u32,
    /// Whether the sender knows how many lanes there are: always, but for clients.
    pub knows_lanes: bool,
    /// The flags.
    pub flags: u8,
    frames_end: usize,
}

/// One frame of an accepted datagram, as ranges of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub head: std::ops::Range<usize>,
    pub body: std::ops::Range<usize>,
}

/// The header of every datagram of `identity`, with checksum, frames length and flags still zero.
pub fn header(identity: &Identity) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8] = VERSION;
    bytes[10..12].copy_from_slice(&identity.node.unwrap_or(CLIENT).to_le_bytes());
    bytes[16..24].copy_from_slice(&identity.cluster.to_le_bytes());
    // PROTOCOL 3.2-a: lane, sender, incarnation and boot; the version stands for epoch 1.
    bytes[14..16].copy_from_slice(&identity.lane.bytes());
    bytes[24..28].copy_from_slice(&identity.incarnation.to_le_bytes());
    bytes[28..32].copy_from_slice(&identity.boot.to_le_bytes());
    bytes
}

/// Bytes that a frame with its body inside adds to a datagram.
pub const fn frame_bytes(head: usize, body: usize) -> usize {
    (FRAME_BYTES + head + body).next_multiple_of(8)
}

/// Appends a frame whose head is `head` joined; its body of `body_len` bytes is `inline` joined, or
/// lies behind the frames if `inline` is `None`. Panics if a length does not fit its field: the
/// caller splits what is larger than a datagram.
pub fn append(
    datagram: &mut Vec<u8>,
    kind: u8,
    head: [&[u8]; 2],
    inline: Option<&[Slice]>,
    body_len: usize,
) {
    let head_len = head[0].len() + head[1].len();
    let head_len = u16::try_from(head_len).expect("a head inside a datagram fits 16 bits");
    let length = u32::try_from(body_len).expect("a body inside a datagram fits 32 bits");
    let mut fixed = [kind, if inline.is_none() { TAIL } else { 0 }, 0, 0, 0, 0, 0, 0];
    fixed[2..4].copy_from_slice(&head_len.to_le_bytes());
    fixed[4..8].copy_from_slice(&length.to_le_bytes());
    datagram.extend_from_slice(&fixed);
    datagram.extend_from_slice(head[0]);
    datagram.extend_from_slice(head[1]);
    for slice in inline.unwrap_or_default() {
        datagram.extend_from_slice(slice);
    }
    datagram.resize(datagram.len().next_multiple_of(8), 0);
}

/// Writes the frames length and the checksum over `head` (header and frames) and the tails.
pub fn seal(head: &mut [u8], tails: &[Slice]) {
    let frames = head.len() - HEADER_BYTES;
    let frames = u16::try_from(frames).expect("the frames of a datagram fit 16 bits");
    head[12..14].copy_from_slice(&frames.to_le_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&head[8..]);
    for tail in tails {
        checksum.update(tail);
    }
    let checksum = checksum.finalize();
    head[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// PROTOCOL 1-c, 1.2-a: checks a datagram from the network completely. Its frames may then be read
/// with [`Frames`]. `to` is who receives it.
pub fn open(bytes: &[u8], to: &Identity) -> Result<Header, Junk> {
    if bytes.len() < HEADER_BYTES {
        return Err(Junk::Short);
    }
    if u32_at(bytes, 0) != MAGIC {
        return Err(Junk::Magic);
    }
    if bytes[8] != VERSION {
        return Err(Junk::Version);
    }
    if u64_at(bytes, 16) != to.cluster {
        return Err(Junk::Cluster);
    }
    let checked = !mutant!("checksum of datagrams unchecked");
    if checked && crc32fast::hash(&bytes[8..]) != u32_at(bytes, 4) {
        return Err(Junk::Checksum);
    }
    let node = Some(u16_at(bytes, 10)).filter(|node| *node != CLIENT);
    let knows_lanes = bytes[15] != Lane::UNKNOWN.bytes()[1];
    let fits = fits_lane([bytes[14], bytes[15]], node.is_none() && !knows_lanes, to);
    if !fits && !mutant!("datagrams of other lanes taken") {
        return Err(Junk::Lane);
    }
    let frames = usize::from(u16_at(bytes, 12));
    if bytes[FLAGS_AT] & !LEAST != 0
        || !frames.is_multiple_of(8)
        || frames > bytes.len() - HEADER_BYTES
    {
        return Err(Junk::Frame);
    }
    let header = Header {
        node,
        incarnation: u32_at(bytes, 24),
        boot: u32_at(bytes, 28),
        knows_lanes,
        flags: bytes[FLAGS_AT],
        frames_end: HEADER_BYTES + frames,
    };
    check_frames(bytes, header.frames_end)?;
    Ok(header)
}

/// PROTOCOL 1.2-a, 3.2-a: the same lane of as many. A client that does not know the number is let in to
/// ask, and takes the answer.
fn fits_lane(from: [u8; 2], asks: bool, to: &Identity) -> bool {
    let own = to.lane.bytes();
    let learns = to.node.is_none() && to.lane.count == 0;
    from == own || (from[0] == own[0] && (learns || (asks && to.node.is_some())))
}

/// Every frame ends inside the frames and the tails fill the rest exactly.
fn check_frames(bytes: &[u8], end: usize) -> Result<(), Junk> {
    let (mut at, mut tails) = (HEADER_BYTES, 0usize);
    while at < end {
        // Both are multiples of 8, so a whole frame header is there.
        let head = u16_at(bytes, at + 2) as usize;
        let body = u32_at(bytes, at + 4) as usize;
        // No sum overflows: three summands below 2^32 in 64 bits, on 32 bits `body` is checked first.
        if body > bytes.len() || bytes[at + 1] & !TAIL != 0 {
            return Err(Junk::Frame);
        }
        let inline = if bytes[at + 1] & TAIL == 0 { body } else { 0 };
        tails += body - inline;
        let size = frame_bytes(head, inline);
        if size > end - at || tails > bytes.len() - end {
            return Err(Junk::Frame);
        }
        at += size;
    }
    if tails == bytes.len() - end { Ok(()) } else { Err(Junk::Frame) }
}

/// The frames of a datagram that [`open`] accepted.
pub struct Frames<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    tail: usize,
}

impl<'a> Frames<'a> {
    /// `header` is what [`open`] returned for these bytes.
    pub fn new(bytes: &'a [u8], header: &Header) -> Frames<'a> {
        let end = header.frames_end;
        Frames { bytes, at: HEADER_BYTES, end, tail: end }
    }
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        if self.at == self.end {
            return None;
        }
        let head_len = u16_at(self.bytes, self.at + 2) as usize;
        let body_len = u32_at(self.bytes, self.at + 4) as usize;
        let head = self.at + FRAME_BYTES..self.at + FRAME_BYTES + head_len;
        let frame = Frame { kind: self.bytes[self.at], body: head.end..head.end + body_len, head };
        if self.bytes[self.at + 1] & TAIL == 0 {
            self.at += frame_bytes(head_len, body_len);
            return Some(frame);
        }
        self.at += frame_bytes(head_len, 0);
        let body = self.tail..self.tail + body_len;
        self.tail = body.end;
        Some(Frame { body, ..frame })
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_buffer::Pool;

    const ME: Identity =
        Identity { cluster: 7, node: Some(3), incarnation: 2, boot: 9, lane: Lane::ONLY };

    fn sample() -> Vec<u8> {
        let pool = Pool::new(1 << 20);
        let (first, second) = (pool.copy(b"tail one").unwrap(), pool.copy(b"two").unwrap());
        let mut bytes = header(&ME).to_vec();
        append(&mut bytes, 1, [b"head", b""], Some(&[]), 0);
        append(&mut bytes, 2, [b"h", b"2"], None, 8);
        append(&mut bytes, 3, [b"", b""], Some(&[pool.copy(b"inline").unwrap()]), 6);
        append(&mut bytes, 4, [b"", b""], None, 3);
        seal(&mut bytes, &[first.clone(), second.clone()]);
        bytes.extend_from_slice(&first);
        bytes.extend_from_slice(&second);
        bytes
    }

    fn reseal(bytes: &mut [u8]) {
        let checksum = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// tests PROTOCOL 3.2-a
    #[test]
    fn frames_come_back_as_they_were_appended() {
        let bytes = sample();
        let header = open(&bytes, &ME).unwrap();
        assert_eq!((header.node, header.incarnation, header.boot), (Some(3), 2, 9));
        let frames: Vec<_> = Frames::new(&bytes, &header)
            .map(|frame| (frame.kind, bytes[frame.head].to_vec(), bytes[frame.body].to_vec()))
            .collect();
        let expected: [(u8, &[u8], &[u8]); 4] =
            [(1, b"head", b""), (2, b"h2", b"tail one"), (3, b"", b"inline"), (4, b"", b"two")];
        let expected: Vec<_> =
            expected.iter().map(|(k, h, b)| (*k, h.to_vec(), b.to_vec())).collect();
        assert_eq!(frames, expected);
    }

    #[test]
    fn an_empty_datagram_is_accepted() {
        let mut bytes = header(&Identity { node: None, ..ME }).to_vec();
        seal(&mut bytes, &[]);
        let header = open(&bytes, &ME).unwrap();
        assert_eq!(header.node, None);
        assert_eq!(Frames::new(&bytes, &header).count(), 0);
    }

    /// tests PROTOCOL 1-c, 1.2-a
    #[test]
    fn each_reason_for_dropping_is_told_apart() {
        let good = sample();
        let change = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(open(&good[..31], &ME), Err(Junk::Short));
        assert_eq!(open(&change(0, b'x'), &ME), Err(Junk::Magic));
        assert_eq!(open(&change(8, 2), &ME), Err(Junk::Version));
        assert_eq!(open(&good, &Identity { cluster: 8, ..ME }), Err(Junk::Cluster));
        assert_eq!(open(&change(40, 0xff), &ME), Err(Junk::Checksum));
        for flags in 0..=u8::MAX {
            let mut flagged = change(FLAGS_AT, flags);
            reseal(&mut flagged);
            let expected = if flags & !LEAST == 0 { Ok(flags) } else { Err(Junk::Frame) };
            assert_eq!(open(&flagged, &ME).map(|header| header.flags), expected);
        }
    }

    /// tests PROTOCOL 1.2-a, 3.2-a
    #[test]
    fn a_datagram_of_another_lane_or_of_another_number_of_lanes_is_dropped() {
        let lane = |number, count| Identity { lane: Lane { number, count }, ..ME };
        let empty = |identity: &Identity| {
            let mut bytes = header(identity).to_vec();
            seal(&mut bytes, &[]);
            bytes
        };
        let sent = empty(&lane(1, 4));
        assert!(open(&sent, &lane(1, 4)).is_ok());
        for to in [ME, lane(0, 4), lane(2, 4), lane(1, 2), lane(1, 3)] {
            assert_eq!(open(&sent, &to), Err(Junk::Lane), "{to:?}");
        }
        // Only a client may ask how many there are, and it hears every answer.
        let asking = Identity { node: None, lane: Lane::UNKNOWN, ..ME };
        let asked = open(&empty(&asking), &lane(0, 4)).unwrap();
        assert!(!asked.knows_lanes && asked.node.is_none());
        assert!(open(&empty(&lane(0, 4)), &asking).is_ok());
        assert_eq!(open(&empty(&asking), &lane(1, 4)), Err(Junk::Lane));
        let node = Identity { lane: Lane::UNKNOWN, ..ME };
        assert_eq!(open(&empty(&node), &lane(0, 4)), Err(Junk::Lane));
        assert_eq!(open(&empty(&asking), &Identity { node: None, ..ME }), Err(Junk::Lane));
    }

    #[test]
    fn the_bytes_of_a_node_with_one_lane_say_nothing_of_lanes() {
        let bytes = sample();
        assert_eq!(bytes[14..16], [0, 0]);
    }

    /// tests PROTOCOL 1-c
    #[test]
    fn every_cut_is_dropped_even_with_a_valid_checksum() {
        let good = sample();
        for len in HEADER_BYTES..good.len() {
            let mut cut = good[..len].to_vec();
            reseal(&mut cut);
            assert_eq!(open(&cut, &ME), Err(Junk::Frame), "cut to {len} bytes");
        }
    }

    #[test]
    fn changed_lengths_never_reach_outside_the_datagram() {
        let good = sample();
        for at in 9..good.len() {
            for value in [0, 1, 7, 8, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                reseal(&mut bytes);
                let Ok(header) = open(&bytes, &ME) else { continue };
                for frame in Frames::new(&bytes, &header) {
                    assert!(frame.head.end <= bytes.len() && frame.body.end <= bytes.len());
                }
            }
        }
    }
}
