//! Who waits for a node is woken once a turn, not once an answer.
//!
//! To wake a task of another thread is a system call for each. So the wakers of a turn's answers are
//! collected, and a single one is used: that of the [`Ringer`], which wakes the others in their own
//! thread. Without a ringer they are woken one by one, still at the end of the turn.
//!
//! Invariant: a waker that is given is woken: by the ringer, by `ring`, or at once when the node
//! stops.
//! What would break it: an answer given outside of a turn's share, with no `ring` after it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    due: Vec<Waker>,
    /// Waits to be woken; `None` while it runs, and if there is none.
    ringer: Option<Waker>,
    has_ringer: bool,
    closed: bool,
}

#[derive(Default)]
pub(crate) struct Bells(Mutex<State>);

impl Bells {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be woken at the end of the turn.
    pub(crate) fn add(&self, waker: Waker) {
        let now = {
            let mut state = self.state();
            match state.closed {
                true => Some(waker),
                false => {
                    state.due.push(waker);
                    None
                }
            }
        };
        // Outside of the lock: a waker may run the other side at once.
        now.into_iter().for_each(Waker::wake);
    }

    /// The turn has ended.
    pub(crate) fn ring(&self) {
        let (ringer, due) = {
            let mut state = self.state();
            if state.due.is_empty() {
                return;
            }
            match state.has_ringer {
                true => (state.ringer.take(), Vec::new()),
                false => (None, std::mem::take(&mut state.due)),
            }
        };
        ringer.into_iter().chain(due).for_each(Waker::wake);
    }

    /// The node stops: from now on whoever is given is woken at once.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.ring();
    }
}

/// Wakes those who wait for a node, in the thread that runs it; never ends.
pub struct Ringer(Arc<Bells>);

impl Ringer {
    pub(crate) fn new(bells: Arc<Bells>) -> Ringer {
        bells.state().has_ringer = true;
        Ringer(bells)
    }
}

impl Future for Ringer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let due = {
            let mut state = self.0.state();
            state.ringer = Some(context.waker().clone());
            std::mem::take(&mut state.due)
        };
        due.into_iter().for_each(Waker::wake);
        Poll::Pending
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.has_ringer, state.ringer) = (false, None);
        drop(state);
        self.0.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted() -> (Waker, Arc<Count>) {
        let count = Arc::<Count>::default();
        (count.clone().into(), count)
    }

    #[test]
    fn a_ringer_is_woken_once_for_all_and_wakes_them() {
        let bells = Arc::<Bells>::default();
        let (own, ringer_woken) = counted();
        let (waker, woken) = counted();
        let mut ringer = Ringer::new(bells.clone());
        let mut context = Context::from_waker(&own);
        assert!(Pin::new(&mut ringer).poll(&mut context).is_pending());
        for _ in 0..10 {
            bells.add(waker.clone());
        }
        bells.ring();
        bells.add(waker.clone());
        bells.ring();
        let seen = || (ringer_woken.0.load(Ordering::Relaxed), woken.0.load(Ordering::Relaxed));
        assert_eq!(seen(), (1, 0));
        assert!(Pin::new(&mut ringer).poll(&mut context).is_pending());
        assert_eq!(seen(), (1, 11));
        bells.add(waker.clone());
        drop(ringer);
        assert_eq!(seen(), (1, 12));
    }

    #[test]
    fn without_a_ringer_all_are_woken_at_the_end_of_the_turn_and_later_at_once() {
        let bells = Bells::default();
        let (waker, woken) = counted();
        bells.add(waker.clone());
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        bells.ring();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        bells.add(waker.clone());
        bells.close();
        bells.add(waker);
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    }
}
