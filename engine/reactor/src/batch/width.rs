//! Into how many data fragments values are cut (PROTOCOL 9.6-a).
//!
//! Invariant: as many as the members have, or fewer where the margin is kept; whatever was described can be
//! encoded until other members are set. What would break it: a body that no log takes, since its batch would
//! never be stored by anybody.

use super::Builder;
use crate::layout;
use racos_codec::Codec;

impl Builder {
    /// Values may be cut into fewer data fragments than the members have, as long as no node gets more than
    /// so many bytes of a batch of large ones.
    pub fn keep_margin(&mut self, body_bytes_max: usize) {
        (self.keeps_margin, self.body_bytes_max) = (true, body_bytes_max);
    }

    /// PROTOCOL 9.6-a: data fragments of what is described from now on, at most as many as the members have.
    pub fn set_width(&mut self, width: usize) {
        self.width = width.clamp(1, self.codecs[0].k());
        for k in self.width.max(2)..self.codecs[0].k() {
            if self.codecs.iter().all(|codec| codec.k() != k)
                && let Ok(codec) = Codec::new(k, self.n - k)
            {
                self.codecs.push(codec);
            }
        }
    }

    /// Data fragments of what is described now.
    pub fn width(&self) -> usize {
        self.width
    }

    /// As few as they are to be, but no node gets more of a value than its log takes at once.
    pub(super) fn width_of(&self, len: usize) -> usize {
        let fits = |k: &usize| layout::fragment_len(len, *k) <= self.body_bytes_max;
        (self.width..self.codecs[0].k()).find(fits).unwrap_or(self.codecs[0].k())
    }
}

/// The code of so many data fragments.
pub(super) fn code(codecs: &[Codec], k: usize) -> &Codec {
    let found = codecs.iter().find(|codec| codec.k() == k);
    found.expect("values are described with the codes of their layout")
}

#[cfg(test)]
mod tests {
    use super::super::{LARGE_BATCH_BYTES, Payload, Waiter};
    use super::*;
    use crate::secrets::Secrets;
    use racos_buffer::Pool;
    use racos_machine::{Action, Op, OpId, Value};

    fn builder(pool: &Pool) -> Builder {
        let codec = Codec::new(3, 2).unwrap();
        Builder::new(5, codec, 128, LARGE_BATCH_BYTES, Secrets::new(7), pool.clone())
    }

    fn described(builder: &Builder, len: usize) -> Value {
        builder.describe(OpId::new(0, 1, 1, len as u64), &vec![1; len])
    }

    /// tests PROTOCOL 9.6-a, 3.1-i
    #[test]
    fn a_value_is_cut_as_is_said_and_as_its_length_allows() {
        let mut builder = builder(&Pool::new(16 << 20));
        let widths = |builder: &Builder| {
            [100, 1300, 99_000, 150_000, 210_000].map(|len| described(builder, len).k)
        };
        assert_eq!((widths(&builder), builder.k()), ([1, 3, 3, 3, 3], 3));
        builder.keep_margin(100_000);
        builder.set_width(1);
        assert_eq!((widths(&builder), builder.k()), ([1, 1, 1, 2, 3], 1));
        builder.set_width(2);
        assert_eq!(widths(&builder), [1, 2, 2, 2, 3]);
        builder.set_width(9);
        assert_eq!((widths(&builder), builder.width()), ([1, 3, 3, 3, 3], 3));
        builder.set_width(0);
        assert_eq!(builder.width(), 1);
    }

    /// No node gets more of a batch than its log takes at once.
    #[test]
    fn a_batch_of_large_values_ends_where_a_body_would_be_too_long() {
        const MOST: usize = 100_000;
        let pool = Pool::new(64 << 20);
        let mut builder = builder(&pool);
        builder.keep_margin(MOST);
        builder.set_width(1);
        let mut parcels = Vec::new();
        for number in 0..6 {
            let id = OpId::new(0, 1, 1, number);
            // What was described before another is missing is cut as it was described.
            let bytes = pool.copy(&vec![number as u8; 60_000]).unwrap();
            let value = builder.describe(id, &bytes);
            builder.set_width(1 + number as usize % 2);
            let op = Op { id, author: None, stamp: None, action: Action::Part { value } };
            let added = builder.add(op, Payload::Value(bytes), Waiter::Recode(1));
            parcels.extend(added.expect("there are buffers"));
        }
        parcels.extend(builder.seal());
        let len = |body: &super::super::Body| body.slices.iter().map(|it| it.len()).sum::<usize>();
        let bodies = parcels.iter().flat_map(|parcel| &parcel.bodies);
        assert!(bodies.clone().all(|body| len(body) <= MOST));
        assert!(parcels.len() > 1 && parcels.len() < 6, "{} batches", parcels.len());
    }
}
