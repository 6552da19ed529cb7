//! Both ends of a stream of watches.
//!
//! Invariant: responses are taken in the order in which they were built, and the reactor builds no
//! more while [`RESPONSES_MAX`] wait, so a slow reader costs two responses and one cursor a watch.

use super::door::{Door, Request};
use super::types::{Error, WatchCreate, WatchResponse};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Responses that wait to be taken.
pub(crate) const RESPONSES_MAX: usize = 2;
/// Commands that wait for the reactor.
const COMMANDS_MAX: usize = 65_536;

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
    waker: Option<Waker>,
    /// The reactor wants to be told when a response was taken.
    starved: bool,
    /// Nobody takes responses any more.
    dropped: bool,
    /// There will be no more responses.
    ended: bool,
}

pub(crate) struct StreamShared {
    pub(crate) number: u64,
    state: Mutex<State>,
}

impl StreamShared {
    pub(crate) fn new(number: u64) -> StreamShared {
        StreamShared { number, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the client has said since, and whether it is gone.
    pub(crate) fn take_commands(&self, into: &mut VecDeque<Command>) -> bool {
        let mut state = self.state();
        into.append(&mut state.commands);
        state.dropped
    }

    /// Whether a response may be built; if not, the reactor will be told when one may.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = self.state();
        state.starved = state.responses.len() >= RESPONSES_MAX;
        !state.starved
    }

    pub(crate) fn deliver(&self, response: WatchResponse) {
        let waker = {
            let mut state = self.state();
            state.responses.push_back(response);
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn end(&self) {
        let waker = {
            let mut state = self.state();
            state.ended = true;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Watches on one stream, in the hands of another thread. Dropping it ends them.
pub struct WatchStream {
    shared: Arc<StreamShared>,
    door: Arc<Door>,
}

impl WatchStream {
    pub(crate) fn new(shared: Arc<StreamShared>, door: Arc<Door>) -> WatchStream {
        WatchStream { shared, door }
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

    fn say(&self, command: Command) -> Result<(), Error> {
        {
            let mut state = self.shared.state();
            if state.commands.len() >= COMMANDS_MAX {
                return Err(Error::Busy("too many watches wait to be created".into()));
            }
            state.commands.push_back(command);
        }
        self.tell()
    }

    fn tell(&self) -> Result<(), Error> {
        let request = Request::Stream { number: self.shared.number };
        self.door.send(request)
    }

    /// The next response; `None` after the last, when the node has stopped.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchResponse>> {
        let (response, starved) = {
            let mut state = self.shared.state();
            let response = state.responses.pop_front();
            if response.is_none() && !state.ended {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            (response, std::mem::take(&mut state.starved))
        };
        if starved {
            // If the node has stopped, the end of the stream says so.
            let _ = self.tell();
        }
        Poll::Ready(response)
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
