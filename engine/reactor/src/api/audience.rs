//! Who watches a key: the spans of all watches, found by a key that has changed.
//!
//! A tree by where spans begin, in which each node knows how far the spans below it reach. So a change
//! finds its watches in the logarithm of the number of spans, however many others there are. It is
//! balanced by drawn weights (a treap): whoever names keys does not know them.
//!
//! Invariant: a span is in the tree once, with every watch that has it, and for as long as one has it.
//! What would break it: a watch that ends without being taken out.

use super::told::Name;
use racos_machine::Span;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Where a span ends, itself excluded; `None`: behind every key.
type End = Option<Rc<[u8]>>;
type Tree = Option<Box<Spot>>;

#[derive(Debug)]
struct Spot {
    from: Rc<[u8]>,
    to: End,
    /// The farthest end in this tree.
    reach: End,
    weight: u64,
    who: BTreeSet<Name>,
    left: Tree,
    right: Tree,
}

fn order_ends(one: &End, other: &End) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => one.cmp(other),
        (one, other) => one.is_none().cmp(&other.is_none()),
    }
}

fn is_behind(end: &End, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| **end > *key)
}

impl Spot {
    fn order(&self, from: &[u8], to: &End) -> Ordering {
        (*self.from).cmp(from).then_with(|| order_ends(&self.to, to))
    }

    fn measure(&mut self) {
        let below = [&self.left, &self.right].into_iter().flatten().map(|below| &below.reach);
        let farthest = below.chain([&self.to]).max_by(|one, other| order_ends(one, other));
        self.reach = farthest.expect("its own end is one").clone();
    }
}

/// All of the first are before all of the second.
fn join(first: Tree, second: Tree) -> Tree {
    let (mut one, mut other) = match (first, second) {
        (Some(one), Some(other)) => (one, other),
        (one, other) => return one.or(other),
    };
    if one.weight >= other.weight {
        one.right = join(one.right.take(), Some(other));
        one.measure();
        return Some(one);
    }
    other.left = join(Some(one), other.left.take());
    other.measure();
    Some(other)
}

/// The spans before (`from`, `to`), and the others.
fn split(tree: Tree, from: &[u8], to: &End) -> (Tree, Tree) {
    let Some(mut spot) = tree else { return (None, None) };
    if spot.order(from, to).is_lt() {
        let (before, after) = split(spot.right.take(), from, to);
        spot.right = before;
        spot.measure();
        return (Some(spot), after);
    }
    let (before, after) = split(spot.left.take(), from, to);
    spot.left = after;
    spot.measure();
    (before, Some(spot))
}

fn insert(tree: &mut Tree, new: Box<Spot>) {
    match tree {
        Some(spot) if spot.weight >= new.weight => {
            let side = spot.order(&new.from, &new.to);
            insert(if side.is_gt() { &mut spot.left } else { &mut spot.right }, new);
            spot.measure();
        }
        _ => {
            let mut new = new;
            (new.left, new.right) = split(tree.take(), &new.from, &new.to);
            new.measure();
            *tree = Some(new);
        }
    }
}

/// Takes a watch out, and its span with the last.
fn remove(tree: &mut Tree, from: &[u8], to: &End, who: &Name) {
    let spot = tree.as_mut().expect("the span of a watch is in the tree");
    match spot.order(from, to) {
        Ordering::Greater => remove(&mut spot.left, from, to, who),
        Ordering::Less => remove(&mut spot.right, from, to, who),
        Ordering::Equal => {
            assert!(spot.who.remove(who), "a watch is in the tree with its span");
            if spot.who.is_empty() {
                let (left, right) = (spot.left.take(), spot.right.take());
                *tree = join(left, right);
                return;
            }
        }
    }
    spot.measure();
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Audience {
    tree: Tree,
    drawn: u64,
}

fn ends_of(span: &Span) -> (Rc<[u8]>, End) {
    match span {
        Span::One(key) => (Rc::from(&**key), Some([&**key, &[0]].concat().into())),
        Span::Range { from, to } => (Rc::from(&**from), to.as_deref().map(Rc::from)),
    }
}

impl Audience {
    /// `seed` is not known to those who name keys.
    pub(super) fn new(seed: u64) -> Audience {
        Audience { tree: None, drawn: seed }
    }

    pub(super) fn add(&mut self, span: &Span, who: Name) {
        let (from, to) = ends_of(span);
        let mut tree = &mut self.tree;
        while let Some(spot) = tree {
            match spot.order(&from, &to) {
                Ordering::Greater => tree = &mut spot.left,
                Ordering::Less => tree = &mut spot.right,
                Ordering::Equal => {
                    spot.who.insert(who);
                    return;
                }
            }
        }
        self.drawn = self.drawn.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let weight = super::role::mixed(self.drawn);
        let (reach, who) = (to.clone(), BTreeSet::from([who]));
        let spot = Spot { from, to, reach, weight, who, left: None, right: None };
        insert(&mut self.tree, Box::new(spot));
    }

    /// # Panics
    /// If it was not added.
    pub(super) fn remove(&mut self, span: &Span, who: Name) {
        let (from, to) = ends_of(span);
        remove(&mut self.tree, &from, &to, &who);
    }

    /// Calls `visit` with every watch whose span holds the key; how many spans were looked at.
    pub(super) fn of(&self, key: &[u8], visit: &mut dyn FnMut(&Name)) -> u64 {
        let mut looked = 0;
        let mut trees: Vec<&Tree> = vec![&self.tree];
        while let Some(tree) = trees.pop() {
            let Some(spot) = tree else { continue };
            looked += 1;
            if !is_behind(&spot.reach, key) {
                continue;
            }
            trees.push(&spot.left);
            if *spot.from > *key {
                continue;
            }
            if is_behind(&spot.to, key) {
                spot.who.iter().for_each(&mut *visit);
            }
            trees.push(&spot.right);
        }
        looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(key: &[u8]) -> Span {
        Span::One(key.into())
    }

    fn found(audience: &Audience, key: &[u8]) -> Vec<Name> {
        let mut found = Vec::new();
        audience.of(key, &mut |who| found.push(*who));
        found.sort_unstable();
        found
    }

    fn span() -> impl Strategy<Value = Span> {
        let key = || prop::collection::vec(0u8..3, 0..4).prop_map(Vec::into_boxed_slice);
        prop_oneof![
            key().prop_map(Span::One),
            (key(), prop::option::of(key())).prop_map(|(from, to)| Span::Range { from, to }),
        ]
    }

    proptest! {
        #[test]
        fn it_finds_those_whose_span_holds_the_key(
            spans in prop::collection::vec((span(), any::<bool>()), 0..60),
        ) {
            let mut audience = Audience::new(7);
            for (at, (span, _)) in spans.iter().enumerate() {
                audience.add(span, (1, at as i64, 0));
            }
            for (at, (span, stays)) in spans.iter().enumerate() {
                if !stays {
                    audience.remove(span, (1, at as i64, 0));
                }
            }
            for key in [&b""[..], &[0], &[1], &[1, 2], &[2, 0, 1], &[2, 2, 2], &[0, 0, 0, 0]] {
                let holds = |(_, (span, stays)): &(usize, &(Span, bool))| *stays && span.contains(key);
                let expected = spans.iter().enumerate().filter(holds);
                let expected: Vec<Name> = expected.map(|(at, _)| (1, at as i64, 0)).collect();
                prop_assert_eq!(found(&audience, key), expected);
            }
        }
    }

    #[test]
    fn what_a_change_costs_does_not_grow_with_watches_of_other_keys() {
        let looked = |watches: u64| {
            let mut audience = Audience::new(7);
            for at in 0..watches {
                // Half of them in order, as clients that count make them.
                let key = if at % 2 == 0 { at } else { at.wrapping_mul(0x9E37_79B9_7F4A_7C15) };
                audience.add(&one(&key.to_be_bytes()), (at, 0, 0));
            }
            let keys = (0..watches).step_by((watches / 100) as usize);
            keys.map(|at| audience.of(&at.to_be_bytes(), &mut |_| {})).max().unwrap()
        };
        let (few, many) = (looked(1_000), looked(100_000));
        assert!(many <= 3 * few && many < 200, "{few} of 1,000, {many} of 100,000");
    }
}
