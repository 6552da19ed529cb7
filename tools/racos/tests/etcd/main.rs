//! The etcd v3 API from outside: racos beside a real etcd, answer by answer.
//!
//! Where no etcd is installed the comparisons say so and are skipped; `.ci/run` installs one.

mod auth;
mod cases;
mod client;
mod clients;
mod crashes;
mod differential;
mod etcdctl;
mod grpc;
mod http;
mod members;
mod program;
mod salvage;
mod servers;
mod snapshot;
mod storage_patterns;
mod watch;
