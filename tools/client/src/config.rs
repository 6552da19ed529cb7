//! What a client is told when it is made.

use racos_engine::layout::VALUE_BYTES_MAX;
use racos_machine::SESSION_WINDOW_DEFAULT;
use std::net::SocketAddr;

const MS: u64 = 1_000_000;

/// Addresses, limits and patience of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Number of the cluster; nodes of another one drop what we send.
    pub cluster: u64,
    /// Nodes to talk to, at least one; numbered from 0 in this order.
    pub endpoints: Vec<SocketAddr>,
    /// Lanes that every node should have, for [`crate::Client::connect`] to check; it asks anyway.
    pub lanes: Option<u8>,
    /// A random number that tells this client from all others.
    pub client: u64,
    /// Writes of the session that may be outstanding, 1 to 4096.
    pub window: u32,
    /// An operation that is not answered for this long fails.
    pub patience_ns: u64,
    /// Bounds of how long to wait for a reply before asking again.
    pub resend_ns_min: u64,
    pub resend_ns_max: u64,
    /// A session idle for longer is replaced by a new one before the next write, since the cluster
    /// may have ended it.
    pub session_idle_ns_max: u64,
    /// Bytes of one stripe; larger values are stored as several.
    pub stripe_bytes: usize,
    /// Stripes of one value under way at once.
    pub stripes_in_flight_max: usize,
}

impl ClientConfig {
    /// The usual tuning.
    pub fn new(cluster: u64, endpoints: Vec<SocketAddr>, client: u64) -> ClientConfig {
        ClientConfig {
            cluster,
            endpoints,
            lanes: None,
            client,
            window: SESSION_WINDOW_DEFAULT,
            patience_ns: 10_000 * MS,
            resend_ns_min: 20 * MS,
            resend_ns_max: 1_000 * MS,
            session_idle_ns_max: 60_000 * MS,
            stripe_bytes: VALUE_BYTES_MAX,
            stripes_in_flight_max: 4,
        }
    }
}
