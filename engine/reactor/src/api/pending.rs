//! An answer that comes later, from the reactor's thread.
//!
//! Invariant: every [`Pending`] is completed exactly once: by an answer, or with [`Error::Stopped`]
//! when its [`Answer`] is dropped unused.

use super::bells::Bells;
use super::types::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

enum State<T> {
    Waiting(Option<Waker>),
    Ready(Result<T, Error>),
    Taken,
}

/// The side that asks: a future, or [`Pending::wait`] where there is no executor. Dropping it
/// abandons the answer, not the request.
pub struct Pending<T>(Arc<Mutex<State<T>>>);

/// The side that answers.
pub(crate) struct Answer<T> {
    state: Option<Arc<Mutex<State<T>>>>,
    bells: Arc<Bells>,
}

/// A pair of them. Who waits is woken when the bells are rung.
pub(crate) fn pending<T>(bells: &Arc<Bells>) -> (Answer<T>, Pending<T>) {
    let state = Arc::new(Mutex::new(State::Waiting(None)));
    (Answer { state: Some(state.clone()), bells: bells.clone() }, Pending(state))
}

impl<T> Answer<T> {
    /// Completes the other side.
    pub(crate) fn send(mut self, result: Result<T, Error>) {
        self.complete(result);
    }

    fn complete(&mut self, result: Result<T, Error>) {
        let Some(state) = self.state.take() else { return };
        let before = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *state, State::Ready(result))
        };
        if let State::Waiting(Some(waker)) = before {
            self.bells.add(waker);
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.complete(Err(Error::Stopped));
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ready(result) => Poll::Ready(result),
            State::Waiting(_) => {
                *state = State::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            State::Taken => panic!("an answer is taken once"),
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<T> Pending<T> {
    /// Blocks this thread until the answer is there.
    ///
    /// # Errors
    /// Those of the request.
    pub fn wait(mut self) -> Result<T, Error> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    /// The answer, if it is there.
    pub fn try_take(&mut self) -> Option<Result<T, Error>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Ready(_)) {
            return None;
        }
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ready(result) => Some(result),
            _ => unreachable!("looked at under the same lock"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_from_another_thread() {
        let bells = Arc::default();
        let (answer, pending) = pending(&bells);
        let sender = std::thread::spawn(move || {
            answer.send(Ok(7));
            bells.ring();
        });
        assert_eq!(pending.wait(), Ok(7));
        sender.join().unwrap();
    }

    #[test]
    fn an_answer_that_is_dropped_says_that_the_node_stopped() {
        let (answer, mut pending) = pending::<u8>(&Arc::default());
        assert_eq!(pending.try_take(), None);
        drop(answer);
        assert_eq!(pending.try_take(), Some(Err(Error::Stopped)));
    }
}
