//! What a node must not do, for tests that see whether somebody notices. In no other build.

use crate::node::Node;
use crate::wire::client::Reply;
use racos_net::Link;
use racos_protocol::{Slot, Value};
use racos_storage::device::Device;

impl<L: Link, D: Device> Node<L, D> {
    /// Against PROTOCOL 7-f: answers clients once their slot is decided, though lower ones are not.
    pub(crate) fn acknowledge_early(&mut self) {
        if !mutant!("acknowledged before the prefix is decided") {
            return;
        }
        let revision = self.machine.revision() + 1;
        let is_batch = |slot: &Slot| matches!(self.core.decided(*slot), Some(Value::Batch(_)));
        let mut slots: Vec<Slot> = self.open.keys().copied().filter(is_batch).collect();
        slots.sort_unstable();
        for slot in slots {
            let parcel = self.open.get_mut(&slot).expect("listed above");
            for waiter in std::mem::take(&mut parcel.waiters) {
                self.reply(&waiter, &Reply::Done { revision, changes: 1, value: None }, &[]);
            }
        }
    }

    /// Against PROTOCOL 9.3-e: goes on from a peer's state that no restart would find.
    pub(crate) fn install_early(&mut self) {
        if mutant!("state of a peer used before it is durable")
            && let Some(peers) = self.checkpoints.drop_peers()
        {
            self.install(*peers);
        }
    }
}
