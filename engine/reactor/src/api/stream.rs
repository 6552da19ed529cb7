//! Both ends of a stream of watches.
//!
//! Responses are taken in rounds, all that wait at once: a stream of many watches costs one wake-up
//! a round, not one a response.
//!
//! Invariant: responses are taken in the order in which they were built, at most one of events for
//! each watch and round. While [`RESPONSES_MAX`] or [`BYTES_MAX`] wait the reactor builds no more, so
//! a slow reader costs two rounds and one cursor a watch. Commands are answered in order, and taken in
//! only while there is room for their answers: who asks without reading waits behind [`COMMANDS_MAX`].

use super::auth::Who;
use super::bells::Bells;
use super::door::{Door, Request};
use super::types::{Error, WatchCreate, WatchResponse};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Responses that wait to be taken.
const RESPONSES_MAX: usize = 4096;
/// Bytes of keys and values in them, but for one response.
const BYTES_MAX: u64 = 4 << 20;
/// Commands that wait for the reactor.
const COMMANDS_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) enum Command {
    Create(WatchCreate),
    Cancel(i64),
    Progress,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    responses: VecDeque<WatchResponse>,
    bytes: u64,
    /// How often all responses were taken.
    round: u64,
    waker: Option<Waker>,
    /// The reactor wants to be told when a round begins.
    starved: bool,
    /// Nobody takes responses any more.
    dropped: bool,
    /// There will be no more responses.
    ended: bool,
}

pub(crate) struct StreamShared {
    pub(crate) number: u64,
    state: Mutex<State>,
    bells: Arc<Bells>,
}

impl StreamShared {
    pub(crate) fn new(number: u64, bells: Arc<Bells>) -> StreamShared {
        let first = State { round: 1, ..State::default() };
        StreamShared { number, state: Mutex::new(first), bells }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client is gone.
    pub(crate) fn is_dropped(&self) -> bool {
        self.state().dropped
    }

    /// Takes up to `most` commands in; whether there are more.
    pub(crate) fn take_commands(&self, most: usize, into: &mut VecDeque<Command>) -> bool {
        let (more, waker) = {
            let mut state = self.state();
            let taken = state.commands.len().min(most);
            let was_full = state.commands.len() >= COMMANDS_MAX;
            into.extend(state.commands.drain(..taken));
            let room = was_full && taken > 0;
            (!state.commands.is_empty(), room.then(|| state.waker.take()).flatten())
        };
        waker.into_iter().for_each(|waker| self.bells.add(waker));
        more
    }

    /// The round for which a response may be built. `None`: there is no room in it; the reactor will
    /// be told when the next begins.
    pub(crate) fn room(&self) -> Option<u64> {
        let mut state = self.state();
        let full = state.responses.len() >= RESPONSES_MAX || state.bytes >= BYTES_MAX;
        state.starved |= full;
        (!full).then_some(state.round)
    }

    /// The round that is being filled.
    pub(crate) fn round(&self) -> u64 {
        self.state().round
    }

    /// There is more to tell than this round takes. False if the next has begun already; if not, the
    /// reactor will be told when it does.
    pub(crate) fn wait_for_round(&self, seen: u64) -> bool {
        let mut state = self.state();
        let same = state.round == seen;
        state.starved |= same;
        same
    }

    pub(crate) fn deliver(&self, response: WatchResponse, bytes: u64) {
        let waker = {
            let mut state = self.state();
            state.responses.push_back(response);
            state.bytes += bytes;
            state.waker.take()
        };
        waker.into_iter().for_each(|waker| self.bells.add(waker));
    }

    pub(crate) fn end(&self) {
        let waker = {
            let mut state = self.state();
            state.ended = true;
            state.waker.take()
        };
        waker.into_iter().for_each(|waker| self.bells.add(waker));
    }
}

/// Watches on one stream, in the hands of another thread. Dropping it ends them.
pub struct WatchStream {
    shared: Arc<StreamShared>,
    door: Arc<Door>,
    /// The rest of a round.
    taken: VecDeque<WatchResponse>,
}

impl WatchStream {
    pub(crate) fn new(shared: Arc<StreamShared>, door: Arc<Door>) -> WatchStream {
        WatchStream { shared, door, taken: VecDeque::new() }
    }

    /// Begins a watch. The next response with its id says that it was created, or why not.
    ///
    /// # Errors
    /// `Busy` if the reactor has not taken in very many commands.
    pub fn create(&self, create: WatchCreate) -> Result<(), Error> {
        self.say(Command::Create(create))
    }

    /// Ends a watch; a `Cancelled` response confirms it, if it was there.
    ///
    /// # Errors
    /// As [`WatchStream::create`].
    pub fn cancel(&self, id: i64) -> Result<(), Error> {
        self.say(Command::Cancel(id))
    }

    /// Asks for a `Progress` response, which comes once all watches of the stream are up to date.
    ///
    /// # Errors
    /// As [`WatchStream::create`].
    pub fn progress(&self) -> Result<(), Error> {
        self.say(Command::Progress)
    }

    /// Whether the reactor takes a command now. If not, the task of the context is woken once it does, or
    /// when there is a response.
    pub fn poll_room(&self, context: &mut Context<'_>) -> bool {
        let mut state = self.shared.state();
        let full = state.commands.len() >= COMMANDS_MAX;
        if full {
            state.waker = Some(context.waker().clone());
        }
        !full
    }

    fn say(&self, command: Command) -> Result<(), Error> {
        {
            let mut state = self.shared.state();
            if state.commands.len() >= COMMANDS_MAX {
                return Err(Error::Busy("too many commands of this stream wait".into()));
            }
            state.commands.push_back(command);
        }
        self.tell()
    }

    fn tell(&self) -> Result<(), Error> {
        let request = Request::Stream { number: self.shared.number };
        // Who asks was said when it was opened.
        self.door.send(Who::Nobody, request)
    }

    /// The next response; `None` after the last, when the node has stopped.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchResponse>> {
        if let Some(response) = self.taken.pop_front() {
            return Poll::Ready(Some(response));
        }
        let starved = {
            let mut state = self.shared.state();
            if state.responses.is_empty() && !state.ended {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            std::mem::swap(&mut self.taken, &mut state.responses);
            state.bytes = 0;
            state.round += 1;
            std::mem::take(&mut state.starved)
        };
        if starved {
            // If the node has stopped, the end of the stream says so.
            let _ = self.tell();
        }
        Poll::Ready(self.taken.pop_front())
    }

    /// The next response; `None` after the last, when the node has stopped.
    pub async fn next(&mut self) -> Option<WatchResponse> {
        poll_fn(|context| self.poll_next(context)).await
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.shared.state().dropped = true;
        let _ = self.tell();
    }
}
