//! The door: what other threads hold, and the queue between them and the reactor.
//!
//! Invariant: the queue is bounded, a request that does not fit is answered "busy" at once, and a
//! reactor that sleeps is woken for the first request after it last looked.
//! What would break it: clearing `signalled` after the queue was emptied instead of before.

use super::auth::{AuthAnswer, AuthAsk, AuthView, LoginAnswer, Who};
use super::bells::{Bells, Ringer};
use super::pending::{Answer, Pending, pending};
use super::stream::{StreamShared, WatchStream};
use super::types::*;
use racos_machine::{AuthPlace, AuthStep, Caller, Name};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that wait for the reactor; beyond this they are answered "busy".
pub(super) const QUEUE_MAX: usize = 16_384;

/// A request on its way to the reactor.
pub(crate) enum Request {
    Range {
        range: Range,
        serializable: bool,
        answer: Answer<RangeAnswer>,
    },
    Put {
        put: Put,
        answer: Answer<PutAnswer>,
    },
    Delete {
        delete: Delete,
        answer: Answer<DeleteAnswer>,
    },
    Txn {
        txn: Txn,
        serializable: bool,
        answer: Answer<TxnAnswer>,
    },
    Compact {
        revision: i64,
        physical: bool,
        answer: Answer<Done>,
    },
    LeaseGrant {
        id: i64,
        ttl: i64,
        answer: Answer<LeaseAnswer>,
    },
    LeaseRevoke {
        id: i64,
        answer: Answer<Done>,
    },
    LeaseKeepAlive {
        id: i64,
        answer: Answer<LeaseAnswer>,
    },
    LeaseTimeToLive {
        id: i64,
        keys: bool,
        answer: Answer<TimeToLiveAnswer>,
    },
    Alarm {
        member: u64,
        kind: AlarmKind,
        raised: bool,
        answer: Answer<Done>,
    },
    Alarms {
        answer: Answer<Vec<(u64, AlarmKind)>>,
    },
    Leases {
        answer: Answer<LeasesAnswer>,
    },
    Status {
        answer: Answer<StatusAnswer>,
    },
    Members {
        serializable: bool,
        answer: Answer<MembersAnswer>,
    },
    MemberAdd {
        address: SocketAddr,
        answer: Answer<MembersAnswer>,
    },
    MemberUpdate {
        id: u64,
        address: SocketAddr,
        answer: Answer<MembersAnswer>,
    },
    MemberRemove {
        id: u64,
        answer: Answer<MembersAnswer>,
    },
    /// Where clients reach this node.
    Announce {
        clients: Box<str>,
    },
    HashKv {
        revision: i64,
        answer: Answer<HashAnswer>,
    },
    BackupBegin {
        answer: Answer<BackupHead>,
    },
    BackupPage {
        revision: u64,
        after: BackupPlace,
        answer: Answer<BackupPage>,
    },
    Restore {
        step: RestoreStep,
        answer: Answer<Done>,
    },
    Auth {
        ask: AuthAsk,
        answer: Answer<AuthAnswer>,
    },
    AuthStep {
        step: AuthStep,
        answer: Answer<Done>,
    },
    Login {
        user: Name,
        answer: Answer<LoginAnswer>,
    },
    /// Answered once this node has executed what was completed before.
    CatchUp {
        answer: Answer<Done>,
    },
    BackupAuth {
        after: Option<AuthPlace>,
        answer: Answer<BackupAuth>,
    },
    OpenStream {
        stream: Arc<StreamShared>,
    },
    /// A stream has something to say, or room for responses.
    Stream {
        number: u64,
    },
}

impl Request {
    /// Whether it may add versions to keys.
    pub(super) fn writes(&self) -> bool {
        match self {
            Request::Put { .. } | Request::Delete { .. } | Request::Restore { .. } => true,
            Request::Txn { txn, .. } => !super::txn::is_read(txn),
            _ => false,
        }
    }

    /// Answers one that [`Request::writes`] with an error.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Request::Put { answer, .. } => answer.send(Err(error)),
            Request::Delete { answer, .. } => answer.send(Err(error)),
            Request::Txn { answer, .. } => answer.send(Err(error)),
            Request::Restore { answer, .. } => answer.send(Err(error)),
            _ => unreachable!("only what writes is refused so"),
        }
    }
}

/// A request, and who asks.
pub(crate) struct Asked {
    pub(super) who: Who,
    pub(super) request: Request,
}

/// Wakes a reactor that sleeps.
pub type Wake = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Door {
    queue: Mutex<VecDeque<Asked>>,
    signalled: AtomicBool,
    closed: AtomicBool,
    wake: Wake,
    next_stream: AtomicU64,
    identity: Identity,
    hears_quorum: AtomicBool,
    auth_enabled: AtomicBool,
    auth: Mutex<AuthView>,
    pub(crate) bells: Arc<Bells>,
}

/// Who answers. Constant while the process lives, but for the last two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    pub term: u64,
    /// This node has lately heard so many others that a quorum can be reached.
    pub hears_quorum: bool,
}

impl Door {
    pub(crate) fn new(identity: Identity, auth: AuthView, wake: Wake) -> Door {
        Door {
            queue: Mutex::default(),
            signalled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wake,
            next_stream: AtomicU64::new(1),
            identity,
            hears_quorum: AtomicBool::new(identity.hears_quorum),
            auth_enabled: AtomicBool::new(auth.enabled),
            auth: Mutex::new(auth),
            bells: Arc::default(),
        }
    }

    /// Takes up to `most` requests; whether more wait.
    pub(crate) fn take(&self, most: usize, into: &mut VecDeque<Asked>) -> bool {
        if !self.signalled.swap(false, Ordering::AcqRel) {
            return false;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = queue.len().min(most);
        into.extend(queue.drain(..taken));
        let more = !queue.is_empty();
        if more {
            self.signalled.store(true, Ordering::Release);
        }
        more
    }

    pub(crate) fn set_hears_quorum(&self, hears: bool) {
        self.hears_quorum.store(hears, Ordering::Relaxed);
    }

    /// Says how users and roles are now.
    pub(crate) fn set_auth(&self, auth: AuthView) {
        *self.auth.lock().unwrap_or_else(PoisonError::into_inner) = auth;
        self.auth_enabled.store(auth.enabled, Ordering::Release);
    }

    /// Fails if the queue is full or nobody empties it any more.
    pub(crate) fn send(&self, who: Who, request: Request) -> Result<(), Error> {
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::Stopped);
            }
            // Streams say each thing once, and are few: what they say is never dropped.
            let bounded = !matches!(request, Request::Stream { .. });
            if bounded && queue.len() >= QUEUE_MAX {
                return Err(Error::Busy("too many requests wait for this node".into()));
            }
            queue.push_back(Asked { who, request });
        }
        if !self.signalled.swap(true, Ordering::AcqRel) {
            (self.wake)();
        }
        Ok(())
    }

    /// Refuses what comes from now on, and answers what waits: the node has stopped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let waiting = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *queue)
        };
        drop(waiting);
        self.bells.close();
    }
}

/// A door to a node, for other threads. Every call returns at once; requests of one thread are taken
/// in in the order of the calls.
///
/// What is asked through it is nobody's, who may do nothing while authentication is on, unless it is
/// [on behalf of](Handle::on_behalf_of) somebody.
#[derive(Clone)]
pub struct Handle {
    door: Arc<Door>,
    who: Who,
}

impl Handle {
    pub(crate) fn new(door: Arc<Door>) -> Handle {
        Handle { door, who: Who::Nobody }
    }

    /// Who answers, for headers.
    pub fn identity(&self) -> Identity {
        let hears_quorum = self.door.hears_quorum.load(Ordering::Relaxed);
        Identity { hears_quorum, ..self.door.identity }
    }

    /// A handle for requests of a user.
    pub fn on_behalf_of(&self, caller: Caller) -> Handle {
        Handle { door: self.door.clone(), who: Who::User(Arc::new(caller)) }
    }

    /// Whether requests are of a user.
    pub fn is_of_user(&self) -> bool {
        matches!(self.who, Who::User(_))
    }

    /// A handle for what this node wants to know of itself: it may do everything.
    pub fn itself(&self) -> Handle {
        Handle { door: self.door.clone(), who: Who::Node }
    }

    /// Whether users need permissions, as far as this node knows.
    pub fn auth_enabled(&self) -> bool {
        self.door.auth_enabled.load(Ordering::Acquire)
    }

    /// What tokens are checked by, as far as this node knows.
    pub fn auth_view(&self) -> AuthView {
        *self.door.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait for this node's answers, in the thread that runs it: to be run beside
    /// them by an executor of one thread, once. Without it each is woken from the node's thread.
    pub fn ringer(&self) -> Ringer {
        Ringer::new(self.door.bells.clone())
    }

    fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Pending<T> {
        let (answer, asked) = pending(&self.door.bells);
        match self.door.send(self.who.clone(), request(answer)) {
            Ok(()) => asked,
            Err(error) => {
                let (answer, refused) = pending(&self.door.bells);
                answer.send(Err(error));
                refused
            }
        }
    }

    /// Reads keys: linearizable, with a revision that is at least that of every operation completed
    /// before, or, `serializable`, as this node knows them.
    pub fn range(&self, range: Range, serializable: bool) -> Pending<RangeAnswer> {
        self.ask(|answer| Request::Range { range, serializable, answer })
    }

    pub fn put(&self, put: Put) -> Pending<PutAnswer> {
        self.ask(|answer| Request::Put { put, answer })
    }

    pub fn delete(&self, delete: Delete) -> Pending<DeleteAnswer> {
        self.ask(|answer| Request::Delete { delete, answer })
    }

    /// One of nothing but ranges is a read, to which `serializable` applies.
    pub fn txn(&self, txn: Txn, serializable: bool) -> Pending<TxnAnswer> {
        self.ask(|answer| Request::Txn { txn, serializable, answer })
    }

    /// `physical`: answer when this node has dropped what the compaction frees.
    pub fn compact(&self, revision: i64, physical: bool) -> Pending<Done> {
        self.ask(|answer| Request::Compact { revision, physical, answer })
    }

    /// `id` 0: one is drawn. The time to live, in seconds, is raised to the shortest there is.
    pub fn lease_grant(&self, id: i64, ttl: i64) -> Pending<LeaseAnswer> {
        self.ask(|answer| Request::LeaseGrant { id, ttl, answer })
    }

    pub fn lease_revoke(&self, id: i64) -> Pending<Done> {
        self.ask(|answer| Request::LeaseRevoke { id, answer })
    }

    /// Begins the time to live anew. A `ttl` of 0: there is no such lease.
    pub fn lease_keep_alive(&self, id: i64) -> Pending<LeaseAnswer> {
        self.ask(|answer| Request::LeaseKeepAlive { id, answer })
    }

    /// What is left of a lease, and with `keys` what is attached to it.
    pub fn lease_time_to_live(&self, id: i64, keys: bool) -> Pending<TimeToLiveAnswer> {
        self.ask(|answer| Request::LeaseTimeToLive { id, keys, answer })
    }

    /// Raises or lowers an alarm of a member; raising one that stands, or lowering one that does
    /// not, changes nothing.
    pub fn alarm(&self, member: u64, kind: AlarmKind, raised: bool) -> Pending<Done> {
        self.ask(|answer| Request::Alarm { member, kind, raised, answer })
    }

    /// Alarms that stand, by member.
    pub fn alarms(&self) -> Pending<Vec<(u64, AlarmKind)>> {
        self.ask(|answer| Request::Alarms { answer })
    }

    pub fn leases(&self) -> Pending<LeasesAnswer> {
        self.ask(|answer| Request::Leases { answer })
    }

    /// Who the members are, in the newest configuration: as every operation completed before has left
    /// it, or, `serializable`, as this node knows it.
    pub fn members(&self, serializable: bool) -> Pending<MembersAnswer> {
        self.ask(|answer| Request::Members { serializable, answer })
    }

    /// Makes a node a member that runs at this address and looks on; f and k stay as they are. The
    /// answer waits a little for it to catch up, and for the change to take effect.
    pub fn member_add(&self, address: SocketAddr) -> Pending<MembersAnswer> {
        self.ask(|answer| Request::MemberAdd { address, answer })
    }

    /// Lets a member go; f and k stay as they are. Its node has to run on until it is released.
    pub fn member_remove(&self, id: u64) -> Pending<MembersAnswer> {
        self.ask(|answer| Request::MemberRemove { id, answer })
    }

    /// From now on a member is reached at another address; its node is to be started there.
    pub fn member_update(&self, id: u64, address: SocketAddr) -> Pending<MembersAnswer> {
        self.ask(|answer| Request::MemberUpdate { id, address, answer })
    }

    /// Says where clients reach this node, `HOST:PORT`, if it is one that joined or moved: the others tell
    /// it with the members.
    pub fn announce(&self, clients: &str) {
        // A node that has stopped has nobody to tell.
        let _ = self.door.send(Who::Node, Request::Announce { clients: clients.into() });
    }

    pub fn status(&self) -> Pending<StatusAnswer> {
        self.ask(|answer| Request::Status { answer })
    }

    /// `revision` 0: the newest.
    pub fn hash_kv(&self, revision: i64) -> Pending<HashAnswer> {
        self.ask(|answer| Request::HashKv { revision, answer })
    }

    /// Begins a backup: the revision to read the pages of, and what is not in pages.
    pub fn backup_begin(&self) -> Pending<BackupHead> {
        self.ask(|answer| Request::BackupBegin { answer })
    }

    /// The next versions of a backup. `Compacted` if a compaction above its revision came in between.
    pub fn backup_page(&self, revision: u64, after: BackupPlace) -> Pending<BackupPage> {
        self.ask(|answer| Request::BackupPage { revision, after, answer })
    }

    /// One step of filling a new cluster from a backup.
    pub fn restore(&self, step: RestoreStep) -> Pending<Done> {
        self.ask(|answer| Request::Restore { step, answer })
    }

    /// Some of the users and roles for a backup, from a place on.
    pub fn backup_auth(&self, after: Option<AuthPlace>) -> Pending<BackupAuth> {
        self.ask(|answer| Request::BackupAuth { after, answer })
    }

    /// Asks about users and roles.
    pub fn auth(&self, ask: AuthAsk) -> Pending<AuthAnswer> {
        self.ask(|answer| Request::Auth { ask, answer })
    }

    /// Changes users, roles, or whether they count.
    pub fn auth_step(&self, step: AuthStep) -> Pending<Done> {
        self.ask(|answer| Request::AuthStep { step, answer })
    }

    /// What is needed to let a user in: for whoever checks passwords.
    pub fn login(&self, user: Name) -> Pending<LoginAnswer> {
        self.ask(|answer| Request::Login { user, answer })
    }

    /// Waits until this node has executed what was completed before.
    pub fn catch_up(&self) -> Pending<Done> {
        self.ask(|answer| Request::CatchUp { answer })
    }

    /// A stream of watches; it ends when it is dropped.
    pub fn watches(&self) -> WatchStream {
        let number = self.door.next_stream.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(StreamShared::new(number, self.door.bells.clone()));
        let open = Request::OpenStream { stream: shared.clone() };
        if self.door.send(self.who.clone(), open).is_err() {
            shared.end();
        }
        WatchStream::new(shared, self.door.clone())
    }
}
