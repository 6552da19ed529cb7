//! The bound of every code: contenders that load and store what a code has to, and compute nothing.
//!
//! Invariant: each reads every source and writes every output of the code that is measured, in the
//! same memory and by turns with the others; that it did is checked.

use std::hint::black_box;

use super::{Case, Contender, Rival, Stripe, Work};
use crate::arch::{Streams, Way};

/// The name of the bound, and what the names of all its contenders begin with.
pub const ROOFLINE: &str = "loads-and-stores";

/// Walks memory in one way.
struct Walker {
    name: String,
    way: Way,
}

/// A walker for each way the case can be gone.
pub(super) fn all(case: Case) -> Vec<Box<dyn Contender>> {
    let (sources, mut outputs) = (vec![&[][..]; case.k], vec![]);
    outputs.resize_with(case.m, Default::default);
    let lost = case.lost();
    let can = |way: &Way| {
        lost > 0
            && Streams::new(*way, &sources, &mut outputs[..lost]).is_some()
            && Streams::new(*way, &sources, &mut outputs).is_some()
    };
    let ways = Way::ALL.into_iter().filter(can);
    ways.map(|way| Box::new(Walker { name: format!("{ROOFLINE}-{way:?}"), way }) as _).collect()
}

/// Puts the best of all walkers in their place.
pub(super) fn merge(figures: Vec<Rival>) -> Vec<Rival> {
    let (walkers, mut others): (Vec<_>, Vec<_>) =
        figures.into_iter().partition(|figure| figure.name.starts_with(ROOFLINE));
    let best = walkers.into_iter().reduce(|one, other| Rival {
        name: ROOFLINE.to_owned(),
        encode_gbs: one.encode_gbs.max(other.encode_gbs),
        rebuild_gbs: one.rebuild_gbs.max(other.rebuild_gbs),
    });
    others.extend(best);
    others
}

fn walk_all<'s>(streams: impl Iterator<Item = Option<Streams<'s>>>) -> Work<'s> {
    let mut streams: Vec<_> =
        streams.map(|streams| streams.expect("roofline invariant: the case can be gone")).collect();
    Box::new(move || streams.iter_mut().for_each(|streams| black_box(streams).walk()))
}

impl Contender for Walker {
    fn name(&self) -> &str {
        &self.name
    }

    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let new =
            |stripe: &'s mut Stripe<'_>| Streams::new(self.way, &stripe.data, &mut stripe.parity);
        walk_all(stripes.iter_mut().map(new))
    }

    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let new = |stripe: &'s mut Stripe<'_>| {
            let present: Vec<&[u8]> = stripe.present.iter().map(|(_, bytes)| *bytes).collect();
            Streams::new(self.way, &present, &mut stripe.rebuilt)
        };
        walk_all(stripes.iter_mut().map(new))
    }

    fn check(&mut self, stripes: &[Stripe<'_>]) {
        for stripe in stripes {
            let data = stripe.data.iter().cycle();
            let present = stripe.present.iter().map(|(_, bytes)| bytes).cycle();
            let written = stripe.parity.iter().zip(data).all(|(output, source)| output == source)
                && stripe.rebuilt.iter().zip(present).all(|(output, source)| output == source);
            assert!(written, "measure invariant: {} writes what it read", self.name);
        }
    }
}
