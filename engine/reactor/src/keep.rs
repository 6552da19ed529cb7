//! Fragments of values that went while somebody read them (PROTOCOL 9.8-b, 9.8-d to 9.8-f).
//!
//! A reader looks at one state and fetches the values afterwards. A compaction that is executed meanwhile
//! lets some of them go. So who reads for long tells the others its *pin*, how many slots the state was
//! of, and a value that went in a slot which the pin does not cover keeps its fragments for a while.
//!
//! Invariant: what is kept is bounded in entries, in bytes, and but for own readers in time, whatever
//! others say; it went in the order in which it stands here, so what may be let go is at the front.
//! What would break it: a pin that counts for longer than `T_KEEP_NS` after it was heard, or a limit that
//! begins anew when a pin is said again. Nothing rests on it: a fragment that is not here is GONE, and the
//! reader begins anew or learns that its revision was compacted (PROTOCOL 9.8-c).

use crate::node::Node;
use crate::wire::cursor::Reader as Bytes;
use crate::wire::node::{get_pin, kind, put_pin};
use racos_machine::{MEMBERS_MAX, OpId};
use racos_net::Link;
use racos_protocol::{Nanos, Slot};
use racos_storage::device::Device;
use rustc_hash::FxHashSet;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

const MS: Nanos = 1_000_000;
/// How long a pin counts after it was heard, and a fragment is kept for others after its value went.
pub(crate) const T_KEEP_NS: Nanos = 10_000 * MS;
/// A reader is announced when it is so old: nearly all have ended by then. Between two announcements that
/// say something new there is as much.
const YOUNG_NS: Nanos = 50 * MS;
/// A pin that stands is said again so often: the message may have been lost.
const AGAIN_NS: Nanos = 1000 * MS;
/// Fragments kept, 32 bytes each.
const KEPT_MAX: usize = 1 << 17;
/// Share of the space that the log may take beside what is in use.
const BYTES_SHARE: u64 = 8;
/// Let go in a turn.
const LET_GO_TURN: usize = 256;

/// Readers of this node, by the slots that were executed when they looked at the state, and by when that
/// was. Later ones have executed no less, so the first is the oldest too.
#[derive(Default)]
struct Readers(BTreeMap<(Slot, Nanos), u32>);

/// A reader, until it is dropped.
pub(crate) struct Reading {
    readers: Rc<RefCell<Readers>>,
    began: (Slot, Nanos),
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.readers.borrow_mut();
        let count =
            readers.0.get_mut(&self.began).expect("a reader is counted until it is dropped");
        *count -= 1;
        if *count == 0 {
            readers.0.remove(&self.began);
        }
    }
}

/// Values that went in one slot.
struct Group {
    slot: Slot,
    at: Nanos,
    /// With the bytes that the log holds of each.
    ops: Vec<(OpId, u64)>,
}

/// See the module.
pub(crate) struct Keep {
    readers: Rc<RefCell<Readers>>,
    /// What the others were told last, and when.
    said: Option<Slot>,
    said_at: Nanos,
    /// The newest pin of each node, and when it was heard.
    heard: [Option<(Slot, Nanos)>; MEMBERS_MAX],
    groups: VecDeque<Group>,
    len: usize,
    bytes: u64,
    /// More is to be let go in the next turn.
    is_more: bool,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep {
            readers: Rc::default(),
            said: None,
            said_at: 0,
            heard: [None; MEMBERS_MAX],
            groups: VecDeque::new(),
            len: 0,
            bytes: 0,
            is_more: false,
        }
    }
}

impl Keep {
    /// Somebody reads a state in which so many slots are executed.
    fn begin(&mut self, exec: Slot, now: Nanos) -> Reading {
        *self.readers.borrow_mut().0.entry((exec, now)).or_default() += 1;
        Reading { readers: self.readers.clone(), began: (exec, now) }
    }

    /// The oldest own reader.
    fn oldest(&self) -> Option<(Slot, Nanos)> {
        self.readers.borrow().0.first_key_value().map(|(began, _)| *began)
    }

    /// PROTOCOL 9.8-b: whether somebody may still ask for what went in this slot at that time.
    fn is_wanted(&self, slot: Slot, went_at: Nanos, now: Nanos) -> bool {
        let is_read_here = self.oldest().is_some_and(|(exec, _)| exec <= slot);
        // PROTOCOL 9.8-e: however often a pin is said again.
        let is_old = now >= went_at + T_KEEP_NS;
        let is_pin_of = |(exec, heard_at)| exec <= slot && now < heard_at + T_KEEP_NS;
        is_read_here || !is_old && self.heard.iter().flatten().copied().any(is_pin_of)
    }

    /// Another node says what it reads.
    fn hear(&mut self, from: u8, pin: Option<Slot>, now: Nanos) {
        self.heard[usize::from(from)] = pin.map(|exec| (exec, now));
    }

    /// PROTOCOL 9.8-d: what the others are to be told now, if it is something.
    fn say(&mut self, now: Nanos) -> Option<Option<Slot>> {
        let (pin, at) = self.next_word()?;
        if now < at {
            return None;
        }
        (self.said, self.said_at) = (pin, now);
        Some(pin)
    }

    /// What the others are to be told next, and when.
    fn next_word(&self) -> Option<(Option<Slot>, Nanos)> {
        let soon = self.said_at + YOUNG_NS;
        match (self.oldest(), self.said) {
            (None, None) => None,
            (None, Some(_)) => Some((None, soon)),
            (Some((exec, _)), Some(said)) if said == exec => {
                Some((Some(exec), self.said_at + AGAIN_NS))
            }
            // The one that was announced has ended, and this one may be about to.
            (Some((_, began)), Some(_)) if soon < began + YOUNG_NS => Some((None, soon)),
            (Some((exec, began)), _) => Some((Some(exec), soon.max(began + YOUNG_NS))),
        }
    }

    /// When there is something to do though nothing comes.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        if self.is_more {
            return Some(0);
        }
        let word = self.next_word().map(|(_, at)| at);
        let front = self.groups.front().map(|group| group.at + T_KEEP_NS);
        // An own reader may keep it for longer; what ends that is a turn in which much else is done.
        [word, front.filter(|_| self.oldest().is_none())].into_iter().flatten().min()
    }

    fn add(&mut self, op: OpId, bytes: u64, slot: Slot, now: Nanos) {
        match self.groups.back_mut().filter(|group| group.slot == slot) {
            Some(group) => group.ops.push((op, bytes)),
            None => self.groups.push_back(Group { slot, at: now, ops: vec![(op, bytes)] }),
        }
        self.len += 1;
        self.bytes += bytes;
    }

    /// Of what is to be let go, the next one.
    fn take(&mut self, now: Nanos, bytes_max: u64) -> Option<(OpId, u64)> {
        let group = self.groups.front()?;
        let is_much = self.len > KEPT_MAX || self.bytes > bytes_max;
        if !is_much && self.is_wanted(group.slot, group.at, now) {
            return None;
        }
        let group = self.groups.front_mut()?;
        let (op, bytes) = group.ops.pop().expect("a group holds something");
        if group.ops.is_empty() {
            self.groups.pop_front();
        }
        self.len -= 1;
        self.bytes -= bytes;
        Some((op, bytes))
    }

    /// Lets go some of what is to be let go: many may go at once.
    fn let_go(&mut self, now: Nanos, bytes_max: u64, mut gone: impl FnMut(OpId, u64)) {
        self.is_more = false;
        for _ in 0..LET_GO_TURN {
            let Some((op, bytes)) = self.take(now, bytes_max) else { return };
            gone(op, bytes);
        }
        self.is_more = true;
    }

    fn ops(&self) -> impl Iterator<Item = OpId> {
        self.groups.iter().flat_map(|group| &group.ops).map(|(op, _)| *op)
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Fragments kept for readers though no version names their values, and their bytes.
    pub fn kept_for_readers(&self) -> (usize, u64) {
        (self.keep.len, self.keep.bytes)
    }

    /// Somebody reads the present state, until what is returned is dropped.
    pub(crate) fn begin_reading(&mut self) -> Reading {
        self.keep.begin(self.core.exec(), self.now)
    }

    /// PIN of another node.
    pub(crate) fn on_pin(&mut self, from: u8, incarnation: u32, head: &[u8]) {
        // PROTOCOL 9.8-f: of the members alone.
        if self.core.reads_count(from, incarnation) == (false, false) {
            return;
        }
        if let Ok(pin) = get_pin(&mut Bytes::new(head)) {
            self.keep.hear(from, pin, self.now);
        }
    }

    /// Tells the others what is read here, and lets go what nobody asks for any more.
    pub(crate) fn keep_turn(&mut self) {
        if let Some(pin) = self.keep.say(self.now) {
            let mut head = Vec::with_capacity(16);
            put_pin(&mut head, pin);
            for node in self.others().iter() {
                self.send(node, kind::PIN, &head, &[]);
            }
        }
        if self.keep.len == 0 {
            return self.keep.is_more = false;
        }
        // PROTOCOL 9.8-e: who writes needs the room more than who reads what went.
        let is_short = self.log.is_disk_full() || self.log.is_at_limit();
        let most = if is_short { 0 } else { self.config.bounds.space_reserve_bytes / BYTES_SHARE };
        let Node { keep, fragments, .. } = self;
        keep.let_go(self.now, most, |op, bytes| fragments.let_go(op, bytes));
    }

    /// Values that no version uses any more, as of this slot.
    pub(crate) fn forget_released(&mut self, slot: Slot) {
        let mut released = std::mem::take(&mut self.released);
        let all_named = self.machine.take_released(&mut released);
        let is_wanted = !released.is_empty() && self.keep.is_wanted(slot, self.now, self.now);
        for op in released.drain(..) {
            self.repair.remove(op);
            self.hosting.forget(op);
            match is_wanted {
                // PROTOCOL 9.8-b
                true => {
                    if let Some(bytes) = self.fragments.keep(op) {
                        self.keep.add(op, bytes, slot, self.now);
                    }
                }
                false => self.fragments.forget(op, None),
            }
        }
        if !all_named {
            // One operation let very many go: their fragments must not count as live for ever.
            let (machine, exec) = (&self.machine, self.core.exec());
            let kept: FxHashSet<OpId> = self.keep.ops().collect();
            let is_live = |op, slot| slot >= exec || machine.value(op).is_some();
            self.fragments.retain(|op, slot| is_live(op, slot) || kept.contains(&op));
        }
        self.machine.take_superseded(&mut released);
        released.drain(..).for_each(|op| self.fragments.supersede(op));
        self.released = released;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(counter: u64) -> OpId {
        OpId::new(0, 1, 1, counter)
    }

    /// Takes all that may be let go.
    fn let_go(keep: &mut Keep, now: Nanos, bytes_max: u64) -> Vec<OpId> {
        std::iter::from_fn(|| keep.take(now, bytes_max)).map(|(op, _)| op).collect()
    }

    #[test]
    fn of_many_some_are_let_go_in_a_turn_and_the_next_turn_is_asked_for_at_once() {
        let mut keep = Keep::default();
        let reading = keep.begin(7, 0);
        let count = 2 * LET_GO_TURN + 5;
        (0..count as u64).for_each(|counter| keep.add(op(counter), 1, 7, 0));
        let turn = |keep: &mut Keep| {
            let mut gone = 0;
            keep.let_go(MS, 1 << 20, |_, _| gone += 1);
            (gone, keep.deadline() == Some(0))
        };
        assert_eq!(turn(&mut keep), (0, false), "somebody reads");
        drop(reading);
        assert_eq!(turn(&mut keep), (LET_GO_TURN, true));
        assert_eq!(turn(&mut keep), (LET_GO_TURN, true));
        assert_eq!(turn(&mut keep), (5, false));
        assert_eq!((keep.len, keep.deadline()), (0, None));
    }

    /// tests PROTOCOL 9.8-b, 9.8-e
    #[test]
    fn what_went_is_kept_for_own_readers_and_for_others_for_ten_seconds() {
        let mut keep = Keep::default();
        assert!(!keep.is_wanted(7, 0, 0), "nobody reads");
        let reading = keep.begin(7, 0);
        let later = keep.begin(8, 0);
        assert!(keep.is_wanted(7, 0, 0) && !keep.is_wanted(6, 0, 0), "the state of 7 slots");
        keep.add(op(1), 100, 7, 0);
        assert_eq!(let_go(&mut keep, 1000 * T_KEEP_NS, 1000), [], "an own reader takes its time");
        keep.hear(3, Some(5), T_KEEP_NS / 2);
        drop(reading);
        assert_eq!(let_go(&mut keep, T_KEEP_NS - 1, 1000), [], "another node reads it too");
        keep.hear(3, Some(5), T_KEEP_NS);
        assert_eq!(let_go(&mut keep, T_KEEP_NS, 1000), [op(1)]);
        assert!(
            keep.is_wanted(5, T_KEEP_NS, T_KEEP_NS) && !keep.is_wanted(4, T_KEEP_NS, T_KEEP_NS)
        );
        assert!(!keep.is_wanted(5, 2 * T_KEEP_NS, 2 * T_KEEP_NS), "it was said long ago");
        keep.hear(3, Some(6), T_KEEP_NS);
        assert!(!keep.is_wanted(5, T_KEEP_NS, T_KEEP_NS), "the newest pin takes the place");
        keep.hear(3, None, T_KEEP_NS);
        assert!(!keep.is_wanted(6, T_KEEP_NS, T_KEEP_NS));
        drop(later);
        assert_eq!((keep.len, keep.bytes, keep.deadline()), (0, 0, None));
    }

    /// tests PROTOCOL 9.8-e
    #[test]
    fn what_is_kept_is_bounded_in_number_and_bytes_and_the_oldest_goes() {
        let mut keep = Keep::default();
        let _reading = keep.begin(1, 0);
        for counter in 0..10 {
            keep.add(op(counter), 100, 1 + counter, 0);
        }
        assert_eq!(let_go(&mut keep, 0, 1000), []);
        assert_eq!(let_go(&mut keep, 0, 750), [op(0), op(1), op(2)]);
        for counter in 10..KEPT_MAX as u64 {
            keep.add(op(counter), 0, 1 + counter, 0);
        }
        assert_eq!(let_go(&mut keep, 0, 1000), []);
        (0..5).for_each(|more| keep.add(op(1 << 30 | more), 0, 1 << 40, 0));
        assert_eq!(let_go(&mut keep, 0, 1000), [op(3), op(4)], "three went before");
        assert_eq!((keep.len, keep.bytes), (KEPT_MAX, 500));
    }

    /// tests PROTOCOL 9.8-d
    #[test]
    fn only_who_reads_for_long_is_announced_and_again_while_it_does() {
        let mut keep = Keep::default();
        let said = |keep: &mut Keep, ms: Nanos| keep.say(ms * MS);
        let at = 1000;
        let reading = keep.begin(7, at * MS);
        assert_eq!((keep.deadline(), said(&mut keep, at + 49)), (Some((at + 50) * MS), None));
        drop(reading);
        assert_eq!(keep.deadline(), None, "it was done soon");
        let reading = keep.begin(7, at * MS);
        assert_eq!(said(&mut keep, at + 50), Some(Some(7)));
        assert_eq!((said(&mut keep, at + 1049), said(&mut keep, at + 1050)), (None, Some(Some(7))));
        let second = keep.begin(9, (at + 1060) * MS);
        drop(reading);
        // The second may be about to end.
        assert_eq!((said(&mut keep, at + 1099), said(&mut keep, at + 1100)), (None, Some(None)));
        assert_eq!((said(&mut keep, at + 1149), said(&mut keep, at + 1150)), (None, Some(Some(9))));
        let third = keep.begin(9, (at + 1160) * MS);
        drop(second);
        assert_eq!(said(&mut keep, at + 2149), None, "it is of the same state");
        drop(third);
        assert_eq!((said(&mut keep, at + 2150), said(&mut keep, at + 9999)), (Some(None), None));
    }
}
