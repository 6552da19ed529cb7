//! RECODE: what one operation stored is stored again by another, in the newest layout (PROTOCOL 10).
//!
//! Purpose: lets every version that uses the old operation use the new one, and says what is left.
//! Invariant: no revision, version, lease or event changes, and no bytes: only where they lie. What
//! would break it: taking a proposer's word for what the table says at its execution.

use crate::machine::Machine;
use crate::op::{OpId, Value};
use crate::outcome::Refusal;
use crate::values::{Extent, ValueUse};

impl Machine {
    /// RECODE, executed in `slot`.
    ///
    /// # Errors
    /// PROTOCOL 10-ab: why it is void: no version uses the old operation any more (a part that waits
    /// goes by its name until its put comes), the new one did not store the same bytes, or not for the
    /// members of this slot. Nothing has changed then.
    pub(crate) fn recode(&mut self, slot: u64, old: OpId, value: &Value) -> Result<(), Refusal> {
        let handle = self.values.find(old).ok_or(Refusal::ValueMissing)?;
        let used = self.values.describe(handle);
        if used.uses == 0 && !mutant!("a part that waits is re-coded") {
            return Err(Refusal::ValueMissing);
        }
        let is_other = !has_same_bytes(&used.value, value) && !mutant!("other bytes re-coded");
        if is_other || self.values.find(value.op).is_some() {
            return Err(Refusal::ValueConflict);
        }
        if !mutant!("re-coded for other members") {
            self.check_layout(value, slot)?;
        }
        self.values.recode(handle, value, slot);
        // PROTOCOL 10-ac: nothing else.
        if mutant!("RECODE as a write") {
            self.revision += 1;
        }
        Ok(())
    }

    /// Values in use, and waiting parts, whose layout is not that of the newest members.
    pub fn older_values(&self) -> Extent {
        let newest = self.members.newest();
        newest.map_or(Extent::default(), |newest| self.values.not_of(newest.number))
    }

    /// The values that versions use and whose layout is not that of the newest members, in the places
    /// from `from` on of this node's memory, looking at `most` places: as [`Machine::values_from`].
    pub fn older_values_from(&self, from: u32, most: usize) -> impl Iterator<Item = ValueUse> + '_ {
        let newest = self.members.newest();
        let numbers = newest.map(|newest| newest.number).into_iter();
        numbers.flat_map(move |number| self.values.some_not_of(number, from, most))
    }
}

/// Whether all that is said of the bytes of two values is the same.
fn has_same_bytes(one: &Value, other: &Value) -> bool {
    let said = |value: &Value| (value.len, value.digest, value.crc, value.head);
    said(one) == said(other)
}
