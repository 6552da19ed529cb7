//! The role through which threads outside of the reactor use a node: reads, writes, watches and
//! leases with etcd's meaning, in types of this crate and without any wire format.
//!
//! | module | duty |
//! |---|---|
//! | `types` | requests and answers |
//! | `pending` | an answer that comes later: a future, or a blocking wait |
//! | `bells` | who waits is woken once a turn |
//! | `door` | the handle of other threads, and the queue behind it |
//! | `stream` | both ends of a stream of watches |
//! | `auth` | on whose behalf requests are; users and roles |
//! | `role` | what of it is the reactor's: state, and the share of the turn |
//! | `pin` | linearizable states |
//! | `read`, `write`, `txn` | requests on their way |
//! | `watch` | cursors, and responses when a stream takes one |
//! | `audience` | the watches of a key that changes |
//! | `told` | what several watches tell, built once |
//! | `lease` | renewals, times to live, and the end of leases |
//! | `compactor` | compactions by age or number of revisions |
//! | `members` | members listed, added and removed |
//! | `backup` | the state read for a backup, and written from one |
//! | `gather` | values, fetched once for all who ask |
//! | `convert` | to and from the machine's words |
mod audience;
mod auth;
mod backup;
mod bells;
mod compactor;
mod convert;
mod door;
mod gather;
mod lease;
mod members;
pub mod pending;
mod pin;
mod read;
mod role;
mod stream;
mod told;
mod txn;
pub mod types;
mod watch;
mod write;

pub use auth::{AuthAnswer, AuthAsk, AuthTold, AuthView, LoginAnswer};
pub use bells::Ringer;
pub use compactor::AutoCompaction;
pub use door::{Handle, Identity, Wake};
pub use pending::Pending;
pub use stream::WatchStream;
pub use types::Error;

pub(crate) use role::Api;
