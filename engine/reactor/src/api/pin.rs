//! Linearizable states: a question to a quorum that all reads which came before it share.
//!
//! Invariant: a job runs on a state that holds every operation that was completed anywhere before
//! the job came: each of those is named by more than f nodes, one of which answered, either with a
//! slot that this node has executed since, or with one that it had executed before it asked.
//! What would break it: letting a job join a round whose question was sent already, or counting the
//! marks of some keys only: the revision that a reader is shown is of all keys.

use super::types::Error;
use crate::node::Node;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::kind;
use racos_net::{Link, Message as Frame};
use racos_protocol::{Input, Nanos, NodeSet, Slot};
use racos_storage::device::Device;

const MS: Nanos = 1_000_000;
/// A question without a quorum of answers by then is asked again, with growing pauses.
const RETRY_MIN: Nanos = 5 * MS;
const RETRY_MAX: Nanos = 200 * MS;
/// A round that cannot be finished by then fails.
const GIVE_UP: Nanos = 5_000 * MS;
/// Jobs that wait for a round; beyond this they are answered "busy".
const JOBS_MAX: usize = 65_536;

/// What is done at the state.
pub(super) type PinJob<L, D> = Box<dyn FnOnce(&mut Node<L, D>, Result<(), Error>)>;

struct Round<L: Link, D: Device> {
    number: u64,
    /// Of the configuration when it began.
    epoch: u32,
    jobs: Vec<PinJob<L, D>>,
    answered: NodeSet,
    /// All slots up to this one must be executed here first.
    top: Option<Slot>,
    /// The quorum is there; the slot is known to be in use here.
    waits_for: Option<Slot>,
    started: Nanos,
    retry_at: Nanos,
    pause: Nanos,
}

pub(super) struct Pins<L: Link, D: Device> {
    waiting: Vec<PinJob<L, D>>,
    round: Option<Round<L, D>>,
    next: u64,
}

impl<L: Link, D: Device> Pins<L, D> {
    /// Rounds are numbered above `base`, which differs from boot to boot.
    pub(super) fn new(base: u64) -> Self {
        Pins { waiting: Vec::new(), round: None, next: base }
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.round.as_ref().map(|round| round.retry_at)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.round.as_ref().map_or(0, |round| round.jobs.len())
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Does the job at a linearizable state, not before the caller has returned.
    pub(super) fn at_pin(&mut self, job: PinJob<L, D>) {
        if self.api.pins.waiting.len() >= JOBS_MAX {
            return job(self, Err(Error::Busy("too many reads wait for a quorum".into())));
        }
        self.api.pins.waiting.push(job);
    }

    /// The highest slot that may hold an operation somebody knows to be complete.
    /// PROTOCOL 8.1-s: whatever keys it touches.
    fn pin_top(&self) -> Option<Slot> {
        self.last_batch.max(self.core.mark(|_| true))
    }

    /// Why this node does not ask a quorum for clients: it would count itself, and is in none.
    pub(super) fn no_member(&self) -> Option<Error> {
        // PROTOCOL 10-r, 10-t
        let why = || self.idle_reason().unwrap_or_else(|| "this node is no member".into());
        (!self.core.is_active()).then(|| Error::NoMember(why()))
    }

    /// Goes on with rounds as far as answers allow; whether jobs were done.
    pub(super) fn advance_pins(&mut self) -> bool {
        let mut any = false;
        loop {
            if self.api.pins.round.is_none() {
                if self.api.pins.waiting.is_empty() {
                    return any;
                }
                if let Some(error) = self.no_member() {
                    any = true;
                    let jobs = std::mem::take(&mut self.api.pins.waiting);
                    jobs.into_iter().for_each(|job| job(self, Err(error.clone())));
                    continue;
                }
                self.begin_round();
            }
            let quorum = self.quorum_of_both();
            let round = self.api.pins.round.as_mut().expect("begun above");
            if round.answered.len() >= quorum {
                let exec = self.core.exec();
                match round.top.filter(|top| *top >= exec) {
                    None => {
                        let mut round = self.api.pins.round.take().expect("there is a round");
                        // PROTOCOL 8.1-q: the members have changed meanwhile: another quorum.
                        if round.epoch != self.core.epoch() || !self.core.is_active() {
                            round.jobs.append(&mut self.api.pins.waiting);
                            self.api.pins.waiting = round.jobs;
                            continue;
                        }
                        any = true;
                        round.jobs.into_iter().for_each(|job| job(self, Ok(())));
                        continue;
                    }
                    Some(top) if round.waits_for != Some(top) => {
                        round.waits_for = Some(top);
                        self.step(Input::InUse { slot: top });
                        continue;
                    }
                    Some(_) => {}
                }
            }
            let now = self.now;
            let round = self.api.pins.round.as_mut().expect("there is a round");
            if now < round.retry_at {
                return any;
            }
            if now >= round.started + GIVE_UP {
                let round = self.api.pins.round.take().expect("there is a round");
                let text = match round.waits_for {
                    None => "too few nodes answer: a linearizable read needs n-f of them",
                    Some(_) => "the cluster does not finish the writes before this read in time",
                };
                let error = Error::Unavailable(text.into());
                round.jobs.into_iter().for_each(|job| job(self, Err(error.clone())));
                any = true;
                continue;
            }
            round.pause = (round.pause * 2).min(RETRY_MAX);
            round.retry_at = now + round.pause;
            match round.waits_for {
                Some(slot) => self.step(Input::InUse { slot }),
                None => self.ask_pin(),
            }
        }
    }

    fn begin_round(&mut self) {
        let top = self.pin_top();
        let epoch = self.core.epoch();
        let mut answered = NodeSet::EMPTY;
        answered.insert(self.me);
        let pins = &mut self.api.pins;
        pins.next += 1;
        pins.round = Some(Round {
            number: pins.next,
            epoch,
            jobs: std::mem::take(&mut pins.waiting),
            answered,
            top,
            waits_for: None,
            started: self.now,
            retry_at: self.now + RETRY_MIN,
            pause: RETRY_MIN,
        });
        self.ask_pin();
    }

    fn ask_pin(&mut self) {
        let Some(round) = &self.api.pins.round else { return };
        let (number, answered) = (round.number, round.answered);
        let head = number.to_le_bytes();
        for node in self.members().without(answered).iter() {
            self.send(node, kind::PINQ, &head, &[]);
        }
    }

    /// PINQ: answered from this instant's state.
    pub(crate) fn on_pin_question(&mut self, from: u8, frame: &Frame) {
        let Ok(number) = Reader::new(&frame.head).u64("round") else { return };
        let mut head = Vec::with_capacity(16);
        head.put_u64(number);
        head.put_u64(self.pin_top().map_or(0, |top| top + 1));
        self.send(from, kind::PINR, &head, &[]);
    }

    /// PINR.
    pub(crate) fn on_pin_answer(&mut self, from: u8, frame: &Frame) {
        let mut reader = Reader::new(&frame.head);
        let (Ok(number), Ok(above)) = (reader.u64("round"), reader.u64("above")) else { return };
        let Some(round) = self.api.pins.round.as_mut() else { return };
        // An answer that comes after the quorum was counted adds nothing.
        if round.number == number && round.waits_for.is_none() {
            round.answered.insert(from);
            round.top = round.top.max(above.checked_sub(1));
        }
    }
}
