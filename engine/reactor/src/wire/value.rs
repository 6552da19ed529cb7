//! Descriptors of values, as they travel in reads.

use super::cursor::{Reader, WireError, Writer};
use crate::layout::VALUE_BYTES_MAX;
use racos_machine::{OpId, STRIPES_MAX, Value};

/// Encoded length of a descriptor.
pub const VALUE_BYTES: usize = 52;

pub fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.put_u128(value.op.0);
    out.put_u32(value.len);
    out.extend_from_slice(&value.digest);
    out.put_u32(value.crc);
    out.extend_from_slice(&value.head);
    out.put_u8(value.k);
    out.put_u8(value.n);
    out.put_u16(value.layout);
}

pub fn get_value(from: &mut Reader<'_>) -> Result<Value, WireError> {
    let value = Value {
        op: OpId(from.u128("value op")?),
        len: from.u32("value length")?,
        digest: from.take(16, "value digest")?.try_into().expect("16 bytes"),
        crc: from.u32("value crc")?,
        head: from.take(8, "value head")?.try_into().expect("8 bytes"),
        k: from.u8("value k")?,
        n: from.u8("value n")?,
        layout: from.u16("value layout")?,
    };
    if value.k == 0 || value.k > value.n || value.len as usize > VALUE_BYTES_MAX {
        return Err(WireError { field: "value" });
    }
    Ok(value)
}

/// A list of descriptors that fills the rest of the input.
pub fn get_values(bytes: &[u8]) -> Result<Vec<Value>, WireError> {
    if !bytes.len().is_multiple_of(VALUE_BYTES) || bytes.len() / VALUE_BYTES > STRIPES_MAX {
        return Err(WireError { field: "values" });
    }
    let mut from = Reader::new(bytes);
    let mut values = Vec::with_capacity(bytes.len() / VALUE_BYTES);
    while !from.is_empty() {
        values.push(get_value(&mut from)?);
    }
    Ok(values)
}
