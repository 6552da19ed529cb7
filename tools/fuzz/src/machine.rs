//! Encoded batches of operations.
//!
//! Rule: what can be decoded is encoded again to something that decodes to the same operations.

use racos_machine::{
    Action, AuthStep, BatchLimits, Op, OpId, Permission, PermissionKind, Value, decode_batch,
    encode_batch,
};

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let id = |counter| OpId::new(2, 1, 1, counter);
    let key = b"key".to_vec().into();
    let value =
        Value { op: id(1), len: 30, digest: [5; 16], crc: 7, head: [1; 8], k: 3, n: 5, layout: 0 };
    let (role, kind) = (b"role"[..].into(), PermissionKind::Read);
    let permission = Permission { kind, key: b"a"[..].into(), end: b"b"[..].into() };
    let permit = Action::Auth(Box::new(AuthStep::GrantPermission { role, permission }));
    let actions = [Action::Delete { key }, Action::Part { value }, Action::Noop, permit];
    let op = |action: &Action| Op { id: id(1), author: None, stamp: None, action: action.clone() };
    let ops: Vec<Op> = actions.iter().map(op).collect();
    let batches = ops.iter().map(std::slice::from_ref).chain([&ops[..]]);
    batches
        .map(|ops| {
            let mut bytes = Vec::new();
            encode_batch(ops, &mut bytes);
            bytes
        })
        .collect()
}

pub(crate) fn check(input: &[u8]) {
    let Ok(ops) = decode_batch(input, &BatchLimits::default()) else { return };
    let mut again = Vec::new();
    encode_batch(&ops, &mut again);
    let decoded = decode_batch(&again, &BatchLimits::default());
    assert_eq!(decoded.as_ref(), Ok(&ops), "a batch survives being encoded again");
}
