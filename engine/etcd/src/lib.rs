//! The etcd v3 API of a racos node.
//!
//! Purpose: translates etcd's gRPC and JSON into the words of [`racos_engine::api`], and the answers
//! back, with etcd's codes and texts.
//! Invariant: nothing is decided here but what a request alone decides (its shape, its size); keys,
//! revisions and leases are the state machine's. What is not served is refused and said so.
//! What would break it: state kept here between two requests other than a client's streams.
//!
//! | module | duty |
//! |---|---|
//! | `codec` | how messages become bytes |
//! | `server`, `body` | the port: connections, their limits, request bytes under way |
//! | `services`, `http`, `gateway` | which request goes where; pages; JSON |
//! | `kv`, `watch`, `lease`, `cluster`, `maintenance`, `auth`, `health` | a service each |
//! | `backup`, `save`, `restore` | the format of backups; made of a cluster, and filled into one |
//! | `queue`, `lock`, `election` | locks and elections, made of the other services |
//! | `token`, `password` | who asks, and how that is proved |
//! | `check`, `convert`, `errors` | requests judged, translated, refused in etcd's words |
#![forbid(unsafe_code)]

mod auth;
pub mod backup;
mod body;
mod check;
mod cluster;
pub mod codec;
mod convert;
mod election;
mod errors;
mod face;
mod gateway;
mod health;
mod http;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod metrics;
mod password;
pub mod pb;
mod queue;
mod restore;
mod save;
mod server;
mod services;
mod token;
mod watch;

pub use face::Settings;
pub use server::{Bound, Options, Server};
