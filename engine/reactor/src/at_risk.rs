//! What a forced change of the members would put at risk (PROTOCOL 10-ja).
//!
//! Purpose: an operator may override one condition of a change, that no more fragments of a value are
//! gone than may be lost; before that, the versions concerned are listed, old ones and all. Which of them
//! can still be read depends on who holds what: a version has a fragment more than it needs at some nodes.
//! Invariant: one answer looks at [`LOOKED_AT_MAX`] versions at most, and says where to go on.

use crate::batch::Waiter;
use crate::node::Node;
use crate::serve::KEYS_BYTES_MAX;
use crate::wire::client::{ErrorCode, Reply, RequestError};
use crate::wire::node::put_keys;
use racos_machine::{Action, Revision};
use racos_net::Link;
use racos_storage::device::Device;

/// Versions that one answer looks at: well below a millisecond.
const LOOKED_AT_MAX: usize = 5000;

impl<L: Link, D: Device> Node<L, D> {
    /// From this node's state as it is: what it has not executed yet is not looked at.
    pub(crate) fn tell_at_risk(
        &mut self,
        waiter: &Waiter,
        change: &Action,
        after: (Vec<u8>, Revision),
    ) {
        let machine = &self.machine;
        let values = |layout| machine.values_of_layout(layout);
        let short = match machine.members().short_after(change, &values) {
            Ok(short) => short,
            Err(refusal) => {
                let error = RequestError { code: ErrorCode::BadRequest, text: refusal.to_string() };
                return self.reply(waiter, &Reply::Error(error), &[]);
            }
        };
        let (mut bytes, mut next) = (Vec::new(), None);
        if !short.is_empty() {
            let behind = machine.versions_after(&after.0, after.1);
            for (looked_at, (key, version)) in behind.enumerate() {
                if version.values().any(|value| short.contains(&value.layout)) {
                    put_keys(&mut bytes, key, version.modified().main, version.len());
                }
                if looked_at + 1 >= LOOKED_AT_MAX || bytes.len() > KEYS_BYTES_MAX {
                    next = Some((key.to_vec(), version.modified()));
                    break;
                }
            }
        }
        match self.pool.copy(&bytes) {
            Some(body) => self.reply(waiter, &Reply::AtRisk { next }, &[body]),
            None => {
                let text = "out of buffers: ask again".into();
                let error = RequestError { code: ErrorCode::Busy, text };
                self.reply(waiter, &Reply::Error(error), &[]);
            }
        }
    }
}
