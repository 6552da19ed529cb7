//! What a user may do with keys.
//!
//! Invariant: as in etcd, a range is permitted if the union of the user's permissions covers it, whichever
//! of the roles they come from, and one key if some permission holds it. A range that ends before it
//! begins holds no key, and is judged by the key that it begins with.

use super::{Auth, ROOT, User};
use crate::op::Key;
use crate::outcome::Refusal;
use crate::txn::Span;

/// What a permission is for, by etcd's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PermissionKind {
    Read = 0,
    Write = 1,
    ReadWrite = 2,
}

impl PermissionKind {
    fn includes(self, wanted: PermissionKind) -> bool {
        self == wanted || self == PermissionKind::ReadWrite
    }
}

/// Keys from `key` to `end`, in etcd's form: no end is one key, a zero byte is no end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permission {
    pub kind: PermissionKind,
    pub key: Key,
    pub end: Key,
}

impl Permission {
    /// Whether the range holds a key.
    pub(crate) fn is_possible(&self) -> bool {
        let Permission { key, end, .. } = self;
        !key.is_empty() && (end.is_empty() || **end == [0] || key < end)
    }
}

/// Where a range ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End<'a> {
    /// It is one key.
    One,
    At(&'a [u8]),
    Open,
}

impl<'a> End<'a> {
    fn of(end: &'a [u8]) -> End<'a> {
        match end {
            [] => End::One,
            [0] => End::Open,
            end => End::At(end),
        }
    }

    /// Whether a range from `key` to this end goes beyond a key at or behind `key`.
    fn is_beyond(self, key: &[u8], reached: &Reached<'_>) -> bool {
        match (self, reached) {
            (End::Open, _) => true,
            (End::At(end), Reached::Before(at)) => end > *at,
            (End::At(end), Reached::Behind(one)) => is_behind(end, one),
            (End::One, Reached::Before(at)) => key == *at,
            (End::One, Reached::Behind(one)) => key > *one,
        }
    }
}

/// Whether a key or end comes after the one right behind `one`, which is `one` and a zero byte.
fn is_behind(end: &[u8], one: &[u8]) -> bool {
    end > one && !(end.len() == one.len() + 1 && end.ends_with(&[0]) && end.starts_with(one))
}

/// How far a range is covered.
#[derive(Clone, Copy, Debug)]
enum Reached<'a> {
    /// Up to, but not including.
    Before(&'a [u8]),
    /// Up to and including one key.
    Behind(&'a [u8]),
}

impl Reached<'_> {
    /// Whether a permission that begins with `key` leaves no gap.
    fn meets(&self, key: &[u8]) -> bool {
        match self {
            Reached::Before(at) => key <= *at,
            Reached::Behind(one) => !is_behind(key, one),
        }
    }

    fn is_up_to(&self, end: &[u8]) -> bool {
        match self {
            Reached::Before(at) => *at >= end,
            Reached::Behind(one) => !is_behind(end, one),
        }
    }
}

/// What a request is allowed, in one state of users and roles.
#[derive(Clone, Copy, Debug)]
pub struct Permit<'a>(Option<(&'a Auth, &'a User)>);

impl<'a> Permit<'a> {
    /// Everything.
    pub const ALL: Permit<'static> = Permit(None);

    pub(crate) fn of(auth: &'a Auth, user: &'a User) -> Permit<'a> {
        if user.is_root() { Permit::ALL } else { Permit(Some((auth, user))) }
    }

    /// Whether everything is.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// What only root may do.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn administer(&self) -> Result<(), Refusal> {
        allowed(self.is_all())
    }

    /// # Errors
    /// `PermissionDenied`.
    pub fn read(&self, span: &Span) -> Result<(), Refusal> {
        allowed(self.holds(PermissionKind::Read, span))
    }

    /// # Errors
    /// `PermissionDenied`.
    pub fn write(&self, span: &Span) -> Result<(), Refusal> {
        allowed(self.holds(PermissionKind::Write, span))
    }

    /// # Errors
    /// `PermissionDenied`.
    pub fn read_key(&self, key: &[u8]) -> Result<(), Refusal> {
        allowed(self.holds_key(PermissionKind::Read, key))
    }

    /// # Errors
    /// `PermissionDenied`.
    pub fn write_key(&self, key: &[u8]) -> Result<(), Refusal> {
        allowed(self.holds_key(PermissionKind::Write, key))
    }

    pub(crate) fn write_range(&self, from: &[u8], to: Option<&[u8]>) -> Result<(), Refusal> {
        allowed(self.holds_range(PermissionKind::Write, from, to))
    }

    fn holds(&self, wanted: PermissionKind, span: &Span) -> bool {
        match span {
            Span::One(key) => self.holds_key(wanted, key),
            Span::Range { from, to } => self.holds_range(wanted, from, to.as_deref()),
        }
    }

    fn holds_key(&self, wanted: PermissionKind, key: &[u8]) -> bool {
        let Some((auth, user)) = self.0 else { return true };
        permissions(auth, user, wanted).any(|(from, end)| match end {
            End::One => from == key,
            End::At(end) => from <= key && key < end,
            End::Open => from <= key,
        })
    }

    fn holds_range(&self, wanted: PermissionKind, from: &[u8], to: Option<&[u8]>) -> bool {
        let Some((auth, user)) = self.0 else { return true };
        if to.is_some_and(|to| to <= from) {
            return self.holds_key(wanted, from);
        }
        let mut all: Vec<_> = permissions(auth, user, wanted).collect();
        all.sort_unstable_by_key(|(from, _)| *from);
        let mut reached = Reached::Before(from);
        for (key, end) in all {
            if !reached.meets(key) {
                return false;
            }
            if !end.is_beyond(key, &reached) {
                continue;
            }
            reached = match end {
                End::Open => return true,
                End::At(end) => Reached::Before(end),
                End::One => Reached::Behind(key),
            };
            if to.is_some_and(|to| reached.is_up_to(to)) {
                return true;
            }
        }
        false
    }
}

fn allowed(is_allowed: bool) -> Result<(), Refusal> {
    if is_allowed { Ok(()) } else { Err(Refusal::PermissionDenied) }
}

fn permissions<'a>(
    auth: &'a Auth,
    user: &'a User,
    wanted: PermissionKind,
) -> impl Iterator<Item = (&'a [u8], End<'a>)> {
    let roles = user.roles.iter().filter(|name| ***name != *ROOT);
    let permissions = roles.filter_map(|name| auth.roles.get(name)).flatten();
    let wanted = permissions.filter(move |(_, kind)| kind.includes(wanted));
    wanted.map(|((key, end), _)| (&**key, End::of(end)))
}

#[cfg(test)]
mod tests {
    use super::super::AuthStep;
    use super::*;

    fn key(text: &str) -> Key {
        text.as_bytes().into()
    }

    /// What a user with these permissions may do.
    fn with<T>(
        permissions: &[(PermissionKind, &str, &str)],
        then: impl FnOnce(Permit<'_>) -> T,
    ) -> T {
        let mut auth = Auth::default();
        let step = |auth: &mut Auth, step| auth.apply(&step).unwrap();
        step(&mut auth, AuthStep::UserAdd { name: key("u"), password: None });
        for (at, (kind, from, end)) in permissions.iter().enumerate() {
            // They come from several roles.
            let role = key(if at % 2 == 0 { "even" } else { "odd" });
            if auth.role(&role).is_none() {
                step(&mut auth, AuthStep::RoleAdd { name: role.clone() });
                step(&mut auth, AuthStep::GrantRole { user: key("u"), role: role.clone() });
            }
            let permission = Permission { kind: *kind, key: key(from), end: key(end) };
            step(&mut auth, AuthStep::GrantPermission { role, permission });
        }
        then(Permit::of(&auth, auth.user(b"u").unwrap()))
    }

    #[test]
    fn a_key_needs_one_permission_of_its_kind() {
        use PermissionKind::*;
        with(&[(Read, "a", "c"), (Write, "k", ""), (ReadWrite, "x", "\0")], |permit| {
            for (name, read, write) in [
                ("a", true, false),
                ("b\u{7f}", true, false),
                ("c", false, false),
                ("k", false, true),
                ("k\0", false, false),
                ("x", true, true),
                ("zz", true, true),
                ("`", false, false),
            ] {
                assert_eq!(permit.read_key(name.as_bytes()).is_ok(), read, "read {name}");
                assert_eq!(permit.write_key(name.as_bytes()).is_ok(), write, "write {name}");
            }
            assert_eq!(permit.administer(), Err(Refusal::PermissionDenied));
        });
    }

    #[test]
    fn a_range_needs_permissions_without_a_gap_between_them() {
        use PermissionKind::*;
        let permissions = [
            (Read, "a", "c"),
            (Read, "b", "f"),
            (Write, "f", "g"),
            (Read, "g", ""),
            (Read, "g\0", "i"),
        ];
        with(&permissions, |permit| {
            let may = |from: &str, to: Option<&str>| {
                permit.read(&Span::Range { from: key(from), to: to.map(key) }).is_ok()
            };
            assert!(may("a", Some("c")) && may("a", Some("f")) && may("b", Some("e")));
            assert!(!may("a", Some("f\0")) && !may("`", Some("b")) && !may("a", None));
            // A key, and what begins right behind it.
            assert!(may("g", Some("i")) && may("g", Some("g\0")) && may("g\0", Some("h")));
            assert!(!may("f", Some("g")) && !may("g", Some("i\0")));
            // One that holds no key.
            assert!(may("b", Some("a")) && !may("f", Some("a")));
        });
        with(&[(Read, "\0", "\0")], |permit| {
            assert!(permit.read(&Span::Range { from: key("\0"), to: None }).is_ok());
            assert!(permit.read(&Span::Range { from: key("q"), to: None }).is_ok());
            assert!(permit.write(&Span::Range { from: key("q"), to: None }).is_err());
        });
        with(&[], |permit| assert!(permit.read_key(b"a").is_err()));
    }

    /// Against the union of what each permission holds, over all short keys.
    #[test]
    fn ranges_are_covered_as_their_keys_are() {
        let keys: Vec<Vec<u8>> = (0..40u8)
            .map(|at| {
                let letters = [at / 13, (at / 4) % 3, at % 4];
                letters.iter().filter(|it| **it > 0).map(|it| it - 1).collect()
            })
            .collect();
        let ends: Vec<&Vec<u8>> = keys.iter().filter(|end| !end.is_empty()).collect();
        let mut draw = 12_345u64;
        let mut next = |below: usize| {
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (draw >> 33) as usize % below
        };
        for _ in 0..300 {
            let mut permissions = Vec::new();
            for _ in 0..next(5) {
                let key = ends[next(ends.len())];
                let end = [&[][..], &[0], ends[next(ends.len())]][next(3)];
                let permission =
                    Permission { kind: PermissionKind::Read, key: key[..].into(), end: end.into() };
                permissions.extend(permission.is_possible().then_some(permission));
            }
            let mut auth = Auth::default();
            auth.apply(&AuthStep::UserAdd { name: key("u"), password: None }).unwrap();
            auth.apply(&AuthStep::RoleAdd { name: key("r") }).unwrap();
            auth.apply(&AuthStep::GrantRole { user: key("u"), role: key("r") }).unwrap();
            for permission in &permissions {
                let permission = permission.clone();
                auth.apply(&AuthStep::GrantPermission { role: key("r"), permission }).unwrap();
            }
            let permit = Permit::of(&auth, auth.user(b"u").unwrap());
            for from in &ends {
                for to in ends.iter().filter(|to| *to > from) {
                    // Every key between them that could tell: those of the list, and right behind.
                    let inside = ends.iter().flat_map(|key| {
                        let behind = [&key[..], &[0]].concat();
                        let behind_again = [&key[..], &[0, 0]].concat();
                        [key.to_vec(), behind, behind_again]
                    });
                    let mut inside = inside.filter(|key| key >= from && key < to);
                    let expected = inside.all(|key| permit.read_key(&key).is_ok());
                    let span = Span::Range { from: from[..].into(), to: Some(to[..].into()) };
                    assert_eq!(permit.read(&span).is_ok(), expected, "{permissions:?} {span:?}");
                }
            }
        }
    }
}
