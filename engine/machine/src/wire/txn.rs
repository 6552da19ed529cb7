//! The encoding of transactions.
//!
//! ```text
//! txn     = compare count, compare..., step count, step..., step count, step...  (varints)
//! compare = span, relation | target << 4 (1 byte), number (signed varint) or given
//! given   = len, digest (16), head (min(len, 8)), count, (op (16), order (1))...
//! step    = kind (1 byte), body: select = span, flags, order | by << 4, six signed varints
//!                                put    = key, flags, [lease], [stripe count], [value...]
//!                                delete = span, previous (1 byte)
//!                                txn
//! span    = kind (1 byte), key, [key]
//! ```
//! A value that the transaction stores itself is not named: the n-th of them is named by the number
//! n after the operation's.

use std::cmp::Ordering;

use super::{Reader, put_key, put_signed, put_value, put_varint};
use crate::op::{Content, OpId, STRIPES_MAX, Value, check_bounds};
use crate::txn::{
    Compare, Given, PutStep, Relation, Select, Side, SortBy, SortOrder, Span, Step, TXN_DEPTH_MAX,
    Txn, Written,
};
use crate::wire::{DecodeError, Problem};

/// The shortest step or compare.
const PART_BYTES_MIN: usize = 3;
const EVIDENCE_BYTES: usize = 17;

const ONE: u8 = 0;
const BOUNDED: u8 = 1;
const OPEN: u8 = 2;

const SELECT: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const TXN: u8 = 3;

const KEYS_ONLY: u8 = 1;
const COUNT_ONLY: u8 = 2;

/// How a put's value is given: the lowest two bits of its flags.
const WRITTEN: u8 = 3;
const OWN: u8 = 0;
const KEPT: u8 = 1;
const WHOLE: u8 = 2;
const STRIPES: u8 = 3;
const KEEP_LEASE: u8 = 4;
const PREVIOUS: u8 = 8;

pub(super) fn put_txn(out: &mut Vec<u8>, txn: &Txn) {
    put_varint(out, txn.compares.len() as u64);
    txn.compares.iter().for_each(|compare| put_compare(out, compare));
    for branch in [&txn.success, &txn.failure] {
        put_varint(out, branch.len() as u64);
        branch.iter().for_each(|step| put_step(out, step));
    }
}

fn put_span(out: &mut Vec<u8>, span: &Span) {
    match span {
        Span::One(key) => {
            out.push(ONE);
            put_key(out, key);
        }
        Span::Range { from, to } => {
            out.push(if to.is_some() { BOUNDED } else { OPEN });
            put_key(out, from);
            to.iter().for_each(|to| put_key(out, to));
        }
    }
}

fn put_compare(out: &mut Vec<u8>, compare: &Compare) {
    put_span(out, &compare.span);
    let (target, number) = match &compare.side {
        Side::Version(number) => (0, Some(number)),
        Side::Create(number) => (1, Some(number)),
        Side::Modified(number) => (2, Some(number)),
        Side::Lease(number) => (3, Some(number)),
        Side::Value(_) => (4, None),
    };
    out.push(compare.relation as u8 | target << 4);
    number.iter().for_each(|number| put_signed(out, **number));
    if let Side::Value(given) = &compare.side {
        put_varint(out, given.len);
        out.extend_from_slice(&given.digest);
        out.extend_from_slice(&given.head[..8.min(given.len as usize)]);
        put_varint(out, given.evidence.len() as u64);
        for (op, order) in &given.evidence {
            out.extend_from_slice(&op.0.to_le_bytes());
            out.push((*order as i8 + 1) as u8);
        }
    }
}

fn put_step(out: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Select(select) => {
            out.push(SELECT);
            put_select(out, select);
        }
        Step::Put(put) => {
            out.push(PUT);
            put_put(out, put);
        }
        Step::Delete { span, previous } => {
            out.push(DELETE);
            put_span(out, span);
            out.push(u8::from(*previous));
        }
        Step::Txn(inner) => {
            out.push(TXN);
            put_txn(out, inner);
        }
    }
}

fn put_select(out: &mut Vec<u8>, select: &Select) {
    put_span(out, &select.span);
    let keys_only = if select.keys_only { KEYS_ONLY } else { 0 };
    let count_only = if select.count_only { COUNT_ONLY } else { 0 };
    out.push(keys_only | count_only);
    out.push(select.order as u8 | (select.by as u8) << 4);
    let Select { limit, revision, modified_min, modified_max, create_min, create_max, .. } =
        *select;
    for number in [limit, revision, modified_min, modified_max, create_min, create_max] {
        put_signed(out, number);
    }
}

fn put_put(out: &mut Vec<u8>, put: &PutStep) {
    put_key(out, &put.key);
    let written = match &put.written {
        Written::Own(_) => OWN,
        Written::Kept => KEPT,
        Written::Stored(Content::Whole(_)) => WHOLE,
        Written::Stored(Content::Stripes(_)) => STRIPES,
    };
    let keep_lease = if put.lease.is_none() { KEEP_LEASE } else { 0 };
    let previous = if put.previous { PREVIOUS } else { 0 };
    out.push(written | keep_lease | previous);
    put.lease.iter().for_each(|lease| put_signed(out, *lease));
    match &put.written {
        Written::Own(value) => put_value(out, value, false),
        Written::Kept => {}
        Written::Stored(content) => {
            if let Content::Stripes(stripes) = content {
                put_varint(out, stripes.len() as u64);
            }
            content.values().iter().for_each(|value| put_value(out, value, true));
        }
    }
}

fn unknown(field: &'static str, value: u8) -> DecodeError {
    DecodeError::new(field, Problem::Unknown { value: value.into() })
}

impl Reader<'_> {
    pub(super) fn txn(&mut self, id: OpId) -> Result<Txn, DecodeError> {
        let mut last_own = id;
        self.nested_txn(&mut last_own, 1)
    }

    fn nested_txn(&mut self, last_own: &mut OpId, depth: usize) -> Result<Txn, DecodeError> {
        check_bounds("transaction depth", depth, 1, TXN_DEPTH_MAX)?;
        let compares = self.parts("compare count")?;
        let compares = (0..compares).map(|_| self.compare()).collect::<Result<_, _>>()?;
        let mut branch = || {
            let steps = self.parts("step count")?;
            (0..steps).map(|_| self.step(last_own, depth)).collect::<Result<_, _>>()
        };
        Ok(Txn { compares, success: branch()?, failure: branch()? })
    }

    /// A count, 0 included, of parts that the bytes left have room for.
    fn parts(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.varint(field)?).unwrap_or(usize::MAX);
        check_bounds(field, count, 0, self.rest.len() / PART_BYTES_MIN)?;
        Ok(count)
    }

    fn span(&mut self) -> Result<Span, DecodeError> {
        Ok(match self.byte("span")? {
            ONE => Span::One(self.key("key")?),
            BOUNDED => {
                Span::Range { from: self.key("range start")?, to: Some(self.key("range end")?) }
            }
            OPEN => Span::Range { from: self.key("range start")?, to: None },
            other => return Err(unknown("span", other)),
        })
    }

    fn compare(&mut self) -> Result<Compare, DecodeError> {
        let span = self.span()?;
        let what = self.byte("compare")?;
        let relation = match what & 15 {
            0 => Relation::Equal,
            1 => Relation::NotEqual,
            2 => Relation::Greater,
            3 => Relation::Less,
            _ => return Err(unknown("compare relation", what)),
        };
        let side = match what >> 4 {
            0 => Side::Version(self.signed("version")?),
            1 => Side::Create(self.signed("create")?),
            2 => Side::Modified(self.signed("modified")?),
            3 => Side::Lease(self.signed("lease")?),
            4 => Side::Value(self.given()?),
            _ => return Err(unknown("compare target", what)),
        };
        Ok(Compare { span, relation, side })
    }

    fn given(&mut self) -> Result<Given, DecodeError> {
        let len = self.varint("compared length")?;
        let digest = self.array("compared digest")?;
        let mut head = [0; 8];
        let used = head.len().min(len as usize);
        head[..used].copy_from_slice(self.take("compared head", used)?);
        let count = usize::try_from(self.varint("evidence count")?).unwrap_or(usize::MAX);
        check_bounds("evidence count", count, 0, self.rest.len() / EVIDENCE_BYTES)?;
        let mut evidence = Vec::with_capacity(count);
        for _ in 0..count {
            let op = self.op_id("evidence op")?;
            let order = match self.byte("evidence order")? {
                0 => Ordering::Less,
                1 => Ordering::Equal,
                2 => Ordering::Greater,
                other => return Err(unknown("evidence order", other)),
            };
            evidence.push((op, order));
        }
        Ok(Given { len, digest, head, evidence })
    }

    fn step(&mut self, last_own: &mut OpId, depth: usize) -> Result<Step, DecodeError> {
        Ok(match self.byte("step")? {
            SELECT => Step::Select(self.select()?),
            PUT => Step::Put(self.put_step(last_own)?),
            DELETE => {
                let span = self.span()?;
                let previous = match self.byte("previous")? {
                    0 => false,
                    1 => true,
                    other => return Err(unknown("previous", other)),
                };
                Step::Delete { span, previous }
            }
            TXN => Step::Txn(self.nested_txn(last_own, depth + 1)?),
            other => return Err(unknown("step", other)),
        })
    }

    fn select(&mut self) -> Result<Select, DecodeError> {
        let span = self.span()?;
        let flags = self.byte("select flags")?;
        if flags & !(KEYS_ONLY | COUNT_ONLY) != 0 {
            return Err(unknown("select flags", flags));
        }
        let what = self.byte("sort")?;
        let order = match what & 15 {
            0 => SortOrder::None,
            1 => SortOrder::Ascending,
            2 => SortOrder::Descending,
            _ => return Err(unknown("sort order", what)),
        };
        let by = match what >> 4 {
            0 => SortBy::Key,
            1 => SortBy::Version,
            2 => SortBy::Create,
            3 => SortBy::Modified,
            4 => SortBy::Value,
            _ => return Err(unknown("sort target", what)),
        };
        Ok(Select {
            span,
            keys_only: flags & KEYS_ONLY != 0,
            count_only: flags & COUNT_ONLY != 0,
            order,
            by,
            limit: self.signed("limit")?,
            revision: self.signed("revision")?,
            modified_min: self.signed("least modification")?,
            modified_max: self.signed("last modification")?,
            create_min: self.signed("least creation")?,
            create_max: self.signed("last creation")?,
        })
    }

    fn put_step(&mut self, last_own: &mut OpId) -> Result<PutStep, DecodeError> {
        let key = self.key("key")?;
        let flags = self.byte("put flags")?;
        if flags & !(WRITTEN | KEEP_LEASE | PREVIOUS) != 0 {
            return Err(unknown("put flags", flags));
        }
        let keep_lease = flags & KEEP_LEASE != 0;
        let lease = if keep_lease { None } else { Some(self.signed("lease")?) };
        let written = match flags & WRITTEN {
            OWN => {
                last_own.0 = last_own.0.wrapping_add(1);
                Written::Own(self.value(*last_own)?)
            }
            KEPT => Written::Kept,
            WHOLE => Written::Stored(Content::Whole(self.named_value()?)),
            _ => Written::Stored(Content::Stripes(self.stripes()?)),
        };
        Ok(PutStep { key, written, lease, previous: flags & PREVIOUS != 0 })
    }

    pub(super) fn stripes(&mut self) -> Result<Box<[Value]>, DecodeError> {
        let room = (self.rest.len() / super::STRIPE_BYTES_MIN).min(STRIPES_MAX);
        let count = self.count("stripe count", room)?;
        (0..count).map(|_| self.named_value()).collect()
    }
}
