//! The encoding: compact, canonical, and strict about everything that comes off the network.

mod common;

use common::{Source, key, op, put, stamped, value_of};
use proptest::prelude::*;
use racos_machine::{
    Action, Author, BatchLimits, Content, KEY_BYTES_MAX, Op, OpId, Problem, SessionId,
    USER_BYTES_MAX, Value, decode_batch, encode_batch,
};

fn batch(ops: &[Op]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_batch(ops, &mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Vec<Op>, racos_machine::DecodeError> {
    decode_batch(bytes, &BatchLimits::default())
}

fn field(bytes: &[u8]) -> &'static str {
    decode(bytes).expect_err("refused").field
}

/// The encoding of one op without the batch around it.
fn single(op: &Op) -> Vec<u8> {
    let mut bytes = Vec::new();
    op.encode(&mut bytes);
    bytes
}

fn single_error(mut bytes: &[u8]) -> (&'static str, Problem) {
    let error = Op::decode(&mut bytes).expect_err("refused");
    (error.field, error.problem)
}

#[test]
fn a_small_put_takes_at_most_100_bytes_of_metadata() {
    let session = SessionId { slot: 1 << 30, position: 40 };
    let small = stamped(put(1 << 30, &"k".repeat(32)), session, 1 << 20, (1 << 20) - 63);
    assert!(single(&small).len() <= 100, "{} bytes", single(&small).len());
    assert!(single(&put(1, "k2345678")).len() <= 60, "{}", single(&put(1, "k2345678")).len());
}

#[test]
fn every_truncation_and_every_trailing_byte_is_refused() {
    let mut source = Source::default();
    for what in 0..=255 {
        let ops = [source.op(u64::from(what), 0, [what, what, 7, what.wrapping_mul(3)])];
        let bytes = batch(&ops);
        assert_eq!(decode(&bytes).as_deref(), Ok(&ops[..]));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{ops:?} cut to {len}");
        }
        let mut longer = bytes;
        longer.push(0);
        let error = decode(&longer).expect_err("refused");
        assert_eq!((error.field, error.problem), ("batch end", Problem::Trailing { bytes: 1 }));
    }
}

#[test]
fn unknown_versions_kinds_and_flags_are_named() {
    let mut bytes = batch(&[put(1, "a")]);
    bytes[0] = 2;
    assert_eq!(field(&bytes), "batch version");
    bytes[0] = 1;
    bytes[2] = 99;
    assert_eq!(field(&bytes), "kind");
    let noop = single(&op(1, Action::Noop));
    for bit in 1..6 {
        let mut flagged = noop.clone();
        flagged[1] = 1 << bit;
        let problem = Problem::Unknown { value: 1 << bit };
        assert_eq!(single_error(&flagged), ("flags", problem));
    }
    let mut both = single(&put(1, "a"));
    both[1] = 0b110;
    assert_eq!(single_error(&both).0, "flags");
}

#[test]
fn keys_have_one_to_8192_bytes() {
    let with_key = |len: usize| {
        let mut long = put(1, "");
        let Action::Put { key, .. } = &mut long.action else { unreachable!() };
        *key = vec![7; len].into();
        long
    };
    assert!(with_key(KEY_BYTES_MAX).check().is_ok());
    let ops = [with_key(KEY_BYTES_MAX)];
    assert_eq!(decode(&batch(&ops)).as_deref(), Ok(&ops[..]));
    for len in [0, KEY_BYTES_MAX + 1] {
        let error = with_key(len).check().expect_err("refused");
        let value = len as u64;
        assert_eq!(error.problem, Problem::OutOfRange { value, min: 1, max: 8192 });
        assert_eq!(error.field, "key");
    }
    let mut empty = single(&put(1, "a"));
    assert_eq!((empty[18], empty[19]), (1, b'a'));
    empty.splice(18..20, [0]);
    assert_eq!(single_error(&empty).0, "key");
    let mut long = single(&put(1, "a"));
    long.splice(18..19, [0x81, 0x40]); // 8193
    assert_eq!(
        single_error(&long),
        ("key", Problem::OutOfRange { value: 8193, min: 0, max: 8192 })
    );
}

#[test]
fn a_number_in_a_longer_form_than_needed_is_refused() {
    let mut padded = single(&put(1, "a"));
    padded.splice(18..19, [0x81, 0x00]);
    assert_eq!(single_error(&padded), ("key", Problem::NotMinimal));
    let mut huge = single(&op(1, Action::Compact { revision: 1 }));
    huge.splice(18..19, [0xFF; 9].into_iter().chain([0x02]));
    assert_eq!(single_error(&huge), ("revision", Problem::NotMinimal));
    huge[27] = 0x01;
    let largest = Op::decode(&mut &huge[..]).expect("the largest number").action;
    assert_eq!(largest, Action::Compact { revision: u64::MAX });
}

#[test]
fn counts_out_of_range_are_refused_before_anything_is_allocated() {
    let limits = BatchLimits { ops_max: 2, bytes_max: 200 };
    let noop = op(1, Action::Noop);
    let three = batch(&[noop.clone(), noop.clone(), noop.clone()]);
    assert_eq!(decode_batch(&three, &limits).expect_err("three").field, "op count");
    let two = batch(&[noop.clone(), noop]);
    assert_eq!(decode_batch(&two, &limits).expect("two").len(), 2);
    assert_eq!(decode_batch(&[1; 201], &limits).expect_err("long").field, "batch bytes");
    assert_eq!(field(&[1, 0]), "op count");
    assert_eq!(field(&[1, 0xFF, 0xFF, 0xFF, 0x7F]), "op count");
    let stripes = Content::Stripes([value_of(OpId(5))].into());
    let mut bytes = single(&op(1, Action::Put { key: key(b"a"), content: stripes }));
    assert_eq!(bytes[20], 1);
    bytes[20] = 2;
    assert_eq!(single_error(&bytes).0, "stripe count");
    bytes[20] = 0;
    assert_eq!(single_error(&bytes).0, "stripe count");
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let value = value_of(OpId(5));
    let bad = |value: Value| {
        let content = Content::Stripes([value].into());
        op(1, Action::Put { key: key(b"a"), content }).check().expect_err("refused").field
    };
    assert_eq!(bad(Value { k: 0, ..value }), "value code");
    assert_eq!(bad(Value { k: 6, ..value }), "value code");
    assert_eq!(bad(Value { len: 7, ..value }), "value head");
    let part = op(1, Action::Part { value });
    assert_eq!(part.check().expect_err("foreign part").field, "value op");
    let session = SessionId::default();
    let stamp = |sequence, low| stamped(op(1, Action::Noop), session, sequence, low).check();
    assert!(stamp(1, 1).is_ok() && stamp(9, 3).is_ok());
    for (sequence, low) in [(0, 0), (1, 0), (1, 2)] {
        assert_eq!(stamp(sequence, low).expect_err("low").field, "stamp low");
    }
    let open = op(1, Action::OpenSession { window: 64 });
    assert_eq!(stamped(open, session, 1, 1).check().expect_err("stamped").field, "stamp");
    for window in [0, 4097] {
        let open = op(1, Action::OpenSession { window });
        assert_eq!(open.check().expect_err("window").field, "window");
    }
    // A put's own value, but named: a second encoding of the same operation.
    let content = Content::Whole(value);
    let mut named = single(&op(1, Action::Put { key: key(b"a"), content }));
    named.copy_within(20..36, 2);
    assert_eq!(single_error(&named).0, "value op");
}

#[test]
fn errors_read_as_sentences() {
    let error = decode(&[1, 0]).expect_err("empty");
    assert_eq!(error.to_string(), "operation field \"op count\": 0 is not between 1 and 0");
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(any::<[u8; 4]>(), 1..40).prop_map(|choices| {
        let mut source = Source::default();
        (0..).zip(choices).map(|(slot, choice)| source.op(slot, 0, choice)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// tests PROTOCOL 3.1-d
    #[test]
    fn what_is_encoded_is_what_is_decoded(ops in ops()) {
        prop_assert_eq!(decode(&batch(&ops)), Ok(ops));
    }

    #[test]
    fn bytes_that_decode_are_what_the_result_encodes_to(
        ops in ops(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = batch(&ops);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(decoded) = decode(&bytes) {
            prop_assert_eq!(batch(&decoded), bytes);
        }
    }

    #[test]
    fn junk_never_panics_and_never_decodes_to_something_it_is_not(
        junk in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0u8..10,
    ) {
        let mut bytes = vec![1, 1, kind];
        bytes.extend(junk);
        if let Ok(decoded) = decode(&bytes) {
            prop_assert_eq!(batch(&decoded), bytes);
        }
    }
}

#[test]
fn an_author_survives_the_wire_and_has_a_name_of_bounded_length() {
    let by = |user: &[u8], auth_revision| Op {
        author: Some(Box::new(Author { user: user.into(), auth_revision })),
        ..stamped(put(1, "a"), SessionId { slot: 3, position: 1 }, 9, 7)
    };
    for op in [by(b"root", 1), by(&[0xff; USER_BYTES_MAX], u64::MAX), by(b"x", 0)] {
        assert_eq!(decode(&batch(std::slice::from_ref(&op))), Ok(vec![op]));
    }
    for user in [&[][..], &[b'x'; USER_BYTES_MAX + 1]] {
        assert_eq!(by(user, 1).check().expect_err("refused").field, "user");
    }
    let mut empty = single(&by(b"r", 1));
    assert_eq!((empty[18], empty[19]), (1, b'r'));
    empty.splice(18..20, [0]);
    assert_eq!(single_error(&empty).0, "user");
}
