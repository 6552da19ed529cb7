//! Reading and writing little-endian fields.

use std::fmt;

/// A field that is missing, too long or out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireError {
    pub field: &'static str,
}

impl fmt::Display for WireError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "malformed message: field `{}` is truncated or out of range", self.field)
    }
}

impl std::error::Error for WireError {}

/// Takes fields off the front of a byte slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        if len > self.bytes.len() {
            return Err(WireError { field });
        }
        let (head, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        Ok(self.take(N, field)?.try_into().expect("take gives N bytes"))
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(field)?[0])
    }
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }
    pub fn u128(&mut self, field: &'static str) -> Result<u128, WireError> {
        Ok(u128::from_le_bytes(self.array(field)?))
    }

    /// Bytes preceded by their 16-bit length.
    pub fn short(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.u16(field)?;
        self.take(usize::from(len), field)
    }

    /// Bytes preceded by their 32-bit length.
    pub fn long(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.u32(field)?;
        self.take(len as usize, field)
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Refuses bytes that nobody asked for.
    pub fn end(self, field: &'static str) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError { field }) }
    }
}

/// Appends fields.
pub trait Writer {
    fn put_u8(&mut self, value: u8);
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_u128(&mut self, value: u128);
    /// Bytes preceded by their 16-bit length. Panics if there are more than 65,535.
    fn put_short(&mut self, bytes: &[u8]);
    /// Bytes preceded by their 32-bit length.
    fn put_long(&mut self, bytes: &[u8]);
}

impl Writer for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u128(&mut self, value: u128) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_short(&mut self, bytes: &[u8]) {
        self.put_u16(u16::try_from(bytes.len()).expect("short bytes fit 16 bits"));
        self.extend_from_slice(bytes);
    }
    fn put_long(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).expect("long bytes fit 32 bits"));
        self.extend_from_slice(bytes);
    }
}
