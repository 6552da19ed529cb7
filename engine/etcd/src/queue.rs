//! Waiting in line for a lease's turn: what locks and elections have in common.
//!
//! The line is the keys under `NAME/`, one for each lease, in the order of their creation; whoever
//! is first has it. These are the keys and transactions of etcd's own clients, so racos' locks and
//! those that clients build themselves keep each other out.
//!
//! Invariant: a place is held by a key attached to a lease, so it goes with the lease, however this
//! node or the client ends; who gives up waiting gives back the place.

use crate::errors::status_of;
use crate::face::answer;
use bytes::Bytes;
use racos_engine::api::Handle;
use racos_engine::api::types::{
    Compare, Delete, Error, KeyValue, Keys, Put, Range, Relation, SortBy, SortOrder, Target, Txn,
    TxnAnswer, TxnOp, TxnOpAnswer, WatchCreate, WatchNews,
};
use tonic::Status;

/// Seconds of a lease that is granted where none was given, as in etcd's clients.
const SESSION_TTL: i64 = 60;

/// A place in the line of a name.
pub struct Place {
    pub prefix: Bytes,
    pub key: Bytes,
    pub lease: i64,
    /// Revision at which the key was created.
    pub created: i64,
    /// Revision of the newest thing known.
    pub revision: i64,
}

/// The keys of a name's line.
pub fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// Keys that begin like this. The prefix ends with `/`, so the next byte up is the end.
pub fn line_of(prefix: &[u8]) -> Keys {
    let mut end = prefix.to_vec();
    *end.last_mut().expect("a prefix ends with a slash") += 1;
    Keys::Span { from: Bytes::copy_from_slice(prefix), to: Some(end.into()) }
}

/// The first of a line.
pub fn first_of(prefix: &[u8]) -> Range {
    let (sort_by, sort_order) = (SortBy::Create, SortOrder::Ascending);
    Range { limit: 1, sort_by, sort_order, ..Range::new(line_of(prefix)) }
}

/// The compare "this key was created then"; 0: it is not there.
pub fn created_at(key: Bytes, revision: i64) -> Compare {
    let (keys, relation) = (Keys::One(key), Relation::Equal);
    Compare { keys, relation, target: Target::Create(revision) }
}

pub fn put_of(key: Bytes, value: Bytes, lease: i64) -> Put {
    Put { key, value, lease, prev_kv: false, ignore_value: false, ignore_lease: false }
}

/// The lease to hold a place with: the one given, renewed, or a new one.
pub async fn session(node: &Handle, lease: i64) -> Result<i64, Status> {
    if lease == 0 {
        return Ok(answer(node.lease_grant(0, SESSION_TTL)).await?.id);
    }
    let renewed = answer(node.lease_keep_alive(lease)).await?;
    match renewed.ttl > 0 {
        true => Ok(lease),
        false => Err(status_of(Error::LeaseNotFound)),
    }
}

/// Enters the line of `name`, or finds the place that the lease has there already; with it the
/// key-value that was there.
pub async fn enter(
    node: &Handle,
    name: &[u8],
    lease: i64,
    value: Bytes,
) -> Result<(Place, Option<KeyValue>), Status> {
    let prefix = prefix_of(name);
    let key: Bytes = [&prefix[..], format!("{lease:x}").as_bytes()].concat().into();
    let txn = Txn {
        compares: vec![created_at(key.clone(), 0)],
        success: vec![TxnOp::Put(put_of(key.clone(), value, lease))],
        failure: vec![TxnOp::Range(Range::new(Keys::One(key.clone())))],
    };
    let done = answer(node.txn(txn, false)).await?;
    let revision = done.revision;
    let before = found_in(done);
    let created = before.as_ref().map_or(revision, |kv| kv.create);
    Ok((Place { prefix, key, lease, created, revision }, before))
}

/// The key-value that the only operation of a transaction read, if it was a read that found one.
pub fn found_in(mut done: TxnAnswer) -> Option<KeyValue> {
    match done.answers.pop() {
        Some(TxnOpAnswer::Range(mut range)) => range.kvs.pop(),
        _ => None,
    }
}

impl Place {
    /// Waits until nobody is before this place. If the wait fails, or is given up by dropping it,
    /// the place is given back.
    pub async fn come_first(&mut self, node: &Handle) -> Result<(), Status> {
        let leave = Leave { node, key: Some(self.key.clone()) };
        while let Some(before) = self.last_before(node).await? {
            wait_for_end(node, before, self.revision).await?;
        }
        leave.stay();
        Ok(())
    }

    /// The last key of the line that is older than this place.
    async fn last_before(&mut self, node: &Handle) -> Result<Option<Bytes>, Status> {
        let (sort_by, sort_order) = (SortBy::Create, SortOrder::Descending);
        let create_max = self.created - 1;
        let line = line_of(&self.prefix);
        let asked = Range { limit: 1, sort_by, sort_order, create_max, ..Range::new(line) };
        let mut found = answer(node.range(asked, false)).await?;
        self.revision = found.revision;
        Ok(found.kvs.pop().map(|kv| kv.key))
    }

    /// Whether the key of this place is still there: the lease may have ended meanwhile.
    pub async fn is_held(&mut self, node: &Handle) -> Result<bool, Status> {
        let asked = Range::new(Keys::One(self.key.clone()));
        let found = answer(node.range(asked, false)).await?;
        self.revision = found.revision;
        Ok(found.kvs.first().is_some_and(|kv| kv.create == self.created))
    }
}

/// Deletes a place when it is dropped.
struct Leave<'a> {
    node: &'a Handle,
    key: Option<Bytes>,
}

impl Leave<'_> {
    fn stay(mut self) {
        self.key = None;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            // The request goes on without anybody waiting for its answer.
            drop(self.node.delete(Delete { keys: Keys::One(key), prev_kv: false }));
        }
    }
}

/// Waits until a key that was there at a revision is deleted.
async fn wait_for_end(node: &Handle, key: Bytes, revision: i64) -> Result<(), Status> {
    let mut watches = node.watches();
    let create = WatchCreate {
        id: 0,
        keys: Keys::One(key),
        start_revision: revision,
        no_put: true,
        no_delete: false,
        prev_kv: false,
        progress_notify: false,
    };
    watches.create(create).map_err(status_of)?;
    while let Some(news) = std::future::poll_fn(|context| watches.poll_next(context)).await {
        match news.what {
            WatchNews::Events(_) => return Ok(()),
            // Whoever was before may be gone: the line is looked at again.
            WatchNews::Compacted { .. } => return Ok(()),
            WatchNews::Failed(error) => return Err(status_of(error)),
            _ => {}
        }
    }
    Err(status_of(Error::Stopped))
}
