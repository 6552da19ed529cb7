//! One client for each lane of the nodes, and which of them an operation goes to.
//!
//! Invariant: whatever concerns a key goes to the lane that [`lane_of`] says, the stripes of its value
//! too; what concerns several keys goes to one lane or nowhere.
//! What would break it: another number of lanes than the nodes have. They drop what comes of it.

use crate::core::{ClientCore, Counts};
use crate::error::ClientError;
use crate::op::{Completion, Op, Route, Ticket};
use racos_engine::lanes::lane_of;
use racos_net::Link;

/// Clients of all lanes, in order, as one.
pub struct Lanes<L: Link> {
    cores: Vec<ClientCore<L>>,
}

impl<L: Link> Lanes<L> {
    /// # Panics
    /// If there is none, or more than a node can have.
    pub fn new(cores: Vec<ClientCore<L>>) -> Lanes<L> {
        let count = cores.len();
        assert!((1..=64).contains(&count), "{count} lanes: 1 to 64");
        Lanes { cores }
    }

    pub fn count(&self) -> usize {
        self.cores.len()
    }

    /// The lane of a key.
    pub fn of(&self, key: &[u8]) -> usize {
        // PROTOCOL 3.1-j: the same function as at the nodes.
        usize::from(lane_of(key, self.cores.len() as u8))
    }

    pub fn core(&self, lane: usize) -> &ClientCore<L> {
        &self.cores[lane]
    }

    /// Takes an operation on one key, in the lane of that key; a status is lane 0's. Any other is
    /// refused unless there is one lane: say to which it goes.
    pub fn submit(&mut self, op: Op, route: Route, now_ns: u64) -> Ticket {
        match self.choose(&op) {
            Ok(lane) => {
                let inner = self.cores[lane].submit(op, route, now_ns);
                self.outer(lane, inner)
            }
            Err(error) => {
                let inner = self.cores[0].refuse(op, error);
                self.outer(0, inner)
            }
        }
    }

    /// Takes an operation for a lane. One on a key of another lane is refused.
    pub fn submit_to(&mut self, lane: usize, op: Op, route: Route, now_ns: u64) -> Ticket {
        let own = op.key().map_or(lane, |key| self.of(key));
        let inner = match own == lane {
            true => self.cores[lane].submit(op, route, now_ns),
            false => {
                let text = format!("the key belongs to lane {own}, not to lane {lane}");
                self.cores[lane].refuse(op, ClientError::Limit { text })
            }
        };
        self.outer(lane, inner)
    }

    fn choose(&self, op: &Op) -> Result<usize, ClientError> {
        let count = self.cores.len();
        if let Some(key) = op.key() {
            return Ok(self.of(key));
        }
        let what = match op {
            _ if count == 1 => return Ok(0),
            Op::Status => return Ok(0),
            // PROTOCOL 3.1-k, 8.1-r: several keys in one lane, or in none.
            Op::List { .. } => "a list of keys",
            Op::Members { .. } | Op::AtRisk { .. } => "a change of the members",
            _ => "a stripe",
        };
        let text = format!(
            "{what} belongs to one lane, and the nodes have {count} (0 to {}), each with an order of its \
             own: ask each lane",
            count - 1
        );
        Err(ClientError::Limit { text })
    }

    /// Tickets of all lanes are numbered through.
    fn outer(&self, lane: usize, inner: Ticket) -> Ticket {
        Ticket(inner.0 * self.cores.len() as u64 + lane as u64)
    }

    /// See [`ClientCore::poll`].
    pub fn poll(&mut self, now_ns: u64, into: &mut Vec<Completion>) {
        for lane in 0..self.cores.len() {
            let before = into.len();
            self.cores[lane].poll(now_ns, into);
            for completion in &mut into[before..] {
                completion.ticket = self.outer(lane, completion.ticket);
            }
        }
    }

    /// See [`ClientCore::flush`].
    pub fn flush(&mut self, now_ns: u64) {
        self.cores.iter_mut().for_each(|core| core.flush(now_ns));
    }

    /// See [`ClientCore::deadline`].
    pub fn deadline(&self) -> Option<u64> {
        self.cores.iter().filter_map(ClientCore::deadline).min()
    }

    /// See [`ClientCore::outstanding`].
    pub fn outstanding(&self) -> usize {
        self.cores.iter().map(ClientCore::outstanding).sum()
    }

    /// See [`ClientCore::forget`].
    pub fn forget(&mut self, ticket: Ticket) {
        let count = self.cores.len() as u64;
        let (inner, lane) = (Ticket(ticket.0 / count), ticket.0 % count);
        self.cores[lane as usize].forget(inner);
    }

    /// Lets the cluster forget the sessions, as [`ClientCore::close_session`].
    pub fn close_sessions(&mut self, now_ns: u64) {
        self.cores.iter_mut().for_each(|core| core.close_session(now_ns));
    }

    /// The sums over all lanes.
    pub fn counts(&self) -> Counts {
        self.cores.iter().map(ClientCore::counts).fold(Counts::default(), Counts::plus)
    }
}
