//! What several watches tell, built once.
//!
//! Watches with the same filter that stand at the same revision tell the same. The first that looks
//! begins to build it; those that come meanwhile wait for it, and those that come later are given it.
//!
//! Invariant: what is kept is what a walk from that revision found; it stays true, since revisions
//! never change, and a watch looks whether its revision is compacted before it looks here.
//! What would break it: a filter that leaves out something that decides what a watch tells.

use super::types::Events;
use racos_machine::{Changed, Span};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Most that is kept: for watches that are a little later than others.
const KEPT_MAX: usize = 256;
const KEPT_BYTES_MAX: u64 = 8 << 20;

/// What decides which events a watch tells, and how.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Filter {
    pub(super) span: Span,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
    pub(super) prev_kv: bool,
}

impl Filter {
    pub(super) fn wants(&self, changed: &Changed) -> bool {
        let filtered = if changed.is_delete { self.no_delete } else { self.no_put };
        !filtered && self.span.contains(&changed.key)
    }
}

/// The first revision, and by what filter.
pub(super) type Asked = (u64, Rc<Filter>);

/// A watch: its stream, its id, its serial number.
pub(super) type Name = (u64, i64, u64);

/// The events of one response.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) events: Arc<Events>,
    /// The last revision looked at whole.
    pub(super) last: u64,
    pub(super) bytes: u64,
    /// There was more to tell, but no room in one response.
    pub(super) is_full: bool,
}

#[derive(Debug)]
enum State {
    Building(Vec<Name>),
    Kept(Told),
}

/// What a watch that looks is to do.
#[derive(Debug)]
pub(super) enum Look {
    Tell(Told),
    /// It will be called.
    Wait,
    /// Nobody has looked here yet.
    Build,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    table: FxHashMap<Asked, State>,
    /// What is kept, oldest first.
    order: VecDeque<Asked>,
    bytes: u64,
}

impl Shared {
    /// What a watch does that looks when the state is at this revision. What was built earlier and
    /// could tell more by now is forgotten: a watch that lags is told all that waits at once.
    pub(super) fn look(&mut self, asked: &Asked, who: Name, revision: u64) -> Look {
        match self.table.get_mut(asked) {
            Some(State::Kept(told)) if told.is_full || told.last >= revision => {
                Look::Tell(told.clone())
            }
            Some(State::Kept(told)) => {
                self.bytes -= told.bytes;
                self.table.remove(asked);
                self.order.retain(|kept| kept != asked);
                Look::Build
            }
            Some(State::Building(waiting)) => {
                waiting.push(who);
                Look::Wait
            }
            None => Look::Build,
        }
    }

    /// It is being built from now on, for this watch and whoever comes meanwhile.
    pub(super) fn begin(&mut self, asked: Asked, who: Name) {
        let before = self.table.insert(asked, State::Building(vec![who]));
        assert!(before.is_none(), "a response is built once at a time");
    }

    /// It was built, or could not be; who waits for it, in the order in which they came.
    pub(super) fn end(&mut self, asked: &Asked, told: Option<&Told>) -> Vec<Name> {
        let waiting = match self.table.remove(asked) {
            Some(State::Building(waiting)) => waiting,
            other => unreachable!("what ends was being built, not {other:?}"),
        };
        if let Some(told) = told {
            self.bytes += told.bytes;
            self.table.insert(asked.clone(), State::Kept(told.clone()));
            self.order.push_back(asked.clone());
            while self.order.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
                let oldest = self.order.pop_front().expect("what is counted is in the order");
                match self.table.remove(&oldest) {
                    Some(State::Kept(told)) => self.bytes -= told.bytes,
                    other => unreachable!("what is in the order is kept, not {other:?}"),
                }
            }
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(next: u64, prev_kv: bool) -> Asked {
        let span = Span::One(b"a"[..].into());
        (next, Rc::new(Filter { span, no_put: false, no_delete: false, prev_kv }))
    }

    fn told(last: u64, bytes: u64) -> Told {
        Told { events: Arc::default(), last, bytes, is_full: false }
    }

    #[test]
    fn who_comes_while_it_is_built_waits_and_who_comes_later_is_given_it() {
        let mut shared = Shared::default();
        assert!(matches!(shared.look(&asked(5, false), (1, 0, 1), 9), Look::Build));
        shared.begin(asked(5, false), (1, 0, 1));
        assert!(matches!(shared.look(&asked(5, false), (2, 7, 2), 9), Look::Wait));
        for other in [asked(5, true), asked(6, false)] {
            assert!(matches!(shared.look(&other, (3, 0, 3), 9), Look::Build));
        }
        assert_eq!(shared.end(&asked(5, false), Some(&told(9, 1))), [(1, 0, 1), (2, 7, 2)]);
        let Look::Tell(told) = shared.look(&asked(5, false), (3, 0, 3), 9) else { panic!("kept") };
        assert_eq!(told.last, 9);
    }

    #[test]
    fn what_could_tell_more_by_now_is_built_again_unless_there_is_no_room() {
        let mut shared = Shared::default();
        for (is_full, built_again) in [(false, true), (true, false)] {
            shared.begin(asked(5, is_full), (1, 0, 1));
            shared.end(&asked(5, is_full), Some(&Told { is_full, ..told(9, 1) }));
            let look = shared.look(&asked(5, is_full), (1, 0, 1), 10);
            assert_eq!(matches!(look, Look::Build), built_again);
        }
        assert_eq!((shared.order.len(), shared.bytes), (1, 1));
    }

    #[test]
    fn what_could_not_be_built_is_built_again_by_the_next_who_looks() {
        let mut shared = Shared::default();
        shared.begin(asked(5, false), (1, 0, 1));
        assert_eq!(shared.end(&asked(5, false), None), [(1, 0, 1)]);
        assert!(matches!(shared.look(&asked(5, false), (1, 0, 1), 9), Look::Build));
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_bytes() {
        let mut shared = Shared::default();
        let keep = |shared: &mut Shared, next: u64, bytes: u64| {
            shared.begin(asked(next, false), (1, 0, 1));
            shared.end(&asked(next, false), Some(&told(next, bytes)));
        };
        for next in 0..KEPT_MAX as u64 + 10 {
            keep(&mut shared, next, 1);
        }
        assert_eq!((shared.order.len(), shared.table.len()), (KEPT_MAX, KEPT_MAX));
        keep(&mut shared, 10_000, KEPT_BYTES_MAX);
        assert_eq!((shared.order.len(), shared.bytes), (1, KEPT_BYTES_MAX));
        keep(&mut shared, 10_001, KEPT_BYTES_MAX + 1);
        assert_eq!((shared.table.len(), shared.bytes), (0, 0));
    }
}
