//! A witness of what a node executes, for oracles that watch whole clusters.

use racos_machine::{Machine, Op, Outcome};
use racos_protocol::{Slot, Value};

/// Told of every slot in order, those found in the log at start-up included, but for those below a
/// checkpoint that the node loads.
pub trait Observer {
    /// An operation of the batch decided in `slot` was applied.
    fn applied(&mut self, slot: Slot, position: u32, op: &Op, outcome: &Outcome);
    /// The whole slot is executed; `machine` is the state after it.
    fn executed(&mut self, slot: Slot, value: Value, machine: &Machine);
    /// A checkpoint is in place, an own or a peer's: all slots below `exec` are executed, and
    /// `machine` is the state after them.
    fn loaded(&mut self, exec: Slot, machine: &Machine);
}
